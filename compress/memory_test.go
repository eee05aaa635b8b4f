package compress

import (
	"bytes"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func poison(b []byte) {
	b = b[:cap(b)]
	for i := range b {
		b[i] = 0xDB
	}
}

// inflaterSize bounds what a new inflater takes. One may be made at any time,
// since the race detector empties pools at random.
const inflaterSize = 64 << 10

// allocated returns the bytes that f allocates. No test here is parallel.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestBombsAreRefusedWithinBoundedMemory(t *testing.T) {
	const mib = 1 << 20
	c := newCodec(t, Config{MaxSize: mib})
	bomb := newCodec(t, Config{}).AppendEncode(nil, make([]byte, 64*mib))
	require.Less(t, len(bomb), mib)
	payload := bomb[headerSize:]
	claim := func(size int, payload []byte) []byte {
		return append(appendHeader(nil, deflate, size), payload...)
	}
	for _, tc := range []struct {
		name   string
		stored []byte
		err    error
		atMost uint64
	}{
		{"an honest bomb", bomb, ErrTooLarge, 4 << 10},
		{"a byte above the maximum", claim(mib+1, payload), ErrTooLarge, 4 << 10},
		{"2 GiB - 1", claim(1<<31-1, payload), ErrTooLarge, 4 << 10},
		{"a length that the payload cannot have", claim(mib, payload[:mib/maxRatio]), ErrCorrupt, 4 << 10},
		{"64 MiB that claim to be 100 bytes", claim(100, payload), ErrCorrupt, inflaterSize},
		{"64 MiB that claim to be 1 MiB", claim(mib, payload), ErrCorrupt, mib + inflaterSize},
		{"1 MiB claimed, nothing there", claim(mib, make([]byte, 2000)), ErrCorrupt, mib + inflaterSize},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var err error
			n := allocated(func() { _, err = c.Decode(tc.stored) })
			require.ErrorIs(t, err, tc.err)
			require.LessOrEqual(t, n, tc.atMost)
		})
	}
}

func TestDecodedValueIsAllocatedOnce(t *testing.T) {
	c := newCodec(t, Config{})
	plain := jsonText(1 << 20)
	b := c.AppendEncode(nil, plain)
	var back []byte
	var err error
	n := allocated(func() { back, err = c.Decode(b) })
	require.NoError(t, err)
	require.Equal(t, plain, back)
	require.Less(t, n, uint64(len(plain)+inflaterSize))
	require.Equal(t, len(plain), cap(back))
}

func TestReusedCodecsAllocateNothing(t *testing.T) {
	plain := jsonText(1 << 10)
	for _, level := range []int{levelSmall, levelFast} {
		d, i := newDeflater(level), newInflater()
		buf, back := make([]byte, 0, len(plain)), make([]byte, len(plain))
		var deflated []byte
		var err error
		require.Zero(t, testing.AllocsPerRun(100, func() {
			deflated, err = d.append(buf, plain, len(plain))
		}))
		require.NoError(t, err)
		require.Zero(t, testing.AllocsPerRun(100, func() {
			err = i.inflate(back, deflated)
		}))
		require.NoError(t, err)
		require.Equal(t, plain, back)
	}
}

func TestUncompressedValuesAreDecodedWithoutAllocating(t *testing.T) {
	c := newCodec(t, Config{})
	for _, plain := range [][]byte{jsonText(100), append([]byte{mark}, noise(1000)...)} {
		b := c.AppendEncode(nil, plain)
		require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = c.Decode(b) }))
	}
}

// 512 goroutines share few codecs. The bound is loose, because the race
// detector drops a quarter of what is put into a pool and a collection empties
// it; without the pools each call would make its own.
func TestPooledCodecsAreReused(t *testing.T) {
	const goroutines = 512
	pools := []struct {
		name  string
		pool  *sync.Pool
		calls int64
		made  atomic.Int64
	}{
		{name: "small deflaters", pool: &smallDeflaters, calls: 2 * goroutines},
		{name: "fast deflaters", pool: &fastDeflaters, calls: 2 * goroutines},
		{name: "inflaters", pool: &inflaters, calls: 4 * goroutines},
	}
	for i := range pools {
		p, create := &pools[i], pools[i].pool.New
		p.pool.New = func() any {
			p.made.Add(1)
			return create()
		}
		defer func() { p.pool.New = create }()
	}
	c := newCodec(t, Config{})
	small, large := jsonText(512), jsonText(1100)
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			var b, back []byte
			for _, plain := range [][]byte{small, large, small, large} {
				b = c.AppendEncode(b[:0], plain)
				back, _ = c.AppendDecode(back[:0], b)
			}
		})
	}
	wg.Wait()
	for i := range pools {
		p := &pools[i]
		t.Logf("%s: %d made for %d calls of %d goroutines", p.name, p.made.Load(), p.calls, goroutines)
		require.Less(t, p.made.Load(), p.calls*3/4, p.name)
	}
}

// What one goroutine gets back stays its own: every buffer is poisoned as soon
// as the call that was given it has returned.
func TestConcurrentCallersNeverShareMemory(t *testing.T) {
	c := newCodec(t, Config{})
	var wg sync.WaitGroup
	var wrong atomic.Int64
	for g := range 16 {
		wg.Go(func() {
			for n := range 60 {
				want := jsonText(300 + 97*g + 31*n)
				if n%3 == 0 {
					want[0] = mark
				}
				if n%5 == 0 {
					want = noise(len(want))
				}
				plain := bytes.Clone(want)
				b := c.AppendEncode(nil, plain)
				poison(plain)
				stored := bytes.Clone(b)
				poison(b)
				back, err := c.AppendDecode(nil, stored)
				poison(stored)
				corrupted := append(appendHeader(nil, deflate, 500), noise(100+n)...)
				_, corruptErr := c.Decode(corrupted)
				poison(corrupted)
				if err != nil || corruptErr == nil || !bytes.Equal(want, back) {
					wrong.Add(1)
				}
				poison(back)
			}
		})
	}
	wg.Wait()
	require.Zero(t, wrong.Load())
}
