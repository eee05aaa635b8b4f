package lock

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"testing"
	"time"

	"github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
)

// texts is what redislock sends scripts through that are to be known.
type texts struct {
	redis.Scripter
	last string
}

func (*texts) EvalSha(context.Context, string, []string, ...any) *redis.Cmd {
	return redis.NewCmdResult(nil, redis.ErrNoScript)
}

func (s *texts) Eval(_ context.Context, script string, _ []string, _ ...any) *redis.Cmd {
	s.last = script
	return redis.NewCmdResult("OK", nil)
}

// voteText and partText are the scripts as servers get them.
func voteText(t *testing.T) string { return fusedText(t, &voteScript, false) }
func partText(t *testing.T) string { return fusedText(t, &partScript, true) }

func fusedText(t *testing.T, f *fusion, release bool) string {
	t.Helper()
	s := new(texts)
	l, err := redislock.Obtain(t.Context(), s, "k", time.Second, nil)
	require.NoError(t, err)
	if release {
		require.NoError(t, l.Release(t.Context()))
	}
	return f.with(s.last).text
}

// A voter asks a server by vote.lua, in redislock's terms for "mine".
type voter struct {
	t    *testing.T
	rdb  redis.UniversalClient
	text string
}

func (v voter) ask(locks []string, least any, draw int) ([]any, error) {
	var all []string
	all = append(all, locks...)
	for _, lock := range locks {
		all = append(all, lock+":f")
	}
	return v.rdb.Eval(v.t.Context(), v.text, all, "mine{}", 4, 60_000, 30_000, least, draw).Slice()
}

func (v voter) asks(locks []string, least any, draw int) []any {
	v.t.Helper()
	reply, err := v.ask(locks, least, draw)
	require.NoError(v.t, err)
	require.Len(v.t, reply, 3)
	return reply
}

func eachVoter(t *testing.T, test func(t *testing.T, v voter)) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) { test(t, voter{t, rdb, voteText(t)}) })
}

func TestVoteScriptGivesALeaseAndATokenThatGrows(t *testing.T) {
	eachVoter(t, func(t *testing.T, v voter) {
		ctx, k := t.Context(), []string{"{k}"}
		now := func() int64 {
			at, err := v.rdb.Time(ctx).Result()
			require.NoError(t, err)
			return at.UnixMicro()
		}
		before := now()
		reply := v.asks(k, 0, 1)
		first := reply[0].(int64)
		require.GreaterOrEqual(t, first, before, "by the server's clock")
		require.LessOrEqual(t, first, now())
		require.Equal(t, []any{first, ""}, []any{reply[1], reply[2]}, "the time is told")
		require.Equal(t, "mine{}", v.rdb.Get(ctx, "{k}").Val())
		require.InDelta(t, time.Minute, v.rdb.PTTL(ctx, "{k}").Val(), float64(20*time.Second))
		require.InDelta(t, 30*time.Second, v.rdb.PTTL(ctx, "{k}:f").Val(), float64(20*time.Second))

		ahead := now() + time.Hour.Microseconds()
		require.Equal(t, ahead, v.asks(k, ahead, 1)[0], "as it is proposed; by the holder again")
		require.Equal(t, strconv.FormatInt(ahead, 10), v.rdb.Get(ctx, "{k}:f").Val(), "every digit")
		require.Equal(t, ahead+1, v.asks(k, ahead, 1)[0], "more than the last one")
		require.Equal(t, ahead+2, v.asks(k, 0, 1)[0])
		reply = v.asks(k, ahead+9, 1)
		require.Equal(t, ahead+9, reply[0])
		require.GreaterOrEqual(t, reply[1], before)
		require.Less(t, reply[1], ahead, "the time, and not the token")
	})
}

