package tracking_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/tracking"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// own returns a client of url as redisha makes it.
func own(tb testing.TB, url string) *conn.Client {
	tb.Helper()
	ep, err := endpoint.Parse(url)
	require.NoError(tb, err)
	c, err := conn.New(conn.Config{Role: "cache", Endpoint: ep, Logger: slog.New(slog.DiscardHandler), FailFast: true})
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, c.Close()) })
	return c
}

// foreign returns what is known of a client that the program made.
func foreign(tb testing.TB, rdb redis.UniversalClient) *conn.Client {
	tb.Helper()
	tb.Cleanup(func() { _ = rdb.Close() })
	c, err := conn.Of(rdb)
	require.NoError(tb, err)
	return c
}

// A cache is one as the package's description has it, and notes what it is told.
type cache struct {
	*tracking.Tracker
	cn *conn.Client

	mu       sync.Mutex
	epoch    uint64
	values   map[string]string
	loads    map[*load]struct{}
	told     []string
	gaps     []error
	refusals []error
}

// A load is a value on its way.
type load struct {
	key   string
	stale bool
}

// open returns a cache on a Tracker of cn, which ends with the test.
func open(tb testing.TB, cn *conn.Client, cfg tracking.Config) *cache {
	tb.Helper()
	c := &cache{cn: cn, values: make(map[string]string), loads: make(map[*load]struct{})}
	cfg.Gap = func(cause error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.gaps = append(c.gaps, cause)
	}
	cfg.Refused = func(err error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.refusals = append(c.refusals, err)
	}
	t, err := tracking.Open(cn, cfg)
	require.NoError(tb, err)
	c.Tracker = t
	tb.Cleanup(func() { require.NoError(tb, t.Close()) })
	return c
}

// add adds a prefix whose keys the cache keeps.
func (c *cache) add(tb testing.TB, prefix string) *tracking.Prefix {
	tb.Helper()
	p, err := c.Add(prefix, c.invalidate)
	require.NoError(tb, err)
	return p
}

func (c *cache) invalidate(keys []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told = append(c.told, keys...)
	for _, key := range keys {
		delete(c.values, key)
		for l := range c.loads {
			l.stale = l.stale || l.key == key
		}
	}
}

// kept returns what the cache has of key.
func (c *cache) kept(key string) (value string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if epoch := c.Epoch(); epoch != c.epoch {
		c.epoch = epoch
		clear(c.values)
	}
	value, ok = c.values[key]
	return value, ok
}

// get reads key from the server, unless the cache has it, and keeps it if it may.
func (c *cache) get(ctx context.Context, p *tracking.Prefix, key string) {
	if _, ok := c.kept(key); ok {
		return
	}
	l := &load{key: key}
	c.mu.Lock()
	c.loads[l] = struct{}{}
	c.mu.Unlock()
	value, epoch, state, err := c.read(ctx, p, key)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.loads, l)
	if err == nil && state == tracking.Standing && !l.stale && c.Epoch() == epoch && c.epoch == epoch {
		c.values[key] = value
	}
}

// read reads key from the one node whose state it asks for: what another has
// sent, after MOVED, must not be kept.
func (c *cache) read(ctx context.Context, p *tracking.Prefix, key string) (value string, epoch uint64, state tracking.State, err error) {
	node, err := c.cn.Node(ctx, key)
	if err != nil {
		return "", 0, tracking.Down, err
	}
	addr := ""
	if rdb, ok := node.(*redis.Client); ok {
		addr = rdb.Options().Addr
	}
	epoch, state = p.StateAt(addr)
	value, err = node.Get(ctx, key).Result()
	return value, epoch, state, err
}

// keys returns the keys that were told of, and forgets them.
func (c *cache) keys() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	told := c.told
	c.told = nil
	return told
}

func (c *cache) causes() []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.gaps)
}

func (c *cache) refused() []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.refusals)
}

// eventually waits until ok.
func eventually(tb testing.TB, ok func() bool, what string, args ...any) {
	tb.Helper()
	require.Eventuallyf(tb, ok, patience, time.Millisecond, what, args...)
}

// stands waits until the key of a prefix stands, and returns the epoch.
func stands(tb testing.TB, p *tracking.Prefix, key string) (epoch uint64) {
	tb.Helper()
	eventually(tb, func() bool {
		var state tracking.State
		epoch, state = p.State(tb.Context(), key)
		return state == tracking.Standing
	}, "%q does not stand", key)
	return epoch
}

// ends waits until epoch is over.
func (c *cache) ends(tb testing.TB, epoch uint64) {
	tb.Helper()
	eventually(tb, func() bool { return c.Epoch() != epoch }, "epoch %d does not end", epoch)
}

// tells waits until the cache was told of keys.
func (c *cache) tells(tb testing.TB, keys ...string) {
	tb.Helper()
	eventually(tb, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !slices.ContainsFunc(keys, func(key string) bool { return !slices.Contains(c.told, key) })
	}, "not told of %q", keys)
}
