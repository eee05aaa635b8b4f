package lock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/testserver"
)

func watchOf(c *Client) *watch { return &c.store.(single).watch }

func nodeStats(c *Client) NodeStats { return c.Stats().Nodes[0] }

// probesOf counts the probes that a server sees. A connection begins with another
// question.
func probesOf(srv *testserver.Server) *atomic.Int64 {
	var n atomic.Int64
	srv.SetPreHook(func(_ *server.Peer, cmd string, args ...string) bool {
		if cmd == "PUBSUB" && strings.EqualFold(args[0], "numsub") {
			n.Add(1)
		}
		return false
	})
	return &n
}

// beWatched makes the server look as one that a Sentinel watches, until stop.
func beWatched(t *testing.T, srv *testserver.Server) (stop func()) {
	t.Helper()
	rdb := redis.NewClient(srv.Options())
	sub := rdb.Subscribe(t.Context(), helloChannel)
	_, err := sub.Receive(t.Context())
	require.NoError(t, err)
	return sync.OnceFunc(func() {
		_ = sub.Close()
		_ = rdb.Close()
	})
}

func TestManyFirstCallersAskTheEndpointOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		n := probesOf(srv)
		srv.SetLatency(time.Millisecond)
		c := open(t, srv.Client(t), Config{})
		require.Equal(t, "unknown", nodeStats(c).Endpoint)
		var callers sync.WaitGroup
		for i := range 100 {
			callers.Go(func() {
				l, err := c.TryAcquire(t.Context(), fmt.Sprint(i))
				if err == nil {
					err = l.Release(t.Context())
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		require.EqualValues(t, 1, n.Load())
		require.Equal(t, "safe", nodeStats(c).Endpoint)
		require.Equal(t, "127.0.0.1:6379", nodeStats(c).Addr)
		require.False(t, nodeStats(c).Refused)
	})
}

func TestTheEndpointIsAskedEachTenSecondsWhileItIsUsed(t *testing.T) {
	for name, use := range map[string]func(*testing.T, *Client){
		"a lease is held": func(t *testing.T, c *Client) {
			acquire(t, c, "k")
			time.Sleep(10 * time.Minute)
		},
		"somebody waits": func(t *testing.T, c *Client) {
			acquire(t, open(t, c.store.(single).conn.Unwrap(), Config{}), "k")
			_, err := c.Acquire(t.Context(), "k", MaxWait(10*time.Minute))
			require.ErrorIs(t, err, ErrNotAcquired)
		},
		"leases come and go": func(t *testing.T, c *Client) {
			for range 120 {
				require.NoError(t, acquire(t, c, "k").Release(t.Context()))
				time.Sleep(5 * time.Second)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := testserver.New(t)
				var mu sync.Mutex
				n := 0
				srv.SetPreHook(func(_ *server.Peer, cmd string, args ...string) bool {
					mu.Lock()
					defer mu.Unlock()
					if cmd == "PUBSUB" && strings.EqualFold(args[0], "numsub") {
						n++
					}
					return false
				})
				c := open(t, srv.Client(t), Config{})
				use(t, c)
				mu.Lock()
				got := n
				mu.Unlock()
				if name == "somebody waits" {
					got /= 2 // the holder's client asks as well
				}
				require.InDelta(t, 60, got, 8, "in 10 minutes; and once after each new connection")
			})
		})
	}
}

func TestAnEndpointThatNobodyUsesIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		n := probesOf(srv)
		c := open(t, srv.Client(t), Config{})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		time.Sleep(30 * time.Second)
		before := n.Load()
		require.LessOrEqual(t, before, int64(3))
		time.Sleep(time.Hour)
		require.Equal(t, before, n.Load())
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		require.Equal(t, before+1, n.Load(), "who comes then asks first")
	})
}

func TestAnAcquisitionCostsNothingForTheWatch(t *testing.T) {
	srv := testserver.New(t)
	c := open(t, srv.Client(t), Config{})
	require.NoError(t, c.Check(t.Context()))
	ctx := t.Context()
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		if err := c.store.admit(ctx, time.Second); err != nil {
			t.Error(err)
		}
	}))
}

