package broker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

func TestPublishedTasksAreReadyAndCounted(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[map[string]int]("count", TaskConfig{Queue: "numbers"})
		ids := make(map[string]bool)
		for i := range 5 {
			ids[publish(t, task, c, map[string]int{"n": i})] = true
		}
		require.Len(t, ids, 5)
		require.Equal(t, QueueInfo{Ready: 5}, queueInfo(t, c, "numbers"))
		require.Equal(t, QueueInfo{}, queueInfo(t, c, "never-used"))
		require.Zero(t, c.conn.Exists(t.Context(), metadataKey("redisha", "never-used")).Val(), "looking creates nothing")
		s := c.Stats()
		require.Equal(t, uint64(5), s.Published)
		require.Equal(t, uint64(5), s.PublishTime.Count)
		require.Zero(t, s.PublishErrors)
	})
}

func TestTasksWithAGivenIDArePublishedOnce(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[string]("once", TaskConfig{})
		for range 3 {
			require.Equal(t, "order:1", publish(t, task, c, "x", ID("order:1")))
		}
		publish(t, task, c, "x", ID("order:2"), After(time.Hour))
		publish(t, task, c, "x", ID("order:2"))
		require.Equal(t, QueueInfo{Ready: 1, Delayed: 1}, queueInfo(t, c, "default"))
		require.Equal(t, uint64(2), c.Stats().Published)
		require.Equal(t, uint64(3), c.Stats().Duplicates)
	})
}

func TestConcurrentPublishesTravelTogether(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("together", TaskConfig{})
		publish(t, task, c, 0)
		const n = 2000
		ids := make([]string, n)
		var callers sync.WaitGroup
		for i := range n {
			callers.Go(func() { ids[i], _ = task.Publish(context.Background(), c, i) })
		}
		callers.Wait()
		seen := make(map[string]bool)
		for _, id := range ids {
			require.NotEmpty(t, id)
			require.False(t, seen[id])
			seen[id] = true
		}
		require.Equal(t, QueueInfo{Ready: n + 1}, queueInfo(t, c, "default"))
		require.Less(t, c.Stats().Batches, uint64(n/2))
	})
}

// The reply that is dropped is that of the script which has added the tasks.
func TestADroppedReplyDoublesNothing(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		client, net := throughNetwork(t, rdb)
		c, _ := newTestClient(t, client, Config{})
		task := NewTask[int]("single", TaskConfig{})
		publish(t, task, c, 0)
		const n = 30
		for i := range n {
			net.drop(1 + i%2)
			publish(t, task, c, i)
		}
		require.Equal(t, QueueInfo{Ready: n + 1}, queueInfo(t, c, "default"))
		require.GreaterOrEqual(t, c.Stats().Resent, uint64(n))
		require.Equal(t, uint64(n+1), c.Stats().Published)
	})
}

func TestRepliesDroppedUnderLoadDoubleNothing(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		client, net := throughNetwork(t, rdb)
		c, _ := newTestClient(t, client, Config{})
		task := NewTask[int]("single", TaskConfig{})
		publish(t, task, c, 0)
		const callers, each = 32, 20
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				for i := range each {
					net.drop(1)
					_, err := task.Publish(context.Background(), c, i)
					require.NoError(t, err)
				}
			})
		}
		all.Wait()
		net.drop(0)
		require.Equal(t, QueueInfo{Ready: callers*each + 1}, queueInfo(t, c, "default"))
	})
}

