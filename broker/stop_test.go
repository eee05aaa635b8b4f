package broker

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/redistest"
)

func TestAWorkerThatIsIdleStopsWithoutError(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("t", TaskConfig{})
		ran := make(chan int, 1)
		for _, drain := range []time.Duration{-1, time.Millisecond} {
			stop := startWorker(t, c, WorkerConfig{DrainTimeout: drain}, func(w *Worker) {
				task.Handle(w, func(context.Context, int) error { ran <- 1; return nil })
			})
			publish(t, task, c, 1)
			receive(t, ran)
			awaitQueue(t, c, "default", QueueInfo{})
			require.NoError(t, stop(), drain)
		}
		began := make(chan struct{})
		stop := startWorker(t, c, WorkerConfig{DrainTimeout: -1}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) error { close(began); <-ctx.Done(); return ctx.Err() })
		})
		publish(t, task, c, 1)
		receive(t, began)
		require.ErrorIs(t, stop(), ErrDrainTimeout)
		awaitQueue(t, c, "default", QueueInfo{Ready: 1})
	})
}

func TestTheFirstPublishToAQueueWaitsForAServerThatIsAway(t *testing.T) {
	s := redistest.New(t, redistest.Config{})
	client, net := throughNetwork(t, s.Client(t))
	c, _ := newTestClient(t, client, Config{})
	task := NewTask[int]("first", TaskConfig{})
	net.cut()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := task.Publish(ctx, c, 1)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrUnconfirmed)
	require.ErrorContains(t, err, "not sent: context deadline exceeded: key ")
	done := make(chan error, 1)
	go func() {
		_, err := task.Publish(context.Background(), c, 1)
		done <- err
	}()
	select {
	case err := <-done:
		require.Fail(t, "it did not wait", err)
	case <-time.After(100 * time.Millisecond):
	}
	net.mend()
	require.NoError(t, receive(t, done))

	net.cut()
	other := NewTask[int]("closed", TaskConfig{Queue: "other"})
	go func() {
		_, err := other.Publish(context.Background(), c, 1)
		done <- err
	}()
	require.NoError(t, c.Close())
	require.ErrorIs(t, receive(t, done), ErrClosed)
}

func TestAServerOfResultsThatHangsHoldsOnlyTasksWithResults(t *testing.T) {
	tasks, results := redistest.New(t, redistest.Config{}), redistest.New(t, redistest.Config{})
	opt := results.Options()
	opt.ContextTimeoutEnabled, opt.MaxRetries = true, -1
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	c, _ := newTestClient(t, tasks.Client(t), Config{})
	with := NewResultTask[int, int]("with", TaskConfig{})
	without := NewTask[int]("without", TaskConfig{})
	rc, err := result.New(rdb, result.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = rc.Close() })
	stop := startWorker(t, c, WorkerConfig{Results: rc, Lease: 5 * time.Second, DrainTimeout: time.Second}, func(w *Worker) {
		with.Handle(w, func(_ context.Context, i int) (int, error) { return i, nil })
		without.Handle(w, func(context.Context, int) error { return nil })
	})
	publish(t, &with.Task, c, 1)
	awaitQueue(t, c, "default", QueueInfo{})
	require.NoError(t, results.Pause())
	publish(t, &with.Task, c, 1)
	start := time.Now()
	for range 200 {
		for range 15 {
			go func() { _, _ = without.Publish(context.Background(), c, 1) }()
		}
		publish(t, without, c, 1)
	}
	require.Eventually(t, func() bool { return c.Stats().Succeeded == 1+200*16 }, time.Minute, 5*time.Millisecond)
	t.Log(time.Since(start))
	require.NoError(t, results.Continue())
	awaitQueue(t, c, "default", QueueInfo{})
	require.NoError(t, stop())
}
