package broker

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// keyed is the envelope of a task with a unique key and a concurrency key, each
// perhaps "".
func keyed(id, unique, key string) *envelope {
	e := &envelope{priority: 1, attempt: 3, maxAttempts: 3, deliveries: 2, enqueued: 1000, id: id, task: "t", unique: unique, key: key, result: true, payload: []byte("p")}
	if key != "" {
		e.concurrency = 1
	}
	return e
}

// put places a task where its state is, as the scripts of workers and publishers do.
func (s scripts) put(state TaskState, e *envelope) {
	s.t.Helper()
	ctx, raw := context.Background(), appendEnvelope(nil, e)
	switch state {
	case Ready:
		require.NoError(s.t, s.rdb.XAdd(ctx, &redis.XAddArgs{Stream: s.p.streams[1+int(e.priority)], Values: []any{field, raw}}).Err())
		if e.key != "" {
			require.NoError(s.t, s.rdb.SAdd(ctx, s.p.slots(e.key), e.id).Err())
		}
	case Delayed:
		require.NoError(s.t, s.rdb.HSet(ctx, s.p.envelopes, e.id, raw).Err())
		require.NoError(s.t, s.rdb.ZAdd(ctx, s.p.delayed, redis.Z{Score: 4000000000001, Member: e.id}).Err())
	case Parked:
		require.NoError(s.t, s.rdb.RPush(ctx, s.p.parked(e.key), raw).Err())
		require.NoError(s.t, s.rdb.ZAdd(ctx, s.p.parkedKeys, redis.Z{Score: 1, Member: e.key}).Err())
	case Dead:
		require.NoError(s.t, s.rdb.HSet(ctx, s.p.deadTasks, e.id, appendDeadLetter(nil, Exhausted, "on purpose", raw)).Err())
		require.NoError(s.t, s.rdb.ZAdd(ctx, s.p.dead, redis.Z{Score: 1000, Member: e.id}).Err())
	}
	if e.unique != "" && state != Dead {
		require.NoError(s.t, s.rdb.Set(ctx, s.p.unique(e.unique), e.id, time.Hour).Err())
	}
}

// keys lists what there is.
func (s scripts) keys() []string {
	keys, err := s.rdb.Keys(context.Background(), "*").Result()
	require.NoError(s.t, err)
	return keys
}

func TestCountScriptReturns(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		count := func() []any { return s.run(countScript, s.p.countKeys(), s.p.prefix).([]any) }
		got := count()
		now, ok := got[7].(string)
		require.True(t, ok)
		require.InDelta(t, float64(time.Now().UnixMilli()), float64(toUint(now)), 60_000)
		zero := int64(0)
		require.Equal(t, []any{zero, zero, zero, zero, zero, zero, zero, now, "0", "0", zero, zero, zero, zero}, got, "of nothing")

		for id, priority := range map[string]uint8{"a": 0, "b": 1, "c": 2, "d": 2} {
			e := keyed(id, "", "")
			e.priority = priority
			s.put(Ready, e)
		}
		require.NoError(t, s.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: s.p.streams[releasedStream], ID: "5-1", Values: []any{field, s.envelope("old")}}).Err())
		require.NoError(t, s.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: s.p.streams[releasedStream], ID: "6-1", Values: []any{field, s.envelope("older")}}).Err())
		s.put(Delayed, keyed("later", "", ""))
		s.put(Dead, keyed("dead", "", ""))
		for n := range 1001 { // one key more than it looks at
			s.put(Parked, keyed("parked", "", fmt.Sprintf("key%04d", n)))
		}
		s.put(Parked, keyed("parked", "", "key0000"))
		require.NoError(t, s.rdb.Set(t.Context(), s.p.paused, "1", 0).Err())
		got = count()
		now = got[7].(string)
		require.Equal(t, []any{int64(6), zero, int64(1), int64(1), int64(1001), int64(1001), int64(1), now, "5", "4000000000001", int64(2), int64(1), int64(1), int64(2)}, got)

		require.NoError(t, s.rdb.Del(t.Context(), s.p.paused).Err())
		s.join("me")
		s.fetch("me", 3)
		got = count()
		require.Equal(t, []any{int64(3), int64(3)}, got[:2])
		require.NotEqual(t, "5", got[8], "those of before are with a worker")
		require.Equal(t, []any{zero, zero, int64(1), int64(2)}, got[10:])

		c, _ := newTestClient(t, s.rdb, Config{})
		n, err := c.count(t.Context(), s.p)
		require.NoError(t, err)
		require.Equal(t, int64(1002), n.parked, "also that of the last key")
	})
}

