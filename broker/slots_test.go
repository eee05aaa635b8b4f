package broker

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

// A crowd watches how many tasks of a key run at once, in all workers.
type crowd struct {
	mu      sync.Mutex
	running map[string]map[string]int // key → ID → handlers
	most    map[string]int
	done    map[int]int
}

func (c *crowd) enter(key, id string) (leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running[key] == nil {
		c.running[key] = make(map[string]int)
	}
	c.running[key][id]++
	c.most[key] = max(c.most[key], len(c.running[key]))
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.running[key][id]--; c.running[key][id] == 0 {
			delete(c.running[key], id)
		}
	}
}

func (c *crowd) finish(i int) {
	c.mu.Lock()
	c.done[i]++
	c.mu.Unlock()
}

// Workers die at random, at whatever step they are, while tasks with concurrency keys
// and unique keys end in all ways there are. No more tasks of a key ever run than
// may, all are done, and in the end no slot and no key is left.
func TestCrashesLeakNoSlotAndNoUniqueKey(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		random := seeded(t)
		n, crashes := 600, 5
		switch {
		case strings.HasSuffix(t.Name(), "/miniredis"):
			n, crashes = 120, 2 // it is slow, the more so with -race
		case soak():
			n, crashes = 100_000, 60
		}
		const lease, keys, limit = 2 * time.Second, 5, 2
		c, _ := newTestClient(t, rdb, Config{PublishTimeout: time.Minute})
		task := NewTask[int]("a", TaskConfig{MaxAttempts: 3, Backoff: func(int, error) time.Duration { return 10 * time.Millisecond }})
		all := &crowd{running: make(map[string]map[string]int), most: make(map[string]int), done: make(map[int]int)}
		var mu sync.Mutex // of random
		roll := func(n int) int {
			mu.Lock()
			defer mu.Unlock()
			return random.IntN(n)
		}
		handle := func(w *Worker) {
			task.Handle(w, func(ctx context.Context, i int) error {
				d := FromContext(ctx)
				if key := d.Header("key"); key != "" {
					defer all.enter(key, d.ID)()
				}
				select {
				case <-time.After(time.Duration(roll(3)) * time.Millisecond):
				case <-ctx.Done():
					return ctx.Err()
				}
				switch roll(12) {
				case 0:
					return errTest
				case 1:
					return Snooze(5 * time.Millisecond)
				case 2:
					return Reject(errTest)
				case 3:
					return Skip(errTest)
				}
				all.finish(i)
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
					if i%3 != 0 {
						key := fmt.Sprint("key", i%keys)
						opts = append(opts, Key(key, limit), Header("key", key))
					}
					if i%4 != 0 {
						opts = append(opts, Unique(fmt.Sprint("only", i)))
					}
					if i%7 == 0 {
						opts = append(opts, After(time.Duration(i%50)*time.Millisecond))
					}
					_, err := task.Publish(context.Background(), c, i, opts...)
					require.NoError(t, err)
				}
			})
		}
		crash := victim()
		startWorker(t, c, WorkerConfig{Lease: lease, Concurrency: 4}, handle)
		for range crashes {
			time.Sleep(time.Duration(50+roll(300)) * time.Millisecond)
			crash()
			crash = victim()
		}
		publishers.Wait()
		s := scripts{t, c.conn, newPartition("redisha", "default", 0, 1)}
		left := func() string {
			info := queueInfo(t, c, "default")
			parked := s.rdb.ZCard(context.Background(), s.p.parkedKeys).Val()
			return fmt.Sprintf("%d ready, %d in flight, %d delayed, %d keys parked", info.Ready, info.InFlight, info.Delayed, parked)
		}
		require.Eventually(t, func() bool { return left() == "0 ready, 0 in flight, 0 delayed, 0 keys parked" },
			10*time.Minute, 20*time.Millisecond, "%s", lazily(left))
		crash()
		for _, pattern := range []string{"k:*", "kq:*", "u:*"} {
			require.Empty(t, c.conn.Keys(context.Background(), strings.NewReplacer("{", "\\{", "}", "\\}").Replace(s.p.prefix)+pattern).Val())
		}
		published, ended := s.counter(countPublished), 0
		for _, field := range []string{countAcked, countDead} {
			ended += int(toUint(s.counter(field)))
		}
		require.Equal(t, published, fmt.Sprint(ended), "each task has ended once")
		all.mu.Lock()
		defer all.mu.Unlock()
		require.Len(t, all.most, keys)
		for key, most := range all.most {
			require.LessOrEqual(t, most, limit, key)
		}
		t.Logf("%d tasks, %d crashes, %d done", n, crashes+1, len(all.done))
	})
}

// soak reports whether tests may take long.
func soak() bool { return os.Getenv("REDISHA_TEST_SOAK") != "" }

// lazily formats what fn returns when it is printed.
type lazily func() string

func (l lazily) String() string { return l() }

// Slots of tasks that are gone from their streams, as after a failover or by hand.
func TestSlotsOfTasksThatAreGoneAreFreed(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, logs *logs) {
		task := NewTask[int]("a", TaskConfig{})
		started, release := make(chan int, 9), make(chan struct{})
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, i int) error {
				started <- i
				select {
				case <-release:
				case <-ctx.Done():
				}
				return ctx.Err()
			})
		})
		s := scripts{t, c.conn, newPartition("redisha", "default", 0, 1)}
		require.NoError(t, c.conn.SAdd(t.Context(), s.p.slots("k"), "gone").Err())
		for i := range 3 {
			publish(t, task, c, i, Key("k", 2))
		}
		require.Equal(t, 0, receive(t, started))
		time.Sleep(30 * time.Second)
		require.Empty(t, started, "one slot is taken, the other leaked")
		time.Sleep(2 * time.Minute)
		require.Equal(t, 1, receive(t, started))
		require.Empty(t, started)
		require.Equal(t, 1, logs.count("slots of a concurrency key"))
		time.Sleep(10 * time.Minute)
		require.Empty(t, started, "long tasks keep their slots")
		close(release)
		require.Equal(t, 2, receive(t, started))
		awaitQueueIn(t, c, QueueInfo{}, time.Minute)
		require.Zero(t, c.conn.Exists(t.Context(), s.p.slots("k"), s.p.parked("k"), s.p.parkedKeys).Val())
	})
}

// Parked tasks are started by the end of one that has a slot: of a key of which
// nobody has one, somebody must.
func TestParkedTasksThatWaitForNobodyAreStarted(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, logs *logs) {
		task := NewTask[int]("a", TaskConfig{})
		started, release := make(chan int, 9), make(chan struct{})
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, i int) error { started <- i; <-release; return nil })
		})
		s := scripts{t, c.conn, newPartition("redisha", "default", 0, 1)}
		for i := range 3 {
			publish(t, task, c, i, Key("k", 1))
		}
		require.Equal(t, 0, receive(t, started))
		require.NoError(t, c.conn.Del(t.Context(), s.p.slots("k")).Err()) // by hand, or by eviction
		time.Sleep(30 * time.Second)
		require.Empty(t, started)
		time.Sleep(2 * time.Minute)
		require.Equal(t, 1, receive(t, started))
		time.Sleep(5 * time.Minute)
		require.Empty(t, started, "the limit holds")
		require.Equal(t, 1, logs.count("waited for nobody"))
		close(release)
		require.Equal(t, 2, receive(t, started))
		awaitQueueIn(t, c, QueueInfo{}, time.Minute)
		require.Zero(t, c.conn.Exists(t.Context(), s.p.slots("k"), s.p.parked("k"), s.p.parkedKeys).Val())
	})
}
