package lock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/testserver"
)

// A panel is the nodes of a quorum in memory, each behind a network of its own.
type panel struct {
	servers  []*testserver.Server
	networks []*network
}

// noNotices keeps go-redis from holding a mutex while a handshake waits for its
// answer, which lets the time of a bubble stand still.
var noNotices = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}

// newPanel starts n servers in a bubble, and lets so much time pass that they are
// trusted.
func newPanel(t *testing.T, n int, ttl time.Duration) *panel {
	t.Helper()
	p := &panel{}
	for range n {
		srv := testserver.New(t)
		p.servers = append(p.servers, srv)
		p.networks = append(p.networks, &network{dial: srv.Dial, replies: -1})
	}
	time.Sleep(seasoning(ttl))
	return p
}

// seasoning is how long a server is not trusted after it was started.
func seasoning(ttl time.Duration) time.Duration { return ttl + margin(ttl) + 2*time.Second }

// open returns a client of all servers.
func (p *panel) open(t *testing.T, cfg Config) *Client {
	t.Helper()
	if cfg.CloseTimeout == 0 {
		cfg.CloseTimeout = -1
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c, err := NewQuorum(p.clients(t), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (p *panel) clients(t *testing.T) []redis.UniversalClient {
	t.Helper()
	var nodes []redis.UniversalClient
	for i, srv := range p.servers {
		opt := srv.Options()
		opt.Dialer = p.networks[i].Dial
		opt.Addr = fmt.Sprintf("10.0.0.%d:6379", i+1)
		opt.MaxRetries, opt.DialerRetries, opt.ContextTimeoutEnabled = -1, 1, true
		opt.MaintNotificationsConfig = noNotices
		rdb := redis.NewClient(opt)
		t.Cleanup(func() {
			_ = rdb.Close()
			time.Sleep(2 * time.Second) // after failed dials, go-redis looks once a second whether it is closed
		})
		nodes = append(nodes, rdb)
	}
	return nodes
}

// has counts the servers that have the lease.
func (p *panel) has(key string) (n int) {
	for _, srv := range p.servers {
		if srv.Exists("redisha:lock:{" + key + "}") {
			n++
		}
	}
	return n
}

// left returns what is left on all servers, but for counters.
func (p *panel) left() (keys []string) {
	for _, srv := range p.servers {
		keys = append(keys, leaseKeys(srv)...)
	}
	return keys
}

// each does something to the servers with the given places.
func (p *panel) each(places []int, f func(*testserver.Server)) {
	for _, i := range places {
		f(p.servers[i])
	}
}

// reconnect lets a client find out which of its connections were cut.
func reconnect(t *testing.T, c *Client) {
	t.Helper()
	for range 10 {
		if l, err := c.TryAcquire(t.Context(), "reconnect"); err == nil {
			_ = l.Release(t.Context())
		}
		synctest.Wait()
	}
}

// quiet waits until all that goes on in the background is done, and requires that
// the clients hold nothing and nothing is left.
func (p *panel) quiet(t *testing.T, clients ...*Client) {
	t.Helper()
	time.Sleep(2*sweepAgain + 2*releaseTimeout)
	require.Empty(t, p.left())
	for _, c := range clients {
		require.Zero(t, total(c).Held)
		c.mu.Lock()
		busy := c.busy
		c.mu.Unlock()
		require.Zero(t, busy, "nothing is under way")
	}
}

func TestAQuorumGivesALeaseToOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 30*time.Second)
		c, d := p.open(t, Config{}), p.open(t, Config{})
		l := acquire(t, c, "k")
		synctest.Wait()
		require.Equal(t, 5, p.has("k"))
		for range 3 {
			start := time.Now()
			_, err := d.TryAcquire(t.Context(), "k")
			require.ErrorIs(t, err, ErrNotAcquired)
			require.EqualError(t, err, `lock: acquire "k": not acquired: another holds the lock`)
			require.Zero(t, time.Since(start), "a majority has told")
		}
		time.Sleep(5 * time.Minute)
		require.NoError(t, l.Context().Err())
		require.Equal(t, 5, p.has("k"))
		require.NoError(t, l.Release(t.Context()))
		require.NoError(t, l.Release(t.Context()))
		synctest.Wait()
		require.Zero(t, p.has("k"))
		m := acquire(t, d, "k")
		require.Greater(t, m.Token(), l.Token())
		require.NoError(t, m.Release(t.Context()))
		require.EqualValues(t, 1, total(c).Released)
		require.Len(t, c.Stats().Nodes, 5)
		for i, node := range c.Stats().Nodes {
			require.Equal(t, fmt.Sprintf("10.0.0.%d:6379", i+1), node.Addr, "in the order given")
			require.Equal(t, "safe", node.Endpoint)
			require.Empty(t, node.Absent)
		}
		p.quiet(t, c, d)
	})
}

func TestAQuorumLocksSeveralKeysAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		l := acquire(t, c, "a", Also("b", "c"))
		time.Sleep(time.Minute)
		for _, key := range []string{"a", "b", "c"} {
			_, err := c.TryAcquire(t.Context(), key)
			require.ErrorIs(t, err, ErrNotAcquired)
		}
		_, err := c.TryAcquire(t.Context(), "x", Also("c"))
		require.ErrorIs(t, err, ErrNotAcquired)
		require.NoError(t, l.Release(t.Context()))
		for _, key := range []string{"a", "b", "c"} {
			m := acquire(t, c, key)
			require.Greater(t, m.Token(), l.Token())
			require.NoError(t, m.Release(t.Context()))
		}
		p.quiet(t, c)
	})
}

