package conn

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

// A load writes without pause until stop, and keeps count of what became of it.
type load struct {
	c       *Client
	key     func(i int) string
	cancel  context.CancelFunc
	writers sync.WaitGroup

	sets, pushes     atomic.Int64 // that succeeded
	setErrs, unknown atomic.Int64
	mu               sync.Mutex
	others           []error // of pushes: neither success nor ErrOutcomeUnknown
}

// startLoad begins four writers, each of which sets a key (repeatable) and pushes
// a unique value (not repeatable) in turn.
func startLoad(t *testing.T, c *Client, key func(i int) string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{c: c, key: key, cancel: cancel}
	for w := range 4 {
		l.writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				l.write(fmt.Sprintf("%d-%d", w, i), l.key(w))
				time.Sleep(time.Millisecond)
			}
		})
	}
	t.Cleanup(l.stop)
	return l
}

func (l *load) write(id, key string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := l.c.Set(ctx, key+":s", id, 0).Err(); err != nil {
		l.setErrs.Add(1)
		l.mu.Lock()
		l.others = append(l.others, err)
		l.mu.Unlock()
	} else {
		l.sets.Add(1)
	}
	switch err := l.c.RPush(ctx, key+":l", id).Err(); {
	case err == nil:
		l.pushes.Add(1)
	case errors.Is(err, ErrOutcomeUnknown):
		l.unknown.Add(1)
	default:
		l.mu.Lock()
		l.others = append(l.others, err)
		l.mu.Unlock()
	}
}

func (l *load) stop() { l.cancel(); l.writers.Wait() }

// goesOn waits until n more pushes have succeeded.
func (l *load) goesOn(t *testing.T, n int64) {
	t.Helper()
	before := l.pushes.Load()
	require.Eventually(t, func() bool { return l.pushes.Load() >= before+n }, time.Minute, 5*time.Millisecond)
}

// check ends the load and verifies that no command had an error that it should
// not have, and that none was executed twice.
func (l *load) check(t *testing.T) {
	t.Helper()
	l.stop()
	require.Empty(t, l.others)
	require.Zero(t, l.setErrs.Load())
	require.LessOrEqual(t, l.unknown.Load(), int64(4), "one for each connection in flight")
	for w := range 4 {
		values, err := l.c.LRange(t.Context(), l.key(w)+":l", 0, -1).Result()
		require.NoError(t, err)
		seen := make(map[string]bool)
		for _, v := range values {
			require.False(t, seen[v], "%s was pushed twice", v)
			seen[v] = true
		}
	}
}

func TestAFailoverIsFollowedWithoutErrors(t *testing.T) {
	for _, fault := range []struct {
		name string
		do   func(ctx context.Context, s *redistest.Sentinels, primary *redistest.Server) error
	}{
		{"killed", func(_ context.Context, _ *redistest.Sentinels, p *redistest.Server) error { p.Kill(); return nil }},
		{"stopped", func(_ context.Context, _ *redistest.Sentinels, p *redistest.Server) error { return p.Pause() }},
		{"failed over", func(ctx context.Context, s *redistest.Sentinels, _ *redistest.Server) error {
			_, err := s.Failover(ctx)
			return err
		}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
			ctx := t.Context()
			c := open(t, Config{Role: "broker", Endpoint: parse(t, s.URL())})
			require.NoError(t, c.Check(ctx))
			epochs := make(chan uint64, 10)
			defer c.OnEpoch(func(n uint64) { epochs <- n })()
			l := startLoad(t, c, strconv.Itoa)
			l.goesOn(t, 50)
			old := s.Primary()
			require.NoError(t, fault.do(ctx, s, old))
			select {
			case n := <-epochs:
				require.EqualValues(t, 1, n)
			case <-time.After(time.Minute):
				t.Fatal("no new epoch")
			}
			l.goesOn(t, 50)
			now := c.Stats().Primary
			require.NotEqual(t, old.Addr(), now.Addr)
			require.EqualValues(t, 1, now.Switches)
			require.NotContains(t, c.registry.addrs(), old.Addr(), "the old primary is not talked to")
			require.Eventually(t, func() bool { return !c.Stats().Primary.Down }, time.Minute, 10*time.Millisecond)
			l.check(t)
			require.Equal(t, "closed", c.Stats().Breaker.State)
		})
	}
}