func TestTheEndpointIsAskedAfterANewConnection(t *testing.T) {
	for name, client := range map[string]func(*testing.T, *testserver.Server) redis.UniversalClient{
		"foreign": func(t *testing.T, srv *testserver.Server) redis.UniversalClient { return srv.Client(t) },
		"own":     func(t *testing.T, srv *testserver.Server) redis.UniversalClient { return ownClient(t, srv) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := testserver.New(t)
				c := open(t, client(t, srv), Config{})
				l := acquire(t, c, "k")
				time.Sleep(15 * time.Second) // the last look was 2 s ago or so
				defer beWatched(t, srv)()
				srv.CutConnections()
				defer beWatched(t, srv)() // the first one was cut as well
				start := time.Now()
				for start := time.Now(); time.Since(start) < 3*time.Second; time.Sleep(100 * time.Millisecond) {
					if l, err := c.TryAcquire(t.Context(), "other"); err == nil {
						_ = l.Release(t.Context())
					} else if errors.Is(err, ErrFailoverManaged) {
						break
					}
				}
				require.Less(t, time.Since(start), 1500*time.Millisecond)
				require.True(t, nodeStats(c).Refused)
				_ = l.Release(t.Context())
			})
		})
	}
}

// By default, a client of go-redis has another pool for its pipelines.
func TestConnectionsForPipelinesCount(t *testing.T) {
	srv := testserver.New(t)
	rdb := srv.Client(t)
	require.NoError(t, rdb.Ping(t.Context()).Err())
	w := watchOf(open(t, rdb, Config{}))
	before := w.dialled()
	_, err := rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Ping(t.Context())
		return p.Ping(t.Context()).Err()
	})
	require.NoError(t, err)
	require.NotEqual(t, before, w.dialled())
}

func TestAPrimaryThatSentinelsBeginToWatchHandsOutNoMoreLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		var book logBook
		c := open(t, srv.Client(t), Config{TTL: time.Minute, Logger: book.logger()})
		l := acquire(t, c, "k", TTL(45*time.Second))
		waiting := make(chan error, 1)
		go func() {
			_, err := c.Acquire(t.Context(), "k")
			waiting <- err
		}()
		time.Sleep(22 * time.Second)
		stop := beWatched(t, srv)
		watched := time.Now()
		err := <-waiting
		require.ErrorIs(t, err, ErrFailoverManaged, "who waits learns it, too")
		require.LessOrEqual(t, time.Since(watched), watchEvery+time.Second)
		found := time.Now()
		require.ErrorContains(t, err, "(Sentinels watching it: 1)")
		require.ErrorContains(t, err, "(since "+found.UTC().Format(time.RFC3339)+")")
		require.ErrorContains(t, err, "a quorum of independent primaries")
		_, err = c.TryAcquire(t.Context(), "another")
		require.ErrorIs(t, err, ErrFailoverManaged)
		require.ErrorIs(t, c.Check(t.Context()), ErrFailoverManaged)
		require.Equal(t, "failover_managed", nodeStats(c).Endpoint)
		require.True(t, nodeStats(c).Refused)
		require.NoError(t, l.Context().Err(), "it runs out")
		renewed := c.Stats().Renewed

		within(t, l.Context(), 45*time.Second, ErrLost)
		require.ErrorContains(t, context.Cause(l.Context()), "the endpoint takes no locks any more")
		require.Equal(t, renewed, c.Stats().Renewed)
		require.Zero(t, c.Stats().RenewFailed)
		require.Equal(t, LossCount{Cause: "endpoint", Count: 1}, total(c).Lost[unsafe])
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)

		// As long as somebody asks, it is watched; and once it is well again for
		// a minute it is taken again.
		use := func(d time.Duration) (last error) {
			for start := time.Now(); time.Since(start) < d; time.Sleep(time.Second) {
				var l *Lease
				if l, last = c.TryAcquire(t.Context(), "k"); last == nil {
					require.NoError(t, l.Release(t.Context()))
				}
			}
			return last
		}
		require.ErrorIs(t, use(5*time.Minute), ErrFailoverManaged)
		stop()
		require.ErrorIs(t, use(45*time.Second), ErrFailoverManaged)
		require.ErrorContains(t, use(time.Second), "it is no more, and locks are taken again from ")
		require.Equal(t, "safe", nodeStats(c).Endpoint)
		require.True(t, nodeStats(c).Refused)
		require.NoError(t, use(40*time.Second))
		require.False(t, nodeStats(c).Refused)
		require.Equal(t, 1, strings.Count(book.String(), "level=ERROR"), book.String())
		require.Equal(t, 1, strings.Count(book.String(), `level=ERROR msg="the locks' endpoint is refused: no new leases, and those that are held end" addr=127.0.0.1:6379 found=failover_managed`))
		require.Equal(t, 1, strings.Count(book.String(), `level=INFO msg="the locks' endpoint is taken again"`))
	})
}