func TestPublishWithoutAnswerIsUnconfirmedWithItsID(t *testing.T) {
	server := redistest.New(t, redistest.Config{})
	opt := server.Options()
	opt.MaxRetries, opt.ReadTimeout = -1, time.Minute
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	c, _ := newTestClient(t, rdb, Config{})
	task := NewTask[int]("silent", TaskConfig{})
	publish(t, task, c, 1)
	require.NoError(t, server.Pause())
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	id, err := task.Publish(ctx, c, 2)
	require.Less(t, time.Since(start), 20*time.Second)
	require.ErrorIs(t, err, ErrUnconfirmed)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Len(t, id, idLength)
	var unconfirmed *UnconfirmedError
	require.ErrorAs(t, err, &unconfirmed)
	require.Equal(t, UnconfirmedError{ID: id, Err: context.DeadlineExceeded}, *unconfirmed)
	require.EqualError(t, err, fmt.Sprintf(`broker: publish "silent": not confirmed: task %q may have been published or not: context deadline exceeded`, id))
	require.Equal(t, uint64(1), c.Stats().Unconfirmed)

	require.NoError(t, server.Continue())
	require.Eventually(t, func() bool { return queueInfo(t, c, "default").Ready == 2 }, 20*time.Second, 10*time.Millisecond, "it was, in this case")
	publish(t, task, c, 3)
	require.Equal(t, QueueInfo{Ready: 3}, queueInfo(t, c, "default"))
}

func TestWhatWasNotSentIsNotUnconfirmed(t *testing.T) {
	server := redistest.New(t, redistest.Config{})
	opt := server.Options()
	opt.MaxRetries = -1
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	c, _ := newTestClient(t, rdb, Config{})
	task := NewTask[int]("queued", TaskConfig{})
	publish(t, task, c, 1)
	require.NoError(t, server.Pause())
	first, cancelFirst := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	callers.Go(func() {
		_, err := task.Publish(first, c, 2)
		require.ErrorIs(t, err, ErrUnconfirmed)
	})
	q, err := c.queue(t.Context(), "default")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return c.lanesOf(q, ConfirmPrimary)[0].openSince.Load() != 0 }, 20*time.Second, time.Millisecond)

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = task.Publish(ctx, c, 3)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrUnconfirmed)
	require.EqualError(t, err, `broker: publish "queued": not sent: context deadline exceeded`)
	cancelFirst()
	callers.Wait()
	require.NoError(t, server.Continue())
	require.Eventually(t, func() bool { return queueInfo(t, c, "default").Ready == 2 }, 20*time.Second, 10*time.Millisecond)
	publish(t, task, c, 4)
	require.Equal(t, QueueInfo{Ready: 3}, queueInfo(t, c, "default"), "3 is not there")
}

func TestPublishWaitsForAServerThatIsAway(t *testing.T) {
	s := testserver.New(t)
	opt := s.Options()
	opt.MaxRetries = -1
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	c, _ := newTestClient(t, rdb, Config{})
	task := NewTask[int]("patient", TaskConfig{})
	publish(t, task, c, 1)
	s.Stop()
	done := make(chan error, 1)
	go func() {
		_, err := task.Publish(context.Background(), c, 2)
		done <- err
	}()
	require.Eventually(t, func() bool { return c.Stats().Resent >= 2 }, 20*time.Second, time.Millisecond)
	require.NoError(t, s.Restart())
	require.NoError(t, receive(t, done))
	s.SetError("LOADING Redis is loading the dataset in memory")
	go func() {
		_, err := task.Publish(context.Background(), c, 3)
		done <- err
	}()
	require.Eventually(t, func() bool { return c.Stats().Resent >= 5 }, 20*time.Second, time.Millisecond)
	s.SetError("")
	require.NoError(t, receive(t, done))
	require.Equal(t, QueueInfo{Ready: 3}, queueInfo(t, c, "default"))
}

func TestPublishTimeoutBoundsAContextWithoutDeadline(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, other *Client, _ *logs) {
		c, _ := newTestClient(t, other.conn.Unwrap(), Config{PublishTimeout: 50 * time.Millisecond})
		task := NewTask[int]("bounded", TaskConfig{})
		publish(t, task, c, 1)
		s.SetError("LOADING Redis is loading the dataset in memory")
		_, err := task.Publish(context.Background(), c, 2)
		require.EqualError(t, err, `broker: publish "bounded": not sent: no answer within 50ms (Config.PublishTimeout): context deadline exceeded`)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		s.SetError("")
		publish(t, task, c, 3)
		require.Equal(t, QueueInfo{Ready: 2}, queueInfo(t, c, "default"))
	})
}

