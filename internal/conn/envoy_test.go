package conn

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// overEnvoy returns a client of two servers behind an Envoy.
func overEnvoy(t *testing.T, words func(string, []string) string) (*Client, *testserver.Envoy, []*testserver.Server) {
	t.Helper()
	servers := []*testserver.Server{testserver.New(t), testserver.New(t)}
	envoy := testserver.NewEnvoy(t, words, servers[0].Dial, servers[1].Dial)
	c := open(t, Config{Role: "results", Endpoint: parse(t, "redis://127.0.0.1:6379?proxy=envoy"), Dialer: envoy.Dial, Logger: slog.New(slog.DiscardHandler)})
	return c, envoy, servers
}

func TestCheckReachesTheServersBehindEnvoy(t *testing.T) {
	for name, words := range map[string]func(string, []string) string{"older": testserver.EnvoyUnsupported, "newer": testserver.EnvoyUnknown} {
		t.Run(name, func(t *testing.T) {
			c, envoy, servers := overEnvoy(t, words)
			require.NoError(t, c.Check(t.Context()))
			require.Equal(t, []string{"hello"}, envoy.Refused(), "go-redis asks, and does without")
			for _, srv := range servers {
				srv.Stop()
			}
			require.NoError(t, c.Ping(t.Context()).Err(), "Envoy answers it by itself")
			_ = c.Check(t.Context()) // on the connection that has broken
			require.ErrorContains(t, c.Check(t.Context()), "the proxy has no healthy server for the key")
		})
	}
}

func TestWhatEnvoyCouldNotDeliverIsRepeatedOrUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, servers := overEnvoy(t, testserver.EnvoyUnknown)
		ctx := t.Context()
		require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
		restart := func() {
			for _, srv := range servers {
				srv.Stop()
				require.NoError(t, srv.Restart())
			}
		}
		restart()
		require.NoError(t, c.Get(ctx, "k").Err(), "a read is sent again")
		restart()
		require.ErrorIs(t, c.RPush(ctx, "k", "x").Err(), ErrOutcomeUnknown, "the server may have executed it")
		require.EqualValues(t, 1, c.Stats().OutcomeUnknown)

		for _, srv := range servers {
			srv.Stop()
		}
		_ = c.Get(Once(ctx), "k").Err() // breaks the connection behind the proxy
		late, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		require.ErrorContains(t, c.Incr(late, "n").Err(), "no upstream host", "nothing was sent")
		pushed := make(chan error, 1)
		go func() { pushed <- c.Incr(ctx, "n").Err() }()
		time.Sleep(50 * time.Millisecond)
		for _, srv := range servers {
			require.NoError(t, srv.Restart())
		}
		require.NoError(t, <-pushed)
		require.Equal(t, "1", c.Get(ctx, "n").Val())
	})
}

func TestAPipelineThroughEnvoyIsJudgedCommandByCommand(t *testing.T) {
	c, envoy, _ := overEnvoy(t, testserver.EnvoyUnknown)
	ctx := t.Context()
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, key := range []string{"a", "b", "c", "d"} {
			p.Set(ctx, key, key, 0)
			p.Get(ctx, key)
		}
		return nil
	})
	require.NoError(t, err)
	require.NoError(t, c.Unlink(ctx, "a", "b", "c", "d").Err())
	err = c.SPublish(ctx, "channel", "x").Err()
	require.ErrorContains(t, err, "unknown command")
	require.Contains(t, envoy.Refused(), "spublish")
}

func TestAProxyHasDatabaseZeroAlone(t *testing.T) {
	ep := parse(t, "redis://h?proxy=envoy")
	ep.DB = 3
	_, err := New(Config{Role: "cache", Endpoint: ep})
	require.ErrorContains(t, err, "proxy=envoy has database 0 alone, not 3")
}

func TestAServerThatHangsUpMayBeATwemproxy(t *testing.T) {
	got := make(chan string, 10)
	addr := listen(t, func(nc net.Conn) { // twemproxy closes the connection on a command that it does not know
		b := make([]byte, 1024)
		n, _ := nc.Read(b)
		got <- string(b[:n])
	})
	c := open(t, Config{Endpoint: parse(t, "redis://"+addr)})
	err := c.Check(t.Context())
	require.Contains(t, strings.ToLower(<-got), "hello")
	require.ErrorContains(t, err, "the server hung up")
	require.ErrorContains(t, err, "twemproxy are not supported")
}