func TestNewQuorumRefusesWhatItCannotWorkWith(t *testing.T) {
	client := func() redis.UniversalClient { return testserver.New(t).Client(t) }
	many := func(n int) (nodes []redis.UniversalClient) {
		for range n {
			nodes = append(nodes, client())
		}
		return nodes
	}
	same := client()
	sentinel := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "main", SentinelAddrs: []string{"127.0.0.1:1"}})
	defer sentinel.Close()
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}})
	defer cluster.Close()
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}})
	defer ring.Close()
	own := func(url string) *conn.Client {
		ep, err := endpoint.Parse(url)
		require.NoError(t, err)
		cn, err := conn.New(conn.Config{Role: "locks", Endpoint: ep, Dialer: testserver.BlackHole, Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		t.Cleanup(func() { _ = cn.Close() })
		return cn
	}
	for _, c := range []struct {
		nodes []redis.UniversalClient
		cfg   Config
		want  string
		is    error
	}{
		{nodes: nil, want: "want an odd number of nodes from 3 to 31, got 0"},
		{nodes: many(1), want: "want an odd number of nodes from 3 to 31, got 1"},
		{nodes: many(4), want: "want an odd number of nodes from 3 to 31, got 4"},
		{nodes: many(33), want: "want an odd number of nodes from 3 to 31, got 33"},
		{nodes: many(3), cfg: Config{TTL: time.Millisecond}, want: "TTL is 1ms, want at least 100ms"},
		{nodes: append(many(2), nil), want: "node 3: nil client"},
		{nodes: append([]redis.UniversalClient{same, client()}, same), want: "node 3: two addresses lead to the same server", is: errSameServer},
		{nodes: append(many(2), sentinel), want: "node 3: locks refuse a Sentinel endpoint", is: ErrSentinelEndpoint},
		{nodes: append([]redis.UniversalClient{cluster}, many(2)...), want: "node 1: a quorum wants independent servers", is: errCluster},
		{nodes: append(many(2), struct{ redis.UniversalClient }{cluster}), want: "node 3: a quorum wants independent servers", is: errCluster},
		{nodes: append(many(2), ring), want: "node 3: a redis.Ring spreads keys"},
		{nodes: append(many(2), own("redis://10.0.0.1?proxy=envoy")), want: "node 3: want one server, got a proxy (envoy)"},
		{nodes: append(many(2), own("redis+replica://10.0.0.1,10.0.0.2")), want: "node 3: want one server, got a replicated endpoint"},
	} {
		q, err := NewQuorum(c.nodes, c.cfg)
		require.Nil(t, q, c.want)
		require.ErrorContains(t, err, "lock: new quorum: "+c.want)
		if c.is != nil {
			require.ErrorIs(t, err, c.is)
		}
	}
	q, err := NewQuorum(many(31), Config{TTL: MinTTL})
	require.NoError(t, err)
	defer q.Close()
	_, err = q.TryAcquire(t.Context(), "k", TTL(MinTTL+time.Millisecond))
	require.EqualError(t, err, `lock: acquire "k": TTL is 101ms, want at most 100ms, the quorum's (Config.TTL): servers that restart abstain for as long`)
}

// What is wrong with a node is an error that names it, before anybody has a lease.
func TestAMisconfiguredNodeIsAnErrorThatNamesIt(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(p *panel)
		is   error
		want string
	}{
		"the same server twice": {
			do:   func(p *panel) { p.networks[4].dial = p.servers[1].Dial },
			is:   errSameServer,
			want: "node",
		},
		"a replica": {
			do:   func(p *panel) { p.servers[2].SetUpstream("10.9.9.9:6379") },
			is:   ErrReplicaEndpoint,
			want: "node 3 (10.0.0.3:6379): locks refuse a replica",
		},
		"a Sentinel": {
			do:   func(p *panel) { p.servers[0].SetPreHook(answerArray("ROLE", "sentinel")) },
			is:   ErrSentinelEndpoint,
			want: "node 1 (10.0.0.1:6379): locks refuse a Sentinel endpoint",
		},
		"a node of a Cluster": {
			do:   func(p *panel) { p.servers[0].SetPreHook(answerInfo("redis_mode:cluster\r\nrun_id:x\r\n")) },
			is:   errCluster,
			want: "node 1 (10.0.0.1:6379): a quorum wants independent servers",
		},
		"one of Valkey's": {
			do:   func(p *panel) { p.servers[0].SetPreHook(answerInfo("server_mode:cluster\r\nrun_id:x\r\n")) },
			is:   errCluster,
			want: "node 1 (10.0.0.1:6379): a quorum wants independent servers",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPanel(t, 5, 30*time.Second)
				c.do(p)
				q := p.open(t, Config{})
				for range 2 {
					_, err := q.TryAcquire(t.Context(), "k")
					require.ErrorIs(t, err, c.is)
					require.ErrorContains(t, err, `lock: acquire "k": `+c.want)
					err = q.Check(t.Context())
					require.ErrorIs(t, err, c.is)
					require.ErrorContains(t, err, "lock: check: "+c.want)
				}
				require.Empty(t, p.left())
			})
		})
	}
}

// answerArray lets a server answer a command by an array of one string.
func answerArray(command, text string) server.Hook {
	return func(c *server.Peer, cmd string, _ ...string) bool {
		if cmd != command {
			return false
		}
		c.WriteLen(1)
		c.WriteBulk(text)
		return true
	}
}

func answerInfo(text string) server.Hook {
	return func(c *server.Peer, cmd string, args ...string) bool {
		if cmd != "INFO" || len(args) == 0 || args[0] != "server" {
			return false
		}
		c.WriteBulk(text)
		return true
	}
}

