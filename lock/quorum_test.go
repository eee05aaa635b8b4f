package lock

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

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
