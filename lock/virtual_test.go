package lock

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/testserver"
)

func TestRenewalKeepsALeaseForHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{TTL: 30 * time.Second})
		l := acquire(t, c, "report")
		for range 6 * 4 {
			time.Sleep(15 * time.Minute)
			require.NoError(t, l.Context().Err())
			require.Greater(t, srv.TTL("redisha:lock:{report}"), 19*time.Second, "renewed each 10 s")
		}
		token := l.Token()
		require.NoError(t, l.Release(t.Context()))
		require.InDelta(t, 6*360, c.Stats().Renewed, 1, "not more often than each third of the TTL")
		require.Greater(t, acquire(t, c, "report").Token(), token)
	})
}

// deadline is when a lease ends that is not renewed: 1 % and 2 ms before its key.
func deadline(ttl time.Duration) time.Duration { return ttl - ttl/100 - 2*time.Millisecond }

func TestALeaseEndsJustBeforeItsKeyWhenTheServerIsAway(t *testing.T) {
	disturb := map[string]func(*testserver.Server, *network){
		"stopped": func(srv *testserver.Server, _ *network) { srv.Stop() },
		"silent":  func(_ *testserver.Server, n *network) { n.silence(true) },
		"loading": func(srv *testserver.Server, _ *network) {
			srv.SetError("LOADING Redis is loading the dataset in memory")
		},
	}
	for name, disturb := range disturb {
		for _, ttl := range []time.Duration{MinTTL, time.Second, 30 * time.Second, time.Hour} {
			t.Run(name+"/"+ttl.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					srv := testserver.New(t)
					rdb, n := throughNetwork(t, srv)
					var book logBook
					c := open(t, rdb, Config{TTL: ttl, Logger: book.logger()})
					start := time.Now()
					l := acquire(t, c, "report")
					disturb(srv, n)
					within(t, l.Context(), 2*time.Hour, ErrLost)
					require.Equal(t, deadline(ttl), time.Since(start), "exactly: time is virtual")
					require.ErrorIs(t, context.Cause(l.Context()), ErrLost)
					require.EqualError(t, context.Cause(l.Context()), `lock: "report": lease lost: it was not renewed in time`)
					require.Equal(t, context.Cause(l.Context()), l.Release(t.Context()))
					require.Contains(t, book.String(), `level=WARN msg="lease lost" key=report token=`)
					require.Equal(t, LossCount{Cause: "expired", Count: 1}, total(c).Lost[expired])
					if ttl > MinTTL { // else the first renewal is still waiting
						require.Positive(t, c.Stats().RenewFailed)
					}
					require.Zero(t, total(c).Held)
				})
			})
		}
	}
}

func TestARenewedLeaseEndsJustBeforeItsKeyToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 30 * time.Second
		srv := testserver.New(t)
		rdb, n := throughNetwork(t, srv)
		c := open(t, rdb, Config{TTL: ttl})
		start := time.Now()
		l := acquire(t, c, "report")
		time.Sleep(75 * time.Second)
		n.silence(true) // the last renewal was after 70 s
		within(t, l.Context(), 2*time.Hour, ErrLost)
		require.Equal(t, 70*time.Second+deadline(ttl), time.Since(start))
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
	})
}

func TestALeaseSurvivesAnOutageShorterThanWhatItHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb, n := throughNetwork(t, srv)
		c := open(t, rdb, Config{TTL: 30 * time.Second})
		l := acquire(t, c, "report")
		for _, outage := range []func(on bool){
			n.silence,
			func(on bool) {
				if on {
					srv.Stop()
				} else {
					require.NoError(t, srv.Restart())
				}
			},
		} {
			outage(true)
			time.Sleep(19 * time.Second)
			outage(false)
			time.Sleep(9 * time.Second)
			require.NoError(t, l.Context().Err(), "it is renewed as soon as that works")
		}
		time.Sleep(time.Hour)
		require.NoError(t, l.Release(t.Context()))
	})
}

func TestARenewalWhoseAnswerIsCutCountsAsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb, n := throughNetwork(t, srv)
		c := open(t, rdb, Config{TTL: 30 * time.Second})
		start := time.Now()
		l := acquire(t, c, "report")
		n.cutAfter(0)
		within(t, l.Context(), 2*time.Hour, ErrLost)
		require.Equal(t, deadline(30*time.Second), time.Since(start))
		require.True(t, srv.Exists("redisha:lock:{report}"), "the server has renewed it")
		n.cutAfter(-1)
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		synctest.Wait()
		require.Empty(t, leaseKeys(srv), "Release deletes what is left of it")
	})
}

