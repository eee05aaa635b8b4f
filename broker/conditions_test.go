package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

func TestPublishScriptTellsWhoHoldsAUniqueKey(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		u := s.p.unique("report")
		publish := func(lane, seq, conditions string, id string) any {
			reply, err := s.publishTasks(lane, seq, []string{u}, s.task("1", conditions, s.envelope(id)))
			require.NoError(t, err)
			return reply
		}
		require.Equal(t, []any{"1", "", "0"}, publish("a", "1", ";0;+5000;0;0;", "first"))
		require.Equal(t, "first", s.rdb.Get(ctx, u).Val())
		require.InDelta(t, 5*time.Second, s.rdb.PTTL(ctx, u).Val(), float64(2*time.Second))
		require.Equal(t, []any{"2", "u\nfirst", "1"}, publish("a", "2", ";0;+5000;0;0;", "second"))
		require.Equal(t, []any{"2", "u\nfirst", "2"}, publish("a", "2", ";0;+5000;0;0;", "second"), "sent again")
		require.Equal(t, "1:2:u\nfirst", s.rdb.HGet(ctx, s.p.lanes, "a").Val(), "the stored form")
		require.Equal(t, []any{"3", "1", "2"}, publish("a", "3", ";0;+5000;0;0;", "first"), "its own")
		require.Equal(t, "1", s.counter(countPublished))

		require.NoError(t, s.rdb.Del(ctx, u).Err())
		publish("a", "4", "+60000;0;+5000;0;0;", "later")
		require.Greater(t, s.rdb.PTTL(ctx, u).Val(), time.Minute, "from when it is due")
		require.NoError(t, s.rdb.Del(ctx, u).Err())
		publish("a", "5", "+60000;0;5000;0;0;", "for a time")
		require.LessOrEqual(t, s.rdb.PTTL(ctx, u).Val(), 5*time.Second)

		require.NoError(t, s.rdb.Del(ctx, u).Err())
		require.NoError(t, s.rdb.RPush(ctx, u, "mine").Err())
		require.Equal(t, []any{"6", "w", "5"}, publish("a", "6", ";0;5000;0;0;", "x"))

		// One batch: both keys are its own, and a line for each u.
		require.NoError(t, s.rdb.Del(ctx, u).Err())
		tasks := append(s.task("1", ";0;9000;0;0;", s.envelope("m")), s.task("1", ";0;9000;0;0;", s.envelope("n"))...)
		tasks = append(append(tasks, s.task("1", "", s.envelope("o"))...), s.task("1", ";0;9000;0;0;", s.envelope("p"))...)
		reply, err := s.publishTasks("a", "7", []string{u, u, u}, tasks)
		require.NoError(t, err)
		require.Equal(t, []any{"7", "0u0u\nm\nm", "6"}, reply)
	})
}

func TestPublishScriptTakesNoMoreThanTheQueueMayHold(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		var tasks []any
		for i := range 5 {
			tasks = append(tasks, s.task("1", ";0;0;0;3;", s.envelope(fmt.Sprint(i)))...)
		}
		reply, err := s.publishTasks("a", "1", nil, tasks)
		require.NoError(t, err)
		require.Equal(t, []any{"1", "000ff", "0"}, reply)
		require.Equal(t, "3", s.counter(countPublished))
		reply, err = s.publishTasks("a", "2", []string{s.p.unique("k")}, s.task("0", "+5000;0;1000;0;4;", s.envelope("delayed")))
		require.NoError(t, err)
		require.Equal(t, []any{"2", "", "1"}, reply)
		reply, err = s.publishTasks("a", "3", []string{s.p.idMark("m"), s.p.unique("l")}, s.task("0", ";1000;1000;0;4;", s.envelope("m")))
		require.NoError(t, err)
		require.Equal(t, []any{"3", "f", "2"}, reply, "delayed ones count")
		require.Zero(t, s.rdb.Exists(t.Context(), s.p.unique("l"), s.p.idMark("m")).Val(), "what was not taken leaves nothing")
		require.Equal(t, []any{int64(3), int64(0), int64(1), int64(0)}, s.counts())
		require.NoError(t, s.rdb.Rename(t.Context(), s.p.streams[2], s.p.streams[releasedStream]).Err())
		reply, err = s.publishTasks("a", "4", nil, s.task("0", ";0;0;0;4;", s.envelope("n")))
		require.NoError(t, err)
		require.Equal(t, []any{"4", "f", "3"}, reply, "and those that were given back")
	})
}