func TestErrorsOfTheServerAreToldAndNotRepeated(t *testing.T) {
	s := testserver.New(t)
	client, _ := throughNetwork(t, s.Client(t)) // without retries
	c, _ := newTestClient(t, client, Config{})
	task := NewTask[int]("refused", TaskConfig{})
	publish(t, task, c, 1)
	s.SetError("OOM command not allowed when used memory > 'maxmemory'.")
	_, err := task.Publish(t.Context(), c, 2)
	require.ErrorIs(t, err, ErrBrokerFull)
	require.NotErrorIs(t, err, ErrUnconfirmed)
	s.SetError("NOPERM User app has no permissions to run the 'evalsha' command")
	_, err = task.Publish(t.Context(), c, 2)
	require.EqualError(t, err, `broker: publish "refused": NOPERM User app has no permissions to run the 'evalsha' command`)
	s.SetError("")
	require.Zero(t, c.Stats().Resent)
	require.Equal(t, uint64(2), c.Stats().PublishErrors)
	publish(t, task, c, 3)
	require.Equal(t, QueueInfo{Ready: 2}, queueInfo(t, c, "default"))
}

// A batch that may be on its way keeps its number: should it arrive late, it must
// not pass for another one's.
func TestNumbersOfUnknownOutcomeAreNotUsedAgain(t *testing.T) {
	s := testserver.New(t)
	client, net := throughNetwork(t, s.Client(t))
	c, _ := newTestClient(t, client, Config{})
	task := NewTask[int]("numbers", TaskConfig{})
	publish(t, task, c, 1)
	q, err := c.queue(t.Context(), "default")
	require.NoError(t, err)
	lane := c.lanesOf(q, ConfirmPrimary)[0]

	net.drop(1) // applied, and the answer is lost
	publish(t, task, c, 2)
	require.Equal(t, uint64(2), lane.seq)
	require.Equal(t, uint64(2), lane.applied)
	s.SetError("OOM full")
	_, err = task.Publish(t.Context(), c, 3)
	require.ErrorIs(t, err, ErrBrokerFull)
	s.SetError("")
	publish(t, task, c, 4)
	require.Equal(t, uint64(4), lane.seq, "3 was spent on the batch that was refused")
}

func TestADefiniteErrorAfterAnUnknownOneLeavesTheOutcomeOpen(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, other *Client, _ *logs) {
		client, net := throughNetwork(t, other.conn.Unwrap())
		c, _ := newTestClient(t, client, Config{})
		task := NewTask[int]("open", TaskConfig{})
		publish(t, task, c, 1)
		net.drop(1)
		done := make(chan error, 1)
		go func() {
			_, err := task.Publish(context.Background(), c, 2)
			done <- err
		}()
		synctest.Wait() // the reply is lost, and the batch not sent again yet
		s.SetError("OOM full")
		err := receive(t, done)
		require.ErrorIs(t, err, ErrUnconfirmed)
		require.ErrorIs(t, err, ErrBrokerFull)
	})
}

func TestLostWritesAreNoticed(t *testing.T) {
	each(t, func(t *testing.T, c *Client, logs *logs) {
		task := NewTask[int]("lost", TaskConfig{})
		publish(t, task, c, 1)
		publish(t, task, c, 2)
		require.NoError(t, c.conn.FlushAll(t.Context()).Err())
		publish(t, task, c, 3)
		require.Equal(t, uint64(2), c.Stats().LostBatches)
		require.Equal(t, 1, logs.count("Redis lost the record of what was published"))
		publish(t, task, c, 4)
		require.Equal(t, uint64(2), c.Stats().LostBatches)
		require.Equal(t, QueueInfo{Ready: 2}, queueInfo(t, c, "default"))

		// As a failover does: the new primary has not got the last three.
		lanes := newPartition("redisha", "default", 0, 1).lanes
		old, err := c.conn.HGetAll(t.Context(), lanes).Result()
		require.NoError(t, err)
		for n := range 3 {
			publish(t, task, c, n)
		}
		require.NoError(t, c.conn.HSet(t.Context(), lanes, old).Err())
		publish(t, task, c, 9)
		require.Equal(t, uint64(5), c.Stats().LostBatches)
		require.Equal(t, 1, logs.count("Redis lost the record of what was published"))
		require.Equal(t, 1, logs.count("tasks that were published last may be gone"))
		require.Equal(t, 1, logs.count("at_most_batches=3"))
	})
}

