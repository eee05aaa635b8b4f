package redistest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVersionIsReadFromEitherServer(t *testing.T) {
	for out, want := range map[string]string{
		"Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d7c971a948f0\n":  "7.0.15",
		"Valkey server v=8.1.3 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1234567890abcdef\n": "8.1.3",
	} {
		got, err := parseVersion(out)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err := parseVersion("no server\n")
	require.EqualError(t, err, `no v=<version> in "no server"`)
}

func TestVersionsCompareByNumber(t *testing.T) {
	for _, test := range []struct {
		version, than string
		older         bool
	}{
		{"7.0.15", "7.2", true},
		{"7.2", "7.2.0", false},
		{"7.2.0", "7.2", false},
		{"7.10", "7.9", false},
		{"7.9", "7.10", true},
		{"8", "7.9.9", false},
	} {
		require.Equal(t, test.older, olderThan(test.version, test.than), test)
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var log tail
	for range 10 {
		_, err := log.Write(make([]byte, tailBytes/2))
		require.NoError(t, err)
	}
	_, err := log.Write([]byte("the end"))
	require.NoError(t, err)
	require.Len(t, log.String(), tailBytes)
	require.Equal(t, "the end", log.String()[tailBytes-7:])
}
