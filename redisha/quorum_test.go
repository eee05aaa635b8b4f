package redisha_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
)

// fromMap is the environment of a test.
func fromMap(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
}

func TestWhatCannotBeAQuorumIsRefused(t *testing.T) {
	for _, c := range []struct {
		name, url string
		says      []string
	}{
		{"two", "redis://a;redis://b", []string{"a quorum of 2 servers, which survives no more losses than one of 1: add one, or leave one out"}},
		{"four", "redis://a;redis://b;redis://c;redis://d", []string{"a quorum of 4 servers, which survives no more losses than one of 3"}},
		{"the same twice", "redis://a;redis://b;redis://A:6379/1", []string{"part 3 of 3: it has the same address as part 1: a quorum is made of independent servers"}},
		{"Sentinels", "redis://a;redis://b;redis+sentinel://c/main", []string{"part 3 of 3: it is a sentinel endpoint: a quorum is made of independent single servers (redis://, rediss://, unix://)"}},
		{"a Cluster", "redis://a;redis+cluster://b;redis://c", []string{"part 2 of 3: it is a cluster endpoint"}},
		{"replicas", "redis+replica://a,b;redis://c;redis://d", []string{"part 1 of 3: it is a replicated endpoint"}},
		{"a proxy", "redis://a;redis://b?proxy=envoy;redis://c", []string{"part 2 of 3: proxy=envoy: a quorum must know its servers"}},
		{"namespaces", "redis://a?namespace=x;redis://b;redis://c?namespace=y", []string{"part 3 of 3: namespace=y, where another part has x: all servers have the same keys, write it once"}},
		{"TTLs", "redis://a;redis://b?ttl=10s;redis://c?ttl=20s", []string{"part 3 of 3: ttl=20s, where another part has 10s"}},
		{"no scheme", "redis://a;b;redis://c", []string{"part 2 of 3: it has no scheme: write redis:// in front of every part, and a ; in a password as %3B"}},
		{"several mistakes", "redis://a?ttl=10s;redis://b?proxy=envoy&ttl=20s", []string{"a quorum of 2 servers", "part 2 of 2: proxy=envoy", "part 2 of 2: ttl=20s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, fromEnv := redisha.FromLookup(fromMap(map[string]string{"REDISHA_LOCKS_URL": c.url}), redisha.Locks)
			_, opened := redisha.Open(t.Context(), redisha.Config{Locks: redisha.LocksConfig{Endpoint: at(c.url)}})
			for _, says := range c.says {
				require.ErrorContains(t, fromEnv, says)
				require.ErrorContains(t, opened, says)
			}
			require.ErrorContains(t, fromEnv, "redisha: REDISHA_LOCKS_URL=")
		})
	}
}

// In a variable of Celery's, such a list is one of brokers to fail over to.
func TestOnlyTheVariableOfLocksHoldsAQuorum(t *testing.T) {
	const list = "redis://:hunter2@a;redis://:hunter2@b;redis://:hunter2@c"
	for _, variable := range []string{"CELERY_BROKER_URL", "CELERY_ONCE_REDIS_URL", "REDISHA_BROKER_URL", "REDIS_URL"} {
		_, err := redisha.FromLookup(fromMap(map[string]string{variable: list}), redisha.Locks)
		require.ErrorContains(t, err, "redisha: "+variable+"=redis://:xxxxx@a;redis://:xxxxx@b;redis://:xxxxx@c: several endpoints separated by semicolons: only REDISHA_LOCKS_URL takes them, as a quorum")
		require.NotContains(t, err.Error(), "hunter2")
	}
	_, err := redisha.Open(t.Context(), redisha.Config{Broker: redisha.BrokerConfig{Endpoint: at(list)}})
	require.ErrorContains(t, err, "several endpoints separated by semicolons")
}

