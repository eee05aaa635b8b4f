package broker

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/testserver"
)

func TestHandlersGetArgumentAndDelivery(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		type mail struct{ To, Body string }
		task := NewTask[mail]("mail", TaskConfig{Queue: "mails", MaxAttempts: 7})
		type call struct {
			m mail
			d Delivery
		}
		calls := make(chan call, 1)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, m mail) error {
				calls <- call{m, *FromContext(ctx)}
				return nil
			})
		})
		want := mail{"ada", strings.Repeat("hello ", 1000)}
		id := publish(t, task, c, want, Header("traceparent", "00-aa-bb-01"), Header("tenant", "t1"))
		got := receive(t, calls)
		require.Equal(t, want, got.m)
		require.Equal(t, id, got.d.ID)
		require.Equal(t, "mail", got.d.Task)
		require.Equal(t, "mails", got.d.Queue)
		require.Equal(t, []int{1, 7, 0}, []int{got.d.Attempt, got.d.MaxAttempts, got.d.Unfinished})
		require.WithinDuration(t, time.Now(), got.d.Enqueued, 10*time.Second)
		require.Equal(t, "t1", got.d.Header("tenant"))
		require.Empty(t, got.d.Header("other"))
		require.Equal(t, map[string]string{"traceparent": "00-aa-bb-01", "tenant": "t1"}, got.d.Headers())
		awaitQueue(t, c, "mails", QueueInfo{})
	})
	require.Nil(t, FromContext(context.Background()))
	require.Nil(t, FromContext(nilContext))
}

func TestTasksArePickedUpAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		task := NewTask[int]("quick", TaskConfig{})
		done := make(chan struct{}, 1)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(context.Context, int) error { done <- struct{}{}; return nil })
		})
		for range 20 {
			time.Sleep(10 * time.Millisecond) // the worker waits in its blocking read
			start := time.Now()
			publish(t, task, c, 0)
			receive(t, done)
			require.Zero(t, time.Since(start))
		}
	})
}

func TestPrioritiesAreStrict(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		tasks := map[string]*Task[int]{
			"low":  NewTask[int]("low", TaskConfig{Priority: PriorityLow}),
			"mid":  NewTask[int]("mid", TaskConfig{}),
			"high": NewTask[int]("high", TaskConfig{Priority: PriorityHigh}),
		}
		for _, name := range []string{"low", "mid", "high", "low", "mid", "high"} {
			publish(t, tasks[name], c, 0)
		}
		order := make(chan string, 9)
		startWorker(t, c, WorkerConfig{Concurrency: 1}, func(w *Worker) {
			for _, task := range tasks {
				task.Handle(w, func(ctx context.Context, _ int) error { order <- FromContext(ctx).Task; return nil })
			}
		})
		for _, want := range []string{"high", "high", "mid", "mid", "low", "low"} {
			require.Equal(t, want, receive(t, order))
		}
	})
}

func TestTenThousandTasksFromSixtyFourPublishersAreDoneOnce(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		const publishers = 64
		each := 157 // 10,048
		if strings.HasSuffix(t.Name(), "miniredis") {
			each = 25 // it is slow
		}
		task := NewTask[int]("many", TaskConfig{})
		ran := make([]atomic.Int32, publishers*each)
		startWorker(t, c, WorkerConfig{Concurrency: 64, Lease: 15 * time.Second}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, n int) error { ran[n].Add(1); return nil })
		})
		var all sync.WaitGroup
		for p := range publishers {
			all.Go(func() {
				for i := range each {
					_, err := task.Publish(context.Background(), c, p*each+i)
					require.NoError(t, err)
				}
			})
		}
		all.Wait()
		awaitQueue(t, c, "default", QueueInfo{})
		for i := range ran {
			require.Equal(t, int32(1), ran[i].Load(), i)
		}
		require.Eventually(t, func() bool { return c.Stats().Succeeded == uint64(len(ran)) }, 20*time.Second, time.Millisecond)
		s := c.Stats()
		require.Zero(t, s.Lost)
		require.Equal(t, uint64(len(ran)), s.RunTime.Count)
		require.Equal(t, uint64(len(ran)), s.WaitTime.Count)
		p := newPartition("redisha", "default", 0, 1)
		require.Zero(t, c.conn.XLen(t.Context(), p.streams[2]).Val(), "nothing is left in Redis")
	})
}

