package broker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

// A worker whose connections are cut and which is abandoned is, for Redis, one
// whose process was killed.
func TestTasksOfADeadWorkerRunAgain(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		client, net := throughNetwork(t, rdb)
		victim, _ := newTestClient(t, client, Config{})
		c, _ := newTestClient(t, rdb, Config{})
		task := NewTask[int]("a", TaskConfig{})
		const n = 20
		began, causes := make(chan int, n), make(chan error, n)
		stop := startWorker(t, victim, WorkerConfig{Lease: 2 * time.Second, Concurrency: n}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, i int) error {
				began <- i
				<-ctx.Done()
				causes <- context.Cause(ctx)
				return ctx.Err()
			})
		})
		for i := range n {
			publish(t, task, c, i)
		}
		for range n {
			receive(t, began)
		}
		net.cut()
		killed := time.Now()
		deliveries := make(chan Delivery, 2*n)
		startWorker(t, c, WorkerConfig{Lease: 5 * time.Second}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, i int) error { deliveries <- *FromContext(ctx); return nil })
		})
		ids := make(map[string]bool)
		for range n {
			d := receive(t, deliveries)
			require.Equal(t, []int{1, 1}, []int{d.Attempt, d.Unfinished})
			ids[d.ID] = true
		}
		require.Len(t, ids, n)
		require.Less(t, time.Since(killed), 30*time.Second, "a lease of two seconds, the next look, and a busy machine")
		require.ErrorIs(t, receive(t, causes), ErrLeaseLost)
		awaitQueue(t, c, "default", QueueInfo{})
		net.mend()
		require.NoError(t, stop())
		require.Empty(t, deliveries)
		awaitQueue(t, c, "default", QueueInfo{})
		require.Equal(t, uint64(n), victim.Stats().Lost, "the dead one's verdicts change nothing")
	})
}

func TestATaskWhoseDeliveryIsLostStartsSoon(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		client, net := throughNetwork(t, rdb)
		worker, _ := newTestClient(t, client, Config{})
		c, _ := newTestClient(t, rdb, Config{})
		task := NewTask[string]("a", TaskConfig{})
		deliveries := make(chan Delivery, 99)
		stop := startWorker(t, worker, WorkerConfig{Lease: time.Minute}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ string) error { deliveries <- *FromContext(ctx); return nil })
		})
		for i := range 10 {
			needle := fmt.Sprintf("needle-%d-", i)
			net.dropReplyWith(needle)
			id := publish(t, task, c, needle)
			start := time.Now()
			d := receive(t, deliveries)
			require.Equal(t, []any{id, 1, 0}, []any{d.ID, d.Attempt, d.Unfinished})
			require.Less(t, time.Since(start), 20*time.Second, "a second, and a busy machine; not the lease of a minute")
			require.Equal(t, uint64(i+1), worker.Stats().Recovered)
		}
		net.dropReplyWith("last")
		publish(t, task, c, "last")
		require.NoError(t, stop())
		require.Zero(t, queueInfo(t, c, "default").InFlight)
		require.Empty(t, worker.Stats().Lost)
	})
}

// Whatever reply is lost, a task is neither lost nor run twice by a worker that lives.
func TestLostRepliesOfAWorkerCostNothing(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		client, net := throughNetwork(t, rdb)
		worker, _ := newTestClient(t, client, Config{})
		c, _ := newTestClient(t, rdb, Config{})
		task := NewTask[int]("a", TaskConfig{MaxAttempts: 2, Backoff: atOnce})
		const n = 150
		var ran, failed [n]atomic.Int32
		var attempts atomic.Int32
		startWorker(t, worker, WorkerConfig{Lease: time.Minute, Concurrency: 4}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, i int) error {
				d := FromContext(ctx)
				if d.Unfinished != 0 {
					attempts.Add(1)
				}
				if i%3 == 0 && d.Attempt == 1 {
					failed[i].Add(1)
					return errTest
				}
				ran[i].Add(1)
				return nil
			})
		})
		publish(t, task, c, 1)
		require.Eventually(t, func() bool { return ran[1].Load() == 1 }, 20*time.Second, time.Millisecond)
		ran[1].Store(0)
		for i := range n {
			if i%2 == 0 {
				net.drop(1) // mostly the delivery
			}
			publish(t, task, c, i)
			if i%2 == 1 {
				net.drop(1) // mostly what follows
			}
			time.Sleep(time.Duration(rand.IntN(15)) * time.Millisecond)
		}
		net.drop(0)
		awaitQueue(t, c, "default", QueueInfo{})
		for i := range n {
			require.Equal(t, int32(1), ran[i].Load(), i)
			if i%3 == 0 {
				require.Equal(t, int32(1), failed[i].Load(), i)
			}
		}
		require.Zero(t, attempts.Load(), "no delivery was taken for one of a dead worker")
	})
}