func TestPublishScriptParksOverTheLimitOfAKey(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		set, list := s.p.slots("user"), s.p.parked("user")
		publish := func(seq, conditions, priority string, ids ...string) any {
			var tasks []any
			var keys []string
			for _, id := range ids {
				tasks = append(tasks, s.task(priority, conditions, s.envelope(id))...)
				keys = append(keys, set, list)
			}
			reply, err := s.publishTasks("a", seq, keys, tasks)
			require.NoError(t, err)
			return reply
		}
		require.Equal(t, []any{"1", "", "0"}, publish("1", ";0;0;2;0;user", "1", "a", "b", "c", "d"))
		require.ElementsMatch(t, []string{"a", "b"}, s.rdb.SMembers(ctx, set).Val())
		require.Equal(t, int64(2), s.rdb.XLen(ctx, s.p.streams[2]).Val())
		require.Equal(t, int64(2), s.rdb.LLen(ctx, list).Val())
		require.Equal(t, []string{"user"}, s.rdb.ZRange(ctx, s.p.parkedKeys, 0, -1).Val())
		require.Equal(t, "4", s.counter(countPublished), "parked ones count")
		first, err := decodeEnvelope([]byte(s.rdb.LIndex(ctx, list, 0).Val()))
		require.NoError(t, err)
		require.Equal(t, "c", first.id)
		require.NotZero(t, first.enqueued)

		publish("2", "+5000;0;0;2;0;user", "1", "later")
		require.Equal(t, int64(2), s.rdb.SCard(ctx, set).Val(), "a delayed one has no slot")

		// One ended, and whoever ended it was another version: the next publish
		// starts those that came first.
		require.NoError(t, s.rdb.SRem(ctx, set, "a").Err())
		publish("3", ";0;0;2;0;user", "0", "e")
		require.ElementsMatch(t, []string{"b", "c"}, s.rdb.SMembers(ctx, set).Val())
		require.Equal(t, int64(2), s.rdb.LLen(ctx, list).Val(), "d and e")
		publish("4", ";0;0;9;0;user", "0", "f") // a greater limit
		require.Equal(t, int64(5), s.rdb.SCard(ctx, set).Val())
		require.Equal(t, int64(4), s.rdb.XLen(ctx, s.p.streams[2]).Val(), "by its own priority, d in the stream of its")
		require.Equal(t, int64(2), s.rdb.XLen(ctx, s.p.streams[1]).Val())
		require.Zero(t, s.rdb.Exists(ctx, list, s.p.parkedKeys).Val())

		require.Equal(t, []any{"5", "0ff", "4"}, publish("5", ";0;0;5;8;user", "1", "g", "h", "i"), "parked ones of the key count in the bound")
		require.NoError(t, s.rdb.Set(ctx, s.p.parked("other"), "mine", 0).Err())
		reply, err := s.publishTasks("a", "6", []string{s.p.slots("other"), s.p.parked("other")}, s.task("1", ";0;0;1;0;other", s.envelope("x")))
		require.NoError(t, err)
		require.Equal(t, []any{"6", "w", "5"}, reply)
	})
}

func TestUniqueTasksArePublishedOnceUntilTheirKeyIsFree(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[string]("report", TaskConfig{})
		id := publish(t, task, c, "monday", Unique("report:7"))
		_, err := task.Publish(t.Context(), c, "tuesday", Unique("report:7"))
		require.ErrorIs(t, err, ErrDuplicate)
		var duplicate *DuplicateError
		require.ErrorAs(t, err, &duplicate)
		require.Equal(t, DuplicateError{Key: "report:7", ID: id}, *duplicate)
		require.EqualError(t, err, fmt.Sprintf(`broker: publish "report": a task with the same unique key is there: task %q has the key "report:7"`, id))
		publish(t, task, c, "monday", Unique("report:8"))

		first := publish(t, task, c, "by its argument", Unique(""))
		_, err = task.Publish(t.Context(), c, "by its argument", Unique(""))
		require.ErrorAs(t, err, &duplicate)
		require.Equal(t, first, duplicate.ID)
		require.True(t, strings.HasPrefix(duplicate.Key, "report:"))
		publish(t, task, c, "by another argument", Unique(""))
		publish(t, NewTask[string]("other", TaskConfig{}), c, "by its argument", Unique(""))

		publish(t, task, c, "x", UniqueFor(50*time.Millisecond, "for a time"))
		_, err = task.Publish(t.Context(), c, "x", UniqueFor(50*time.Millisecond, "for a time"))
		require.ErrorIs(t, err, ErrDuplicate)
		require.Eventually(t, func() bool {
			_, err := task.Publish(t.Context(), c, "x", UniqueFor(time.Hour, "for a time"))
			return err == nil
		}, 20*time.Second, 5*time.Millisecond)
		require.Equal(t, QueueInfo{Ready: 7}, queueInfo(t, c, "default"))
		require.Equal(t, uint64(7), c.Stats().Published)

		e, err := decodeEnvelope([]byte(c.conn.XRange(t.Context(), newPartition("redisha", "default", 0, 1).streams[2], "-", "+").Val()[0].Values[field].(string)))
		require.NoError(t, err)
		require.Equal(t, "report:7", e.unique, "so that whoever ends it frees the key")
	})
}

