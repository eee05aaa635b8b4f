package redisha_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func at(url string) redisha.Endpoint { return redisha.Endpoint{URL: redisha.URL(url)} }

// everywhere configures all roles at one address.
func everywhere(url string) redisha.Config {
	return redisha.Config{
		Application: "test",
		Logger:      slog.New(slog.DiscardHandler),
		Cache:       redisha.CacheConfig{Endpoint: at(url)},
		Broker:      redisha.BrokerConfig{Endpoint: at(url)},
		Results:     redisha.ResultsConfig{Endpoint: at(url)},
		Locks:       redisha.LocksConfig{Endpoint: at(url)},
	}
}

func open(t *testing.T, cfg redisha.Config) *redisha.Clients {
	t.Helper()
	clients, err := redisha.Open(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, clients.Close()) })
	return clients
}

// calls makes one call on each role and returns the errors.
func calls(ctx context.Context, c *redisha.Clients) map[redisha.Role]error {
	view := cache.NewView[string, string](c.Cache, "view", cache.ViewConfig{})
	_, fetched := view.Fetch(ctx, "key", func(context.Context, string) (string, error) { return "value", nil })
	_, published := echo.Publish(ctx, c.Broker, "hello")
	_, got := c.Results.Get(ctx, "id")
	lease, acquired := c.Locks.TryAcquire(ctx, "key")
	if acquired == nil {
		acquired = lease.Release(ctx)
	}
	return map[redisha.Role]error{redisha.Cache: fetched, redisha.Broker: published, redisha.Results: got, redisha.Locks: acquired}
}

var echo = broker.NewResultTask[string, string]("echo", broker.TaskConfig{})

func TestAllRolesWorkOnARealServer(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Users: []string{"app on >s3cret ~* &* +@all"}})
	clients := open(t, everywhere("redis://app:s3cret@"+srv.Addr()+"/1"))
	for role, err := range calls(t.Context(), clients) {
		require.NoError(t, err, role)
	}
	list, err := srv.Client(t).Do(t.Context(), "client", "list").Text()
	require.NoError(t, err)
	for _, role := range []string{"cache", "broker", "results", "locks"} {
		require.Contains(t, list, "name=redisha:"+role+":test ", "each role has connections of its own")
	}
	require.Equal(t, map[redisha.Role]error{redisha.Cache: nil, redisha.Broker: nil, redisha.Results: nil, redisha.Locks: nil}, clients.Health(t.Context()))
}

func TestRolesReachTLSAndSockets(t *testing.T) {
	secure := redistest.New(t, redistest.Config{Password: "s3cret", TLS: &redistest.TLS{RequireClientCert: true}})
	socket := redistest.New(t, redistest.Config{UnixSocket: true})
	certs := secure.Certs()
	clients := open(t, redisha.Config{
		Cache:   redisha.CacheConfig{Endpoint: at("unix://" + socket.Socket() + "?db=1")},
		Broker:  redisha.BrokerConfig{Endpoint: at("rediss://:s3cret@" + secure.Addr() + "?tls_ca=" + certs.CAFile + "&tls_cert=" + certs.ClientCertFile + "&tls_key=" + certs.ClientKeyFile)},
		Results: redisha.ResultsConfig{Endpoint: at("rediss://:s3cret@" + secure.Addr() + "?ssl_ca_certs=" + certs.CAFile + "&ssl_certfile=" + certs.ClientCertFile + "&ssl_keyfile=" + certs.ClientKeyFile)},
		Locks: redisha.LocksConfig{Endpoint: redisha.Endpoint{
			URL: redisha.URL("rediss://" + secure.Addr()),
			TLS: certs.ClientConfig(),
			Credentials: func(context.Context) (string, string, error) {
				return "default", "s3cret", nil
			},
		}},
	})
	for role, err := range calls(t.Context(), clients) {
		require.NoError(t, err, role)
	}
}