func TestAGroupOrStreamDeletedByHandIsMadeAnew(t *testing.T) {
	each(t, func(t *testing.T, c *Client, logs *logs) {
		ctx := t.Context()
		task := NewTask[int]("a", TaskConfig{})
		p := newPartition("redisha", "default", 0, 1)
		done := make(chan int, 99)
		startWorker(t, c, WorkerConfig{Lease: 15 * time.Second}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, i int) error { done <- i; return nil })
		})
		publish(t, task, c, 0)
		receive(t, done)
		for i, harm := range []func() error{
			func() error { return c.conn.XGroupDestroy(ctx, p.streams[2], group).Err() },
			func() error { return c.conn.Del(ctx, p.streams[0]).Err() },
			func() error { return c.conn.Del(ctx, p.streams[2]).Err() },
			func() error { return c.conn.FlushAll(ctx).Err() },
			func() error { return c.conn.ScriptFlush(ctx).Err() },
		} {
			time.Sleep(20 * time.Millisecond) // it blocks
			require.NoError(t, harm())
			for k := range 5 {
				publish(t, task, c, 10*i+k)
			}
			seen := make(map[int]bool)
			for len(seen) < 5 {
				seen[receive(t, done)] = true
			}
			awaitQueue(t, c, "default", QueueInfo{})
		}
		require.Contains(t, logs.String(), "consumer group was missing")
		require.NotEmpty(t, c.conn.Get(ctx, metadataKey("redisha", "default")).Val())
	})
}

// A group that is made anew delivers what runs already.
func TestWhatRunsIsNotStartedAgainWhenItsGroupIsMadeAnew(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("a", TaskConfig{})
		p := newPartition("redisha", "default", 0, 1)
		began, release := make(chan int, 9), make(chan struct{})
		startWorker(t, c, WorkerConfig{Lease: 15 * time.Second}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, i int) error { began <- i; <-release; return nil })
		})
		publish(t, task, c, 1)
		receive(t, began)
		require.NoError(t, c.conn.XGroupDestroy(t.Context(), p.streams[2], group).Err())
		publish(t, task, c, 2)
		require.Equal(t, 2, receive(t, began))
		close(release)
		awaitQueue(t, c, "default", QueueInfo{})
		require.Empty(t, began)
	})
}

func TestAStreamOfAnotherTypeStopsNothingElse(t *testing.T) {
	each(t, func(t *testing.T, c *Client, logs *logs) {
		ctx := t.Context()
		low, high := NewTask[int]("low", TaskConfig{Priority: PriorityLow}), NewTask[int]("high", TaskConfig{Priority: PriorityHigh, MaxAttempts: 2, Backoff: func(int, error) time.Duration { return time.Millisecond }})
		p := newPartition("redisha", "default", 0, 1)
		done := make(chan string, 9)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			low.Handle(w, func(context.Context, int) error { done <- "low"; return nil })
			high.Handle(w, func(ctx context.Context, _ int) error {
				if FromContext(ctx).Attempt == 1 {
					return errTest
				}
				done <- "high"
				return nil
			})
		})
		publish(t, low, c, 1)
		receive(t, done)
		require.NoError(t, c.conn.Del(ctx, p.streams[3]).Err())
		require.NoError(t, c.conn.Set(ctx, p.streams[3], "mine", 0).Err())
		for range 3 {
			publish(t, high, c, 1)
			require.Equal(t, "high", receive(t, done))
		}
		require.NoError(t, c.conn.Del(ctx, p.streams[3]).Err())
		publish(t, low, c, 1)
		require.Equal(t, "low", receive(t, done), "it recovers")
		require.Contains(t, logs.String(), "cannot fetch tasks")
		require.Contains(t, logs.String(), "WRONGTYPE")
		awaitQueue(t, c, "default", QueueInfo{})
	})
}

func TestNothingIsLostWhenTheServerIsKilledAndComesBack(t *testing.T) {
	server := redistest.New(t, redistest.Config{Persist: true})
	opt := server.Options()
	opt.MaxRetries = -1
	opt.DialerRetries = 1
	opt.PoolSize = 100
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	c, _ := newTestClient(t, rdb, Config{})
	task := NewTask[int]("a", TaskConfig{MaxAttempts: 10, Backoff: func(int, error) time.Duration { return 5 * time.Millisecond }})
	const n = 2000
	var ran [n]atomic.Int32
	startWorker(t, c, WorkerConfig{Concurrency: 16}, func(w *Worker) {
		task.Handle(w, func(ctx context.Context, i int) error {
			if rand.IntN(4) == 0 && FromContext(ctx).Attempt < 9 {
				return errTest
			}
			ran[i].Add(1)
			return nil
		})
	})
	var published sync.WaitGroup
	for p := range 8 {
		published.Go(func() {
			for i := p; i < n; i += 8 {
				_, err := task.Publish(context.Background(), c, i)
				require.NoError(t, err)
			}
		})
	}
	for range 4 {
		time.Sleep(150 * time.Millisecond)
		server.Kill()
		time.Sleep(50 * time.Millisecond)
		require.NoError(t, server.Restart(t.Context()))
	}
	published.Wait()
	awaitQueue(t, c, "default", QueueInfo{})
	twice := 0
	for i := range n {
		require.NotZero(t, ran[i].Load(), i)
		if ran[i].Load() > 1 {
			twice++
		}
	}
	require.LessOrEqual(t, twice, 4*(16+maxSettle), "kills × (slots + verdicts under way)")
}

