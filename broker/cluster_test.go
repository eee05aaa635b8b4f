package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// A load publishes from many goroutines until it is stopped.
type load struct {
	stop      chan struct{}
	all       sync.WaitGroup
	mu        sync.Mutex
	confirmed map[string]bool // IDs
	open      map[string]bool // unconfirmed
	errs      []error         // any other
	slowest   atomic.Int64    // of tasks that go to any partition, in ns
}

// startLoad publishes tasks that go anywhere, and tasks with an ID of their own.
func startLoad(ctx context.Context, c *Client, publishers int) *load {
	l := &load{stop: make(chan struct{}), confirmed: map[string]bool{}, open: map[string]bool{}}
	task := NewTask[int]("load", TaskConfig{Queue: "load"})
	for p := range publishers {
		l.all.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-l.stop:
					return
				default:
				}
				var opts []PublishOption
				if p%4 == 0 {
					opts = append(opts, ID(fmt.Sprint("own:", p, ":", n)))
				}
				start := time.Now()
				id, err := task.Publish(ctx, c, n, opts...)
				if took := int64(time.Since(start)); opts == nil && err == nil && took > l.slowest.Load() {
					l.slowest.Store(took)
				}
				l.mu.Lock()
				switch {
				case err == nil:
					l.confirmed[id] = true
				case errors.Is(err, ErrUnconfirmed):
					l.open[id] = true
				default:
					l.errs = append(l.errs, err)
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

func (l *load) count() int { l.mu.Lock(); defer l.mu.Unlock(); return len(l.confirmed) }

func (l *load) awaitMore(t *testing.T, n int) {
	t.Helper()
	before := l.count()
	require.Eventually(t, func() bool { return l.count() > before+n }, time.Minute, time.Millisecond)
}

// end stops the load and looks for its tasks: each once.
func (l *load) end(ctx context.Context, t *testing.T, c *Client) {
	t.Helper()
	close(l.stop)
	l.all.Wait()
	require.Empty(t, l.errs)
	q, err := c.queue(ctx, "load")
	require.NoError(t, err)
	found := map[string]bool{}
	published := 0
	for _, p := range q.partitions {
		entries, err := c.conn.XRange(ctx, p.streams[2], "-", "+").Result()
		require.NoError(t, err)
		for _, m := range entries {
			e, err := decodeEnvelope([]byte(m.Values[field].(string)))
			require.NoError(t, err)
			require.False(t, found[e.id], "%s is there twice", e.id)
			found[e.id] = true
			require.True(t, l.confirmed[e.id] || l.open[e.id], "%s is nobody's", e.id)
		}
		counted := int(toUint(c.conn.HGet(ctx, p.counters, countPublished).Val()))
		require.Len(t, entries, counted)
		published += counted
	}
	for id := range l.confirmed {
		require.True(t, found[id], "%s is lost", id)
	}
	t.Logf("%d confirmed, %d unconfirmed, %d there, slowest %s, sent again %d", len(l.confirmed), len(l.open), published, time.Duration(l.slowest.Load()), c.Stats().Resent)
}

// Invariant 11: a slot that moves loses nothing and doubles nothing, and forgotten
// scripts are not noticed.
func TestPublishingGoesOnWhileSlotsMoveAndScriptsAreForgotten(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	c, _ := newTestClient(t, ownClient(t, cluster.URL(), nil), Config{})
	l := startLoad(ctx, c, 16)
	l.awaitMore(t, 500)
	require.Equal(t, ConfirmReplicas(1), Confirm(c.defaults.level.Load()))
	q, err := c.queue(ctx, "load")
	require.NoError(t, err)
	require.Len(t, q.partitions, 12)
	forget := func() {
		for _, node := range cluster.Nodes[:3] {
			require.NoError(t, node.Client(t).ScriptFlush(ctx).Err())
		}
	}
	for _, p := range []*partition{q.partitions[0], q.partitions[7]} {
		slot, err := cluster.Slot(ctx, p.lanes)
		require.NoError(t, err)
		from, err := cluster.PrimaryOf(ctx, p.lanes)
		require.NoError(t, err)
		to := cluster.Nodes[0]
		if to == from {
			to = cluster.Nodes[1]
		}
		require.NoError(t, cluster.BeginMigration(ctx, slot, to))
		l.awaitMore(t, 200)
		// Half of its keys are away: TRYAGAIN for this one, and the others go on.
		require.NoError(t, cluster.MigrateKeys(ctx, slot, p.lanes, p.streams[2]))
		forget()
		l.awaitMore(t, 500)
		require.NoError(t, cluster.MigrateKeys(ctx, slot))
		require.NoError(t, cluster.EndMigration(ctx, slot))
		ended := time.Now()
		task := NewTask[int]("load", TaskConfig{Queue: "load"})
		id := "after:0"
		for i := 1; jumpHash(hashID(id), 12) != p.index; i++ {
			id = fmt.Sprint("after:", i)
		}
		_, err = task.Publish(ctx, c, 0, ID(id)) // to this partition
		require.NoError(t, err)
		l.mu.Lock()
		l.confirmed[id] = true
		l.mu.Unlock()
		require.Less(t, time.Since(ended), 20*time.Second, "it goes on within a second, on a machine that has one to spare")
		forget()
		l.awaitMore(t, 500)
	}
	l.end(ctx, t, c)
}

// Invariant 13: where one primary is away, the other partitions go on.
func TestPublishingGoesOnWhileAPrimaryIsAway(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Data: redistest.Config{Lines: []string{"cluster-require-full-coverage no"}}})
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	c, _ := newTestClient(t, ownClient(t, cluster.URL(), nil), Config{})
	l := startLoad(ctx, c, 16)
	l.awaitMore(t, 500)
	require.NoError(t, cluster.Settled(ctx))
	q, err := c.queue(ctx, "load")
	require.NoError(t, err)
	victim, err := cluster.PrimaryOf(ctx, q.partitions[0].lanes)
	require.NoError(t, err)
	victim.Kill()
	l.awaitMore(t, 500)
	_, err = cluster.AwaitPrimary(ctx, q.partitions[0].lanes, victim.Addr())
	require.NoError(t, err)
	l.awaitMore(t, 200)
	require.NoError(t, victim.Restart(ctx), "as a replica, which confirms")
	require.NoError(t, cluster.Settled(ctx))
	l.awaitMore(t, 500)
	l.end(ctx, t, c)
}