func TestAProgramThatNeedsOneRoleOpensOneRole(t *testing.T) {
	srv := redishatest.New(t)
	cfg := redisha.Config{Cache: srv.Config().Cache}
	clients := open(t, cfg)
	require.Equal(t, map[redisha.Role]error{redisha.Cache: nil}, clients.Health(t.Context()))
	for role, err := range calls(t.Context(), clients) {
		if role == redisha.Cache {
			require.NoError(t, err)
			continue
		}
		require.ErrorIs(t, err, redisha.ErrNotConfigured, role)
		require.ErrorContains(t, err, "set REDISHA_"+strings.ToUpper(string(role))+"_URL")
	}
	worker, err := broker.NewWorker(clients.Broker, broker.WorkerConfig{})
	if err == nil {
		echo.Handle(worker, func(context.Context, string) (string, error) { return "", nil })
		err = worker.Run(t.Context())
	}
	require.ErrorIs(t, err, redisha.ErrNotConfigured, "a worker ends at once instead of trying for ever")
	_, err = clients.Results.Wait(t.Context(), "id")
	require.ErrorIs(t, err, redisha.ErrNotConfigured)
}

func TestOpeningWithoutAnyRoleGivesClientsThatSayWhatToDo(t *testing.T) {
	clients := open(t, redisha.Config{})
	for role, err := range calls(t.Context(), clients) {
		require.ErrorIs(t, err, redisha.ErrNotConfigured, role)
	}
	require.Empty(t, clients.Health(t.Context()))
}

func TestLocksClosedBySentinelsSayWhichVariableToSet(t *testing.T) {
	vars := map[string]string{"REDISHA_BROKER_URL": "redis+sentinel://s1/m", "REDISHA_CACHE_URL": "redis://127.0.0.1"}
	cfg, err := redisha.FromLookup(func(name string) (string, bool) { v, ok := vars[name]; return v, ok })
	require.NoError(t, err)
	cfg.Broker = redisha.BrokerConfig{} // this version opens no Sentinels
	cfg.Lazy = true
	clients := open(t, cfg)
	_, err = clients.Locks.TryAcquire(t.Context(), "key")
	require.ErrorIs(t, err, redisha.ErrNotConfigured)
	require.ErrorContains(t, err, "in REDISHA_LOCKS_URL")

	_, err = redisha.Open(t.Context(), redisha.Config{Locks: redisha.LocksConfig{Endpoint: at("redis+sentinel://s1/m")}})
	require.ErrorIs(t, err, lock.ErrSentinelEndpoint)
	require.ErrorContains(t, err, "in REDISHA_LOCKS_URL")
}

func TestMistakesInAConfigurationComeBackTogether(t *testing.T) {
	cfg := everywhere("redis://127.0.0.1")
	cfg.Application = "my app"
	cfg.Namespace = "a{b}"
	cfg.CloseTimeout = -1
	cfg.Cache.URL = "redis://:hunter2@h?pool_size=abc"
	cfg.Broker.URL = "redis://h?ttl=1h"
	cfg.Locks.URL = "redis://h?compression=none"
	cfg.Results.Pool.MaxTotal = -1
	cfg.Caches = map[string]redisha.CacheConfig{"No": {}}
	_, err := redisha.Open(t.Context(), cfg)
	require.Error(t, err)
	t.Log("\n" + err.Error())
	for _, want := range []string{
		`Config.Application is "my app"`, `Config.Namespace is "a{b}"`, "Config.CloseTimeout is -1ns",
		"Config.Cache.URL=redis://:xxxxx@h", "pool_size", "open broker: ttl=1h0m0s: broker has no default TTL",
		"open locks: compression: locks compresses nothing", "Pool.MaxTotal is -1", `name of a cache is "No"`,
	} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "hunter2")
	require.Equal(t, 1, strings.Count(err.Error(), "want letters, digits"), "once, and not by every role")
	for line := range strings.Lines(err.Error()) {
		require.True(t, strings.HasPrefix(line, "redisha: "), line)
	}
}

func TestACacheThatIsDownIsNoReasonNotToStart(t *testing.T) {
	srv := redishatest.New(t)
	cfg := srv.Config()
	nobody := refusing
	cfg.Cache.Endpoint = at("redis://:hunter2@" + nobody)
	cfg.Caches = map[string]redisha.CacheConfig{"sessions": {Endpoint: at("redis://" + nobody)}}
	var log strings.Builder
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	clients := open(t, cfg)
	require.Contains(t, log.String(), "level=WARN")
	require.Contains(t, log.String(), "role=cache ")
	require.Contains(t, log.String(), "role=cache.sessions")
	require.NotContains(t, log.String(), "hunter2")
	health := clients.Health(t.Context())
	require.ErrorContains(t, health[redisha.Cache], nobody)
	require.ErrorContains(t, health[redisha.NamedCache("sessions")], nobody)
	require.NoError(t, health[redisha.Broker])
	view := cache.NewView[string, string](clients.Cache, "view", cache.ViewConfig{})
	got, err := view.Fetch(t.Context(), "key", func(context.Context, string) (string, error) { return "loaded", nil })
	require.NoError(t, err)
	require.Equal(t, "loaded", got)
}

