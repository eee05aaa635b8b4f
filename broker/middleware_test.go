package broker

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/testserver"
)

type spanKey struct{}

func TestMiddlewareIsPutAroundEveryHandler(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		results := newResults(t, c.conn.Unwrap(), result.Config{})
		task := NewResultTask[int, int]("double", TaskConfig{MaxAttempts: 1})
		var calls []string
		step := func(name string) Middleware {
			return func(next Handler) Handler {
				return func(ctx context.Context, d *Delivery) error {
					calls = append(calls, name+" "+d.Task)
					ctx = context.WithValue(ctx, spanKey{}, d.Header("traceparent"))
					err := next(ctx, d)
					calls = append(calls, "after "+name)
					return err
				}
			}
		}
		stop := startWorker(t, c, WorkerConfig{Results: results, Concurrency: 1, Middleware: []Middleware{step("outer"), step("inner")}}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, n int) (int, error) {
				require.Equal(t, "00-abc", ctx.Value(spanKey{}))
				require.Equal(t, "double", FromContext(ctx).Task)
				calls = append(calls, "handler")
				return 2 * n, nil
			})
		})
		id := publish(t, &task.Task, c, 21, Header("traceparent", "00-abc"))
		n, err := task.Wait(t.Context(), results, id)
		require.NoError(t, err)
		require.Equal(t, 42, n)
		require.NoError(t, stop())
		require.Equal(t, []string{"outer double", "inner double", "handler", "after inner", "after outer"}, calls)
	})
}

// What a middleware makes of an error, a panic and a foreign delivery.
func TestTheErrorOfAMiddlewareIsTheVerdict(t *testing.T) {
	each(t, func(t *testing.T, c *Client, logs *logs) {
		task := NewTask[string]("a", TaskConfig{MaxAttempts: 1})
		mend := func(next Handler) Handler {
			return func(ctx context.Context, d *Delivery) error {
				switch err := next(ctx, d); {
				case errors.Is(err, errTest):
					return nil
				case err != nil:
					return err
				}
				switch d.Header("do") {
				case "reject":
					return Reject(errTest)
				case "panic":
					panic("in a middleware")
				case "foreign":
					return next(context.Background(), &Delivery{})
				case "copy":
					other := *d
					return next(ctx, &other)
				}
				return nil
			}
		}
		stop := startWorker(t, c, WorkerConfig{Middleware: []Middleware{mend}}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, do string) error {
				if do == "fail" {
					return errTest
				}
				return nil
			})
		})
		for _, do := range []string{"fail", "reject", "panic", "foreign", "copy"} {
			publish(t, task, c, do, Header("do", do), ID(do))
		}
		awaitQueue(t, c, "default", QueueInfo{Dead: 3})
		require.NoError(t, stop())
		letters, err := c.DeadLetters(t.Context(), "default", 9)
		require.NoError(t, err)
		why := make(map[string]string)
		for _, l := range letters {
			why[l.ID] = l.Error
		}
		require.Equal(t, map[string]string{"reject": "broker: reject: on purpose", "panic": "panic: in a middleware", "foreign": errForeignDelivery.Error()}, why)
		require.Equal(t, 1, logs.count("handler panicked"))
	})
	_, err := NewWorker(&Client{}, WorkerConfig{Middleware: []Middleware{nil}})
	require.ErrorContains(t, err, "WorkerConfig.Middleware: the one at 0 is nil")
}

func TestASnoozedTaskRunsLaterAsTheSameAttempt(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, logs *logs) {
		task := NewTask[int]("a", TaskConfig{MaxAttempts: 1})
		attempts := make(chan int, 99)
		start := time.Now()
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) error {
				attempts <- FromContext(ctx).Attempt
				if len(attempts) < 4 {
					return Snooze(time.Minute)
				}
				return nil
			})
		})
		publish(t, task, c, 1)
		awaitQueueIn(t, c, QueueInfo{}, 10*time.Minute)
		require.InDelta(t, 180, time.Since(start).Seconds(), 2)
		require.Len(t, attempts, 4)
		for range 4 {
			require.Equal(t, 1, <-attempts)
		}
		require.EqualValues(t, 3, c.Stats().Released)
		require.Zero(t, logs.count("task failed"))
	})
}

// awaitQueueIn is awaitQueue in virtual time.
func awaitQueueIn(t *testing.T, c *Client, want QueueInfo, within time.Duration) {
	t.Helper()
	for start := time.Now(); queueInfo(t, c, "default") != want; time.Sleep(100 * time.Millisecond) {
		require.Less(t, time.Since(start), within, "%+v", queueInfo(t, c, "default"))
	}
}

func TestASkippedTaskEndsWithoutRetryOrDeadLetter(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		results := newResults(t, c.conn.Unwrap(), result.Config{})
		task := NewResultTask[int, int]("a", TaskConfig{})
		startWorker(t, c, WorkerConfig{Results: results}, func(w *Worker) {
			task.Handle(w, func(context.Context, int) (int, error) { return 0, Skip(errTest) })
		})
		_, err := task.Wait(t.Context(), results, publish(t, &task.Task, c, 1))
		var failed *result.TaskError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, result.Cancelled, failed.State)
		require.ErrorContains(t, err, "on purpose")
		awaitQueue(t, c, "default", QueueInfo{})
		awaitCount(t, 1, func() uint64 { return c.Stats().Succeeded })
	})
	require.Equal(t, "broker: skip: on purpose", Skip(errTest).Error())
	require.Equal(t, "broker: snooze for 1s", Snooze(time.Second).Error())
	require.ErrorIs(t, Skip(errTest), errTest)
	require.NotPanics(t, func() { _ = (*SkipError)(nil).Error() + (*SnoozeError)(nil).Error() })
	require.NoError(t, (*SkipError)(nil).Unwrap())
}

// Else a task that is put off for months would be poison after five crashes.
func TestASnoozeForgetsDeliveriesWithoutAnEnd(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		unfinished := make(chan int, 9)
		put(t, c, envelope{id: "a", task: "a", deliveries: 3})
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			NewTask[int]("a", TaskConfig{}).Handle(w, func(ctx context.Context, _ int) error {
				if unfinished <- FromContext(ctx).Unfinished; len(unfinished) == 1 {
					return Snooze(0)
				}
				return nil
			})
		})
		awaitCount(t, 1, func() uint64 { return c.Stats().Succeeded })
		require.Equal(t, []int{3, 0}, []int{<-unfinished, <-unfinished})
	})
}

// Run says so, and the client can be closed.
func TestAMiddlewareThatMakesNoHandlerIsAnError(t *testing.T) {
	for want, m := range map[string]Middleware{
		`broker: run: WorkerConfig.Middleware: the one at 1 panicked for task "a": on purpose`:                           func(Handler) Handler { panic("on purpose") },
		`broker: run: WorkerConfig.Middleware: the one at 1 returned nil for task "a": return a Handler that calls next`: func(Handler) Handler { return nil },
	} {
		c, _ := newTestClient(t, testserver.New(t).Client(t), Config{})
		as := func(next Handler) Handler { return next }
		w, err := NewWorker(c, WorkerConfig{Middleware: []Middleware{as, m, as}})
		require.NoError(t, err)
		NewTask[int]("a", TaskConfig{}).Handle(w, func(context.Context, int) error { return nil })
		require.EqualError(t, w.Run(t.Context()), want)
		start := time.Now()
		require.NoError(t, c.Close())
		require.Less(t, time.Since(start), c.cfg.CloseTimeout/2)
	}
}
