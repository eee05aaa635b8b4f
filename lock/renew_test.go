package lock

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// slowly is a hook by which pipelines take their time, and which counts how many
// are under way.
type slowly struct {
	takes    func(cmds []redis.Cmder) time.Duration
	n        atomic.Int64
	underWay atomic.Int64
	most     atomic.Int64
}

func (*slowly) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (*slowly) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (s *slowly) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if takes := s.takes(cmds); takes > 0 {
			s.n.Add(1)
			if n := s.underWay.Add(1); n > s.most.Load() {
				s.most.Store(n)
			}
			defer s.underWay.Add(-1)
			time.Sleep(takes)
		}
		return next(ctx, cmds)
	}
}

// about reports whether a command of a pipeline concerns a lock.
func about(cmds []redis.Cmder, key string) bool {
	return slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return strings.Contains(cmd.String(), "{"+key+"}") })
}

func renewsScripts(cmds []redis.Cmder) bool { return strings.HasPrefix(cmds[0].Name(), "eval") }

// However many batches there are and however slow they are, one goroutine renews
// them, as long as no lease has to wait for too long.
func TestOneGoroutineRenewsManyLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		hook := &slowly{takes: func(cmds []redis.Cmder) time.Duration {
			if !renewsScripts(cmds) {
				return 0
			}
			return 120 * time.Millisecond // the last batches are late by more than waitShare
		}}
		c := open(t, rdb, Config{TTL: 3 * time.Second})
		n := 3*batchSize + 1
		leases := make([]*Lease, n)
		for i := range leases {
			leases[i] = acquire(t, c, fmt.Sprint(i))
		}
		rdb.AddHook(hook)
		time.Sleep(5 * time.Second)
		require.GreaterOrEqual(t, hook.n.Load(), int64(16))
		require.EqualValues(t, 1, hook.most.Load())
		for _, l := range leases {
			require.NoError(t, l.Context().Err())
		}
		for _, l := range leases {
			require.NoError(t, l.Release(t.Context()))
		}
		time.Sleep(time.Second) // a batch may be under way, and Close does not wait here
	})
}

// While the renewal of one lease hangs, those of others do not: neither of those
// that were there nor of a short one that is acquired meanwhile.
func TestARenewalThatHangsCostsNoOtherLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		var hangs atomic.Bool
		hook := &slowly{takes: func(cmds []redis.Cmder) time.Duration {
			if renewsScripts(cmds) && about(cmds, "hung") && hangs.CompareAndSwap(true, false) {
				return 2500 * time.Millisecond
			}
			return 0
		}}
		c := open(t, rdb, Config{TTL: time.Minute})
		rdb.AddHook(hook)
		hung := acquire(t, c, "hung", TTL(9*time.Second))
		long := acquire(t, c, "long")
		time.Sleep(time.Second)
		other := acquire(t, c, "other", TTL(7*time.Second))
		hangs.Store(true)
		time.Sleep(2*time.Second + 10*time.Millisecond)
		require.EqualValues(t, 1, hook.underWay.Load(), "due at 3 s")
		short := acquire(t, c, "short", TTL(MinTTL))
		time.Sleep(2 * time.Second)
		require.EqualValues(t, 1, hook.underWay.Load())
		for _, l := range []*Lease{long, other, short} {
			require.NoError(t, l.Context().Err(), l.Key())
		}
		time.Sleep(time.Second)
		require.Zero(t, hook.underWay.Load())
		for _, l := range []*Lease{hung, long, other, short} {
			require.NoError(t, l.Context().Err(), l.Key())
			require.NoError(t, l.Release(t.Context()))
		}
	})
}

// A lease that nobody renews is lost in time, though it gets its timer late.
func TestALeaseHasItsTimerFromItsFirstRenewalOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{TTL: 9 * time.Second})
		start := time.Now()
		l := acquire(t, c, "k")
		timed := func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.timer != nil
		}
		time.Sleep(2900 * time.Millisecond)
		require.False(t, timed())
		srv.Hang(true)
		time.Sleep(200 * time.Millisecond)
		require.True(t, timed())
		<-l.Context().Done()
		require.ErrorIs(t, context.Cause(l.Context()), ErrLost)
		require.Equal(t, deadline(9*time.Second), time.Since(start))
		srv.Hang(false)
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
	})
}

// However many leases are due at once, each is lost in time when the server hangs.
func TestEachOfManyLeasesIsLostInTimeWhenTheServerHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = MinTTL
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{TTL: ttl})
		srv.Hang(true)
		n := 10 * batchSize
		late := make(chan time.Duration, n)
		start := time.Now()
		held, err := redislock.New(sentAlready{}).Obtain(t.Context(), "k", ttl, nil)
		require.NoError(t, err)
		r := &request{options: options{ttl: ttl}, locks: []string{"k"}, counts: c.counts.class("default")}
		for range n {
			l := newLease(t.Context(), c, r, []*redislock.Lock{held}, 1, ttl, start, c.clock.skew())
			require.NoError(t, l.start())
			context.AfterFunc(l.Context(), func() { late <- time.Since(start) - deadline(ttl) })
		}
		for range n {
			require.LessOrEqual(t, <-late, time.Duration(0))
		}
		srv.Stop()
		time.Sleep(10 * time.Second)
	})
}

// A lease that was handed over lives for two seconds alone, whatever its TTL is.
func TestALeaseThatWasHandedOverIsRenewedWhileAnotherRenewalHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		var hangs atomic.Bool
		hook := &slowly{takes: func(cmds []redis.Cmder) time.Duration {
			if renewsScripts(cmds) && about(cmds, "hung") && hangs.CompareAndSwap(true, false) {
				return 2500 * time.Millisecond
			}
			return 0
		}}
		c := open(t, rdb, Config{TTL: 30 * time.Second})
		rdb.AddHook(hook)
		hung := acquire(t, c, "hung")
		hangs.Store(true)
		time.Sleep(10*time.Second + time.Millisecond)
		require.EqualValues(t, 1, hook.underWay.Load())

		r, err := c.request(t.Context(), "k", nil)
		require.NoError(t, err)
		defer c.leave()
		r.entry = "as one who has queued"
		g, err := c.store.(single).node.obtain(t.Context(), r)
		require.NoError(t, err)
		since := time.Now().Add(-claimTTL/2 + time.Millisecond) // a message that came late
		l := newLease(t.Context(), c, r, []*redislock.Lock{g.held}, g.token, claimTTL, since, c.clock.skew())
		require.NoError(t, l.start())
		time.Sleep(claimTTL)
		for _, l := range []*Lease{l, hung} {
			require.NoError(t, l.Context().Err(), l.Key())
			require.NoError(t, l.Release(t.Context()))
		}
		time.Sleep(2 * time.Second)
	})
}
