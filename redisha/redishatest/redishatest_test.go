package redishatest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

var shout = broker.NewResultTask[string, string]("shout", broker.TaskConfig{})

func TestAllRolesWorkInVirtualTime(t *testing.T) {
	for range 2 { // what a bubble leaves behind would break the next one
		synctest.Test(t, func(t *testing.T) {
			srv := redishatest.New(t)
			clients := srv.Open(t)
			view := cache.NewView[string, string](clients.Cache, "v", cache.ViewConfig{TTL: time.Hour})
			require.NoError(t, view.Set(t.Context(), "k", "value"))
			time.Sleep(time.Hour)
			_, err := view.Get(t.Context(), "k")
			require.ErrorIs(t, err, cache.ErrMiss)

			worker, err := broker.NewWorker(clients.Broker, broker.WorkerConfig{Results: clients.Results})
			require.NoError(t, err)
			shout.Handle(worker, func(_ context.Context, s string) (string, error) { return s + "!", nil })
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- worker.Run(ctx) }()
			published := time.Now()
			id, err := shout.Publish(t.Context(), clients.Broker, "hello", broker.After(time.Minute))
			require.NoError(t, err)
			got, err := shout.Wait(t.Context(), clients.Results, id)
			require.NoError(t, err)
			require.Equal(t, "hello!", got)
			require.GreaterOrEqual(t, time.Since(published), time.Minute)
			stop()
			require.NoError(t, <-ended)

			lease, err := clients.Locks.TryAcquire(t.Context(), "k", lock.TTL(time.Second))
			require.NoError(t, err)
			_, err = clients.Locks.TryAcquire(t.Context(), "k")
			require.ErrorIs(t, err, lock.ErrNotAcquired)
			srv.Stop()
			<-lease.Context().Done()
			require.ErrorIs(t, context.Cause(lease.Context()), lock.ErrLost)
			require.NoError(t, srv.Restart())
			_ = lease.Release(t.Context())
		})
	}
}

func TestRolesAreInDatabasesOfTheirOwn(t *testing.T) {
	srv := redishatest.New(t)
	clients := srv.Open(t)
	require.NoError(t, cache.NewView[string, string](clients.Cache, "v", cache.ViewConfig{}).Set(t.Context(), "k", "value"))
	for db, want := range []int64{1, 0, 0, 0} {
		n, err := srv.Client(t, db).DBSize(t.Context()).Result()
		require.NoError(t, err)
		require.Equal(t, want, n, db)
	}
}

func TestAServerOutsideOfTestsListens(t *testing.T) {
	srv, err := redishatest.Start()
	require.NoError(t, err)
	defer srv.Close()
	clients, err := redisha.Open(t.Context(), redisha.Config{Locks: redisha.LocksConfig{Endpoint: redisha.Endpoint{URL: srv.URL()}}})
	require.NoError(t, err)
	lease, err := clients.Locks.TryAcquire(t.Context(), "k")
	require.NoError(t, err)
	require.NoError(t, lease.Release(t.Context()))
	srv.SetError("LOADING Redis is loading the dataset in memory")
	require.ErrorContains(t, clients.Health(t.Context())[redisha.Locks], "LOADING")
	srv.SetError("")
	require.NoError(t, clients.Health(t.Context())[redisha.Locks])
	require.NoError(t, clients.Close())
	srv.Close()
	_, err = redisha.Open(t.Context(), redisha.Config{Locks: redisha.LocksConfig{Endpoint: redisha.Endpoint{URL: srv.URL()}}})
	require.Error(t, err)
}
