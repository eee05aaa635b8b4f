package lock

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// realTTL is short, since servers take part only after as long.
const realTTL = 4 * time.Second

// startPanel starts n real servers, and waits until they are trusted.
func startPanel(tb testing.TB, n int) []*redistest.Server {
	tb.Helper()
	var servers []*redistest.Server
	for range n {
		servers = append(servers, redistest.New(tb, redistest.Config{}))
	}
	time.Sleep(realTTL + margin(realTTL) + 2*time.Second)
	return servers
}

func openPanel(tb testing.TB, servers []*redistest.Server, cfg Config) *Client {
	tb.Helper()
	var nodes []redis.UniversalClient
	for _, srv := range servers {
		opt := srv.Options()
		opt.ContextTimeoutEnabled, opt.MaxRetries = true, -1
		rdb := redis.NewClient(opt)
		tb.Cleanup(func() { _ = rdb.Close() })
		nodes = append(nodes, rdb)
	}
	if cfg.TTL == 0 {
		cfg.TTL = realTTL
	}
	c, err := NewQuorum(nodes, cfg)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

func BenchmarkQuorum(b *testing.B) {
	servers := startPanel(b, 5)
	for _, stopped := range []int{0, 1, 2} {
		b.Run(fmt.Sprintf("stopped=%d", stopped), func(b *testing.B) {
			for _, srv := range servers[:stopped] {
				require.NoError(b, srv.Pause())
				defer func() { require.NoError(b, srv.Continue()) }()
			}
			c := openPanel(b, servers, Config{})
			var took []time.Duration
			b.ReportAllocs()
			for b.Loop() {
				start := time.Now()
				l, err := c.TryAcquire(b.Context(), "k")
				require.NoError(b, err)
				require.NoError(b, l.Release(b.Context()))
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}