func TestManyCallersOfASmallPoolWaitForThePrimary(t *testing.T) {
	t.Run("killed", func(t *testing.T) { manyCallers(t, func(p *redistest.Server) { p.Kill() }) })
	t.Run("stopped", func(t *testing.T) { manyCallers(t, func(p *redistest.Server) { require.NoError(t, p.Pause()) }) })
}

func manyCallers(t *testing.T, fault func(*redistest.Server)) {
	// They are without a primary for longer than they may wait for a connection.
	s := redistest.NewSentinels(t, redistest.SentinelsConfig{DownAfter: 2 * time.Second})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, s.URL()+"?pool_timeout=1s")})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	require.NoError(t, c.Ping(ctx).Err())
	var callers sync.WaitGroup
	stop := make(chan struct{})
	errs := make(chan error, 200)
	for i := range 200 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := c.Set(ctx, strconv.Itoa(i), "v", 0).Err(); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	old := s.Primary()
	fault(old)
	_, err := s.AwaitPrimary(ctx, old.Addr())
	require.NoError(t, err)
	require.NoError(t, c.Set(ctx, "after", "v", 0).Err())
	close(stop)
	callers.Wait()
	close(errs)
	for err := range errs {
		require.NotErrorIs(t, err, redis.ErrPoolTimeout)
		require.NotErrorIs(t, err, breaker.ErrOpen)
		require.NoError(t, err)
	}
}

func TestASmallPoolIsToldFromAPrimaryThatHangs(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis+replica://"+primary.Addr()+",127.0.0.1:1?pool_size=1&pool_timeout=100ms")})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	require.NoError(t, c.Ping(ctx).Err())
	popped := make(chan error, 1)
	go func() { popped <- c.BLPop(ctx, time.Minute, "l").Err() }()
	require.Eventually(t, func() bool { return c.Stats().Pool.Idle == 0 }, 20*time.Second, time.Millisecond)
	start := time.Now()
	require.ErrorIs(t, c.Get(ctx, "k").Err(), redis.ErrPoolTimeout)
	require.Less(t, time.Since(start), 30*time.Second, "not until the connection is free")
	require.NoError(t, primary.Client(t).RPush(ctx, "l", "v").Err())
	require.NoError(t, <-popped)

	require.NoError(t, primary.Pause())
	go func() { popped <- c.Set(ctx, "k", "v", 0).Err() }()
	require.Eventually(t, func() bool { return c.Stats().Pool.Idle == 0 }, 20*time.Second, time.Millisecond)
	time.AfterFunc(1500*time.Millisecond, func() { _ = primary.Continue() })
	require.NoError(t, c.Set(ctx, "l", "v", 0).Err(), "it waits, for more than 100 ms")
	require.NoError(t, <-popped)
}

func TestSentinelsThatAreDownAreNotNoticed(t *testing.T) {
	s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, s.URL())})
	ctx := t.Context()
	require.NoError(t, c.Check(ctx))
	primary := s.Primary()
	l := startLoad(t, c, strconv.Itoa)
	for _, sentinel := range s.Sentinels {
		sentinel.Kill()
	}
	l.goesOn(t, 200)
	l.check(t)
	require.Zero(t, l.unknown.Load())

	t.Run("and a new client opens with the fallback", func(t *testing.T) {
		c := open(t, Config{Role: "broker", Endpoint: parse(t, s.URL()+"?fallback_primary="+primary.Addr())})
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		require.NoError(t, c.Check(ctx))
		require.NoError(t, c.Incr(ctx, "n").Err())
	})
	t.Run("or says why not", func(t *testing.T) {
		c := open(t, Config{Role: "broker", Endpoint: parse(t, s.URL())})
		start := time.Now()
		err := c.Check(ctx)
		require.ErrorContains(t, err, "connection refused")
		require.Less(t, time.Since(start), 30*time.Second)
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, c.Incr(short, "n").Err(), context.DeadlineExceeded)
	})
}

