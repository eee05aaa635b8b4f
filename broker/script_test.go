package broker

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

// A scripts runs the scripts of one partition, for tests.
type scripts struct {
	t interface {
		require.TestingT
		Helper()
	}
	rdb redis.UniversalClient
	p   *partition
}

func eachScripts(t *testing.T, test func(t *testing.T, s scripts)) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		test(t, scripts{t, rdb, newPartition("redisha", "mail", 0, 1)})
	})
}

func (s scripts) run(script *redis.Script, keys []string, args ...any) any {
	s.t.Helper()
	reply, err := script.Run(context.Background(), s.rdb, keys, args...).Result()
	require.NoError(s.t, err)
	return reply
}

// publish adds tasks: priority and envelope each, or "x", priority, ID, due, TTL of
// the mark, envelope. It returns {sequence, verdicts, before}.
func (s scripts) publish(lane string, seq int, marks []string, args ...any) any {
	s.t.Helper()
	reply, err := s.tryPublish(lane, strconv.Itoa(seq), marks, args...)
	require.NoError(s.t, err)
	return reply
}

func (s scripts) tryPublish(lane, seq string, marks []string, args ...any) (any, error) {
	var tasks []any
	for len(args) > 0 {
		priority, conditions := args[0], ""
		if priority == "x" {
			priority, conditions = args[1], fmt.Sprintf("%v;%v;0;0;0;", args[3], args[4])
			args = args[4:]
		}
		tasks = append(tasks, s.task(priority.(string), conditions, args[1].([]byte))...)
		args = args[2:]
	}
	return s.publishTasks(lane, seq, marks, tasks)
}

// task returns the arguments of a task of publish.lua.
func (s scripts) task(priority, conditions string, envelope []byte) (args []any) {
	envelope = slices.Clone(envelope)
	envelope[offPriority] = priority[0] - '0'
	if conditions != "" {
		args = append(args, conditions)
	}
	return append(args, envelope)
}

func (s scripts) publishTasks(lane, seq string, keys []string, tasks []any) (any, error) {
	all := slices.Concat(s.p.publishKeys(), s.p.conditionKeys(), keys)
	reply, err := publishScript.Run(context.Background(), s.rdb, all, append([]any{lane, seq, ""}, tasks...)...).Text()
	if err != nil {
		return nil, err
	}
	parts := strings.SplitN(reply, ":", 3)
	require.Len(s.t, parts, 3)
	return []any{parts[1], parts[2], parts[0]}, nil
}

// envelope is a task of the default priority.
func (s scripts) envelope(id string) []byte {
	return appendEnvelope(nil, &envelope{priority: 1, attempt: 1, maxAttempts: 3, id: id, task: "t", payload: []byte("p")})
}

func (s scripts) join(consumer string) {
	s.t.Helper()
	s.run(joinScript, s.p.consumerKeys(consumer), 60_000)
}

// fetch returns stream and entry ID of what it read, and the IDs of the tasks.
func (s scripts) fetch(consumer string, n int) (entries []entry, ids []string) {
	s.t.Helper()
	reply := s.turn(consumer, n)
	require.Equal(s.t, "", reply[0])
	for _, d := range s.fetched(reply) {
		e, err := decodeEnvelope(d.raw)
		require.NoError(s.t, err)
		entries, ids = append(entries, d.entry), append(ids, e.id)
	}
	return entries, ids
}

// turn runs fetch.lua; behind n may come what ends reads.
func (s scripts) turn(consumer string, n int, done ...any) []any {
	s.t.Helper()
	if done == nil {
		done = []any{0, 0, 0, 0}
	}
	return s.run(fetchScript, s.p.fetchKeys(consumer), append([]any{consumer, n, fetchStep}, done...)...).([]any)
}

func (s scripts) fetched(reply []any) []delivered {
	s.t.Helper()
	require.Len(s.t, reply, fetchValues)
	found, err := parseFetched(reply[2+streams])
	require.NoError(s.t, err)
	return found
}

