package broker

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
)

func explode() { panic("on purpose") }

func TestAHandlerThatPanicsIsAFailedAttemptAndTheWorkerLives(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c, log := newTestClient(t, rdb, Config{})
		w, err := NewWorker(c, WorkerConfig{Concurrency: 1})
		require.NoError(t, err)
		task := NewTask[string]("explosive", TaskConfig{MaxAttempts: 2, Backoff: func(int, error) time.Duration { return time.Millisecond }})
		ran := make(chan string, 10)
		task.Handle(w, func(_ context.Context, arg string) error {
			ran <- arg
			if arg == "bad" {
				explode()
			}
			return nil
		})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		_, err = task.Publish(t.Context(), c, "bad")
		require.NoError(t, err)
		require.Equal(t, "bad", <-ran)
		require.Equal(t, "bad", <-ran, "it is tried again")
		_, err = task.Publish(t.Context(), c, "good")
		require.NoError(t, err)
		require.Equal(t, "good", <-ran, "by the only slot of the worker")
		stop()
		require.NoError(t, <-ended)

		letters, err := c.DeadLetters(t.Context(), "default", 10)
		require.NoError(t, err)
		require.Len(t, letters, 1)
		require.Contains(t, log.String(), "handler panicked")
		require.Contains(t, log.String(), `err="on purpose"`)
		require.Contains(t, log.String(), "broker.explode", "the stack names who panicked")
	})
}
