package broker

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// keyed is the envelope of a task with a unique key and a slot of key k, of which
// limit may run.
func (s scripts) keyed(id string, limit uint64) []byte {
	return appendEnvelope(nil, &envelope{priority: 1, attempt: 1, maxAttempts: 3, id: id, task: "t",
		unique: "u" + id, concurrency: limit, key: "k", headers: []header{{"a", "b"}}, payload: []byte("p")})
}

// hold makes tasks with keys ready as a publish does, and lets c fetch them. With
// limit 1 the first one has the slot, and the others are parked.
func (s scripts) hold(c string, ids ...string) []entry {
	s.t.Helper()
	ctx := context.Background()
	s.join(c)
	for i, id := range ids {
		require.NoError(s.t, s.rdb.Set(ctx, s.p.unique("u"+id), id, 0).Err())
		if i == 0 {
			require.NoError(s.t, s.rdb.XAdd(ctx, &redis.XAddArgs{Stream: s.p.streams[2], Values: []any{"e", s.keyed(id, 1)}}).Err())
			require.NoError(s.t, s.rdb.SAdd(ctx, s.p.slots("k"), id).Err())
			continue
		}
		require.NoError(s.t, s.rdb.RPush(ctx, s.p.parked("k"), s.keyed(id, 1)).Err())
		require.NoError(s.t, s.rdb.ZAdd(ctx, s.p.parkedKeys, redis.Z{Score: 1, Member: "k"}).Err())
	}
	entries, _ := s.fetch(c, 10)
	return entries
}

func (s scripts) ends(e entry, id string) any {
	s.t.Helper()
	v := &verdict{task: &task{entry: e}, id: id, unique: "u" + id, key: "k"}
	return s.run(ackScript, s.p.endKeys(s.p.ackKeys(), []*verdict{v}), appendEnds(nil, []*verdict{v})...)
}

// has checks who has the slots of the key, how many are parked, and which unique
// keys are held.
func (s scripts) has(slots []string, parked int64, unique ...string) {
	s.t.Helper()
	ctx := context.Background()
	require.ElementsMatch(s.t, slots, s.rdb.SMembers(ctx, s.p.slots("k")).Val())
	require.Equal(s.t, parked, s.rdb.LLen(ctx, s.p.parked("k")).Val())
	var held []string
	for _, id := range []string{"a", "b", "c"} {
		if s.rdb.Get(ctx, s.p.unique("u"+id)).Val() == id {
			held = append(held, id)
		}
	}
	require.ElementsMatch(s.t, unique, held)
	require.Equal(s.t, parked > 0, s.rdb.Exists(ctx, s.p.parkedKeys).Val() == 1)
}

func TestTheEndOfATaskReleasesItsKeysAndStartsTheNext(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		e := s.hold("c", "a", "b", "c")
		s.has([]string{"a"}, 2, "a", "b", "c")
		require.Equal(t, []any{int64(0), int64(0), int64(1), int64(0)}, s.ends(e[0], "a"))
		s.has([]string{"b"}, 1, "b", "c")
		require.Equal(t, []any{int64(0), int64(0), int64(0), int64(0)}, s.ends(e[0], "a"), "once more")
		s.has([]string{"b"}, 1, "b", "c")
		require.Equal(t, "1", s.counter(countAcked))

		// The same with a fetch, which gets the next one at once.
		e, ids := s.fetch("c", 9)
		require.Equal(t, []string{"b"}, ids)
		v := []*verdict{{task: &task{entry: e[0]}, id: "b", unique: "ub", key: "k"}}
		reply := s.run(fetchScript, s.p.endKeys(s.p.fetchKeys("c"), v), appendEnds([]any{"c", 9, 9}, v)...).([]any)
		require.Equal(t, []any{int64(0), int64(0), int64(1), int64(0)}, reply[2:6])
		found := s.fetched(reply)
		require.Len(t, found, 1)
		s.has([]string{"c"}, 0, "c")
		require.Equal(t, []any{int64(0), int64(0), int64(1), int64(0)}, s.ends(found[0].entry, "c"))
		s.has(nil, 0)
		require.Equal(t, "3", s.counter(countAcked))
	})
}

