package broker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/testserver"
)

// resultsOf returns a client of the results in the server of a bubble.
func resultsOf(t *testing.T, s *testserver.Server) *result.Client {
	t.Helper()
	results, err := result.New(bubbleRedis(t, s), result.Config{MaxValueBytes: 100})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, results.Close()) })
	return results
}

func TestProgressIsStoredEvery100MillisecondsAtMostAndTheLastIsNotLost(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		results := resultsOf(t, s)
		var stored atomic.Int64
		s.SetPreHook(func(_ *server.Peer, cmd string, args ...string) bool {
			if cmd == "SET" && len(args[1]) > 2 && args[1][1] == 0x18 && args[1][2] == byte(result.Progress) {
				stored.Add(1)
			}
			return false
		})
		task := NewResultTask[int, string]("walk", TaskConfig{})
		read := make(chan result.Record, 1)
		startWorker(t, c, WorkerConfig{Results: results}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) (string, error) {
				d := FromContext(ctx)
				for i := range 1050 { // for a second and a bit
					require.NoError(t, d.Progress(ctx, map[string]int{"step": i}))
					time.Sleep(time.Millisecond)
				}
				time.Sleep(200 * time.Millisecond)
				r, err := results.Get(ctx, d.ID)
				require.NoError(t, err)
				read <- r
				return "there", nil
			})
		})
		id := publish(t, &task.Task, c, 0)
		r := <-read
		require.Equal(t, result.Progress, r.State)
		require.Equal(t, 1, r.Attempt)
		require.Equal(t, `{"step":1049}`, string(r.Progress), "the last one, although nothing came after it")
		require.False(t, r.Started.IsZero() || r.Enqueued.IsZero())
		require.InDelta(t, 12, stored.Load(), 1)
		got, err := task.Wait(t.Context(), results, id)
		require.NoError(t, err)
		require.Equal(t, "there", got)
		require.InDelta(t, 12, stored.Load(), 1)
	})
}

func TestAFailedAttemptKeepsItsProgress(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		results := resultsOf(t, s)
		task := NewResultTask[int, int]("walk", TaskConfig{MaxAttempts: 2, Backoff: func(int, error) time.Duration { return time.Minute }})
		startWorker(t, c, WorkerConfig{Results: results}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) (int, error) {
				d := FromContext(ctx)
				for i := range 10 {
					require.NoError(t, d.Progress(ctx, fmt.Sprintf("attempt %d, step %d", d.Attempt, i)))
				}
				return 0, errTest
			})
		})
		id := publish(t, &task.Task, c, 0)
		time.Sleep(10 * time.Second)
		r, err := results.Get(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, result.Retry, r.State)
		require.Equal(t, `"attempt 1, step 9"`, string(r.Progress))
		r, err = results.Wait(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, result.Failure, r.State)
		require.Equal(t, `"attempt 2, step 9"`, string(r.Progress))
	})
}

func TestProgressThatCannotBeStoredSaysWhy(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		results := resultsOf(t, s)
		errs := make(chan error, 10)
		var late *Delivery
		resultless := NewTask[int]("resultless", TaskConfig{})
		wanted := NewTask[int]("wanted", TaskConfig{Retention: time.Hour})
		startWorker(t, c, WorkerConfig{Results: results}, func(w *Worker) {
			resultless.Handle(w, func(ctx context.Context, _ int) error {
				errs <- FromContext(ctx).Progress(ctx, 1)
				return nil
			})
			wanted.Handle(w, func(ctx context.Context, _ int) error {
				late = FromContext(ctx)
				errs <- late.Progress(nilContext, 1)
				ended, cancel := context.WithCancel(ctx)
				cancel()
				errs <- late.Progress(ended, 1)
				errs <- late.Progress(ctx, func() {})
				errs <- late.Progress(ctx, make([]byte, 100))
				errs <- late.Progress(ctx, 1)
				return nil
			})
		})
		publish(t, resultless, c, 0)
		require.ErrorContains(t, <-errs, "the task keeps no result: make it a ResultTask or set TaskConfig.Retention, and set WorkerConfig.Results")
		id := publish(t, wanted, c, 0)
		require.ErrorContains(t, <-errs, "broker: progress of \""+id+"\": nil context")
		require.ErrorIs(t, <-errs, context.Canceled)
		require.ErrorContains(t, <-errs, "json: unsupported type: func()")
		var tooLarge *result.TooLargeError
		require.ErrorAs(t, <-errs, &tooLarge)
		require.NoError(t, <-errs)
		r, err := results.Wait(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, result.Success, r.State, "what was too large has not ended it")
		require.ErrorContains(t, late.Progress(t.Context(), 2), "the handler has returned")
		require.Error(t, (&Delivery{ID: "x"}).Progress(t.Context(), 1), "outside of a worker")
	})
}

// While the server of results is away, progress holds neither handler nor worker.
func TestProgressDoesNotWaitForAServerThatIsAway(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		away := testserver.New(t)
		results := newResults(t, ownClient(t, "redis://127.0.0.1:6379?pool_size=1024", away.Dial), result.Config{})
		away.Hang(true)
		took := make(chan time.Duration, 1)
		task := NewTask[int]("walk", TaskConfig{Retention: time.Hour})
		startWorker(t, c, WorkerConfig{Results: results}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) error {
				start := time.Now()
				for i := range 5000 {
					if err := FromContext(ctx).Progress(ctx, i); err != nil {
						return errors.Join(err, errTest)
					}
				}
				took <- time.Since(start)
				return nil
			})
		})
		publish(t, task, c, 0)
		require.Zero(t, <-took)
		away.Hang(false)
	})
}
