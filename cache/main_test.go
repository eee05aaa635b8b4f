package cache

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

func TestMain(m *testing.M) { redistest.Main(m) }

type user struct {
	ID   int64
	Name string
	Tags []string `json:",omitempty"`
}

// newClient returns a client that patience, not time, bounds: a loaded machine
// is no outage. It is closed when the test ends.
func newClient(t testing.TB, rdb redis.UniversalClient, cfg Config) *Client {
	t.Helper()
	if cfg.ReadTimeout == 0 {
		cfg.ReadTimeout = -1
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c, err := New(rdb, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// newServer returns an in-memory server and a client of it that never repeats a
// command.
func newServer(t testing.TB) (*testserver.Server, *redis.Client) {
	t.Helper()
	s := testserver.New(t)
	opt := s.Options()
	opt.MaxRetries, opt.DialerRetries = -1, 1
	opt.PoolSize = 20_000
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	return s, rdb
}

func noLoad[K Key, V any](t testing.TB) func(context.Context, K) (V, error) {
	return func(_ context.Context, key K) (V, error) {
		t.Errorf("loaded %v, which should have been found", key)
		var zero V
		return zero, nil
	}
}

// A source is a slow database: it counts loads and holds each until release.
type source[V any] struct {
	value   V
	err     error
	loads   atomic.Int64
	began   chan struct{} // gets one for each load
	release chan struct{}
}

func newSource[V any](value V) *source[V] {
	return &source[V]{value: value, began: make(chan struct{}, 1<<16), release: make(chan struct{})}
}

func (s *source[V]) load(ctx context.Context, _ string) (V, error) {
	s.loads.Add(1)
	s.began <- struct{}{}
	var zero V
	select {
	case <-s.release:
		return s.value, s.err
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

// logBook keeps what is logged.
type logBook struct {
	mu   sync.Mutex
	text []byte
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	return len(p), nil
}

func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}

func (b *logBook) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
