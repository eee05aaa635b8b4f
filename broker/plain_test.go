package broker

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// publishPlain adds tasks by plain.lua. It returns what publish returns.
func (s scripts) publishPlain(lane string, seq int, priority int, envelopes ...[]byte) any {
	s.t.Helper()
	reply, err := s.tryPublishPlain(lane, strconv.Itoa(seq), priority, envelopes...)
	require.NoError(s.t, err)
	return reply
}

func (s scripts) tryPublishPlain(lane, seq string, priority int, envelopes ...[]byte) (any, error) {
	args := []any{lane, seq}
	for _, e := range envelopes {
		e[offPriority] = byte(priority)
		args = append(args, e)
	}
	reply, err := plainScript.Run(context.Background(), s.rdb, s.p.plainKeys(1+priority), args...).Text()
	if err != nil {
		return nil, err
	}
	parts := strings.SplitN(reply, ":", 3)
	require.Len(s.t, parts, 3)
	return []any{parts[1], parts[2], parts[0]}, nil
}

func TestPlainScriptAppliesASequenceNumberOnce(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		require.Equal(t, []any{"1", "", "0"}, s.publishPlain("lane", 1, 1, s.envelope("a"), s.envelope("b")))
		require.Equal(t, "1:1:", s.rdb.HGet(ctx, s.p.lanes, "lane").Val(), "the stored form")
		require.Equal(t, []any{"1", "", "1"}, s.publishPlain("lane", 1, 1, s.envelope("a"), s.envelope("b")), "sent again")
		require.Equal(t, []any{"1", "", "1"}, s.publish("lane", 1, nil, "1", s.envelope("a"), "1", s.envelope("b")), "by the other script")
		require.Equal(t, []any{"2", "", "1"}, s.publish("lane", 2, nil, "0", s.envelope("c")))
		require.Equal(t, []any{"2", "", "2"}, s.publishPlain("lane", 2, 0, s.envelope("c")), "and the other way round")
		require.Equal(t, []any{"7", "", "2"}, s.publishPlain("lane", 7, 0, s.envelope("d")), "a gap is told by the number before")
		require.Equal(t, []any{"7", "", "7"}, s.publishPlain("lane", 6, 0, s.envelope("late")), "a late retransmission lowers nothing")
		require.Equal(t, []any{"10", "", "7"}, s.publishPlain("lane", 10, 0, s.envelope("e")), "compared as numbers")
		require.Equal(t, "1:10:", s.rdb.HGet(ctx, s.p.lanes, "lane").Val())
		require.Equal(t, []any{int64(5), int64(0), int64(0), int64(0)}, s.counts())
		require.Equal(t, int64(2), s.rdb.XLen(ctx, s.p.streams[2]).Val())
		require.Equal(t, "5", s.counter(countPublished))

		require.NoError(t, s.rdb.HSet(ctx, s.p.lanes, "future", "2:whatever").Err())
		_, err := s.tryPublishPlain("future", "2", 0, s.envelope("f"))
		require.ErrorContains(t, err, "the record of lane future is of another version")
		require.Equal(t, int64(3), s.rdb.XLen(ctx, s.p.streams[1]).Val())
	})
}

func TestPlainScriptAddsNothingWhereAKeyIsOfAnotherType(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		require.NoError(t, s.rdb.Set(ctx, s.p.streams[2], "mine", 0).Err())
		require.Equal(t, []any{"1", "ww", "0"}, s.publishPlain("lane", 1, 1, s.envelope("a"), s.envelope("b")))
		require.Equal(t, "1:1:ww", s.rdb.HGet(ctx, s.p.lanes, "lane").Val())
		require.Equal(t, []any{"1", "ww", "1"}, s.publishPlain("lane", 1, 1, s.envelope("a"), s.envelope("b")))
		require.Empty(t, s.counter(countPublished))
	})
}

// What plain.lua leaves without a time has that of its entry wherever it is read.
func TestAPlainTaskWasPublishedWhenItsEntrySaysSo(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		before := s.rdb.Time(t.Context()).Val().Add(-time.Millisecond)
		s.publishPlain("lane", 1, 1, s.envelope("a"), s.envelope("b"))
		after := s.rdb.Time(t.Context()).Val()
		check := func(raw []byte) {
			t.Helper()
			e, err := decodeEnvelope(raw)
			require.NoError(t, err)
			at := time.UnixMilli(e.enqueued)
			require.False(t, at.Before(before) || at.After(after), at)
			require.Equal(t, "p", string(e.payload))
		}
		s.join("c")
		found := s.fetched(s.turn("c", 2))
		check(found[0].raw)
		check(found[1].raw)

		// A task that nobody has comes under another entry ID.
		require.NoError(t, s.rdb.XGroupDelConsumer(t.Context(), s.p.streams[2], group, "c").Err())
		time.Sleep(after.Sub(before) + 5*time.Millisecond)
		require.Equal(t, []any{int64(2), ""}, s.run(orphansScript, s.p.orphansKeys(2), "-", 10))
		moved := s.fetched(s.turn("c", 2))
		require.Len(t, moved, 2)
		require.Equal(t, found[0].raw, moved[0].raw)
		require.NotEqual(t, found[0].id, moved[0].id)
	})
}