func TestAnyOtherRoleThatIsDownIs(t *testing.T) {
	nobody := refusing
	for _, role := range []redisha.Role{redisha.Broker, redisha.Results, redisha.Locks} {
		t.Run(string(role), func(t *testing.T) {
			cfg := redishatest.New(t).Config()
			switch role {
			case redisha.Broker:
				cfg.Broker.Endpoint = at("redis://" + nobody)
			case redisha.Results:
				cfg.Results.Endpoint = at("redis://" + nobody)
			case redisha.Locks:
				cfg.Locks.Endpoint = at("redis://" + nobody)
			}
			_, err := redisha.Open(t.Context(), cfg)
			require.ErrorContains(t, err, "redisha: open "+string(role)+": ")
			require.ErrorContains(t, err, nobody)
			require.ErrorContains(t, err, "connection refused")

			cfg.Lazy = true
			clients := open(t, cfg)
			require.ErrorContains(t, clients.Health(t.Context())[role], nobody)
		})
	}
}

func TestTheVariableIsNamedWhoseServerIsDown(t *testing.T) {
	vars := map[string]string{"CELERY_BROKER_URL": "redis://:hunter2@" + refusing}
	cfg, err := redisha.FromLookup(func(name string) (string, bool) { v, ok := vars[name]; return v, ok }, redisha.Broker)
	require.NoError(t, err)
	_, err = redisha.Open(t.Context(), cfg)
	require.ErrorContains(t, err, "redisha: open broker: CELERY_BROKER_URL: ")
	require.NotContains(t, err.Error(), "hunter2")
}

func TestOpenIsBoundedByItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts by its backlog, and never answers
	require.NoError(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = redisha.Open(ctx, everywhere("redis://"+l.Addr().String()+"?read_timeout=60s"))
	require.Error(t, err)
	require.Less(t, time.Since(start), 20*time.Second, "not the read timeout of a minute")

	var none context.Context
	_, err = redisha.Open(none, redisha.Config{})
	require.ErrorContains(t, err, "nil context")
}

func TestCallsAfterCloseSaySo(t *testing.T) {
	clients, err := redisha.Open(t.Context(), redishatest.New(t).Config())
	require.NoError(t, err)
	for role, err := range calls(t.Context(), clients) {
		require.NoError(t, err, role)
	}
	require.NoError(t, clients.Close())
	require.NoError(t, clients.Close(), "twice is safe")
	for role, err := range calls(t.Context(), clients) {
		require.ErrorIs(t, err, redisha.ErrClosed, role)
		require.ErrorIs(t, err, redis.ErrClosed, role)
	}
	for role, err := range clients.Health(t.Context()) {
		require.ErrorIs(t, err, redisha.ErrClosed, role)
	}
	_, err = clients.Results.Wait(t.Context(), "id")
	require.ErrorIs(t, err, redisha.ErrClosed)
	_, err = broker.NewWorker(clients.Broker, broker.WorkerConfig{})
	if err == nil {
		t.Log("a worker may be made, but does not run")
	} else {
		require.ErrorIs(t, err, redisha.ErrClosed)
	}
}

func TestCloseLetsARunningWorkerFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := redishatest.New(t)
		clients, err := redisha.Open(t.Context(), srv.Config())
		require.NoError(t, err)
		worker, err := broker.NewWorker(clients.Broker, broker.WorkerConfig{Results: clients.Results})
		require.NoError(t, err)
		var finished atomic.Bool
		started := make(chan struct{})
		echo.Handle(worker, func(_ context.Context, s string) (string, error) {
			close(started)
			time.Sleep(2 * time.Second)
			finished.Store(true)
			return s, nil
		})
		ended := make(chan error, 1)
		go func() { ended <- worker.Run(t.Context()) }()
		id, err := echo.Publish(t.Context(), clients.Broker, "hello")
		require.NoError(t, err)
		<-started
		require.NoError(t, clients.Close())
		require.True(t, finished.Load(), "Close waited for the handler")
		<-ended

		again, err := redisha.Open(t.Context(), srv.Config())
		require.NoError(t, err)
		defer func() { require.NoError(t, again.Close()) }()
		got, err := echo.Wait(t.Context(), again.Results, id)
		require.NoError(t, err, "its result was stored before its connection was closed")
		require.Equal(t, "hello", got)
	})
}

