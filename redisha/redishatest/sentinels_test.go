package redishatest_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// writers publish and cache, until they are stopped, and return how long the
// slowest call took.
func writers(t *testing.T, clients *redisha.Clients) (stop func() time.Duration) {
	ctx, cancel := context.WithCancel(t.Context())
	view := cache.NewView[int, string](clients.Cache, "load", cache.ViewConfig{TTL: time.Hour})
	var running sync.WaitGroup
	var mu sync.Mutex
	var slowest time.Duration
	work := func(call func(ctx context.Context, i int) error) {
		running.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				patient, done := context.WithTimeout(t.Context(), 10*time.Second)
				began := time.Now()
				if err := call(patient, i); err != nil {
					t.Error(err)
				}
				done()
				mu.Lock()
				slowest = max(slowest, time.Since(began))
				mu.Unlock()
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	for n := range 2 {
		work(func(ctx context.Context, i int) error {
			_, err := shout.Publish(ctx, clients.Broker, "x", broker.ID(fmt.Sprintf("job-%d-%d", n, i)))
			return err
		})
		work(func(ctx context.Context, i int) error {
			_, err := view.Fetch(ctx, i, func(context.Context, int) (string, error) { return strconv.Itoa(i), nil })
			return err
		})
	}
	return func() time.Duration {
		cancel()
		running.Wait()
		return slowest
	}
}

func TestFailoverUnderLoadLosesNothing(t *testing.T) {
	for name, kill := range map[string]bool{"switched": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			for range 2 { // what a bubble leaves behind would break the next one
				synctest.Test(t, func(t *testing.T) {
					redis := redishatest.NewSentinels(t)
					clients := redis.Open(t)
					stop := writers(t, clients)
					for range 3 {
						time.Sleep(time.Second)
						if kill {
							redis.Primary().Stop()
							time.Sleep(time.Second)
						}
						old := redis.Primary()
						require.NoError(t, redis.Failover())
						require.NotSame(t, old, redis.Primary())
						require.NoError(t, old.Restart())
					}
					time.Sleep(time.Second)
					slowest := stop()
					t.Log("slowest call:", slowest)
					limit := 300 * time.Millisecond
					if kill {
						limit += time.Second
					}
					require.Less(t, slowest, limit)
				})
			}
		})
	}
}

func TestClientsRecoverAtOnceFromAFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deployment := redishatest.NewSentinels(t)
		clients := deployment.Open(t)
		view := cache.NewView[string, string](clients.Cache, "v", cache.ViewConfig{TTL: time.Hour})
		require.NoError(t, view.Set(t.Context(), "k", "before"))
		deployment.Primary().Stop()
		waiting := make(chan error, 1)
		go func() {
			_, err := shout.Publish(within(t, time.Minute), clients.Broker, "x")
			waiting <- err
		}()
		time.Sleep(5 * time.Second)
		select {
		case err := <-waiting:
			t.Fatal("published without a primary:", err)
		default:
		}
		require.NoError(t, deployment.Failover())
		began := time.Now()
		require.NoError(t, <-waiting)
		t.Log("recovered after", time.Since(began))
		require.Less(t, time.Since(began), 300*time.Millisecond)
		got, err := view.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "before", got)
	})
}

func TestAReplicaServesReadsAndRefusesToWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deployment := redishatest.NewSentinels(t)
		primary := deployment.Primary().Client(t, 0)
		require.NoError(t, primary.Set(t.Context(), "k", "v", 0).Err())
		require.Equal(t, int64(2), primary.Wait(t.Context(), 2, time.Second).Val())
		require.Len(t, deployment.Replicas(), 2)
		for _, replica := range deployment.Replicas() {
			rdb := replica.Client(t, 0)
			require.Equal(t, "v", rdb.Get(t.Context(), "k").Val())
			require.ErrorContains(t, rdb.Set(t.Context(), "k", "w", 0).Err(), "READONLY")
			require.ErrorContains(t, rdb.Eval(t.Context(), "return redis.call('DEL', 'k')", nil).Err(), "READONLY")
			role, err := rdb.Do(t.Context(), "ROLE").Slice()
			require.NoError(t, err)
			require.Equal(t, []any{"slave", "192.0.2.1", int64(6379), "connected", int64(0)}, role)
		}
		role, err := primary.Do(t.Context(), "ROLE").Slice()
		require.NoError(t, err)
		require.Equal(t, "master", role[0])
		require.Equal(t, []any{[]any{"192.0.2.2", "6379", "0"}, []any{"192.0.2.3", "6379", "0"}}, role[2])
	})
}

func TestAReplicaThatLagsServesWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deployment := redishatest.NewSentinels(t)
		primary := deployment.Primary().Client(t, 3)
		replica := deployment.Replicas()[0].Client(t, 3)
		require.NoError(t, primary.Set(t.Context(), "k", "old", time.Minute).Err())
		require.NoError(t, deployment.SetLag(true))
		require.NoError(t, deployment.SetLag(true))
		require.NoError(t, primary.Set(t.Context(), "k", "new", 0).Err())
		require.Equal(t, "old", replica.Get(t.Context(), "k").Val())
		require.Equal(t, time.Minute, replica.TTL(t.Context(), "k").Val())
		require.NoError(t, deployment.SetLag(false))
		require.Equal(t, "new", replica.Get(t.Context(), "k").Val())
	})
}

func TestReadsGoToReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deployment := redishatest.NewSentinels(t)
		cfg := deployment.Config()
		cfg.Cache.URL += "?read_from=replica_preferred"
		reading, err := redisha.Open(t.Context(), cfg)
		require.NoError(t, err)
		defer func() { require.NoError(t, reading.Close()) }()
		writing := cache.NewView[string, string](deployment.Open(t).Cache, "v", cache.ViewConfig{TTL: time.Hour})
		require.NoError(t, writing.Set(t.Context(), "k", "old"))
		require.NoError(t, deployment.SetLag(true))
		require.NoError(t, writing.Set(t.Context(), "k", "new"))
		view := cache.NewView[string, string](reading.Cache, "v", cache.ViewConfig{TTL: time.Hour})
		got, err := view.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "old", got)
		require.NoError(t, deployment.SetLag(false))
		got, err = view.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "new", got)
	})
}

func TestAWorkerHandlesWhatWasReplicated(t *testing.T) {
	const tasks = 20
	synctest.Test(t, func(t *testing.T) {
		deployment := redishatest.NewSentinels(t)
		clients := deployment.Open(t)
		worker, err := broker.NewWorker(clients.Broker, broker.WorkerConfig{Concurrency: 2, Results: clients.Results})
		require.NoError(t, err)
		var mu sync.Mutex
		handled := make(map[string]int)
		shout.Handle(worker, func(_ context.Context, s string) (string, error) {
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			handled[s]++
			return s, nil
		})
		for i := range tasks {
			_, err := shout.Publish(t.Context(), clients.Broker, strconv.Itoa(i))
			require.NoError(t, err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- worker.Run(ctx) }()
		time.Sleep(3500 * time.Millisecond)
		require.NoError(t, deployment.SetLag(true)) // acknowledgements from now on are lost
		time.Sleep(3 * time.Second)
		require.NoError(t, deployment.Failover())
		mu.Lock()
		n := len(handled)
		mu.Unlock()
		require.Greater(t, depth(t, deployment.Primary()), int64(tasks-n), "acknowledged ones are back")
		time.Sleep(3 * time.Minute)
		stop()
		require.NoError(t, <-ended)
		require.Len(t, handled, tasks)
		require.Zero(t, depth(t, deployment.Primary()))
	})
}

func store(t *testing.T, clients *redisha.Clients, id string) {
	t.Helper()
	stored, err := clients.Results.Store(within(t, time.Minute), result.Record{ID: id, State: result.Success})
	require.NoError(t, err)
	require.True(t, stored)
}

func stateOf(t *testing.T, clients *redisha.Clients, id string) result.State {
	t.Helper()
	record, err := clients.Results.Get(within(t, time.Second), id)
	require.NoError(t, err)
	return record.State
}

func TestALaggingFailoverLosesWhatWasNotReplicated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deployment := redishatest.NewSentinels(t)
		clients := deployment.Open(t)
		store(t, clients, "kept")
		require.NoError(t, deployment.SetLag(true))
		store(t, clients, "lost")
		rdb := deployment.Primary().Client(t, 0)
		require.Zero(t, rdb.Wait(t.Context(), 1, time.Second).Val())
		require.NoError(t, deployment.Failover())
		require.Equal(t, result.Success, stateOf(t, clients, "kept"))
		require.Equal(t, result.Pending, stateOf(t, clients, "lost"))

		// It is replicated again.
		store(t, clients, "next")
		require.NoError(t, deployment.Failover())
		require.Equal(t, result.Success, stateOf(t, clients, "next"))
	})
}

func TestNobodyNoticesThatAllSentinelsAreDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deployment := redishatest.NewSentinels(t)
		clients := deployment.Open(t)
		stop := writers(t, clients)
		time.Sleep(time.Second)
		deployment.StopSentinels(3)
		time.Sleep(5 * time.Second)
		require.ErrorContains(t, deployment.Failover(), "0 of 3 Sentinels are up")
		require.Less(t, stop(), 100*time.Millisecond)
		deployment.StopSentinels(1)
		require.NoError(t, deployment.Failover())
		_, err := shout.Publish(within(t, 5*time.Second), clients.Broker, "x")
		require.NoError(t, err)
	})
}

func TestAFailoverTakesAReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deployment := redishatest.NewSentinels(t)
		replicas := deployment.Replicas()
		replicas[0].Stop()
		primary := deployment.Primary()
		rdb := primary.Client(t, 0)
		require.Equal(t, int64(1), rdb.Wait(t.Context(), 1, time.Second).Val())
		require.NoError(t, deployment.Failover())
		require.Same(t, replicas[1], deployment.Primary())
		primary.Stop()
		require.ErrorContains(t, deployment.Failover(), "no replica is up")
		require.NoError(t, replicas[0].Restart())
		require.NoError(t, deployment.Failover())
		require.Same(t, replicas[0], deployment.Primary())
	})
}

func TestSentinelsTellOfAFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deployment := redishatest.NewSentinels(t)
		sentinel := redis.NewSentinelClient(&redis.Options{Addr: "192.0.2.22:26379", Dialer: deployment.Config().Cache.Dialer})
		defer func() { require.NoError(t, sentinel.Close()) }()
		sub := sentinel.Subscribe(t.Context(), "+switch-master")
		defer func() { require.NoError(t, sub.Close()) }()
		_, err := sub.Receive(t.Context())
		require.NoError(t, err)
		before, err := sentinel.Master(t.Context(), "mymaster").Result()
		require.NoError(t, err)
		require.Equal(t, []string{"192.0.2.1", "1"}, []string{before["ip"], before["config-epoch"]})
		require.Len(t, sentinel.Sentinels(t.Context(), "mymaster").Val(), 2)

		old := deployment.Primary()
		require.NoError(t, deployment.Failover())
		message, err := sub.ReceiveMessage(t.Context())
		require.NoError(t, err)
		require.Equal(t, "mymaster 192.0.2.1 6379 192.0.2.2 6379", message.Payload)
		after, err := sentinel.Master(t.Context(), "mymaster").Result()
		require.NoError(t, err)
		require.Equal(t, []string{"192.0.2.2", "2"}, []string{after["ip"], after["config-epoch"]})
		replicas, err := sentinel.Replicas(t.Context(), "mymaster").Result()
		require.NoError(t, err)
		require.Equal(t, []string{"192.0.2.1", "192.0.2.3"}, []string{replicas[0]["ip"], replicas[1]["ip"]})
		for _, replica := range deployment.Replicas() {
			require.ErrorContains(t, replica.Client(t, 0).Set(t.Context(), "k", "v", 0).Err(), "READONLY")
		}
		old.Stop()
		replicas, err = sentinel.Replicas(t.Context(), "mymaster").Result()
		require.NoError(t, err)
		require.Contains(t, replicas[0]["flags"], "s_down")
	})
}

func TestNoFailoverConcernsLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deployment := redishatest.NewSentinels(t)
		clients := deployment.Open(t)
		lease, err := clients.Locks.TryAcquire(t.Context(), "k")
		require.NoError(t, err)
		deployment.Primary().Stop()
		require.NoError(t, deployment.Failover())
		require.NoError(t, lease.Context().Err())
		require.NoError(t, lease.Release(t.Context()))
		deployment.Locks().SetFull(true)
		_, err = clients.Locks.TryAcquire(within(t, time.Second), "k")
		require.ErrorContains(t, err, "OOM")
		require.False(t, errors.Is(err, lock.ErrNotAcquired))
		require.ErrorIs(t, deployment.Locks().Client(t, 3).Get(t.Context(), "k").Err(), redis.Nil)
	})
}