func TestALeaseIsLostWithTheNextRenewalWhenItsKeyIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{TTL: 30 * time.Second})
		for name, disturb := range map[string]func(){
			"deleted": func() { srv.Del("redisha:lock:{k}") },
			"flushed": srv.FlushAll,
			"stolen":  func() { require.NoError(t, srv.Set("redisha:lock:{k}", newToken())) },
		} {
			start := time.Now()
			l := acquire(t, c, "k")
			disturb()
			within(t, l.Context(), 2*time.Hour, ErrLost)
			require.Equal(t, 10*time.Second, time.Since(start), name)
			require.ErrorIs(t, context.Cause(l.Context()), ErrLost)
			srv.Del("redisha:lock:{k}")
		}
	})
}

func TestALeaseIsLostWhenTheClockJumps(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, 400 * time.Millisecond, -time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			srv := testserver.New(t)
			c := open(t, srv.Client(t), Config{TTL: 30 * time.Second})
			var shift atomic.Int64
			start := c.clock.start
			c.clock.wall = func(at time.Time) time.Time {
				if at.Equal(start) {
					return at.Round(0)
				}
				return at.Round(0).Add(time.Duration(shift.Load()))
			}
			l := acquire(t, c, "k")
			time.Sleep(5*time.Second + time.Millisecond)
			shift.Store(int64(300 * time.Millisecond)) // within the margin of 302 ms
			time.Sleep(2 * time.Second)
			require.NoError(t, l.Context().Err())
			shift.Store(int64(step))
			within(t, l.Context(), time.Second, ErrLost)
			require.ErrorContains(t, context.Cause(l.Context()), "the machine's clock jumped")
			require.Equal(t, LossCount{Cause: "clock", Count: 1}, total(c).Lost[clockJump])
			require.ErrorIs(t, l.Release(t.Context()), ErrLost)
			synctest.Wait()
			require.Empty(t, leaseKeys(srv))

			l = acquire(t, c, "k") // the new offset is the normal one now
			time.Sleep(time.Minute)
			require.NoError(t, l.Release(t.Context()))
		})
	}
}

func TestAnAnswerThatComesTooLateIsNoLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		opt := srv.Options()
		opt.MaxRetries, opt.ReadTimeout, opt.ContextTimeoutEnabled = -1, time.Hour, false
		rdb := redis.NewClient(opt)
		defer rdb.Close()
		c := open(t, rdb, Config{TTL: time.Second})
		require.NoError(t, acquire(t, c, "k").Release(t.Context())) // loads the scripts
		rdb.AddHook(slow{990 * time.Millisecond})
		_, err := c.TryAcquire(t.Context(), "k")
		require.EqualError(t, err, `lock: acquire "k": the answer came too late for a lease of 1s`)
		time.Sleep(3 * time.Second)
		require.Empty(t, leaseKeys(srv))
		require.EqualValues(t, 1, total(c).Failed)
	})
}

// slow delays the answers to scripts and pipelines.
type slow struct{ by time.Duration }

func (slow) DialHook(next redis.DialHook) redis.DialHook { return next }
func (s slow) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" {
			defer time.Sleep(s.by)
		}
		return next(ctx, cmd)
	}
}

func (s slow) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		defer time.Sleep(s.by)
		return next(ctx, cmds)
	}
}

func TestAHookThatSwallowsCommandsIsNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		c := open(t, rdb, Config{TTL: 30 * time.Second})
		start := time.Now()
		l := acquire(t, c, "k")
		other := acquire(t, c, "other")
		rdb.AddHook(swallow{})
		require.ErrorContains(t, other.Release(t.Context()), "no answer")
		within(t, l.Context(), 2*time.Hour, ErrLost)
		require.Equal(t, deadline(30*time.Second), time.Since(start))
		_, err := c.TryAcquire(t.Context(), "other")
		require.ErrorContains(t, err, "no answer")
	})
}

// swallow sends neither scripts nor pipelines and says so to nobody.
type swallow struct{}

func (swallow) DialHook(next redis.DialHook) redis.DialHook { return next }
func (swallow) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" {
			return nil
		}
		return next(ctx, cmd)
	}
}

func (swallow) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(context.Context, []redis.Cmder) error { return nil }
}

func TestLeasesAreRenewedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		counter := &pipelines{}
		c := open(t, rdb, Config{TTL: 30 * time.Second})
		n := batchSize + 10
		if testing.Short() {
			n = 100
		}
		leases := make([]*Lease, n)
		for i := range leases { // spread over 0.5 s
			time.Sleep(500 * time.Microsecond)
			leases[i] = acquire(t, c, string(rune('a'+i%26))+time.Duration(i).String())
		}
		time.Sleep(11 * time.Second) // the first round loads the script
		rdb.AddHook(counter)
		time.Sleep(20 * time.Second)
		require.EqualValues(t, 2*((n+batchSize-1)/batchSize), counter.n.Load(), "each 10 s")
		require.EqualValues(t, 2*n, counter.cmds.Load())
		require.EqualValues(t, n, total(c).Held)
		for _, l := range leases {
			require.NoError(t, l.Context().Err())
			require.NoError(t, l.Release(t.Context()))
		}
		require.Zero(t, total(c).Held)
	})
}