func TestAClusterFailoverIsFollowedWithoutErrors(t *testing.T) {
	for _, fault := range []string{"killed", "stopped", "failed over"} {
		t.Run(fault, func(t *testing.T) {
			cluster := redistest.NewCluster(t, redistest.ClusterConfig{})
			ctx := t.Context()
			c := open(t, Config{Role: "broker", Endpoint: parse(t, cluster.URL())})
			require.NoError(t, c.Check(ctx))
			l := startLoad(t, c, func(i int) string { return fmt.Sprintf("{%d}", i) })
			l.goesOn(t, 50)
			old, err := cluster.PrimaryOf(ctx, "{0}")
			require.NoError(t, err)
			switch fault {
			case "killed":
				old.Kill()
			case "stopped":
				require.NoError(t, old.Pause())
			default:
				replicas, err := cluster.ReplicasOf(ctx, "{0}")
				require.NoError(t, err)
				require.NoError(t, cluster.Failover(ctx, replicas[0]))
			}
			_, err = cluster.AwaitPrimary(ctx, "{0}", old.Addr())
			require.NoError(t, err)
			write, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			require.NoError(t, c.Set(write, "{0}:after", "v", 0).Err())
			l.goesOn(t, 50)
			require.Eventually(t, func() bool { return c.Epoch() > 0 }, 30*time.Second, 10*time.Millisecond)
			l.check(t)
		})
	}
}

func TestReadsGoToReplicasAndFallBack(t *testing.T) {
	t.Run("sentinel", func(t *testing.T) {
		s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
		readsFromReplicas(t, s.URL(), func() []*redistest.Server { return []*redistest.Server{s.Primary()} }, s.Replicas())
	})
	t.Run("replicated", func(t *testing.T) {
		primary := redistest.New(t, redistest.Config{})
		a, b := redistest.NewReplica(t, primary, redistest.Config{}), redistest.NewReplica(t, primary, redistest.Config{})
		readsFromReplicas(t, fmt.Sprintf("redis+replica://%s,%s,%s", primary.Addr(), a.Addr(), b.Addr()),
			func() []*redistest.Server { return []*redistest.Server{primary} }, []*redistest.Server{a, b})
	})
	t.Run("cluster", func(t *testing.T) {
		cluster := redistest.NewCluster(t, redistest.ClusterConfig{})
		primary, err := cluster.PrimaryOf(t.Context(), "k")
		require.NoError(t, err)
		replicas, err := cluster.ReplicasOf(t.Context(), "k")
		require.NoError(t, err)
		for i := range 20 { // a replica is listed once it has replicated something, and its primary has heard of that
			require.NoError(t, cluster.Client(t).Set(t.Context(), strconv.Itoa(i), "v", 0).Err())
		}
		for _, node := range cluster.Nodes {
			require.Eventually(t, func() bool {
				shards, err := node.Client(t).Do(t.Context(), "cluster", "slots").Slice()
				for _, shard := range shards {
					if shard, _ := shard.([]any); len(shard) < 4 { // first slot, last slot, primary, replica
						return false
					}
				}
				return err == nil
			}, 30*time.Second, 50*time.Millisecond)
		}
		readsFromReplicas(t, cluster.URL(), func() []*redistest.Server { return []*redistest.Server{primary} }, replicas)
	})
}

