package metrics

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

// requireSeries compares those series that want has.
func requireSeries(t *testing.T, want, series map[string]float64) {
	t.Helper()
	got := map[string]float64{}
	for name := range want {
		value, ok := series[name]
		require.True(t, ok, "%s is missing", name)
		got[name] = value
	}
	require.Equal(t, want, got)
}

func TestEverySeriesIsThereFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := redishatest.New(t)
		clients := open(t, srv)
		reg := registryOf(t, clients)
		start := scrape(t, reg)
		for name, value := range start {
			switch {
			case strings.HasPrefix(name, "redisha_connection_info"), strings.Contains(name, `state="closed"`), strings.Contains(name, `state="unknown"`):
				require.EqualValues(t, 1, value, name)
			case strings.HasPrefix(name, "redisha_pool_max_connections"):
				require.EqualValues(t, 4096, value, name)
			default:
				require.Zero(t, value, name)
			}
		}
		useCache(t, srv, clients)
		useBroker(t, clients)
		useLocks(t, srv, clients)
		require.Equal(t, slices.Sorted(maps.Keys(start)), slices.Sorted(maps.Keys(scrape(t, reg))))
	})
}

func useCache(t *testing.T, srv *redishatest.Server, clients *redisha.Clients) {
	t.Helper()
	ctx := t.Context()
	users := cache.NewView[int64, string](clients.Cache, "user", cache.ViewConfig{TTL: time.Hour})
	fetch := func(key int64, value string, err error) error {
		_, got := users.Fetch(ctx, key, func(context.Context, int64) (string, error) {
			time.Sleep(time.Second)
			return value, err
		})
		return got
	}
	_, err := users.Get(ctx, 1)
	require.ErrorIs(t, err, cache.ErrMiss)
	require.NoError(t, fetch(1, "Ada", nil))
	require.NoError(t, fetch(1, "Ada", nil))
	require.NoError(t, fetch(1, "Ada", nil))
	require.ErrorIs(t, fetch(2, "", cache.ErrNotFound), cache.ErrNotFound)
	require.ErrorIs(t, fetch(2, "", cache.ErrNotFound), cache.ErrNotFound)
	require.ErrorIs(t, fetch(3, "", errors.ErrUnsupported), errors.ErrUnsupported)
	require.NoError(t, users.Set(ctx, 4, strings.Repeat("x", 998)))
	require.NoError(t, users.Delete(ctx, 4, 5, 6))
	srv.SetError("OOM command not allowed when used memory > 'maxmemory'.")
	require.Error(t, users.Set(ctx, 4, "Grace"))
	srv.SetError("")
}

func TestValuesOfACache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := redishatest.New(t)
		clients := open(t, srv)
		useCache(t, srv, clients)
		series := scrape(t, registryOf(t, clients))
		requireSeries(t, map[string]float64{
			`redisha_cache_reads_total{outcome="hit",role="cache"}`:                                 2,
			`redisha_cache_reads_total{outcome="absence",role="cache"}`:                             1,
			`redisha_cache_reads_total{outcome="miss",role="cache"}`:                                4,
			`redisha_cache_reads_total{outcome="miss",role="cache.sessions"}`:                       0,
			`redisha_cache_loads_total{role="cache"}`:                                               3,
			`redisha_cache_load_errors_total{role="cache"}`:                                         1,
			`redisha_cache_load_duration_seconds_count{role="cache"}`:                               3,
			`redisha_cache_load_duration_seconds_sum{role="cache"}`:                                 3,
			`redisha_cache_load_duration_seconds_bucket{role="cache",le="0.524288"}`:                0,
			`redisha_cache_load_duration_seconds_bucket{role="cache",le="1.048576"}`:                3,
			`redisha_cache_load_duration_seconds_bucket{role="cache",le="+Inf"}`:                    3,
			`redisha_cache_leases_taken_total{role="cache"}`:                                        3,
			`redisha_cache_sets_total{role="cache"}`:                                                1,
			`redisha_cache_deletes_total{role="cache"}`:                                             3,
			`redisha_cache_errors_total{role="cache"}`:                                              1,
			`redisha_cache_operation_duration_seconds_count{operation="get",role="cache"}`:          7,
			`redisha_cache_operation_duration_seconds_count{operation="set",role="cache"}`:          2,
			`redisha_cache_operation_duration_seconds_count{operation="delete",role="cache"}`:       1,
			`redisha_cache_uncompressed_bytes_total{role="cache"}`:                                  5 + 1000 + 7,
			`redisha_command_errors_total{class="out_of_memory",role="cache"}`:                      1,
			`redisha_command_errors_total{class="out_of_memory",role="cache.sessions"}`:             0,
			`redisha_connection_dials_total{role="cache"}`:                                          1,
			`redisha_connection_dials_total{role="cache.sessions"}`:                                 0,
			`redisha_pool_connections{role="cache",state="idle"}`:                                   1,
			`redisha_pool_connections{role="cache",state="used"}`:                                   0,
			`redisha_pool_misses_total{role="cache"}`:                                               1,
			`redisha_connection_info{role="cache",topology="standalone"}`:                           1,
			`redisha_command_duration_seconds_count{family="blocking",role="cache"}`:                0,
			`redisha_breaker_state{circuit="server",role="cache",state="closed"}`:                   1,
			`redisha_cache_operation_duration_seconds_count{operation="get",role="cache.sessions"}`: 0,
		}, series)
		require.Less(t, series[`redisha_cache_compressed_bytes_total{role="cache"}`], 200.)
		require.NotZero(t, series[`redisha_command_duration_seconds_count{family="read",role="cache"}`])
	})
}

