package metrics

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

func TestRolesWithoutEndpointAreLeftOut(t *testing.T) {
	cfg := redishatest.New(t).Config()
	series := scrape(t, registryOf(t, openConfig(t, redisha.Config{Logger: cfg.Logger, Locks: cfg.Locks})))
	require.NotEmpty(t, series)
	for name := range series {
		require.True(t, strings.HasPrefix(name, "redisha_locks_") || strings.Contains(name, `role="locks"`), name)
	}
	require.Empty(t, scrape(t, registryOf(t, openConfig(t, redisha.Config{Logger: cfg.Logger}))))
}

func TestNothingToCollectReportsNothing(t *testing.T) {
	for _, clients := range []*redisha.Clients{nil, {}, {Caches: map[string]*cache.Client{"sessions": nil}}} {
		reg := registryOf(t, clients)
		require.Empty(t, scrape(t, reg))
		require.Error(t, reg.Register(NewCollector(clients)), "it is described all the same")
	}
}

func TestAForeignClientShowsPoolAndRoleAlone(t *testing.T) {
	srv := redishatest.New(t)
	rdb := srv.Client(t, 3)
	require.NoError(t, rdb.Ping(t.Context()).Err())
	locker, err := lock.New(rdb, lock.Config{})
	require.NoError(t, err)
	defer func() { require.NoError(t, locker.Close()) }()
	lease, err := locker.TryAcquire(t.Context(), "report")
	require.NoError(t, err)
	series := scrape(t, registryOf(t, &redisha.Clients{Locks: locker}))
	require.EqualValues(t, 1, series[`redisha_locks_held_leases{class="default"}`])
	require.EqualValues(t, 1, series[`redisha_connection_info{role="locks",topology="standalone"}`])
	require.NotZero(t, series[`redisha_pool_misses_total{role="locks"}`])
	for name := range series {
		for _, own := range []string{"redisha_command_", "redisha_connection_dial", "redisha_breaker_"} {
			require.False(t, strings.HasPrefix(name, own), "%s would say 0 of what is not counted", name)
		}
	}
	require.NoError(t, lease.Release(t.Context()))
}

func TestABreakerThatIsTurnedOffShowsNothing(t *testing.T) {
	cfg := redishatest.New(t).Config()
	cfg.Locks.Breaker.Disabled = true
	series := scrape(t, registryOf(t, openConfig(t, cfg)))
	require.Contains(t, series, `redisha_breaker_failures_total{role="broker"}`)
	for name := range series {
		if strings.HasPrefix(name, "redisha_breaker_") {
			require.NotContains(t, name, `role="locks"`)
		}
	}
}

func TestAnUnknownPoolLimitIsLeftOut(t *testing.T) {
	clients := open(t, redishatest.New(t))
	const limit = `redisha_pool_max_connections{role="locks"}`
	stats := clients.Locks.Stats()
	show := func(ch chan<- prometheus.Metric) { collectLocks(ch, stats) }
	require.EqualValues(t, 4096, render(t, show)[limit])
	stats.Nodes[0].Conn.Pool.MaxTotal = 0
	require.NotContains(t, render(t, show), limit)
}

func TestAConnectionClosedWhileThePoolIsReadIsNotNegative(t *testing.T) {
	stats := open(t, redishatest.New(t)).Locks.Stats()
	stats.Nodes[0].Conn.Pool.Idle = 1
	series := render(t, func(ch chan<- prometheus.Metric) { collectLocks(ch, stats) })
	require.Zero(t, series[`redisha_pool_connections{role="locks",state="used"}`])
}

func TestAScrapeDoesNotConnect(t *testing.T) {
	cfg := redishatest.New(t).Config()
	refuse := func(context.Context, string, string) (net.Conn, error) {
		t.Error("a scrape has dialled")
		return nil, errors.New("no I/O")
	}
	for _, ep := range []*redisha.Endpoint{&cfg.Cache.Endpoint, &cfg.Broker.Endpoint, &cfg.Results.Endpoint, &cfg.Locks.Endpoint} {
		ep.Dialer = refuse
	}
	reg := registryOf(t, openConfig(t, cfg))
	scrape(t, reg)
	series := scrape(t, reg)
	for _, role := range []string{"cache", "broker", "results", "locks"} {
		require.Zero(t, series[`redisha_connection_dials_total{role="`+role+`"}`])
		require.Zero(t, series[`redisha_command_duration_seconds_count{family="other",role="`+role+`"}`])
	}
}

func TestCountsOutliveClose(t *testing.T) {
	clients := open(t, redishatest.New(t))
	reg := registryOf(t, clients)
	require.NoError(t, clients.Locks.Do(t.Context(), "report", func(context.Context, *lock.Lease) error { return nil }))
	require.NoError(t, clients.Close())
	series := scrape(t, reg)
	require.EqualValues(t, 1, series[`redisha_locks_acquisitions_total{class="default",outcome="acquired"}`])
	require.Zero(t, series[`redisha_pool_connections{role="locks",state="idle"}`])
}

func TestARegistryTakesOneCollector(t *testing.T) {
	srv := redishatest.New(t)
	reg := prometheus.NewRegistry()
	first := NewCollector(open(t, srv))
	require.NoError(t, reg.Register(first))
	var already prometheus.AlreadyRegisteredError
	require.ErrorAs(t, reg.Register(first), &already)
	require.Equal(t, first, already.ExistingCollector)
	require.ErrorAs(t, reg.Register(NewCollector(open(t, srv))), &already, "of other clients, whose series would be the same")
	require.True(t, reg.Unregister(first))
	require.Empty(t, scrape(t, reg))
}