// counts are those of ready, running, delayed and dead tasks.
func (s scripts) counts() []any {
	s.t.Helper()
	return s.run(countScript, s.p.countKeys(), s.p.prefix).([]any)[:4]
}

func (s scripts) counter(field string) string {
	v, _ := s.rdb.HGet(context.Background(), s.p.counters, field).Result()
	return v
}

func (s scripts) move(consumer, onlyDead string, args ...any) []any {
	s.t.Helper()
	all := []any{consumer, onlyDead}
	for len(args) > 0 { // of tasks without keys of their own
		all, args = append(append(all, args[:7]...), "", ""), args[7:]
	}
	return s.run(moveScript, s.p.moveKeys(consumer), all...).([]any)
}

func (s scripts) maintain(who string, limit int) []any {
	s.t.Helper()
	return s.run(maintainScript, s.p.maintainKeys(), who, 3000, limit).([]any)
}

func TestPublishScriptAppliesASequenceNumberOnce(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		require.Equal(t, []any{"1", "", "0"}, s.publish("lane", 1, nil, "1", s.envelope("a"), "0", s.envelope("b")))
		require.Equal(t, "1:1:", s.rdb.HGet(ctx, s.p.lanes, "lane").Val(), "the stored form")

		require.Equal(t, []any{"1", "", "1"}, s.publish("lane", 1, nil, "1", s.envelope("a"), "0", s.envelope("b")), "sent again")
		require.Equal(t, int64(1), s.rdb.XLen(ctx, s.p.streams[1]).Val())
		require.Equal(t, int64(1), s.rdb.XLen(ctx, s.p.streams[2]).Val())
		require.Equal(t, "2", s.counter(countPublished))

		require.Equal(t, []any{"7", "", "1"}, s.publish("lane", 7, nil, "2", s.envelope("c")), "a gap is told by the number before")
		require.Equal(t, []any{"7", "", "7"}, s.publish("lane", 6, nil, "2", s.envelope("late")), "a late retransmission lowers nothing")
		require.Equal(t, "1:7:", s.rdb.HGet(ctx, s.p.lanes, "lane").Val())
		require.Equal(t, []any{"1", "", "0"}, s.publish("other", 1, nil, "1", s.envelope("d")))
		require.Equal(t, []any{int64(4), int64(0), int64(0), int64(0)}, s.counts())
		require.Equal(t, int64(2), s.rdb.ZCard(ctx, s.p.lanesSeen).Val())
	})
}

func TestPublishScriptNumbersBeyond53BitsOfDigitsKeepThem(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		_, err := s.tryPublish("lane", "1234567890123456", nil, "1", s.envelope("a"))
		require.NoError(t, err)
		require.Equal(t, "1:1234567890123456:", s.rdb.HGet(t.Context(), s.p.lanes, "lane").Val())
		reply, err := s.tryPublish("lane", "1234567890123456", nil, "1", s.envelope("a"))
		require.NoError(t, err)
		require.Equal(t, []any{"1234567890123456", "", "1234567890123456"}, reply)
		require.Equal(t, int64(1), s.rdb.XLen(t.Context(), s.p.streams[2]).Val())
	})
}

func TestPublishScriptStampsTheServersTime(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		before := s.rdb.Time(t.Context()).Val().Add(-time.Millisecond)
		s.publish("lane", 1, nil, "1", s.envelope("a"), "x", "1", "b", "+60000", 0, s.envelope("b"))
		after := s.rdb.Time(t.Context()).Val()
		stored := s.rdb.HGet(t.Context(), s.p.envelopes, "b").Val()
		s.join("c")
		for _, raw := range []string{stored, string(s.fetched(s.turn("c", 1))[0].raw)} {
			e, err := decodeEnvelope([]byte(raw))
			require.NoError(t, err)
			at := time.UnixMilli(e.enqueued)
			require.False(t, at.Before(before), at)
			require.False(t, at.After(after), at)
			require.Equal(t, "p", string(e.payload))
		}
	})
}