func readsFromReplicas(t *testing.T, url string, primaries func() []*redistest.Server, replicas []*redistest.Server) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	preferred := open(t, Config{Role: "cache", FailFast: true, Endpoint: parse(t, url+"?read_from=replica_preferred")})
	strict := open(t, Config{Role: "cache", FailFast: true, Endpoint: parse(t, url+"?read_from=replica")})
	primary := open(t, Config{Role: "cache", FailFast: true, Endpoint: parse(t, url)})
	for _, c := range []*Client{preferred, strict, primary} {
		require.NoError(t, c.Check(ctx))
	}
	require.NoError(t, preferred.Reader().Set(ctx, "k", "v", 0).Err(), "writes go to the primary")
	for _, r := range replicas {
		require.Eventually(t, func() bool {
			rdb := r.Client(t)
			_ = rdb.Do(ctx, "readonly").Err()
			return rdb.DBSize(ctx).Val() > 0
		}, 30*time.Second, 20*time.Millisecond)
	}
	count := func(servers []*redistest.Server) int {
		n := 0
		for _, srv := range servers {
			n += calls(t, srv, "get")
		}
		return n
	}
	for _, c := range []*Client{preferred, strict} {
		require.Eventually(t, func() bool { return c.Stats().Replicas.Known > 0 || c.cluster }, 30*time.Second, 10*time.Millisecond)
	}
	before := count(primaries())
	reads := strict.Stats().Commands.Total()
	for range 20 {
		require.Equal(t, "v", strict.Reader().Get(ctx, "k").Val())
	}
	require.Equal(t, before, count(primaries()))
	require.GreaterOrEqual(t, strict.Stats().Commands.Total(), reads+20, "they count wherever they are answered")
	require.GreaterOrEqual(t, count(replicas), 20)
	for range 10 {
		require.Equal(t, "v", preferred.Reader().Get(ctx, "k").Val())
	}
	_, err := preferred.Reader().Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.Get(ctx, "k"); return nil })
	require.NoError(t, err)
	_, err = preferred.Reader().Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.Set(ctx, "k", "v", 0); return nil })
	require.NoError(t, err)
	_, err = preferred.Reader().TxPipelined(ctx, func(p redis.Pipeliner) error { p.Set(ctx, "k", "v", 0); p.Get(ctx, "k"); return nil })
	require.NoError(t, err)

	for _, r := range replicas {
		r.Kill()
	}
	before = count(primaries())
	for range 20 {
		require.Equal(t, "v", preferred.Reader().Get(ctx, "k").Val())
	}
	require.GreaterOrEqual(t, count(primaries()), before+20, "by the primary")
	_, err = preferred.Reader().Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.Get(ctx, "k"); return nil })
	require.NoError(t, err)
	if !preferred.cluster {
		require.Error(t, strict.Reader().Get(ctx, "k").Err())
	}
	require.Same(t, primary, primary.Reader())
}

// go-redis dials once a second after as many failures, over a pool's whole life,
// as the pool has places.
func TestFailedDialsDoNotKeepThePoolFromDialling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		addrs := []string{"10.0.0.1:6379", "10.0.0.2:6379"}
		net, servers := testserver.NewNet(), []*testserver.Server{testserver.New(t), testserver.New(t)}
		for i, addr := range addrs {
			net.Add(addr, servers[i].Dial)
		}
		sentinel := testserver.NewSentinel(t, net, "10.1.0.1:26379")
		sentinel.Monitor(testserver.Monitored{Name: "main", Primary: addrs[0], Epoch: 1})
		c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis+sentinel://10.1.0.1:26379/main?pool_size=2"), Dialer: net.Dial, Logger: quiet()})
		require.NoError(t, c.Ping(t.Context()).Err())
		for n := range 5 {
			servers[n%2].Stop()
			var callers sync.WaitGroup
			for i := range 2 { // who has to wait for another uses timers that bubbles share
				callers.Go(func() {
					if err := c.Set(t.Context(), strconv.Itoa(i), "v", 0).Err(); err != nil {
						t.Errorf("set: %v", err)
					}
				})
			}
			time.Sleep(3500 * time.Millisecond)
			sentinel.Switch("main", addrs[1-n%2], uint64(n+2))
			start := time.Now()
			callers.Wait()
			require.Less(t, time.Since(start), 100*time.Millisecond, n)
			require.NoError(t, servers[n%2].Restart())
		}
	})
}

func TestASmallPoolServesManyAfterAFailover(t *testing.T) {
	s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, s.URL()+"?pool_size=2")})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, c.Ping(ctx).Err())
	s.Primary().Kill()
	var callers sync.WaitGroup
	for i := range 20 {
		callers.Go(func() {
			if err := c.Set(ctx, strconv.Itoa(i), "v", 0).Err(); err != nil {
				t.Errorf("set: %v", err)
			}
		})
	}
	callers.Wait()
	require.EqualValues(t, 20, c.DBSize(ctx).Val())
}

func TestAStoppedNodeIsNoticedBeforeItsReadTimeout(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	c := open(t, Config{Role: "broker", Endpoint: parse(t, cluster.URL()+"?read_timeout=90s")})
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	blocked := make(chan error, 1)
	go func() { blocked <- c.BLPop(ctx, time.Minute, "other").Err() }() // at another node, and no sign of anything
	old, err := cluster.PrimaryOf(ctx, "k")
	require.NoError(t, err)
	require.NoError(t, old.Pause())
	start := time.Now()
	require.NoError(t, c.Set(ctx, "k", "w", 0).Err())
	require.Less(t, time.Since(start), time.Minute)
	t.Logf("%s after the stop", time.Since(start))
	require.NoError(t, c.RPush(ctx, "other", "v").Err())
	require.NoError(t, <-blocked)
}