func TestMistakesOfAPartNameIt(t *testing.T) {
	_, err := redisha.Open(t.Context(), redisha.Config{Locks: redisha.LocksConfig{Endpoint: at("redis://:hunter2@a;rediss://:hunter2@b?tls_ca=/nowhere;rediss://:hunter2@c?tls_ca=/nowhere")}})
	require.Error(t, err)
	t.Log("\n" + err.Error())
	require.NotContains(t, err.Error(), "hunter2")
	for _, says := range []string{"redisha: open locks: part 2 of 3: ", "redisha: open locks: part 3 of 3: "} {
		require.ErrorContains(t, err, says)
	}
}

func TestParametersThatLocksHaveNoUseForAreToldOfAQuorumToo(t *testing.T) {
	_, err := redisha.Open(t.Context(), redisha.Config{Locks: redisha.LocksConfig{Endpoint: at("redis://a;redis://b?compression=none;redis://c")}})
	require.ErrorContains(t, err, "compression: locks compresses nothing")
}

// A panel is servers in memory for a quorum, each with a password of its own.
type panel struct {
	net     *testserver.Net
	servers []*testserver.Server
	parts   []string
	log     strings.Builder
}

func panelAddr(i int) string { return fmt.Sprintf("10.0.0.%d:6379", i+1) }

// newPanel starts n servers inside a bubble, and lets them run for as long as the
// nodes of a quorum have to.
func newPanel(t *testing.T, n int) *panel {
	t.Helper()
	p := &panel{net: testserver.NewNet()}
	for i := range n {
		srv := testserver.New(t)
		srv.RequireAuth(fmt.Sprintf("hunter%d", i+1))
		p.net.Add(panelAddr(i), srv.Dial)
		p.servers = append(p.servers, srv)
		p.parts = append(p.parts, fmt.Sprintf("redis://:hunter%d@%s", i+1, panelAddr(i)))
	}
	time.Sleep(time.Minute)
	return p
}

// config is as FromEnv makes it, with parameters for each server.
func (p *panel) config(t *testing.T, params ...string) redisha.Config {
	t.Helper()
	parts := slices.Clone(p.parts)
	for i, param := range params {
		parts[i] += param
	}
	cfg, err := redisha.FromLookup(fromMap(map[string]string{"REDISHA_LOCKS_URL": strings.Join(parts, ";")}), redisha.Locks)
	require.NoError(t, err)
	cfg.Locks.Dialer = p.net.Dial
	cfg.Logger = slog.New(slog.NewTextHandler(&p.log, nil))
	return cfg
}

// logged returns what was logged since the last call.
func (p *panel) logged() string {
	synctest.Wait()
	defer p.log.Reset()
	return p.log.String()
}

func (p *panel) stop(servers ...int) {
	for _, i := range servers {
		p.net.Add(panelAddr(i), nil)
		p.servers[i].Stop()
	}
}

func once(ctx context.Context, clients *redisha.Clients) error {
	return clients.Locks.Do(ctx, "report", func(ctx context.Context, _ *lock.Lease) error { return ctx.Err() })
}