func TestPublishScriptKeepsASecondTaskOfAnIDOut(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		mark := func(id string) string { return s.p.idMark(id) }
		x := func(id, due string) []any { return []any{"x", "1", id, due, 1000, s.envelope(id)} }
		args := slices.Concat(x("a", ""), []any{"1", s.envelope("plain")}, x("a", ""), x("b", ""))
		require.Equal(t, []any{"1", "001", "0"}, s.publish("lane", 1, []string{mark("a"), mark("a"), mark("b")}, args...))
		require.Equal(t, "1:1:001", s.rdb.HGet(ctx, s.p.lanes, "lane").Val(), "the stored form, without trailing zeros")
		require.Equal(t, []any{"1", "001", "1"}, s.publish("lane", 1, []string{mark("a"), mark("a"), mark("b")}, args...))
		require.Equal(t, []any{"1", "1", "0"}, s.publish("lane2", 1, []string{mark("b")}, x("b", "")...))
		require.Equal(t, "3", s.counter(countPublished))

		ttl := s.rdb.PTTL(ctx, mark("a")).Val()
		require.Greater(t, ttl, time.Duration(0))
		require.LessOrEqual(t, ttl, time.Second)
		require.Equal(t, "1", s.rdb.Get(ctx, mark("a")).Val())

		// A delayed task keeps its mark until it is due and so long again, and is
		// found by its ID should the mark be gone.
		require.Equal(t, []any{"2", "", "1"}, s.publish("lane", 2, []string{mark("d")}, x("d", "+60000")...))
		require.Greater(t, s.rdb.PTTL(ctx, mark("d")).Val(), time.Minute)
		require.NoError(t, s.rdb.Del(ctx, mark("d")).Err())
		require.Equal(t, []any{"3", "1", "2"}, s.publish("lane", 3, []string{mark("d")}, x("d", "")...))
		require.Equal(t, []any{int64(3), int64(0), int64(1), int64(0)}, s.counts())
	})
}

func TestPublishScriptDelays(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		now := s.rdb.Time(ctx).Val().UnixMilli()
		past, future := strconv.FormatInt(now-5, 10), strconv.FormatInt(now+60_000, 10)
		require.Equal(t, []any{"1", "", "0"}, s.publish("lane", 1, nil,
			"x", "0", "past", past, 0, s.envelope("past"), "x", "1", "at", future, 0, s.envelope("at"), "x", "1", "after", "+30000", 0, s.envelope("after"), "x", "2", "now", "", 0, s.envelope("now")))
		require.Equal(t, []any{int64(2), int64(0), int64(2), int64(0)}, s.counts())
		require.Equal(t, int64(1), s.rdb.XLen(ctx, s.p.streams[1]).Val())
		require.Equal(t, int64(1), s.rdb.XLen(ctx, s.p.streams[3]).Val())
		require.InDelta(t, now+60_000, s.rdb.ZScore(ctx, s.p.delayed, "at").Val(), 0)
		require.InDelta(t, now+30_000, s.rdb.ZScore(ctx, s.p.delayed, "after").Val(), 2000)
		require.GreaterOrEqual(t, s.rdb.ZScore(ctx, s.p.delayed, "after").Val(), float64(now+30_000))
	})
}

func TestPublishScriptAddsNothingWhereAKeyIsOfAnotherType(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		require.NoError(t, s.rdb.Set(ctx, s.p.streams[2], "mine", 0).Err())
		require.NoError(t, s.rdb.Set(ctx, s.p.envelopes, "mine", 0).Err())
		mark := s.p.idMark("m")
		require.Equal(t, []any{"1", "w0ww", "0"}, s.publish("lane", 1, []string{mark},
			"1", s.envelope("a"), "0", s.envelope("b"), "x", "0", "d", "+5000", 0, s.envelope("d"), "x", "1", "m", "", 1000, s.envelope("m")))
		require.Zero(t, s.rdb.Exists(ctx, mark, s.p.delayed).Val(), "nothing half-written")
		require.Equal(t, int64(1), s.rdb.XLen(ctx, s.p.streams[1]).Val())
		require.Equal(t, "1", s.counter(countPublished))

		require.NoError(t, s.rdb.Del(ctx, s.p.lanesSeen).Err())
		require.NoError(t, s.rdb.Set(ctx, s.p.lanesSeen, "mine", 0).Err())
		_, err := s.tryPublish("other", "2", nil, "0", s.envelope("e"))
		require.ErrorContains(t, err, "WRONGTYPE redisha:queue:{mail:0.")
		require.Equal(t, int64(1), s.rdb.XLen(ctx, s.p.streams[1]).Val())

		require.NoError(t, s.rdb.HSet(ctx, s.p.lanes, "future", "2:whatever").Err())
		_, err = s.tryPublish("future", "2", nil, "0", s.envelope("e"))
		require.ErrorContains(t, err, "the record of lane future is of another version")
	})
}

