package compress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// ErrCorrupt is returned for bytes that begin with 0xC1 and are not a whole and
// sound frame that this version can read. The error that wraps it says why.
var ErrCorrupt = errors.New("compress: corrupt frame")

// ErrTooLarge is returned for a frame whose value is longer than
// [Config.MaxSize]. Nothing has been allocated for it.
var ErrTooLarge = errors.New("compress: value too large")

const (
	mark       = 0xC1 // byte 0 of everything stored that is not plain
	kind       = 0x10 // byte 1: version 1, kind 0
	headerSize = 8

	// maxRatio bounds what deflate can make of a payload: at best two bits
	// stand for 258 bytes. Jean-loup Gailly and Mark Adler, zlib technical
	// details, https://www.zlib.net/zlib_tech.html.
	maxRatio = 1032
)

type algorithm byte

const (
	stored  algorithm = 0
	deflate algorithm = 1
)

// A frame is a parsed frame. Its payload aliases the bytes it was parsed from.
type frame struct {
	algorithm algorithm
	size      int // of the plain value
	payload   []byte
}

// IsFrame reports whether b begins as a frame does. A frame is never plain;
// what is no frame is plain unless it begins with 0xC1, which then belongs to
// another kind of stored bytes, or to nobody.
func IsFrame(b []byte) bool {
	return len(b) >= 2 && b[0] == mark && b[1] == kind
}

func isPlain(b []byte) bool { return len(b) == 0 || b[0] != mark }

// appendHeader appends the header of a frame for a plain value of size bytes.
// The length of a stored value is redundant and saturates, so that a value
// above 4 GiB has a frame too.
func appendHeader(dst []byte, a algorithm, size int) []byte {
	dst = append(dst, mark, kind, byte(a), 0)
	return binary.BigEndian.AppendUint32(dst, saturate(size))
}

func saturate(size int) uint32 { return uint32(min(uint64(size), math.MaxUint32)) }

// parse reads the header of b and refuses whatever could make its reader
// allocate more than MaxSize, or more than the payload can turn into.
func (c *Codec) parse(b []byte) (frame, error) {
	if len(b) >= 2 && !IsFrame(b) {
		return frame{}, corrupt("it begins with % x, want c1 10; other kinds of values are not decoded here", b[:2])
	}
	if len(b) < headerSize {
		return frame{}, corrupt("%d bytes, want a header of %d: was it truncated?", len(b), headerSize)
	}
	a, flags := algorithm(b[2]), b[3]
	size, payload := binary.BigEndian.Uint32(b[4:]), b[headerSize:]
	switch {
	case flags != 0:
		return frame{}, corrupt("flags are %#02x, want 0: was it written by a later version?", flags)
	case a == stored:
		if saturate(len(payload)) != size {
			return frame{}, corrupt("%d bytes are stored, the header says %d: was it truncated?", len(payload), size)
		}
		return frame{algorithm: a, size: len(payload), payload: payload}, nil
	case a != deflate:
		return frame{}, corrupt("algorithm is %d, want 0 (stored) or 1 (deflate): was it written by a later version?", a)
	case uint64(size) > uint64(c.cfg.MaxSize):
		return frame{}, fmt.Errorf("%w: %d bytes before compression, want at most %d (Config.MaxSize)", ErrTooLarge, size, c.cfg.MaxSize)
	case uint64(size) > maxRatio*uint64(len(payload)):
		return frame{}, corrupt("%d bytes cannot be deflated to %d", size, len(payload))
	}
	return frame{algorithm: a, size: int(size), payload: payload}, nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}
