package redisha_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
)

// overEnvoy runs f with clients behind an Envoy of each kind that refuses what its
// documentation does not list, in front of two servers.
func overEnvoy(t *testing.T, f func(t *testing.T, envoy *testserver.Envoy, clients *redisha.Clients)) {
	t.Helper()
	for name, words := range map[string]func(string, []string) string{"older": testserver.EnvoyUnsupported, "newer": testserver.EnvoyUnknown} {
		run := func(kind string, upstream func(t *testing.T) testserver.DialFunc) {
			t.Run(name+"/"+kind, func(t *testing.T) {
				envoy := testserver.NewEnvoy(t, words, upstream(t), upstream(t))
				at := redisha.Endpoint{URL: "redis://127.0.0.1:6379?proxy=envoy", Dialer: envoy.Dial}
				f(t, envoy, open(t, redisha.Config{
					Logger: slog.New(slog.DiscardHandler),
					Lazy:   true, // so that each role is used before it is checked
					Cache:  redisha.CacheConfig{Endpoint: at, Config: cache.Config{ReadTimeout: time.Minute}}, Results: redisha.ResultsConfig{Endpoint: at}, Locks: redisha.LocksConfig{Endpoint: at},
				}))
			})
		}
		run("memory", func(t *testing.T) testserver.DialFunc { return testserver.New(t).Dial })
		run("real", func(t *testing.T) testserver.DialFunc {
			addr := redistest.New(t, redistest.Config{}).Addr()
			return func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
		})
	}
}

func TestACacheWorksThroughEnvoy(t *testing.T) {
	overEnvoy(t, func(t *testing.T, envoy *testserver.Envoy, clients *redisha.Clients) {
		ctx := t.Context()
		view := cache.NewView[int, string](clients.Cache, "user", cache.ViewConfig{TTL: time.Minute})
		var loads atomic.Int64
		load := func(_ context.Context, id int) (string, error) {
			loads.Add(1)
			return fmt.Sprint("user ", id), nil
		}
		var ids []int
		for id := range 20 {
			ids = append(ids, id)
			for range 2 {
				user, err := view.Fetch(ctx, id, load)
				require.NoError(t, err)
				require.Equal(t, fmt.Sprint("user ", id), user)
			}
		}
		require.EqualValues(t, 20, loads.Load(), "each is loaded once and then found")
		require.NoError(t, view.Set(ctx, 1, "changed"))
		user, err := view.Get(ctx, 1)
		require.NoError(t, err)
		require.Equal(t, "changed", user)
		require.NoError(t, view.Delete(ctx, ids...), "on both servers")
		for _, id := range ids {
			_, err = view.Get(ctx, id)
			require.ErrorIs(t, err, cache.ErrMiss)
		}
		require.Zero(t, clients.Cache.Stats().Errors)
		requireHealthy(t, envoy, clients)
	})
}

func TestResultsWorkThroughEnvoy(t *testing.T) {
	overEnvoy(t, func(t *testing.T, envoy *testserver.Envoy, clients *redisha.Clients) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var waits []chan error
		for i := range 4 {
			id := fmt.Sprint("task-", i)
			done := make(chan error, 1)
			waits = append(waits, done)
			go func() {
				r, err := clients.Results.Wait(ctx, id)
				if err == nil && r.State != result.Success {
					err = fmt.Errorf("state %s", r.State)
				}
				done <- err
			}()
		}
		time.Sleep(300 * time.Millisecond) // they find that nobody wakes them, and poll
		for i := range waits {
			stored, err := clients.Results.Store(ctx, result.Record{ID: fmt.Sprint("task-", i), State: result.Started, Attempt: 1})
			require.NoError(t, err)
			require.True(t, stored)
			stored, err = clients.Results.Store(ctx, result.Record{ID: fmt.Sprint("task-", i), State: result.Success, Attempt: 1})
			require.NoError(t, err)
			require.True(t, stored)
		}
		for _, done := range waits {
			require.NoError(t, <-done)
		}
		require.Zero(t, clients.Results.Stats().Subscriptions)
		verdicts, err := clients.Results.StoreMany(ctx, []result.Record{
			{ID: "task-0", State: result.Failure, Attempt: 1}, {ID: "other", State: result.Success, Attempt: 1},
		})
		require.NoError(t, err)
		require.Len(t, verdicts, 2)
		require.NoError(t, clients.Results.Forget(ctx, "task-0", "task-1", "other"))
		requireHealthy(t, envoy, clients)
	})
}

func TestLocksWorkThroughEnvoy(t *testing.T) {
	overEnvoy(t, func(t *testing.T, envoy *testserver.Envoy, clients *redisha.Clients) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var token int64
		for i := range 10 {
			key := fmt.Sprint("report-", i%3)
			lease, err := clients.Locks.TryAcquire(ctx, key, lock.TTL(20*time.Second))
			require.NoError(t, err)
			_, err = clients.Locks.TryAcquire(ctx, key)
			require.ErrorIs(t, err, lock.ErrNotAcquired)
			if i%3 == 0 {
				require.Greater(t, lease.Token(), token)
				token = lease.Token()
			}
			require.NoError(t, lease.Release(ctx))
		}
		lease, err := clients.Locks.Acquire(ctx, "long", lock.TTL(2*time.Second))
		require.NoError(t, err)
		select {
		case <-lease.Context().Done():
			require.NoError(t, context.Cause(lease.Context()), "it is renewed")
		case <-time.After(3 * time.Second):
		}
		require.NoError(t, lease.Release(ctx))
		requireHealthy(t, envoy, clients)
	})
}

// requireHealthy verifies that all roles answer, and that the proxy refused
// nothing but the handshake and the subscription, without which a role works.
func requireHealthy(t *testing.T, envoy *testserver.Envoy, clients *redisha.Clients) {
	t.Helper()
	for role, err := range clients.Health(t.Context()) {
		require.NoError(t, err, role)
	}
	for _, name := range envoy.Refused() {
		require.True(t, slices.Contains([]string{"hello", "subscribe"}, name), "%s was sent", name)
	}
}

func TestWhatEnvoyDoesNotHaveIsRefused(t *testing.T) {
	_, err := redisha.Open(t.Context(), redisha.Config{Broker: redisha.BrokerConfig{Endpoint: at("redis://h?proxy=envoy")}})
	require.ErrorContains(t, err, "a broker cannot work through a proxy (proxy=envoy), which refuses blocking reads: set REDISHA_BROKER_URL to Redis itself")
	_, err = redisha.Open(t.Context(), redisha.Config{Cache: redisha.CacheConfig{Endpoint: at("redis://h/1?proxy=envoy")}})
	require.ErrorContains(t, err, "the database is 1 with proxy=envoy: Envoy has database 0 alone")
	for _, url := range []string{"redis+sentinel://h/main?proxy=envoy", "redis+cluster://h?proxy=envoy", "redis://h?proxy=envoy&protocol=3", "redis://h?proxy=envoy&client_name=x"} {
		_, err = redisha.Open(t.Context(), redisha.Config{Cache: redisha.CacheConfig{Endpoint: at(url)}})
		require.ErrorContains(t, err, "envoy", url)
	}
}
