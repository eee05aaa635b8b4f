package breaker_test

import (
	"context"
	"net"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func newHook(tb testing.TB, cfg breaker.Config) *breaker.Hook {
	tb.Helper()
	h, err := breaker.New("cache", "10.0.0.1:6379", cfg)
	require.NoError(tb, err)
	return h
}

// do sends a command through h to a server that answers err.
func do(ctx context.Context, h *breaker.Hook, err error, args ...any) error {
	process := h.ProcessHook(func(context.Context, redis.Cmder) error { return err })
	return process(ctx, redis.NewCmd(ctx, args...))
}

// failDial makes one dial through h end with err.
func failDial(h *breaker.Hook, err error) error {
	dial := h.DialHook(func(context.Context, string, string) (net.Conn, error) { return nil, err })
	_, got := dial(context.Background(), "tcp", "10.0.0.1:6379")
	return got
}

// trip opens h by failed dials.
func trip(tb testing.TB, h *breaker.Hook) {
	tb.Helper()
	for range 5 {
		_ = failDial(h, errRefused)
	}
	require.Equal(tb, breaker.StateOpen, h.State())
}

// bubbleOptions connect to srv through net.Pipe, for virtual time.
func bubbleOptions(srv *miniredis.Miniredis) *redis.Options {
	return &redis.Options{
		Addr:                     "10.0.0.1:6379", // an IP keeps DNS out of the bubble
		MaxRetries:               -1,
		PipelinePoolSize:         -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		Dialer:                   func(context.Context, string, string) (net.Conn, error) { return srv.Dial() },
	}
}

func client(tb testing.TB, opt *redis.Options, h *breaker.Hook) *redis.Client {
	tb.Helper()
	rdb := redis.NewClient(opt)
	tb.Cleanup(func() { _ = rdb.Close() })
	rdb.AddHook(h)
	return rdb
}

func newServer(tb testing.TB) *miniredis.Miniredis {
	srv := miniredis.NewMiniRedis()
	tb.Cleanup(srv.Close)
	return srv
}

// answer replaces the server's answer to the command, which may be none. Only
// call it when a client has connected.
func answer(srv *miniredis.Miniredis, command string, f func(*server.Peer)) {
	srv.Server().SetPreHook(func(p *server.Peer, got string, _ ...string) bool {
		if got == command {
			f(p)
		}
		return got == command
	})
}