func TestAnOpenThatFailsLeavesNothingOpen(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	cfg := everywhere("redis://" + srv.Addr())
	cfg.Results.Endpoint = at("redis://" + refusing)
	_, err := redisha.Open(t.Context(), cfg)
	require.Error(t, err)
	admin := srv.Client(t)
	require.Eventually(t, func() bool {
		list, err := admin.Do(t.Context(), "client", "list").Text()
		return err == nil && !strings.Contains(list, "name=redisha:")
	}, 20*time.Second, 10*time.Millisecond)
}

func TestURLParametersReachTheRoles(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	clients := open(t, redisha.Config{
		Namespace: "common",
		Cache:     redisha.CacheConfig{Endpoint: at("redis://" + srv.Addr() + "?namespace=own&ttl=5m&compression=none&pool_size=3")},
		Caches:    map[string]redisha.CacheConfig{"sessions": {Endpoint: at("redis://" + srv.Addr() + "?compression_min_size=64")}},
		Results:   redisha.ResultsConfig{Endpoint: at("redis://" + srv.Addr() + "?breaker=off")},
		Locks:     redisha.LocksConfig{Endpoint: at("redis://" + srv.Addr() + "?ttl=7s")},
	})
	ctx, admin := t.Context(), srv.Client(t)
	long := strings.Repeat("long ", 100)
	require.NoError(t, cache.NewView[string, string](clients.Cache, "v", cache.ViewConfig{Plain: true, Codec: cache.Raw}).Set(ctx, "k", long))
	stored, err := admin.Get(ctx, "own:cache:v:k").Result()
	require.NoError(t, err)
	require.Equal(t, long, stored, "compression=none")
	ttl, err := admin.PTTL(ctx, "own:cache:v:k").Result()
	require.NoError(t, err)
	require.LessOrEqual(t, ttl, 5*time.Minute)
	require.Greater(t, ttl, 4*time.Minute)
	require.Equal(t, 3, clients.Cache.Stats().Conn.Pool.MaxTotal)
	require.True(t, clients.Cache.Stats().Conn.Breaker.Enabled)
	require.False(t, clients.Results.Stats().Conn.Breaker.Enabled)

	require.NoError(t, cache.NewView[string, string](clients.Caches["sessions"], "v", cache.ViewConfig{Plain: true, Codec: cache.Raw}).Set(ctx, "k", long[:100]))
	stored, err = admin.Get(ctx, "common:cache.sessions:v:k").Result()
	require.NoError(t, err)
	require.Less(t, len(stored), 100, "compressed from 64 bytes")

	lease, err := clients.Locks.TryAcquire(ctx, "k")
	require.NoError(t, err)
	ttl, err = admin.PTTL(ctx, "common:lock:{k}").Result()
	require.NoError(t, err)
	require.LessOrEqual(t, ttl, 7*time.Second)
	require.Positive(t, ttl)
	require.NoError(t, lease.Release(ctx))
}