func TestOnlyAnEnvelopeWithoutATimeGetsThatOfItsEntry(t *testing.T) {
	bare := appendEnvelope(nil, &envelope{priority: 1, attempt: 1, maxAttempts: 1, id: "a", task: "t"})
	e, err := decodeEnvelope(timed(append([]byte{}, bare...), "1700000000123-4"))
	require.NoError(t, err)
	require.Equal(t, int64(1700000000123), e.enqueued)

	own := appendEnvelope(nil, &envelope{priority: 1, attempt: 1, maxAttempts: 1, enqueued: 5, id: "a", task: "t"})
	for _, unchanged := range []struct {
		raw []byte
		id  string
	}{{own, "17-0"}, {bare, ""}, {bare, "x-1"}, {bare, "18446744073709551615-1"}, {bare[:headSize-1], "17-0"}, {make([]byte, 20), "17-0"}, {nil, "17-0"}} {
		require.Equal(t, unchanged.raw, timed(append([]byte(nil), unchanged.raw...), unchanged.id))
	}
}

func TestABatchIsPlainOnlyIfNoTaskNeedsMore(t *testing.T) {
	task := func(priority byte) *publishing {
		return &publishing{envelope: appendEnvelope(nil, &envelope{priority: priority, attempt: 1, maxAttempts: 1, id: "a", task: "t"})}
	}
	timed, conditional := task(1), task(1)
	timed.timed, conditional.conditions = true, "1"
	for name, c := range map[string]struct {
		tasks []*publishing
		plain bool
	}{
		"one":                         {[]*publishing{task(2)}, true},
		"of one priority":             {[]*publishing{task(0), task(0)}, true},
		"of two":                      {[]*publishing{task(0), task(1)}, false},
		"one that expires":            {[]*publishing{task(1), timed}, false},
		"one that is unique, or late": {[]*publishing{task(1), conditional}, false},
	} {
		b := batch{tasks: c.tasks}
		require.Equal(t, c.plain, b.plain(), name)
	}
}

// Else the maintenance would forget a lane that is used every day.
func TestALaneThatIsUsedIsNoted(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		s.publish("lane", 1, nil, "1", s.envelope("a"))
		require.NoError(t, s.rdb.ZAdd(ctx, s.p.lanesSeen, redis.Z{Member: "lane", Score: 1}).Err())
		s.publish("lane", 2, nil, "1", s.envelope("b"))
		require.EqualValues(t, 1, s.rdb.ZScore(ctx, s.p.lanesSeen, "lane").Val(), "not each time")
		require.NoError(t, publishScript.Run(ctx, s.rdb, s.p.publishKeys(), "lane", 3, "1", s.envelope("c")).Err())
		require.Greater(t, s.rdb.ZScore(ctx, s.p.lanesSeen, "lane").Val(), 1e12)
	})
}

// Who may run scripts and not add entries is told so: nothing was published, and the
// number is not used up.
func TestAPublishWithoutPermissionIsRefused(t *testing.T) {
	server := redistest.New(t, redistest.Config{})
	admin := scripts{t, server.Client(t), newPartition("redisha", "mail", 0, 1)}
	admin.publish("lane", 1, nil, "1", admin.envelope("a"))
	require.NoError(t, admin.rdb.Do(t.Context(), "acl", "setuser", "reader", "on", ">secret", "~*", "+@all", "-xadd").Err())
	opt := server.Options()
	opt.Username, opt.Password = "reader", "secret"
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	s := scripts{t, rdb, admin.p}
	_, err := s.tryPublish("lane", "2", nil, "1", s.envelope("b"))
	require.Error(t, err)
	_, err = s.tryPublishPlain("lane", "2", 1, s.envelope("b"))
	require.Error(t, err)
	require.Equal(t, "1:1:", s.rdb.HGet(t.Context(), s.p.lanes, "lane").Val())
	require.Equal(t, []any{"2", "", "1"}, admin.publish("lane", 2, nil, "1", s.envelope("b")))
}