func TestAQuorumOutlivesTheLossOfAMinority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3)
		clients := open(t, p.config(t))
		require.Equal(t, map[redisha.Role]error{"locks": nil, "locks.1": nil, "locks.2": nil, "locks.3": nil}, clients.Health(t.Context()))
		require.NoError(t, once(t.Context(), clients))
		stats := clients.Locks.Stats()
		require.Len(t, stats.Nodes, 3)
		for i, node := range stats.Nodes {
			require.Equal(t, panelAddr(i), node.Addr)
			require.Equal(t, "locks", node.Conn.Role)
			require.NotZero(t, node.Conn.Dials)
		}

		p.stop(1)
		health := clients.Health(t.Context())
		require.NoError(t, health[redisha.Locks], "a program that is ready stays so")
		require.NoError(t, health["locks.1"])
		require.ErrorContains(t, health["locks.2"], panelAddr(1))
		require.NoError(t, health["locks.3"])
		require.NoError(t, once(t.Context(), clients))

		p.logged()
		late := open(t, p.config(t))
		require.NoError(t, once(t.Context(), late))
		warned := p.logged()
		require.Contains(t, warned, `level=WARN msg="server of the quorum cannot be reached, the others are enough to start" role=locks node=2 err=`)
		require.NotContains(t, warned, "hunter")

		p.stop(2)
		health = clients.Health(t.Context())
		require.ErrorContains(t, health[redisha.Locks], "node 2")
		require.ErrorContains(t, health[redisha.Locks], "node 3")
		require.Error(t, health["locks.3"])
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		require.Error(t, once(ctx, clients))

		_, err := redisha.Open(t.Context(), p.config(t))
		require.ErrorContains(t, err, "redisha: open locks: REDISHA_LOCKS_URL: ")
		require.ErrorContains(t, err, "node 2 ("+panelAddr(1)+")")
		require.ErrorContains(t, err, "node 3 ("+panelAddr(2)+")")
		require.NotContains(t, err.Error(), "hunter")
		t.Log(err)
		cfg := p.config(t)
		cfg.Lazy = true
		open(t, cfg)
	})
}

func TestAQuorumOpensBesideAServerThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3)
		p.servers[0].Hang(true)
		defer p.servers[0].Hang(false)
		start := time.Now()
		clients := open(t, p.config(t))
		require.Less(t, time.Since(start), 6*time.Second, "as long as a connection may take to answer")
		require.Contains(t, p.logged(), "role=locks node=1 ")

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		health := clients.Health(ctx)
		require.NoError(t, health[redisha.Locks])
		require.Error(t, health["locks.1"])
		require.NoError(t, once(t.Context(), clients))
	})
}

func TestWhatIsNoServerOfItsOwnIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3)
		p.servers[1].SetUpstream("10.9.9.9:6379")
		_, err := redisha.Open(t.Context(), p.config(t))
		require.ErrorIs(t, err, lock.ErrReplicaEndpoint)
		require.ErrorContains(t, err, "redisha: open locks: REDISHA_LOCKS_URL: ")
		require.ErrorContains(t, err, "node 2 ("+panelAddr(1)+")")
	})
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3)
		p.net.Add(panelAddr(2), p.servers[0].Dial) // a second name for the first one
		p.parts[2] = "redis://:hunter1@" + panelAddr(2)
		_, err := redisha.Open(t.Context(), p.config(t))
		require.ErrorContains(t, err, "two addresses lead to the same server")
		require.ErrorContains(t, err, panelAddr(2))
	})
}

func TestEachServerHasItsOwnConnectionsAndAllTheSameLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3)
		clients := open(t, p.config(t, "?pool_size=7&breaker=off", "?namespace=shop", "?ttl=10s&pool_size=9"))
		nodes := clients.Locks.Stats().Nodes
		require.Equal(t, 7, nodes[0].Conn.Pool.MaxTotal)
		require.Equal(t, 100, nodes[1].Conn.Pool.MaxTotal)
		require.Equal(t, 9, nodes[2].Conn.Pool.MaxTotal)
		require.False(t, nodes[0].Conn.Breaker.Enabled)
		require.True(t, nodes[1].Conn.Breaker.Enabled)

		lease, err := clients.Locks.TryAcquire(t.Context(), "report")
		require.NoError(t, err)
		synctest.Wait()
		for _, srv := range p.servers {
			ttl := srv.TTL("shop:lock:{report}")
			require.Greater(t, ttl, 9*time.Second)
			require.LessOrEqual(t, ttl, 10*time.Second)
		}
		require.NoError(t, lease.Release(t.Context()))
	})
}

func TestClosingClosesTheConnectionsOfAQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3)
		clients, err := redisha.Open(t.Context(), p.config(t))
		require.NoError(t, err)
		require.NoError(t, once(t.Context(), clients))
		for _, srv := range p.servers {
			require.NotZero(t, srv.CurrentConnectionCount())
		}
		require.NoError(t, clients.Close())
		synctest.Wait()
		for _, srv := range p.servers {
			require.Zero(t, srv.CurrentConnectionCount())
		}
		require.ErrorIs(t, once(t.Context(), clients), redisha.ErrClosed)
		for role, err := range clients.Health(t.Context()) {
			require.ErrorIs(t, err, redisha.ErrClosed, role)
		}
	})
}

// The servers change places in the file, and one of them its password.
func TestPasswordsOfAQuorumAreReadAgainEachForItsServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3)
		file := filepath.Join(t.TempDir(), "url")
		replace(t, file, strings.Join(p.parts, ";")+"\n")
		cfg, err := redisha.FromLookup(fromMap(map[string]string{"REDISHA_LOCKS_URL_FILE": file}), redisha.Locks)
		require.NoError(t, err)
		cfg.Locks.Dialer = p.net.Dial
		cfg.Logger = slog.New(slog.NewTextHandler(&p.log, nil))
		clients := open(t, cfg)

		p.servers[1].RequireAuth("another")
		p.parts[1] = "redis://:another@" + panelAddr(1)
		slices.Reverse(p.parts)
		replace(t, file, strings.Join(p.parts, ";")+"\n")
		for _, srv := range p.servers {
			srv.Stop()
			require.NoError(t, srv.Restart())
		}
		clients.Health(t.Context()) // notices that the connections are broken
		for role, err := range clients.Health(t.Context()) {
			require.NoError(t, err, role)
		}

		replace(t, file, strings.Join(p.parts[:2], ";")) // two are no quorum, nor is the first one there
		p.logged()
		p.servers[0].Stop()
		require.NoError(t, p.servers[0].Restart())
		clients.Health(t.Context())
		require.NoError(t, clients.Health(t.Context())["locks.1"], "the last password is still good")
		warned := p.logged()
		require.Contains(t, warned, "file with user and password cannot be used")
		require.NotContains(t, warned, "hunter")
	})
}

func TestAQuorumOfRealServersOutlivesOne(t *testing.T) {
	var servers []*redistest.Server
	var parts []string
	for i := range 3 {
		srv := redistest.New(t, redistest.Config{Password: fmt.Sprintf("hunter%d", i+1)})
		servers, parts = append(servers, srv), append(parts, srv.URL()+"?ttl=2s")
	}
	cfg, err := redisha.FromLookup(fromMap(map[string]string{"REDISHA_LOCKS_URL": strings.Join(parts, ";")}), redisha.Locks)
	require.NoError(t, err)
	cfg.Logger, cfg.Application = slog.New(slog.DiscardHandler), "test"
	clients := open(t, cfg)
	works := func(c *redisha.Clients) { // once the servers have run for a TTL, and in spite of a slow machine
		t.Helper()
		require.Eventually(t, func() bool { return once(t.Context(), c) == nil }, time.Minute, 10*time.Millisecond)
	}
	works(clients)
	for i, srv := range servers {
		require.Equal(t, srv.Addr(), clients.Locks.Stats().Nodes[i].Addr)
		list, err := srv.Client(t).Do(t.Context(), "client", "list").Text()
		require.NoError(t, err)
		require.Contains(t, list, "name=redisha:locks:test ")
	}
	servers[1].Kill()
	works(clients)
	health := clients.Health(t.Context())
	require.NoError(t, health[redisha.Locks])
	require.ErrorContains(t, health["locks.2"], servers[1].Addr())
	works(open(t, cfg))

	servers[2].Kill()
	require.Error(t, clients.Health(t.Context())[redisha.Locks])
	_, err = redisha.Open(t.Context(), cfg)
	require.ErrorContains(t, err, servers[1].Addr())
	require.ErrorContains(t, err, servers[2].Addr())
	require.NotContains(t, err.Error(), "hunter")
}
