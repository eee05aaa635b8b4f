package compress

import (
	"bytes"
	stdflate "compress/flate"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// stdInflate returns what the standard library makes of a payload, and fails
// unless the payload is one whole stream.
func stdInflate(t testing.TB, payload []byte) []byte {
	t.Helper()
	src := bytes.NewReader(payload)
	plain, err := io.ReadAll(stdflate.NewReader(src))
	require.NoError(t, err)
	require.Zero(t, src.Len(), "bytes follow the stream")
	return plain
}

func stdDeflate(t testing.TB, plain []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := stdflate.NewWriter(&b, level)
	require.NoError(t, err)
	_, err = w.Write(plain)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

// samples are values that are compressed, of sizes around each border within
// the compressor.
func samples() [][]byte {
	var all [][]byte
	for _, size := range []int{256, 1023, 1024, 32767, 32769, 65535, 65536, 300_000} {
		all = append(all, jsonText(size), bytes.Repeat([]byte{mark}, size),
			append(noise(size/3), make([]byte, size-size/3)...))
	}
	return all
}

func TestPayloadIsReadByTheStandardLibraryAndTheReverse(t *testing.T) {
	c := newCodec(t, Config{})
	for _, plain := range samples() {
		b := c.AppendEncode(nil, plain)
		require.True(t, IsFrame(b))
		require.Equal(t, byte(deflate), b[2])
		require.True(t, bytes.Equal(plain, stdInflate(t, b[headerSize:])))
		for _, level := range []int{stdflate.HuffmanOnly, stdflate.NoCompression, stdflate.BestSpeed, stdflate.BestCompression} {
			b = append(appendHeader(nil, deflate, len(plain)), stdDeflate(t, plain, level)...)
			back, err := c.Decode(b)
			require.NoError(t, err)
			require.True(t, bytes.Equal(plain, back))
		}
	}
}

// For each frame on its input the program takes the header off, inflates the
// payload, deflates it anew, and prints a frame. Frames follow their length.
const pythonProgram = `
import struct, sys, zlib
src, dst = sys.stdin.buffer, sys.stdout.buffer
while head := src.read(4):
    frame = src.read(struct.unpack(">I", head)[0])
    assert frame[:4] == b"\xc1\x10\x01\x00", frame[:4]
    plain = zlib.decompress(frame[8:], -15)
    assert len(plain) == struct.unpack(">I", frame[4:8])[0]
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    frame = frame[:8] + deflate.compress(bytes(reversed(plain))) + deflate.flush()
    dst.write(struct.pack(">I", len(frame)) + frame)
`

func TestPayloadIsReadByPythonsZlibAndTheReverse(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil && os.Getenv("REDISHA_TEST_REQUIRE") != "1" {
		t.Skipf("no python3 on PATH, so that its zlib is not tried: %v", err)
	}
	require.NoError(t, err, "REDISHA_TEST_REQUIRE=1 wants python3 on PATH, whose zlib is tried")
	c := newCodec(t, Config{})
	var in []byte
	for _, plain := range samples() {
		b := c.AppendEncode(nil, plain)
		in = append(binary.BigEndian.AppendUint32(in, uint32(len(b))), b...)
	}
	cmd := exec.CommandContext(t.Context(), python, "-c", pythonProgram)
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	for _, plain := range samples() {
		require.GreaterOrEqual(t, len(out), 4)
		size := binary.BigEndian.Uint32(out)
		back, err := c.Decode(out[4:][:size])
		require.NoError(t, err)
		slices.Reverse(back)
		require.True(t, bytes.Equal(plain, back))
		out = out[4+size:]
	}
	require.Empty(t, out)
}
