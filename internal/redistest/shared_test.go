package redistest_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestSharedSentinelsAreAsNew(t *testing.T) {
	redistest.Require(t)
	var first, second *redistest.Sentinels
	var c *redistest.Cluster
	t.Run("first", func(t *testing.T) {
		first = redistest.SharedSentinels(t)
		require.NoError(t, first.Primary().Client(t).Set(t.Context(), "k", "v", 0).Err())
		require.Same(t, first, redistest.SharedSentinels(t))
		t.Run("subtest", func(t *testing.T) { require.Same(t, first, redistest.SharedSentinels(t)) })
	})
	t.Run("reused", func(t *testing.T) {
		require.Same(t, first, redistest.SharedSentinels(t))
		require.Zero(t, first.Primary().Client(t).DBSize(t.Context()).Val())
		first.Sentinels[0].Kill()
	})
	t.Run("after a kill", func(t *testing.T) {
		second = redistest.SharedSentinels(t)
		require.NotSame(t, first, second)
		require.NoError(t, second.Settled(t.Context()))
		_, err := second.Failover(t.Context())
		require.NoError(t, err)
	})
	t.Run("after a failover", func(t *testing.T) {
		f := redistest.SharedSentinels(t)
		require.NotSame(t, second, f)
		require.Same(t, f.Nodes[0], f.Primary())
	})
	t.Run("in favour of a Cluster", func(t *testing.T) {
		c = redistest.SharedCluster(t)
		require.NoError(t, c.Client(t).Set(t.Context(), "k", "v", 0).Err())
	})
	t.Run("the Cluster again", func(t *testing.T) {
		require.Same(t, c, redistest.SharedCluster(t))
		_, err := c.Client(t).Get(t.Context(), "k").Result()
		require.EqualError(t, err, "redis: nil")
		slot, err := c.Slot(t.Context(), "k")
		require.NoError(t, err)
		to := c.Nodes[0]
		if now, err := c.PrimaryOf(t.Context(), "k"); err == nil && now == to {
			to = c.Nodes[1]
		}
		require.NoError(t, c.MigrateSlot(t.Context(), slot, to))
	})
	t.Run("after a migration", func(t *testing.T) {
		fresh := redistest.SharedCluster(t)
		require.NotSame(t, c, fresh)
		require.NoError(t, fresh.Settled(t.Context()))
	})
}

// A fixture that nobody uses must not hold up other packages.
func TestSharedFixtureEndsSoonAfterItsLastTest(t *testing.T) {
	redistest.Require(t)
	var addr string
	t.Run("last", func(t *testing.T) { addr = redistest.SharedSentinels(t).Sentinels[0].Addr() })
	require.True(t, listens(addr))
	require.Eventually(t, func() bool { return !listens(addr) }, 20*time.Second, 50*time.Millisecond)
}

// Two of them at a time would dead-lock sooner or later.
func TestTestHasOneFixtureAtMost(t *testing.T) {
	redistest.Require(t)
	f := redistest.SharedSentinels(t)
	for name, second := range map[string]func(testing.TB){
		"SharedCluster": func(tb testing.TB) { redistest.SharedCluster(tb) },
		"NewCluster":    func(tb testing.TB) { redistest.NewCluster(tb, redistest.ClusterConfig{}) },
		"NewSentinels":  func(tb testing.TB) { redistest.NewSentinels(tb, redistest.SentinelsConfig{}) },
	} {
		v := judge(t, second)
		require.True(t, v.failed, name)
		require.Contains(t, v.message, "one such fixture runs at a time", name)
	}
	_, err := redistest.StartCluster(t.Context(), redistest.ClusterConfig{})
	require.ErrorContains(t, err, "TestTestHasOneFixtureAtMost has Sentinels or a Cluster already")
	require.NoError(t, f.Settled(t.Context()))
}

// A stranger is another test, whose binary is about to be killed by its timeout.
type stranger struct{ *verdict }

func (stranger) Name() string { return "TestStranger" }

func (stranger) Deadline() (time.Time, bool) { return time.Now().Add(10100 * time.Millisecond), true }

// Better a reason than a dump of all goroutines.
func TestTestWithoutATurnFailsBeforeItsTimeout(t *testing.T) {
	redistest.Require(t)
	redistest.NewSentinels(t, redistest.SentinelsConfig{Sentinels: 1, Replicas: -1})
	v := judge(t, func(tb testing.TB) {
		redistest.NewCluster(stranger{tb.(*verdict)}, redistest.ClusterConfig{})
	})
	require.True(t, v.failed)
	require.Contains(t, v.message, "no turn for a fixture")
}

func TestParallelTestsTakeTurns(t *testing.T) {
	redistest.Require(t)
	cfg := redistest.SentinelsConfig{Sentinels: 1, Replicas: -1}
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			f := redistest.NewSentinels(t, cfg)
			require.NoError(t, f.Settled(t.Context()))
		})
	}
}

// The locks of the machine are the kernel's: they open when their holder is killed.
func TestFixtureWaitsForOtherProcesses(t *testing.T) {
	redistest.Require(t)
	temp := t.TempDir() // not the locks of everybody else
	holders := []*childProcess{launchChild(t, "sentinels", temp), launchChild(t, "sentinels", temp)}
	for _, holder := range holders {
		holder.awaitLine(t)
		require.Len(t, strings.Fields(holder.line), 6, holder.line)
	}
	third := startChild(t, "impatient", temp)
	require.Contains(t, third.line, "context deadline exceeded")
	for _, holder := range holders {
		require.Contains(t, third.line, fmt.Sprintf("held by process %d (", holder.cmd.Process.Pid))
	}
	third.kill(t)
	fourth := launchChild(t, "sentinels", temp)
	time.Sleep(100 * time.Millisecond) // it waits by then, most likely
	holders[0].kill(t)
	fourth.awaitLine(t)
	require.Len(t, strings.Fields(fourth.line), 6, fourth.line)
}
