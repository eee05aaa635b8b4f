package broker

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// Workers that wait in a blocking read take tasks again as soon as the new primary
// takes writes, and no task that was confirmed is lost.
func TestWorkersFollowAFailover(t *testing.T) {
	deployment := redistest.NewSentinels(t, redistest.SentinelsConfig{})
	worker, _ := newTestClient(t, ownClient(t, deployment.URL(), nil), Config{})
	c, _ := newTestClient(t, ownClient(t, deployment.URL(), nil), Config{PublishTimeout: time.Minute})
	task := NewTask[int]("a", TaskConfig{})
	var done sync.Map
	got := make(chan int, 9999)
	stop := startWorker(t, worker, WorkerConfig{Lease: 5 * time.Second}, func(w *Worker) {
		task.Handle(w, func(_ context.Context, i int) error { done.Store(i, true); got <- i; return nil })
	})
	publish(t, task, c, 0)
	require.Equal(t, 0, receive(t, got))
	var published atomic.Int64
	var publishers sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for p := range 4 {
		publishers.Go(func() {
			for i := p + 1; ctx.Err() == nil; i += 4 {
				if _, err := task.Publish(context.Background(), c, i, ID(fmt.Sprint(i))); err == nil {
					published.Add(1)
					done.LoadOrStore(i, false)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	deployment.Primary().Kill()
	probe := ownClient(t, deployment.URL(), nil)
	for probe.Set(t.Context(), "probe", 1, 0).Err() != nil {
		require.NoError(t, t.Context().Err())
	}
	back := time.Now()
	for len(got) > 0 {
		<-got
	}
	receive(t, got)
	resumed := time.Since(back)
	time.Sleep(300 * time.Millisecond)
	cancel()
	publishers.Wait()
	require.Eventually(t, func() bool {
		left := 0
		done.Range(func(_, ran any) bool {
			if ran == false {
				left++
			}
			return true
		})
		return left == 0
	}, time.Minute, 20*time.Millisecond, "confirmed tasks are lost")
	require.NoError(t, stop())
	t.Logf("%d published, resumed %s after the first write", published.Load(), resumed)
	require.Less(t, resumed, 10*time.Second, "a second, and a busy machine")
}

// One primary of three hangs: the partitions of the others go on, and its own when it
// is back. Nothing is lost.
func TestAPrimaryThatIsAwayHoldsNoOtherPartition(t *testing.T) {
	away := 3 * time.Second
	if soak() {
		away = 30 * time.Second
	}
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1, NodeTimeout: time.Minute})
	worker, _ := newTestClient(t, ownClient(t, cluster.URL(), nil), Config{})
	c, _ := newTestClient(t, ownClient(t, cluster.URL(), nil), Config{PublishTimeout: 2 * time.Minute})
	task := NewTask[int]("a", TaskConfig{})
	var ran sync.Map
	var count atomic.Int64
	stop := startWorker(t, worker, WorkerConfig{Lease: time.Minute}, func(w *Worker) {
		task.Handle(w, func(_ context.Context, i int) error { ran.Store(i, true); count.Add(1); return nil })
	})
	for i := range 100 {
		publish(t, task, c, i)
	}
	var next, failed atomic.Int64
	next.Store(100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var publishers sync.WaitGroup
	for range 16 {
		publishers.Go(func() {
			for ctx.Err() == nil {
				if _, err := task.Publish(context.Background(), c, int(next.Add(1)-1)); err != nil {
					failed.Add(1)
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	time.Sleep(200 * time.Millisecond)
	require.NoError(t, cluster.Nodes[0].Pause())
	time.Sleep(away / 2)
	before := count.Load()
	time.Sleep(away / 2)
	during := count.Load() - before
	require.NoError(t, cluster.Nodes[0].Continue())
	cancel()
	publishers.Wait()
	awaitQueue(t, c, "default", QueueInfo{})
	require.NoError(t, stop())
	require.Greater(t, during, int64(50), "tasks that ran while the primary was away")
	require.Zero(t, failed.Load())
	for i := range int(next.Load()) {
		_, ok := ran.Load(i)
		require.True(t, ok, i)
	}
	t.Logf("%d tasks, of which %d ran in the second half of %s without a primary", next.Load(), during, away)
}
