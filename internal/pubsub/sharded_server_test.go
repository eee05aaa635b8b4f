package pubsub_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
)

func TestChannelsOfOneServerArePlain(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	c := client(t, srv.URL())
	h := hold(t, c)
	channels := tagged(100)
	h.Add(channels...)
	h.awaitLive(t, 100)
	h.delivers(t, plain(c), channels...)
	require.Equal(t, 1, h.Stats().Connections)

	require.NoError(t, srv.Client(t).Do(t.Context(), "client", "kill", "type", "pubsub").Err())
	h.awaitLost(t, channels)
	h.awaitLive(t, 100)
	h.read(func() { h.lost = nil })
	srv.Kill()
	h.awaitLost(t, channels)
	require.NoError(t, srv.Restart(t.Context()))
	h.awaitLive(t, 100)
	h.delivers(t, plain(c), channels...)
	h.Remove(channels...)
	require.Eventually(t, func() bool {
		left, err := c.PubSubChannels(t.Context(), "*").Result()
		return err == nil && len(left) == 0
	}, patience, time.Millisecond)
}

// awaitLost waits until channels have been lost.
func (h *holder) awaitLost(t *testing.T, channels []string) {
	t.Helper()
	require.Eventually(t, func() bool {
		lost := h.lostChannels()
		return !slices.ContainsFunc(channels, func(c string) bool { return !slices.Contains(lost, c) })
	}, patience, time.Millisecond)
}

func TestChannelsFollowAFailoverOfSentinels(t *testing.T) {
	s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
	c := client(t, s.URL())
	h := hold(t, c)
	channels := tagged(50)
	h.Add(channels...)
	h.awaitLive(t, 50)
	h.delivers(t, plain(c), channels...)
	_, err := s.Failover(t.Context())
	require.NoError(t, err)
	h.awaitLost(t, channels)
	h.awaitLive(t, 50)
	h.delivers(t, plain(c), channels...)
}

// eachClusterClient runs test with a holder of 300 live channels, for a client
// as redisha makes it and for one of the program's.
func eachClusterClient(t *testing.T, cluster *redistest.Cluster, test func(t *testing.T, c *conn.Client, h *holder)) {
	for name, open := range map[string]func() *conn.Client{
		"as redisha makes it": func() *conn.Client { return client(t, cluster.URL()) },
		"RESP2": func() *conn.Client {
			opt := cluster.Options()
			opt.Protocol = 2
			rdb := redis.NewClusterClient(opt)
			t.Cleanup(func() { _ = rdb.Close() })
			c, err := conn.Of(rdb)
			require.NoError(t, err)
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, cluster.Settled(t.Context()))
			c := open()
			h := hold(t, c)
			start := time.Now()
			h.Add(tagged(300)...)
			h.awaitLive(t, 300)
			t.Logf("300 channels are live after %s", time.Since(start).Round(time.Millisecond))
			test(t, c, h)
			require.NoError(t, h.Close())
		})
	}
}

// byNode tells which channels each node has.
func byNode(t *testing.T, cluster *redistest.Cluster, channels []string) map[*redistest.Server][]string {
	t.Helper()
	nodes := make(map[*redistest.Server][]string)
	for _, channel := range channels {
		node, err := cluster.PrimaryOf(t.Context(), channel)
		require.NoError(t, err)
		nodes[node] = append(nodes[node], channel)
	}
	return nodes
}

func TestShardedChannelsOfARealCluster(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1})
	channels := tagged(300)
	eachClusterClient(t, cluster, func(t *testing.T, c *conn.Client, h *holder) {
		h.delivers(t, byScript(c), channels...)
		require.EqualValues(t, 300, h.Stats().Messages)
		require.Equal(t, 3, h.Stats().Connections)
		for node, own := range byNode(t, cluster, channels) {
			got, err := node.Client(t).PubSubShardChannels(t.Context(), "*").Result()
			require.NoError(t, err)
			require.ElementsMatch(t, own, got)
		}
		h.Remove(channels...)
		require.Eventually(t, func() bool {
			left := 0
			for _, node := range cluster.Nodes {
				got, err := node.Client(t).PubSubShardChannels(t.Context(), "*").Result()
				require.NoError(t, err)
				left += len(got)
			}
			return left == 0
		}, patience, 10*time.Millisecond)
	})
}