// What the URL says of the locks' endpoint goes before what the program says.
func TestTheURLSaysWhichEndpointsLocksTake(t *testing.T) {
	for _, c := range []struct {
		params string
		own    lock.Config
		want   error
	}{
		{"", lock.Config{}, nil},
		{"", lock.Config{Strict: true}, lock.ErrUnsafeEndpoint},
		{"?strict=true", lock.Config{}, lock.ErrUnsafeEndpoint},
		{"?strict=0", lock.Config{Strict: true}, nil},
		{"?allow_failover_managed=true", lock.Config{}, nil},
	} {
		t.Run(c.params, func(t *testing.T) {
			srv := testserver.New(t)
			srv.SetReplicaAddrs("10.0.0.2:6379")
			requireOpens(t, srv, c.params, c.own, c.want)
		})
	}
	for _, c := range []struct {
		params string
		own    lock.Config
		want   error
	}{
		{"", lock.Config{}, lock.ErrFailoverManaged},
		{"", lock.Config{AllowFailoverManaged: true}, nil},
		{"?allow_failover_managed=true", lock.Config{}, nil},
		{"?allow_failover_managed=1&strict=false", lock.Config{Strict: true}, nil},
		{"?allow_failover_managed=false", lock.Config{AllowFailoverManaged: true}, lock.ErrFailoverManaged},
		{"?strict=true&allow_failover_managed=false", lock.Config{AllowFailoverManaged: true}, lock.ErrFailoverManaged},
	} {
		t.Run("watched"+c.params, func(t *testing.T) {
			srv := testserver.New(t)
			sentinel := srv.Client(t).Subscribe(t.Context(), "__sentinel__:hello")
			defer sentinel.Close()
			_, err := sentinel.Receive(t.Context())
			require.NoError(t, err)
			requireOpens(t, srv, c.params, c.own, c.want)
		})
	}
}

func requireOpens(t *testing.T, srv *testserver.Server, params string, own lock.Config, want error) {
	t.Helper()
	ep := at("redis://127.0.0.1:6379" + params)
	ep.Dialer = srv.Dial
	clients, err := redisha.Open(t.Context(), redisha.Config{Locks: redisha.LocksConfig{Endpoint: ep, Config: own}, Logger: slog.New(slog.DiscardHandler)})
	require.ErrorIs(t, err, want)
	if want == nil {
		require.NoError(t, clients.Close())
	}
}

func TestWhatLocksDoNotTakeIsToldBeforeTheyAreOpened(t *testing.T) {
	for url, says := range map[string]string{
		"redis://h?ttl=10ms":                                                              "ttl=10ms: leases of locks have at least 100ms",
		"redis://a;redis://b?ttl=10ms;redis://c":                                          "ttl=10ms: leases of locks have at least 100ms",
		"redis://h?strict=true&allow_failover_managed=true":                               "strict and allow_failover_managed are both true: the one refuses all servers that may fail over, the other takes them; keep one",
		"redis://h?strict=yes":                                                            `strict is "yes": it takes true, false, 1 or 0`,
		"redis://a?strict=1;redis://b?strict=false;redis://c":                             "part 2 of 3: strict=false, where another part has true: write it once",
		"redis://a?allow_failover_managed=1;redis://b;redis://c?allow_failover_managed=0": "part 3 of 3: allow_failover_managed=false, where another part has true: write it once",
	} {
		_, err := redisha.FromLookup(fromMap(map[string]string{"REDISHA_LOCKS_URL": url}), redisha.Locks)
		require.ErrorContains(t, err, "redisha: REDISHA_LOCKS_URL=")
		require.ErrorContains(t, err, says)
		_, err = redisha.Open(t.Context(), redisha.Config{Locks: redisha.LocksConfig{Endpoint: at(url)}})
		require.ErrorContains(t, err, "redisha: ")
		require.ErrorContains(t, err, says)
	}

	// Meant for other roles, it closes the locks of a program that does not need them.
	vars := fromMap(map[string]string{"REDIS_URL": "redis://h?ttl=10ms"})
	_, err := redisha.FromLookup(vars, redisha.Locks)
	require.ErrorIs(t, err, redisha.ErrNotConfigured)
	require.ErrorContains(t, err, "REDIS_URL=redis://h?ttl=10ms: ttl=10ms: leases of locks have at least 100ms")
	cfg, err := redisha.FromLookup(vars)
	require.NoError(t, err)
	cfg.Lazy = true
	require.ErrorIs(t, once(t.Context(), open(t, cfg)), redisha.ErrNotConfigured)

	// What the URL and the program say together.
	_, err = redisha.Open(t.Context(), redisha.Config{Locks: redisha.LocksConfig{Endpoint: at("redis://h?strict=true"), Config: lock.Config{AllowFailoverManaged: true}}})
	require.ErrorContains(t, err, "redisha: open locks: lock: new: want Strict or AllowFailoverManaged, got both")
}