func TestAWorkerRunsOnceAtATime(t *testing.T) {
	s := testserver.New(t)
	c, _ := newTestClient(t, s.Client(t), Config{})
	task := NewTask[int]("a", TaskConfig{})
	w, err := NewWorker(c, WorkerConfig{})
	require.NoError(t, err)
	require.EqualError(t, w.Run(t.Context()), "broker: run: no task has a handler: call Handle before Run")
	began := make(chan struct{}, 1)
	task.Handle(w, func(context.Context, int) error { began <- struct{}{}; return nil })
	require.EqualError(t, w.Run(nilContext), "broker: run: nil context: pass context.Background() or the request's")
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		publish(t, task, c, 1)
		receive(t, began)
		require.EqualError(t, w.Run(ctx), "broker: run: it runs already: make a second worker")
		cancel()
		require.NoError(t, receive(t, done))
	}
	task.Handle(w, func(context.Context, int) error { return nil })
	require.EqualError(t, w.Run(t.Context()), `broker: run: handle "a": there is a handler for it already`)
	var none *Worker
	require.EqualError(t, none.Run(t.Context()), "broker: run: nil worker: pass one made by NewWorker")

	w, err = NewWorker(c, WorkerConfig{})
	require.NoError(t, err)
	NewTask[int]("nil", TaskConfig{}).Handle(w, nil)
	NewResultTask[int, int]("nil2", TaskConfig{}).Handle(w, nil)
	(*ResultTask[int, int])(nil).Handle(w, nil)
	require.EqualError(t, w.Run(t.Context()), "broker: run: handle \"nil\": the handler is nil\nhandle \"nil2\": the handler is nil\nhandle \"\": a task that was not made by NewTask or NewResultTask")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	w, err = NewWorker(c, WorkerConfig{})
	require.NoError(t, err)
	task.Handle(w, func(context.Context, int) error { return nil })
	require.NoError(t, w.Run(cancelled), "done before it began")
}

// Without what package testserver adds: no CLIENT ID, so that reads block to their end.
func TestBareMiniredisWillDo(t *testing.T) {
	server := miniredis.RunT(t)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = rdb.Close() })
	c, logs := newTestClient(t, rdb, Config{})
	p := newPartition("redisha", "default", 0, 1)
	task := NewTask[string]("a", TaskConfig{MaxAttempts: 2, Backoff: atOnce})
	publish(t, task, c, "abandoned")
	require.NoError(t, joinScript.Run(t.Context(), rdb, p.consumerKeys("victim"), 60_000).Err())
	scripts{t, rdb, p}.turn("victim", 1)
	server.Del(p.heartbeat("victim"))
	done := make(chan string, 9)
	stop := startWorker(t, c, WorkerConfig{}, func(w *Worker) {
		task.Handle(w, func(ctx context.Context, s string) error {
			if s == "retried" && FromContext(ctx).Attempt == 1 {
				return errTest
			}
			done <- s
			return nil
		})
	})
	require.Equal(t, "abandoned", receive(t, done))
	for _, s := range []string{"plain", "retried"} {
		publish(t, task, c, s)
		require.Equal(t, s, receive(t, done))
	}
	publish(t, task, c, "delayed", After(20*time.Millisecond))
	require.Equal(t, "delayed", receive(t, done))
	awaitQueue(t, c, "default", QueueInfo{})
	start := time.Now()
	require.NoError(t, stop())
	require.Less(t, time.Since(start), 15*time.Second, "the end of a read, and not DrainTimeout")
	require.Equal(t, 1, logs.count("level=WARN"), "the failed attempt")
}

func TestTimeoutsEndTheContextOfAnAttempt(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("slow", TaskConfig{Timeout: 20 * time.Millisecond, MaxAttempts: 2, Backoff: atOnce})
		errs := make(chan error, 9)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) error {
				<-ctx.Done()
				errs <- ctx.Err()
				return ctx.Err()
			})
		})
		publish(t, task, c, 1)
		require.ErrorIs(t, receive(t, errs), context.DeadlineExceeded)
		require.ErrorIs(t, receive(t, errs), context.DeadlineExceeded)
		awaitQueue(t, c, "default", QueueInfo{Dead: 1})
	})
}

func TestValuesOfRunsContextReachTheHandlers(t *testing.T) {
	s := testserver.New(t)
	c, _ := newTestClient(t, s.Client(t), Config{})
	type key struct{}
	task := NewTask[int]("a", TaskConfig{})
	w, err := NewWorker(c, WorkerConfig{})
	require.NoError(t, err)
	got := make(chan any, 1)
	task.Handle(w, func(ctx context.Context, _ int) error { got <- ctx.Value(key{}); return nil })
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	publish(t, task, c, 1)
	require.Equal(t, "value", receive(t, got))
	cancel()
	require.NoError(t, receive(t, done))
}

func TestRawArgumentsPassUnchanged(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[[]byte]("raw", TaskConfig{Codec: Raw})
		got := make(chan []byte, 1)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, b []byte) error { got <- b; return nil })
		})
		for _, b := range [][]byte{{0xc1, 0x10, 0, 0}, {}, []byte(strings.Repeat("x", 5000))} {
			publish(t, task, c, b)
			require.Equal(t, b, receive(t, got))
		}
	})
}

func TestSettingsOfCompressionNeedNotAgree(t *testing.T) {
	s := testserver.New(t)
	plain, _ := newTestClient(t, s.Client(t), Config{Compress: compress.Config{MinSize: -1}})
	small, _ := newTestClient(t, s.Client(t), Config{Compress: compress.Config{MinSize: 1}})
	task := NewTask[string]("a", TaskConfig{})
	got := make(chan string, 9)
	startWorker(t, plain, WorkerConfig{}, func(w *Worker) {
		task.Handle(w, func(_ context.Context, s string) error { got <- s; return nil })
	})
	publish(t, task, small, strings.Repeat("y", 1000))
	publish(t, task, plain, strings.Repeat("y", 1000))
	require.Len(t, receive(t, got), 1000)
	require.Len(t, receive(t, got), 1000)
}
