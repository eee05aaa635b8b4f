package lock

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// A panel is the nodes of a quorum in memory, each behind a network of its own.
type panel struct {
	servers  []*testserver.Server
	networks []*network
}

// newPanel starts n servers in a bubble, and lets so much time pass that they are
// trusted.
func newPanel(t *testing.T, n int, ttl time.Duration) *panel {
	t.Helper()
	p := &panel{}
	for range n {
		srv := testserver.New(t)
		p.servers = append(p.servers, srv)
		p.networks = append(p.networks, &network{dial: srv.Dial, replies: -1})
	}
	time.Sleep(ttl + margin(ttl) + 2*time.Second)
	return p
}

// open returns a client of all servers.
func (p *panel) open(t *testing.T, cfg Config) *Client {
	t.Helper()
	if cfg.CloseTimeout == 0 {
		cfg.CloseTimeout = -1
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c, err := NewQuorum(p.clients(t), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (p *panel) clients(t *testing.T) []redis.UniversalClient {
	t.Helper()
	var nodes []redis.UniversalClient
	for i, srv := range p.servers {
		opt := srv.Options()
		opt.Dialer = p.networks[i].Dial
		opt.MaxRetries, opt.DialerRetries, opt.ContextTimeoutEnabled = -1, 1, true
		rdb := redis.NewClient(opt)
		t.Cleanup(func() {
			_ = rdb.Close()
			time.Sleep(2 * time.Second) // after failed dials, go-redis looks once a second whether it is closed
		})
		nodes = append(nodes, rdb)
	}
	return nodes
}

// leases counts the servers that have the lease.
func (p *panel) leases(key string) (n int) {
	for _, srv := range p.servers {
		if srv.Exists("redisha:lock:{" + key + "}") {
			n++
		}
	}
	return n
}

func TestAQuorumGivesALeaseToOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 30*time.Second)
		c, d := p.open(t, Config{}), p.open(t, Config{})
		l := acquire(t, c, "k")
		synctest.Wait()
		require.Equal(t, 5, p.leases("k"))
		_, err := d.TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrNotAcquired)
		require.EqualError(t, err, `lock: acquire "k": not acquired: another holds the lock`)
		time.Sleep(time.Hour)
		require.NoError(t, l.Context().Err())
		require.NoError(t, l.Release(t.Context()))
		synctest.Wait()
		require.Zero(t, p.leases("k"))
		m := acquire(t, d, "k")
		require.Greater(t, m.Token(), l.Token())
		require.NoError(t, m.Release(t.Context()))
	})
}