func TestWhatIsForLocksIsRefusedByOtherRoles(t *testing.T) {
	for _, param := range []string{"strict=true", "strict=false", "allow_failover_managed=true"} {
		cfg := everywhere("redis://h")
		cfg.Cache.URL += redisha.URL("?" + param)
		cfg.Broker.URL += redisha.URL("?" + param)
		cfg.Results.URL += redisha.URL("?" + param)
		cfg.Lazy = true
		_, err := redisha.Open(t.Context(), cfg)
		for _, role := range []string{"cache", "broker", "results"} {
			require.ErrorContains(t, err, "redisha: open "+role+": "+param+": it is for locks, and not for "+role+": leave it out")
		}
		require.NotContains(t, err.Error(), "open locks")

		cfg, err = redisha.FromLookup(fromMap(map[string]string{"REDIS_URL": "redis://h?" + param}))
		require.NoError(t, err)
		cfg.Lazy = true
		open(t, cfg)
	}
}

func TestASharedURLMaySayWhatOneRoleHasNoUseFor(t *testing.T) {
	for _, vars := range []map[string]string{
		{"REDIS_URL": "redis://h?ttl=10m&compression=none"},
		{"REDISHA_BROKER_URL": "redis://h?compression=deflate&compression_min_size=512"},
	} {
		cfg, err := redisha.FromLookup(func(name string) (string, bool) { v, ok := vars[name]; return v, ok })
		require.NoError(t, err)
		cfg.Lazy = true
		open(t, cfg)
	}
	vars := map[string]string{"REDISHA_BROKER_URL": "redis://h?ttl=10m"}
	cfg, err := redisha.FromLookup(func(name string) (string, bool) { v, ok := vars[name]; return v, ok })
	require.NoError(t, err)
	cfg.Lazy = true
	_, err = redisha.Open(t.Context(), cfg)
	require.ErrorContains(t, err, "redisha: open broker: REDISHA_BROKER_URL: ttl=10m0s: broker has no default TTL: leave it out")
}

func TestClientsPrintNoPassword(t *testing.T) {
	cfg := everywhere("redis://:hunter2@127.0.0.1:1")
	cfg.Lazy = true
	clients := open(t, cfg)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		for _, v := range []any{clients, clients.Cache, clients.Broker, clients.Results, clients.Locks} {
			require.False(t, strings.Contains(fmt.Sprintf(verb, v), "hunter2"), "%s of %T", verb, v)
		}
	}
}

func TestALockThatHangsCostsOneTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := redisha.Endpoint{URL: "redis://10.0.0.1?read_timeout=500ms", Dialer: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, far) }()
			return near, nil
		}}
		start := time.Now()
		_, err := redisha.Open(t.Context(), redisha.Config{Locks: redisha.LocksConfig{Endpoint: hangs}})
		require.Error(t, err)
		require.Less(t, time.Since(start), 900*time.Millisecond)
	})
}

func TestEachRoleHasAPoolOfItsOwn(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	cfg := everywhere("redis://" + srv.Addr() + "?pool_size=1&pool_timeout=5s")
	clients := open(t, cfg)
	waiting := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, err := clients.Results.Wait(ctx, "never")
		waiting <- err
	}()
	for range 20 {
		errs := calls(t.Context(), clients)
		require.NoError(t, errs[redisha.Cache])
		require.NoError(t, errs[redisha.Locks])
	}
	cancel()
	require.ErrorIs(t, <-waiting, context.Canceled)
}

func TestManyCallersAndOneClose(t *testing.T) {
	clients, err := redisha.Open(t.Context(), redishatest.New(t).Config())
	require.NoError(t, err)
	var callers sync.WaitGroup
	for range 16 {
		callers.Go(func() {
			for {
				for _, err := range calls(context.Background(), clients) {
					if errors.Is(err, redisha.ErrClosed) {
						return
					}
				}
			}
		})
	}
	require.Eventually(t, func() bool { return clients.Locks.Stats().Nodes[0].Conn.Commands.Total() > 50 }, 20*time.Second, time.Millisecond)
	require.NoError(t, clients.Close())
	callers.Wait()
}

// refusing is an address where nobody listens: the system gives its port to
// nobody, as it may do with one that was free a moment ago.
const refusing = "127.0.0.1:1"

// As a deferred Close has them where Open has failed.
func TestNilClientsAreClosed(t *testing.T) {
	var c *redisha.Clients
	require.NoError(t, c.Close())
	require.Empty(t, c.Health(t.Context()))
}
