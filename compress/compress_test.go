package compress

import (
	"bytes"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestConfigOutOfRangeIsRefused(t *testing.T) {
	_, err := New(Config{MaxSize: -1})
	require.EqualError(t, err, "compress: MaxSize is -1, want 1 to 2147483647 bytes, or 0 for the default of 67108864")
	_, err = New(Config{MaxSize: math.MaxInt32})
	require.NoError(t, err)
	if tooMuch := uint64(math.MaxInt32 + 1); uint64(int(tooMuch)) == tooMuch && int(tooMuch) > 0 {
		_, err = New(Config{MaxSize: int(tooMuch)})
		require.ErrorContains(t, err, "MaxSize is 2147483648")
	}
}

func TestCompressionStartsAtMinSize(t *testing.T) {
	for _, tc := range []struct {
		name    string
		cfg     Config
		size    int
		deflate bool
	}{
		{"default, below", Config{}, 255, false},
		{"default, at", Config{}, 256, true},
		{"set, below", Config{MinSize: 1000}, 999, false},
		{"set, at", Config{MinSize: 1000}, 1000, true},
		{"as low as can be", Config{MinSize: 1}, 128, true},
		{"off", Config{MinSize: -1}, 1 << 16, false},
		{"at MaxSize", Config{MaxSize: 5000}, 5000, true},
		{"above MaxSize", Config{MaxSize: 5000}, 5001, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCodec(t, tc.cfg)
			plain := bytes.Repeat([]byte("abcdefgh"), tc.size/8+1)[:tc.size]
			got := c.AppendEncode(nil, plain)
			require.Equal(t, tc.deflate, IsFrame(got))
			if !tc.deflate {
				require.Equal(t, plain, got)
			}
			back, err := c.Decode(got)
			require.NoError(t, err)
			require.Equal(t, plain, back)
		})
	}
}

func TestFrameIsKeptOnlyIfItSaves32BytesAndAnEighth(t *testing.T) {
	c := newCodec(t, Config{MinSize: 1})
	// A growing part of the value is noise: the frame grows until it is dropped.
	for _, size := range []int{100, 200, 256, 1000, 1024, 5000} {
		atMost := size - max(32, size/8)
		var kept, dropped, longest int
		for part := 0; part <= size; part += 1 + size/256 {
			plain := append(noise(part), make([]byte, size-part)...)
			got := c.AppendEncode(nil, plain)
			if IsFrame(got) {
				kept++
				longest = max(longest, len(got))
				require.LessOrEqual(t, len(got), atMost)
			} else {
				dropped++
				require.Equal(t, plain, got)
			}
		}
		require.Positive(t, kept)
		require.Positive(t, dropped)
		require.Greater(t, longest, atMost-16-size/64, "frames that save enough are dropped")
	}
}

func TestIncompressibleBytesStayPlain(t *testing.T) {
	c := newCodec(t, Config{})
	for _, size := range []int{256, 1023, 1024, 65535, 65536, 200_000} {
		plain := noise(size)
		require.Equal(t, plain, c.AppendEncode(nil, plain))
		plain[0] = mark
		got := c.AppendEncode(nil, plain)
		require.Equal(t, headerSize+size, len(got))
		require.True(t, IsFrame(got))
		require.Equal(t, byte(stored), got[2])
	}
}

func TestValuesBelow1KiBGetTheBetterLevel(t *testing.T) {
	c := newCodec(t, Config{})
	differ := 0
	for _, size := range []int{256, 512, 1023, 1024, 2000} {
		plain := jsonText(size)
		better, err := newDeflater(3).append(nil, plain, size)
		require.NoError(t, err)
		fastest, err := newDeflater(1).append(nil, plain, size)
		require.NoError(t, err)
		if !bytes.Equal(better, fastest) {
			differ++
		}
		want := better
		if size >= 1024 {
			want = fastest
		}
		require.Equal(t, want, c.AppendEncode(nil, plain)[headerSize:], "%d bytes", size)
	}
	require.Greater(t, differ, 2, "the levels cannot be told apart")
}

func TestStoredFormDoesNotDependOnDst(t *testing.T) {
	c := newCodec(t, Config{})
	for _, plain := range [][]byte{[]byte("plain"), jsonText(300), jsonText(3000), noise(3000), append([]byte{mark}, noise(3000)...)} {
		want := c.AppendEncode(nil, plain)
		got := c.AppendEncode(noise(5000), plain)
		require.Equal(t, noise(5000), got[:5000])
		require.Equal(t, want, got[5000:])
	}
}

func TestRatioOfJSONIsThatOfTheStandardLibraryOrBetter(t *testing.T) {
	c := newCodec(t, Config{})
	for _, size := range []int{256, 512, 1023, 1024, 4096, 100_000} {
		plain := jsonText(size)
		ours, std := len(c.AppendEncode(nil, plain))-headerSize, len(stdDeflate(t, plain, 1))
		require.LessOrEqual(t, float64(ours), 1.02*float64(std), "%d bytes of JSON", size)
	}
}

func TestDecodeAliasesWhatIsNotCompressed(t *testing.T) {
	c := newCodec(t, Config{})
	for _, plain := range [][]byte{[]byte("plain"), []byte("\xc1 with the mark")} {
		b := append(c.AppendEncode(nil, plain), "behind"...)
		b = b[:len(b)-len("behind")]
		got, err := c.Decode(b)
		require.NoError(t, err)
		require.Equal(t, plain, got)
		require.Same(t, &b[len(b)-1], &got[len(got)-1])

		_ = append(got, "BEHIND"...)
		require.Equal(t, "behind", string(b[len(b):][:len("behind")]), "an append to the result overwrote what lies behind b")
	}
}

