package broker

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/testserver"
)

func newResults(t testing.TB, rdb redis.UniversalClient, cfg result.Config) *result.Client {
	t.Helper()
	results, err := result.New(rdb, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, results.Close()) })
	return results
}

func TestResultsAreStoredBeforeTheTaskIsDone(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		results := newResults(t, c.conn.Unwrap(), result.Config{})
		double := NewResultTask[int, int]("double", TaskConfig{MaxAttempts: 3, Backoff: atOnce})
		fails := NewResultTask[string, int]("fails", TaskConfig{MaxAttempts: 2, Backoff: atOnce})
		kept := NewTask[string]("kept", TaskConfig{Retention: time.Hour})
		forgotten := NewTask[string]("forgotten", TaskConfig{})
		started := make(chan struct{})
		startWorker(t, c, WorkerConfig{Results: results}, func(w *Worker) {
			double.Handle(w, func(ctx context.Context, n int) (int, error) {
				if n == 7 {
					<-started
				}
				if FromContext(ctx).Attempt < 2 {
					return 0, errTest
				}
				return 2 * n, nil
			})
			fails.Handle(w, func(_ context.Context, s string) (int, error) {
				if s == "reject" {
					return 0, Reject(errTest)
				}
				return 1, fmt.Errorf("wrapped: %w", errTest)
			})
			kept.Handle(w, func(_ context.Context, s string) error { return nil })
			forgotten.Handle(w, func(_ context.Context, s string) error { return nil })
		})
		ctx := t.Context()
		id := publish(t, &double.Task, c, 21)
		got, err := double.Wait(ctx, results, id)
		require.NoError(t, err)
		require.Equal(t, 42, got)
		rec, err := results.Get(ctx, id)
		require.NoError(t, err)
		require.Equal(t, []any{result.Success, 2, "double"}, []any{rec.State, rec.Attempt, rec.Task})
		require.False(t, rec.Started.IsZero() || rec.Finished.IsZero() || rec.Enqueued.IsZero())
		require.False(t, rec.Finished.Before(rec.Started))

		slow := publish(t, &double.Task, c, 7)
		require.Eventually(t, func() bool {
			rec, err := results.Get(ctx, slow)
			return err == nil && rec.State == result.Started
		}, 20*time.Second, time.Millisecond)
		close(started)

		id = publish(t, &fails.Task, c, "x")
		_, err = fails.Wait(ctx, results, id)
		var failed *result.TaskError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, result.Failure, failed.State)
		require.Equal(t, 2, failed.Attempt)
		require.Equal(t, result.Cause{Type: "*fmt.wrapError", Message: "wrapped: on purpose", Chain: []string{"*errors.errorString: on purpose"}}, failed.Cause)

		id = publish(t, &fails.Task, c, "reject")
		_, err = fails.Wait(ctx, results, id)
		require.ErrorAs(t, err, &failed)
		require.Equal(t, "on purpose", failed.Message)

		id = publish(t, kept, c, "x")
		rec, err = results.Wait(ctx, id)
		require.NoError(t, err)
		require.Equal(t, result.Success, rec.State)
		ttl := c.conn.PTTL(ctx, "redisha:result:"+id).Val()
		require.LessOrEqual(t, ttl, time.Hour)
		require.Greater(t, ttl, 50*time.Minute)

		id = publish(t, forgotten, c, "x")
		awaitQueue(t, c, "default", QueueInfo{Dead: 2})
		rec, err = results.Get(ctx, id)
		require.NoError(t, err)
		require.Equal(t, result.Pending, rec.State, "nobody wants it")
	})
}

