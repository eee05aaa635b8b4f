package tracking_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
	"github.com/redisha/redisha/internal/tracking"
)

func TestMiniredisRefuses(t *testing.T) {
	c := open(t, foreign(t, testserver.New(t).Client(t)), tracking.Config{})
	p := c.add(t, "a:")
	eventually(t, func() bool { return len(c.refused()) == 1 }, "a refusal")
	require.Equal(t, tracking.Refused, state(t, p))
}

// What cannot be tracked at all is not even connected to.
func TestAProxyRefuses(t *testing.T) {
	c := open(t, own(t, "redis://127.0.0.1:1?proxy=envoy"), tracking.Config{})
	p := c.add(t, "a:")
	eventually(t, func() bool { return len(c.refused()) == 1 }, "a refusal")
	require.ErrorContains(t, c.refused()[0], "proxy=envoy")
	require.Equal(t, tracking.Refused, state(t, p))

	cn, err := conn.Of(struct{ redis.UniversalClient }{})
	require.NoError(t, err)
	c = open(t, cn, tracking.Config{})
	p = c.add(t, "a:")
	eventually(t, func() bool { return len(c.refused()) == 1 }, "a refusal")
	require.ErrorContains(t, c.refused()[0], "has no Options")
	require.Equal(t, tracking.Refused, state(t, p))
	require.NoError(t, c.Close())
	require.Equal(t, tracking.Down, state(t, p))
}

func TestBadConfig(t *testing.T) {
	_, err := tracking.Open(nil, tracking.Config{})
	require.ErrorContains(t, err, "the client is nil")
	_, err = tracking.Open(own(t, "redis://127.0.0.1:1"), tracking.Config{Ping: -1})
	require.ErrorContains(t, err, "Config.Ping is -1ns, want more than 0")
	closed := conn.Closed("cache", fmt.Errorf("%w: set REDISHA_CACHE_URL", conn.ErrNotConfigured))
	t.Cleanup(func() { require.NoError(t, closed.Close()) })
	c := open(t, closed, tracking.Config{})
	p := c.add(t, "a:")
	eventually(t, func() bool { return c.Stats().LastError != nil }, "an error")
	require.ErrorIs(t, c.Stats().LastError, conn.ErrNotConfigured)
	require.Equal(t, tracking.Down, state(t, p))
}

// told writes key by rdb until the cache is told of it: rdb may not know the new
// primary yet.
func (c *cache) toldBy(t *testing.T, rdb redis.UniversalClient, key string) {
	t.Helper()
	c.keys()
	require.Eventually(t, func() bool {
		_ = rdb.Set(t.Context(), key, 1, 0).Err()
		for _, told := range c.keys() {
			if told == key {
				return true
			}
		}
		return false
	}, patience, 10*time.Millisecond, "not told of %q", key)
}

func TestTheConnectionFollowsAFailover(t *testing.T) {
	for name, fault := range map[string]func(context.Context, *redistest.Sentinels) error{
		"killed":      func(_ context.Context, s *redistest.Sentinels) error { s.Primary().Kill(); return nil },
		"stopped":     func(_ context.Context, s *redistest.Sentinels) error { return s.Primary().Pause() },
		"failed over": func(ctx context.Context, s *redistest.Sentinels) error { _, err := s.Failover(ctx); return err },
	} {
		t.Run(name, func(t *testing.T) {
			s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
			cn := own(t, s.URL())
			c := open(t, cn, tracking.Config{})
			p := c.add(t, "a:")
			epoch := stands(t, p, "a:1")
			old := s.Primary().Addr()
			c.toldBy(t, cn, "a:1")
			require.NoError(t, fault(t.Context(), s))
			c.ends(t, epoch)
			primary, err := s.AwaitPrimary(t.Context(), old)
			require.NoError(t, err)
			stands(t, p, "a:1")
			c.toldBy(t, primary.Client(t), "a:2")
			require.LessOrEqual(t, c.Stats().Connections, 1)
		})
	}
}

// A client of go-redis' own finds the primary by its own Dialer.
func TestAForeignFailoverClientIsFollowed(t *testing.T) {
	s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
	c := open(t, foreign(t, redis.NewFailoverClient(&redis.FailoverOptions{
		MasterName: s.MasterName(), SentinelAddrs: s.Addrs(),
	})), tracking.Config{})
	p := c.add(t, "a:")
	epoch := stands(t, p, "a:1")
	old := s.Primary()
	old.Kill()
	primary, err := s.AwaitPrimary(t.Context(), old.Addr())
	require.NoError(t, err)
	c.ends(t, epoch)
	c.toldBy(t, primary.Client(t), "a:1")
}

// spread returns keys of which each of three primaries has some.
func spread(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("a:%d", i)
	}
	return keys
}