// Invariant 12, as far as publishing goes.
func TestUniquenessHoldsUnderConcurrency(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		clients := []*Client{c}
		for range 3 {
			other, _ := newTestClient(t, c.conn.Unwrap(), Config{Partitions: 5})
			clients = append(clients, other)
		}
		task := NewTask[int]("unique", TaskConfig{Queue: "spread"})
		publish(t, task, clients[1], 0) // five partitions
		const keys = 20
		var won, lost atomic.Int64
		var all sync.WaitGroup
		for _, client := range clients {
			for range 8 {
				all.Go(func() {
					for k := range keys {
						_, err := task.Publish(context.Background(), client, k, Unique(fmt.Sprint("key:", k)))
						switch {
						case err == nil:
							won.Add(1)
						case errors.Is(err, ErrDuplicate):
							lost.Add(1)
						default:
							t.Error(err)
						}
					}
				})
			}
		}
		all.Wait()
		require.EqualValues(t, keys, won.Load())
		require.EqualValues(t, (4*8-1)*keys, lost.Load())
		require.Equal(t, QueueInfo{Ready: keys + 1}, queueInfo(t, c, "spread"))
	})
}

func TestAQueueTakesNoMoreThanItsLimit(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("bounded", TaskConfig{QueueLimit: 10})
		var full atomic.Int64
		var all sync.WaitGroup
		for i := range 50 {
			all.Go(func() {
				if _, err := task.Publish(context.Background(), c, i); err != nil {
					require.ErrorIs(t, err, ErrQueueFull)
					full.Add(1)
				}
			})
		}
		all.Wait()
		require.EqualValues(t, 40, full.Load())
		require.Equal(t, QueueInfo{Ready: 10}, queueInfo(t, c, "default"))
		_, err := task.Publish(t.Context(), c, 1, After(time.Hour))
		require.EqualError(t, err, `broker: publish "bounded": the queue is full`)
		publish(t, NewTask[int]("unbounded", TaskConfig{}), c, 1)
	})
}

func TestTasksOfAKeyMeetInOnePartition(t *testing.T) {
	each(t, func(t *testing.T, other *Client, _ *logs) {
		c, _ := newTestClient(t, other.conn.Unwrap(), Config{Partitions: 7})
		task := NewTask[int]("keyed", TaskConfig{})
		for i := range 30 {
			publish(t, task, c, i, Key(fmt.Sprint("user:", i%3), 2), Unique(fmt.Sprint("job:", i)))
		}
		for i := range 3 {
			key := fmt.Sprint("user:", i)
			p := newPartition("redisha", "default", jumpHash(hashID(key), 7), 7)
			require.Equal(t, int64(2), c.conn.SCard(t.Context(), p.slots(key)).Val())
			require.Equal(t, int64(8), c.conn.LLen(t.Context(), p.parked(key)).Val())
			e, err := decodeEnvelope([]byte(c.conn.LIndex(t.Context(), p.parked(key), 0).Val()))
			require.NoError(t, err)
			require.Equal(t, []any{uint64(2), key}, []any{e.concurrency, e.key})
			at, ok := generatedPartition(e.id)
			require.True(t, ok)
			require.Equal(t, p.index, at, "its ID tells where it is")
		}
	})
}

func TestHeadersComeFromTheContext(t *testing.T) {
	s := testserver.New(t)
	type key struct{}
	c, _ := newTestClient(t, s.Client(t), Config{Headers: func(ctx context.Context) map[string]string {
		id, _ := ctx.Value(key{}).(string)
		if id == "" {
			return nil
		}
		return map[string]string{"traceparent": id, "tenant": "a"}
	}})
	task := NewTask[int]("traced", TaskConfig{})
	const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	ctx := context.WithValue(t.Context(), key{}, traceparent)
	_, err := task.Publish(ctx, c, 1)
	require.NoError(t, err)
	_, err = task.Publish(ctx, c, 1, Header("tenant", "b"), ExpireAfter(time.Minute))
	require.NoError(t, err)
	publish(t, task, c, 1)
	stream := newPartition("redisha", "default", 0, 1).streams[2]
	want := [][]header{{{"tenant", "a"}, {"traceparent", traceparent}}, {{"traceparent", traceparent}, {"tenant", "b"}}, nil}
	for i, m := range s.Client(t).XRange(t.Context(), stream, "-", "+").Val() {
		e, err := decodeEnvelope([]byte(m.Values[field].(string)))
		require.NoError(t, err)
		require.Equal(t, want[i], e.headers)
		require.Equal(t, map[bool]uint64{true: 60_000}[i == 1], e.ttl)
	}
	_, err = task.Publish(context.WithValue(t.Context(), key{}, strings.Repeat("x", maxHeaderBytes)), c, 1)
	require.ErrorContains(t, err, "the headers have")
}