// Once there were leases, the locks survive a node that becomes something else.
func TestANodeThatIsMisconfiguredLaterOnlyTakesNoPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		var book logBook
		c := p.open(t, Config{Logger: book.logger()})
		held := acquire(t, c, "held")
		p.servers[1].SetUpstream("10.9.9.9:6379")
		synctest.Wait()
		p.networks[2].dial = p.servers[0].Dial // somebody has changed a name
		for _, srv := range p.servers {
			srv.CutConnections()
		}
		reconnect(t, c)
		time.Sleep(11 * time.Second) // the watch has seen the replica
		_, err := c.TryAcquire(t.Context(), "k")
		require.ErrorContains(t, err, "no majority: 2 of 3 nodes cannot be counted on: node 2 (10.0.0.2:6379): ")
		require.ErrorContains(t, err, "; node 3 (10.0.0.3:6379): two addresses lead to the same server, whose vote counts once")
		require.ErrorContains(t, err, "(this is also node 1 (10.0.0.1:6379))")
		require.Contains(t, book.String(), `level=ERROR msg="a node of the lock quorum takes no part" node="node 3 (10.0.0.3:6379)"`)
		require.Equal(t, "unfit", c.Stats().Nodes[2].Absent)
		within(t, held.Context(), 30*time.Second, ErrLost)

		synctest.Wait()
		p.networks[2].dial = p.servers[2].Dial
		p.servers[0].CutConnections()
		reconnect(t, c)
		time.Sleep(2 * sweepAgain) // what was found in vain is deleted again
		l := acquire(t, c, "k")
		require.Empty(t, c.Stats().Nodes[2].Absent)
		require.NoError(t, l.Release(t.Context()))
		require.ErrorIs(t, held.Release(t.Context()), ErrLost)
	})
}

// faults are what can happen to nodes.
var faults = map[string]struct{ begin, end func(*testserver.Server) }{
	"down": {(*testserver.Server).Stop, func(s *testserver.Server) { _ = s.Restart() }},
	"hanging": {
		func(s *testserver.Server) { s.Hang(true) },
		func(s *testserver.Server) { s.Hang(false) },
	},
	"slow": {
		func(s *testserver.Server) { s.SetLatency(5 * time.Second) },
		func(s *testserver.Server) { s.SetLatency(0) },
	},
	"loading": {
		func(s *testserver.Server) { s.SetLoading(time.Hour) },
		func(s *testserver.Server) { s.SetLoading(0) },
	},
	"full": {
		func(s *testserver.Server) { s.SetFull(true) },
		func(s *testserver.Server) { s.SetFull(false) },
	},
}

func TestAMinorityOfBadNodesCostsNothing(t *testing.T) {
	minorities := [][]int{{1, 3}, {0}, {4}}
	if testing.Short() {
		minorities = minorities[:1]
	}
	for name, fault := range faults {
		for _, bad := range minorities {
			t.Run(fmt.Sprint(name, bad), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPanel(t, 5, 30*time.Second)
					c, d := p.open(t, Config{}), p.open(t, Config{})
					before := acquire(t, c, "before")
					require.NoError(t, acquire(t, d, "x").Release(t.Context()))
					synctest.Wait()
					p.each(bad, fault.begin)
					start := time.Now()
					for range 5 {
						l := acquire(t, c, "k")
						require.NoError(t, l.Release(t.Context()))
						l = acquire(t, d, "k")
						require.NoError(t, l.Release(t.Context()))
					}
					require.Zero(t, time.Since(start), "nobody waits for them")
					l := acquire(t, c, "k")
					for range 5 {
						_, err := d.TryAcquire(t.Context(), "k")
						require.ErrorIs(t, err, ErrNotAcquired)
					}
					require.NoError(t, l.Release(t.Context()))
					during := acquire(t, c, "during")
					time.Sleep(5 * time.Minute)
					require.NoError(t, before.Context().Err())
					require.NoError(t, during.Context().Err())

					p.each(bad, fault.end)
					time.Sleep(time.Minute)
					require.Equal(t, 5, p.has("before"), "healed")
					require.Equal(t, 5, p.has("during"), "healed")
					require.NoError(t, before.Release(t.Context()))
					require.NoError(t, during.Release(t.Context()))
					p.quiet(t, c, d)
				})
			})
		}
	}
}

func TestAMajorityOfBadNodesIsAnErrorThatNamesThem(t *testing.T) {
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPanel(t, 5, 30*time.Second)
				c := p.open(t, Config{})
				require.NoError(t, acquire(t, c, "k").Release(t.Context()))
				held := acquire(t, c, "held")
				begun := time.Now()
				synctest.Wait()
				bad := []int{0, 2, 4}
				p.each(bad, fault.begin)
				for range 10 {
					start := time.Now()
					_, err := c.TryAcquire(t.Context(), "k")
					require.ErrorContains(t, err, `lock: acquire "k": no majority: 3 of 5 nodes cannot be counted on: node 1 (10.0.0.1:6379): `)
					require.ErrorContains(t, err, "; node 3 (10.0.0.3:6379): ")
					require.ErrorContains(t, err, "; node 5 (10.0.0.5:6379): ")
					require.NotErrorIs(t, err, ErrNotAcquired)
					require.NotErrorIs(t, err, context.DeadlineExceeded, "which is the caller's")
					require.LessOrEqual(t, time.Since(start), nodeTimeoutMost)
				}
				if name == "full" { // which renews, and releases
					p.each(bad, fault.end)
					require.NoError(t, held.Release(t.Context()))
					p.quiet(t, c)
					return
				}
				within(t, held.Context(), time.Minute, ErrLost)
				require.Equal(t, deadline(30*time.Second), time.Since(begun))
				require.ErrorIs(t, held.Release(t.Context()), ErrLost)
				require.Equal(t, 30*time.Second, c.cfg.TTL)
				p.each(bad, fault.end)
				reconnect(t, c)
				time.Sleep(seasoning(30 * time.Second)) // those that were down have another run ID
				require.NoError(t, acquire(t, c, "k").Release(t.Context()))
				p.quiet(t, c)
			})
		})
	}
}

