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

func fence(t *testing.T, rdb redis.UniversalClient, mode string) ([]int64, error) {
	t.Helper()
	args := []any{"mine", 4, 60000}
	if mode != "" {
		args = append(args, entryOf(tokenOf(1), "pgone"), mode)
	}
	reply := rdb.Eval(t.Context(), obtainText(), []string{"{k}", "{k}:q", "{k}:f"}, args...)
	if token, ok := reply.Val().(int64); ok {
		return []int64{token}, nil
	}
	return reply.Int64Slice()
}

// obtainText is the script that a lease is obtained with.
func obtainText() string {
	_, _ = redislock.Obtain(context.Background(), capture{}, "k", time.Second, nil)
	return obtainScript.whole.Load().text
}

// capture gets to know redislock's script.
type capture struct{ redis.Scripter }

func (capture) EvalSha(context.Context, string, []string, ...any) *redis.Cmd {
	return redis.NewCmdResult(nil, redis.ErrNoScript)
}

func (capture) Eval(_ context.Context, script string, _ []string, _ ...any) *redis.Cmd {
	obtainScript.with(script)
	return redis.NewCmdResult(nil, redis.Nil)
}

// eachMode runs test on both servers, and in each of the script's ways.
func eachMode(t *testing.T, test func(t *testing.T, rdb redis.UniversalClient, mode string)) {
	for _, mode := range []string{"", "drop"} {
		t.Run("mode "+mode, func(t *testing.T) {
			both.Each(t, func(t *testing.T, rdb redis.UniversalClient) { test(t, rdb, mode) })
		})
	}
}

func TestObtainScriptGivesTheHolderATokenThatGrows(t *testing.T) {
	eachMode(t, func(t *testing.T, rdb redis.UniversalClient, mode string) {
		ctx := t.Context()
		require.NoError(t, rdb.Set(ctx, "{k}", "mine", time.Minute).Err())
		before, err := rdb.Time(ctx).Result()
		require.NoError(t, err)
		first, err := fence(t, rdb, mode)
		require.NoError(t, err)
		after, err := rdb.Time(ctx).Result()
		require.NoError(t, err)
		require.GreaterOrEqual(t, first[0], before.UnixMicro())
		require.LessOrEqual(t, first[0], after.UnixMicro())

		stored, err := rdb.Get(ctx, "{k}:f").Int64()
		require.NoError(t, err)
		require.Equal(t, first[0], stored, "every digit")
		ttl, err := rdb.PTTL(ctx, "{k}:f").Result()
		require.NoError(t, err)
		require.InDelta(t, 30*24*time.Hour, ttl, float64(time.Minute))

		second, err := fence(t, rdb, mode)
		require.NoError(t, err)
		require.Greater(t, second[0], first[0])
	})
}

func TestObtainScriptCountsWhereTheClockWasSetBack(t *testing.T) {
	eachMode(t, func(t *testing.T, rdb redis.UniversalClient, mode string) {
		ctx := t.Context()
		require.NoError(t, rdb.Set(ctx, "{k}", "mine", time.Minute).Err())
		// 2^53 - 2 is the last counter that one can be added to.
		for _, last := range []int64{9e15, 8795159093017078, 1<<53 - 2} {
			require.NoError(t, rdb.Set(ctx, "{k}:f", last, 0).Err())
			got, err := fence(t, rdb, mode)
			require.NoError(t, err)
			require.Equal(t, last+1, got[0])
			stored, err := rdb.Get(ctx, "{k}:f").Result()
			require.NoError(t, err)
			require.Equal(t, strconv.FormatInt(last+1, 10), stored)
			ttl, err := rdb.PTTL(ctx, "{k}:f").Result()
			require.NoError(t, err)
			require.InDelta(t, 30*24*time.Hour, ttl, float64(time.Minute))
		}
	})
}

func TestObtainScriptGoesByTheClockWhereTheCounterIsNone(t *testing.T) {
	eachMode(t, func(t *testing.T, rdb redis.UniversalClient, mode string) {
		ctx := t.Context()
		require.NoError(t, rdb.Set(ctx, "{k}", "mine", time.Minute).Err())
		for _, bad := range []string{"", "abc", "-5", "nan", "inf", "1e300", strconv.FormatInt(1<<53-1, 10), strconv.FormatUint(math.MaxUint64, 10)} {
			require.NoError(t, rdb.Set(ctx, "{k}:f", bad, 0).Err())
			now, err := rdb.Time(ctx).Result()
			require.NoError(t, err)
			got, err := fence(t, rdb, mode)
			require.NoError(t, err, bad)
			require.InDelta(t, now.UnixMicro(), got[0], 1e8, bad)
		}
	})
}