// A worker that comes late must not release what the task, which now is another
// worker's, has.
func TestALateEndReleasesNoKeys(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		e := s.hold("victim", "a", "b")
		require.NoError(t, s.rdb.Del(t.Context(), s.p.heartbeat("victim")).Err())
		require.Equal(t, []any{int64(1)}, s.moveKeyed("victim", "1", 3, e[0].id, "r", countReaped, "a", 0, s.keyed("a", 1), "ua", "k"))
		s.has([]string{"a"}, 1, "a", "b")
		require.Equal(t, []any{int64(0), int64(0), int64(0), int64(0)}, s.ends(e[0], "a"))
		s.has([]string{"a"}, 1, "a", "b")
	})
}

func (s scripts) moveKeyed(consumer, onlyDead string, args ...any) []any {
	s.t.Helper()
	return s.run(moveScript, s.p.moveKeys(consumer), append([]any{consumer, onlyDead}, args...)...).([]any)
}

func TestAMovedTaskKeepsWhatItStillNeeds(t *testing.T) {
	for _, test := range []struct {
		to     string
		slots  []string
		parked int64
		unique []string
	}{
		{"r", []string{"a"}, 1, []string{"a", "b"}}, // released: it is still ready
		{"z", []string{"b"}, 0, []string{"a", "b"}}, // a retry holds up no other task
		{"d", []string{"b"}, 0, []string{"b"}},
		{"x", []string{"b"}, 0, []string{"b"}},
	} {
		t.Run(test.to, func(t *testing.T) {
			eachScripts(t, func(t *testing.T, s scripts) {
				e := s.hold("c", "a", "b")
				require.NoError(t, s.rdb.ZAdd(t.Context(), s.p.revoked, redis.Z{Score: 1, Member: "a"}).Err())
				args := []any{3, e[0].id, test.to, countReleased, "a", 60_000, s.keyed("a", 1), "ua", "k"}
				require.Equal(t, []any{int64(0)}, s.moveKeyed("zombie", "0", args...))
				s.has([]string{"a"}, 1, "a", "b")
				require.Equal(t, []any{int64(1)}, s.moveKeyed("c", "0", args...))
				s.has(test.slots, test.parked, test.unique...)
				ended := test.to == "d" || test.to == "x"
				require.Equal(t, ended, s.rdb.ZCard(t.Context(), s.p.revoked).Val() == 0)
				if !ended {
					require.Positive(t, s.rdb.PTTL(t.Context(), s.p.unique("ua")).Val(), "refreshed")
				}
			})
		})
	}
}

// A unique key that another task has meanwhile, since the first one's has run
// out, stays.
func TestAUniqueKeyOfAnotherTaskStays(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		e := s.hold("c", "a")
		require.NoError(t, s.rdb.Set(t.Context(), s.p.unique("ua"), "other", 0).Err())
		s.ends(e[0], "a")
		require.Equal(t, "other", s.rdb.Get(t.Context(), s.p.unique("ua")).Val())
	})
}

func TestADueTaskIsParkedWhileItsKeyHasNoSlot(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		e := s.hold("c", "a")
		for _, id := range []string{"b", "c"} {
			require.NoError(t, s.rdb.HSet(ctx, s.p.envelopes, id, s.keyed(id, 1)).Err())
			require.NoError(t, s.rdb.ZAdd(ctx, s.p.delayed, redis.Z{Score: 1, Member: id}).Err())
		}
		reply := s.maintain("me", 500)
		require.Equal(t, []any{int64(1), int64(2), "0", ""}, []any{reply[0], reply[2], reply[3], reply[4]})
		s.has([]string{"a"}, 2, "a")
		require.Equal(t, []any{int64(0), int64(1), int64(0), int64(0)}, s.counts())
		s.ends(e[0], "a")
		_, ids := s.fetch("c", 9)
		require.Equal(t, []string{"b"}, ids)
		s.has([]string{"b"}, 1)
		require.Equal(t, "1", s.counter(countAcked))
	})
}