// A server that was started lately may have forgotten leases, also in the view of a
// client that has never seen it before.
func TestANodeThatWasRestartedAbstainsForTheLongestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		l := acquire(t, c, "k")
		synctest.Wait()

		restart := func(i int) {
			p.servers[i].Stop()
			p.servers[i].FlushAll()
			require.NoError(t, p.servers[i].Restart())
			begun := time.Now()
			p.servers[i].SetPreHook(func(peer *server.Peer, cmd string, args ...string) bool {
				uptime := int(time.Since(begun).Seconds())
				return answerInfo(fmt.Sprintf("redis_mode:standalone\r\nrun_id:again%d\r\nuptime_in_seconds:%d\r\n", i, uptime))(peer, cmd, args...)
			})
		}
		restart(0)
		restarted := time.Now()
		restart(1)
		d := p.open(t, Config{})
		reconnect(t, c)
		for _, who := range []*Client{c, d} {
			_, err := who.TryAcquire(t.Context(), "k")
			require.ErrorContains(t, err, "no majority: 2 of 3 nodes cannot be counted on: node 1 (10.0.0.1:6379): it was started 0s ago and may have forgotten leases: it takes part in 30.302s; node 2")
			require.Equal(t, "young", who.Stats().Nodes[0].Absent)
		}
		require.NoError(t, l.Context().Err(), "its holder learns of the loss by the next renewal")
		within(t, l.Context(), 11*time.Second, ErrLost)
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		for {
			time.Sleep(100 * time.Millisecond)
			m, err := d.TryAcquire(t.Context(), "other")
			if err == nil {
				require.NoError(t, m.Release(t.Context()))
				break
			}
			require.ErrorContains(t, err, "may have forgotten leases")
		}
		require.GreaterOrEqual(t, time.Since(restarted), 30*time.Second)
		require.Less(t, time.Since(restarted), seasoning(30*time.Second))
		p.quiet(t, c, d)
	})
}

// The connection on which a restart would be seen is that of the very attempt.
func TestALeaseFromAServerThatHasJustRestartedDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		require.NoError(t, acquire(t, c, "warm").Release(t.Context()))
		for range 20 {
			p.servers[1].Stop()
			require.NoError(t, p.servers[1].Restart()) // with a run ID of its own
			p.servers[2].Hang(true)
			for range 5 {
				time.Sleep(10 * time.Millisecond) // what the last attempt got is given back
				_, err := c.TryAcquire(t.Context(), "k")
				require.Error(t, err)
			}
			p.servers[2].Hang(false)
			time.Sleep(time.Minute)
			require.NoError(t, acquire(t, c, "k").Release(t.Context()), "it is trusted again")
		}
		p.quiet(t, c)
	})
}

// A clock that is set forward makes a server tell too long an uptime.
func TestAServerThatWasSeenBeforeItsStartIsNotOlderThanThat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		p.servers[1].Stop()
		p.servers[2].Stop()
		require.NoError(t, p.servers[2].Restart())
		p.servers[2].SetPreHook(answerInfo("redis_mode:standalone\r\nrun_id:new\r\nuptime_in_seconds:3600\r\n"))
		reconnect(t, c)
		_, err := c.TryAcquire(t.Context(), "k")
		require.ErrorContains(t, err, "node 3 (10.0.0.3:6379): it was started 0s ago")
		require.NoError(t, p.servers[1].Restart())
	})
}

func TestANodeThatDoesNotTellItsUptimeTakesPartWithAWarning(t *testing.T) {
	refuse := func(c *server.Peer, cmd string, _ ...string) bool {
		if cmd == "INFO" {
			c.WriteError("NOPERM this user has no permissions to run the 'info' command")
			return true
		}
		return false
	}
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		for _, srv := range p.servers {
			srv.SetPreHook(refuse)
		}
		var book logBook
		c := p.open(t, Config{Logger: book.logger()})
		for range 3 {
			p.servers[0].CutConnections()
			reconnect(t, c)
			require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		}
		require.Equal(t, 3, strings.Count(book.String(), "does not tell since when it runs"), "once for each node")

		strict := p.open(t, Config{Strict: true})
		_, err := strict.TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrUnsafeEndpoint)
		require.ErrorContains(t, err, "it does not tell since when it runs: allow the user INFO")
	})
}

func TestALeaseIsLostWithTheNextRenewalWhenAMajorityHasLostIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 30*time.Second)
		c := p.open(t, Config{TTL: 30 * time.Second})
		l := acquire(t, c, "k")
		synctest.Wait()
		for _, i := range []int{0, 1} {
			p.servers[i].FlushAll()
		}
		time.Sleep(11 * time.Second)
		require.Equal(t, 5, p.has("k"), "healed with the first renewal")
		for _, i := range []int{2, 3} {
			p.servers[i].FlushAll()
		}
		time.Sleep(10 * time.Second)
		require.NoError(t, l.Context().Err(), "0 and 1 count again")
		require.Equal(t, 5, p.has("k"))
		time.Sleep(10 * time.Second)
		for _, i := range []int{0, 2, 4} {
			p.servers[i].FlushAll()
		}
		within(t, l.Context(), 10*time.Second, ErrLost)
		require.ErrorContains(t, context.Cause(l.Context()), "its key was deleted")
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		p.quiet(t, c)
	})
}