func TestReviveScriptReturns(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		revive := func(args ...any) []any {
			return s.run(reviveScript, s.p.reviveKeys(s.p.keysOf("u", "k")), append([]any{s.p.prefix}, args...)...).([]any)
		}
		s.put(Dead, keyed("a", "", ""))
		require.Equal(t, []any{int64(0), int64(0)}, revive("absent", 1000, "a", 999), "gone; died anew")
		require.Equal(t, []any{int64(1)}, revive("a", "1000"))
		require.Equal(t, []any{int64(0)}, revive("a", "1000"), "once more")
		require.Equal(t, "1", s.counter(countRevived))
		require.Zero(t, s.rdb.Exists(ctx, s.p.dead, s.p.deadTasks).Val())
		entries := s.rdb.XRange(ctx, s.p.streams[2], "-", "+").Val()
		require.Len(t, entries, 1)
		e, err := decodeEnvelope([]byte(entries[0].Values[field].(string)))
		require.NoError(t, err)
		require.InDelta(t, float64(time.Now().UnixMilli()), float64(e.enqueued), 60_000)
		want := keyed("a", "", "")
		want.attempt, want.deliveries, want.enqueued = 1, 0, e.enqueued
		require.Equal(t, want, e, "its first attempt, published now")

		require.NoError(t, s.rdb.HSet(ctx, s.p.deadTasks, "bad", "text", "worse", appendDeadLetter(nil, Undecodable, "", []byte("text"))).Err())
		require.NoError(t, s.rdb.ZAdd(ctx, s.p.dead, redis.Z{Score: 1, Member: "bad"}, redis.Z{Score: 1, Member: "worse"}, redis.Z{Score: 1, Member: "lost"}).Err())
		require.Equal(t, []any{"corrupt", "corrupt", "corrupt"}, revive("bad", 1, "worse", 1, "lost", 1))
		require.Equal(t, int64(3), s.rdb.ZCard(ctx, s.p.dead).Val(), "they stay")

		s.put(Dead, keyed("b", "u", ""))
		require.NoError(t, s.rdb.Set(ctx, s.p.unique("u"), "other", time.Hour).Err())
		require.Equal(t, []any{"held other"}, revive("b", 1000))
		require.NoError(t, s.rdb.Del(ctx, s.p.unique("u")).Err())
		require.Equal(t, []any{int64(1)}, revive("b", 1000))
		require.Equal(t, "b", s.rdb.Get(ctx, s.p.unique("u")).Val(), "it is unique again")
		require.InDelta(t, 24*time.Hour, s.rdb.PTTL(ctx, s.p.unique("u")).Val(), float64(time.Minute))

		s.put(Dead, keyed("c", "", "k"))
		s.put(Dead, keyed("d", "", "k"))
		require.Equal(t, []any{int64(1), int64(1)}, revive("c", 1000, "d", 1000))
		require.Equal(t, []string{"c"}, s.rdb.SMembers(ctx, s.p.slots("k")).Val())
		require.Equal(t, int64(1), s.rdb.LLen(ctx, s.p.parked("k")).Val(), "there is one slot")
		require.Equal(t, int64(3), s.rdb.XLen(ctx, s.p.streams[2]).Val())

		s.put(Dead, keyed("e", "", ""))
		require.NoError(t, s.rdb.Rename(ctx, s.p.streams[2], "aside").Err())
		require.NoError(t, s.rdb.Set(ctx, s.p.streams[2], "text", 0).Err())
		require.Contains(t, revive("e", 1000)[0], "WRONGTYPE")
		require.True(t, s.rdb.HExists(ctx, s.p.deadTasks, "e").Val())
		s.put(Dead, keyed("f", "u", ""))
		require.NoError(t, s.rdb.Del(ctx, s.p.unique("u")).Err())
		require.NoError(t, s.rdb.LPush(ctx, s.p.unique("u"), "text").Err())
		require.Contains(t, revive("f", 1000)[0], "WRONGTYPE")
		require.Equal(t, "4", s.counter(countRevived))
	})
}