// An attempt that was under way when the endpoint was found to be refused.
func TestALeaseThatComesTooLateIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{})
		require.NoError(t, c.Check(t.Context()))
		srv.SetLatency(2 * time.Second)
		attempt := make(chan error, 1)
		go func() {
			_, err := c.TryAcquire(t.Context(), "k")
			attempt <- err
		}()
		time.Sleep(time.Millisecond)
		w := watchOf(c)
		w.note(time.Now(), 0, discovery{finding: foundManaged})
		require.ErrorIs(t, <-attempt, ErrFailoverManaged)
		srv.SetLatency(0)
		time.Sleep(3 * time.Second)
		require.Empty(t, leaseKeys(srv))
	})
}

// Sentinels that have just promoted a server are not seen there for a moment.
func TestANewServerIsAskedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{})
		acquire(t, c, "k")
		time.Sleep(time.Second + time.Millisecond) // the first connections are asked about, too
		defer beWatched(t, srv)()
		time.Sleep(watchAgain)
		_, err := c.TryAcquire(t.Context(), "other")
		require.ErrorIs(t, err, ErrFailoverManaged)
	})
}

// Sentinels that lose a primary are not seen there any more, and may promote
// another the next moment.
func TestSentinelsThatDisappearForAMomentLeaveTheEndpointRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		for range 10 {
			stop := beWatched(t, srv)
			for range 11 { // in use, so that it is watched
				time.Sleep(time.Second)
				if l, err := c.TryAcquire(t.Context(), "k"); err == nil {
					require.NoError(t, l.Release(t.Context()))
				}
			}
			stop()
			for start := time.Now(); time.Since(start) < 45*time.Second; time.Sleep(time.Second) {
				_, err := c.TryAcquire(t.Context(), "k")
				require.ErrorIs(t, err, ErrFailoverManaged)
			}
		}
	})
}

func TestAServerThatBecomesAReplicaEndsAllLeasesAtOnce(t *testing.T) {
	tests := map[string]struct {
		client func(*testing.T, *testserver.Server) redis.UniversalClient
		ttl    time.Duration
		most   time.Duration
	}{
		"foreign, by the watch": {func(t *testing.T, srv *testserver.Server) redis.UniversalClient { return srv.Client(t) }, time.Hour, watchEvery},
		"foreign, by a renewal": {func(t *testing.T, srv *testserver.Server) redis.UniversalClient { return srv.Client(t) }, 3 * time.Second, time.Second},
		"own, by the watch":     {func(t *testing.T, srv *testserver.Server) redis.UniversalClient { return ownClient(t, srv) }, time.Hour, watchEvery},
		"own, by a renewal":     {func(t *testing.T, srv *testserver.Server) redis.UniversalClient { return ownClient(t, srv) }, 6 * time.Second, 4 * time.Second},
		"patient, by the watch": {patientClient, time.Hour, watchEvery},
		"patient, by a renewal": {patientClient, 6 * time.Second, 4 * time.Second},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := testserver.New(t)
				var book logBook
				c := open(t, test.client(t, srv), Config{TTL: test.ttl, Logger: book.logger()})
				if strings.HasSuffix(name, "by a renewal") {
					watchOf(c).every = 2 * time.Minute
				}
				var leases []*Lease
				for i := range 10 {
					leases = append(leases, acquire(t, c, fmt.Sprint(i)))
				}
				time.Sleep(5*test.most + 2*time.Second)
				srv.SetUpstream("10.0.0.1:6379")
				start := time.Now()
				for _, l := range leases {
					within(t, l.Context(), time.Hour, ErrLost)
					require.ErrorContains(t, context.Cause(l.Context()), "the endpoint takes no locks any more")
				}
				require.LessOrEqual(t, time.Since(start), test.most+probeSoon, "go-redis repeats a command first that was refused")
				require.Equal(t, LossCount{Cause: "endpoint", Count: 10}, total(c).Lost[unsafe])
				_, err := c.TryAcquire(t.Context(), "another")
				require.ErrorIs(t, err, ErrReplicaEndpoint)
				require.ErrorIs(t, leases[0].Release(t.Context()), ErrLost)
				require.Equal(t, "replica", nodeStats(c).Endpoint)
				require.True(t, nodeStats(c).Refused)
				require.Equal(t, 1, strings.Count(book.String(), "level=ERROR"), book.String())

				srv.SetUpstream("")
				start = time.Now()
				for {
					l, err := c.TryAcquire(t.Context(), "another")
					if err == nil {
						require.NoError(t, l.Release(t.Context()))
						break
					}
					require.ErrorIs(t, err, ErrReplicaEndpoint)
					time.Sleep(time.Second)
				}
				require.InDelta(t, calmFor, time.Since(start), float64(watchOf(c).every+2*time.Second))
			})
		})
	}
}

