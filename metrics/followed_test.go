package metrics

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/testserver"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

// A group is a Sentinel in memory, which knows the first two servers, and
// another one that is down.
type group struct {
	net      *testserver.Net
	sentinel *testserver.Sentinel
	primary  *testserver.Server
	promoted *testserver.Server
}

const (
	primaryAddr = "10.0.0.1:6379"
	replicaAddr = "10.0.0.2:6379"
	sentinelURL = "redis+sentinel://10.0.0.3:26379,10.0.0.4:26379/main"
	replicaURL  = "redis+replica://10.0.0.1:6379,10.0.0.2:6379"
	quorumURL   = "redis://10.0.1.1:6379;redis://10.0.1.2:6379;redis://10.0.1.3:6379"
)

func newGroup(tb testing.TB) *group {
	tb.Helper()
	g := &group{net: testserver.NewNet(), primary: testserver.New(tb), promoted: testserver.New(tb)}
	g.net.Add(primaryAddr, g.primary.Dial)
	g.net.Add(replicaAddr, g.promoted.Dial)
	g.sentinel = testserver.NewSentinel(tb, g.net, "10.0.0.3:26379")
	g.sentinel.Monitor(testserver.Monitored{
		Name: "main", Primary: primaryAddr, Epoch: 7,
		Replicas: []testserver.MonitoredReplica{{Addr: replicaAddr}},
	})
	return g
}

// endpoint is one of the group, or of another topology in its net.
func (g *group) endpoint(url redisha.URL) redisha.Endpoint {
	return redisha.Endpoint{URL: url, Dialer: g.net.Dial, Pool: redisha.Pool{MaxTotal: 4096}}
}

// openAll returns clients of which each metric is shown by some.
func openAll(tb testing.TB, srv *redishatest.Server, g *group) *redisha.Clients {
	tb.Helper()
	cfg := srv.Config()
	cfg.Caches = map[string]redisha.CacheConfig{
		"sessions":   {Endpoint: cfg.Cache.Endpoint},
		"followed":   {Endpoint: g.endpoint(sentinelURL + "?read_from=replica_preferred")},
		"replicated": {Endpoint: g.endpoint(replicaURL)},
	}
	cfg.Locks.Endpoint = g.endpoint(quorumURL)
	clients := openConfig(tb, cfg)
	synctest.Wait() // the primary is found
	time.Sleep(time.Millisecond)
	return clients
}

func TestValuesOfAFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		clients := openAll(t, redishatest.New(t), g)
		reg := registryOf(t, clients)
		users := cache.NewView[int64, string](clients.Caches["followed"], "user", cache.ViewConfig{TTL: time.Hour})
		require.NoError(t, users.Set(t.Context(), 1, "Ada"))
		_, err := users.Get(t.Context(), 2)
		require.ErrorIs(t, err, cache.ErrMiss, "the primary says so: what is named a replica says that it is none")
		requireSeries(t, map[string]float64{
			`redisha_connection_info{role="cache.followed",topology="sentinel"}`:           1,
			`redisha_primary_switches_total{role="cache.followed"}`:                        0,
			`redisha_primary_down{role="cache.followed"}`:                                  0,
			`redisha_primary_outages_total{role="cache.followed"}`:                         0,
			`redisha_resolver_configured_servers{role="cache.followed"}`:                   2,
			`redisha_resolver_servers{role="cache.followed",state="reachable"}`:            1,
			`redisha_resolver_servers{role="cache.followed",state="unreachable"}`:          1,
			`redisha_resolver_config_epoch{role="cache.followed"}`:                         7,
			`redisha_resolver_conflicts_total{role="cache.followed"}`:                      0,
			`redisha_replica_servers{role="cache.followed"}`:                               1,
			`redisha_replica_fallbacks_total{role="cache.followed"}`:                       1,
			`redisha_replica_pool_max_connections{role="cache.followed"}`:                  4096,
			`redisha_replica_pool_connections{role="cache.followed",state="idle"}`:         0,
			`redisha_resolver_conflicts_total{role="cache.replicated"}`:                    1, // both say that they are the primary
			`redisha_resolver_servers{role="cache.replicated",state="reachable"}`:          2,
			`redisha_resolver_configured_servers{role="cache.replicated"}`:                 2,
			`redisha_command_unknown_outcomes_total{role="cache.followed"}`:                0,
			`redisha_pool_cleaned_connections_total{role="cache.followed"}`:                0,
			`redisha_pool_cleaned_connections_total{role="cache.sessions"}`:                0,
			`redisha_command_repeats_total{role="cache.sessions"}`:                         0,
			`redisha_command_duration_seconds_count{family="write",role="cache.followed"}`: 1,
		}, scrape(t, reg))

		g.primary.Stop()
		require.Error(t, users.Set(t.Context(), 1, "Grace"), "a cache does not wait")
		require.EqualValues(t, 1, scrape(t, reg)[`redisha_primary_down{role="cache.followed"}`])
		time.Sleep(2 * time.Second)
		g.sentinel.Switch("main", replicaAddr, 8)
		time.Sleep(time.Second)
		require.NoError(t, users.Set(t.Context(), 1, "Grace"))
		series := scrape(t, reg)
		requireSeries(t, map[string]float64{
			`redisha_primary_switches_total{role="cache.followed"}`:       1,
			`redisha_primary_down{role="cache.followed"}`:                 0,
			`redisha_primary_outages_total{role="cache.followed"}`:        1,
			`redisha_resolver_config_epoch{role="cache.followed"}`:        8,
			`redisha_resolver_announcements_total{role="cache.followed"}`: 1,
		}, series)
		require.InDelta(t, 2, series[`redisha_primary_outage_seconds_total{role="cache.followed"}`], 1)
		require.NotZero(t, series[`redisha_resolver_polls_total{role="cache.followed"}`])
		require.NotZero(t, series[`redisha_resolver_poll_errors_total{role="cache.followed"}`])

		time.Sleep(2 * time.Minute)
		require.NotZero(t, scrape(t, reg)[`redisha_pool_cleaned_connections_total{role="cache.followed"}`])
		g.sentinel.Stop()
		time.Sleep(time.Minute)
		require.InDelta(t, 60, scrape(t, reg)[`redisha_resolver_answer_age_seconds{role="cache.followed"}`], 2)
	})
}

func TestWhatATopologyDoesNotHaveIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		series := scrape(t, registryOf(t, openAll(t, redishatest.New(t), newGroup(t))))
		for name := range series {
			switch {
			case strings.Contains(name, `role="cache.followed"`):
			case strings.Contains(name, `role="cache.replicated"`):
				for _, other := range []string{"redisha_resolver_config_epoch", "redisha_resolver_announcements", "redisha_replica_"} {
					require.False(t, strings.HasPrefix(name, other), name)
				}
			default:
				for _, other := range []string{"redisha_primary_", "redisha_resolver_", "redisha_replica_"} {
					require.False(t, strings.HasPrefix(name, other), name)
				}
			}
		}
	})
}

func TestNoAnswerHasNoAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		g.sentinel.Stop()
		series := scrape(t, registryOf(t, openAll(t, redishatest.New(t), g)))
		require.NotContains(t, series, `redisha_resolver_answer_age_seconds{role="cache.followed"}`)
		require.EqualValues(t, 1, series[`redisha_primary_down{role="cache.followed"}`])
	})
}

func TestAClusterHasSwitchesAndNoResolver(t *testing.T) {
	stats := open(t, redishatest.New(t)).Locks.Stats()
	stats.Nodes[0].Conn.Topology, stats.Nodes[0].Conn.Replicas.Enabled = clusterTopology, true
	series := render(t, func(ch chan<- prometheus.Metric) { collectLocks(ch, stats) })
	require.Contains(t, series, `redisha_primary_switches_total{role="locks"}`)
	require.Contains(t, series, `redisha_replica_fallbacks_total{role="locks"}`)
	require.NotContains(t, series, `redisha_replica_servers{role="locks"}`, "go-redis knows them")
	require.NotContains(t, series, `redisha_primary_down{role="locks"}`)
}