func TestObtainScriptGivesNothingToAnother(t *testing.T) {
	eachMode(t, func(t *testing.T, rdb redis.UniversalClient, mode string) {
		ctx := t.Context()
		require.NoError(t, rdb.Set(ctx, "{k}", "another's", 0).Err())
		got, err := fence(t, rdb, mode)
		require.NoError(t, err)
		require.Equal(t, []int64{-1, -1, 0}, got[:3], "it does not expire")

		require.NoError(t, rdb.Set(ctx, "{k}", "min", time.Minute).Err())
		got, err = fence(t, rdb, mode)
		require.NoError(t, err)
		require.EqualValues(t, -1, got[0])
		require.InDelta(t, 60_000, got[1], 5_000)
		require.Zero(t, rdb.Exists(ctx, "{k}:f").Val())
	})
}

func TestObtainScriptTellsTheLongestOfSeveralLeases(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		for _, test := range []struct{ a, b, want time.Duration }{
			{10 * time.Second, time.Minute, time.Minute},
			{time.Minute, 10 * time.Second, time.Minute},
			{0, time.Minute, noExpiry},
			{time.Minute, 0, noExpiry},
		} {
			require.NoError(t, rdb.Set(ctx, "{k}a", "another's", test.a).Err())
			require.NoError(t, rdb.Set(ctx, "{k}b", "a third's", test.b).Err())
			reply, err := rdb.Eval(ctx, obtainText(), []string{"{k}a", "{k}b", "{k}aq", "{k}bq", "{k}af", "{k}bf"}, "mine", 4, 60000).Int64Slice()
			require.NoError(t, err)
			require.EqualValues(t, -1, reply[0])
			require.InDelta(t, test.want, leftOf(reply[1]), float64(5*time.Second))
			if test.want == noExpiry {
				require.Equal(t, noExpiry, leftOf(reply[1]))
			}
		}
	})
}

func TestObtainScriptFailsOnOtherTypes(t *testing.T) {
	eachMode(t, func(t *testing.T, rdb redis.UniversalClient, mode string) {
		ctx := t.Context()
		require.NoError(t, rdb.HSet(ctx, "{k}", "f", "v").Err())
		_, err := fence(t, rdb, mode)
		require.True(t, redis.HasErrorPrefix(err, "WRONGTYPE"), "%v", err)

		require.NoError(t, rdb.Del(ctx, "{k}").Err())
		require.NoError(t, rdb.Set(ctx, "{k}", "mine", time.Minute).Err())
		require.NoError(t, rdb.HSet(ctx, "{k}:f", "f", "v").Err())
		_, err = fence(t, rdb, mode)
		require.True(t, redis.HasErrorPrefix(err, "WRONGTYPE"), "%v", err)
	})
}

func TestPassScriptDeletesWhatIsMineAlone(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		discard := func() int64 {
			n, err := passScript.Run(ctx, rdb, []string{"{k}", "{k}:q", "{k}:f"}, "token-1", "").Int64Slice()
			require.NoError(t, err)
			require.Len(t, n, 2)
			require.Zero(t, n[1])
			return n[0]
		}
		require.EqualValues(t, 0, discard(), "there is nothing")
		for _, value := range []string{"token-1", `token-1{"holder":"x"}`} {
			require.NoError(t, rdb.Set(ctx, "{k}", value, time.Minute).Err())
			require.EqualValues(t, 1, discard())
			require.Zero(t, rdb.Exists(ctx, "{k}").Val())
		}
		for _, value := range []string{"token-2", "token", "Token-1", `x{"token-1"}`} {
			require.NoError(t, rdb.Set(ctx, "{k}", value, time.Minute).Err())
			require.EqualValues(t, 0, discard(), value)
			require.Equal(t, value, rdb.Get(ctx, "{k}").Val())
		}
		require.NoError(t, rdb.Del(ctx, "{k}").Err())
		require.NoError(t, rdb.LPush(ctx, "{k}", "x").Err())
		err := passScript.Run(ctx, rdb, []string{"{k}", "{k}:q", "{k}:f"}, "token-1", "").Err()
		require.True(t, redis.HasErrorPrefix(err, "WRONGTYPE"), "%v", err)
	})
}

