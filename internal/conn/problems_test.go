package conn

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

func TestCheckSaysWhatIsWrongWithASentinelEndpoint(t *testing.T) {
	s := redistest.NewSentinels(t, redistest.SentinelsConfig{
		MasterName: "orders",
		Data:       redistest.Config{Password: "data-secret"},
		Sentinel:   redistest.Config{Password: "sentinel-secret"},
	})
	hosts := strings.Join(s.Addrs(), ",")
	silent := listen(t, func(nc net.Conn) { _, _ = io.Copy(io.Discard, nc) })
	cases := map[string]struct{ url, want string }{
		"right":                     {"redis+sentinel://:data-secret@" + hosts + "/orders?sentinel_password=sentinel-secret", ""},
		"a wrong master name":       {"redis+sentinel://:data-secret@" + hosts + "/shop?sentinel_password=sentinel-secret", "orders"},
		"a wrong Sentinel password": {"redis+sentinel://:data-secret@" + hosts + "/orders?sentinel_password=wrong", "sentinel_password"},
		"no Sentinel password":      {"redis+sentinel://:data-secret@" + hosts + "/orders", "sentinel_password"},
		"a wrong data password":     {"redis+sentinel://:wrong@" + hosts + "/orders?sentinel_password=sentinel-secret", "authentication failed: check user and password"},
		"data nodes as Sentinels":   {"redis+sentinel://:data-secret@" + s.Nodes[0].Addr() + "/orders?sentinel_password=data-secret", "Sentinel"},
		"nothing there":             {"redis+sentinel://" + closedAddr + "/orders", "connection refused"},
		"silence":                   {"redis+sentinel://" + silent + "/orders?dial_timeout=1s", "no Sentinel answers"},
	}
	told := atOnce(slices.Collect(maps.Keys(cases)), func(name string) error {
		rdb := open(t, Config{Endpoint: parse(t, cases[name].url), Logger: slog.New(slog.DiscardHandler)})
		start := time.Now()
		err := rdb.Check(t.Context())
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("%s: %s", name, took)
		}
		return err
	})
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			err := told[name]
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
			for _, secret := range []string{"data-secret", "sentinel-secret", "wrong"} {
				require.NotContains(t, err.Error(), secret)
			}
			t.Log(err)
		})
	}
}

// atOnce asks about all names at the same time, since each answer takes seconds.
func atOnce(names []string, ask func(name string) error) map[string]error {
	answers := make([]error, len(names))
	var asking sync.WaitGroup
	for i, name := range names {
		asking.Go(func() { answers[i] = ask(name) })
	}
	asking.Wait()
	told := make(map[string]error, len(names))
	for i, name := range names {
		told[name] = answers[i]
	}
	return told
}

func TestCheckTellsClusterNodesApart(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Primaries: 3, Replicas: -1})
	plain := redistest.New(t, redistest.Config{})
	rdb := open(t, Config{Endpoint: parse(t, "redis://"+cluster.Nodes[0].Addr())})
	require.ErrorContains(t, rdb.Check(t.Context()), "this is a node of a Cluster")
	rdb = open(t, Config{Endpoint: parse(t, "redis+cluster://"+plain.Addr())})
	err := rdb.Check(t.Context())
	require.ErrorContains(t, err, "the server is no node of a Cluster: use redis://host:port")
	rdb = open(t, Config{Endpoint: parse(t, "redis+cluster://"+closedAddr)})
	require.ErrorContains(t, rdb.Check(t.Context()), "does the server run")
}

func TestSentinelsThatNameADeadPrimaryAreAskedAgain(t *testing.T) {
	s := redistest.NewSentinels(t, redistest.SentinelsConfig{DownAfter: 3 * time.Second})
	s.Primary().Kill()
	c := open(t, Config{Role: "broker", Endpoint: parse(t, s.URL())})
	require.ErrorContains(t, c.Check(t.Context()), "connection refused")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err := c.Incr(ctx, "n").Err()
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "connection refused", "what it waited for")
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, c.Incr(ctx, "n").Err(), "once another is the primary")
	require.True(t, c.Stats().Primary.Outages > 0)
	require.NotZero(t, c.Stats().Primary.LastOutage)
}

func TestAReplicatedEndpointFindsThePrimaryWhereverItStands(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	replica := redistest.NewReplica(t, primary, redistest.Config{})
	other := redistest.New(t, redistest.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := open(t, Config{Role: "broker", Endpoint: parse(t, fmt.Sprintf("redis+replica://%s,%s", replica.Addr(), primary.Addr()))})
	require.NoError(t, c.Check(ctx))
	require.NoError(t, c.Incr(ctx, "n").Err())
	require.Equal(t, primary.Addr(), c.Stats().Primary.Addr)

	var log strings.Builder
	two := open(t, Config{Role: "broker", Endpoint: parse(t, fmt.Sprintf("redis+replica://%s,%s", other.Addr(), primary.Addr())), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	require.NoError(t, two.Check(ctx))
	require.Equal(t, other.Addr(), two.Stats().Primary.Addr, "the first configured")
	require.Eventually(t, func() bool { return two.Stats().Primary.Resolver.TwoPrimaries > 0 }, 20*time.Second, time.Millisecond, "the second one is heard later")
	require.NoError(t, two.Close())
	require.Contains(t, log.String(), "level=ERROR")
}

func TestTheFirstPrimaryIsWaitedForAndFoundInVirtualTime(t *testing.T) {
	// A cache, which else never waits, waits for the search to end.
	srv := testserver.New(t)
	c := open(t, Config{Role: "cache", FailFast: true, Endpoint: parse(t, "redis+replica://127.0.0.1:6379,127.0.0.1:6380"), Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != "127.0.0.1:6379" {
			return nil, fmt.Errorf("nobody at %s", addr)
		}
		return srv.Dial(ctx, network, addr)
	}})
	require.NoError(t, c.Ping(t.Context()).Err())
}

func TestAReplicaIsRefusedAlsoWhereROLEIsForbidden(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	replica := redistest.NewReplica(t, primary, redistest.Config{Users: []string{"app on >secret ~* +@all -role"}})
	for _, protocol := range []string{"2", "3"} {
		c := open(t, Config{Role: "cache", FailFast: true, Endpoint: parse(t, "redis://app:secret@"+replica.Addr()+"?protocol="+protocol)})
		require.ErrorIs(t, c.Get(t.Context(), "k").Err(), ErrReplica)
		require.ErrorIs(t, c.Check(t.Context()), ErrReplica)
	}
}

func TestAnOutageIsLoggedAndCounted(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	var log syncBuilder
	c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis+replica://"+primary.Addr()+",127.0.0.1:1"), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	require.NoError(t, primary.Pause())
	done := make(chan error, 1)
	go func() { done <- c.Set(ctx, "k", "w", 0).Err() }()
	require.Eventually(t, func() bool { return c.Stats().Primary.Down }, 20*time.Second, 10*time.Millisecond, "before the read timeout of 3 s")
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "no usable primary") }, 20*time.Second, 10*time.Millisecond)
	require.NoError(t, primary.Continue())
	require.NoError(t, <-done)
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "the primary is back") }, 20*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool { return c.Stats().Primary.LastOutage >= 200*time.Millisecond }, 20*time.Second, time.Millisecond, "it is told first, and then counted")
	require.EqualValues(t, 1, c.Stats().Primary.Outages)
	require.Contains(t, log.String(), "level=WARN")
}

// syncBuilder is a strings.Builder for several goroutines.
type syncBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuilder) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuilder) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