func TestDropScriptReturns(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		for _, id := range []string{"a", "b"} {
			s.put(Dead, keyed(id, "", ""))
		}
		require.Equal(t, []any{int64(1), int64(0), int64(0)}, s.run(dropScript, s.p.dropKeys(), "a", 1000, "b", 1001, "absent", 1000))
		require.Equal(t, []string{"b"}, s.rdb.ZRange(t.Context(), s.p.dead, 0, -1).Val())
		require.Equal(t, []string{"b"}, s.rdb.HKeys(t.Context(), s.p.deadTasks).Val())
		require.Equal(t, "1", s.counter(countDeleted))
		require.Equal(t, []any{int64(0)}, s.run(dropScript, s.p.dropKeys(), "a", 1000))
	})
}

func TestRemoveScriptReturns(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx, note := t.Context(), ""
		remove := func(args ...any) []any {
			keys := append(append(s.p.keysOf("ready", ""), s.p.keysOf("delayed", "")...), s.p.keysOf("parked", "k")...)
			all := []any{s.p.prefix, countPurged}
			for ; len(args) > 0; args = args[3:] {
				all = append(append(all, args[:3]...), "id", note)
			}
			return s.run(removeScript, s.p.removeKeys(keys), all...).([]any)
		}
		s.put(Ready, keyed("runs", "", ""))
		s.join("me")
		held, _ := s.fetch("me", 1)
		s.put(Ready, keyed("ready", "ready", ""))
		s.put(Delayed, keyed("delayed", "delayed", ""))
		s.put(Ready, keyed("first", "", "k"))
		second, third := keyed("second", "parked", "k"), keyed("third", "", "k")
		s.put(Parked, second)
		s.put(Parked, third)
		entries := s.rdb.XRange(ctx, s.p.streams[2], "-", "+").Val()
		require.Len(t, entries, 3)

		require.Equal(t, []any{int64(0), int64(0), int64(0), int64(0)},
			remove("s", 3, held[0].id, "s", 3, "1-1", "z", "absent", "", "q", "k", "absent"), "a worker has it; not there")
		require.Equal(t, int64(3), s.rdb.XLen(ctx, s.p.streams[2]).Val())

		require.Equal(t, []any{int64(1), int64(1), int64(1)},
			remove("s", 3, entries[1].ID, "z", "delayed", "", "q", "k", appendEnvelope(nil, second)))
		require.Equal(t, "3", s.counter(countPurged))
		require.Zero(t, s.rdb.Exists(ctx, s.p.unique("ready"), s.p.unique("delayed"), s.p.unique("parked"), s.p.delayed, s.p.envelopes).Val())
		require.Equal(t, int64(1), s.rdb.LLen(ctx, s.p.parked("k")).Val())

		require.Zero(t, s.rdb.Exists(ctx, s.p.owed).Val())
		note = "note"
		require.Equal(t, []any{int64(0), int64(0), int64(0)}, remove("s", 3, entries[1].ID, "z", "delayed", "", "q", "k", "absent"))
		require.Zero(t, s.rdb.Exists(ctx, s.p.owed).Val(), "nothing is owed of what has stayed or is gone")
		require.NoError(t, s.rdb.Set(ctx, s.p.owed, "text", 0).Err())
		require.Contains(t, remove("s", 3, entries[2].ID)[0], "WRONGTYPE")
		require.Equal(t, "3", s.counter(countPurged))
		require.NoError(t, s.rdb.Del(ctx, s.p.owed).Err())
		require.Equal(t, []any{int64(1)}, remove("s", 3, entries[2].ID))
		require.Equal(t, map[string]string{"id": "note"}, s.rdb.HGetAll(ctx, s.p.owed).Val())
		require.Equal(t, []string{"third"}, s.rdb.SMembers(ctx, s.p.slots("k")).Val(), "the slot went to the next")
		require.Zero(t, s.rdb.Exists(ctx, s.p.parked("k"), s.p.parkedKeys).Val())
		entries = s.rdb.XRange(ctx, s.p.streams[2], "-", "+").Val()
		require.Len(t, entries, 2, "the one that runs, and the third")

		s.put(Parked, second)
		require.Equal(t, []any{int64(1)}, remove("q", "k", appendEnvelope(nil, second)))
		require.Zero(t, s.rdb.Exists(ctx, s.p.parked("k"), s.p.parkedKeys).Val(), "a key without parked tasks is none")

		require.NoError(t, s.rdb.Set(ctx, s.p.delayed, "text", 0).Err())
		require.NoError(t, s.rdb.Set(ctx, s.p.parked("k"), "text", 0).Err())
		for _, reply := range remove("z", "x", "", "q", "k", "x") {
			require.Contains(t, reply, "WRONGTYPE")
		}
		require.NoError(t, s.rdb.Del(ctx, s.p.streams[2]).Err())
		require.NoError(t, s.rdb.Set(ctx, s.p.streams[2], "text", 0).Err())
		require.Contains(t, remove("s", 3, "1-1")[0], "WRONGTYPE")
	})
}

