package pubsub_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/pubsub"
	"github.com/redisha/redisha/internal/redistest"
)

// follow returns a client of url as redisha makes it, and the owner of a
// subscription that follows its primary, and the times of new epochs.
func follow(t *testing.T, url string) (*conn.Client, *owner, <-chan time.Time) {
	t.Helper()
	ep, err := endpoint.Parse(url)
	require.NoError(t, err)
	c, err := conn.New(conn.Config{Role: "results", Endpoint: ep, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	o := own(t, pubsub.Config{Open: func(ctx context.Context) *redis.PubSub { return c.Subscribe(ctx) }})
	epochs := make(chan time.Time, 100)
	t.Cleanup(c.OnEpoch(func(uint64) {
		o.Renew()
		epochs <- time.Now()
	}))
	return c, o, epochs
}

func TestASubscriptionFollowsAFailover(t *testing.T) {
	for name, fault := range map[string]func(context.Context, *redistest.Sentinels) error{
		"killed":      func(_ context.Context, s *redistest.Sentinels) error { s.Primary().Kill(); return nil },
		"stopped":     func(_ context.Context, s *redistest.Sentinels) error { return s.Primary().Pause() },
		"failed over": func(ctx context.Context, s *redistest.Sentinels) error { _, err := s.Failover(ctx); return err },
	} {
		t.Run(name, func(t *testing.T) {
			s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
			c, o, epochs := follow(t, s.URL())
			o.Add(numbered(100)...)
			o.awaitLive(t, 100)
			o.delivers(t, c, "c1")
			require.NoError(t, fault(t.Context(), s))
			var announced time.Time
			select {
			case announced = <-epochs:
			case <-time.After(patience):
				t.Fatal("no new epoch")
			}
			require.Eventually(t, func() bool { return o.Stats().Live == 100 }, patience, time.Millisecond)
			t.Logf("live %s after the new primary was known, %d gaps", time.Since(announced).Round(time.Millisecond), o.gapCount())
			o.delivers(t, c, "c1")
			require.Positive(t, o.gapCount())
		})
	}
}

func TestASubscriptionOutlivesAClusterNode(t *testing.T) {
	for name, fault := range map[string]func(*redistest.Server) error{
		"killed":  func(s *redistest.Server) error { s.Kill(); return nil },
		"stopped": (*redistest.Server).Pause,
	} {
		t.Run(name, func(t *testing.T) {
			cluster := redistest.NewCluster(t, redistest.ClusterConfig{})
			_, o, _ := follow(t, cluster.URL())
			o.Add("c1", "c2", "c3")
			o.awaitLive(t, 3)
			node := subscribedNode(t, cluster)
			var other *redistest.Server
			for _, n := range cluster.Nodes {
				if n != node {
					other = n
				}
			}
			rdb := other.Client(t) // messages reach all nodes
			o.delivers(t, rdb, "c2")
			start := time.Now()
			require.NoError(t, fault(node))
			require.Eventually(t, func() bool { return o.gapCount() > 0 }, patience, time.Millisecond)
			gap := time.Since(start)
			require.Eventually(t, func() bool { return o.Stats().Live == 3 }, patience, time.Millisecond)
			t.Logf("noticed after %s, live after %s", gap.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
			require.Less(t, gap, 20*time.Second, "2 s, and the rest for a busy machine")
			o.delivers(t, rdb, "c2")
		})
	}
}

// subscribedNode returns the node that has the subscription.
func subscribedNode(t *testing.T, cluster *redistest.Cluster) *redistest.Server {
	t.Helper()
	for _, node := range cluster.Nodes {
		n, err := node.Client(t).PubSubNumSub(t.Context(), "c1").Result()
		require.NoError(t, err)
		if n["c1"] > 0 {
			return node
		}
	}
	require.Fail(t, "no node has the subscription")
	return nil
}

// A stable address leads to the server that serves now; the last one may have
// vanished without a word.
func TestASubscriptionFollowsAStableAddress(t *testing.T) {
	one, two := redistest.New(t, redistest.Config{}), redistest.New(t, redistest.Config{})
	proxy := redistest.NewProxy(t, one.Addr())
	_, o, _ := follow(t, "redis://"+proxy.Addr())
	o.Add("a")
	o.awaitLive(t, 1)
	o.delivers(t, one.Client(t), "a")

	vanished := time.Now()
	proxy.BlackHole(true)
	o.awaitGaps(t, 1)
	at, _ := o.lastGap()
	require.Less(t, at.Sub(vanished), 20*time.Second)
	proxy.SetTarget(two.Addr())
	proxy.BlackHole(false)
	o.awaitLive(t, 1)
	o.delivers(t, two.Client(t), "a")

	proxy.SetTarget(one.Addr())
	proxy.Cut()
	o.awaitGaps(t, 2)
	o.awaitLive(t, 1)
	o.delivers(t, one.Client(t), "a")
}