// patientClient is an own client that repeats what failed, as that of the locks does.
func patientClient(t *testing.T, srv *testserver.Server) redis.UniversalClient {
	t.Helper()
	ep, err := endpoint.Parse("redis://127.0.0.1:6379?pool_size=1024")
	require.NoError(t, err)
	cn, err := conn.New(conn.Config{Role: "locks", Endpoint: ep, Dialer: srv.Dial, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { _ = cn.Close() })
	return cn
}

func TestAReplicaIsToldAtOnceAlsoByAPatientClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		srv.SetUpstream("10.0.0.1:6379")
		c := open(t, patientClient(t, srv), Config{})
		start := time.Now()
		_, err := c.TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrReplicaEndpoint)
		require.ErrorContains(t, err, "10.0.0.1:6379")
		require.LessOrEqual(t, time.Since(start), 2*probeSoon)
		require.ErrorIs(t, c.Check(t.Context()), ErrReplicaEndpoint)
		srv.SetUpstream("")
		require.NoError(t, acquire(t, c, "k").Release(t.Context()), "no lease was handed out before: nothing to wait for")
	})
}

// The time for the first question is over before a handshake has told what is there.
func TestAReplicaThatAnswersSlowlyIsToldAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		srv.SetUpstream("10.0.0.1:6379")
		srv.SetLatency(700 * time.Millisecond)
		_, err := open(t, patientClient(t, srv), Config{}).TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrReplicaEndpoint)
		time.Sleep(2 * time.Second) // what go-redis has under way
	})
}

// A server that is down from the start: callers do not dial past the breaker, and
// go on when it is there.
func TestTheFirstQuestionHeedsTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		srv.Stop()
		cn := ownClient(t, srv)
		c := open(t, cn, Config{})
		for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
			_, err := c.TryAcquire(t.Context(), "k")
			require.Error(t, err)
		}
		require.LessOrEqual(t, cn.Stats().Dials, uint64(5+2*11), "five, and the breaker's probes each second")
		require.Positive(t, cn.Stats().Breaker.Rejected)
		require.NoError(t, srv.Restart())
		time.Sleep(2 * time.Second)
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))

		srv.Stop()
		patient := open(t, patientClient(t, srv), Config{})
		time.AfterFunc(20*time.Second, func() { _ = srv.Restart() })
		require.NoError(t, acquire(t, patient, "k").Release(t.Context()), "it waits out the outage, as all its commands do")
	})
}

func TestACallerThatLeavesDoesNotEndTheQuestionOfTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		srv.Hang(true)
		c := open(t, patientClient(t, srv), Config{CloseTimeout: time.Minute})
		brief, cancel := context.WithTimeoutCause(t.Context(), time.Second, errTest)
		defer cancel()
		stayed := make(chan error, 1)
		go func() {
			l, err := c.TryAcquire(t.Context(), "k")
			if err == nil {
				err = l.Release(t.Context())
			}
			stayed <- err
		}()
		start := time.Now()
		_, err := c.TryAcquire(brief, "k")
		require.ErrorIs(t, err, errTest)
		require.Equal(t, time.Second, time.Since(start))
		srv.Hang(false)
		require.NoError(t, <-stayed)
	})
}

func TestCloseEndsAQuestionThatNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		srv.Stop()
		c := open(t, patientClient(t, srv), Config{CloseTimeout: 10 * time.Second})
		ended := make(chan error, 1)
		go func() {
			_, err := c.TryAcquire(t.Context(), "k")
			ended <- err
		}()
		time.Sleep(5 * time.Second)
		start := time.Now()
		require.NoError(t, c.Close())
		require.Zero(t, time.Since(start))
		require.ErrorIs(t, <-ended, ErrClosed)
	})
}

// An outage is no word on what the server is.
func TestAnEndpointThatDoesNotAnswerStaysWhatItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb, _ := throughNetwork(t, srv)
		c := open(t, rdb, Config{TTL: time.Hour})
		l := acquire(t, c, "k")
		time.Sleep(15 * time.Second)
		srv.Stop()
		time.Sleep(5 * time.Minute)
		require.Equal(t, "safe", nodeStats(c).Endpoint)
		require.NoError(t, l.Context().Err())
		require.NoError(t, srv.Restart())
		require.NoError(t, acquire(t, c, "other").Release(t.Context()))
		require.NoError(t, l.Release(t.Context()))
	})
}

func TestWarningsComeOncePerClientAndCause(t *testing.T) {
	noperm := func(command string) string {
		return "NOPERM this user has no permissions to run the '" + command + "' command"
	}
	for name, test := range map[string]struct {
		cfg   Config
		setUp func(*testing.T, *testserver.Server)
		found string
		level string
		text  string
	}{
		"replicas": {
			setUp: func(_ *testing.T, srv *testserver.Server) { srv.SetReplicaAddrs("10.0.0.2:6379", "10.0.0.3:6379") },
			found: "replicas", level: "WARN", text: "it has 2 replicas",
		},
		"no ROLE, but INFO": {
			setUp: func(_ *testing.T, srv *testserver.Server) {
				srv.SetReplicaAddrs("10.0.0.2:6379")
				srv.SetError(noperm("role"), "ROLE")
			},
			found: "replicas", level: "WARN", text: "it has 1 replica",
		},
		"no ROLE, no INFO": {
			setUp: func(_ *testing.T, srv *testserver.Server) { srv.SetError(noperm("role"), "ROLE", "INFO") },
			found: "unprobed", level: "WARN", text: "ROLE is refused: NOPERM",
		},
		"no INFO": {
			setUp: func(_ *testing.T, srv *testserver.Server) {
				srv.SetReplicaAddrs("10.0.0.2:6379")
				srv.SetError(noperm("info"), "INFO")
			},
			found: "unprobed", level: "WARN", text: "INFO is refused: NOPERM",
		},
		"evictions": {
			setUp: func(_ *testing.T, srv *testserver.Server) { srv.SetReplicaAddrs("10.0.0.2:6379"); evicts(srv) },
			found: "evicting", level: "WARN", text: "its maxmemory-policy is volatile-lru, and its maxmemory 1048576",
		},
		"no PUBSUB": {
			setUp: func(_ *testing.T, srv *testserver.Server) {
				srv.SetReplicaAddrs("10.0.0.2:6379")
				srv.SetError(noperm("pubsub|numsub"), "PUBSUB")
			},
			found: "unprobed", level: "WARN", text: "PUBSUB is refused: NOPERM",
		},
		"a server that is not Redis": {
			setUp: func(_ *testing.T, srv *testserver.Server) {
				srv.SetError("ERR unknown command 'role'", "ROLE", "INFO", "PUBSUB")
			},
			found: "unprobed", level: "INFO", text: "ERR unknown command 'role'",
		},
		"managed by Sentinels, and allowed": {
			cfg:   Config{AllowFailoverManaged: true},
			setUp: func(t *testing.T, srv *testserver.Server) { t.Cleanup(beWatched(t, srv)) },
			found: "failover_managed", level: "WARN", text: "Sentinels watching it: 1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := testserver.New(t)
				test.setUp(t, srv)
				var book logBook
				test.cfg.Logger = book.logger()
				c := open(t, srv.Client(t), test.cfg)
				l := acquire(t, c, "k")
				time.Sleep(10 * time.Minute)
				require.NoError(t, l.Release(t.Context()))
				require.Equal(t, test.found, nodeStats(c).Endpoint)
				require.False(t, nodeStats(c).Refused)
				require.Equal(t, 1, strings.Count(book.String(), "level="+test.level), book.String())
				require.Equal(t, 1, strings.Count(book.String(), "level="), book.String())
				require.Contains(t, book.String(), test.text)

				if test.cfg.AllowFailoverManaged {
					return
				}
				strict := open(t, srv.Client(t), Config{Strict: true})
				_, err := strict.TryAcquire(t.Context(), "k")
				require.ErrorIs(t, err, ErrUnsafeEndpoint)
				require.ErrorContains(t, err, test.text)
				require.ErrorIs(t, strict.Check(t.Context()), ErrUnsafeEndpoint)
				require.True(t, nodeStats(strict).Refused)
			})
		})
	}
}