func TestTwoClientsStandSideBySideUnderTheirLabels(t *testing.T) {
	srv := redishatest.New(t)
	eu, us := open(t, srv), open(t, srv)
	reg := prometheus.NewPedanticRegistry()
	require.NoError(t, prometheus.WrapRegistererWith(prometheus.Labels{"shop": "eu"}, reg).Register(NewCollector(eu)))
	require.NoError(t, prometheus.WrapRegistererWith(prometheus.Labels{"shop": "us"}, reg).Register(NewCollector(us)))
	lease, err := eu.Locks.TryAcquire(t.Context(), "report")
	require.NoError(t, err)
	_, err = us.Locks.TryAcquire(t.Context(), "report")
	require.ErrorIs(t, err, lock.ErrNotAcquired)

	series := scrape(t, reg)
	require.EqualValues(t, 1, series[`redisha_locks_acquisitions_total{class="default",outcome="acquired",shop="eu"}`])
	require.Zero(t, series[`redisha_locks_acquisitions_total{class="default",outcome="acquired",shop="us"}`])
	require.EqualValues(t, 1, series[`redisha_locks_acquisitions_total{class="default",outcome="not_acquired",shop="us"}`])
	require.NoError(t, lease.Release(t.Context()))
	problems, err := testutil.GatherAndLint(reg)
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestALabelThatPrometheusRefusesFailsTheScrapeAlone(t *testing.T) {
	clients := open(t, redishatest.New(t))
	reg := registryOf(t, &redisha.Clients{Caches: map[string]*cache.Client{"\xff": clients.Cache}, Locks: clients.Locks})
	families, err := reg.Gather()
	require.ErrorContains(t, err, "not valid UTF-8")
	require.False(t, strings.Contains(err.Error(), "panic recovered"), "a panic in Collect")
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	require.Contains(t, names, "redisha_locks_held_leases", "the rest is there")
}

func TestScrapesAreSafeBesideWorkAndEachOther(t *testing.T) {
	clients := open(t, redishatest.New(t))
	reg := registryOf(t, clients)
	users := cache.NewView[int64, string](clients.Cache, "user", cache.ViewConfig{TTL: time.Minute})
	var work, scrapes sync.WaitGroup
	errs := make(chan error, 8)
	for i := range 4 {
		work.Go(func() {
			for range 50 {
				errs <- errors.Join(
					users.Set(t.Context(), int64(i), "Ada"),
					clients.Locks.Do(t.Context(), string(rune('a'+i)), func(context.Context, *lock.Lease) error { return nil }),
				)
			}
		})
		scrapes.Go(func() {
			for range 5 {
				_, err := reg.Gather()
				errs <- err
			}
		})
	}
	go func() { work.Wait(); scrapes.Wait(); close(errs) }()
	for err := range errs {
		require.NoError(t, err)
	}
	series := scrape(t, reg)
	require.EqualValues(t, 200, series[`redisha_cache_sets_total{role="cache"}`])
	require.EqualValues(t, 200, series[`redisha_locks_releases_total{class="default",outcome="released"}`])
}

func TestANodeOfAQuorumIsToldByItsNumber(t *testing.T) {
	stats := open(t, redishatest.New(t)).Locks.Stats()
	stats.Nodes = append(stats.Nodes, stats.Nodes[0], stats.Nodes[0])
	stats.Nodes[2].Conn.DialErrors = 7
	series := render(t, func(ch chan<- prometheus.Metric) { collectLocks(ch, stats) })
	require.EqualValues(t, 7, series[`redisha_connection_dial_errors_total{node="3",role="locks"}`])
	require.Zero(t, series[`redisha_connection_dial_errors_total{node="1",role="locks"}`])
	require.NotContains(t, series, `redisha_connection_dial_errors_total{role="locks"}`)
}

func TestWhatALockEndpointIsShowsForEachServer(t *testing.T) {
	stats := open(t, redishatest.New(t)).Locks.Stats()
	stats.Nodes[0].Endpoint = "safe"
	show := func(ch chan<- prometheus.Metric) { collectLocks(ch, stats) }
	requireSeries(t, map[string]float64{
		`redisha_locks_endpoint_state{state="safe"}`:    1,
		`redisha_locks_endpoint_state{state="unknown"}`: 0,
		`redisha_locks_endpoint_refused`:                0,
	}, render(t, show))
	require.NotContains(t, render(t, show), `redisha_locks_node_absent{reason="young"}`, "one server is no quorum")
	stats.Nodes = append(stats.Nodes, stats.Nodes[0], stats.Nodes[0])
	stats.Nodes[1].Endpoint, stats.Nodes[1].Refused = "replica", true
	stats.Nodes[2].Absent = "young"
	requireSeries(t, map[string]float64{
		`redisha_locks_endpoint_state{node="1",state="safe"}`:    1,
		`redisha_locks_endpoint_state{node="2",state="safe"}`:    0,
		`redisha_locks_endpoint_state{node="2",state="replica"}`: 1,
		`redisha_locks_endpoint_refused{node="2"}`:               1,
		`redisha_locks_endpoint_refused{node="3"}`:               0,
		`redisha_locks_node_absent{node="3",reason="young"}`:     1,
		`redisha_locks_node_absent{node="3",reason="silent"}`:    0,
		`redisha_locks_node_absent{node="2",reason="young"}`:     0,
	}, render(t, show))
}
