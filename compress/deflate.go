package compress

import (
	"bytes"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
)

// Below fastFrom bytes the better level costs few microseconds and saves a
// quarter of a value, of which the fastest level saves next to nothing.
const (
	fastFrom   = 1 << 10
	levelSmall = 3
	levelFast  = 1
)

// A deflater takes 0.8 MB (fast) or 1.2 MB (small), an inflater 40 KB. Both are
// used without blocking, so there are hardly more of them than processors,
// however many goroutines compress; the garbage collector takes idle ones.
var (
	smallDeflaters = sync.Pool{New: func() any { return newDeflater(levelSmall) }}
	fastDeflaters  = sync.Pool{New: func() any { return newDeflater(levelFast) }}
	inflaters      = sync.Pool{New: func() any { return newInflater() }}
)

// appendDeflated appends the deflate frame of plain to dst. It reports false,
// with dst as it was, if the frame would not save enough.
func appendDeflated(dst, plain []byte) ([]byte, bool) {
	limit := len(plain) - max(32, len(plain)/8)
	pool := &fastDeflaters
	if len(plain) < fastFrom {
		pool = &smallDeflaters
	}
	d := pool.Get().(*deflater)
	defer pool.Put(d)
	framed, err := d.append(appendHeader(dst, deflate, len(plain)), plain, len(dst)+limit)
	if err != nil {
		return dst, false
	}
	return framed, true
}

// errNoGain ends the compression of a value as soon as it saves too little.
var errNoGain = errors.New("compress: not worth it")

type deflater struct {
	w     *flate.Writer
	dst   []byte
	limit int // that len(dst) may reach
}

func newDeflater(level int) *deflater {
	w, _ := flate.NewWriter(nil, level) // fails for unknown levels only
	return &deflater{w: w}
}

// append appends the deflated plain to dst, up to the total length limit. It
// returns to the state of a new deflater, which has no memory of the caller's.
func (d *deflater) append(dst, plain []byte, limit int) ([]byte, error) {
	d.dst, d.limit = dst, limit
	defer func() { d.dst = nil }()
	d.w.Reset(d)
	if _, err := d.w.Write(plain); err != nil {
		return nil, err
	}
	if err := d.w.Close(); err != nil {
		return nil, err
	}
	return d.dst, nil
}

// Write takes the output of d.w.
func (d *deflater) Write(p []byte) (int, error) {
	if len(d.dst)+len(p) > d.limit {
		return 0, errNoGain
	}
	d.dst = append(d.dst, p...)
	return len(p), nil
}

// inflate fills plain from payload, which must be one whole deflate stream of
// exactly that many bytes, and nothing more. The error wraps ErrCorrupt.
func inflate(plain, payload []byte) error {
	i := inflaters.Get().(*inflater)
	defer inflaters.Put(i)
	return i.inflate(plain, payload)
}

type inflater struct {
	r   io.ReadCloser // a flate.Resetter, reading from src
	src bytes.Reader  // an io.ByteReader, so that r takes no byte behind its stream
	end [1]byte       // where a byte too many would go
}

func newInflater() *inflater {
	i := &inflater{}
	i.r = flate.NewReader(&i.src)
	return i
}

// inflate returns to the state of a new inflater, as append does for a deflater.
func (i *inflater) inflate(plain, payload []byte) error {
	i.src.Reset(payload)
	defer i.src.Reset(nil)
	if err := i.r.(flate.Resetter).Reset(&i.src, nil); err != nil {
		return corrupt("%v", err)
	}
	if n, err := io.ReadFull(i.r, plain); err != nil {
		return corrupt("the payload ends after %d of %d bytes: %v", n, len(plain), err)
	}
	switch n, err := i.r.Read(i.end[:]); {
	case n > 0:
		return corrupt("the payload goes on after the %d bytes that the header says", len(plain))
	case err != io.EOF:
		return corrupt("the payload does not end after %d bytes: %v", len(plain), err)
	case i.src.Len() > 0:
		return corrupt("%d bytes follow the payload's end", i.src.Len())
	}
	return nil
}