func TestJoinScriptCreatesHeartbeatAndGroupsAtTheBeginning(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		s.publish("lane", 1, nil, "1", s.envelope("early"))
		require.Equal(t, []any{}, s.run(joinScript, s.p.consumerKeys("c"), 5000))
		require.LessOrEqual(t, s.rdb.PTTL(ctx, s.p.heartbeat("c")).Val(), 5*time.Second)
		_, ids := s.fetch("c", 10)
		require.Equal(t, []string{"early"}, ids, "what was there before the group is read")
		require.Equal(t, []any{}, s.run(joinScript, s.p.consumerKeys("c"), 5000), "once more")

		require.Equal(t, []any{}, s.run(joinScript, s.p.consumerKeys("other"), 0))
		require.Zero(t, s.rdb.Exists(ctx, s.p.heartbeat("other")).Val(), "groups only")

		require.NoError(t, s.rdb.Set(ctx, s.p.streams[1], "mine", 0).Err())
		errs := s.run(joinScript, s.p.consumerKeys("c"), 5000).([]any)
		require.Len(t, errs, 1)
		require.Contains(t, errs[0], s.p.streams[1]+": WRONGTYPE")
	})
}

func TestFetchScriptReadsByPriorityWithinItsLimit(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		require.Equal(t, "gone", s.turn("c", 5)[0], "no heartbeat")
		s.join("c")
		_, ids := s.fetch("c", 5)
		require.Empty(t, ids)
		s.publish("lane", 1, nil, "2", s.envelope("low"), "1", s.envelope("a"), "1", s.envelope("b"), "0", s.envelope("high"))
		require.NoError(t, s.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: s.p.streams[0], Values: []any{"e", s.envelope("released")}}).Err())
		entries, ids := s.fetch("c", 3)
		require.Equal(t, []string{"released", "high", "a"}, ids)
		require.Equal(t, []int{0, 1, 2}, []int{entries[0].stream, entries[1].stream, entries[2].stream})
		_, ids = s.fetch("c", 3)
		require.Equal(t, []string{"b", "low"}, ids)
		require.Equal(t, []any{int64(0), int64(5), int64(0), int64(0)}, s.counts())
	})
}

func TestFetchScriptReadsOnBehindAStreamThatFails(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		s.join("c")
		s.publish("lane", 1, nil, "2", s.envelope("low"))
		require.NoError(t, s.rdb.Del(ctx, s.p.streams[2]).Err())
		reply := s.turn("c", 3)
		require.True(t, lacksGroup(reply[0].(string)), reply[0])
		require.Len(t, s.fetched(reply), 1)
		require.NoError(t, s.rdb.Set(ctx, s.p.streams[2], "mine", 0).Err())
		reply = s.turn("c", 3)
		require.Contains(t, reply[0], "WRONGTYPE")
		require.False(t, lacksGroup(reply[0].(string)))
		require.Empty(t, s.fetched(reply))
	})
}

func TestFetchScriptTakesAnEntryWithoutItsFieldForAnEmptyOne(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		s.join("c")
		id := s.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: s.p.streams[2], Values: []any{"x", ""}}).Val()
		require.Equal(t, []delivered{{entry: entry{2, id}, raw: []byte{}}}, s.fetched(s.turn("c", 3)))
	})
}

