package compress

import (
	"bytes"
	stdflate "compress/flate"
	"math"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestIsFrameLooksAtMarkVersionAndKind(t *testing.T) {
	require.True(t, IsFrame([]byte{0xC1, 0x10}))
	for _, b := range []string{"", "\xc1", "\x10", "\xc0\x10", "\xc1\x11", "\xc1\x15", "\xc1\x20", "{\"a\":1}"} {
		require.False(t, IsFrame([]byte(b)), "%q", b)
	}
}

func TestErrorsSayWhatIsWrong(t *testing.T) {
	c := newCodec(t, Config{MaxSize: 1000})
	deflated := newCodec(t, Config{}).AppendEncode(nil, jsonText(1000))
	require.True(t, IsFrame(deflated))
	with := func(at int, v byte) []byte {
		b := bytes.Clone(deflated)
		b[at] = v
		return b
	}
	for _, tc := range []struct {
		stored []byte
		want   string
	}{
		{[]byte("\xc1"), "compress: corrupt frame: 1 bytes, want a header of 8: was it truncated?"},
		{deflated[:7], "compress: corrupt frame: 7 bytes, want a header of 8: was it truncated?"},
		{[]byte("\xc1\x13token"), "compress: corrupt frame: it begins with c1 13, want c1 10; other kinds of values are not decoded here"},
		{with(2, 2), "compress: corrupt frame: algorithm is 2, want 0 (stored) or 1 (deflate): was it written by a later version?"},
		{with(3, 1), "compress: corrupt frame: flags are 0x01, want 0: was it written by a later version?"},
		{[]byte("\xc1\x10\x00\x00\x00\x00\x00\x05abc"), "compress: corrupt frame: 3 bytes are stored, the header says 5: was it truncated?"},
		{[]byte("\xc1\x10\x01\x00\x00\x00\x03\xe8"), "compress: corrupt frame: 1000 bytes cannot be deflated to 0"},
		{with(6, 4), "compress: value too large: 1256 bytes before compression, want at most 1000 (Config.MaxSize)"},
		{with(7, 0xE9), "compress: value too large: 1001 bytes before compression, want at most 1000 (Config.MaxSize)"},
		{with(7, 0xE7), "compress: corrupt frame: the payload goes on after the 999 bytes that the header says"},
		{append(bytes.Clone(deflated), 0, 0), "compress: corrupt frame: 2 bytes follow the payload's end"},
		{deflated[:len(deflated)-1], "compress: corrupt frame: the payload does not end after 1000 bytes: unexpected EOF"},
	} {
		_, err := c.Decode(tc.stored)
		require.EqualError(t, err, tc.want)
	}
}

func TestRatioAboveDeflatesBestIsRefused(t *testing.T) {
	c := newCodec(t, Config{})
	const payload = 100
	header := func(size int) []byte {
		return append(appendHeader(nil, deflate, size), make([]byte, payload)...)
	}
	_, err := c.parse(header(maxRatio * payload))
	require.NoError(t, err)
	_, err = c.parse(header(maxRatio*payload + 1))
	require.ErrorIs(t, err, ErrCorrupt)

	// The bound is hardly above what deflate reaches.
	zeros := make([]byte, 1<<20)
	deflated := stdDeflate(t, zeros, stdflate.BestCompression)
	require.Greater(t, len(zeros), 1000*len(deflated))
	plain, err := c.Decode(append(appendHeader(nil, deflate, len(zeros)), deflated...))
	require.NoError(t, err)
	require.True(t, bytes.Equal(zeros, plain))
}

func TestStoredLengthSaturatesAbove4GiB(t *testing.T) {
	if strconv.IntSize < 64 {
		t.Skip("an int has 32 bits here: there is no such value")
	}
	var greatest uint64 = math.MaxUint32
	require.Equal(t, []byte("\xc1\x10\x00\x00\xff\xff\xff\xff"), appendHeader(nil, stored, int(greatest+10)))
	require.Equal(t, uint32(math.MaxUint32), saturate(int(greatest)))
	require.Equal(t, uint32(math.MaxUint32-1), saturate(int(greatest-1)))
}