func useBroker(t *testing.T, clients *redisha.Clients) {
	t.Helper()
	ctx := t.Context()
	worker, err := broker.NewWorker(clients.Broker, broker.WorkerConfig{Results: clients.Results})
	require.NoError(t, err)
	const fine, again, never, panics = 0, 1, 2, 3
	task := broker.NewResultTask[int, string]("task", broker.TaskConfig{MaxAttempts: 2})
	task.Handle(worker, func(ctx context.Context, what int) (string, error) {
		time.Sleep(2 * time.Second)
		switch attempt := broker.FromContext(ctx).Attempt; {
		case what == again && attempt == 1:
			return "", broker.RetryAfter(time.Minute, errors.ErrUnsupported)
		case what == never:
			return "", broker.Reject(errors.ErrUnsupported)
		case what == panics:
			panic("test")
		}
		return "done", nil
	})
	var ids []string
	for _, what := range []int{fine, again, never, panics} {
		id, err := task.Publish(ctx, clients.Broker, what)
		require.NoError(t, err)
		ids = append(ids, id)
	}
	for range 2 {
		_, err := task.Publish(ctx, clients.Broker, fine, broker.ID("order:42"))
		require.NoError(t, err)
	}
	working, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- worker.Run(working) }()
	for i, id := range append(ids, "order:42") {
		_, err := task.Wait(ctx, clients.Results, id)
		require.Equal(t, i == never || i == panics, err != nil, "%v", err)
	}
	stop()
	require.NoError(t, <-ended)
}

func TestValuesOfBrokerAndResults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clients := open(t, redishatest.New(t))
		useBroker(t, clients)
		requireSeries(t, map[string]float64{
			`redisha_broker_published_total`:                                5,
			`redisha_broker_duplicates_total`:                               1,
			`redisha_broker_publish_duration_seconds_count`:                 6,
			`redisha_broker_errors_total{operation="publish"}`:              0,
			`redisha_broker_batches_total`:                                  6,
			`redisha_broker_started_total`:                                  7,
			`redisha_broker_running_handlers`:                               0,
			`redisha_broker_deliveries_total{outcome="succeeded"}`:          3,
			`redisha_broker_deliveries_total{outcome="retried"}`:            2,
			`redisha_broker_deliveries_total{outcome="dead"}`:               2,
			`redisha_broker_deliveries_total{outcome="released"}`:           0,
			`redisha_broker_panics_total`:                                   2,
			`redisha_broker_due_tasks_total`:                                2,
			`redisha_broker_wait_duration_seconds_count`:                    7,
			`redisha_broker_run_duration_seconds_count`:                     7,
			`redisha_broker_run_duration_seconds_sum`:                       14,
			`redisha_results_stored_total{state="success"}`:                 3,
			`redisha_results_stored_total{state="failure"}`:                 2,
			`redisha_results_waiters`:                                       0,
			`redisha_results_wait_duration_seconds_count`:                   5,
			`redisha_results_subscription_gaps_total`:                       0,
			`redisha_connection_info{role="results",topology="standalone"}`: 1,
		}, scrape(t, registryOf(t, clients)))
	})
}

func useLocks(t *testing.T, srv *redishatest.Server, clients *redisha.Clients) {
	t.Helper()
	ctx := t.Context()
	lease, err := clients.Locks.TryAcquire(ctx, "report")
	require.NoError(t, err)
	_, err = clients.Locks.TryAcquire(ctx, "report")
	require.ErrorIs(t, err, lock.ErrNotAcquired)
	time.Sleep(4 * time.Second)
	require.NoError(t, lease.Release(ctx))

	lost, err := clients.Locks.Acquire(ctx, "report", lock.TTL(time.Hour))
	require.NoError(t, err)
	require.NoError(t, srv.Client(t, 3).FlushDB(ctx).Err())
	require.ErrorIs(t, lost.Release(ctx), lock.ErrLost)
}

func TestValuesOfLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := redishatest.New(t)
		clients := open(t, srv)
		reg := registryOf(t, clients)
		useLocks(t, srv, clients)
		long, err := clients.Locks.TryAcquire(t.Context(), "leader", lock.TTL(30*time.Second))
		require.NoError(t, err)
		time.Sleep(11 * time.Second) // renewed at a third of the TTL
		requireSeries(t, map[string]float64{
			`redisha_locks_acquisitions_total{class="default",outcome="acquired"}`:     3,
			`redisha_locks_acquisitions_total{class="default",outcome="not_acquired"}`: 1,
			`redisha_locks_acquisitions_total{class="default",outcome="failed"}`:       0,
			`redisha_locks_wait_duration_seconds_count{class="default"}`:               1,
			`redisha_locks_waiting_calls{class="default"}`:                             0,
			`redisha_locks_held_leases{class="default"}`:                               1,
			`redisha_locks_hold_duration_seconds_count{class="default"}`:               2,
			`redisha_locks_hold_duration_seconds_sum{class="default"}`:                 4,
			`redisha_locks_releases_total{class="default",outcome="released"}`:         1,
			`redisha_locks_releases_total{class="default",outcome="failed"}`:           0,
			`redisha_locks_lost_total{cause="refused",class="default"}`:                1,
			`redisha_locks_lost_total{cause="expired",class="default"}`:                0,
			`redisha_locks_renewals_total{outcome="renewed"}`:                          1,
			`redisha_locks_renewals_total{outcome="failed"}`:                           0,
		}, scrape(t, reg))
		require.NoError(t, long.Release(t.Context()))
		require.Zero(t, scrape(t, reg)[`redisha_locks_held_leases{class="default"}`])
	})
}

func TestValuesOfABreakerThatOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := redishatest.New(t)
		cfg := srv.Config()
		cfg.Cache.Breaker.OpenFor = time.Minute
		clients := openConfig(t, cfg)
		reg := registryOf(t, clients)
		users := cache.NewView[int64, string](clients.Cache, "user", cache.ViewConfig{})
		srv.Stop()
		refused := 0
		for range 20 {
			_, err := users.Get(t.Context(), 1)
			require.Error(t, err)
			if errors.Is(err, breaker.ErrOpen) {
				refused++
			}
		}
		require.NotZero(t, refused)
		requireSeries(t, map[string]float64{
			`redisha_breaker_state{circuit="server",role="cache",state="closed"}`:    0,
			`redisha_breaker_state{circuit="server",role="cache",state="half-open"}`: 0,
			`redisha_breaker_state{circuit="server",role="cache",state="open"}`:      1,
			`redisha_breaker_state{circuit="writes",role="cache",state="closed"}`:    1,
			`redisha_breaker_state{circuit="server",role="locks",state="closed"}`:    1,
			`redisha_breaker_trips_total{circuit="server",role="cache"}`:             1,
			`redisha_breaker_trips_total{circuit="writes",role="cache"}`:             0,
			`redisha_breaker_trips_total{circuit="server",role="locks"}`:             0,
			`redisha_cache_errors_total{role="cache"}`:                               20,
		}, scrape(t, reg))
		series := scrape(t, reg)
		require.EqualValues(t, refused, series[`redisha_breaker_rejected_total{role="cache"}`])
		require.NotZero(t, series[`redisha_connection_dial_errors_total{role="cache"}`])
		time.Sleep(time.Minute + time.Second)
		require.EqualValues(t, 1, scrape(t, reg)[`redisha_breaker_state{circuit="server",role="cache",state="half-open"}`])
		require.NoError(t, srv.Restart())
	})
}

func TestLocksAreCountedByClass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clients := open(t, redishatest.New(t))
		reg := registryOf(t, clients)
		lease, err := clients.Locks.TryAcquire(t.Context(), "leader", lock.Class("election"))
		require.NoError(t, err)
		_, err = clients.Locks.TryAcquire(t.Context(), "leader")
		require.ErrorIs(t, err, lock.ErrNotAcquired)
		requireSeries(t, map[string]float64{
			`redisha_locks_held_leases{class="election"}`:                                1,
			`redisha_locks_held_leases{class="default"}`:                                 0,
			`redisha_locks_acquisitions_total{class="election",outcome="acquired"}`:      1,
			`redisha_locks_acquisitions_total{class="election",outcome="failed"}`:        0,
			`redisha_locks_acquisitions_total{class="default",outcome="not_acquired"}`:   1,
			`redisha_locks_lost_total{cause="endpoint",class="election"}`:                0,
			`redisha_locks_hold_duration_seconds_bucket{class="election",le="0.524288"}`: 0,
			`redisha_locks_handover_duration_seconds_count`:                              0,
		}, scrape(t, reg))
		require.NoError(t, lease.Release(t.Context()))
	})
}

func TestAHandOverIsTimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clients := open(t, redishatest.New(t))
		reg := registryOf(t, clients)
		lease, err := clients.Locks.TryAcquire(t.Context(), "report")
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() {
			ended <- clients.Locks.Do(t.Context(), "report", func(context.Context, *lock.Lease) error { return nil })
		}()
		time.Sleep(time.Second) // it stands in the queue
		require.Zero(t, scrape(t, reg)[`redisha_locks_handover_duration_seconds_count`])
		require.NoError(t, lease.Release(t.Context()))
		require.NoError(t, <-ended)
		require.EqualValues(t, 1, scrape(t, reg)[`redisha_locks_handover_duration_seconds_count`])
	})
}