func TestAckScriptCountsWhatWasPending(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		s.join("c")
		var args []any
		for range 300 {
			args = append(args, "1", s.envelope("x"))
		}
		s.publish("lane", 1, nil, append(args, "0", s.envelope("high"))...)
		entries, _ := s.fetch("c", 301)
		ids := []any{0, 1, 256, 0, entries[0].id}
		for _, e := range entries[1:257] {
			ids = append(ids, e.id)
		}
		require.Equal(t, []any{int64(0), int64(1), int64(256), int64(0)}, s.run(ackScript, s.p.ackKeys(), ids...))
		require.Equal(t, []any{int64(0), int64(0), int64(0), int64(0)}, s.run(ackScript, s.p.ackKeys(), ids...), "once more")
		require.Equal(t, []any{int64(0), int64(44), int64(0), int64(0)}, s.counts())
		require.Equal(t, "257", s.counter(countAcked))

		require.NoError(t, s.rdb.Set(ctx, s.p.streams[1], "mine", 0).Err())
		reply := s.run(ackScript, s.p.ackKeys(), 0, 1, 1, 0, entries[0].id, entries[257].id).([]any)
		require.Contains(t, reply[1], "WRONGTYPE")
		require.Equal(t, int64(1), reply[2])

		require.NoError(t, s.rdb.Del(ctx, s.p.counters).Err())
		require.NoError(t, s.rdb.Set(ctx, s.p.counters, "mine", 0).Err())
		require.Equal(t, int64(1), s.run(ackScript, s.p.ackKeys(), 0, 0, 1, 0, entries[258].id).([]any)[2], "counters never hinder")
	})
}

func TestMoveScriptMovesWhatIsTheConsumersOwn(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		s.join("c")
		s.publish("lane", 1, nil, "1", s.envelope("a"), "1", s.envelope("b"), "1", s.envelope("c"), "1", s.envelope("d"))
		e, _ := s.fetch("c", 4)
		args := []any{
			3, e[0].id, "z", countRetried, "a", 60_000, "retry",
			3, e[1].id, "d", countDead, "b", 0, "dead",
			3, e[2].id, "r", countReleased, "c", 0, "released",
			3, e[3].id, "x", countAcked, "d", 0, "",
		}
		require.Equal(t, []any{int64(0), int64(0), int64(0), int64(0)}, s.move("zombie", "0", args...), "another consumer's")
		require.Equal(t, []any{int64(0), int64(4), int64(0), int64(0)}, s.counts())
		now := s.rdb.Time(ctx).Val().UnixMilli()
		require.Equal(t, []any{int64(1), int64(1), int64(1), int64(1)}, s.move("c", "0", args...))
		require.Equal(t, []any{int64(1), int64(0), int64(1), int64(1)}, s.counts())
		require.Equal(t, []any{int64(0), int64(0), int64(0), int64(0)}, s.move("c", "0", args...), "once more")
		require.Equal(t, []any{int64(1), int64(0), int64(1), int64(1)}, s.counts())
		require.Equal(t, "retry", s.rdb.HGet(ctx, s.p.envelopes, "a").Val())
		require.InDelta(t, now+60_000, s.rdb.ZScore(ctx, s.p.delayed, "a").Val(), 2000)
		require.Equal(t, "dead", s.rdb.HGet(ctx, s.p.deadTasks, "b").Val())
		require.InDelta(t, now, s.rdb.ZScore(ctx, s.p.dead, "b").Val(), 2000)
		require.Equal(t, "released", s.rdb.XRange(ctx, s.p.streams[0], "-", "+").Val()[0].Values["e"])
		for _, field := range []string{countRetried, countDead, countReleased, countAcked} {
			require.Equal(t, "1", s.counter(field), field)
		}
	})
}