// evicts makes the server look as one that evicts keys.
func evicts(srv *testserver.Server) {
	srv.SetPreHook(func(c *server.Peer, cmd string, args ...string) bool {
		if cmd != "INFO" || args[0] != "memory" {
			return false
		}
		c.WriteBulk("# Memory\r\nused_memory:0\r\nmaxmemory:1048576\r\nmaxmemory_policy:volatile-lru\r\n")
		return true
	})
}

// The locks on the other primaries do not wait for one that hangs.
func TestAPrimaryOfAClusterThatHangsIsNotAskedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := []*testserver.Server{testserver.New(t), testserver.New(t), testserver.New(t)}
		var slots []redis.ClusterSlot
		network := testserver.NewNet()
		for i, srv := range servers {
			addr := fmt.Sprintf("10.0.0.%d:6379", i+1)
			network.Add(addr, srv.Dial)
			slots = append(slots, redis.ClusterSlot{Start: 5000 * i, End: 5000*i + 4999, Nodes: []redis.ClusterNode{{Addr: addr}}})
		}
		opt := &redis.ClusterOptions{Dialer: network.Dial, PoolSize: 1024, ContextTimeoutEnabled: true, MaxRedirects: -1}
		opt.ClusterSlots = func(context.Context) ([]redis.ClusterSlot, error) { return slots, nil }
		rdb := redis.NewClusterClient(opt)
		defer rdb.Close()
		c := open(t, rdb, Config{})
		s := c.store.(single).node
		require.Equal(t, discovery{finding: foundSafe}, s.evictionInCluster(t.Context()))
		evicts(servers[2])
		servers[0].Hang(true)
		defer servers[0].Hang(false)
		start := time.Now()
		require.Equal(t, foundEvicting, s.evictionInCluster(t.Context()).finding)
		require.LessOrEqual(t, time.Since(start), probeSoon)
	})
}

func TestANodeOfAQuorumThatEvictsIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		evicts(p.servers[1])
		var book logBook
		c := p.open(t, Config{Logger: book.logger()})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		synctest.Wait()
		require.Equal(t, 1, strings.Count(book.String(), "level="), book.String())
		require.Contains(t, book.String(), "level=WARN")
		require.Contains(t, book.String(), "addr=10.0.0.2:6379 found=evicting")
		for i, found := range []string{"safe", "evicting", "safe"} {
			require.Equal(t, found, c.Stats().Nodes[i].Endpoint)
		}

		strict := p.open(t, Config{Strict: true})
		_, err := strict.TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrUnsafeEndpoint)
		require.ErrorContains(t, err, "node 2 (10.0.0.2:6379): ")
		require.ErrorIs(t, strict.Check(t.Context()), ErrUnsafeEndpoint)
		p.quiet(t, c)
	})
}

// A replica or a Sentinel shows also where ROLE may not be asked.
func TestInfoAndHelloTellTheRoleWhereRoleIsForbidden(t *testing.T) {
	for _, forbidden := range [][]string{{"ROLE"}, {"ROLE", "INFO"}} {
		srv := testserver.New(t)
		srv.SetUpstream("10.0.0.1:6379")
		srv.SetError("NOPERM this user has no permissions to run this command", forbidden...)
		_, err := open(t, srv.Client(t), Config{}).TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrReplicaEndpoint, forbidden)
	}
	srv := testserver.New(t)
	srv.SetPreHook(func(c *server.Peer, cmd string, args ...string) bool {
		switch {
		case cmd == "ROLE", cmd == "INFO":
			c.WriteError("NOPERM this user has no permissions to run the '" + strings.ToLower(cmd) + "' command")
		case cmd == "HELLO" && len(args) == 0:
			c.WriteMapLen(1)
			c.WriteBulk("mode")
			c.WriteBulk("sentinel")
		default:
			return false
		}
		return true
	})
	_, err := open(t, srv.Client(t), Config{}).TryAcquire(t.Context(), "k")
	require.ErrorIs(t, err, ErrSentinelEndpoint)
}