func TestWrongConditionsAreRefused(t *testing.T) {
	s := testserver.New(t)
	c, _ := newTestClient(t, s.Client(t), Config{})
	task := NewTask[int]("a", TaskConfig{})
	for want, opt := range map[string]PublishOption{
		`the key of Unique is "a\n", want 1 to 255 bytes without control characters`: Unique("a\n"),
		`UniqueFor is 1µs, want at least 1ms`:                                        UniqueFor(time.Microsecond, "a"),
		`the key of Key is "", want 1 to 255 bytes`:                                  Key("", 1),
		`the limit of Key("a") is 0, want 1 to 65535`:                                Key("a", 0),
		`ExpireAfter is 0s, want at least 1ms`:                                       ExpireAfter(0),
		`After is 1m0s and ExpireAfter 1m0s: the task would expire before it is due`: func(o *publishOptions) { After(time.Minute)(o); ExpireAfter(time.Minute)(o) },
	} {
		_, err := task.Publish(t.Context(), c, 1, opt)
		require.ErrorContains(t, err, want)
	}
	_, err := NewTask[int]("a", TaskConfig{QueueLimit: -1}).Publish(t.Context(), c, 1)
	require.ErrorContains(t, err, "TaskConfig.QueueLimit is -1, want at least 1, or 0 for none")
	require.Empty(t, s.Keys())
}

// A busy key does not shut the queue to others: of those that wait for a key, only
// those of the same one count.
func TestTheLimitOfAQueueCountsTheParkedTasksOfOneKey(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("bounded", TaskConfig{QueueLimit: 10})
		fill := func(key string) (n int) {
			for {
				switch _, err := task.Publish(t.Context(), c, n, Key(key, 1)); {
				case errors.Is(err, ErrQueueFull):
					return n
				default:
					require.NoError(t, err)
					n++
				}
			}
		}
		require.Equal(t, 10, fill("a"))
		require.Equal(t, 9, fill("b"), "one of a is ready")
		require.Equal(t, 8, fill("c"))
		publish(t, task, c, 0) // three are ready
		require.Equal(t, QueueInfo{Ready: 4, Parked: 24}, queueInfo(t, c, "default"))
		require.Equal(t, 6, len(fillWith(t, c, task)))
	})
}

// fillWith publishes without a key until the queue is full.
func fillWith(t *testing.T, c *Client, task *Task[int]) (ids []string) {
	for {
		id, err := task.Publish(t.Context(), c, 0)
		if errors.Is(err, ErrQueueFull) {
			return ids
		}
		require.NoError(t, err)
		ids = append(ids, id)
	}
}

// What is published at the same time travels in one batch, with an ID several times.
func TestAnIDTwiceInABatchIsOneTask(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("a", TaskConfig{})
		publish(t, task, c, 0, ID("first"))
		const callers = 64
		var all sync.WaitGroup
		for k := range callers {
			all.Go(func() {
				id, err := task.Publish(context.Background(), c, k, ID(fmt.Sprint("id:", k%4)))
				require.NoError(t, err)
				require.Equal(t, fmt.Sprint("id:", k%4), id)
			})
		}
		all.Wait()
		require.Less(t, c.Stats().Batches, uint64(callers), "several in a batch")
		require.Equal(t, QueueInfo{Ready: 5}, queueInfo(t, c, "default"))
		require.EqualValues(t, callers-4, c.Stats().Duplicates)
	})
	// The second is judged by itself, also if the first was not added.
	eachScripts(t, func(t *testing.T, s scripts) {
		keys := []string{s.p.idMark("a"), s.p.unique("u"), s.p.idMark("a"), s.p.idMark("a")}
		require.NoError(t, s.rdb.Set(t.Context(), s.p.unique("u"), "other", 0).Err())
		tasks := slices.Concat(s.task("1", ";1000;+1000;0;0;", s.envelope("a")), s.task("1", ";1000;0;0;0;", s.envelope("a")), s.task("1", ";1000;0;0;0;", s.envelope("a")))
		reply, err := s.publishTasks("lane", "1", keys, tasks)
		require.NoError(t, err)
		require.Equal(t, []any{"1", "u01\nother", "0"}, reply)
		require.Equal(t, int64(1), s.rdb.XLen(t.Context(), s.p.streams[2]).Val())
	})
}
