package broker

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// Nothing panics on nil, and each call says what is wrong.
func TestNilIsRefusedEverywhere(t *testing.T) {
	s := testserver.New(t)
	c, _ := newTestClient(t, s.Client(t), Config{})
	ctx := t.Context()
	task := NewTask[int]("a", TaskConfig{})
	var noTask *Task[int]
	var noResult *ResultTask[int, int]
	w, err := NewWorker(c, WorkerConfig{})
	require.NoError(t, err)
	for name, call := range map[string]func() error{
		"publish on a nil client":     func() error { _, err := task.Publish(ctx, nil, 1); return err },
		"publish under nil":           func() error { _, err := task.Publish(nilContext, c, 1); return err },
		"publish a nil task":          func() error { _, err := noTask.Publish(ctx, c, 1); return err },
		"publish the zero task":       func() error { _, err := new(Task[int]).Publish(ctx, c, 1); return err },
		"publish with a nil option":   func() error { _, err := task.Publish(ctx, c, 1, nil); return err },
		"many on a nil client":        func() error { _, err := task.PublishMany(ctx, nil, []int{1}); return err },
		"many under nil":              func() error { _, err := task.PublishMany(nilContext, c, []int{1}); return err },
		"many of a nil task":          func() error { _, err := noTask.PublishMany(ctx, c, []int{1}); return err },
		"wait without results":        func() error { _, err := NewResultTask[int, int]("r", TaskConfig{}).Wait(ctx, nil, "x"); return err },
		"wait for a nil task":         func() error { _, err := noResult.Wait(ctx, nil, "x"); return err },
		"a worker without client":     func() error { _, err := NewWorker(nil, WorkerConfig{}); return err },
		"a nil worker":                func() error { return (*Worker)(nil).Run(ctx) },
		"the zero worker":             func() error { return new(Worker).Run(ctx) },
		"a worker under nil":          func() error { return w.Run(nilContext) },
		"a worker without handlers":   func() error { return w.Run(ctx) },
		"an inspector without client": func() error { _, err := NewInspector(nil, nil); return err },
		"a scheduler without client":  func() error { _, err := NewScheduler(nil, SchedulerConfig{}); return err },
		"a nil scheduler":             func() error { return (*Scheduler)(nil).Run(ctx) },
		"counts of a nil client":      func() error { _, err := (*Client)(nil).Queue(ctx, "a"); return err },
		"dead letters of nil":         func() error { _, err := (*Client)(nil).DeadLetters(ctx, "a", 1); return err },
		"a client without redis":      func() error { _, err := New(nil, Config{}); return err },
	} {
		require.NotPanics(t, func() { require.Error(t, call(), name) }, name)
	}
	require.NotPanics(t, func() { require.NoError(t, (*Client)(nil).Close()) })
	require.NotPanics(t, func() {
		noTask.Handle(w, nil)
		task.Handle(new(Worker), func(context.Context, int) error { return nil })
		task.Schedule(nil, "a", "@daily", 1)
		task.Handle(nil, func(context.Context, int) error { return nil })
	})
}

func TestManyQueuesAndManySlotsAreServed(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		const queues = 50
		var tasks [queues]*Task[int]
		var ran [queues]atomic.Int64
		for q := range tasks {
			tasks[q] = NewTask[int](fmt.Sprint("t", q), TaskConfig{Queue: fmt.Sprint("q", q)})
			for i := range 20 {
				publish(t, tasks[q], c, i)
			}
		}
		stop := startWorker(t, c, WorkerConfig{Concurrency: 10_000}, func(w *Worker) {
			for q := range tasks {
				tasks[q].Handle(w, func(context.Context, int) error { ran[q].Add(1); time.Sleep(time.Second); return nil })
			}
		})
		time.Sleep(10 * time.Second)
		for q := range ran {
			require.EqualValues(t, 20, ran[q].Load(), q)
		}
		require.NoError(t, stop())
	})
}

