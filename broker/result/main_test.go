package result

import (
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// quiet is for clients whose trouble is the test's own.
var quiet = slog.New(slog.DiscardHandler)

// newClient returns a client of rdb that is closed when the test ends.
func newClient(tb testing.TB, rdb redis.UniversalClient, cfg Config) *Client {
	tb.Helper()
	if cfg.Logger == nil {
		cfg.Logger = quiet
	}
	c, err := New(rdb, cfg)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, c.Close()) })
	return c
}

// instant is a time that the stored form holds exactly.
func instant(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

const key = "redisha:result:"

// A counter counts by name.
type counter struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counter) add(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = make(map[string]int)
	}
	c.n[name]++
}

func (c *counter) of(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[name]
}
