package lock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

func TestClientsThatFollowASentinelAreRefused(t *testing.T) {
	failover := &redis.FailoverOptions{MasterName: "main", SentinelAddrs: []string{"127.0.0.1:1"}}
	single := redis.NewFailoverClient(failover)
	defer single.Close()
	cluster := redis.NewFailoverClusterClient(failover)
	defer cluster.Close()
	universal := redis.NewUniversalClient(&redis.UniversalOptions{MasterName: "main", Addrs: []string{"127.0.0.1:1"}})
	defer universal.Close()
	routed := redis.NewUniversalClient(&redis.UniversalOptions{MasterName: "main", Addrs: []string{"127.0.0.1:1"}, RouteRandomly: true})
	defer routed.Close()
	for _, rdb := range []redis.UniversalClient{single, cluster, universal, routed} {
		c, err := New(rdb, Config{})
		require.Nil(t, c)
		require.ErrorIs(t, err, ErrSentinelEndpoint)
		require.ErrorContains(t, err, "lock: new: locks refuse a Sentinel endpoint, since a failover can hand one lock to two holders: ")
		require.ErrorContains(t, err, "REDISHA_LOCKS_URL")
	}
}

func TestOtherClientsAreTaken(t *testing.T) {
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}})
	defer cluster.Close()
	static := redis.NewClusterClient(&redis.ClusterOptions{ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) { return nil, errTest }})
	defer static.Close()
	for _, rdb := range []redis.UniversalClient{cluster, static} {
		c, err := New(rdb, Config{})
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
}

func TestNewRefusesWhatItCannotWorkWith(t *testing.T) {
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}})
	defer ring.Close()
	_, err := New(ring, Config{})
	require.ErrorContains(t, err, "lock: new: a redis.Ring spreads keys by its own hashing")
	_, err = New(nil, Config{})
	require.ErrorContains(t, err, "lock: new: nil client")

	rdb := testserver.New(t).Client(t)
	for want, cfg := range map[string]Config{
		"lock: new: TTL is 99ms, want at least 100ms":                                                   {TTL: 99 * time.Millisecond},
		"lock: new: TTL is -1s, want at least 100ms":                                                    {TTL: -time.Second},
		"lock: new: want a Namespace of at most 128 bytes, got 129":                                     {Namespace: strings.Repeat("n", 129)},
		"lock: new: want a Holder of at most 128 bytes, got 129":                                        {Holder: strings.Repeat("n", 129)},
		`lock: new: want a Namespace without braces, which tell Cluster where a key belongs, got "a{b"`: {Namespace: "a{b"},
	} {
		_, err := New(rdb, cfg)
		require.EqualError(t, err, want)
	}
}

func TestBadArgumentsAreErrorsThatSayWhatIsAllowed(t *testing.T) {
	srv := testserver.New(t)
	c := open(t, srv.Client(t), Config{})
	ctx := t.Context()
	var none context.Context
	long := strings.Repeat("k", 2000)
	for want, call := range map[string]func() error{
		`lock: acquire "k": nil context: pass context.Background() or the request's`: func() error { _, err := c.TryAcquire(none, "k"); return err },
		`lock: acquire "w": nil context: pass context.Background() or the request's`: func() error { _, err := c.Acquire(none, "w"); return err },
		`lock: acquire "d": nil context: pass context.Background() or the request's`: func() error {
			return c.Do(none, "d", func(context.Context, *Lease) error { return nil })
		},
		"lock: check: nil context: pass context.Background() or the request's": func() error { return c.Check(none) },
		`lock: do "k": nil function: pass what to do under the lease`:          func() error { return c.Do(ctx, "k", nil) },
		`lock: acquire "": the key is empty: name what is locked`:              func() error { _, err := c.TryAcquire(ctx, ""); return err },
		`lock: acquire "` + long[:64] + `"… (2000 bytes): the key has 2000 bytes, want at most 1024: lock a hash of it`: func() error {
			_, err := c.Acquire(ctx, long)
			return err
		},
		`lock: acquire "k": TTL is 99ms, want at least 100ms`: func() error { _, err := c.TryAcquire(ctx, "k", TTL(99*time.Millisecond)); return err },
		`lock: acquire "k": TTL is 0s, want at least 100ms`:   func() error { _, err := c.Acquire(ctx, "k", TTL(0)); return err },
		`lock: acquire "k": MaxWait is -1s, want more than 0, or 0 to leave it to the context`: func() error {
			_, err := c.Acquire(ctx, "k", MaxWait(-time.Second))
			return err
		},
	} {
		require.EqualError(t, call(), want)
	}
	l := acquire(t, c, "k")
	require.EqualError(t, l.Release(none), `lock: release "k": nil context: pass context.Background() or the request's`)
	require.NoError(t, l.Context().Err())
	require.NoError(t, l.Release(ctx))
	done, cancel := context.WithCancel(ctx)
	cancel()
	_, err := c.TryAcquire(done, "k")
	require.EqualError(t, err, `lock: acquire "k": context canceled`)
	require.Empty(t, leaseKeys(srv))
}