func TestArgumentsThatCannotBePublishedAreRefused(t *testing.T) {
	s := testserver.New(t)
	c, _ := newTestClient(t, s.Client(t), Config{MaxPayloadBytes: 100})
	ctx := t.Context()
	_, err := NewTask[string]("big", TaskConfig{}).Publish(ctx, c, strings.Repeat("x", 99))
	require.EqualError(t, err, `broker: publish "big": the argument has 101 bytes, want at most 100 (Config.MaxPayloadBytes): publish a reference to where it is kept`)
	_, err = NewTask[string]("fits", TaskConfig{}).Publish(ctx, c, strings.Repeat("x", 98))
	require.NoError(t, err)
	_, err = NewTask[float64]("nan", TaskConfig{}).Publish(ctx, c, math.NaN())
	require.EqualError(t, err, `broker: publish "nan": encode the argument, a float64: json: unsupported value: NaN`)
	_, err = NewTask[int]("raw", TaskConfig{Codec: Raw}).Publish(ctx, c, 1)
	require.ErrorContains(t, err, "want []byte or string")
	_, err = NewTask[int]("nil", TaskConfig{}).Publish(nilContext, c, 1)
	require.EqualError(t, err, `broker: publish "nil": nil context: pass context.Background() or the request's`)
	_, err = NewTask[int]("nil", TaskConfig{}).Publish(ctx, nil, 1)
	require.EqualError(t, err, `broker: publish "nil": nil client: pass one made by New`)
	cancelled, cancel := context.WithCancelCause(ctx)
	cancel(errTest)
	_, err = NewTask[int]("done", TaskConfig{}).Publish(cancelled, c, 1)
	require.EqualError(t, err, `broker: publish "done": on purpose`)
}

func TestWrongDefinitionsAreReportedByEveryUse(t *testing.T) {
	s := testserver.New(t)
	c, _ := newTestClient(t, s.Client(t), Config{})
	for want, task := range map[string]*Task[int]{
		`broker: publish "": the task's name has 0 bytes, want 1 to 255`:                                    NewTask[int]("", TaskConfig{}),
		`broker: publish "a b": the task's name is "a b", want UTF-8 without spaces and control characters`: NewTask[int]("a b", TaskConfig{}),
		`broker: publish "a": the queue's name is "a:b", want letters, digits and . _ - only`:               NewTask[int]("a", TaskConfig{Queue: "a:b"}),
		`broker: publish "a": TaskConfig.Priority is 2, want PriorityLow, PriorityDefault or PriorityHigh`:  NewTask[int]("a", TaskConfig{Priority: 2}),
		`broker: publish "a": TaskConfig.MaxAttempts is -1, want 1 to 65535, or 0 for 25`:                   NewTask[int]("a", TaskConfig{MaxAttempts: -1}),
		`broker: publish "a": TaskConfig.Timeout is 1µs, want at least 1ms, or 0 for none`:                  NewTask[int]("a", TaskConfig{Timeout: time.Microsecond}),
		`broker: publish "a": TaskConfig.Retention is -1s, want at least 1ms, or 0 for the default`:         NewTask[int]("a", TaskConfig{Retention: -time.Second}),
		`broker: publish "": a task that was not made by NewTask or NewResultTask`:                          {},
		`broker: publish: a task that was not made by NewTask or NewResultTask`:                             nil,
	} {
		_, err := task.Publish(t.Context(), c, 1)
		require.EqualError(t, err, want)
		w, err := NewWorker(c, WorkerConfig{})
		require.NoError(t, err)
		task.Handle(w, func(context.Context, int) error { return nil })
		_, problem, _ := strings.Cut(want, ": ")
		if i := strings.Index(problem, ": "); i >= 0 {
			problem = problem[i+2:]
		}
		require.ErrorContains(t, w.Run(t.Context()), strings.TrimPrefix(problem, "publish: "))
	}
	require.Empty(t, s.Keys())
}

