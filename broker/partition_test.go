package broker

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

func TestSeveralQueuesAndPartitionsShareTheSlots(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		client, _ := throughNetwork(t, rdb)
		c, _ := newTestClient(t, client, Config{Partitions: 2})
		var running, most atomic.Int64
		var done sync.WaitGroup
		var tasks []*Task[int]
		for q := range 3 {
			tasks = append(tasks, NewTask[int](fmt.Sprint("task", q), TaskConfig{Queue: fmt.Sprint("queue", q)}))
		}
		done.Add(90)
		startWorker(t, c, WorkerConfig{Concurrency: 5}, func(w *Worker) {
			for _, task := range tasks {
				task.Handle(w, func(context.Context, int) error {
					n := running.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					time.Sleep(200 * time.Microsecond)
					running.Add(-1)
					done.Done()
					return nil
				})
			}
		})
		for i := range 90 {
			publish(t, tasks[i%3], c, i)
		}
		done.Wait()
		require.LessOrEqual(t, most.Load(), int64(5))
		for q := range 3 {
			awaitQueue(t, c, fmt.Sprint("queue", q), QueueInfo{})
		}
	})
}

// Slots and queues are counted when several partitions compete for one slot.
func TestATaskThatFindsNoSlotInTimeIsGivenBack(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		busy, other := NewTask[int]("busy", TaskConfig{Queue: "busy"}), NewTask[int]("other", TaskConfig{Queue: "other"})
		release, began := make(chan struct{}), make(chan string, 9)
		startWorker(t, c, WorkerConfig{Concurrency: 1}, func(w *Worker) {
			busy.Handle(w, func(ctx context.Context, _ int) error {
				began <- "busy"
				select {
				case <-release:
				case <-ctx.Done():
				}
				return nil
			})
			other.Handle(w, func(context.Context, int) error { began <- "other"; return nil })
		})
		synctest.Wait() // both block
		publish(t, busy, c, 1)
		require.Equal(t, "busy", receive(t, began))
		publish(t, other, c, 1)
		time.Sleep(1500 * time.Millisecond)
		require.EqualValues(t, 1, c.Stats().Released, "fetched in a blocking read, and released after a second")
		require.Equal(t, QueueInfo{Ready: 1}, queueInfo(t, c, "other"))
		close(release)
		require.Equal(t, "other", receive(t, began))
		awaitQueue(t, c, "other", QueueInfo{})
	})
}

// A blocking read has a connection for itself, so not all partitions can have one.
func TestMorePartitionsThanConnectionsAreServed(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		small, _ := throughNetwork(t, rdb)
		opt := *small.Options()
		opt.PoolSize, opt.PushNotificationProcessor = 5, nil
		few := redis.NewClient(&opt)
		defer few.Close()
		worker, logs := newTestClient(t, few, Config{})
		c, _ := newTestClient(t, rdb, Config{Partitions: 8})
		task := NewTask[int]("a", TaskConfig{})
		publish(t, task, c, 0)
		got := make(chan int, 99)
		stop := startWorker(t, worker, WorkerConfig{Lease: time.Minute}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, i int) error { got <- i; return nil })
		})
		for i := range 40 {
			if i > 0 {
				publish(t, task, c, i)
			}
			require.Equal(t, i, receive(t, got))
		}
		require.NoError(t, stop())
		require.NoError(t, worker.Close())
		awaitQueue(t, c, "default", QueueInfo{})
		if worker.conn.Stats().Pool.MaxTotal > 0 {
			require.Contains(t, logs.String(), "some are polled")
		}
	})
}

func TestAClusterClientServesFourPartitionsForEachPrimary(t *testing.T) {
	t.Run("miniredis", func(t *testing.T) {
		addr, err := testserver.New(t).Listen()
		require.NoError(t, err)
		testCluster(t, addr)
	})
	t.Run("redis", func(t *testing.T) { // one node with all slots: scripts over two of them fail
		server := redistest.New(t, redistest.Config{Lines: []string{"cluster-enabled yes"}})
		node := server.Client(t)
		require.NoError(t, node.ClusterAddSlotsRange(t.Context(), 0, 16383).Err())
		require.Eventually(t, func() bool {
			return strings.Contains(node.ClusterInfo(t.Context()).Val(), "cluster_state:ok")
		}, 10*time.Second, 10*time.Millisecond)
		testCluster(t, server.Addr())
	})
}

func testCluster(t *testing.T, addr string) {
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{addr}})
	t.Cleanup(func() { _ = rdb.Close() })
	c, _ := newTestClient(t, rdb, Config{})
	task := NewTask[int]("a", TaskConfig{MaxAttempts: 2, Backoff: atOnce})
	require.Equal(t, "a", task.Name())
	const n = 40
	done := make(chan int, n)
	stop := startWorker(t, c, WorkerConfig{Lease: 15 * time.Second}, func(w *Worker) {
		task.Handle(w, func(ctx context.Context, i int) error {
			if FromContext(ctx).Attempt == 1 && i%4 == 0 {
				return errTest
			}
			done <- i
			return nil
		})
	})
	for i := range n {
		publish(t, task, c, i, After(time.Duration(i%3)*time.Millisecond))
	}
	seen := make(map[int]bool)
	for range n {
		seen[receive(t, done)] = true
	}
	require.Len(t, seen, n)
	awaitQueue(t, c, "default", QueueInfo{})
	require.Contains(t, rdb.Get(t.Context(), metadataKey("redisha", "default")).Val(), `"partitions":4`)
	require.NoError(t, stop())
}