func TestARoleThatIsNotConfiguredSaysWhy(t *testing.T) {
	reason := fmt.Errorf("%w: the broker's URL is a Sentinel one: set REDISHA_LOCKS_URL", conn.ErrNotConfigured)
	cn := conn.Closed("locks", reason)
	defer cn.Close()
	c := open(t, cn, Config{})
	_, err := c.TryAcquire(t.Context(), "k")
	require.ErrorIs(t, err, conn.ErrNotConfigured)
	require.EqualError(t, err, `lock: acquire "k": role not configured: the broker's URL is a Sentinel one: set REDISHA_LOCKS_URL`)
	_, err = c.Acquire(t.Context(), "k")
	require.ErrorIs(t, err, conn.ErrNotConfigured)
	require.ErrorIs(t, c.Do(t.Context(), "k", func(context.Context, *Lease) error { return nil }), conn.ErrNotConfigured)
	require.ErrorIs(t, c.Check(t.Context()), conn.ErrNotConfigured)
	require.NoError(t, c.Close())
}

func TestAPrimaryPassesTheCheck(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := open(t, rdb, Config{})
		require.NoError(t, c.Check(t.Context()))
	})
}

// The endpoint is asked once, before the first lease.
func TestTheEndpointIsAskedForItsRoleOnce(t *testing.T) {
	srv := testserver.New(t)
	asked := 0
	answer := func(c *server.Peer) {}
	srv.SetPreHook(func(c *server.Peer, cmd string, _ ...string) bool {
		if cmd == "ROLE" {
			asked++
			answer(c)
			return true
		}
		return false
	})
	c := open(t, srv.Client(t), Config{})

	answer = func(c *server.Peer) {
		c.WriteLen(5)
		c.WriteBulk("slave")
		c.WriteBulk("10.0.0.1")
		c.WriteInt(6379)
		c.WriteBulk("connected")
		c.WriteInt(1)
	}
	_, err := c.TryAcquire(t.Context(), "k")
	require.ErrorIs(t, err, ErrReplicaEndpoint)
	require.ErrorContains(t, err, "REDISHA_LOCKS_URL")
	require.ErrorContains(t, err, "(the primary of this one is 10.0.0.1:6379)")
	require.ErrorIs(t, c.Check(t.Context()), ErrReplicaEndpoint)

	answer = func(c *server.Peer) { c.WriteLen(1); c.WriteBulk("slave") }
	_, err = c.TryAcquire(t.Context(), "k")
	require.ErrorIs(t, err, ErrReplicaEndpoint)

	answer = func(c *server.Peer) { c.WriteLen(2); c.WriteBulk("sentinel"); c.WriteLen(0) }
	_, err = c.TryAcquire(t.Context(), "k")
	require.ErrorIs(t, err, ErrSentinelEndpoint)
	require.ErrorIs(t, c.Check(t.Context()), ErrSentinelEndpoint)
	require.Empty(t, srv.Keys())

	answer = func(c *server.Peer) { c.WriteError("LOADING Redis is loading the dataset in memory") }
	_, err = c.TryAcquire(t.Context(), "k")
	require.EqualError(t, err, `lock: acquire "k": LOADING Redis is loading the dataset in memory`)

	asked = 0
	answer = func(c *server.Peer) { c.WriteError("NOPERM this user has no permissions to run the 'role' command") }
	require.NoError(t, acquire(t, c, "k").Release(t.Context()))
	require.NoError(t, acquire(t, c, "k").Release(t.Context()))
	require.Equal(t, 1, asked)

	for _, answer = range []func(*server.Peer){
		func(c *server.Peer) { c.WriteError("ERR unknown command `ROLE`, with args beginning with: ") },
		func(c *server.Peer) { c.WriteLen(0) },
		func(c *server.Peer) { c.WriteLen(3); c.WriteBulk("master"); c.WriteInt(0); c.WriteLen(0) },
	} {
		require.NoError(t, acquire(t, open(t, srv.Client(t), Config{}), "k").Release(t.Context()))
	}
}

func TestAReplicaIsRefused(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	replica := redistest.New(t, redistest.Config{Lines: []string{fmt.Sprintf("replicaof 127.0.0.1 %d", primary.Port())}})
	c := open(t, replica.Client(t), Config{})
	_, err := c.TryAcquire(t.Context(), "k")
	require.ErrorIs(t, err, ErrReplicaEndpoint)
	require.ErrorContains(t, err, fmt.Sprintf("127.0.0.1:%d", primary.Port()))
	require.ErrorIs(t, c.Check(t.Context()), ErrReplicaEndpoint)

	c.store.(single).watch.clear.Store(true) // as if it had been a primary a moment before
	_, err = c.TryAcquire(t.Context(), "k")
	require.ErrorIs(t, err, ErrReplicaEndpoint)
	require.ErrorContains(t, err, "READONLY")
}

