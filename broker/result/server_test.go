package result

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
)

// own returns a client as redisha opens it.
func own(t *testing.T, srv *redistest.Server) *conn.Client {
	t.Helper()
	ep, err := endpoint.Parse(srv.URL())
	require.NoError(t, err)
	rdb, err := conn.New(conn.Config{Role: "results", Endpoint: ep, Logger: quiet})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return rdb
}

// waitAll starts n waits, for the IDs 0 to n-1, and returns their outcome.
func waitAll(ctx context.Context, c *Client, n int) (outcome func() (bad []string)) {
	var wg sync.WaitGroup
	errs := make([]string, n)
	for i := range n {
		wg.Go(func() {
			r, err := c.Wait(ctx, fmt.Sprint(i))
			switch {
			case err != nil:
				errs[i] = err.Error()
			case r.State != Success || string(r.Value) != fmt.Sprint(i):
				errs[i] = fmt.Sprintf("got %+v for %d", r, i)
			}
		})
	}
	return func() (bad []string) {
		wg.Wait()
		for _, err := range errs {
			if err != "" {
				bad = append(bad, err)
			}
		}
		return bad
	}
}

func finishAll(t *testing.T, c *Client, n int) {
	t.Helper()
	for from := 0; from < n; from += 250 {
		var batch []Record
		for i := from; i < min(from+250, n); i++ {
			batch = append(batch, Record{ID: fmt.Sprint(i), State: Success, Value: fmt.Append(nil, i)})
		}
		_, err := c.StoreMany(t.Context(), batch)
		require.NoError(t, err)
	}
}

// subscribed returns when the client has n confirmed subscriptions.
func subscribed(t *testing.T, c *Client, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return c.Stats().Subscriptions == int64(n) }, time.Minute, time.Millisecond)
}

func pubsubConnections(t *testing.T, rdb redis.UniversalClient) int {
	t.Helper()
	list, err := rdb.Do(t.Context(), "client", "list", "type", "pubsub").Text()
	require.NoError(t, err)
	return strings.Count(list, " addr=")
}

func TestAThousandWaitersShareOneConnectionAndTwoGoroutines(t *testing.T) {
	const n = 1000
	srv := redistest.New(t, redistest.Config{})
	rdb := own(t, srv)
	c := newClient(t, rdb, Config{})
	other := newClient(t, srv.Client(t), Config{})
	require.NoError(t, rdb.Ping(t.Context()).Err())
	goroutines := runtime.NumGoroutine()

	outcome := waitAll(t.Context(), c, n)
	subscribed(t, c, n)
	require.Equal(t, 1, pubsubConnections(t, rdb))
	noMoreGoroutines(t, goroutines+n+2)
	channels, err := rdb.PubSubChannels(t.Context(), key+"*").Result()
	require.NoError(t, err)
	require.Len(t, channels, n)

	finishAll(t, other, n)
	require.Empty(t, outcome())
	require.Less(t, c.Stats().Healed, uint64(n/10), "nearly each was woken, however slow the machine")
	require.EqualValues(t, n, c.Stats().Waits.Count)
	require.Eventually(t, func() bool {
		channels, err := rdb.PubSubChannels(t.Context(), "*").Result()
		return err == nil && len(channels) == 0
	}, 20*time.Second, time.Millisecond, "all are unsubscribed")
	require.NoError(t, c.Close())
	require.Eventually(t, func() bool { return pubsubConnections(t, rdb) == 0 }, 20*time.Second, time.Millisecond)
	noMoreGoroutines(t, goroutines+2)
}

// noMoreGoroutines waits until there are n at most: go-redis' dials end soon.
func noMoreGoroutines(t *testing.T, n int) {
	t.Helper()
	for start := time.Now(); runtime.NumGoroutine() > n; time.Sleep(time.Millisecond) {
		require.Less(t, time.Since(start), 20*time.Second, "%d goroutines, want %d", runtime.NumGoroutine(), n)
	}
}

