package broker

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

func TestAWorkerThatIsIdleStopsWithoutError(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("t", TaskConfig{})
		ran := make(chan int, 1)
		for _, drain := range []time.Duration{-1, time.Millisecond} {
			stop := startWorker(t, c, WorkerConfig{DrainTimeout: drain}, func(w *Worker) {
				task.Handle(w, func(context.Context, int) error { ran <- 1; return nil })
			})
			publish(t, task, c, 1)
			receive(t, ran)
			awaitQueue(t, c, "default", QueueInfo{})
			require.NoError(t, stop(), drain)
		}
		began := make(chan struct{})
		stop := startWorker(t, c, WorkerConfig{DrainTimeout: -1}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) error { close(began); <-ctx.Done(); return ctx.Err() })
		})
		publish(t, task, c, 1)
		receive(t, began)
		require.ErrorIs(t, stop(), ErrDrainTimeout)
		awaitQueue(t, c, "default", QueueInfo{Ready: 1})
	})
}

func TestTheFirstPublishToAQueueWaitsForAServerThatIsAway(t *testing.T) {
	s := redistest.New(t, redistest.Config{})
	client, net := throughNetwork(t, s.Client(t))
	c, _ := newTestClient(t, client, Config{})
	task := NewTask[int]("first", TaskConfig{})
	net.cut()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := task.Publish(ctx, c, 1)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrUnconfirmed)
	require.ErrorContains(t, err, "not sent: context deadline exceeded: key ")
	done := make(chan error, 1)
	go func() {
		_, err := task.Publish(context.Background(), c, 1)
		done <- err
	}()
	select {
	case err := <-done:
		require.Fail(t, "it did not wait", err)
	case <-time.After(100 * time.Millisecond):
	}
	net.mend()
	require.NoError(t, receive(t, done))

	net.cut()
	other := NewTask[int]("closed", TaskConfig{Queue: "other"})
	go func() {
		_, err := other.Publish(context.Background(), c, 1)
		done <- err
	}()
	require.NoError(t, c.Close())
	require.ErrorIs(t, receive(t, done), ErrClosed)
}

func TestAServerOfResultsThatHangsHoldsOnlyTasksWithResults(t *testing.T) {
	tasks, results := redistest.New(t, redistest.Config{}), redistest.New(t, redistest.Config{})
	opt := results.Options()
	opt.ContextTimeoutEnabled, opt.MaxRetries = true, -1
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	c, _ := newTestClient(t, tasks.Client(t), Config{})
	with := NewResultTask[int, int]("with", TaskConfig{})
	without := NewTask[int]("without", TaskConfig{})
	rc, err := result.New(rdb, result.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = rc.Close() })
	stop := startWorker(t, c, WorkerConfig{Results: rc, Lease: 5 * time.Second, DrainTimeout: time.Second}, func(w *Worker) {
		with.Handle(w, func(_ context.Context, i int) (int, error) { return i, nil })
		without.Handle(w, func(context.Context, int) error { return nil })
	})
	publish(t, &with.Task, c, 1)
	awaitQueue(t, c, "default", QueueInfo{})
	require.NoError(t, results.Pause())
	publish(t, &with.Task, c, 1)
	start := time.Now()
	for range 200 {
		for range 15 {
			go func() { _, _ = without.Publish(context.Background(), c, 1) }()
		}
		publish(t, without, c, 1)
	}
	require.Eventually(t, func() bool { return c.Stats().Succeeded == 1+200*16 }, time.Minute, 5*time.Millisecond)
	t.Log(time.Since(start))
	require.NoError(t, results.Continue())
	awaitQueue(t, c, "default", QueueInfo{})
	require.NoError(t, stop())
}

// A connection tries for a minute, an orchestrator waits for half of one.
func TestRunEndsInTimeWithoutRedis(t *testing.T) {
	for name, away := range map[string]func(*testserver.Server){
		"stopped": func(s *testserver.Server) { s.Stop() },
		"hanging": func(s *testserver.Server) { s.Hang(true) },
	} {
		for _, when := range []string{"idle", "a verdict", "the lease is lost"} {
			t.Run(name+", "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := testserver.New(t)
					c, _ := newTestClient(t, ownClient(t, "redis://127.0.0.1:6379?pool_size=1024", s.Dial), Config{Partitions: 6})
					task := NewTask[int]("a", TaskConfig{})
					began, release := make(chan struct{}), make(chan struct{})
					stop := startWorker(t, c, WorkerConfig{Lease: 2 * time.Second, DrainTimeout: time.Second}, func(w *Worker) {
						task.Handle(w, func(context.Context, int) error { close(began); <-release; return nil })
					})
					if when == "a verdict" {
						publish(t, task, c, 1)
						<-began
					}
					time.Sleep(time.Second)
					away(s)
					if when == "the lease is lost" {
						time.Sleep(5 * time.Second)
					}
					close(release)
					start := time.Now()
					if err := stop(); when == "a verdict" {
						require.ErrorContains(t, err, "the verdicts of 1 task(s) could not be stored")
					} else {
						require.NoError(t, err)
					}
					require.Less(t, time.Since(start), time.Second+2*settleTimeout+5*time.Second, "the drain, the verdicts, the goodbye, and what reads take")
					s.Hang(false)
				})
			})
		}
	}
}

// What a handler publishes is refused then, which is no failure of its own.
func TestHandlersThatPublishWhileTheClientClosesBurnNoAttempt(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c, _ := newTestClient(t, rdb, Config{})
		task := NewTask[int]("a", TaskConfig{MaxAttempts: 1})
		began := make(chan struct{})
		stop := startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) error {
				close(began)
				<-c.closing
				_, err := task.Publish(ctx, c, 2)
				return err
			})
		})
		publish(t, task, c, 1)
		<-began
		require.NoError(t, c.Close())
		require.ErrorIs(t, stop(), ErrClosed)
		other, _ := newTestClient(t, rdb, Config{})
		require.Equal(t, QueueInfo{Ready: 1}, queueInfo(t, other, "default"))
	})
}

// "For ever" is written as the longest duration there is.
func TestTheLongestDurationsAreNoShortOnes(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, _ *Client, _ *logs) {
		const forever = time.Duration(math.MaxInt64)
		c, _ := newTestClient(t, bubbleRedis(t, s), Config{CloseTimeout: forever, PublishTimeout: forever, ConfirmTimeout: forever, DegradeAfter: forever})
		task := NewTask[int]("a", TaskConfig{Timeout: forever, Retention: forever})
		began, ended := make(chan struct{}), make(chan error, 1)
		startWorker(t, c, WorkerConfig{Lease: forever, DrainTimeout: forever}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) error {
				close(began)
				time.Sleep(time.Hour)
				ended <- ctx.Err()
				return nil
			})
		})
		publish(t, task, c, 1)
		time.Sleep(time.Second)
		select {
		case <-began:
		default:
			require.Fail(t, "it is not started")
		}
		require.NoError(t, c.Close())
		require.NoError(t, <-ended)
	})
}