func TestWrongOptionsAreRefused(t *testing.T) {
	s := testserver.New(t)
	c, _ := newTestClient(t, s.Client(t), Config{})
	task := NewTask[int]("a", TaskConfig{})
	for want, opts := range map[string][]PublishOption{
		"the ID is empty":                            {ID("")},
		"is one that Publish generated":              {ID(generateID(time.Now(), 0))},
		"the header's name is \"\", want 1 to 255":   {Header("", "x")},
		"want 1 to 255 bytes without control":        {Header("a\n", "x")},
		"the headers have 16385 bytes, want at most": {Header("a", strings.Repeat("x", 16384))},
		"a publish option is nil":                    {nil},
		"which ends after the year 9999":             {At(time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC))},
	} {
		_, err := task.Publish(t.Context(), c, 1, opts...)
		if strings.Contains(want, "9999") {
			require.ErrorContains(t, err, "want at most the year 9999")
			continue
		}
		require.ErrorContains(t, err, want)
	}
	require.Empty(t, s.Keys())
	publish(t, task, c, 1, Header("a", strings.Repeat("x", 16383)), Header("a", "replaced"), Header("b", strings.Repeat("x", 16000)))
}

func TestKeysOfAnotherTypeAreReported(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		ctx := t.Context()
		task := NewTask[int]("a", TaskConfig{Queue: "q"})
		high := NewTask[int]("b", TaskConfig{Queue: "q", Priority: PriorityHigh})
		p := newPartition("redisha", "q", 0, 1)
		require.NoError(t, c.conn.Set(ctx, p.streams[2], "mine", 0).Err())
		_, err := task.Publish(ctx, c, 1)
		require.EqualError(t, err, `broker: publish "a": WRONGTYPE a key of redisha:queue:{q:0.0}:…: does something else write the queue's keys?`)
		publish(t, high, c, 1)
		_, err = c.Queue(ctx, "q")
		require.ErrorContains(t, err, `broker: queue "q": `)
		require.ErrorContains(t, err, "WRONGTYPE")

		require.NoError(t, c.conn.RPush(ctx, metadataKey("redisha", "r"), "mine").Err())
		_, err = NewTask[int]("c", TaskConfig{Queue: "r"}).Publish(ctx, c, 1)
		require.ErrorContains(t, err, `broker: publish "c": key "redisha:queue:{r}:meta": WRONGTYPE`)
		require.NoError(t, c.conn.Set(ctx, metadataKey("redisha", "s"), `{"v":9}`, 0).Err())
		_, err = NewTask[int]("d", TaskConfig{Queue: "s"}).Publish(ctx, c, 1)
		require.EqualError(t, err, `broker: publish "d": key "redisha:queue:{s}:meta": not the metadata of a queue: its version is 9, want 1: was it written by a later version of this library?`)
	})
}