func TestAChannelFollowsItsSlotWhileItMigrates(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1})
	channels := tagged(300)
	eachClusterClient(t, cluster, func(t *testing.T, c *conn.Client, h *holder) {
		var moved []string
		for _, channel := range channels[:5] {
			from, err := cluster.PrimaryOf(t.Context(), channel)
			require.NoError(t, err)
			to := cluster.Nodes[(slices.Index(cluster.Nodes, from)+1)%3]
			slot, err := cluster.Slot(t.Context(), channel)
			require.NoError(t, err)
			require.NoError(t, cluster.BeginMigration(t.Context(), slot, to))
			// The old node has the channel as long as it is under way. (A script may be
			// sent on to the new one, for the sake of its keys, and reach nobody there.)
			h.delivers(t, func(channel, payload string) error { return c.SPublish(t.Context(), channel, payload).Err() }, channel)
			require.NoError(t, cluster.EndMigration(t.Context(), slot))
			moved = append(moved, channel)
			h.awaitLost(t, moved)
			lost := time.Now()
			h.awaitLive(t, 300)
			if len(moved) == 1 {
				t.Logf("live again after about %s", time.Since(lost).Round(time.Millisecond))
			}
			h.delivers(t, byScript(c), channel)
		}
		h.delivers(t, byScript(c), channels...)
	})
}

func TestShardedChannelsOutliveTheirNode(t *testing.T) {
	for name, fault := range map[string]func(context.Context, *redistest.Cluster, *redistest.Server) error{
		"killed":  func(_ context.Context, _ *redistest.Cluster, s *redistest.Server) error { s.Kill(); return nil },
		"stopped": func(_ context.Context, _ *redistest.Cluster, s *redistest.Server) error { return s.Pause() },
		"failed over": func(ctx context.Context, cluster *redistest.Cluster, s *redistest.Server) error {
			return cluster.Failover(ctx, cluster.Nodes[slices.Index(cluster.Nodes, s)+3])
		},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := redistest.NewCluster(t, redistest.ClusterConfig{})
			c := client(t, cluster.URL())
			h := hold(t, c)
			channels := tagged(300)
			h.Add(channels...)
			h.awaitLive(t, 300)
			node := cluster.Nodes[1]
			own := byNode(t, cluster, channels)[node]
			require.NotEmpty(t, own)
			start := time.Now()
			require.NoError(t, fault(t.Context(), cluster, node))
			h.awaitLost(t, own)
			noticed := time.Since(start)
			_, err := cluster.AwaitPrimary(t.Context(), own[0], node.Addr())
			require.NoError(t, err)
			agreed := time.Since(start)
			h.awaitLive(t, 300)
			t.Logf("noticed after %s, the nodes agreed on another after %s, live after %s",
				noticed.Round(time.Millisecond), agreed.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
			t.Logf("lost were %d channels, of which %d are the node's", len(h.lostChannels()), len(own))
			h.delivers(t, byScript(c), channels...)
		})
	}
}

// The ACL names the channels of a role, as it does its keys.
func TestAnACLThatAllowsSomeShardedChannels(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{
		Replicas: -1,
		Data:     redistest.Config{Users: []string{"bob on >secret resetchannels &ns:lock:* ~* -@all +ssubscribe +hello +client +auth +cluster|slots +ping"}},
	})
	opt := cluster.Options()
	opt.Username, opt.Password = "bob", "secret"
	rdb := redis.NewClusterClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	c, err := conn.Of(rdb)
	require.NoError(t, err)
	h := hold(t, c)
	h.Add(tagged(30)...)
	h.Add("ns:other:{key0}", "ns:other:{key1}")
	h.awaitLive(t, 30)
	require.Eventually(t, func() bool { return len(h.refusedChannels()) == 2 }, patience, time.Millisecond)
	h.delivers(t, byScript(cluster.Client(t)), tagged(30)...)
}