// So a node is asked that is to have a lease again: a lease has one token.
func TestVoteScriptDrawsNoTokenWhereNoneIsWanted(t *testing.T) {
	eachVoter(t, func(t *testing.T, v voter) {
		k := []string{"{k}"}
		for _, step := range []struct {
			least, want int64
		}{{7, 7}, {7, 7}, {9, 9}, {8, 9}, {0, 9}} {
			require.Equal(t, step.want, v.asks(k, step.least, 0)[0])
			require.Equal(t, strconv.FormatInt(step.want, 10), v.rdb.Get(t.Context(), "{k}:f").Val())
		}
	})
}

func TestVoteScriptPassesOverCountersThatAreNone(t *testing.T) {
	eachVoter(t, func(t *testing.T, v voter) {
		ctx, k := t.Context(), []string{"{k}"}
		const least = 9e15 // ahead of all clocks
		for _, bad := range []string{"", "abc", "-5", "nan", "inf", "-inf", "1e300", strconv.FormatInt(1<<53-1, 10), strconv.FormatUint(math.MaxUint64, 10)} {
			require.NoError(t, v.rdb.Set(ctx, "{k}:f", bad, 0).Err())
			require.EqualValues(t, int64(least), v.asks(k, int64(least), 1)[0], bad)
			require.Equal(t, "9000000000000000", v.rdb.Get(ctx, "{k}:f").Val(), bad)
		}
		require.NoError(t, v.rdb.Set(ctx, "{k}:f", 1<<53-2, 0).Err())
		require.EqualValues(t, 1<<53-1, v.asks(k, 0, 1)[0], "the last that one can be added to")
	})
}

func TestVoteScriptTakesSeveralLocksOrNone(t *testing.T) {
	eachVoter(t, func(t *testing.T, v voter) {
		ctx, k := t.Context(), []string{"{k}a", "{k}b", "{k}c"}
		require.NoError(t, v.rdb.Set(ctx, "{k}b:f", int64(9e15), 0).Err())
		require.NoError(t, v.rdb.Set(ctx, "{k}c", "another's", time.Hour).Err())
		require.EqualValues(t, -1, v.asks(k, 1, 1)[0])
		require.Zero(t, v.rdb.Exists(ctx, "{k}a", "{k}b", "{k}a:f", "{k}c:f").Val())
		require.NoError(t, v.rdb.Del(ctx, "{k}c").Err())
		require.EqualValues(t, 9e15+1, v.asks(k, 1, 1)[0], "the greatest of all")
		for _, lock := range k {
			require.Equal(t, "mine{}", v.rdb.Get(ctx, lock).Val())
			require.Equal(t, "9000000000000001", v.rdb.Get(ctx, lock+":f").Val())
		}
	})
}

func TestVoteScriptTellsWhoHasTheLease(t *testing.T) {
	eachVoter(t, func(t *testing.T, v voter) {
		ctx := t.Context()
		set := func(key, value string, ttl time.Duration) {
			require.NoError(t, v.rdb.Set(ctx, key, value, ttl).Err())
		}
		set("{k}a", "yourother", time.Minute)
		reply := v.asks([]string{"{k}a"}, 1, 1)
		require.Equal(t, []any{int64(-1), "your"}, []any{reply[0], reply[2]}, "as many bytes as a token has")
		require.InDelta(t, 60_000, reply[1], 20_000)
		require.Zero(t, v.rdb.Exists(ctx, "{k}a:f").Val())
		require.Equal(t, "yourother", v.rdb.Get(ctx, "{k}a").Val())

		set("{k}b", "his", time.Hour)
		set("{k}c", "mine{}", 24*time.Hour)
		set("{k}d", "", 48*time.Hour)
		reply = v.asks([]string{"{k}a", "{k}b", "{k}c", "{k}d", "{k}e"}, 1, 1)
		require.Equal(t, []any{int64(-1), "his"}, []any{reply[0], reply[2]}, "whose lease ends last, but for what is mine or nobody's")
		require.InDelta(t, time.Hour.Milliseconds(), reply[1], 20_000)

		set("{k}b", "hers", 0)
		require.Equal(t, []any{int64(-1), int64(-1), "hers"}, v.asks([]string{"{k}a", "{k}b"}, 1, 1), "which does not end")
		require.Equal(t, []any{int64(-1), int64(-1), "hers"}, v.asks([]string{"{k}b", "{k}a"}, 1, 1))
	})
}