func TestDeleteScriptReturns(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		del := func() any { return s.run(deleteScript, s.p.deleteKeys(), 60_000) }
		require.Equal(t, "", del(), "of nothing")
		for _, state := range []TaskState{Ready, Delayed, Parked, Dead} {
			s.put(state, keyed("x", "", "k"))
			require.Equal(t, "tasks", del(), state)
			require.NoError(t, s.rdb.FlushAll(ctx).Err())
		}
		s.publish("lane", 1, nil)
		require.Equal(t, "publishers", del())
		require.NoError(t, s.rdb.ZIncrBy(ctx, s.p.lanesSeen, -60_001, "lane").Err())
		s.maintain("me", 1)
		require.Equal(t, "workers", del())
		require.NoError(t, s.rdb.Del(ctx, s.p.maintainer).Err())
		s.join("me")
		require.NoError(t, s.rdb.Set(ctx, s.p.paused, "1", 0).Err())
		require.NoError(t, s.rdb.ZAdd(ctx, s.p.revoked, redis.Z{Member: "x"}).Err())
		require.Equal(t, "", del())
		require.Equal(t, []string{s.p.heartbeat("me")}, s.keys(), "which has a TTL")
	})
}

// What an operator does at night works on a full server too, but for what makes
// tasks ready: it says so and loses nothing.
func TestInspectionAtMaxmemory(t *testing.T) {
	srv := redistest.Shared(t)
	rdb := srv.Client(t)
	s := scripts{t, rdb, newPartition("redisha", "mail", 0, 1)}
	ctx := t.Context()
	s.put(Dead, keyed("dead", "", ""))
	s.put(Dead, keyed("dead2", "", ""))
	s.put(Delayed, keyed("delayed", "", ""))
	s.put(Ready, keyed("first", "", "k"))
	s.put(Parked, keyed("second", "", "k"))
	entries := rdb.XRange(ctx, s.p.streams[2], "-", "+").Val()
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "1").Err())
	defer rdb.ConfigSet(context.Background(), "maxmemory", "0")

	reply := s.run(reviveScript, s.p.reviveKeys(nil), s.p.prefix, "dead", 1000).([]any)
	require.Contains(t, reply[0], "OOM")
	require.Equal(t, []any{int64(1)}, s.run(dropScript, s.p.dropKeys(), "dead2", 1000))
	require.Equal(t, []any{int64(1), int64(1)}, s.run(removeScript, s.p.removeKeys(s.p.keysOf("", "k")), s.p.prefix, countPurged, "s", 3, entries[0].ID, "first", "note", "z", "delayed", "", "delayed", ""))
	require.Equal(t, map[string]string{"first": "note"}, rdb.HGetAll(ctx, s.p.owed).Val())
	require.Equal(t, []string{"second"}, rdb.SMembers(ctx, s.p.slots("k")).Val())
	require.Equal(t, []any{int64(1), int64(0), int64(0), int64(1)}, s.counts())
}