// Between the last renewal and the healing of one node, another forgets the lease,
// and somebody else has had it meanwhile: a majority shows the lease again, and
// yet it is not to be counted on.
func TestANodeThatWasHealedDoesNotCountBeforeARenewalWithoutIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		p.servers[2].Hang(true)
		l := acquire(t, c, "k")
		time.Sleep(time.Second)
		p.servers[2].Hang(false)
		time.Sleep(time.Second)
		p.servers[2].FlushAll() // what hung there has come late
		done := false
		p.servers[2].SetPreHook(func(_ *server.Peer, cmd string, _ ...string) bool {
			if cmd == "EVALSHA" && !done { // the healing
				done = true
				p.servers[1].Del("redisha:lock:{k}")
			}
			return false
		})
		within(t, l.Context(), 11*time.Second, ErrLost)
		require.True(t, done)
		require.Equal(t, 2, p.has("k"), "a majority, but one that was healed")
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		p.quiet(t, c)
	})
}

func TestAHungNodeDoesNotHoldUpRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 3*time.Second)
		c := p.open(t, Config{TTL: 3 * time.Second})
		var leases []*Lease
		for i := range 30 {
			leases = append(leases, acquire(t, c, fmt.Sprint(i), TTL(time.Second)))
			time.Sleep(10 * time.Millisecond)
		}
		p.servers[0].Hang(true)
		p.servers[3].Hang(true)
		if testing.Short() {
			time.Sleep(10 * time.Second)
		} else {
			time.Sleep(time.Minute)
		}
		require.Zero(t, c.Stats().RenewFailed)
		for _, l := range leases {
			require.NoError(t, l.Context().Err())
			require.NoError(t, l.Release(t.Context()))
		}
		p.servers[0].Hang(false)
		p.servers[3].Hang(false)
		p.quiet(t, c)
	})
}

// Thousands of calls while a node hangs wait for it neither each for itself, nor
// with a connection each.
func TestCallsDoNotPileUpBeforeAHungNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		var book logBook
		c := p.open(t, Config{Logger: book.logger()})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		synctest.Wait()
		before, conns := runtime.NumGoroutine(), p.servers[2].TotalConnectionCount()
		p.servers[2].Hang(true)
		most, calls := 0, 1500
		if testing.Short() {
			calls = 600
		}
		for i := range calls {
			require.NoError(t, acquire(t, c, fmt.Sprint(i%10)).Release(t.Context()))
			time.Sleep(time.Millisecond)
			most = max(most, runtime.NumGoroutine()-before)
		}
		require.Less(t, most, 600, "those of the first 200 ms, before anybody knows")
		require.Less(t, p.servers[2].TotalConnectionCount()-conns, 600)
		synctest.Wait()
		require.Less(t, runtime.NumGoroutine()-before, 100, "one at a time from then on, and those of the server")
		require.Equal(t, "silent", c.Stats().Nodes[2].Absent)
		require.Equal(t, 1, strings.Count(book.String(), `level=WARN msg="a node of the lock quorum does not answer" node="node 3 (10.0.0.3:6379)"`))
		p.servers[2].Hang(false)
		time.Sleep(time.Second)
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		synctest.Wait()
		require.Contains(t, book.String(), `level=INFO msg="a node of the lock quorum answers again" node="node 3 (10.0.0.3:6379)"`)
		require.Empty(t, c.Stats().Nodes[2].Absent)
		p.quiet(t, c)
	})
}

// What a slow node grants late belongs to the lease all the same.
func TestALateGrantBelongsToTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		synctest.Wait()
		p.servers[1].SetLatency(20 * time.Millisecond)
		l := acquire(t, c, "k")
		time.Sleep(time.Second)
		require.Equal(t, 3, p.has("k"))
		p.servers[0].FlushAll() // now it takes the late one
		time.Sleep(15 * time.Second)
		require.NoError(t, l.Context().Err())
		require.NoError(t, l.Release(t.Context()))
		time.Sleep(time.Second)

		l = acquire(t, c, "k")
		synctest.Wait()
		require.NoError(t, l.Release(t.Context()), "before the late one has answered")
		require.Equal(t, 1, p.has("k"))
		p.quiet(t, c)
	})
}

func TestReleaseTellsWhatBecameOfTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 30*time.Second)
		c := p.open(t, Config{})

		l := acquire(t, c, "k")
		synctest.Wait()
		for _, i := range []int{0, 1, 2} {
			p.servers[i].FlushAll()
		}
		require.ErrorIs(t, l.Release(t.Context()), ErrLost, "a majority had forgotten it")
		time.Sleep(time.Second)

		l = acquire(t, c, "k")
		synctest.Wait()
		for _, i := range []int{0, 1} {
			p.servers[i].FlushAll()
		}
		require.NoError(t, l.Release(t.Context()), "a majority had it")
		time.Sleep(time.Second)

		l = acquire(t, c, "k")
		synctest.Wait()
		bad := []int{0, 1, 2}
		p.each(bad, func(s *testserver.Server) { s.Hang(true) })
		start := time.Now()
		err := l.Release(t.Context())
		require.ErrorContains(t, err, `lock: release "k": no majority: 3 of 5 nodes cannot be counted on: node 1 (10.0.0.1:6379): `)
		require.NotErrorIs(t, err, ErrLost)
		require.Equal(t, nodeTimeoutMost, time.Since(start))
		require.Error(t, l.Release(t.Context()), "still")
		synctest.Wait()
		p.each(bad, func(s *testserver.Server) { s.Hang(false) })
		require.NoError(t, l.Release(t.Context()), "it may be tried again")
		require.EqualValues(t, 2, total(c).ReleaseFailed)
		p.quiet(t, c)
	})
}