// What cannot be parked, since a key is of another type, stays where it is, and
// holds up no other task.
func TestADueTaskWhoseKeyIsOfAnotherTypeStays(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		s.join("c")
		for name, value := range map[string][]byte{"a": s.keyed("a", 1), "b": s.envelope("b")} {
			require.NoError(t, s.rdb.HSet(ctx, s.p.envelopes, name, value).Err())
			require.NoError(t, s.rdb.ZAdd(ctx, s.p.delayed, redis.Z{Score: 1, Member: name}).Err())
		}
		for i, key := range []string{s.p.slots("k"), s.p.parked("k"), s.p.parkedKeys} {
			require.NoError(t, s.rdb.Set(ctx, key, "mine", 0).Err())
			reply := s.maintain("me", 500)
			require.Contains(t, reply[4], "WRONGTYPE")
			require.Equal(t, int64(1-min(i, 1)), reply[2])
			require.Equal(t, int64(1), s.rdb.ZCard(ctx, s.p.delayed).Val())
			require.NoError(t, s.rdb.Del(ctx, key).Err())
		}
		require.Equal(t, int64(1), s.maintain("me", 500)[2])
		s.has([]string{"a"}, 0)
	})
}

func TestFetchScriptTellsTheTimeAPauseAndWhatIsRevoked(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		s.join("c")
		s.publish("lane", 1, nil, "1", s.envelope("a"), "1", s.envelope("b"))
		require.NoError(t, s.rdb.Set(ctx, s.p.paused, "1", 0).Err())
		before := s.rdb.Time(ctx).Val().UnixMilli()
		reply := s.turn("c", 9)
		require.Equal(t, "paused", reply[0])
		require.Empty(t, s.fetched(reply))
		told, err := strconv.ParseInt(reply[1].(string), 10, 64)
		require.NoError(t, err)
		require.GreaterOrEqual(t, told, before)
		require.LessOrEqual(t, told, s.rdb.Time(ctx).Val().UnixMilli())

		require.NoError(t, s.rdb.Del(ctx, s.p.paused).Err())
		require.NoError(t, s.rdb.ZAdd(ctx, s.p.revoked, redis.Z{Score: 1, Member: "b"}).Err())
		found := s.fetched(s.turn("c", 9))
		require.Len(t, found, 2)
		require.Equal(t, []bool{false, true}, []bool{found[0].revoked, found[1].revoked})
		require.Equal(t, int64(1), s.rdb.ZCard(ctx, s.p.revoked).Val(), "it goes with the end of the task")

		// A key of another type is no hindrance.
		require.NoError(t, s.rdb.Set(ctx, s.p.revoked, "mine", 0).Err())
		require.Equal(t, "", s.turn("c", 9)[0])
	})
}

func TestSlotsScriptFreesSlotsUnlessSomethingHappenedMeanwhile(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		s.hold("c", "a", "b")
		require.NoError(t, s.rdb.SAdd(ctx, s.p.slots("k"), "gone").Err())
		require.Equal(t, int64(-1), s.run(slotsScript, s.p.slotKeys("k"), "k", "2", "gone", "a"))
		require.Equal(t, int64(-1), s.run(slotsScript, s.p.slotKeys("other"), "other", "1", "gone", "a"))
		s.has([]string{"a", "gone"}, 1, "a", "b")
		require.Equal(t, int64(1), s.run(slotsScript, s.p.slotKeys("k"), "k", "1", "gone", "other"))
		s.has([]string{"a"}, 1, "a", "b")
		require.Equal(t, int64(1), s.run(slotsScript, s.p.slotKeys("k"), "k", "1", "a"))
		s.has([]string{"b"}, 0, "a", "b")
	})
}

// A unique key lasts a day from when its task was last moved.
func TestADueTaskKeepsItsUniqueKeyForADayMore(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		s.put(Delayed, keyed("mine", "mine", ""))
		s.put(Delayed, keyed("late", "another's", ""))
		require.NoError(t, s.rdb.Set(ctx, s.p.unique("another's"), "another", time.Minute).Err())
		for _, id := range []string{"mine", "late"} {
			require.NoError(t, s.rdb.ZAdd(ctx, s.p.delayed, redis.Z{Member: id, Score: 1}).Err())
		}
		require.Equal(t, int64(2), s.maintain("me", 10)[2])
		require.Greater(t, s.rdb.PTTL(ctx, s.p.unique("mine")).Val(), 23*time.Hour)
		require.LessOrEqual(t, s.rdb.PTTL(ctx, s.p.unique("another's")).Val(), time.Minute)
	})
}
