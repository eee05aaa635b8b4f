package broker

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// The clock of the server and that of the worker need not agree.
func TestAClockThatIsAMinuteOffChangesNothing(t *testing.T) {
	for _, off := range []time.Duration{-time.Minute, time.Minute} {
		t.Run(fmt.Sprint(off), func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
				ctx, cancel := context.WithCancel(t.Context())
				s.SetTime(time.Now().Add(off))
				var clock sync.WaitGroup
				clock.Go(func() {
					for ctx.Err() == nil {
						s.SetTime(time.Now().Add(off))
						time.Sleep(time.Millisecond)
					}
				})
				defer clock.Wait()
				defer cancel()
				task := NewTask[string]("a", TaskConfig{MaxAttempts: 2, Backoff: func(int, error) time.Duration { return 2 * time.Second }})
				started := make(chan time.Time, 9)
				startWorker(t, c, WorkerConfig{Lease: time.Second}, func(w *Worker) {
					task.Handle(w, func(ctx context.Context, do string) error {
						started <- time.Now()
						switch {
						case do == "retry" && FromContext(ctx).Attempt == 1:
							return errTest
						case do == "long":
							select {
							case <-ctx.Done():
								return context.Cause(ctx)
							case <-time.After(5 * time.Second):
							}
						}
						return nil
					})
				})
				begin := time.Now()
				publish(t, task, c, "now", ExpireAfter(30*time.Second))
				require.Less(t, receive(t, started).Sub(begin), time.Second)
				for _, when := range []func() PublishOption{
					func() PublishOption { return After(3 * time.Second) },
					func() PublishOption { return At(time.Now().Add(off + 3*time.Second)) },
				} {
					begin = time.Now()
					publish(t, task, c, "later", when())
					late := receive(t, started).Sub(begin) - 3*time.Second
					require.GreaterOrEqual(t, late, -time.Millisecond, "the clock goes by milliseconds")
					require.Less(t, late, 100*time.Millisecond)
				}
				publish(t, task, c, "retry")
				begin = receive(t, started)
				require.InDelta(t, 2, receive(t, started).Sub(begin).Seconds(), 0.1)
				publish(t, task, c, "long")
				receive(t, started)
				awaitQueueIn(t, c, QueueInfo{}, time.Minute)
				require.Zero(t, c.Stats().LeasesLost)
				require.Zero(t, c.Stats().Expired)
				require.EqualValues(t, 5, c.Stats().Succeeded)
			})
		})
	}
}
