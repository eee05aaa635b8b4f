package cache

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
)

// stored returns what key holds and whether it has a TTL of at most limit.
func stored(t *testing.T, rdb redis.UniversalClient, key string, limit time.Duration) string {
	t.Helper()
	b, err := rdb.Get(t.Context(), key).Result()
	require.NoError(t, err)
	ttl := rdb.PTTL(t.Context(), key).Val()
	require.Positive(t, ttl)
	require.LessOrEqual(t, ttl, limit)
	return b
}

func TestAcquireTakesWhatIsMissingMineOrDead(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx, c := t.Context(), newClient(t, rdb, Config{})
		mine, other := newLease(), newLease()
		require.NotEqual(t, mine, other)

		_, began, err := c.acquire(ctx, "k", mine, time.Minute, "")
		require.NoError(t, err)
		require.Positive(t, began, "the key was missing")
		require.Equal(t, string(mine), stored(t, rdb, "k", time.Minute))

		_, began, err = c.acquire(ctx, "k", mine, time.Hour, "")
		require.NoError(t, err)
		require.Positive(t, began, "an echo of my own")

		held, began, err := c.acquire(ctx, "k", other, time.Minute, "")
		require.NoError(t, err)
		require.Zero(t, began)
		require.Equal(t, mine, held)

		// Any bytes come back as they are, and are replaced only if they are
		// the ones that were judged.
		junk := "\xc1\x7f\x00\r\n junk"
		require.NoError(t, rdb.Set(ctx, "k", junk, time.Minute).Err())
		held, began, err = c.acquire(ctx, "k", other, time.Minute, shaOf([]byte("what was there before")))
		require.NoError(t, err)
		require.Zero(t, began)
		require.Equal(t, junk, string(held))
		_, began, err = c.acquire(ctx, "k", other, time.Minute, shaOf([]byte(junk)))
		require.NoError(t, err)
		require.Positive(t, began)
		require.Equal(t, string(other), stored(t, rdb, "k", time.Minute))

		require.NoError(t, rdb.Set(ctx, "k", "", time.Minute).Err())
		held, began, err = c.acquire(ctx, "k", mine, time.Minute, "")
		require.NoError(t, err)
		require.Zero(t, began)
		require.Empty(t, held)
		require.NotNil(t, held, "empty is not missing")

		require.NoError(t, rdb.LPush(ctx, "list", "x").Err())
		_, _, err = c.acquire(ctx, "list", mine, time.Minute, "")
		require.ErrorContains(t, err, "WRONGTYPE")
	})
}

func TestFillStoresUnderMyLeaseAlone(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx, c, mine := t.Context(), newClient(t, rdb, Config{}), newLease()
		value := []byte("\xc1\x11\x00 any \xff bytes")

		for name, other := range map[string][]byte{"another's lease": newLease(), "a value": []byte("v"), "a tombstone": {mark, kindTombstone}} {
			require.NoError(t, rdb.Set(ctx, "k", other, time.Minute).Err())
			filled, err := c.fill(ctx, "k", mine, value, 1000)
			require.NoError(t, err)
			require.False(t, filled, name)
			require.Equal(t, string(other), stored(t, rdb, "k", time.Minute))
		}
		require.NoError(t, rdb.Del(ctx, "k").Err())
		filled, err := c.fill(ctx, "k", mine, value, 1000)
		require.NoError(t, err)
		require.False(t, filled, "deleted")
		require.Zero(t, rdb.Exists(ctx, "k").Val())

		require.NoError(t, rdb.Set(ctx, "k", mine, time.Minute).Err())
		filled, err = c.fill(ctx, "k", mine, value, 1000)
		require.NoError(t, err)
		require.True(t, filled)
		require.Equal(t, string(value), stored(t, rdb, "k", time.Second))

		filled, err = c.fill(ctx, "k", mine, []byte("again"), 1000)
		require.NoError(t, err)
		require.False(t, filled, "the lease is used up")
		require.Equal(t, string(value), stored(t, rdb, "k", time.Second))
	})
}

func TestReleaseRemovesMyLeaseAlone(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx, c, mine := t.Context(), newClient(t, rdb, Config{}), newLease()
		for name, other := range map[string][]byte{"another's lease": newLease(), "a value": []byte("v"), "a tombstone": {mark, kindTombstone}} {
			require.NoError(t, rdb.Set(ctx, "k", other, time.Minute).Err())
			released, err := c.release(ctx, "k", mine, 0)
			require.NoError(t, err)
			require.False(t, released, name)
			require.Equal(t, string(other), stored(t, rdb, "k", time.Minute))
		}
		require.NoError(t, rdb.Set(ctx, "k", mine, time.Minute).Err())
		released, err := c.release(ctx, "k", mine, 0)
		require.NoError(t, err)
		require.True(t, released)
		require.Zero(t, rdb.Exists(ctx, "k").Val())
		released, err = c.release(ctx, "k", mine, 0)
		require.NoError(t, err)
		require.False(t, released, "nothing is left")
	})
}

func TestALeaseIsGivenBackAlsoAfterItsContextHasEnded(t *testing.T) {
	_, rdb := newServer(t)
	c, mine := newClient(t, rdb, Config{}), newLease()
	require.NoError(t, rdb.Set(t.Context(), "k", mine, time.Minute).Err())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	released, err := c.release(ctx, "k", mine, 0)
	require.NoError(t, err)
	require.True(t, released)
}
