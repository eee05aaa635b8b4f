package broker

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/redistest"
)

// At maxmemory a publish is refused and leaves nothing behind, and a worker brings
// everything to its end, whatever the handlers return.
func TestAWorkerDrainsAtMaxmemory(t *testing.T) {
	server := redistest.New(t, redistest.Config{Lines: []string{"maxmemory-policy noeviction"}})
	opt := server.Options()
	opt.MaxRetries = -1 // else a refusal may be that of a second sending
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	c, _ := newTestClient(t, rdb, Config{})
	ctx := t.Context()
	task := NewTask[string]("a", TaskConfig{MaxAttempts: 3, Backoff: func(int, error) time.Duration { return 20 * time.Millisecond }})
	tasks := 0
	add := func(arg string, opts ...PublishOption) {
		publish(t, task, c, arg, opts...)
		tasks++
	}
	for range 300 {
		add("done")
	}
	for i := range 20 {
		add("retry")
		add("exhaust")
		add("reject")
		add("snooze")
		add("skip")
		add("done", After(50*time.Millisecond))
		add("done", Key("k", 2))
		add("retry", Key("k", 2), Unique(fmt.Sprint("u", i)))
		add("expire", ExpireAfter(time.Millisecond))
	}
	require.NotZero(t, queueInfo(t, c, "default").Parked)
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "1").Err())

	before := keysOf(t, rdb)
	options := [][]PublishOption{
		nil, {ID("x")}, {Unique("x")}, {UniqueFor(time.Hour, "y")}, {Key("x", 1)}, {Key("k", 2)}, {After(time.Hour)},
		{ID("x"), Unique("x"), Key("x", 1), After(time.Hour), ExpireAfter(2 * time.Hour)},
	}
	for i, opts := range options {
		_, err := task.Publish(ctx, c, "refused", opts...)
		require.ErrorIs(t, err, ErrBrokerFull, i)
		many, err := task.PublishMany(ctx, c, []string{"refused", "refused"}, opts...)
		require.ErrorIs(t, err, ErrBrokerFull, i)
		for _, p := range many {
			require.ErrorIs(t, p.Err, ErrBrokerFull, i)
			require.Empty(t, p.ID)
		}
	}
	_, err := NewTask[int]("first", TaskConfig{Queue: "new"}).Publish(ctx, c, 1)
	require.ErrorIs(t, err, ErrBrokerFull, "the first task of a queue")
	require.Equal(t, before, keysOf(t, rdb), "nothing is half-written")

	var mu sync.Mutex
	ran := map[string]int{}
	stop := startWorker(t, c, WorkerConfig{}, func(w *Worker) {
		task.Handle(w, func(ctx context.Context, arg string) error {
			mu.Lock()
			ran[arg]++
			mu.Unlock()
			again := FromContext(ctx).Attempt > 1
			switch {
			case arg == "retry" && !again, arg == "exhaust":
				return errTest
			case arg == "reject":
				return Reject(errTest)
			case arg == "skip":
				return Skip(errTest)
			case arg == "snooze" && time.Since(FromContext(ctx).Enqueued) < time.Second:
				return Snooze(time.Second)
			}
			return nil
		})
	})
	awaitQueue(t, c, "default", QueueInfo{Dead: 40})
	require.NoError(t, stop())
	require.EqualValues(t, tasks, c.Stats().Published)
	require.Zero(t, c.Stats().LeasesLost)
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []int{340, 80, 60, 20, 20, 0}, []int{ran["done"], ran["retry"], ran["exhaust"], ran["reject"], ran["skip"], ran["refused"]})
	for _, key := range keysOf(t, rdb) {
		require.NotRegexp(t, `:(u|k|kq|kz|z|zh|rv|id):?`, key[len("redisha:queue:{default:0.1}"):], "nothing is left over")
	}

	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "0").Err())
	for i, opts := range options[1:] {
		_, err := task.Publish(ctx, c, "again", slices.Concat(opts, []PublishOption{ID(fmt.Sprint("id", i))})...)
		if i < len(options)-2 {
			require.NoError(t, err, "%d: what was refused holds no key", i)
		}
	}
}

func keysOf(t *testing.T, rdb redis.UniversalClient) []string {
	keys, err := rdb.Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	slices.Sort(keys)
	return keys
}

// A payload that becomes larger than this worker takes is a dead letter that says
// so, and nothing is allocated for it; a worker that takes more runs it.
func TestAPayloadThatIsTooLargeForAWorkerIsADeadLetter(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		small, _ := newTestClient(t, c.conn.Unwrap(), Config{Compress: compress.Config{MaxSize: 64 << 10}})
		large := NewTask[[]byte]("large", TaskConfig{Codec: Raw})
		id := publish(t, large, c, make([]byte, 512<<10))
		publish(t, large, c, make([]byte, 100))
		done := make(chan int, 9)
		handle := func(w *Worker) {
			large.Handle(w, func(_ context.Context, b []byte) error { done <- len(b); return nil })
		}
		stop := startWorker(t, small, WorkerConfig{}, handle)
		require.Equal(t, 100, receive(t, done))
		awaitQueue(t, c, "default", QueueInfo{Dead: 1})
		require.NoError(t, stop())
		letters, err := c.DeadLetters(t.Context(), "default", 9)
		require.NoError(t, err)
		require.Equal(t, []any{id, Undecodable}, []any{letters[0].ID, letters[0].Reason})
		require.Contains(t, letters[0].Error, "65536")

		i, err := NewInspector(c, nil)
		require.NoError(t, err)
		_, err = i.RetryDead(t.Context(), "default", DeadFilter{})
		require.NoError(t, err)
		startWorker(t, c, WorkerConfig{}, handle)
		require.Equal(t, 512<<10, receive(t, done))
		awaitQueue(t, c, "default", QueueInfo{})
	})
}