func TestWaitersAreWokenAlthoughTheServerWasKilled(t *testing.T) {
	const n = 50
	for name, client := range map[string]func(*testing.T, *redistest.Server) redis.UniversalClient{
		"plain": func(t *testing.T, srv *redistest.Server) redis.UniversalClient { return srv.Client(t) },
		"own":   func(t *testing.T, srv *redistest.Server) redis.UniversalClient { return own(t, srv) },
	} {
		t.Run(name, func(t *testing.T) {
			srv := redistest.New(t, redistest.Config{Persist: true})
			c := newClient(t, client(t, srv), Config{})
			outcome := waitAll(t.Context(), c, n)
			subscribed(t, c, n)
			for range 3 {
				srv.Kill()
				subscribed(t, c, 0)
				require.NoError(t, srv.Restart(t.Context()))
				subscribed(t, c, n)
			}
			require.GreaterOrEqual(t, c.Stats().Gaps, uint64(3), "and more where the machine is slower than an answer to PING may be")
			other := srv.Client(t)
			channels, err := other.PubSubChannels(t.Context(), key+"*").Result()
			require.NoError(t, err)
			require.Len(t, channels, n, "all on the new connection")
			require.Equal(t, 1, pubsubConnections(t, other))
			finishAll(t, newClient(t, other, Config{}), n)
			require.Empty(t, outcome())
		})
	}
}

func TestWhatWasStoredWhileTheSubscriptionWasDownIsFound(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rdb := own(t, srv)
	c := newClient(t, rdb, Config{})
	outcome := waitAll(t.Context(), c, 10)
	subscribed(t, c, 10)
	// In one transaction, so that nobody subscribes again between the two.
	_, err := rdb.TxPipelined(t.Context(), func(pipe redis.Pipeliner) error {
		pipe.Do(t.Context(), "client", "kill", "type", "pubsub")
		for i := range 10 {
			record := appendRecord(nil, Record{State: Success, Value: fmt.Append(nil, i)}, newCodec(t))
			storeScript.Eval(t.Context(), pipe, []string{key + fmt.Sprint(i)}, record, 60_000, "PUBLISH")
		}
		return nil
	})
	require.NoError(t, err)
	require.Empty(t, outcome())
	require.Zero(t, c.Stats().Healed)
}

// A user of this ACL may do all but use channels.
func TestAUserWithoutChannelsStoresAndWaitsAllTheSame(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Users: []string{"bob on >secret ~redisha:result:* resetchannels +@all"}})
	opt := srv.Options()
	opt.Username, opt.Password = "bob", "secret"
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	c := newClient(t, rdb, Config{})
	outcome := waitAll(t.Context(), c, 10)
	require.Eventually(t, func() bool { return c.Stats().Gaps == 1 }, 20*time.Second, time.Millisecond)
	finishAll(t, c, 10)
	require.Empty(t, outcome())
	require.EqualValues(t, 10, c.Stats().Unannounced)
	require.Positive(t, c.Stats().Healed, "found by reading")
}

// The rules that an operator needs at least.
func TestTheRoleNeedsNoMoreThanItsOwnKeysAndChannels(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Users: []string{
		"eve on >secret resetkeys ~redisha:result:* resetchannels &redisha:result:* -@all +get +getrange +set +unlink +publish +subscribe +unsubscribe +eval +evalsha +hello +client +ping",
	}})
	opt := srv.Options()
	opt.Username, opt.Password = "eve", "secret"
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	c := newClient(t, rdb, Config{})
	outcome := waitAll(t.Context(), c, 3)
	subscribed(t, c, 3)
	finishAll(t, c, 3)
	require.Empty(t, outcome())
	require.Zero(t, c.Stats().Unannounced)
	require.NoError(t, c.Forget(t.Context(), "0"))
	require.NoError(t, c.Check(t.Context()))
}

func TestWaitersAreWokenAfterAFailover(t *testing.T) {
	const n = 20
	s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
	ep, err := endpoint.Parse(s.URL())
	require.NoError(t, err)
	rdb, err := conn.New(conn.Config{Role: "results", Endpoint: ep, Logger: quiet})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	c := newClient(t, rdb, Config{})
	outcome := waitAll(t.Context(), c, n)
	subscribed(t, c, n)
	_, err = s.Failover(t.Context())
	require.NoError(t, err)
	require.Eventually(t, func() bool { return rdb.Epoch() > 0 && c.Stats().Gaps > 0 }, time.Minute, time.Millisecond)
	subscribed(t, c, n)
	finishAll(t, c, n)
	require.Empty(t, outcome())
}
