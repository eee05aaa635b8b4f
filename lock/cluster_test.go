package lock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// clusterOfOne returns a client of a Cluster whose only node has all slots.
func clusterOfOne(t *testing.T) *redis.ClusterClient {
	t.Helper()
	srv := redistest.New(t, redistest.Config{Lines: []string{"cluster-enabled yes"}})
	node := srv.Client(t)
	require.NoError(t, node.ClusterAddSlotsRange(t.Context(), 0, 16383).Err())
	require.Eventually(t, func() bool {
		info, err := node.ClusterInfo(t.Context()).Result()
		return err == nil && len(info) > 0 && info[:16] == "cluster_state:ok"
	}, time.Minute, 10*time.Millisecond)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{srv.Addr()}})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// The server itself refuses a script whose keys are of two slots.
func TestLocksWorkOnCluster(t *testing.T) {
	rdb := clusterOfOne(t)
	ctx := t.Context()
	c := open(t, rdb, Config{TTL: 1500 * time.Millisecond, CloseTimeout: 10 * time.Second})
	require.NoError(t, c.Check(ctx))
	var leases []*Lease
	for i := range 50 {
		leases = append(leases, acquire(t, c, fmt.Sprint("k", i, "}{")))
	}
	_, err := c.TryAcquire(ctx, leases[0].Key())
	require.ErrorIs(t, err, ErrNotAcquired)
	require.Eventually(t, func() bool { return c.Stats().Renewed >= 150 }, time.Minute, 10*time.Millisecond)
	for _, l := range leases {
		require.NoError(t, l.Context().Err())
		require.NoError(t, l.Release(ctx))
	}

	var mu sync.Mutex
	var history []tenure
	errs := make(chan error, 8)
	var wg sync.WaitGroup
	for range cap(errs) {
		wg.Go(func() {
			for range 10 {
				held, err := hold(ctx, c, "contended")
				if err != nil && !errors.Is(err, ErrNotAcquired) && !errors.Is(err, context.DeadlineExceeded) {
					errs <- err
					return
				}
				if held.token != 0 {
					mu.Lock()
					history = append(history, held)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	require.Empty(t, errs)
	requireExclusive(t, history)
}
