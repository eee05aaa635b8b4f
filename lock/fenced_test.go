package lock

import (
	"context"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

func TestOnlyTheGreatestTokenWrites(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		holds := func(want string) {
			t.Helper()
			require.Equal(t, want, rdb.Get(ctx, "stock").Val())
		}
		require.NoError(t, SetFenced(ctx, rdb, "stock", "a", 17, 0))
		holds("a")
		require.NoError(t, SetFenced(ctx, rdb, "stock", "b", 17, 0), "a lease writes as often as it likes")
		holds("b")
		require.NoError(t, SetFenced(ctx, rdb, "stock", "c", 101, 0), "and 101 is more than 17 although '1' < '7'")
		holds("c")
		for _, late := range []int64{1, 17, 20, 99, 100} {
			err := SetFenced(ctx, rdb, "stock", "late", late, 0)
			require.ErrorIs(t, err, ErrFenced)
			require.ErrorContains(t, err, `lock: set "stock": `)
			require.ErrorContains(t, err, "token "+strconv.FormatInt(late, 10)+" is less than 101")
			holds("c")
		}
		require.NoError(t, rdb.Del(ctx, "stock").Err())
		require.ErrorIs(t, SetFenced(ctx, rdb, "stock", "late", 17, 0), ErrFenced, "also where the value was deleted")
		require.NoError(t, SetFenced(ctx, rdb, "stock", "d", 101, 0))
	})
}

// Neighbours of which a number of Lua, a float64, makes one.
func TestFencesAreExact(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		for _, token := range []int64{2, 1795159093017078, 1<<53 + 1, math.MaxInt64} {
			key := "k" + strconv.FormatInt(token, 10)
			require.NoError(t, SetFenced(ctx, rdb, key, "new", token, 0))
			require.ErrorIs(t, SetFenced(ctx, rdb, key, "late", token-1, 0), ErrFenced)
			require.Equal(t, "new", rdb.Get(ctx, key).Val())
			require.Equal(t, strconv.FormatInt(token, 10), rdb.Get(ctx, key+":fence{"+key+"}").Val(), "every digit")
		}
	})
}

func TestFencesOutliveWhatTheyGuard(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		const day = 24 * time.Hour
		for ttl, fence := range map[time.Duration]time.Duration{0: 30 * day, time.Minute: 30 * day, 90 * day: 90 * day} {
			require.NoError(t, SetFenced(ctx, rdb, "{stock}", "a", 1, ttl))
			want := ttl
			if ttl == 0 {
				want = -1
			}
			require.InDelta(t, want, rdb.PTTL(ctx, "{stock}").Val(), float64(time.Minute), "of the value, for %s", ttl)
			require.InDelta(t, fence, rdb.PTTL(ctx, "{stock}:fence").Val(), float64(time.Minute), "of the fence, for %s", ttl)
		}
	})
}

func TestAnyValueIsStoredAsSetWould(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		for i, value := range []any{"", "text", []byte{0, 0xff, '\n'}, 42, -1.5, true, nil, time.Minute, time.Unix(1795159093, 17).UTC()} {
			require.NoError(t, rdb.Set(ctx, "plain", value, 0).Err())
			require.NoError(t, SetFenced(ctx, rdb, "fenced", value, int64(i+1), 0))
			require.Equal(t, rdb.Get(ctx, "plain").Val(), rdb.Get(ctx, "fenced").Val())
		}
		require.NoError(t, rdb.RPush(ctx, "list", "x").Err())
		require.NoError(t, SetFenced(ctx, rdb, "list", "a", 1, 0), "SET overwrites any type")
		err := SetFenced(ctx, rdb, "fenced", struct{}{}, 100, 0)
		require.ErrorContains(t, err, "implement encoding.BinaryMarshaler")
		require.NotErrorIs(t, err, ErrFenced)
	})
}

func TestAForeignFenceIsToldAndRefuses(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		const fence = "stock:fence{stock}"
		for _, bad := range []string{"", "abc", "-5", "007", "1.5", "1e3", " 7", "99999999999999999999"} {
			require.NoError(t, rdb.Set(ctx, fence, bad, 0).Err())
			err := SetFenced(ctx, rdb, "stock", "a", 7, 0)
			require.NotErrorIs(t, err, ErrFenced, bad)
			require.ErrorContains(t, err, `"`+fence+`" holds "`+bad+`", which is no token: delete it`)
			require.Zero(t, rdb.Exists(ctx, "stock").Val())
		}
		require.NoError(t, rdb.Del(ctx, fence).Err())
		require.NoError(t, rdb.RPush(ctx, fence, "x").Err())
		err := SetFenced(ctx, rdb, "stock", "a", 7, 0)
		require.ErrorContains(t, err, `"`+fence+`" holds something else than a token, delete it: `)
		require.NotErrorIs(t, err, ErrFenced)
	})
}

