package lock

import (
	"context"
	"testing"
	"time"

	"github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// Why Sentinel endpoints are refused: a lock that the replica has not seen is
// forgotten by the failover, and a second holder gets it while the first has it.
// Redis: "replication is asynchronous", so no client can notice it in time.
// https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/#consistency-under-partitions
func TestAFailoverHandsOneLockToTwoHoldersWithoutUs(t *testing.T) {
	fixture := redistest.NewSentinels(t, redistest.SentinelsConfig{Replicas: 1})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const ttl = 5 * time.Minute // both hold it for longer than the test lasts
	require.NoError(t, fixture.Settled(ctx))
	follow := func() *redis.Client {
		rdb := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: fixture.MasterName(), SentinelAddrs: fixture.Addrs()})
		t.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	first, second := follow(), follow()
	refuse := func(when string) {
		for _, rdb := range []redis.UniversalClient{first, second, ownOf(t, fixture.URL())} {
			_, err := New(rdb, Config{})
			require.ErrorIs(t, err, ErrSentinelEndpoint, when)
		}
		primary := fixture.Primary()
		require.NotNil(t, primary)
		awaitSentinels(t, primary) // which connect to one that they have promoted a moment later
		for _, rdb := range []redis.UniversalClient{primary.Client(t), ownOf(t, primary.URL())} {
			_, err := open(t, rdb, Config{}).TryAcquire(ctx, "report")
			require.ErrorIs(t, err, ErrFailoverManaged, when)
		}
	}
	refuse("before the failover")

	// The link to the replica breaks, and stays broken.
	primary := fixture.Primary()
	admin := primary.Client(t)
	require.NoError(t, admin.Do(ctx, "acl", "setuser", "default", "-psync", "-sync").Err())
	require.NoError(t, admin.Do(ctx, "client", "kill", "type", "replica").Err())

	opened := open(t, primary.Client(t), Config{AllowFailoverManaged: true, TTL: ttl})
	mine, err := opened.TryAcquire(ctx, "fenced")
	require.NoError(t, err)
	one, err := redislock.Obtain(ctx, first, "bare", ttl, nil)
	require.NoError(t, err, "the first holder")
	seen, err := admin.Do(ctx, "wait", 1, 100).Int()
	require.NoError(t, err)
	require.Zero(t, seen, "the replica has not seen it")

	primary.Kill()
	promoted, err := fixture.AwaitPrimary(ctx, primary.Addr())
	require.NoError(t, err)
	var two *redislock.Lock
	for two == nil {
		two, err = redislock.Obtain(ctx, second, "bare", ttl, nil)
		require.NoError(t, ctx.Err())
		require.NotErrorIs(t, err, redislock.ErrNotObtained, "then nobody would have been harmed")
	}
	require.NotEqual(t, one.Token(), two.Token())
	t.Logf("redislock on a failover client: two holders of one lock, which ends %s from now for the first", ttl)

	refuse("after the failover")

	// Who has opted in has the same hazard, and the fencing token to stop it.
	other := open(t, promoted.Client(t), Config{AllowFailoverManaged: true, TTL: ttl})
	theirs, err := other.TryAcquire(ctx, "fenced")
	require.NoError(t, err)
	require.NoError(t, mine.Context().Err(), "two holders")
	require.Greater(t, theirs.Token(), mine.Token(), "and a resource that compares tokens refuses the first")
}