func TestPartitionsAreFixedByWhoeverUsesAQueueFirst(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		first, _ := newTestClient(t, c.conn.Unwrap(), Config{Partitions: 4})
		second, _ := newTestClient(t, c.conn.Unwrap(), Config{Partitions: 7})
		task := NewTask[int]("a", TaskConfig{Queue: "q"})
		for i := range 40 {
			publish(t, task, first, i)
			publish(t, task, second, i)
			publish(t, task, c, i, ID(fmt.Sprint("order:", i)))
		}
		require.Equal(t, QueueInfo{Ready: 120}, queueInfo(t, c, "q"))
		for i := range 4 {
			p := newPartition("redisha", "q", i, 4)
			n := c.conn.XLen(t.Context(), p.streams[2]).Val()
			require.Greater(t, n, int64(20), "generated IDs go round, given ones by their hash")
			for _, m := range c.conn.XRange(t.Context(), p.streams[2], "-", "+").Val() {
				e, err := decodeEnvelope([]byte(m.Values[field].(string)))
				require.NoError(t, err)
				if at, ok := generatedPartition(e.id); ok {
					require.Equal(t, i, at)
				} else {
					require.Equal(t, i, jumpHash(hashID(e.id), 4))
				}
			}
		}
		require.Contains(t, c.conn.Get(t.Context(), metadataKey("redisha", "q")).Val(), `{"v":1,"partitions":4,"created":`)
	})
}

func TestPublishersPassOverALaneThatFails(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, other *Client, _ *logs) {
		c, _ := newTestClient(t, other.conn.Unwrap(), Config{Partitions: 3})
		q, err := c.queue(t.Context(), "q")
		require.NoError(t, err)
		lanes := c.lanesOf(q, ConfirmPrimary)
		picked := func() map[int]bool {
			m := make(map[int]bool)
			for range 9 {
				m[q.pick(lanes, "").p.index] = true
			}
			return m
		}
		require.Equal(t, map[int]bool{0: true, 1: true, 2: true}, picked())
		lanes[1].failedAt.Store(time.Now().UnixNano())
		require.Equal(t, map[int]bool{0: true, 2: true}, picked())
		lanes[2].openSince.Store(time.Now().Add(-time.Second).UnixNano())
		require.Equal(t, map[int]bool{0: true}, picked())
		lanes[0].failedAt.Store(time.Now().UnixNano())
		require.Equal(t, map[int]bool{0: true, 1: true, 2: true}, picked(), "all fail: as if none did")
		lanes[1].failedAt.Store(time.Now().Add(-2 * time.Second).UnixNano())
		require.Equal(t, map[int]bool{1: true}, picked(), "after a second it is tried again")
		require.Equal(t, jumpHash(hashID("order"), 3), q.pick(lanes, "order").p.index, "a given ID passes over nothing")
	})
}

func TestClosedClientsRefuseEverything(t *testing.T) {
	s := testserver.New(t)
	c, err := New(s.Client(t), Config{})
	require.NoError(t, err)
	require.NoError(t, c.Check(t.Context()))
	w, err := NewWorker(c, WorkerConfig{})
	require.NoError(t, err)
	task := NewTask[int]("a", TaskConfig{})
	task.Handle(w, func(context.Context, int) error { return nil })
	require.NoError(t, c.Close())
	require.NoError(t, c.Close(), "twice")
	_, err = task.Publish(t.Context(), c, 1)
	require.ErrorIs(t, err, ErrClosed)
	require.EqualError(t, err, `broker: publish "a": redis: client is closed`)
	require.EqualError(t, w.Run(t.Context()), `broker: run: redis: client is closed`)
	require.EqualError(t, c.Check(t.Context()), `broker: check: redis: client is closed`)
	_, err = c.Queue(t.Context(), "q")
	require.ErrorIs(t, err, ErrClosed)
	_, err = c.DeadLetters(t.Context(), "q", 1)
	require.ErrorIs(t, err, ErrClosed)
	require.NoError(t, s.Client(t).Ping(t.Context()).Err())
}

func TestRolesWithoutEndpointSayWhatToSet(t *testing.T) {
	reason := fmt.Errorf("%w: set REDISHA_BROKER_URL", conn.ErrNotConfigured)
	closed := conn.Closed("broker", reason)
	defer closed.Close()
	c, _ := newTestClient(t, closed, Config{})
	task := NewTask[int]("a", TaskConfig{})
	_, err := task.Publish(t.Context(), c, 1)
	require.ErrorIs(t, err, conn.ErrNotConfigured)
	require.EqualError(t, err, `broker: publish "a": role not configured: set REDISHA_BROKER_URL`)
	w, err := NewWorker(c, WorkerConfig{})
	require.NoError(t, err)
	task.Handle(w, func(context.Context, int) error { return nil })
	require.EqualError(t, w.Run(t.Context()), `broker: run: role not configured: set REDISHA_BROKER_URL`)
	require.EqualError(t, c.Check(t.Context()), `broker: check: role not configured: set REDISHA_BROKER_URL`)
}