func TestMoveScriptKeepsTasksOfTheSameIDApart(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		s.join("c")
		s.publish("lane", 1, nil, "1", s.envelope("a"), "1", s.envelope("a"), "1", s.envelope("a"), "1", s.envelope("a"))
		e, _ := s.fetch("c", 4)
		require.Equal(t, []any{int64(1), int64(1), int64(1), int64(1)}, s.move("c", "0",
			3, e[0].id, "z", countRetried, "a", 0, s.envelope("a"), 3, e[1].id, "z", countRetried, "a", 0, s.envelope("a"),
			3, e[2].id, "d", countDead, "a", 0, "dead1", 3, e[3].id, "d", countDead, "a", 0, "dead2"))
		require.Equal(t, []any{int64(0), int64(0), int64(2), int64(2)}, s.counts())
		require.Equal(t, map[string]string{"a": "dead1", "a#" + e[3].id: "dead2"}, s.rdb.HGetAll(ctx, s.p.deadTasks).Val())
		time.Sleep(2 * time.Millisecond)
		require.Equal(t, int64(2), s.maintain("me", 500)[2])
		require.Equal(t, []any{int64(2), int64(0), int64(0), int64(2)}, s.counts())
		require.Zero(t, s.rdb.HLen(ctx, s.p.envelopes).Val())
	})
}

func TestMoveScriptLeavesTasksOfAConsumerThatIsAlive(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		s.join("c")
		s.publish("lane", 1, nil, "1", s.envelope("a"))
		e, _ := s.fetch("c", 1)
		reap := []any{3, e[0].id, "r", countReaped, "a", 0, "reaped"}
		require.Equal(t, []any{int64(0)}, s.move("c", "1", reap...))
		require.NoError(t, s.rdb.Del(t.Context(), s.p.heartbeat("c")).Err())
		require.Equal(t, []any{int64(1)}, s.move("c", "1", reap...))
	})
}

func TestMoveScriptKeepsATaskThatCannotGoWhereItShould(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		s.join("c")
		s.publish("lane", 1, nil, "1", s.envelope("a"), "1", s.envelope("b"))
		e, _ := s.fetch("c", 2)
		require.NoError(t, s.rdb.Set(ctx, s.p.deadTasks, "mine", 0).Err())
		require.NoError(t, s.rdb.Set(ctx, s.p.streams[1], "mine", 0).Err())
		reply := s.move("c", "0",
			3, e[0].id, "d", countDead, "a", 0, "dead",
			2, "1-1", "r", countReleased, "x", 0, "x",
			3, e[1].id, "z", countRetried, "b", 5000, "retry")
		require.Contains(t, reply[0], "WRONGTYPE")
		require.Contains(t, reply[1], "WRONGTYPE")
		require.Equal(t, int64(1), reply[2], "the others go")
		require.Equal(t, int64(1), s.rdb.XPending(ctx, s.p.streams[2], group).Val().Count)
		require.Zero(t, s.rdb.Exists(ctx, s.p.dead).Val())
		require.Equal(t, []any{int64(0)}, s.move("c", "0", 1, "1-1", "r", countReleased, "x", 0, "x"))

		require.NoError(t, s.rdb.XGroupDestroy(ctx, s.p.streams[2], group).Err())
		require.Equal(t, []any{int64(0)}, s.move("c", "0", 3, e[0].id, "r", countReleased, "a", 0, "x"), "no group: not its own")
	})
}

