package cache

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
)

// A server whose clock was set back holds generations of the future: they cost a load
// that is made twice, and not the cache.
func TestAClockThatWasSetBackDoesNotEndACache(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", tagged)
		future := strconv.FormatInt(time.Now().Add(24*time.Hour).UnixMicro(), 10)
		loads := 0
		load := func(context.Context, string) (Entry[string], error) {
			loads++
			return Entry[string]{Value: strconv.Itoa(loads), Tags: []string{"tag"}}, nil
		}
		for i, key := range []string{v.generationKey, v.tagKey(hashTag("tag"))} {
			require.NoError(t, rdb.Set(ctx, key, future, time.Hour).Err())
			e, err := v.FetchEntry(ctx, "k", load)
			require.NoError(t, err)
			require.Equal(t, strconv.Itoa(2*i+2), e.Value, "the second load")
			e, err = v.FetchEntry(ctx, "k", load)
			require.NoError(t, err)
			require.Equal(t, strconv.Itoa(2*i+2), e.Value)
			require.Equal(t, FromRedis, e.Source)
			require.NotEqual(t, future, rdb.Get(ctx, key).Val())
			require.Greater(t, rdb.PTTL(ctx, key).Val(), minGenerationTTL)
		}
	})
}