func TestAppendDecodeNeverAliases(t *testing.T) {
	c := newCodec(t, Config{})
	for _, plain := range [][]byte{[]byte("plain"), []byte("\xc1 with the mark"), jsonText(1000)} {
		b := c.AppendEncode(nil, plain)
		got, err := c.AppendDecode(nil, b)
		require.NoError(t, err)
		poison(b)
		require.Equal(t, plain, got)
	}
}

func TestAppendEncodeUsesTheRoomOfDst(t *testing.T) {
	c := newCodec(t, Config{})
	for _, plain := range [][]byte{[]byte("plain"), jsonText(3000), noise(3000), append([]byte{mark}, noise(3000)...)} {
		dst := make([]byte, 3, 3+headerSize+len(plain))
		got := c.AppendEncode(dst, plain)
		require.Same(t, &dst[0], &got[0])
	}
}

func TestAppendDecodeUsesTheRoomOfDst(t *testing.T) {
	c := newCodec(t, Config{})
	plain := jsonText(1000)
	dst := make([]byte, 3, 3+len(plain))
	got, err := c.AppendDecode(dst, c.AppendEncode(nil, plain))
	require.NoError(t, err)
	require.Same(t, &dst[0], &got[0])
	require.Equal(t, plain, got[3:])
}

// A deflater is used for years: about every 65,500 values its offsets wrap.
func TestDeflaterOutlivesItsOffsets(t *testing.T) {
	for _, level := range []int{levelSmall, levelFast} {
		d, i := newDeflater(level), newInflater()
		plain := jsonText(2000)
		for range 65_000 {
			d.w.Reset(nil)
		}
		back := make([]byte, len(plain))
		for n := range 1000 {
			got, err := d.append(nil, plain, len(plain))
			require.NoError(t, err)
			require.NoError(t, i.inflate(back, got), "value %d", n)
			require.Equal(t, plain, back, "value %d", n)
		}
	}
}

func TestDeflaterForgetsAValueThatDidNotFit(t *testing.T) {
	for _, level := range []int{levelSmall, levelFast} {
		d := newDeflater(level)
		plain := jsonText(2000)
		want, err := d.append(nil, plain, 2000)
		require.NoError(t, err)
		for _, size := range []int{100, 2000, 70_000, 200_000} {
			_, err = d.append(nil, noise(size), size/2)
			require.ErrorIs(t, err, errNoGain)
			require.Nil(t, d.dst)
			got, err := d.append(nil, plain, 2000)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
	}
}

func TestInflaterForgetsItsInput(t *testing.T) {
	i := newInflater()
	deflated := stdDeflate(t, jsonText(1000), 1)
	require.NoError(t, i.inflate(make([]byte, 1000), deflated))
	require.Zero(t, i.src.Size())
	require.Error(t, i.inflate(make([]byte, 900), deflated))
	require.Zero(t, i.src.Size())
	require.NoError(t, i.inflate(make([]byte, 1000), deflated))
}

// values draws bytes of every nature: noise, runs, repeated pieces, leading marks.
func values() *rapid.Generator[[]byte] {
	return rapid.Custom(func(t *rapid.T) []byte {
		var b []byte
		if rapid.Bool().Draw(t, "marked") {
			b = append(b, mark)
		}
		for range rapid.IntRange(0, 4).Draw(t, "pieces") {
			piece := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "piece")
			if rapid.Bool().Draw(t, "repeated") {
				piece = bytes.Repeat(piece, rapid.IntRange(1, 400).Draw(t, "times"))
			}
			b = append(b, piece...)
		}
		return b
	})
}

func configs() *rapid.Generator[Config] {
	return rapid.Custom(func(t *rapid.T) Config {
		return Config{
			MinSize: rapid.SampledFrom([]int{-1, 0, 1, 64, 300, 5000}).Draw(t, "MinSize"),
			MaxSize: rapid.SampledFrom([]int{0, 1, 100, 1000, 100_000}).Draw(t, "MaxSize"),
		}
	})
}

func TestAnyValueIsReadUnderEverySetting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		plain := values().Draw(t, "plain")
		writerCfg, readerCfg := configs().Draw(t, "writer"), configs().Draw(t, "reader")
		writer, err := New(writerCfg)
		require.NoError(t, err)
		reader, err := New(readerCfg)
		require.NoError(t, err)
		prefix := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "dst")
		dst := append(make([]byte, 0, rapid.IntRange(len(prefix), 2*len(plain)+100).Draw(t, "room")), prefix...)

		original := slices.Clone(plain)
		got := writer.AppendEncode(dst, plain)
		require.True(t, bytes.Equal(original, plain), "the value was changed")
		require.True(t, bytes.Equal(prefix, got[:len(prefix)]))
		b := got[len(prefix):]
		require.LessOrEqual(t, len(b), len(plain)+headerSize)
		if !isPlain(plain) {
			require.True(t, IsFrame(b), "its reader would take it for another kind")
		} else if !IsFrame(b) {
			require.True(t, bytes.Equal(plain, b))
		}

		for _, c := range []*Codec{writer, reader} {
			back, err := c.Decode(b)
			if IsFrame(b) && algorithm(b[2]) == deflate && len(plain) > c.cfg.MaxSize {
				require.NotSame(t, writer, c, "a codec must read what it wrote")
				require.ErrorIs(t, err, ErrTooLarge)
				continue
			}
			require.NoError(t, err)
			require.True(t, bytes.Equal(plain, back))
			back, err = c.AppendDecode(dst[:0:0], b)
			require.NoError(t, err)
			require.True(t, bytes.Equal(plain, back))
		}
	})
}