func TestAnAttemptSurvivesAServerThatForgotItsScripts(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{})
		for _, forget := range []struct {
			name string
		}{
			{name: "all"},
			{name: "ours"},
		} {
			require.NoError(t, rdb.ScriptFlush(ctx).Err())
			if forget.name == "ours" { // redislock's is known, ours is not
				lock, err := redislock.Obtain(ctx, rdb, "elsewhere", time.Minute, nil)
				require.NoError(t, err)
				require.NoError(t, lock.Release(ctx))
			}
			l, err := c.TryAcquire(ctx, "k")
			require.NoError(t, err, forget.name)
			require.Positive(t, l.Token())
			_, err = c.TryAcquire(ctx, "k")
			require.ErrorIs(t, err, ErrNotAcquired)
			require.NoError(t, rdb.ScriptFlush(ctx).Err())
			require.NoError(t, l.Release(ctx))
		}
	})
}

func TestScriptsHaveTheSameFigures(t *testing.T) {
	require.Contains(t, giveLua, fmt.Sprintf("local queueLife = %d ", queueLife.Milliseconds()))
	life := fmt.Sprintf("'%d'", fenceLife.Milliseconds())
	require.Contains(t, drawLua, "local fenceLife = "+life)
	process, lives := tokenLen+processLen, tokenLen+processLen+len(lifeOf(time.Hour))
	require.Contains(t, giveLua, fmt.Sprintf("string.sub(entry, 1, %d)", tokenLen))
	require.Contains(t, giveLua, fmt.Sprintf("string.sub(entry, %d, %d)", tokenLen+1, process))
	require.Contains(t, giveLua, fmt.Sprintf("string.sub(entry, %d, %d)", process+1, lives))
	require.Contains(t, giveLua, fmt.Sprintf("string.sub(entry, %d)", lives+1))
	require.Len(t, newProcess(true), processLen)
	require.Len(t, newProcess(false), processLen)
	require.Contains(t, waitLua, fmt.Sprintf("redis.call('GETRANGE', KEYS[1], 0, %d)", tokenLen-1))
}

// In front of redislock's scripts stand shorter ones for the most frequent case.
func TestWhatStandsInFrontDoesWhatRedislockDoes(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{TTL: time.Minute})
		l := acquire(t, c, "k")
		held := l.grant(0)
		theirs, err := redislock.Obtain(ctx, rdb, "theirs", time.Minute, &redislock.Options{Token: held.Token(), Metadata: held.Metadata()})
		require.NoError(t, err)
		for _, get := range []func(string) any{
			func(key string) any { return rdb.Get(ctx, key).Val() },
			func(key string) any { return rdb.Type(ctx, key).Val() },
			func(key string) any { return rdb.PTTL(ctx, key).Val().Round(10 * time.Second) },
		} {
			require.Equal(t, get("theirs"), get(leaseK))
		}
		for name, disturb := range map[string]func(key string) error{
			"as it was":       func(string) error { return nil },
			"gone":            func(key string) error { return rdb.Del(ctx, key).Err() },
			"another's":       func(key string) error { return rdb.Set(ctx, key, "another's", 0).Err() },
			"of another type": func(key string) error { return rdb.Del(ctx, key).Err() },
		} {
			require.NoError(t, rdb.Set(ctx, "theirs", held.Token()+held.Metadata(), time.Minute).Err())
			require.NoError(t, rdb.Set(ctx, leaseK, held.Token()+held.Metadata(), time.Minute).Err())
			for _, key := range []string{"theirs", leaseK} {
				require.NoError(t, disturb(key))
				if name == "of another type" {
					require.NoError(t, rdb.RPush(ctx, key, "x").Err())
				}
			}
			want := theirs.Release(ctx)
			got := c.store.release(ctx, l)
			require.Equal(t, want, got, name)
			require.Equal(t, rdb.Exists(ctx, "theirs").Val(), rdb.Exists(ctx, leaseK).Val(), name)
			require.NoError(t, rdb.Del(ctx, "theirs", leaseK).Err())
		}
	})
}
