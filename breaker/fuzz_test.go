package breaker_test

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
)

// Whatever a program sends and a server replies is judged as exactly one thing,
// and only the handshake not at all.
func FuzzCommandAndReply(f *testing.F) {
	f.Add("get", "k", "", "", "", "WRONGTYPE wrong kind")
	f.Add("XREADGROUP", "GROUP", "g", "c", "BLOCK", "LOADING Redis is loading")
	f.Add("ts.read", "k", "-", "block", "1", "ERR max number of clients reached")
	f.Add("Hello", "3", "", "", "", "-READONLY You can't write")
	f.Fuzz(func(t *testing.T, name, a, b, c, d, msg string) {
		h := newHook(t, breaker.Config{})
		cmd := redis.NewCmd(t.Context(), name, a, b, c, d)
		require.Equal(t, error(reply(msg)), do(t.Context(), h, reply(msg), name, a, b, c, d))
		counts := h.Counts()
		switch cmd.Name() {
		case "hello", "auth", "client", "select", "readonly", "role":
			require.Zero(t, counts)
		default:
			require.EqualValues(t, 1, counts.Requests)
		}
	})
}