func TestVoteScriptFailsOnOtherTypes(t *testing.T) {
	eachVoter(t, func(t *testing.T, v voter) {
		ctx := t.Context()
		require.NoError(t, v.rdb.HSet(ctx, "{k}", "f", "v").Err())
		_, err := v.ask([]string{"{k}"}, 1, 1)
		require.True(t, redis.HasErrorPrefix(err, "WRONGTYPE"), "%v", err)
		require.NoError(t, v.rdb.HSet(ctx, "{j}:f", "f", "v").Err())
		_, err = v.ask([]string{"{j}"}, 1, 1)
		require.True(t, redis.HasErrorPrefix(err, "WRONGTYPE"), "%v", err)
	})
}

func TestRaiseScriptReturnsTheLowestCounter(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		for _, c := range []struct {
			counters []string // "-" for none
			token    int64
			want     int64
			stored   []string
		}{
			{[]string{"-"}, 1795159093017078, 1795159093017078, []string{"1795159093017078"}},
			{[]string{"1795159093017077"}, 1795159093017078, 1795159093017078, []string{"1795159093017078"}},
			{[]string{"1795159093017079"}, 1795159093017078, 1795159093017079, []string{"1795159093017079"}},
			{[]string{"5", "-", "9"}, 7, 7, []string{"7", "7", "9"}},
			{[]string{"9", "8"}, 7, 8, []string{"9", "8"}},
			{[]string{"", "abc", "-5", "inf"}, 7, 7, []string{"7", "7", "7", "7"}},
			{[]string{"9007199254740991"}, 7, 7, []string{"7"}},
			{[]string{"9007199254740990"}, 7, 9007199254740990, []string{"9007199254740990"}},
		} {
			var names []string
			for i, counter := range c.counters {
				names = append(names, fmt.Sprintf("{k}%d", i))
				require.NoError(t, rdb.Del(ctx, names[i]).Err())
				if counter != "-" {
					require.NoError(t, rdb.Set(ctx, names[i], counter, 0).Err())
				}
			}
			lowest, err := raiseScript.Run(ctx, rdb, names, c.token, 60_000).Int64()
			require.NoError(t, err)
			require.Equal(t, c.want, lowest, c.counters)
			for i, name := range names {
				require.Equal(t, c.stored[i], rdb.Get(ctx, name).Val(), c.counters)
				require.InDelta(t, time.Minute, rdb.PTTL(ctx, name).Val(), float64(20*time.Second))
			}
		}
		require.NoError(t, rdb.Del(ctx, "{k}0").Err())
		require.NoError(t, rdb.HSet(ctx, "{k}0", "f", "v").Err())
		err := raiseScript.Run(ctx, rdb, []string{"{k}0"}, 7, 60_000).Err()
		require.True(t, redis.HasErrorPrefix(err, "WRONGTYPE"), "%v", err)
	})
}

