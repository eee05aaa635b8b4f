package redistest_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// soon returns a context that is done before anything settles.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// tells calls what cannot succeed, for a moment at a time, until its error says
// what is wanted: a loaded machine may take longer for the first answer.
func tells(t *testing.T, want string, call func(context.Context) error) {
	t.Helper()
	for begin := time.Now(); ; {
		err := call(soon(t))
		if err != nil && strings.Contains(err.Error(), want) {
			return
		}
		require.Less(t, time.Since(begin), 40*time.Second, "%v, want %s", err, want)
	}
}

func TestSentinelsFailOverFromAKilledPrimary(t *testing.T) {
	f := redistest.SharedSentinels(t)
	old := f.Nodes[0]
	tells(t, "says the primary is "+old.Addr(), func(ctx context.Context) error {
		_, err := f.AwaitPrimary(ctx, old.Addr())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		return err
	})
	old.Kill()
	require.ErrorContains(t, f.Settled(soon(t)), "have not settled")
	now, err := f.AwaitPrimary(t.Context(), old.Addr())
	require.NoError(t, err)
	require.Same(t, now, f.Primary())
	require.Len(t, f.Replicas(), 2)
	require.Contains(t, f.Replicas(), old)
	require.NoError(t, now.Client(t).Set(t.Context(), "k", "v", 0).Err())

	for _, s := range f.Sentinels {
		s.Kill()
	}
	require.Nil(t, f.Primary())
	_, err = f.Failover(t.Context())
	require.ErrorContains(t, err, "no Sentinel answers")
	_, err = f.AwaitPrimary(soon(t), "")
	require.ErrorContains(t, err, "no Sentinel answers")
}

// Whatever is wrong, Settled sees it.
func TestSettledTellsWhatIsWrong(t *testing.T) {
	f := redistest.NewSentinels(t, redistest.SentinelsConfig{FailoverTimeout: time.Minute})
	unsettled := func(want string) {
		t.Helper()
		tells(t, want, f.Settled)
	}
	require.NoError(t, f.Sentinels[2].Pause())
	unsettled("it sees 1 other Sentinels: want 2")
	time.Sleep(2500 * time.Millisecond)
	require.NoError(t, f.Sentinels[2].Continue())
	unsettled("TILT mode") // its clock stood still, for 30s it does nothing
	require.NoError(t, f.Sentinels[2].Restart(t.Context()))
	require.NoError(t, f.Settled(t.Context()))

	require.NoError(t, f.Nodes[2].Pause())
	unsettled("1 replicas are up: want 2")
	require.NoError(t, f.Nodes[2].Continue())
	require.NoError(t, f.Settled(t.Context()))

	require.NoError(t, f.Nodes[1].Client(t).Do(t.Context(), "REPLICAOF", "NO", "ONE").Err())
	unsettled("want a replica of port")
}

// A primary behind a black hole is a primary still for who reaches it.
func TestProxiedPrimaryIsCutOff(t *testing.T) {
	f := redistest.NewSentinels(t, redistest.SentinelsConfig{Proxied: true})
	old := f.Primary()
	require.Same(t, f.Nodes[0], old)
	sentinel := redis.NewSentinelClient(f.Sentinels[0].Options())
	defer func() { _ = sentinel.Close() }()
	addr, err := sentinel.GetMasterAddrByName(t.Context(), f.MasterName()).Result()
	require.NoError(t, err)
	require.Equal(t, f.Proxy(old).Addr(), addr[0]+":"+addr[1])

	f.Proxy(old).BlackHole(true)
	now, err := f.AwaitPrimary(t.Context(), f.Proxy(old).Addr())
	require.NoError(t, err)
	require.NotSame(t, old, now)
	require.NoError(t, old.Client(t).Set(t.Context(), "lost", "v", 0).Err())
}

func TestProxiedClusterLosesReplies(t *testing.T) {
	c := redistest.NewCluster(t, redistest.ClusterConfig{Proxied: true})
	require.NoError(t, c.Settled(t.Context()))
	opts := c.Options()
	opts.MaxRetries, opts.MaxRedirects = -1, -1
	rdb := redis.NewClusterClient(opts)
	defer func() { _ = rdb.Close() }()
	require.NoError(t, rdb.Incr(t.Context(), "n").Err())
	primary, err := c.PrimaryOf(t.Context(), "n")
	require.NoError(t, err)
	cut := c.Proxy(primary).CutAfter(func(request []byte) bool { return bytes.Contains(request, []byte("incr")) })
	require.ErrorIs(t, rdb.Incr(t.Context(), "n").Err(), io.EOF)
	<-cut
	require.Equal(t, "2", primary.Client(t).Get(t.Context(), "n").Val())

	replicas, err := c.ReplicasOf(t.Context(), "n")
	require.NoError(t, err)
	require.NoError(t, c.Failover(t.Context(), replicas[0]))
	now, err := c.AwaitPrimary(t.Context(), "n", c.Proxy(primary).Addr())
	require.NoError(t, err)
	require.Same(t, replicas[0], now)
}

