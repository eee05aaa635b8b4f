package broker

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A pointerError cannot be asked when it is nil.
type pointerError struct{ text string }

func (e *pointerError) Error() string { return e.text }

// An exitError ends the goroutine of whoever asks it.
type exitError struct{}

func (exitError) Error() string { runtime.Goexit(); return "" }

// A panicAsError breaks errors.As.
type panicAsError struct{}

func (panicAsError) Error() string { return "text" }
func (panicAsError) As(any) bool   { panic("on purpose") }

func TestErrorsThatCannotBeAskedAreFailedAttempts(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"nil pointer":     {(*pointerError)(nil), "error of type *broker.pointerError that panics"},
		"nil RejectError": {(*RejectError)(nil), "broker: reject: a nil *RejectError"},
		"nil RetryError":  {(*RetryError)(nil), "broker: retry: a nil *RetryError"},
		"rejected":        {Reject((*pointerError)(nil)), "error of type *broker.pointerError that panics"},
		"Goexit":          {exitError{}, "error of type broker.exitError that panics"},
		"As panics":       {panicAsError{}, "error of type broker.panicAsError that panics"},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, c *Client, _ *logs) {
				task := NewTask[int]("odd", TaskConfig{MaxAttempts: 2, Backoff: atOnce, Retention: time.Minute})
				attempts := make(chan int, 9)
				startWorker(t, c, WorkerConfig{Concurrency: 1}, func(w *Worker) {
					task.Handle(w, func(ctx context.Context, _ int) error {
						attempts <- FromContext(ctx).Attempt
						return test.err
					})
				})
				publish(t, task, c, 1)
				awaitQueue(t, c, "default", QueueInfo{Dead: 1})
				letters, err := c.DeadLetters(t.Context(), "default", 10)
				require.NoError(t, err)
				if name == "rejected" { // its own text does not panic, since fmt contains that
					require.Equal(t, Rejected, letters[0].Reason)
					return
				}
				require.Equal(t, []any{Exhausted, test.want}, []any{letters[0].Reason, letters[0].Error})
				require.Len(t, attempts, 2)
			})
		})
	}
}

func TestABackoffThatEndsItsGoroutineIsReplaced(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("exits", TaskConfig{MaxAttempts: 3, Backoff: func(int, error) time.Duration { runtime.Goexit(); return 0 }})
		startWorker(t, c, WorkerConfig{Concurrency: 1}, func(w *Worker) {
			task.Handle(w, func(context.Context, int) error { return errTest })
		})
		publish(t, task, c, 1)
		awaitQueue(t, c, "default", QueueInfo{Delayed: 1})
		require.Eventually(t, func() bool { return c.Stats().Retried == 1 }, 20*time.Second, time.Millisecond)
		require.Zero(t, c.Stats().Succeeded)
	})
}

// What nothing was decided on must not look done.
func TestTheZeroVerdictIsNotStored(t *testing.T) {
	require.Equal(t, undecided, verdict{}.kind)
	require.Equal(t, "undecided", verdict{}.kind.String())
}