// Many who come at the same instant must not keep each other from the lock for good.
func TestOfSeveralWhoAskAtOnceOneGetsTheLease(t *testing.T) {
	for _, n := range []int{2, 3, 5, 10} {
		for _, down := range []int{0, 1} {
			t.Run(fmt.Sprintf("%d, %d down", n, down), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPanel(t, 5, 30*time.Second)
					var clients []*Client
					for range n {
						c := p.open(t, Config{})
						require.NoError(t, acquire(t, c, "warm").Release(t.Context()))
						synctest.Wait()
						clients = append(clients, c)
					}
					for i := range down {
						p.servers[i].Stop()
					}
					for i := range p.servers {
						p.servers[i].SetLatency(time.Duration(i+1) * 50 * time.Microsecond)
					}
					rounds, nobody := 15, 0
					for range rounds {
						got := make(chan *Lease, n)
						var wg sync.WaitGroup
						for _, c := range clients {
							wg.Go(func() {
								l, err := c.TryAcquire(t.Context(), "k")
								if err == nil {
									got <- l
								} else if !errors.Is(err, ErrNotAcquired) {
									t.Error(err)
								}
							})
						}
						wg.Wait()
						require.LessOrEqual(t, len(got), 1)
						if len(got) == 0 {
							nobody++
						} else {
							require.NoError(t, (<-got).Release(t.Context()))
						}
						time.Sleep(10 * time.Millisecond)
					}
					require.LessOrEqual(t, nobody, 1)
					for i := range down {
						require.NoError(t, p.servers[i].Restart())
					}
					p.quiet(t, clients...)
				})
			})
		}
	}
}

func TestAQuorumsWaiterIsWokenByTheRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 30*time.Second)
		c, d := p.open(t, Config{}), p.open(t, Config{})
		for _, bad := range [][]int{nil, {0}, {0, 1}} {
			p.each(bad, func(s *testserver.Server) { s.Hang(true) })
			l := acquire(t, c, "k")
			got := make(chan time.Time, 3)
			for range cap(got) {
				go func() {
					m, err := d.Acquire(context.Background(), "k")
					got <- time.Now()
					if err == nil {
						err = m.Release(context.Background())
					}
					if err != nil {
						t.Error(err)
					}
				}()
			}
			time.Sleep(10 * time.Second) // they try 4 times a second by now
			require.EqualValues(t, 3, total(d).Waiting)
			released := time.Now()
			require.NoError(t, l.Release(t.Context()))
			for range cap(got) {
				require.Less(t, (<-got).Sub(released), 5*time.Millisecond)
			}
			time.Sleep(time.Second)
			p.each(bad, func(s *testserver.Server) { s.Hang(false) })
			time.Sleep(time.Second)
		}
		p.quiet(t, c, d)
		time.Sleep(lineLinger)
		synctest.Wait()
		require.Empty(t, d.bell.spots)
	})
}

func TestAQuorumsWaiterWhoIsToldNothingIsServedAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		var book logBook
		c := p.open(t, Config{Logger: book.logger()})
		for _, srv := range p.servers {
			srv.SetPreHook(func(peer *server.Peer, cmd string, _ ...string) bool {
				if cmd == "PUBLISH" || cmd == "SUBSCRIBE" {
					peer.WriteError("NOPERM this user has no permissions")
					return true
				}
				return false
			})
		}
		l := acquire(t, c, "k")
		done := make(chan error, 1)
		go func() {
			m, err := c.Acquire(context.Background(), "k")
			if err == nil {
				err = m.Release(context.Background())
			}
			done <- err
		}()
		time.Sleep(10 * time.Second)
		released := time.Now()
		require.NoError(t, l.Release(t.Context()))
		require.NoError(t, <-done)
		require.LessOrEqual(t, time.Since(released), pollMax)
		require.Equal(t, 1, strings.Count(book.String(), "messages of released locks are refused, waiters poll"))
		p.quiet(t, c)
	})
}

func TestAWaitOutlivesAnOutageOfTheMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c, d := p.open(t, Config{}), p.open(t, Config{})
		l := acquire(t, c, "k")
		wait := func(opts ...Option) <-chan error {
			done := make(chan error, 1)
			go func() {
				m, err := d.Acquire(context.Background(), "k", opts...)
				if err == nil {
					err = m.Release(context.Background())
				}
				done <- err
			}()
			return done
		}
		bad := []int{0, 1}
		served := wait()
		time.Sleep(10 * time.Second)
		p.each(bad, func(s *testserver.Server) { s.Hang(true) })
		time.Sleep(5 * time.Second)
		p.each(bad, func(s *testserver.Server) { s.Hang(false) })
		time.Sleep(time.Second)
		require.NoError(t, l.Release(t.Context()))
		require.NoError(t, <-served)

		l = acquire(t, c, "k")
		given, bounded := wait(), wait(MaxWait(30*time.Second))
		time.Sleep(10 * time.Second)
		start := time.Now()
		p.each(bad, func(s *testserver.Server) { s.Hang(true) })
		err := <-bounded
		require.ErrorIs(t, err, ErrNotAcquired)
		require.ErrorContains(t, err, "for 30s (MaxWait)")
		err = <-given
		require.ErrorContains(t, err, "no majority: 2 of 3 nodes")
		require.InDelta(t, outageMost, time.Since(start), float64(time.Second))
		p.each(bad, func(s *testserver.Server) { s.Hang(false) })
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		p.quiet(t, c, d)
	})
}