// All conditions at once, again and again: one task is there, whoever asks.
func TestConditionsTogether(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		i, err := NewInspector(c, nil)
		require.NoError(t, err)
		task := NewTask[int]("a", TaskConfig{QueueLimit: 100})
		all := func(id string) []PublishOption {
			return []PublishOption{ID(id), Unique("u" + id), Key("k", 1), After(2 * time.Second), ExpireAfter(time.Hour), Header("h", "v")}
		}
		for range 3 {
			require.Equal(t, "1", publish(t, task, c, 1, all("1")...))
		}
		_, err = task.Publish(t.Context(), c, 1, append(all("2"), Unique("u1"))...)
		require.ErrorIs(t, err, ErrDuplicate)
		publish(t, task, c, 2, all("2")...)
		publish(t, task, c, 3, all("3")...)
		require.Equal(t, QueueInfo{Delayed: 3}, queueInfo(t, c, "default"))
		ran, release := make(chan int, 9), make(chan struct{})
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, i int) error {
				ran <- i
				select {
				case <-ctx.Done():
					return context.Cause(ctx)
				case <-release:
					return nil
				}
			})
		})
		time.Sleep(3 * time.Second)
		first := <-ran
		require.Equal(t, QueueInfo{InFlight: 1, Parked: 2}, queueInfo(t, c, "default"))
		parked := fmt.Sprint(first%3 + 1)
		done, err := i.Cancel(t.Context(), "default", parked)
		require.NoError(t, err)
		require.True(t, done, "while parked")
		require.Equal(t, QueueInfo{InFlight: 1, Parked: 1}, queueInfo(t, c, "default"))
		publish(t, task, c, 4, Unique("u"+parked), Key("k", 1))
		done, err = i.Cancel(t.Context(), "default", fmt.Sprint(first))
		require.NoError(t, err)
		require.False(t, done, "it runs")
		<-ran
		close(release)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.Equal(t, QueueInfo{}, queueInfo(t, c, "default"))
		p := newPartition("redisha", "default", 0, 1)
		keys, err := c.conn.Keys(t.Context(), p.prefix+"*").Result()
		require.NoError(t, err)
		for _, k := range keys {
			require.NotRegexp(t, `^(u|k|kq|kz|rv|z|zh)(:|$)`, k[len(p.prefix):])
		}
	})
}

// A purge takes out what waits while publishers and workers go on: each task is
// run, or purged, and none is both.
func TestPurgeUnderLoad(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		i, err := NewInspector(c, nil)
		require.NoError(t, err)
		task := NewTask[int]("a", TaskConfig{MaxAttempts: 3, Backoff: atOnce})
		publish(t, task, c, 1)
		var ran atomic.Int64
		stop := startWorker(t, c, WorkerConfig{Concurrency: 4}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, i int) error {
				if i%5 == 0 && FromContext(ctx).Attempt == 1 {
					return errTest
				}
				ran.Add(1)
				return nil
			})
		})
		var publishers sync.WaitGroup
		defer publishers.Wait()
		for p := range 4 {
			publishers.Go(func() {
				for n := range 100 {
					opts := []PublishOption{Key(fmt.Sprint("k", n%3), 1), Unique(fmt.Sprint(p, ":", n))}
					if _, err := task.Publish(context.Background(), c, n, opts[:n%3]...); err != nil {
						t.Error(err)
					}
				}
			})
		}
		purged := 0
		for range 10 {
			n, err := i.Purge(t.Context(), "default")
			require.NoError(t, err)
			purged += n
		}
		publishers.Wait()
		awaitQueue(t, c, "default", QueueInfo{})
		require.NoError(t, stop())
		require.EqualValues(t, 401, int(ran.Load())+purged)
		p := newPartition("redisha", "default", 0, 1)
		keys, err := c.conn.Keys(t.Context(), p.prefix+"*").Result()
		require.NoError(t, err)
		for _, k := range keys {
			require.NotRegexp(t, `^(u|k|kq|kz|rv|z|zh)(:|$)`, k[len(p.prefix):])
		}
	})
}
