package redisha_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
)

// TestAllRolesWorkOnEveryTopologyThroughAFault lets the four roles work, lets
// something fail, and lets them go on.
func TestAllRolesWorkOnEveryTopologyThroughAFault(t *testing.T) {
	t.Run("standalone, restarted", func(t *testing.T) {
		srv := redistest.New(t, redistest.Config{Persist: true})
		allRoles(t, everywhere(srv.URL()), func(ctx context.Context) { require.NoError(t, srv.Restart(ctx)) })
	})
	t.Run("replicated, the replica promoted", func(t *testing.T) {
		primary := redistest.New(t, redistest.Config{})
		replica := redistest.NewReplica(t, primary, redistest.Config{})
		cfg := everywhere("redis+replica://" + primary.Addr() + "," + replica.Addr())
		allRoles(t, cfg, func(ctx context.Context) {
			caughtUp(t, primary, replica)
			primary.Kill()
			require.NoError(t, replica.Client(t).ReplicaOf(ctx, "no", "one").Err())
		})
	})
	t.Run("sentinel, the primary killed", func(t *testing.T) {
		s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
		cfg := everywhere(s.URL())
		cfg.Locks.URL = redisha.URL(redistest.New(t, redistest.Config{}).URL())
		allRoles(t, cfg, func(ctx context.Context) {
			old := s.Primary()
			caughtUp(t, old, s.Replicas()...)
			old.Kill()
			_, err := s.AwaitPrimary(ctx, old.Addr())
			require.NoError(t, err)
		})
	})
	t.Run("cluster, a primary killed", func(t *testing.T) {
		c := redistest.NewCluster(t, redistest.ClusterConfig{})
		allRoles(t, everywhere(c.URL()), func(ctx context.Context) {
			old, err := c.PrimaryOf(ctx, "0")
			require.NoError(t, err)
			replicas, err := c.ReplicasOf(ctx, "0")
			require.NoError(t, err)
			caughtUp(t, old, replicas...)
			old.Kill()
			_, err = c.AwaitPrimary(ctx, "0", old.Addr())
			require.NoError(t, err)
		})
	})
	t.Run("stable address, moved", func(t *testing.T) {
		primary := redistest.New(t, redistest.Config{})
		replica := redistest.NewReplica(t, primary, redistest.Config{})
		service := redistest.NewProxy(t, primary.Addr())
		allRoles(t, everywhere("redis://"+service.Addr()), func(ctx context.Context) {
			caughtUp(t, primary, replica)
			require.NoError(t, replica.Client(t).ReplicaOf(ctx, "no", "one").Err())
			require.NoError(t, primary.Client(t).ReplicaOf(ctx, "127.0.0.1", strconv.Itoa(replica.Port())).Err())
			service.SetTarget(replica.Addr())
		})
	})
}

// caughtUp waits until the replicas have what the primary has, or as good as that
// while others write.
func caughtUp(t *testing.T, primary *redistest.Server, replicas ...*redistest.Server) {
	t.Helper()
	rdb := primary.Client(t)
	require.NoError(t, rdb.Set(t.Context(), "{0}caught-up", "yes", 0).Err())
	require.NoError(t, rdb.Wait(t.Context(), len(replicas), 5*time.Second).Err())
}

func allRoles(t *testing.T, cfg redisha.Config, fault func(context.Context)) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cfg.Broker.Config.ConfirmTimeout = 50 * time.Millisecond
	clients := open(t, cfg)
	for role, err := range clients.Health(ctx) {
		require.NoError(t, err, role)
	}

	double := broker.NewResultTask[int, int]("double", broker.TaskConfig{})
	worker, err := broker.NewWorker(clients.Broker, broker.WorkerConfig{Results: clients.Results})
	require.NoError(t, err)
	double.Handle(worker, func(_ context.Context, n int) (int, error) { return 2 * n, nil })
	var running sync.WaitGroup
	work, stop := context.WithCancel(ctx)
	running.Go(func() {
		if err := worker.Run(work); err != nil {
			t.Errorf("worker: %v", err)
		}
	})
	defer running.Wait()
	defer stop()
	view := cache.NewView[int, string](clients.Cache, "name", cache.ViewConfig{TTL: time.Minute})

	// A task that only its replication is open of is published: what was the replica
	// is the primary now, or gone.
	publish := func(i int) (id string, err error) {
		id, err = double.Publish(ctx, clients.Broker, i)
		if open := (*broker.UnconfirmedError)(nil); errors.As(err, &open) && open.Applied {
			err = nil
		}
		return id, err
	}
	round := func(i int) {
		t.Helper()
		name, err := view.Fetch(ctx, i, func(_ context.Context, i int) (string, error) { return fmt.Sprint("name ", i), nil })
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint("name ", i), name)
		id, err := publish(i)
		require.NoError(t, err)
		n, err := double.Wait(ctx, clients.Results, id)
		require.NoError(t, err)
		require.Equal(t, 2*i, n)
		require.NoError(t, clients.Locks.Do(ctx, fmt.Sprint("key ", i), func(_ context.Context, l *lock.Lease) error {
			if l.Token() == 0 {
				return fmt.Errorf("no fencing token")
			}
			return nil
		}))
	}
	for i := range 20 {
		round(i)
	}

	// Through the fault no call fails; whether a task survives that was published
	// within the last moment before it, replication decides.
	var published, fetched atomic.Int64
	var callers sync.WaitGroup
	flow, halt := context.WithCancel(ctx)
	callers.Go(func() {
		for i := 0; flow.Err() == nil; i++ {
			if _, err := publish(i); err != nil {
				t.Errorf("publish: %v", err)
				return
			}
			published.Add(1)
			time.Sleep(5 * time.Millisecond)
		}
	})
	callers.Go(func() {
		for i := 0; flow.Err() == nil; i++ {
			if _, err := view.Fetch(ctx, 100+i%50, func(_ context.Context, i int) (string, error) { return "x", nil }); err != nil {
				t.Errorf("fetch: %v", err)
				return
			}
			fetched.Add(1)
			time.Sleep(5 * time.Millisecond)
		}
	})
	goesOn := func() {
		t.Helper()
		p, f := published.Load(), fetched.Load()
		require.Eventually(t, func() bool { return published.Load() > p+20 && fetched.Load() > f+20 || t.Failed() }, time.Minute, 10*time.Millisecond)
	}
	goesOn()
	fault(ctx)
	goesOn()
	halt()
	callers.Wait()
	require.False(t, t.Failed())

	for i := range 20 {
		round(1000 + i)
	}
	require.Eventually(t, func() bool {
		for _, err := range clients.Health(ctx) {
			if err != nil {
				return false
			}
		}
		return true
	}, time.Minute, 50*time.Millisecond)
}