func TestResultsOfTasksThatCannotRunAreDead(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		results := newResults(t, c.conn.Unwrap(), result.Config{MaxValueBytes: 100})
		numbers := NewResultTask[int, string]("same", TaskConfig{})
		words := NewResultTask[string, string]("same", TaskConfig{})
		unstorable := NewResultTask[int, func()]("func", TaskConfig{})
		startWorker(t, c, WorkerConfig{Results: results}, func(w *Worker) {
			numbers.Handle(w, func(_ context.Context, n int) (string, error) { return strings.Repeat("x", n), nil })
			unstorable.Handle(w, func(_ context.Context, n int) (func(), error) { return func() {}, nil })
		})
		_, err := words.Wait(t.Context(), results, publish(t, &words.Task, c, "x"))
		var failed *result.TaskError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, result.Dead, failed.State)

		_, err = numbers.Wait(t.Context(), results, publish(t, &numbers.Task, c, 200))
		require.ErrorAs(t, err, &failed)
		require.Equal(t, result.Failure, failed.State)
		require.Equal(t, "the task succeeded, but its result cannot be stored: Value is 202 bytes, want at most 100: return less, or raise result.Config.MaxValueBytes", failed.Message)

		_, err = unstorable.Wait(t.Context(), results, publish(t, &unstorable.Task, c, 1))
		require.ErrorAs(t, err, &failed)
		require.Contains(t, failed.Message, "the task succeeded, but its result cannot be stored: result: encode func()")
		awaitQueue(t, c, "default", QueueInfo{Dead: 1})
		got, err := numbers.Wait(t.Context(), results, publish(t, &numbers.Task, c, 3))
		require.NoError(t, err)
		require.Equal(t, "xxx", got)
	})
}

func TestWaitRefusesWhatCannotBeAwaited(t *testing.T) {
	task := NewResultTask[int, int]("a", TaskConfig{})
	_, err := task.Wait(t.Context(), nil, "x")
	require.EqualError(t, err, `broker: wait "x": nil result client: pass one made by result.New`)
	_, err = (*ResultTask[int, int])(nil).Wait(t.Context(), nil, "x")
	require.ErrorIs(t, err, errUndefined)
	_, err = NewResultTask[int, int]("", TaskConfig{}).Wait(t.Context(), nil, "x")
	require.ErrorContains(t, err, "the task's name has 0 bytes")
}

// While the result backend is away, tasks with a result are not acknowledged;
// others are.
func TestTasksWaitForAResultBackendThatIsAway(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		backend := testserver.New(t)
		results := newResults(t, backend.Client(t), result.Config{})
		with, without := NewResultTask[int, int]("with", TaskConfig{}), NewTask[int]("without", TaskConfig{})
		startWorker(t, c, WorkerConfig{Results: results, Lease: 15 * time.Second}, func(w *Worker) {
			with.Handle(w, func(_ context.Context, n int) (int, error) { return n, nil })
			without.Handle(w, func(context.Context, int) error { return nil })
		})
		backend.SetError("LOADING Redis is loading the dataset in memory")
		id := publish(t, &with.Task, c, 5)
		require.Eventually(t, func() bool { return c.Stats().RunTime.Count == 1 }, 20*time.Second, time.Millisecond)
		publish(t, without, c, 1)
		require.Eventually(t, func() bool { return c.Stats().Succeeded == 1 }, 20*time.Second, time.Millisecond)
		require.Equal(t, QueueInfo{InFlight: 1}, queueInfo(t, c, "default"))
		backend.SetError("")
		got, err := with.Wait(t.Context(), results, id)
		require.NoError(t, err)
		require.Equal(t, 5, got)
		awaitQueue(t, c, "default", QueueInfo{})

		backend.SetError("NOPERM no permissions") // that will not pass: the work is done all the same
		publish(t, &with.Task, c, 6)
		awaitQueue(t, c, "default", QueueInfo{})
	})
}

func TestWithoutBackendResultsAreMissedWithAWarning(t *testing.T) {
	s := testserver.New(t)
	c, logs := newTestClient(t, s.Client(t), Config{})
	task := NewResultTask[int, int]("a", TaskConfig{})
	startWorker(t, c, WorkerConfig{}, func(w *Worker) {
		task.Handle(w, func(_ context.Context, n int) (int, error) { return n, nil })
	})
	publish(t, &task.Task, c, 1)
	publish(t, &task.Task, c, 2)
	awaitQueue(t, c, "default", QueueInfo{})
	require.Equal(t, 1, logs.count("WorkerConfig.Results is nil"))
}