// Workers die at random while tasks end in all ways there are: at each moment
// what was published is somewhere, and in the end all of it is done or dead.
func TestNothingIsLostUnderRandomVerdictsAndCrashes(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		patient := *rdb.(*redis.Client).Options()
		patient.ReadTimeout = 30 * time.Second
		patient.PushNotificationProcessor = nil
		reader := redis.NewClient(&patient)
		t.Cleanup(func() { _ = reader.Close() })
		c, _ := newTestClient(t, reader, Config{PublishTimeout: time.Minute})
		task := NewTask[int]("a", TaskConfig{MaxAttempts: 4, Backoff: func(int, error) time.Duration { return 10 * time.Millisecond }})
		n, lease := 1500, 2*time.Second
		if strings.HasSuffix(t.Name(), "/miniredis") {
			n = 200 // it is slow, the more so with -race
		}
		var started, done sync.Map
		var mu sync.Mutex
		handle := func(w *Worker) {
			task.Handle(w, func(ctx context.Context, i int) error {
				started.Store(i, true)
				mu.Lock()
				verdict, pause := random.IntN(12), time.Duration(random.IntN(3))*time.Millisecond
				mu.Unlock()
				select {
				case <-time.After(pause):
				case <-ctx.Done():
					return ctx.Err()
				}
				switch verdict {
				case 0:
					return errTest
				case 1:
					return RetryAfter(0, errTest)
				case 2:
					return Reject(errTest)
				case 3:
					panic("on purpose")
				}
				done.Store(i, true)
				return nil
			})
		}
		var abandoned sync.WaitGroup
		defer abandoned.Wait()
		victim := func() (crash func()) {
			return startVictim(t, rdb, WorkerConfig{Lease: lease, Concurrency: 8}, handle, &abandoned)
		}
		var publishers sync.WaitGroup
		for p := range 4 {
			publishers.Go(func() {
				for i := p; i < n; i += 4 {
					var opts []PublishOption
					switch i % 5 {
					case 0:
						opts = append(opts, ID(fmt.Sprint("given:", i)))
					case 1:
						opts = append(opts, After(time.Duration(i%50)*time.Millisecond))
					}
					_, err := task.Publish(context.Background(), c, i, opts...)
					require.NoError(t, err)
					if i%5 == 0 {
						_, err = task.Publish(context.Background(), c, i, opts...)
						require.NoError(t, err)
					}
				}
			})
		}
		crashes := 0
		crash := victim()
		startWorker(t, c, WorkerConfig{Lease: lease, Concurrency: 4}, handle)
		for deadline := time.Now().Add(3 * time.Minute); ; {
			requireConservation(t, c)
			info := queueInfo(t, c, "default")
			if crashes < 5 {
				mu.Lock()
				pause := time.Duration(50+random.IntN(150)) * time.Millisecond
				mu.Unlock()
				time.Sleep(pause)
				crash()
				crash = victim()
				crashes++
			} else if info.Ready+info.InFlight+info.Delayed == 0 && c.Stats().Published == uint64(n) {
				break
			}
			require.True(t, time.Now().Before(deadline), "%+v", info)
			time.Sleep(5 * time.Millisecond)
		}
		publishers.Wait()
		requireConservation(t, c)
		info := queueInfo(t, c, "default")
		ok := 0
		for i := range n {
			_, ran := started.Load(i)
			require.True(t, ran, "task %d was never run", i)
			if _, good := done.Load(i); good {
				ok++
			}
		}
		require.GreaterOrEqual(t, int64(ok)+info.Dead, int64(n))
	})
}

// startVictim starts a worker that crash cuts off and abandons: it may end then
// whenever it likes, for which abandoned waits.
func startVictim(t testing.TB, rdb redis.UniversalClient, cfg WorkerConfig, handle func(*Worker), abandoned *sync.WaitGroup) (crash func()) {
	client, net := throughNetwork(t, rdb)
	c, _ := newTestClient(t, client, Config{})
	stop := startWorker(t, c, cfg, handle)
	return func() {
		net.cut()
		abandoned.Go(func() { _ = stop() })
	}
}

// requireConservation checks, at one moment, that published = acked + dead +
// ready + in flight + delayed.
func requireConservation(t testing.TB, c *Client) {
	t.Helper()
	p := newPartition("redisha", "default", 0, 1)
	var counts *redis.Cmd
	var counters *redis.MapStringStringCmd
	_, err := c.conn.TxPipelined(context.Background(), func(pipe redis.Pipeliner) error {
		counts = pipe.Eval(context.Background(), countLua, p.countKeys())
		counters = pipe.HGetAll(context.Background(), p.counters)
		return nil
	})
	require.NoError(t, err)
	is, err := counts.Int64Slice()
	require.NoError(t, err)
	published, acked := toUint(counters.Val()[countPublished]), toUint(counters.Val()[countAcked])
	require.Equal(t, int64(published), int64(acked)+is[0]+is[1]+is[2]+is[3],
		"published %d, acked %d, ready %d, in flight %d, delayed %d, dead %d", published, acked, is[0], is[1], is[2], is[3])
}