func TestSetFencedRefusesBadInput(t *testing.T) {
	rdb := testserver.New(t).Client(t)
	var none context.Context
	for _, c := range []struct {
		name  string
		ctx   context.Context
		rdb   redis.Scripter
		key   string
		token int64
		ttl   time.Duration
		want  string
	}{
		{"no context", none, rdb, "k", 1, 0, "nil context"},
		{"no client", t.Context(), nil, "k", 1, 0, "nil client: pass that of the server"},
		{"no key", t.Context(), rdb, "", 1, 0, "the key is empty: name what is written"},
		{"no token", t.Context(), rdb, "k", 0, 0, "token is 0, want that of a lease"},
		{"a token below 0", t.Context(), rdb, "k", -7, 0, "token is -7, want that of a lease"},
		{"a TTL below 0", t.Context(), rdb, "k", 1, -1, "ttl is -1ns, want at least 1ms, or 0"},
		{"a TTL of nearly 0", t.Context(), rdb, "k", 1, time.Microsecond, "ttl is 1µs, want at least 1ms, or 0"},
		{"a brace", t.Context(), rdb, "a}b", 1, 0, "braces and no hash tag: write the part"},
		{"an empty tag", t.Context(), rdb, "{}b", 1, 0, "braces and no hash tag"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := SetFenced(c.ctx, c.rdb, c.key, "a", c.token, c.ttl)
			require.ErrorContains(t, err, "lock: set ")
			require.ErrorContains(t, err, c.want)
		})
	}
	require.Empty(t, rdb.Keys(t.Context(), "*").Val())
}

func TestSetFencedEndsWithItsContext(t *testing.T) {
	rdb := testserver.New(t).Client(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errTest)
	require.ErrorIs(t, SetFenced(ctx, rdb, "k", "a", 1, 0), errTest)
}

// slotText is what CRC16 makes a key's slot of, by the specification of Cluster.
func slotText(key string) string {
	if open := strings.IndexByte(key, '{'); open >= 0 {
		if length := strings.IndexByte(key[open+1:], '}'); length > 0 {
			return key[open+1 : open+1+length]
		}
	}
	return key
}

func TestFencesHaveNamesOfTheirOwnInTheSlotOfTheirKey(t *testing.T) {
	owner := map[string]string{}
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringOf(rapid.SampledFrom([]rune("ab:{}"))).Draw(t, "key")
		fence, err := fenceOf(key)
		if err != nil {
			require.True(t, key == "" || slotText(key) == key && strings.ContainsAny(key, "{}"), "%s: %v", key, err)
			return
		}
		require.Equal(t, slotText(key), slotText(fence))
		require.True(t, strings.HasPrefix(fence, key), "so that an ACL allows both")
		if other, ok := owner[fence]; ok {
			require.Equal(t, other, key, "one fence for two keys")
		}
		owner[fence] = key
	})
}

// The server itself refuses a script whose keys are of two slots.
func TestSetFencedWorksOnCluster(t *testing.T) {
	rdb := clusterOfOne(t)
	for _, key := range []string{"stock", "stock:7", "user{42}", "user{42}:name", "{x}", "x"} {
		require.NoError(t, SetFenced(t.Context(), rdb, key, "a", 7, time.Minute))
		require.ErrorIs(t, SetFenced(t.Context(), rdb, key, "late", 6, time.Minute), ErrFenced)
		require.Equal(t, "a", rdb.Get(t.Context(), key).Val())
	}
}

func TestTheGreatestOfManyWritersStays(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		const writers = 64
		var wait sync.WaitGroup
		errs := make([]error, writers)
		for i, token := range rand.Perm(writers) {
			wait.Go(func() { errs[i] = SetFenced(t.Context(), rdb, "stock", token+1, int64(token)+1, 0) })
		}
		wait.Wait()
		for _, err := range errs {
			if err != nil {
				require.ErrorIs(t, err, ErrFenced)
			}
		}
		require.Equal(t, strconv.Itoa(writers), rdb.Get(t.Context(), "stock").Val())
	})
}

func TestAFencedWriteWhoseReplyWasLostIsSentAgain(t *testing.T) {
	srv := testserver.New(t)
	rdb := ownClient(t, srv)
	require.NoError(t, SetFenced(t.Context(), rdb, "stock", "a", 1, 0))
	srv.CutReplies(1, "EVALSHA")
	require.NoError(t, SetFenced(t.Context(), rdb, "stock", "b", 2, 0))
	require.Equal(t, "b", rdb.Get(t.Context(), "stock").Val())
}

func TestSetFencedSaysWhatItsUserNeeds(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Users: []string{
		"app on >pw +@all ~app:*", "reader on >pw +@read +eval +evalsha ~*", "bare on >pw +@all -@scripting ~*",
	}})
	for user, key := range map[string]string{"app": "other", "reader": "k", "bare": "k"} {
		opt := srv.Options()
		opt.Username, opt.Password = user, "pw"
		rdb := redis.NewClient(opt)
		err := SetFenced(t.Context(), rdb, key, "a", 1, 0)
		require.ErrorContains(t, err, `the user needs the commands EVAL EVALSHA GET SET on the keys "`+key+`" and "`+key+`:fence{`+key+`}"`, user)
		if user == "app" {
			require.NoError(t, SetFenced(t.Context(), rdb, "app:k", "a", 1, 0), "a rule for a prefix allows both keys")
		}
		require.NoError(t, rdb.Close())
	}
}

// A holder is paused until its lease has gone to another.
func TestAPausedHoldersWriteIsRefused(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		paused, other := open(t, rdb, Config{}), open(t, rdb, Config{})
		old := acquire(t, paused, "stock")
		require.NoError(t, SetFenced(ctx, rdb, "stock", 10, old.Token(), 0))
		require.NoError(t, rdb.Del(ctx, "redisha:lock:{stock}").Err()) // its TTL has passed
		now := acquire(t, other, "stock")
		require.NoError(t, SetFenced(ctx, rdb, "stock", 9, now.Token(), 0))
		require.ErrorIs(t, SetFenced(ctx, rdb, "stock", 11, old.Token(), 0), ErrFenced)
		require.Equal(t, "9", rdb.Get(ctx, "stock").Val())
		require.NoError(t, now.Release(ctx))
	})
}
