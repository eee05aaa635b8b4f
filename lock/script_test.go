package lock

import (
	"math"
	"strconv"
	"testing"
	"time"

	"github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
)

func fence(t *testing.T, rdb redis.UniversalClient, value string) ([]int64, error) {
	t.Helper()
	return fenceScript.Run(t.Context(), rdb, []string{"{k}", "{k}:f", "{k}:q"}, toOne.args(value, fenceLife.Milliseconds(), "", queueLife.Milliseconds(), false)...).Int64Slice()
}

// toOne publishes as on one server.
var toOne = courier{how: "publish", prefix: "p:"}

func TestFenceScriptGivesTheHolderATokenThatGrows(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		require.NoError(t, rdb.Set(ctx, "{k}", "mine", time.Minute).Err())
		before, err := rdb.Time(ctx).Result()
		require.NoError(t, err)
		first, err := fence(t, rdb, "mine")
		require.NoError(t, err)
		after, err := rdb.Time(ctx).Result()
		require.NoError(t, err)
		require.Len(t, first, 3)
		require.GreaterOrEqual(t, first[0], first[1])
		require.GreaterOrEqual(t, first[1], before.UnixMicro())
		require.GreaterOrEqual(t, first[0], before.UnixMicro())
		require.LessOrEqual(t, first[0], after.UnixMicro())

		stored, err := rdb.Get(ctx, "{k}:f").Int64()
		require.NoError(t, err)
		require.Equal(t, first[0], stored, "every digit")
		ttl, err := rdb.PTTL(ctx, "{k}:f").Result()
		require.NoError(t, err)
		require.InDelta(t, 30*24*time.Hour, ttl, float64(time.Minute))

		second, err := fence(t, rdb, "mine")
		require.NoError(t, err)
		require.Greater(t, second[0], first[0])
	})
}

func TestFenceScriptCountsWhereTheClockWasSetBack(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		require.NoError(t, rdb.Set(ctx, "{k}", "mine", time.Minute).Err())
		// 2^53 - 2 is the last counter that one can be added to.
		for _, last := range []int64{9e15, 8795159093017078, 1<<53 - 2} {
			require.NoError(t, rdb.Set(ctx, "{k}:f", last, 0).Err())
			got, err := fence(t, rdb, "mine")
			require.NoError(t, err)
			require.Equal(t, last+1, got[0])
			stored, err := rdb.Get(ctx, "{k}:f").Result()
			require.NoError(t, err)
			require.Equal(t, strconv.FormatInt(last+1, 10), stored)
		}
	})
}

func TestFenceScriptGoesByTheClockWhereTheCounterIsNone(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		require.NoError(t, rdb.Set(ctx, "{k}", "mine", time.Minute).Err())
		for _, bad := range []string{"", "abc", "-5", "nan", "inf", "1e300", strconv.FormatInt(1<<53-1, 10), strconv.FormatUint(math.MaxUint64, 10)} {
			require.NoError(t, rdb.Set(ctx, "{k}:f", bad, 0).Err())
			now, err := rdb.Time(ctx).Result()
			require.NoError(t, err)
			got, err := fence(t, rdb, "mine")
			require.NoError(t, err, bad)
			require.InDelta(t, now.UnixMicro(), got[0], 1e8, bad)
		}
	})
}

func TestFenceScriptGivesNothingToAnother(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		got, err := fence(t, rdb, "mine")
		require.NoError(t, err)
		require.Equal(t, []int64{-1, -2, 0}, got, "there is no lease")

		require.NoError(t, rdb.Set(ctx, "{k}", "another's", 0).Err())
		got, err = fence(t, rdb, "mine")
		require.NoError(t, err)
		require.Equal(t, []int64{-1, -1, 0}, got, "it does not expire")

		require.NoError(t, rdb.Set(ctx, "{k}", "mine too", time.Minute).Err())
		got, err = fence(t, rdb, "mine")
		require.NoError(t, err)
		require.EqualValues(t, -1, got[0])
		require.InDelta(t, 60_000, got[1], 5_000)
		require.Zero(t, rdb.Exists(ctx, "{k}:f").Val())
	})
}

func TestFenceScriptFailsOnOtherTypes(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		require.NoError(t, rdb.HSet(ctx, "{k}", "f", "v").Err())
		_, err := fence(t, rdb, "mine")
		require.True(t, redis.HasErrorPrefix(err, "WRONGTYPE"), "%v", err)

		require.NoError(t, rdb.Del(ctx, "{k}").Err())
		require.NoError(t, rdb.Set(ctx, "{k}", "mine", time.Minute).Err())
		require.NoError(t, rdb.HSet(ctx, "{k}:f", "f", "v").Err())
		_, err = fence(t, rdb, "mine")
		require.True(t, redis.HasErrorPrefix(err, "WRONGTYPE"), "%v", err)
	})
}

func TestPassScriptDeletesWhatIsMineAlone(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		discard := func() int64 {
			n, err := passScript.Run(ctx, rdb, []string{"{k}", "{k}:q"}, toOne.args("token-1", "")...).Int64()
			require.NoError(t, err)
			return n
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
		err := passScript.Run(ctx, rdb, []string{"{k}", "{k}:q"}, toOne.args("token-1", "")...).Err()
		require.True(t, redis.HasErrorPrefix(err, "WRONGTYPE"), "%v", err)
	})
}

// The server forgets scripts one by one here, as no server does: so that each
// path of the attempt is walked.
func TestAnAttemptSurvivesAServerThatForgotItsScripts(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{})
		for _, forget := range []struct {
			name string
			knew []string // the scripts loaded after the flush
		}{
			{name: "both"},
			{name: "the fence", knew: []string{"return 1"}},
			{name: "the lease", knew: []string{queueLua + fenceLua}},
		} {
			require.NoError(t, rdb.ScriptFlush(ctx).Err())
			if forget.name == "the fence" { // redislock's is known, ours is not
				lock, err := redislock.Obtain(ctx, rdb, "elsewhere", time.Minute, nil)
				require.NoError(t, err)
				require.NoError(t, lock.Release(ctx))
			}
			for _, script := range forget.knew {
				require.NoError(t, rdb.ScriptLoad(ctx, script).Err())
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