type pipelines struct{ n, cmds atomic.Int64 }

func (*pipelines) DialHook(next redis.DialHook) redis.DialHook { return next }
func (p *pipelines) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" {
			p.n.Add(1)
			p.cmds.Add(1)
		}
		return next(ctx, cmd)
	}
}
func (p *pipelines) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if cmds[0].Name() == "role" { // of the watch
			return next(ctx, cmds)
		}
		p.n.Add(1)
		p.cmds.Add(int64(len(cmds)))
		return next(ctx, cmds)
	}
}

func TestRenewalsSendTheirScriptToAServerThatForgotIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		c := open(t, rdb, Config{TTL: 30 * time.Second})
		a, b := acquire(t, c, "a"), acquire(t, c, "b")
		for range 10 {
			require.NoError(t, rdb.ScriptFlush(t.Context()).Err())
			time.Sleep(10 * time.Second)
		}
		require.Zero(t, c.Stats().RenewFailed)
		require.NoError(t, a.Release(t.Context()))
		require.NoError(t, b.Release(t.Context()))
	})
}

func TestRenewalAndReleasePassAnOpenBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		cn := ownClient(t, srv)
		c := open(t, cn, Config{TTL: 3 * time.Second})
		kept, given := acquire(t, c, "kept"), acquire(t, c, "given")
		time.Sleep(900 * time.Millisecond)
		srv.Stop()
		for range 10 {
			require.Error(t, cn.Ping(t.Context()).Err())
		}
		require.NoError(t, srv.Restart())
		_, err := c.TryAcquire(t.Context(), "new")
		require.ErrorIs(t, err, breaker.ErrOpen)
		require.NoError(t, given.Release(t.Context()))
		time.Sleep(110 * time.Millisecond) // the renewal after 1 s
		require.EqualValues(t, 1, c.Stats().Renewed)
		_, err = c.TryAcquire(t.Context(), "new")
		require.ErrorIs(t, err, breaker.ErrOpen, "it was open all the time")
		time.Sleep(time.Minute)
		require.NoError(t, kept.Release(t.Context()))
		require.Empty(t, leaseKeys(srv))
	})
}

func TestAWaiterIsServedSoonAfterTheOthersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{})
		require.NoError(t, srv.Set("redisha:lock:{k}", newToken()))
		srv.SetTTL("redisha:lock:{k}", 1001*time.Millisecond)
		start := time.Now()
		l, err := c.Acquire(t.Context(), "k")
		require.NoError(t, err)
		require.GreaterOrEqual(t, time.Since(start), 1001*time.Millisecond)
		require.Less(t, time.Since(start), 1001*time.Millisecond+2*checkJitter, "somebody looks at the lease's end")
		require.NoError(t, l.Release(t.Context()))
		require.EqualValues(t, 1, total(c).Wait.Count)
	})
}

func TestWhoWaitsForSeveralKeysPollsLessAndLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		counter := &pipelines{}
		c := open(t, rdb, Config{})
		l := acquire(t, c, "k", TTL(time.Hour))
		rdb.AddHook(counter)
		_, err := c.Acquire(t.Context(), "k", Also("other"), MaxWait(time.Minute))
		require.ErrorIs(t, err, ErrNotAcquired)
		require.LessOrEqual(t, int(counter.n.Load()), 2*int(time.Minute/pollMax)+10)
		require.GreaterOrEqual(t, int(counter.n.Load()), int(time.Minute/pollMax))
		require.NoError(t, l.Release(t.Context()))
	})
}

func TestMaxWaitBoundsTheWaitAndNotTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, testserver.New(t).Client(t), Config{})
		start := time.Now()
		l, err := c.Acquire(t.Context(), "k", MaxWait(time.Minute))
		require.NoError(t, err)
		_, err = c.Acquire(t.Context(), "k", MaxWait(time.Minute))
		require.ErrorIs(t, err, ErrNotAcquired)
		require.Equal(t, time.Minute, time.Since(start))
		time.Sleep(time.Hour)
		require.NoError(t, l.Context().Err())
		require.NoError(t, l.Release(t.Context()))
	})
}

func TestALeaseOutlivesItsParentUntilItsHolderLetsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{TTL: 30 * time.Second})
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errTest)
		defer cancel()
		l, err := c.TryAcquire(ctx, "k")
		require.NoError(t, err)
		within(t, l.Context(), 2*time.Minute, errTest)
		time.Sleep(time.Hour)
		require.True(t, srv.Exists("redisha:lock:{k}"), "its holder may still be at work")
		require.NoError(t, l.Release(ctx))
		require.Empty(t, leaseKeys(srv))
	})
}