func TestMaintainScriptElectsOneAndMovesWhatIsDue(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		now := s.rdb.Time(ctx).Val().UnixMilli()
		high := appendEnvelope(nil, &envelope{priority: 0, attempt: 1, maxAttempts: 3, id: "high", task: "t"})
		for id, due := range map[string]int64{"high": now - 2, "second": now - 1, "later": now + 60_000} {
			value := s.envelope(id)
			if id == "high" {
				value = high
			}
			require.NoError(t, s.rdb.HSet(ctx, s.p.envelopes, id, value).Err())
			require.NoError(t, s.rdb.ZAdd(ctx, s.p.delayed, redis.Z{Score: float64(due), Member: id}).Err())
		}
		reply := s.maintain("me", 1)
		require.Equal(t, []any{int64(1), reply[1], int64(1), strconv.FormatInt(now-1, 10), ""}, reply, "one at a time")
		server, err := strconv.ParseInt(reply[1].(string), 10, 64)
		require.NoError(t, err)
		require.InDelta(t, now, server, 2000)
		require.Equal(t, int64(1), s.rdb.XLen(ctx, s.p.streams[1]).Val())

		other := s.maintain("other", 500)
		require.Equal(t, []any{int64(0), other[1], int64(0), other[3], ""}, other)
		end, err := strconv.ParseInt(other[3].(string), 10, 64)
		require.NoError(t, err)
		require.InDelta(t, now+3000, end, 2000)
		require.Equal(t, int64(2), s.rdb.ZCard(ctx, s.p.delayed).Val(), "only the elected one moves")

		reply = s.maintain("me", 500)
		require.Equal(t, []any{int64(1), reply[1], int64(1), strconv.FormatInt(now+60_000, 10), ""}, reply)
		require.Equal(t, int64(1), s.rdb.XLen(ctx, s.p.streams[2]).Val())
		require.Equal(t, "2", s.counter(countDue))
		require.Equal(t, int64(1), s.rdb.HLen(ctx, s.p.envelopes).Val())

		require.NoError(t, s.rdb.Del(ctx, s.p.delayed).Err())
		reply = s.maintain("me", 500)
		require.Equal(t, []any{int64(1), reply[1], int64(0), "0", ""}, reply, "none is delayed")
	})
}

func TestMaintainScriptKeepsWhatItCannotMove(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		s.publish("lane", 1, nil, "x", "1", "a", "+1", 0, s.envelope("a"))
		time.Sleep(5 * time.Millisecond)
		require.NoError(t, s.rdb.Set(ctx, s.p.streams[2], "mine", 0).Err())
		reply := s.maintain("me", 500)
		require.Equal(t, int64(0), reply[2])
		require.Contains(t, reply[4], s.p.streams[2]+": WRONGTYPE")
		require.Equal(t, int64(1), s.rdb.ZCard(ctx, s.p.delayed).Val())
		require.Equal(t, int64(1), s.rdb.HLen(ctx, s.p.envelopes).Val())

		require.NoError(t, s.rdb.HDel(ctx, s.p.envelopes, "a").Err())
		require.Equal(t, s.p.envelopes+" lacks the task a", s.maintain("me", 500)[4])
		require.Equal(t, "", s.maintain("me", 500)[4], "told once")

		require.NoError(t, s.rdb.ZAdd(ctx, s.p.delayed, redis.Z{Member: "b"}).Err())
		require.NoError(t, s.rdb.Set(ctx, s.p.envelopes, "mine", 0).Err())
		reply = s.maintain("me", 500)
		require.Equal(t, int64(1), reply[0])
		require.Contains(t, reply[4], s.p.envelopes+": WRONGTYPE")
		require.NoError(t, s.rdb.Set(ctx, s.p.delayed, "mine", 0).Err())
		require.Contains(t, s.maintain("me", 500)[4], s.p.delayed+": WRONGTYPE")
	})
}

func TestLeaveScriptRemovesAConsumerThatHoldsNothing(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		consumers := func() (names []string) {
			for _, c := range s.rdb.XInfoConsumers(ctx, s.p.streams[2], group).Val() {
				names = append(names, c.Name)
			}
			return names
		}
		s.join("c")
		s.publish("lane", 1, nil, "1", s.envelope("a"))
		e, _ := s.fetch("c", 1)
		s.maintain("me", 1)
		require.Equal(t, int64(-1), s.run(leaveScript, s.p.leaveKeys("c"), "c", "", 1), "alive")
		require.Equal(t, int64(1), s.run(leaveScript, s.p.leaveKeys("c"), "c", "another", 0), "something is pending")
		require.Equal(t, []string{"c"}, consumers(), "a consumer with pending tasks stays")
		require.Zero(t, s.rdb.Exists(ctx, s.p.heartbeat("c")).Val())
		require.Equal(t, "me", s.rdb.Get(ctx, s.p.maintainer).Val())

		s.run(ackScript, s.p.ackKeys(), 0, 0, 1, 0, e[0].id)
		require.Equal(t, int64(0), s.run(leaveScript, s.p.leaveKeys("c"), "c", "me", 1))
		require.Empty(t, consumers())
		require.Zero(t, s.rdb.Exists(ctx, s.p.maintainer).Val(), "the term is over")
		require.Equal(t, int64(0), s.run(leaveScript, newPartition("redisha", "none", 0, 1).leaveKeys("c"), "c", "", 0), "no such queue")
	})
}