// eachCluster runs test with a cache of a client as redisha makes it, and of one
// of the program's.
func eachCluster(t *testing.T, cfg redistest.ClusterConfig, test func(t *testing.T, cluster *redistest.Cluster, c *cache, p *tracking.Prefix)) {
	cluster := redistest.NewCluster(t, cfg)
	for name, client := range map[string]func(t *testing.T) *conn.Client{
		"as redisha makes it": func(t *testing.T) *conn.Client { return own(t, cluster.URL()) },
		"foreign":             func(t *testing.T) *conn.Client { return foreign(t, redis.NewClusterClient(cluster.Options())) },
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, cluster.Settled(t.Context()))
			c := open(t, client(t), tracking.Config{})
			p := c.add(t, "a:")
			for _, key := range spread(100) {
				stands(t, p, key)
			}
			test(t, cluster, c, p)
			require.NoError(t, c.Close())
		})
	}
}

func TestEachPrimaryOfAClusterTells(t *testing.T) {
	eachCluster(t, redistest.ClusterConfig{Replicas: -1}, func(t *testing.T, cluster *redistest.Cluster, c *cache, p *tracking.Prefix) {
		require.Equal(t, 3, c.Stats().Connections)
		begun := len(c.causes())
		q := c.add(t, "b:")
		rdb := cluster.Client(t)
		for _, key := range spread(100) {
			require.NoError(t, rdb.Set(t.Context(), key, 1, 0).Err())
			stands(t, q, key)
		}
		c.tells(t, spread(100)...)
		require.Len(t, c.causes(), begun)
		for _, p := range []*tracking.Prefix{p, q} {
			epoch, state := p.Everywhere()
			require.Equal(t, tracking.Standing, state)
			require.Equal(t, c.Epoch(), epoch)
		}

		node, err := cluster.PrimaryOf(t.Context(), "a:1")
		require.NoError(t, err)
		epoch := c.Epoch()
		require.NoError(t, node.Client(t).FlushAll(t.Context()).Err())
		c.ends(t, epoch)
		epoch = c.Epoch()
		require.NoError(t, node.Client(t).Do(t.Context(), "client", "kill", "type", "normal", "skipme", "yes").Err())
		c.ends(t, epoch)
		for _, key := range spread(100) {
			stands(t, p, key)
		}
		c.toldBy(t, rdb, "a:1")
	})
}

// Each key that moves is told of where it was; that its slot has moved, later.
func TestASlotThatMovesEndsTheEpoch(t *testing.T) {
	eachCluster(t, redistest.ClusterConfig{Replicas: -1}, func(t *testing.T, cluster *redistest.Cluster, c *cache, p *tracking.Prefix) {
		rdb := cluster.Client(t)
		const key = "a:1"
		require.NoError(t, rdb.Set(t.Context(), key, "old", 0).Err())
		c.get(t.Context(), p, key)
		slot, err := cluster.Slot(t.Context(), key)
		require.NoError(t, err)
		from, err := cluster.PrimaryOf(t.Context(), key)
		require.NoError(t, err)
		to := cluster.Nodes[0]
		if from == to {
			to = cluster.Nodes[1]
		}
		epoch := c.Epoch()
		c.keys()
		require.NoError(t, cluster.MigrateSlot(t.Context(), slot, to))
		c.tells(t, key)
		_, ok := c.kept(key)
		require.False(t, ok)
		c.ends(t, epoch)
		stands(t, p, key)
		c.toldBy(t, to.Client(t), key)
		require.Equal(t, 3, c.Stats().Connections)
	})
}

func TestAClustersNewPrimaryTells(t *testing.T) {
	eachCluster(t, redistest.ClusterConfig{}, func(t *testing.T, cluster *redistest.Cluster, c *cache, p *tracking.Prefix) {
		const key = "a:1"
		old, err := cluster.PrimaryOf(t.Context(), key)
		require.NoError(t, err)
		replicas, err := cluster.ReplicasOf(t.Context(), key)
		require.NoError(t, err)
		epoch := c.Epoch()
		require.NoError(t, cluster.Failover(t.Context(), replicas[0]))
		c.ends(t, epoch)
		primary, err := cluster.AwaitPrimary(t.Context(), key, old.Addr())
		require.NoError(t, err)
		c.toldBy(t, primary.Client(t), key)
		stands(t, p, key)
		eventually(t, func() bool { return c.Stats().Connections == 3 }, "three connections, have %d", c.Stats().Connections)
	})
}

func TestAClusterNodeThatHangsEndsTheEpoch(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{})
	c := open(t, own(t, cluster.URL()), tracking.Config{})
	p := c.add(t, "a:")
	const key = "a:1"
	for _, key := range spread(100) {
		stands(t, p, key) // on all nodes, since the connection to the last one would end the epoch too
	}
	epoch := c.Epoch()
	old, err := cluster.PrimaryOf(t.Context(), key)
	require.NoError(t, err)
	require.NoError(t, old.Pause())
	start := time.Now()
	c.ends(t, epoch) // the state is not looked at: a busy machine may look when the replica is primary
	t.Logf("noticed after %s", time.Since(start).Round(time.Millisecond))
	primary, err := cluster.AwaitPrimary(t.Context(), key, old.Addr())
	require.NoError(t, err)
	stands(t, p, key)
	c.toldBy(t, primary.Client(t), key)
}
