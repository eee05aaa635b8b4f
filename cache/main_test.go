package cache

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

func TestMain(m *testing.M) {
	logging.Disable() // go-redis tells of each failed dial, of which outages have many
	redistest.Main(m)
}

type user struct {
	ID   int64
	Name string
	Tags []string `json:",omitempty"`
}

// newClient returns a client that is patient by default: a loaded machine is no
// outage. It is closed when the test ends.
func newClient(t testing.TB, rdb redis.UniversalClient, cfg Config) *Client {
	t.Helper()
	if cfg.ReadTimeout == 0 {
		cfg.ReadTimeout = time.Minute
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
	return s, open(t, s.Options())
}

// open returns a client that never repeats a command, is as patient as
// newClient, and lets 64 commands through at a time.
func open(t testing.TB, opt *redis.Options) *redis.Client {
	opt.MaxRetries, opt.DialerRetries, opt.ReadTimeout, opt.PoolSize = -1, 1, time.Minute, 128
	rdb := redis.NewClient(opt)
	rdb.AddHook(make(narrow, 64))
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// narrow lets n commands through at a time: the others wait outside the pool of
// connections, whose own timers would be shared with other tests' bubbles.
type narrow chan struct{}

func (n narrow) DialHook(next redis.DialHook) redis.DialHook { return next }

func (n narrow) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if isHandshake(cmd) {
			return next(ctx, cmd)
		}
		n <- struct{}{}
		defer func() { <-n }()
		return next(ctx, cmd)
	}
}

func (n narrow) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// isHandshake tells what runs nested in the command that needs a connection,
// with the connection locked.
func isHandshake(cmd redis.Cmder) bool { return cmd.Name() == "hello" || cmd.Name() == "client" }

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

// newSeed is logged, and can be given to play a game again.
func newSeed(t testing.TB) uint64 {
	seed := rand.Uint64()
	if s := os.Getenv("REDISHA_TEST_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("REDISHA_TEST_SEED=%d", seed)
	return seed
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

// inSlowLua returns few on miniredis, where a thousand scripts in one pipeline take
// longer than a client waits for a reply under the race detector, and else many.
func inSlowLua(t *testing.T, few, many int) int {
	if strings.HasSuffix(t.Name(), "/miniredis") {
		return few
	}
	return many
}