func TestLanesScriptForgetsOldLanesOnly(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		now := float64(s.rdb.Time(ctx).Val().UnixMilli())
		for i, age := range []float64{5000, 4000, 3000, 0} {
			name := fmt.Sprint("lane", i)
			require.NoError(t, s.rdb.HSet(ctx, s.p.lanes, name, "1:1:").Err())
			require.NoError(t, s.rdb.ZAdd(ctx, s.p.lanesSeen, redis.Z{Score: now - age, Member: name}).Err())
		}
		forget := func(limit int) any { return s.run(lanesScript, []string{s.p.lanes, s.p.lanesSeen}, 2000, limit) }
		require.Equal(t, int64(2), forget(2))
		require.Equal(t, int64(1), forget(2))
		require.Equal(t, int64(0), forget(2))
		require.Equal(t, map[string]string{"lane3": "1:1:"}, s.rdb.HGetAll(ctx, s.p.lanes).Val())
		require.Equal(t, int64(1), s.rdb.ZCard(ctx, s.p.lanesSeen).Val())
	})
}

// At maxmemory nothing is published, and all else goes on.
func TestScriptsAtMaxmemory(t *testing.T) {
	server := redistest.New(t, redistest.Config{Lines: []string{"maxmemory-policy noeviction"}})
	s := scripts{t, server.Client(t), newPartition("redisha", "mail", 0, 1)}
	ctx := t.Context()
	s.join("c")
	s.publish("lane", 1, nil, "1", s.envelope("done"), "1", s.envelope("retried"), "1", s.envelope("released"), "1", s.envelope("dead"),
		"x", "1", "due", "+1", 0, s.envelope("due"))
	time.Sleep(5 * time.Millisecond)
	require.NoError(t, s.rdb.ConfigSet(ctx, "maxmemory", "1").Err())

	_, err := s.tryPublish("lane", "2", nil, "1", s.envelope("new"))
	require.True(t, redis.IsOOMError(err), err)
	_, err = s.tryPublish("lane", "2", []string{s.p.idMark("m")}, "x", "1", "m", "", 1000, s.envelope("m"))
	require.True(t, redis.IsOOMError(err), err)
	require.Zero(t, s.rdb.Exists(ctx, s.p.idMark("m")).Val(), "nothing half-written")
	require.Equal(t, []any{"1", "", "1"}, s.publish("lane", 1, nil, "1", s.envelope("done")), "a batch that is there is confirmed")

	require.Equal(t, []any{}, s.run(joinScript, s.p.consumerKeys("second"), 5000))
	require.NoError(t, s.rdb.Del(ctx, s.p.streams[3]).Err())
	require.Equal(t, []any{}, s.run(joinScript, s.p.consumerKeys("second"), 0))
	e, ids := s.fetch("c", 9)
	require.Equal(t, []string{"done", "retried", "released", "dead"}, ids)
	require.Equal(t, int64(1), s.run(ackScript, s.p.ackKeys(), 0, 0, 1, 0, e[0].id).([]any)[2])
	require.Equal(t, []any{int64(1), int64(1), int64(1)}, s.move("c", "0",
		3, e[2].id, "r", countReleased, "released", 0, s.envelope("released"), // first, with nothing written before it
		3, e[1].id, "z", countRetried, "retried", 60_000, s.envelope("retried"),
		3, e[3].id, "d", countDead, "dead", 0, "dead"))
	reply := s.maintain("me", 500)
	require.Equal(t, int64(1), reply[2], reply[4])
	require.True(t, s.rdb.PExpire(ctx, s.p.heartbeat("c"), time.Minute).Val())
	require.Equal(t, []any{int64(2), int64(0), int64(1), int64(1)}, s.counts())
}