func TestASentinelProcessIsRefused(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	sentinel := redistest.NewSentinel(t, "main", primary)
	c := open(t, sentinel.Client(t), Config{})
	_, err := c.TryAcquire(t.Context(), "k")
	require.ErrorIs(t, err, ErrSentinelEndpoint)
	require.ErrorIs(t, c.Check(t.Context()), ErrSentinelEndpoint)

	opt := sentinel.Options()
	opt.DB = 1 // a Sentinel does not know SELECT, so that no connection comes about
	another := redis.NewClient(opt)
	defer another.Close()
	require.ErrorIs(t, open(t, another, Config{}).Check(t.Context()), ErrSentinelEndpoint)
}

func TestCheckSaysWhatIsWrong(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Password: "correct horse"})
	opt := srv.Options()
	opt.Password = "wrong"
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	err := open(t, rdb, Config{}).Check(t.Context())
	require.ErrorContains(t, err, "lock: check: ")
	require.ErrorContains(t, err, "authentication failed")
	require.NotContains(t, err.Error(), "wrong\"")

	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := nobody.Addr().String()
	require.NoError(t, nobody.Close())
	away := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, DialerRetries: 1})
	defer away.Close()
	c := open(t, away, Config{})
	require.ErrorContains(t, c.Check(t.Context()), "connection refused")
	_, err = c.TryAcquire(t.Context(), "k")
	require.ErrorContains(t, err, fmt.Sprintf(`lock: acquire "k": dial tcp %s: connect: connection refused`, addr))
}

// What the error of a missing permission lists is enough, and nearly all of it is
// needed.
func TestALockUserNeedsTheCommandsThatTheErrorLists(t *testing.T) {
	rules := func(without string) string {
		var b strings.Builder
		fmt.Fprintf(&b, "user-%s on >secret ~redisha:lock:* -@all +hello", strings.ToLower(without))
		for _, command := range strings.Fields(neededCommands) {
			if command != without {
				b.WriteString(" +" + strings.ToLower(command))
			}
		}
		return b.String()
	}
	users := []string{rules("none")}
	for _, command := range strings.Fields(neededCommands) {
		users = append(users, rules(command))
	}
	srv := redistest.New(t, redistest.Config{Users: users})
	admin := srv.Client(t)
	round := func(name string) error {
		opt := srv.Options()
		opt.Username, opt.Password, opt.DisableIdentity = name, "secret", true
		rdb := redis.NewClient(opt)
		defer rdb.Close()
		c := open(t, rdb, Config{TTL: 1500 * time.Millisecond})
		defer c.Close()
		require.NoError(t, admin.ScriptFlush(t.Context()).Err()) // so that EVAL is needed
		ctx := t.Context()
		several, err := c.TryAcquire(ctx, "a", Also("b"))
		if err != nil {
			return err
		}
		errs := []error{several.Release(ctx)}
		l, err := c.TryAcquire(ctx, "k")
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for start := time.Now(); c.Stats().Renewed == 0 && l.Context().Err() == nil && time.Since(start) < time.Minute; {
			time.Sleep(10 * time.Millisecond)
		}
		_, err = c.Inspect(ctx, "k")
		errs = append(errs, context.Cause(l.Context()), err)
		waited := make(chan error, 1)
		go func() {
			waited <- c.Do(ctx, "k", func(context.Context, *Lease) error { return nil }, MaxWait(20*time.Second))
		}()
		for start := time.Now(); time.Since(start) < 2*time.Second; time.Sleep(time.Millisecond) { // who may not subscribe never stands in the queue
			if _, placed := inLine(c, "k"); placed > 0 || len(waited) > 0 {
				break
			}
		}
		errs = append(errs, l.Release(ctx), <-waited)
		if l, err = c.TryAcquire(ctx, "k"); err == nil {
			_, err = c.Revoke(ctx, "k", l.Token())
		}
		return errors.Join(append(errs, err)...)
	}
	require.NoError(t, round("user-none"))
	for _, command := range strings.Fields(neededCommands) {
		switch command {
		case "MSET", "PTTL", "LPOP", "LPUSH", "LREM", "PUBLISH", "SUBSCRIBE":
			continue // the first is for repeated attempts alone; without the others waiters poll
		}
		t.Run(command, func(t *testing.T) {
			err := round("user-" + strings.ToLower(command))
			require.Error(t, err)
			if command != "DEL" && command != "MGET" && command != "GETRANGE" { // which renewal, release and giving up alone need
				require.ErrorContains(t, err, "the user needs the commands EVAL EVALSHA")
			}
			require.NoError(t, admin.FlushAll(t.Context()).Err())
		})
	}
}

func TestTheLoggerIsThatOfTheConnectionUnlessOneIsGiven(t *testing.T) {
	rdb := testserver.New(t).Client(t)
	c, err := New(rdb, Config{})
	require.NoError(t, err)
	require.Same(t, slog.Default(), c.log)
	require.NoError(t, c.Close())
	mine := slog.New(slog.DiscardHandler)
	c, err = New(rdb, Config{Logger: mine})
	require.NoError(t, err)
	require.Same(t, mine, c.log)
	require.NoError(t, c.Close())
}
