package broker

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

func TestFailedTasksAreTriedAgainUntilTheLastAttempt(t *testing.T) {
	each(t, func(t *testing.T, c *Client, logs *logs) {
		type attempt struct {
			attempts int
			err      string
		}
		asked := make(chan attempt, 9)
		task := NewTask[string]("fails", TaskConfig{MaxAttempts: 3, Backoff: func(n int, err error) time.Duration {
			asked <- attempt{n, err.Error()}
			return 0
		}})
		attempts := make(chan int, 9)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, s string) error {
				attempts <- FromContext(ctx).Attempt
				return errTest
			})
		})
		id := publish(t, task, c, "x")
		for n := 1; n <= 3; n++ {
			require.Equal(t, n, receive(t, attempts))
		}
		require.Equal(t, attempt{1, "on purpose"}, receive(t, asked))
		require.Equal(t, attempt{2, "on purpose"}, receive(t, asked))
		awaitQueue(t, c, "default", QueueInfo{Dead: 1})
		letters, err := c.DeadLetters(t.Context(), "default", 10)
		require.NoError(t, err)
		require.Len(t, letters, 1)
		require.WithinDuration(t, time.Now(), letters[0].Died, 10*time.Second)
		require.WithinDuration(t, time.Now(), letters[0].Enqueued, 10*time.Second)
		letters[0].Died, letters[0].Enqueued = time.Time{}, time.Time{}
		require.Equal(t, DeadLetter{ID: id, Task: "fails", Reason: Exhausted, Error: "on purpose", Attempt: 3, Payload: []byte(`"x"`)}, letters[0])
		require.Equal(t, 3, logs.count("task failed"))
		require.Eventually(t, func() bool { return c.Stats().Dead == 1 }, 20*time.Second, time.Millisecond, "counted once Redis has answered")
		s := c.Stats()
		require.Equal(t, []uint64{3, 2, 1, 0}, []uint64{s.Started, s.Retried, s.Dead, s.Succeeded})
	})
}

func TestTheErrorIsTheVerdict(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[string]("verdicts", TaskConfig{MaxAttempts: 2, Backoff: func(int, error) time.Duration { return time.Hour }})
		calls := make(chan string, 9)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, verdict string) error {
				calls <- fmt.Sprint(verdict, FromContext(ctx).Attempt)
				switch verdict {
				case "reject":
					return fmt.Errorf("wrapped: %w", Reject(errTest))
				case "soon":
					return fmt.Errorf("wrapped: %w", RetryAfter(0, errTest))
				case "later":
					return RetryAfter(time.Hour, errTest)
				case "backoff":
					return errTest
				}
				return nil
			})
		})
		publish(t, task, c, "reject")
		require.Equal(t, "reject1", receive(t, calls))
		awaitQueue(t, c, "default", QueueInfo{Dead: 1})
		letters, err := c.DeadLetters(t.Context(), "default", 1)
		require.NoError(t, err)
		require.Equal(t, Rejected, letters[0].Reason)
		require.Equal(t, "wrapped: broker: reject: on purpose", letters[0].Error)

		publish(t, task, c, "soon")
		require.Equal(t, "soon1", receive(t, calls))
		require.Equal(t, "soon2", receive(t, calls))
		awaitQueue(t, c, "default", QueueInfo{Dead: 2})
		publish(t, task, c, "later")
		publish(t, task, c, "backoff")
		awaitQueue(t, c, "default", QueueInfo{Dead: 2, Delayed: 2})
		publish(t, task, c, "fine")
		awaitQueue(t, c, "default", QueueInfo{Dead: 2, Delayed: 2})
	})
	require.EqualError(t, RetryAfter(time.Second, errTest), "broker: retry after 1s: on purpose")
	require.ErrorIs(t, RetryAfter(time.Second, errTest), errTest)
	require.ErrorIs(t, Reject(errTest), errTest)
}

func TestAPanicIsAFailedAttemptWithItsStackInTheLog(t *testing.T) {
	each(t, func(t *testing.T, c *Client, logs *logs) {
		task := NewTask[string]("panics", TaskConfig{MaxAttempts: 2, Backoff: atOnce})
		done := make(chan struct{}, 9)
		startWorker(t, c, WorkerConfig{Concurrency: 1}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, s string) error {
				switch s {
				case "panic":
					panic(errTest)
				case "goexit":
					runtime.Goexit()
				}
				done <- struct{}{}
				return nil
			})
		})
		publish(t, task, c, "panic")
		publish(t, task, c, "goexit")
		awaitQueue(t, c, "default", QueueInfo{Dead: 2})
		publish(t, task, c, "fine")
		receive(t, done)
		letters, err := c.DeadLetters(t.Context(), "default", 9)
		require.NoError(t, err)
		messages := []string{letters[0].Error, letters[1].Error}
		require.ElementsMatch(t, []string{"panic: on purpose", "the handler ended its goroutine (runtime.Goexit)"}, messages)
		require.Equal(t, 2, logs.count("handler panicked"))
		require.Contains(t, logs.String(), "retry_test.go")
		require.Equal(t, uint64(2), c.Stats().Panics)
		awaitQueue(t, c, "default", QueueInfo{Dead: 2})
		require.Zero(t, c.Stats().Running)
	})
	require.ErrorIs(t, &panicError{errTest}, errTest)
	require.NotErrorIs(t, &panicError{"text"}, errTest)
}

func TestABackoffThatPanicsIsReplaced(t *testing.T) {
	s := testserver.New(t)
	c, logs := newTestClient(t, s.Client(t), Config{})
	task := NewTask[int]("a", TaskConfig{Backoff: func(int, error) time.Duration { panic("no idea") }})
	startWorker(t, c, WorkerConfig{}, func(w *Worker) {
		task.Handle(w, func(context.Context, int) error { return errTest })
	})
	publish(t, task, c, 1)
	awaitQueue(t, c, "default", QueueInfo{Delayed: 1})
	require.Equal(t, 1, logs.count("TaskConfig.Backoff panicked"))
	require.Equal(t, 1, logs.count("no idea"))
}

func TestDefaultBackoffGrowsFromASecondToAnHour(t *testing.T) {
	for attempts, want := range map[int]time.Duration{-1: time.Second, 0: time.Second, 1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 12: 2048 * time.Second, 13: time.Hour, 99: time.Hour, 65535: time.Hour} {
		seen := make(map[time.Duration]bool)
		for range 50 {
			pause := Backoff(attempts, nil)
			require.GreaterOrEqual(t, pause, want/2)
			require.LessOrEqual(t, pause, want)
			seen[pause] = true
		}
		require.Greater(t, len(seen), 10, "it varies")
	}
	var least, most time.Duration
	for n := 1; n < 25; n++ {
		pause := time.Hour
		if n < 13 {
			pause = time.Second << (n - 1)
		}
		least, most = least+pause/2, most+pause
	}
	require.Greater(t, least, 6*time.Hour)
	require.Less(t, most, 14*time.Hour)
}