func TestAQuorumTellsWhoHoldsALock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 30*time.Second)
		c, d := p.open(t, Config{Holder: "billing"}), p.open(t, Config{Holder: "admin"})
		info, err := d.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, Info{Key: "k", State: Free}, info)

		for i, srv := range p.servers { // so that all draw tokens of their own
			require.NoError(t, srv.Set("redisha:lock:{k}:f", fmt.Sprint(time.Now().Add(time.Duration(i)*time.Minute).UnixMicro())))
		}
		l := acquire(t, c, "k")
		synctest.Wait()
		for _, bad := range [][]int{nil, {0, 1}, {3, 4}, {1, 2}} {
			p.each(bad, func(s *testserver.Server) { s.Hang(true) })
			info, err = d.Inspect(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, Held, info.State)
			require.Equal(t, "billing", info.Holder)
			require.Equal(t, l.Token(), info.Token)
			require.Greater(t, info.TTL, 19*time.Second)
			p.each(bad, func(s *testserver.Server) { s.Hang(false) })
		}
		p.each([]int{0, 1, 2}, func(s *testserver.Server) { s.Hang(true) })
		_, err = d.Inspect(t.Context(), "k")
		require.ErrorContains(t, err, `lock: inspect "k": no majority: 3 of 5 nodes`)
		p.each([]int{0, 1, 2}, func(s *testserver.Server) { s.Hang(false) })

		require.NoError(t, l.Release(t.Context()))
		info, err = d.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, Free, info.State)
		require.GreaterOrEqual(t, info.Token, l.Token())
		p.quiet(t, c, d)
	})
}

func TestAQuorumRevokesALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 30*time.Second)
		c, d := p.open(t, Config{}), p.open(t, Config{Holder: "admin"})
		l := acquire(t, c, "k")
		synctest.Wait()
		p.servers[4].Stop()
		revoked, err := d.Revoke(t.Context(), "k", l.Token()+1)
		require.NoError(t, err)
		require.False(t, revoked)
		revoked, err = d.Revoke(t.Context(), "k", l.Token())
		require.NoError(t, err)
		require.True(t, revoked)
		info, err := d.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, Revoked, info.State)
		require.Equal(t, "admin", info.Holder)
		within(t, l.Context(), 11*time.Second, ErrLost)
		require.NoError(t, p.servers[4].Restart())
		_, err = d.TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrNotAcquired, "until its TTL")
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		time.Sleep(31 * time.Second)
		require.NoError(t, acquire(t, d, "k").Release(t.Context()))
		revoked, err = d.Revoke(t.Context(), "k", l.Token())
		require.NoError(t, err)
		require.False(t, revoked)
		p.quiet(t, c, d)
	})
}

func TestCheckOfAQuorumIsContentWithAMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		var book logBook
		c := p.open(t, Config{Logger: book.logger(), CloseTimeout: time.Second})
		require.NoError(t, c.Check(t.Context()))
		p.servers[1].Hang(true)
		start := time.Now()
		require.NoError(t, c.Check(t.Context()))
		require.LessOrEqual(t, time.Since(start), assembleGrace)
		require.Contains(t, book.String(), `level=WARN msg="a node of the lock quorum cannot take part" node="node 2 (10.0.0.2:6379)"`)
		p.servers[0].Stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorContains(t, c.Check(ctx), "lock: check: no majority: 2 of 3 nodes cannot be counted on: node 1 (10.0.0.1:6379): ")
		p.servers[1].Hang(false)
		require.NoError(t, p.servers[0].Restart())
		require.NoError(t, c.Close())
		require.ErrorIs(t, c.Check(t.Context()), ErrClosed)
	})
}

func TestCloseOfAQuorumIsBoundedWhileNodesHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 3*time.Second)
		c := p.open(t, Config{TTL: 3 * time.Second, CloseTimeout: 3 * time.Second})
		l := acquire(t, c, "k")
		go func() {
			_, err := c.Acquire(context.Background(), "k")
			if !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		}()
		time.Sleep(time.Second)
		p.servers[0].Hang(true)
		time.Sleep(200 * time.Millisecond)
		start := time.Now()
		released := make(chan error, 1)
		go func() {
			<-l.Context().Done()
			released <- l.Release(context.Background())
		}()
		require.NoError(t, c.Close())
		require.NoError(t, <-released)
		require.Less(t, time.Since(start), 2*time.Second)
		_, err := c.TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrClosed)

		c = p.open(t, Config{TTL: 3 * time.Second, CloseTimeout: 100 * time.Millisecond})
		l = acquire(t, c, "k2")
		start = time.Now()
		require.ErrorContains(t, c.Close(), "1 leases were not released within 100ms")
		require.Equal(t, 100*time.Millisecond, time.Since(start))
		p.servers[0].Hang(false)
		require.NoError(t, l.Release(t.Context()), "better late than never")
		time.Sleep(4 * time.Second)
		require.Empty(t, p.left())
	})
}

func TestAQuorumWithoutClientsSaysWhy(t *testing.T) {
	reason := fmt.Errorf("%w: set REDISHA_LOCKS_URL", conn.ErrNotConfigured)
	var nodes []redis.UniversalClient
	for range 3 {
		cn := conn.Closed("locks", reason)
		defer cn.Close()
		nodes = append(nodes, cn)
	}
	c, err := NewQuorum(nodes, Config{})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.TryAcquire(t.Context(), "k")
	require.EqualError(t, err, `lock: acquire "k": role not configured: set REDISHA_LOCKS_URL`)
}

func TestProposedTokensFollowTheFastestClockThatCanBeBelieved(t *testing.T) {
	q := &quorum{members: []*member{{}, {}, {}, {}, {}}}
	require.Zero(t, q.propose(time.Second))
	const second = int64(time.Second / time.Microsecond)
	lead := tokenLead.Microseconds()
	for _, c := range []struct {
		leads []int64
		want  int64
	}{
		{[]int64{0, 0, 1000 * second, 0, 0}, 1000 * second},
		{[]int64{1000 * second, 1001 * second, 1600 * second, 0, 990 * second}, 1600 * second},
		{[]int64{1000 * second, 1001 * second, 99000 * second, 0, 990 * second}, 1001 * second},
		{[]int64{1000 * second, 1001 * second, 99000 * second, 98000 * second, 990 * second}, 1001 * second},
	} {
		for i, m := range q.members {
			m.lead.Store(c.leads[i])
		}
		require.Equal(t, c.want+7*second+lead, q.propose(7*time.Second))
	}
	require.True(t, slices.IsSorted([]time.Duration{nodeTimeout(MinTTL), nodeTimeout(time.Second), nodeTimeout(time.Hour)}))
	require.Equal(t, 10*time.Millisecond, nodeTimeout(MinTTL))
	require.Equal(t, 50*time.Millisecond, nodeTimeout(time.Second))
	require.Equal(t, 200*time.Millisecond, nodeTimeout(time.Hour))
}

