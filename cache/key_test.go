package cache

import (
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

type (
	name   string
	number int16
	index  uint8
)

func TestKeysAreFormattedAsFmtWouldDo(t *testing.T) {
	require.Equal(t, "p:text", joinKey("p:", "text"))
	require.Equal(t, "p:", joinKey("p:", ""))
	require.Equal(t, "p:named", joinKey("p:", name("named")))
	require.Equal(t, "p:-5", joinKey("p:", -5))
	require.Equal(t, "p:-128", joinKey("p:", int8(math.MinInt8)))
	require.Equal(t, "p:-32768", joinKey("p:", number(math.MinInt16)))
	require.Equal(t, "p:2147483647", joinKey("p:", int32(math.MaxInt32)))
	require.Equal(t, "p:-9223372036854775808", joinKey("p:", int64(math.MinInt64)))
	require.Equal(t, "p:7", joinKey("p:", uint(7)))
	require.Equal(t, "p:255", joinKey("p:", index(255)))
	require.Equal(t, "p:65535", joinKey("p:", uint16(math.MaxUint16)))
	require.Equal(t, "p:4294967295", joinKey("p:", uint32(math.MaxUint32)))
	require.Equal(t, "p:18446744073709551615", joinKey("p:", uint64(math.MaxUint64)))
	rapid.Check(t, func(t *rapid.T) {
		s, i := rapid.String().Draw(t, "string"), rapid.Int64().Draw(t, "int")
		require.Equal(t, fmt.Sprint("p:", s), joinKey("p:", s))
		require.Equal(t, fmt.Sprint("p:", i), joinKey("p:", i))
	})
}

func TestAKeyIsMadeInOneAllocation(t *testing.T) {
	prefix, text, id := "redisha:cache:user:", "someone@example.com", int64(1234567890123)
	var key string
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() { key = joinKey(prefix, text) }), 1.0)
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() { key = joinKey(prefix, id) }), 1.0)
	require.Equal(t, "redisha:cache:user:1234567890123", key)
}
