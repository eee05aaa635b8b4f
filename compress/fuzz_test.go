package compress

import (
	"bytes"
	stdflate "compress/flate"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

// Run the targets with -fuzzminimizetime=10x: by default most of the time goes
// into making inputs shorter, and nothing is executed meanwhile.

func FuzzDecode(f *testing.F) {
	const maxSize = 1 << 16
	for _, g := range readGolden(f) {
		f.Add(g.stored)
	}
	c := newCodec(f, Config{MaxSize: maxSize})
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		plain, err := c.Decode(b)
		dst := append(make([]byte, 0, 64), "dst"...)
		appended, appendErr := c.AppendDecode(dst, b)
		require.Equal(t, before, b)
		if err != nil {
			require.True(t, errors.Is(err, ErrCorrupt) != errors.Is(err, ErrTooLarge), err.Error())
			require.Nil(t, plain)
			// Not the same text: flate's own part of it depends on what its
			// reader, which is pooled, has read before.
			require.Equal(t, errors.Is(err, ErrCorrupt), errors.Is(appendErr, ErrCorrupt), "%v; %v", err, appendErr)
			require.Equal(t, errors.Is(err, ErrTooLarge), errors.Is(appendErr, ErrTooLarge), "%v; %v", err, appendErr)
			require.Equal(t, "dst", string(appended))
			if !IsFrame(b) {
				require.Equal(t, byte(mark), b[0])
			}
		} else {
			require.NoError(t, appendErr)
			require.Equal(t, "dst", string(appended[:3]))
			require.True(t, bytes.Equal(plain, appended[3:]))
			if len(b) > maxSize {
				require.LessOrEqual(t, cap(plain), len(b))
			} else {
				require.LessOrEqual(t, cap(plain), 2*maxSize)
			}
			back, err := c.Decode(c.AppendEncode(nil, plain))
			require.NoError(t, err)
			require.True(t, bytes.Equal(plain, back))
		}
		// The standard library is of one mind with us about every payload.
		if IsFrame(b) && len(b) >= headerSize && b[2] == byte(deflate) && b[3] == 0 {
			src := bytes.NewReader(b[headerSize:])
			want, stdErr := io.ReadAll(io.LimitReader(stdflate.NewReader(src), maxSize+1))
			f := appendHeader(nil, deflate, len(want))
			sound := stdErr == nil && src.Len() == 0 && len(want) <= maxSize && bytes.Equal(f[4:], b[4:headerSize])
			require.Equal(t, sound, err == nil, "standard library: %v, we: %v", stdErr, err)
			if sound {
				require.True(t, bytes.Equal(want, plain))
			}
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("text"), 0, 0, 0)
	f.Add([]byte{mark}, 1, -1, 100)
	f.Add(jsonText(1024), 3, 1, 1000)
	f.Add(noise(300), 2, 300, 0)
	f.Fuzz(func(t *testing.T, piece []byte, times, minSize, maxSize int) {
		plain := bytes.Repeat(piece, 1+int(uint(times)%64))
		cfg := Config{MinSize: minSize, MaxSize: maxSize}
		writer, err := New(cfg)
		if err != nil {
			require.Error(t, cfg.validate())
			return
		}
		b := writer.AppendEncode(nil, plain)
		require.LessOrEqual(t, len(b), len(plain)+headerSize)
		for _, c := range []*Codec{writer, newCodec(t, Config{})} {
			back, err := c.Decode(b)
			require.NoError(t, err)
			require.True(t, bytes.Equal(plain, back))
		}
	})
}
