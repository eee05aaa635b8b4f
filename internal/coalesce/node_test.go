package coalesce

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
)

// A value names the node of a Cluster that has sent it, alone or in a batch, but
// for one that came by a detour.
func TestAValueNamesTheNodeThatHasSentIt(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1})
	rdb := cluster.Client(t)
	keys := make([]string, 60)
	for i := range keys {
		keys[i] = fmt.Sprint("k", i)
		require.NoError(t, rdb.Set(t.Context(), keys[i], keys[i], 0).Err())
	}
	for _, timeout := range []time.Duration{20 * time.Second, 0} {
		r := reader(t, own(t, conn.Config{Breaker: off, FailFast: true}, cluster.URL()), Config{Timeout: timeout})
		named := func(key string, v Value) {
			t.Helper()
			node, err := cluster.PrimaryOf(t.Context(), key)
			require.NoError(t, err)
			require.Equal(t, key, string(v.Bytes()))
			require.Equal(t, node.Addr(), v.Node())
			require.Equal(t, node.Addr(), r.Node(t.Context(), key))
		}
		for _, key := range keys[:10] {
			v, err := r.Get(t.Context(), key)
			require.NoError(t, err)
			named(key, v)
			v.Release()
		}
		for i, res := range r.GetMany(t.Context(), keys) {
			require.NoError(t, res.Err)
			named(keys[i], res.Value)
			res.Release()
		}
		require.NotZero(t, r.Stats().Batches)

		slot, err := cluster.Slot(t.Context(), keys[0])
		require.NoError(t, err)
		from, err := cluster.PrimaryOf(t.Context(), keys[0])
		require.NoError(t, err)
		to := cluster.Nodes[0]
		if to == from {
			to = cluster.Nodes[1]
		}
		// ASK: the key has gone ahead of its slot.
		require.NoError(t, cluster.BeginMigration(t.Context(), slot, to))
		require.NoError(t, cluster.MigrateKeys(t.Context(), slot, keys[0]))
		astray := func() {
			t.Helper()
			v, err := r.Get(t.Context(), keys[0])
			require.NoError(t, err)
			require.Equal(t, keys[0], string(v.Bytes()))
			require.Empty(t, v.Node())
			v.Release()
			q := r.queue(t.Context(), keys[0])
			free := occupy(q)
			var together sync.WaitGroup
			for range 3 {
				together.Go(func() {
					v, err := r.Get(t.Context(), keys[0])
					if err != nil || v.Node() != "" {
						t.Errorf("node %q, %v", v.Node(), err)
					}
					v.Release()
				})
			}
			require.Eventually(t, func() bool {
				q.mu.Lock()
				defer q.mu.Unlock()
				return len(q.waiting) > 0 && q.waiting[0].readers == 3
			}, time.Minute, time.Millisecond)
			free()
			together.Wait()
		}
		astray()
		require.NoError(t, cluster.EndMigration(t.Context(), slot))
	}
}