// Unit tests of users run on miniredis, which knows neither ROLE nor INFO's
// section on replication.
func TestMiniredisIsTakenWithoutANoise(t *testing.T) {
	srv := miniredis.RunT(t)
	rdb := redis.NewClient(&redis.Options{Addr: srv.Addr()})
	defer rdb.Close()
	var book logBook
	c := open(t, rdb, Config{Logger: book.logger()})
	require.NoError(t, c.Check(t.Context()))
	for range 10 {
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
	}
	require.Equal(t, "unprobed", nodeStats(c).Endpoint)
	require.Equal(t, 1, strings.Count(book.String(), "level="), book.String())
	require.Contains(t, book.String(), "level=INFO")

	_, err := open(t, rdb, Config{Strict: true}).TryAcquire(t.Context(), "k")
	require.ErrorIs(t, err, ErrUnsafeEndpoint)
}

func TestNobodyKnowsWhatIsBehindAProxy(t *testing.T) {
	srv := testserver.New(t)
	dialer := testserver.NewEnvoy(t, testserver.EnvoyUnknown, srv.Dial)
	ep, err := endpoint.Parse("redis://127.0.0.1:6379?proxy=envoy")
	require.NoError(t, err)
	cn, err := conn.New(conn.Config{Role: "locks", Endpoint: ep, Dialer: dialer.Dial, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer cn.Close()
	var book logBook
	c := open(t, cn, Config{Logger: book.logger()})
	require.NoError(t, acquire(t, c, "k").Release(t.Context()))
	require.NoError(t, c.Check(t.Context()))
	require.Equal(t, "unprobed", nodeStats(c).Endpoint)
	require.Equal(t, 1, strings.Count(book.String(), "level=WARN"), book.String())
	require.NotContains(t, dialer.Refused(), "role")
	_, err = New(cn, Config{Strict: true})
	require.ErrorIs(t, err, ErrUnsafeEndpoint)
	require.ErrorContains(t, err, "nobody can tell what is behind a proxy")

	foreign := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", Protocol: 2, DisableIdentity: true, Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return dialer.Dial(ctx, network, addr)
	}})
	defer foreign.Close()
	c = open(t, foreign, Config{})
	require.NoError(t, acquire(t, c, "k").Release(t.Context()))
	require.Equal(t, "unprobed", nodeStats(c).Endpoint)
}

// What passes is no answer.
func TestAServerThatIsNotReadyIsAskedAgain(t *testing.T) {
	srv := testserver.New(t)
	c := open(t, srv.Client(t), Config{})
	for _, msg := range []string{
		"LOADING Redis is loading the dataset in memory", "NOAUTH Authentication required.", "ERR max number of clients reached",
		"BUSY Redis is busy running a script.", "MASTERDOWN Link with MASTER is down", "no upstream host", "upstream failure",
	} {
		for _, command := range []string{"ROLE", "PUBSUB", "INFO"} {
			srv.SetError(msg, command)
			_, err := c.TryAcquire(t.Context(), "k")
			require.ErrorContains(t, err, msg)
			require.Equal(t, "unknown", nodeStats(c).Endpoint)
			srv.SetError("")
		}
	}
	require.NoError(t, acquire(t, c, "k").Release(t.Context()))
	require.Equal(t, "safe", nodeStats(c).Endpoint)
}

func TestStrictAndAllowFailoverManagedExcludeEachOther(t *testing.T) {
	_, err := New(testserver.New(t).Client(t), Config{Strict: true, AllowFailoverManaged: true})
	require.EqualError(t, err, "lock: new: want Strict or AllowFailoverManaged, got both: the one refuses all servers that may fail over, the other takes them")
}
