package cache

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

var tombstone = string(appendEntry(nil, entry{kind: kindTombstone}))

// Whatever a key holds, a Delete removes it, but for a hold, which only a longer
// one changes.
func TestADeleteLeavesNothingOrTheLongestHold(t *testing.T) {
	const hold = time.Minute
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
		ctx, key := t.Context(), v.prefix+"k"
		for name, write := range map[string]func() error{
			"nothing":     func() error { return nil },
			"value":       func() error { return v.Set(ctx, "k", "value") },
			"lease":       func() error { return rdb.Set(ctx, key, newLease(), time.Hour).Err() },
			"list":        func() error { return rdb.LPush(ctx, key, "x").Err() },
			"no more TTL": func() error { return rdb.Set(ctx, key, tombstone, 0).Err() },
		} {
			require.NoError(t, write(), name)
			require.NoError(t, v.Delete(ctx, "k"))
			require.Zero(t, rdb.Exists(ctx, key).Val(), name)

			require.NoError(t, write(), name)
			require.NoError(t, v.DeleteFor(ctx, hold, "k"))
			require.Equal(t, tombstone, stored(t, rdb, key, hold), name)
			require.NoError(t, rdb.Del(ctx, key).Err())
		}

		require.NoError(t, v.DeleteFor(ctx, hold, "k"))
		require.NoError(t, v.Delete(ctx, "k"))
		require.NoError(t, v.DeleteFor(ctx, hold/2, "k"))
		require.Equal(t, tombstone, stored(t, rdb, key, hold))
		require.Greater(t, rdb.PTTL(ctx, key).Val(), hold/2)
		require.NoError(t, v.DeleteFor(ctx, 2*hold, "k"))
		require.Greater(t, rdb.PTTL(ctx, key).Val(), hold)

		require.NoError(t, v.Set(ctx, "k", "new"))
		got, err := v.Get(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "new", got, "a Set ends the hold")
	})
}

// The first pipeline finds a server that does not know the script.
func TestManyKeysAreDeletedWithAHold(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		v := NewView[int, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
		values := make(map[int]string)
		var keys []int
		for key := range inSlowLua(t, 50, maxPipeline+10) {
			values[key] = "value"
			keys = append(keys, key)
		}
		require.NoError(t, v.SetMany(t.Context(), values))
		require.NoError(t, v.DeleteFor(t.Context(), time.Minute, keys...))
		for _, key := range keys {
			require.Equal(t, tombstone, rdb.Get(t.Context(), joinKey(v.prefix, key)).Val())
		}
		require.EqualValues(t, len(keys), v.c.Stats().Deletes)
	})
}

func TestWhatIsLoadedInAHoldIsNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		here := NewView[string, int](newClient(t, rdb, Config{}), "v", ViewConfig{})
		there := NewView[string, int](newClient(t, s.Client(t), Config{}), "v", ViewConfig{})
		loads := 0
		load := func(context.Context, string) (int, error) { loads++; return loads, nil }
		src := newSource(-1)
		running := goFetch(t.Context(), there, "k", src.load)
		<-src.began
		require.NoError(t, here.DeleteFor(t.Context(), 5*time.Second, "k"))
		close(src.release)
		require.Equal(t, fetched[int]{-1, nil}, <-running, "it came before")
		for i := range 3 {
			for n, v := range []*View[string, int]{here, there} {
				got, err := v.Fetch(t.Context(), "k", load)
				require.NoError(t, err)
				require.Equal(t, 2*i+n+1, got)
			}
			added, err := there.Add(t.Context(), "k", 0)
			require.NoError(t, err)
			require.False(t, added)
			_, err = here.Get(t.Context(), "k")
			require.Equal(t, ErrMiss, err)
		}
		time.Sleep(5 * time.Second)
		for range 3 {
			got, err := here.Fetch(t.Context(), "k", load)
			require.NoError(t, err)
			require.Equal(t, 7, got, "the hold is over")
		}
	})
}

func TestAFullServerHoldsAllTheSame(t *testing.T) {
	s := redistest.New(t, redistest.Config{})
	rdb := s.Client(t)
	v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
	require.NoError(t, v.Set(t.Context(), "k", "value"))
	require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory", "1").Err())
	require.NoError(t, v.DeleteFor(t.Context(), time.Minute, "k", "l"))
	require.NoError(t, v.DeleteFor(t.Context(), time.Minute, "m"))
	for _, key := range []string{"k", "l", "m"} {
		require.Equal(t, tombstone, stored(t, rdb, v.prefix+key, time.Minute))
	}
}

func TestAHoldHasALength(t *testing.T) {
	_, rdb := newServer(t)
	v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
	for _, hold := range []time.Duration{0, -time.Second, time.Millisecond - 1} {
		require.EqualError(t, v.DeleteFor(t.Context(), hold, "k"), fmt.Sprintf("cache: delete: hold is %s, want at least 1ms (Delete is without)", hold))
	}
	require.NoError(t, v.DeleteFor(t.Context(), time.Second))
	require.Zero(t, rdb.DBSize(t.Context()).Val())
}