// A foreign client's cluster pipelines would send the WAIT to any node.
func TestAForeignClustersClientConfirmsAsWell(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Primaries: 1})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	rdb := cluster.Client(t)
	c, _ := newTestClient(t, rdb, Config{ConfirmTimeout: time.Second, Partitions: 2})
	l := startLoad(ctx, c, 4)
	l.awaitMore(t, 100)
	l.end(ctx, t, c)
	require.NoError(t, cluster.Nodes[1].Pause())
	_, err := NewTask[int]("load", TaskConfig{Queue: "load"}).Publish(ctx, c, 1)
	var unconfirmed *UnconfirmedError
	require.ErrorAs(t, err, &unconfirmed)
	require.True(t, unconfirmed.Applied)
	require.NoError(t, cluster.Nodes[1].Continue())
}

// The metadata may be another server's than the tasks that replicas confirm.
func TestTheMetadataOfAQueueWaitsForAReplicaOnACluster(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{})
	c, _ := newTestClient(t, cluster.Client(t), Config{})
	level, err := c.confirm(t.Context(), ConfirmDefault)
	require.NoError(t, err)
	require.Equal(t, ConfirmReplicas(1), level)
	_, err = c.queue(t.Context(), "mail")
	require.NoError(t, err)
	node, err := c.conn.Node(t.Context(), metadataKey("redisha", "mail"))
	require.NoError(t, err)
	stats, err := node.Info(t.Context(), "commandstats").Result()
	require.NoError(t, err)
	require.Contains(t, stats, "cmdstat_wait:calls=1,")
}
