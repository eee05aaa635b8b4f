package broker

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

func TestAGracefulStopRepeatsNothingAndLosesNothing(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		const n = 400
		task := NewTask[int]("steady", TaskConfig{})
		var ran [n]atomic.Int32
		handle := func(w *Worker) {
			task.Handle(w, func(_ context.Context, i int) error {
				time.Sleep(time.Duration(i%3) * time.Millisecond)
				ran[i].Add(1)
				return nil
			})
		}
		for i := range n {
			publish(t, task, c, i)
		}
		for round := 0; queueInfo(t, c, "default") != (QueueInfo{}); round++ {
			require.Less(t, round, 200)
			stop := startWorker(t, c, WorkerConfig{Concurrency: 4}, handle)
			time.Sleep(30 * time.Millisecond)
			start := time.Now()
			require.NoError(t, stop())
			require.Less(t, time.Since(start), 15*time.Second, "and not DrainTimeout")
			require.Zero(t, queueInfo(t, c, "default").InFlight)
		}
		for i := range ran {
			require.Equal(t, int32(1), ran[i].Load(), i)
		}
		p := newPartition("redisha", "default", 0, 1)
		for _, stream := range p.streams {
			require.Empty(t, c.conn.XInfoConsumers(t.Context(), stream, group).Val(), "no consumer is left")
		}
		require.Zero(t, c.conn.Exists(t.Context(), p.maintainer).Val())
		require.Empty(t, c.conn.Keys(t.Context(), p.prefix+"hb:*").Val())
	})
}

func TestUnfinishedTasksAreGivenBackAfterTheDrainTimeout(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[string]("slow", TaskConfig{})
		began, causes := make(chan string, 9), make(chan error, 9)
		handle := func(w *Worker) {
			task.Handle(w, func(ctx context.Context, s string) error {
				began <- s
				<-ctx.Done()
				causes <- context.Cause(ctx)
				if s == "finishes" {
					return nil
				}
				return ctx.Err()
			})
		}
		stop := startWorker(t, c, WorkerConfig{DrainTimeout: 50 * time.Millisecond}, handle)
		publish(t, task, c, "finishes")
		receive(t, began)
		publish(t, task, c, "gives up")
		receive(t, began)
		require.Equal(t, QueueInfo{InFlight: 2}, queueInfo(t, c, "default"))
		start := time.Now()
		require.ErrorIs(t, stop(), ErrDrainTimeout)
		require.Less(t, time.Since(start), 20*time.Second)
		require.ErrorIs(t, receive(t, causes), ErrDrainTimeout)
		require.Equal(t, QueueInfo{Ready: 1}, queueInfo(t, c, "default"))

		deliveries := make(chan Delivery, 1)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, s string) error {
				deliveries <- *FromContext(ctx)
				return nil
			})
		})
		d := receive(t, deliveries)
		require.Equal(t, []int{1, 0}, []int{d.Attempt, d.Unfinished}, "no attempt is burned")
		awaitQueue(t, c, "default", QueueInfo{})
	})
}

func TestClosingTheClientDrainsItsWorkers(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("a", TaskConfig{})
		began, release := make(chan struct{}, 1), make(chan struct{})
		w, err := NewWorker(c, WorkerConfig{})
		require.NoError(t, err)
		task.Handle(w, func(context.Context, int) error { began <- struct{}{}; <-release; return nil })
		done := make(chan error, 1)
		go func() { done <- w.Run(context.Background()) }()
		publish(t, task, c, 1)
		receive(t, began)
		time.AfterFunc(20*time.Millisecond, func() { close(release) })
		require.NoError(t, c.Close())
		require.EqualError(t, receive(t, done), "broker: run: redis: client is closed")
		again, _ := newTestClient(t, c.conn.Unwrap(), Config{})
		require.Equal(t, QueueInfo{}, queueInfo(t, again, "default"), "it was acknowledged")
	})
}

func TestClosingTheClientGivesBackWhatCannotBeFinishedInTime(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		short, _ := newTestClient(t, c.conn.Unwrap(), Config{CloseTimeout: 200 * time.Millisecond})
		task := NewTask[int]("a", TaskConfig{})
		began, hung := make(chan int, 9), make(chan struct{})
		w, err := NewWorker(short, WorkerConfig{})
		require.NoError(t, err)
		task.Handle(w, func(ctx context.Context, n int) error {
			began <- n
			<-ctx.Done()
			return ctx.Err()
		})
		run := func() (done chan error) {
			done = make(chan error, 1)
			go func() { done <- w.Run(context.Background()) }()
			return done
		}
		done := run()
		publish(t, task, c, 1)
		receive(t, began)
		require.NoError(t, short.Close())
		require.ErrorIs(t, receive(t, done), ErrClosed)
		require.Equal(t, QueueInfo{Ready: 1}, queueInfo(t, c, "default"))

		stubborn, err := New(c.conn.Unwrap(), Config{CloseTimeout: 100 * time.Millisecond})
		require.NoError(t, err)
		w, err = NewWorker(stubborn, WorkerConfig{})
		require.NoError(t, err)
		task.Handle(w, func(context.Context, int) error { began <- 0; <-hung; return nil })
		done = run()
		receive(t, began)
		require.EqualError(t, stubborn.Close(), "broker: close: publishes or handlers still run after 100ms (Config.CloseTimeout)")
		close(hung)
		require.ErrorIs(t, receive(t, done), ErrClosed)
		require.Equal(t, QueueInfo{}, queueInfo(t, c, "default"))
	})
}

func TestClosingTheConnectionEndsTheWorker(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		client, _ := throughNetwork(t, rdb)
		c, _ := newTestClient(t, client, Config{})
		task := NewTask[int]("a", TaskConfig{})
		began := make(chan struct{}, 1)
		w, err := NewWorker(c, WorkerConfig{})
		require.NoError(t, err)
		task.Handle(w, func(ctx context.Context, _ int) error { began <- struct{}{}; <-ctx.Done(); return ctx.Err() })
		done := make(chan error, 1)
		go func() { done <- w.Run(context.Background()) }()
		publish(t, task, c, 1)
		receive(t, began)
		start := time.Now()
		require.NoError(t, client.Close())
		err = receive(t, done)
		require.ErrorIs(t, err, ErrClosed)
		require.Less(t, time.Since(start), 20*time.Second)
	})
}

func TestAStopThatCannotStoreAVerdictSaysSo(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, logs *logs) {
		task := NewTask[int]("a", TaskConfig{})
		ran := make(chan int, 1)
		stop := startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, n int) error {
				ran <- n
				return Reject(errTest)
			})
		})
		p := newPartition("redisha", "default", 0, 1)
		publish(t, task, c, 0)
		receive(t, ran)
		awaitQueue(t, c, "default", QueueInfo{Dead: 1})
		require.NoError(t, c.conn.Del(t.Context(), p.dead).Err())
		require.NoError(t, c.conn.Set(t.Context(), p.dead, "of another program", 0).Err())
		publish(t, task, c, 1)
		receive(t, ran)
		require.EqualError(t, stop(), "broker: run: the verdicts of 1 task(s) could not be stored within 5s: these tasks will run again")
		require.Equal(t, 1, logs.count("verdicts lost"))
	})
}