// Two addresses have come to lead to one server: what the second one gives is found
// in vain, and yet it is what the first one has given.
func TestAVoteThatDoesNotCountTakesNothingFromOneThatDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		synctest.Wait()
		p.networks[2].dial = p.servers[0].Dial
		p.servers[2].Stop()
		for range 10 { // the first of which find connections that were cut
			l := acquire(t, c, "k")
			time.Sleep(2 * sweepAgain)
			require.Equal(t, 2, p.has("k"))
			require.NoError(t, l.Release(t.Context()))
			time.Sleep(2 * sweepAgain)
		}
		require.Equal(t, "unfit", c.Stats().Nodes[2].Absent)
		p.quiet(t, c)
		require.NoError(t, p.servers[2].Restart())
	})
}

// Two nodes answer a renewal, and are one server: that is no majority.
func TestARenewalCountsEachServerOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		l := acquire(t, c, "k")
		synctest.Wait()
		p.networks[2].dial = p.servers[0].Dial
		p.servers[1].Stop()
		p.servers[2].Stop()
		within(t, l.Context(), 30*time.Second, ErrLost)
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		synctest.Wait()
		p.networks[2].dial = p.servers[2].Dial
		for _, i := range []int{1, 2} {
			require.NoError(t, p.servers[i].Restart())
		}
		p.servers[0].CutConnections()
		p.quiet(t, c)
	})
}

// It does not count yet, but it is there.
func TestWhatANodeWasGivenAgainIsReleasedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		l := acquire(t, c, "k")
		synctest.Wait()
		p.servers[1].Del(leaseKeyOf("k"))
		p.servers[1].SetPreHook(func(peer *server.Peer, cmd string, args ...string) bool {
			if cmd != "EVALSHA" || args[0] == voteScript.whole.Load().hash || !p.servers[1].Exists(leaseKeyOf("k")) {
				return false
			}
			peer.WriteError("ERR no renewal") // once it was healed
			return true
		})
		time.Sleep(15 * time.Second)
		require.Equal(t, 3, p.has("k"), "healed")
		p.servers[1].SetPreHook(nil)
		require.NoError(t, l.Release(t.Context()))
		p.quiet(t, c)
	})
}

// Who gives up asking says nothing of the nodes.
func TestACancelledQuestionDoesNotMakeNodesSilent(t *testing.T) {
	for name, ask := range map[string]func(context.Context, *Client) error{
		"inspect": func(ctx context.Context, c *Client) error { _, err := c.Inspect(ctx, "k"); return err },
		"revoke":  func(ctx context.Context, c *Client) error { _, err := c.Revoke(ctx, "k", 1); return err },
		"check":   func(ctx context.Context, c *Client) error { return c.Check(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPanel(t, 3, 30*time.Second)
				c := p.open(t, Config{})
				require.NoError(t, acquire(t, c, "k").Release(t.Context()))
				time.Sleep(time.Second)
				for _, srv := range p.servers {
					srv.SetLatency(2 * time.Millisecond)
				}
				for _, after := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond} {
					ctx, cancel := context.WithTimeout(t.Context(), after)
					require.ErrorIs(t, ask(ctx, c), context.DeadlineExceeded, "after %s", after)
					cancel()
					time.Sleep(time.Millisecond)
					for _, node := range c.Stats().Nodes {
						require.Empty(t, node.Absent, "after %s", after)
					}
				}
				p.quiet(t, c)
			})
		})
	}
}

// What was lost on the way to the nodes is not "another has it": the lease may be
// revoked, or not.
func TestARevocationWhoseOutcomeIsUnknownIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c, d := p.open(t, Config{}), p.open(t, Config{})
		l := acquire(t, c, "k")
		_, err := d.Inspect(t.Context(), "k")
		require.NoError(t, err)
		synctest.Wait()
		cut := func(servers ...int) {
			for _, srv := range p.servers {
				srv.SetPreHook(nil)
			}
			for _, i := range servers {
				looked := false
				p.servers[i].SetPreHook(func(peer *server.Peer, cmd string, _ ...string) bool {
					if cmd == "EVALSHA" && looked {
						peer.Close()
						return true
					}
					looked = looked || cmd == "EVALSHA"
					return false
				})
			}
		}
		cut(0, 1, 2)
		revoked, err := d.Revoke(t.Context(), "k", l.Token())
		require.ErrorContains(t, err, "revoked on 0 of 3 nodes, want 2: try again: no majority: 3 of 3 nodes")
		require.False(t, revoked)
		cut(0, 1)
		revoked, err = d.Revoke(t.Context(), "k", l.Token())
		require.ErrorContains(t, err, "revoked on 1 of 3 nodes, want 2: try again: no majority: 2 of 3 nodes")
		require.False(t, revoked)
		cut(0)
		revoked, err = d.Revoke(t.Context(), "k", l.Token())
		require.NoError(t, err)
		require.True(t, revoked, "one by one")
		cut()
		revoked, err = d.Revoke(t.Context(), "k", l.Token())
		require.NoError(t, err)
		require.False(t, revoked, "it was before")
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
	})
}