func TestClusterSettledTellsWhatIsWrong(t *testing.T) {
	c := redistest.SharedCluster(t)
	primary, err := c.PrimaryOf(t.Context(), "k")
	require.NoError(t, err)
	require.NoError(t, c.Failover(t.Context(), primary), "it is one already")
	slot, err := c.Slot(t.Context(), "k")
	require.NoError(t, err)
	to := c.Nodes[0]
	if to == primary {
		to = c.Nodes[1]
	}
	require.NoError(t, c.BeginMigration(t.Context(), slot, to))
	tells(t, "has a slot that migrates", c.Settled)
	require.NoError(t, c.EndMigration(t.Context(), slot))
	require.NoError(t, c.Settled(t.Context()))

	to.Kill()
	require.ErrorContains(t, c.Settled(soon(t)), "the Cluster has not settled")
	now, err := c.AwaitPrimary(t.Context(), "k", to.Addr())
	require.NoError(t, err)
	require.NotSame(t, to, now)

	for _, s := range c.Nodes {
		s.Kill()
	}
	for name, call := range map[string]func() error{
		"slot":          func() error { _, err := c.Slot(t.Context(), "k"); return err },
		"primary":       func() error { _, err := c.PrimaryOf(t.Context(), "k"); return err },
		"replicas":      func() error { _, err := c.ReplicasOf(t.Context(), "k"); return err },
		"await primary": func() error { _, err := c.AwaitPrimary(soon(t), "k", ""); return err },
		"failover":      func() error { return c.Failover(soon(t), c.Nodes[0]) },
		"migrate":       func() error { return c.MigrateSlot(soon(t), slot, c.Nodes[0]) },
	} {
		require.ErrorContains(t, call(), "redistest: ", name)
	}
}

func TestFixturesTellWhatIsWrong(t *testing.T) {
	redistest.Require(t)
	sentinels := func(ctx context.Context, cfg redistest.SentinelsConfig) error {
		_, err := redistest.StartSentinels(ctx, cfg)
		return err
	}
	cluster := func(ctx context.Context, cfg redistest.ClusterConfig) error {
		_, err := redistest.StartCluster(ctx, cfg)
		return err
	}
	ctx := t.Context()
	require.ErrorContains(t, sentinels(ctx, redistest.SentinelsConfig{Sentinels: -1}), "-1 Sentinels: want 1 or more")
	require.ErrorContains(t, sentinels(ctx, redistest.SentinelsConfig{MasterName: "a b"}), `MasterName is "a b"`)
	require.ErrorContains(t, sentinels(ctx, redistest.SentinelsConfig{DownAfter: 1}), "DownAfter is 1ns")
	require.ErrorContains(t, cluster(ctx, redistest.ClusterConfig{Primaries: -1}), "-1 primaries: want 1 to 16384")
	require.ErrorContains(t, cluster(ctx, redistest.ClusterConfig{NodeTimeout: 1}), "NodeTimeout is 1ns")
	bad := redistest.Config{Lines: []string{"no-such-directive 1"}}
	require.ErrorContains(t, sentinels(ctx, redistest.SentinelsConfig{Data: bad}), "no-such-directive")
	require.ErrorContains(t, sentinels(ctx, redistest.SentinelsConfig{Sentinel: bad}), "no-such-directive")
	require.ErrorContains(t, cluster(ctx, redistest.ClusterConfig{Data: bad}), "no-such-directive")
	require.ErrorContains(t, sentinels(nil, redistest.SentinelsConfig{}), "nil context")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, cluster(ended, redistest.ClusterConfig{}), context.Canceled)
	t.Setenv("REDISHA_TEST_REDIS_SERVER", "/no/such/redis-server")
	require.ErrorContains(t, cluster(ctx, redistest.ClusterConfig{}), "/no/such/redis-server")
}
