// Package compress makes stored values smaller where that pays, and marks the
// ones it has changed, so that any reader knows what it holds.
//
// A value is stored plain, byte for byte, unless it is long enough and deflate
// saves a fair part of it; then it is stored as a frame, which says how it was
// written. A [Codec] of any [Config] reads what a Codec of any other wrote.
//
// # Frame
//
// Numbers are big-endian.
//
//	offset  bytes  what
//	0       1      0xC1, which no UTF-8 text and no MessagePack begins with
//	1       1      0x10: version 1, kind 0, a frame
//	2       1      algorithm: 0 stored, 1 raw deflate; 2 zstd and 3 s2 are reserved
//	3       1      flags, all 0; bit 0 is reserved for a dictionary's number at offset 8
//	4       4      length of the plain value
//	8              payload
//
// Plain bytes that begin with 0xC1 themselves are framed as stored. A deflate
// payload is one raw stream of RFC 1951, without the zlib or gzip wrapping, and
// nothing behind it: in Python, zlib.decompress(frame[8:], -15).
package compress

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

const (
	defaultMinSize = 256
	defaultMaxSize = 64 << 20
)

// Config configures a [Codec]. The zero Config is ready to use.
type Config struct {
	// MinSize is the length in bytes from which a value is compressed: below
	// it there is little to save. Defaults to 256; negative turns compression
	// off, while compressed values are still read.
	MinSize int

	// MaxSize is the length in bytes, before compression, up to which a value
	// is compressed and decompressed. It bounds what a corrupt or hostile
	// frame can make a reader allocate. Longer values are stored as they are;
	// longer compressed ones, which a writer with a greater MaxSize made, are
	// refused with [ErrTooLarge]. Values stored uncompressed have no limit
	// here: they are in memory already.
	//
	// Defaults to 64 MiB: far above what belongs into Redis, whose own limit
	// for a value is 512 MiB, and still bearable if it is allocated in vain.
	// Must not be negative, nor above 2 GiB - 1.
	MaxSize int
}

func (c Config) withDefaults() Config {
	c.MinSize = cmp.Or(c.MinSize, defaultMinSize)
	c.MaxSize = cmp.Or(c.MaxSize, defaultMaxSize)
	return c
}

func (c Config) validate() error {
	if c.MaxSize < 0 || c.MaxSize > math.MaxInt32 {
		return fmt.Errorf("compress: MaxSize is %d, want 1 to %d bytes, or 0 for the default of %d",
			c.MaxSize, math.MaxInt32, defaultMaxSize)
	}
	return nil
}

// A Codec turns plain values into stored ones and back. It holds no memory of
// its own, keeps no slice that it is given, and is safe for concurrent use.
type Codec struct {
	cfg Config
}

// New returns a Codec, or an error that says which field of cfg is out of range.
func New(cfg Config) (*Codec, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Codec{cfg: cfg}, nil
}

// AppendEncode appends the stored form of plain to dst and returns the longer
// slice, reallocated at most once. It accepts any bytes of any length.
//
// What it appends is plain itself or a frame; deflate's result is taken only
// if the whole frame saves 32 bytes and an eighth of the value. It never
// exceeds plain by more than the 8 bytes of a header. To count what is saved,
// compare the lengths. The spare capacity of dst must not overlap plain.
func (c *Codec) AppendEncode(dst, plain []byte) []byte {
	dst = slices.Grow(dst, headerSize+len(plain))
	if c.compresses(plain) {
		if framed, ok := appendDeflated(dst, plain); ok {
			return framed
		}
	}
	return appendPlain(dst, plain)
}

// compresses reports whether plain has a length to be compressed.
func (c *Codec) compresses(plain []byte) bool {
	return c.cfg.MinSize >= 0 && len(plain) >= c.cfg.MinSize && len(plain) <= c.cfg.MaxSize
}

func appendPlain(dst, plain []byte) []byte {
	dst = slices.Grow(dst, headerSize+len(plain))
	if len(plain) > 0 && plain[0] == mark {
		dst = appendHeader(dst, stored, len(plain))
	}
	return append(dst, plain...)
}

// Decode returns the plain value of b, which is its stored form.
//
// The result aliases b, with its capacity cut to its length, unless b is
// compressed: then it is new memory of the value's length. It is thus valid
// only as long as b is, and a caller that changes one changes both.
//
// The error is [ErrCorrupt] or [ErrTooLarge]. Bytes of another kind that begin
// with 0xC1 (see [IsFrame]) are corrupt here.
func (c *Codec) Decode(b []byte) ([]byte, error) {
	if isPlain(b) {
		return slices.Clip(b), nil
	}
	f, err := c.parse(b)
	if err != nil {
		return nil, err
	}
	if f.algorithm == stored {
		return slices.Clip(f.payload), nil
	}
	plain := make([]byte, f.size)
	if err := inflate(plain, f.payload); err != nil {
		return nil, err
	}
	return plain, nil
}

// AppendDecode appends the plain value of b, which is its stored form, to dst
// and returns the longer slice, which never aliases b. If dst has room for the
// value nothing is allocated.
//
// The error is one of [Codec.Decode]'s; dst is then returned as it was given,
// but its spare capacity may have been written to. That capacity must not
// overlap b.
func (c *Codec) AppendDecode(dst, b []byte) ([]byte, error) {
	if isPlain(b) {
		return append(dst, b...), nil
	}
	f, err := c.parse(b)
	if err != nil {
		return dst, err
	}
	if f.algorithm == stored {
		return append(dst, f.payload...), nil
	}
	n := len(dst)
	grown := slices.Grow(dst, f.size)[:n+f.size]
	if err := inflate(grown[n:], f.payload); err != nil {
		return dst, err
	}
	return grown, nil
}
