package testserver_test

import (
	"fmt"

	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

func TestEnvoySpreadsKeysAndRefusesWhatItDoesNotKnow(t *testing.T) {
	a, b := testserver.New(t), testserver.New(t)
	for _, c := range []struct {
		words         func(string, []string) string
		alone, behind string
	}{
		{testserver.EnvoyUnsupported, "invalid request", "unsupported command 'subscribe'"},
		{testserver.EnvoyUnknown, "ERR unknown command 'role', with args beginning with: ", "ERR unknown command 'subscribe', with args beginning with: x"},
	} {
		envoy := testserver.NewEnvoy(t, c.words, a.Dial, b.Dial)
		rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", Dialer: envoy.Dial, Protocol: 2, DisableIdentity: true, MaxRetries: -1})
		ctx := t.Context()
		var keys []string
		for i := range 20 {
			keys = append(keys, fmt.Sprint("k", i))
			require.NoError(t, rdb.Set(ctx, keys[i], i, 0).Err())
		}
		for _, srv := range []*testserver.Server{a, b} {
			n, err := srv.Client(t).DBSize(ctx).Result()
			require.NoError(t, err)
			require.NotZero(t, n, "both servers have some")
		}
		values, err := rdb.MGet(ctx, append(keys[:2:2], "absent")...).Result()
		require.NoError(t, err)
		require.Equal(t, []any{"0", "1", nil}, values)
		require.Equal(t, []byte("k3"), []byte(rdb.Eval(ctx, "return KEYS[1]", []string{"k3"}).Val().(string)))
		require.EqualError(t, rdb.Eval(ctx, "return 1", nil).Err(), "wrong number of arguments for 'eval' command")
		require.NoError(t, rdb.Echo(ctx, "x").Err())
		require.NoError(t, rdb.Time(ctx).Err())
		require.NoError(t, rdb.Ping(ctx).Err())
		n, err := rdb.Del(ctx, append(keys, "absent")...).Result()
		require.NoError(t, err)
		require.EqualValues(t, 20, n, "on both servers")

		require.EqualError(t, rdb.Do(ctx, "role").Err(), c.alone)
		require.EqualError(t, rdb.Do(ctx, "subscribe", "x").Err(), c.behind)
		require.ErrorContains(t, rdb.Do(ctx, "auth", "x").Err(), "no password is set")
		require.Equal(t, []string{"hello", "role", "subscribe"}, envoy.Refused())
		require.NoError(t, rdb.Do(ctx, "quit").Err())
		require.NoError(t, rdb.Close())
	}
}

func TestEnvoySaysWhatItsServersDidNot(t *testing.T) {
	a := testserver.New(t)
	envoy := testserver.NewEnvoy(t, testserver.EnvoyUnknown, a.Dial)
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", Dialer: envoy.Dial, Protocol: 2, DisableIdentity: true, MaxRetries: -1})
	defer rdb.Close()
	require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
	a.Stop()
	require.EqualError(t, rdb.Get(t.Context(), "k").Err(), "upstream failure")
	require.EqualError(t, rdb.Get(t.Context(), "k").Err(), "no upstream host")
	require.EqualError(t, rdb.Del(t.Context(), "k", "l").Err(), "finished with 2 error(s)")
	require.NoError(t, a.Restart())
	require.Equal(t, "v", rdb.Get(t.Context(), "k").Val())
	envoy.Close()
	require.Error(t, rdb.Get(t.Context(), "k").Err())
}