func TestPartScriptGivesBackWhatIsMineAndTellsWhoWaits(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		locks := []string{"{k}a", "{k}b"}
		sub := rdb.Subscribe(ctx, "{k}a:free", "{k}b:free", "end")
		defer sub.Close()
		for range 3 {
			_, err := sub.Receive(ctx)
			require.NoError(t, err)
		}
		part := func() int64 {
			n, err := rdb.Eval(ctx, partText(t), locks, "mine{}", "mine").Int64()
			require.NoError(t, err)
			return n
		}
		set := func(values ...string) {
			require.NoError(t, rdb.Del(ctx, locks...).Err())
			for i, value := range values {
				require.NoError(t, rdb.Set(ctx, locks[i], value, time.Minute).Err())
			}
		}
		require.Zero(t, part(), "there is nothing")
		set("mine{}")
		require.Zero(t, part(), "the other is gone")
		require.Equal(t, "mine{}", rdb.Get(ctx, "{k}a").Val(), "all or none")
		set("mine{}", "another's")
		require.Zero(t, part())
		require.Equal(t, "another's", rdb.Get(ctx, "{k}b").Val())
		set("mine{}", "mine{}")
		require.EqualValues(t, 1, part())
		require.Zero(t, rdb.Exists(ctx, locks...).Val())
		require.Zero(t, part(), "once")

		require.NoError(t, rdb.Publish(ctx, "end", "").Err())
		var told []string
		for {
			m, err := sub.ReceiveMessage(ctx)
			require.NoError(t, err)
			if m.Channel == "end" {
				break
			}
			told = append(told, m.Channel+" "+m.Payload)
		}
		require.Equal(t, []string{"{k}a:free mine", "{k}b:free mine"}, told, "of the release that has worked, once for each lock")
	})
}

func TestUnseatScriptTakesALeaseFromItsHolderAlone(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		unseat := func(token string) int64 {
			n, err := unseatScript.Run(ctx, rdb, []string{"{k}"}, token, "revoked").Int64()
			require.NoError(t, err)
			return n
		}
		require.Zero(t, unseat("mine"), "there is nothing")
		require.Zero(t, rdb.Exists(ctx, "{k}").Val())
		for _, other := range []string{"your{}", "min", "Mine{}", "xmine"} {
			require.NoError(t, rdb.Set(ctx, "{k}", other, time.Minute).Err())
			require.Zero(t, unseat("mine"), other)
			require.Equal(t, other, rdb.Get(ctx, "{k}").Val())
		}
		for _, value := range []string{"mine", "mine{}"} {
			require.NoError(t, rdb.Set(ctx, "{k}", value, time.Minute).Err())
			require.EqualValues(t, 1, unseat("mine"), value)
			require.Equal(t, "revoked", rdb.Get(ctx, "{k}").Val())
			require.InDelta(t, time.Minute, rdb.PTTL(ctx, "{k}").Val(), float64(20*time.Second), "its TTL stays")
			require.Zero(t, unseat("mine"), "once")
		}
		require.NoError(t, rdb.Del(ctx, "{k}").Err())
		require.NoError(t, rdb.LPush(ctx, "{k}", "x").Err())
		err := unseatScript.Run(ctx, rdb, []string{"{k}"}, "mine", "revoked").Err()
		require.True(t, redis.HasErrorPrefix(err, "WRONGTYPE"), "%v", err)
	})
}

// What a server answers is not believed because it is an answer.
func TestAVoteThatIsNoneIsAnError(t *testing.T) {
	for text, reply := range map[string]any{
		"vote.lua: ":                "x",
		"returned 2 values, want 3": []any{int64(1), int64(2)},
		"returned a string, a int64 and a string, want": []any{"1", int64(2), ""},
		"returned a int64, a string and a string, want": []any{int64(1), "2", ""},
		"returned a int64, a int64 and a int64, want":   []any{int64(1), int64(2), int64(3)},
	} {
		v := vote{token: -1, left: -1}
		require.ErrorContains(t, v.read(redis.NewCmdResult(reply, nil)), text)
		require.EqualValues(t, -1, v.token)
	}
	v := vote{token: -1, left: -1}
	require.NoError(t, v.read(redis.NewCmdResult([]any{int64(-1), int64(noKey), "his"}, nil)))
	require.Equal(t, vote{token: -1, other: "his"}, v)
	require.NoError(t, v.read(redis.NewCmdResult([]any{int64(-1), int64(-1), "his"}, nil)))
	require.Negative(t, v.left)
	require.NoError(t, v.read(redis.NewCmdResult([]any{int64(5), int64(7), ""}, nil)))
	require.Equal(t, []any{int64(5), 7 * time.Microsecond}, []any{v.token, v.now})
}