func TestCloseWaitsForPublishesAndEndsThoseThatHang(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		task := NewTask[int]("a", TaskConfig{})
		publish(t, task, c, 1)
		s.SetError("LOADING Redis is loading the dataset in memory")
		done := make(chan error, 1)
		go func() {
			_, err := task.Publish(context.Background(), c, 2)
			done <- err
		}()
		time.Sleep(time.Second)
		require.NotZero(t, c.Stats().Resent)
		require.NoError(t, c.Close())
		err := receive(t, done)
		require.ErrorIs(t, err, ErrClosed)
		require.NotErrorIs(t, err, ErrUnconfirmed)
	})
}

func TestWrongConfigsAreRefused(t *testing.T) {
	s := testserver.New(t)
	rdb := s.Client(t)
	for want, cfg := range map[string]Config{
		`broker: Config.Namespace is "a{b", want no spaces, control characters or braces`: {Namespace: "a{b"},
		`broker: Config.MaxPayloadBytes is -1, want 1 to 67108864, or 0 for 1 MiB`:        {MaxPayloadBytes: -1},
		`broker: Config.Partitions is 257, want 1 to 256, or 0 for what fits the server`:  {Partitions: 257},
		`broker: Config.CloseTimeout is -1ns, want more than 0, or 0 for 5s`:              {CloseTimeout: -1},
	} {
		_, err := New(rdb, cfg)
		require.EqualError(t, err, want)
	}
	_, err := New(nil, Config{})
	require.EqualError(t, err, "broker: nil client: pass a go-redis client or one that redisha.Open made")
	c, _ := newTestClient(t, rdb, Config{})
	for want, cfg := range map[string]WorkerConfig{
		`broker: new worker: WorkerConfig.Queues: the queue's name has 0 bytes, want 1 to 100`: {Queues: []string{""}},
		`broker: new worker: WorkerConfig.Concurrency is -1, want 1 to 10000, or 0 for 10`:     {Concurrency: -1},
		`broker: new worker: WorkerConfig.Lease is 499ms, want at least 500ms, or 0 for 15s`:   {Lease: 499 * time.Millisecond},
	} {
		_, err := NewWorker(c, cfg)
		require.EqualError(t, err, want)
	}
	_, err = NewWorker(nil, WorkerConfig{})
	require.EqualError(t, err, "broker: new worker: nil client: pass one made by New")
	require.True(t, errors.Is(ErrClosed, redis.ErrClosed))
}

// A hook that panics costs the tasks that travel with it an answer, and nothing more.
func TestAPanicInAHookIsAnErrorOfItsPublishes(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		var failing atomic.Bool
		rdb.AddHook(&redistest.Recorder{Before: func(_ context.Context, cmds []redis.Cmder) {
			if failing.Load() && strings.HasPrefix(cmds[0].Name(), "eval") {
				panic("a bug")
			}
		}})
		c, log := newTestClient(t, rdb, Config{})
		task := NewTask[int]("a", TaskConfig{})
		publish(t, task, c, 0)
		failing.Store(true)
		var callers sync.WaitGroup
		for i := range 20 {
			callers.Go(func() {
				_, err := task.Publish(context.Background(), c, i)
				assert.ErrorIs(t, err, ErrUnconfirmed)
				assert.ErrorContains(t, err, "panic in a hook of the client: a bug")
			})
		}
		callers.Wait()
		require.Contains(t, log.String(), "a bug")
		failing.Store(false)
		publish(t, task, c, 1)
		require.Equal(t, QueueInfo{Ready: 2}, queueInfo(t, c, "default"))
	})
}
