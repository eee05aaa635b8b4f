package lock

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

// The cases of the test-suites of redislock 0.10 and redsync 4.18 are told again
// here, and in lease_test.go, as far as they have a meaning for leases.
//
// Of redislock, in lease_test.go: a lock is obtained, refused to another, released
// and obtained again; what it tells of its holder; waiting for the other's end, no
// longer than a limit, no longer than a context; many at once; renewal; release of
// what is another's, or was never held. Here: refreshing, several keys.
//
// Of redsync, here: all of its mutex, for a quorum.
//
// Without a meaning here:
//
//   - A caller's own token, with which a lock can be obtained again, or released
//     by who knows it (redsync's split of lock and unlock): tokens are random and
//     used once, since a late delete may be under way. Revoke takes a lease from
//     its holder: see TestWhoDoesNotHoldALeaseCanRevokeIt.
//   - Another TTL at a refresh, and refreshing by hand: a lease is renewed by
//     itself, with the TTL that it was acquired with.
//   - Extending a lock that has expired where nobody has taken it (redsync's
//     SetNXOnExtend): its holder was told that it is lost, and may have stopped.
//   - Retry strategies and delays: waiters queue.
//   - Drivers for other Redis clients, and their pools.

func TestALeaseKeepsTheTTLThatItWasAcquiredWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{TTL: time.Hour})
		long, short := acquire(t, c, "long"), acquire(t, c, "short", TTL(time.Minute))
		time.Sleep(30*time.Minute + time.Second)
		require.InDelta(t, 50*time.Minute, srv.TTL(leaseKeyOf("long")), float64(11*time.Minute))
		require.InDelta(t, 50*time.Second, srv.TTL(leaseKeyOf("short")), float64(11*time.Second))
		require.NoError(t, long.Release(t.Context()))
		require.NoError(t, short.Release(t.Context()))
	})
}

func leaseKeyOf(key string) string { return "redisha:lock:{" + key + "}" }

// flaky fails the next scripts, alone or in a pipeline, without sending them.
type flaky struct{ fails atomic.Int64 }

var errFlaky = errors.New("flaky")

func (f *flaky) fail(cmd redis.Cmder) bool {
	return strings.HasPrefix(cmd.Name(), "eval") && f.fails.Add(-1) >= 0
}

func (*flaky) DialHook(next redis.DialHook) redis.DialHook { return next }

func (f *flaky) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if f.fail(cmd) {
			cmd.SetErr(errFlaky)
			return errFlaky
		}
		return next(ctx, cmd)
	}
}

func (f *flaky) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if !f.fail(cmds[0]) {
			return next(ctx, cmds)
		}
		for _, cmd := range cmds {
			cmd.SetErr(errFlaky)
		}
		return errFlaky
	}
}

func TestARenewalThatFailsForAWhileIsTriedUntilItWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := testserver.New(t).Client(t)
		c := open(t, rdb, Config{TTL: 30 * time.Second})
		l := acquire(t, c, "k")
		f := &flaky{}
		rdb.AddHook(f)
		f.fails.Store(2)
		time.Sleep(time.Minute)
		require.NoError(t, l.Context().Err())
		require.EqualValues(t, 2, c.Stats().RenewFailed)
		require.Negative(t, f.fails.Load())
		require.NoError(t, l.Release(t.Context()))
	})
}

func TestARenewalThatKeepsFailingIsALossForAnotherReasonThanARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := testserver.New(t).Client(t)
		c := open(t, rdb, Config{TTL: 30 * time.Second})
		l := acquire(t, c, "k")
		f := &flaky{}
		rdb.AddHook(f)
		f.fails.Store(1 << 40)
		within(t, l.Context(), time.Hour, ErrLost)
		require.ErrorContains(t, context.Cause(l.Context()), lossReasons[expired])
		f.fails.Store(0)
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
	})
}

// What is refused once is lost: it is not asked for again, and a key that has
// ended does not come back.
func TestARefusedRenewalIsNotTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{TTL: 30 * time.Second})
		start := time.Now()
		l := acquire(t, c, "k")
		srv.Del(leaseKeyOf("k"))
		within(t, l.Context(), time.Hour, ErrLost)
		require.Equal(t, 10*time.Second, time.Since(start), "with the first renewal")
		commands := srv.CommandCount()
		time.Sleep(20 * time.Second)
		require.Equal(t, commands, srv.CommandCount())
		require.False(t, srv.Exists(leaseKeyOf("k")))
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		require.Zero(t, c.Stats().RenewFailed)
	})
}

func TestAReleaseAfterTheEndSaysThatTheLeaseWasLost(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := open(t, rdb, Config{})
		l := acquire(t, c, "k")
		require.NoError(t, rdb.PExpire(t.Context(), leaseKeyOf("k"), time.Millisecond).Err())
		require.Eventually(t, func() bool { return rdb.Exists(t.Context(), leaseKeyOf("k")).Val() == 0 }, time.Minute, time.Millisecond)
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
	})
}

func TestSeveralKeysAreLockedTogetherOrNotAtAll(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{})
		one, two := acquire(t, c, "a", Also("b")), acquire(t, c, "c", Also("d"))
		refused := func(key string, also ...string) {
			t.Helper()
			_, err := c.TryAcquire(ctx, key, Also(also...))
			require.ErrorIs(t, err, ErrNotAcquired)
		}
		refused("b", "c")
		require.NoError(t, one.Release(ctx))
		a := acquire(t, c, "a")
		refused("b", "c") // for c; and b stays free
		require.Zero(t, rdb.Exists(ctx, leaseKeyOf("b")).Val())
		require.NoError(t, two.Release(ctx))
		both := acquire(t, c, "b", Also("c"))
		require.Greater(t, both.Token(), one.Token())
		require.Greater(t, both.Token(), two.Token())
		refused("c")
		require.NoError(t, both.Release(ctx))
		require.NoError(t, a.Release(ctx))
		require.EqualValues(t, 4, rdb.DBSize(ctx).Val(), "four counters")
	})
}

func TestErrorsKeepWhatTheyWrap(t *testing.T) {
	srv := testserver.New(t)
	c := open(t, srv.Client(t), Config{})
	for name, reply := range map[string]string{"a reply": "MISCONF disk is full", "another": "LOADING Redis is loading the dataset in memory"} {
		t.Run(name, func(t *testing.T) {
			srv.SetError(reply)
			defer srv.SetError("")
			_, err := c.TryAcquire(t.Context(), "k")
			var as redis.Error
			require.ErrorAs(t, fmt.Errorf("caller: %w", err), &as)
			require.Contains(t, as.Error(), reply)
			require.NotErrorIs(t, err, ErrNotAcquired)
		})
	}
}

// Scripts are called by their hashes, which the server must know them by.
func TestScriptsAreSentOnce(t *testing.T) {
	rdb := redistest.Shared(t).Client(t)
	ctx := t.Context()
	c := open(t, rdb, Config{TTL: 3 * time.Second})
	unknown := func() string {
		info, err := rdb.Info(ctx, "errorstats").Result()
		require.NoError(t, err)
		for line := range strings.Lines(info) {
			if strings.HasPrefix(line, "errorstat_NOSCRIPT:") {
				return line
			}
		}
		return ""
	}
	round := func() {
		renewed := c.Stats().Renewed
		l := acquire(t, c, "k")
		require.Eventually(t, func() bool { return c.Stats().Renewed > renewed }, time.Minute, time.Millisecond)
		require.NoError(t, l.Release(ctx))
	}
	round()
	before := unknown()
	round()
	require.Equal(t, before, unknown())
}

func TestWhoDoesNotHoldALeaseCanRevokeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		holder, another := open(t, srv.Client(t), Config{Holder: "holder"}), open(t, srv.Client(t), Config{})
		l := acquire(t, holder, "k")
		info, err := another.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "holder", info.Holder)
		require.Equal(t, l.Token(), info.Token)
		revoked, err := another.Revoke(t.Context(), "k", info.Token)
		require.NoError(t, err)
		require.True(t, revoked)
		left := srv.Client(t).PTTL(t.Context(), leaseKeyOf("k")).Val()
		require.Positive(t, left, "the key ends")
		require.LessOrEqual(t, left, holder.cfg.TTL)
		within(t, l.Context(), time.Minute, ErrLost)
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
	})
}

// # redsync: a quorum

func TestEachOfManyGetsTheQuorumOnceAndWithAMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes, clients = 7, 8
		p := newPanel(t, nodes, 30*time.Second)
		var held, most, n atomic.Int64
		var all sync.WaitGroup
		for range clients {
			c := p.open(t, Config{})
			all.Go(func() {
				l, err := c.Acquire(t.Context(), "k")
				if err != nil {
					t.Error(err)
					return
				}
				most.Store(max(most.Load(), held.Add(1)))
				n.Add(1)
				if has := p.has("k"); has <= nodes/2 {
					t.Errorf("%d of %d nodes have it", has, nodes)
				}
				time.Sleep(time.Second)
				held.Add(-1)
				if err := l.Release(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		require.EqualValues(t, clients, n.Load())
		require.EqualValues(t, 1, most.Load(), "at a time")
		p.quiet(t)
	})
}

// With each set of nodes on which another has the key: the lease is had if and
// only if a majority is free, and a failed attempt leaves nothing.
func TestAQuorumNeedsAMajorityOfFreeNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes = 5
		p := newPanel(t, nodes, 30*time.Second)
		c := p.open(t, Config{})
		for mask := range 1 << nodes {
			key := "mask-" + strconv.Itoa(mask)
			free := 0
			for i, srv := range p.servers {
				if mask&(1<<i) == 0 {
					free++
				} else {
					require.NoError(t, srv.Set(leaseKeyOf(key), "1"+strings.Repeat("x", tokenLen-1)))
				}
			}
			l, err := c.TryAcquire(t.Context(), key)
			synctest.Wait()
			if free <= nodes/2 {
				require.ErrorIs(t, err, ErrNotAcquired, "%b", mask)
				time.Sleep(sweepAgain)
				require.Equal(t, nodes-free, p.has(key), "%b: the other's alone", mask)
			} else {
				require.NoError(t, err, "%b", mask)
				require.Equal(t, nodes, p.has(key))
				require.NoError(t, l.Release(t.Context()))
				synctest.Wait()
				require.Equal(t, nodes-free, p.has(key), "%b: a release leaves the other's", mask)
			}
			for _, srv := range p.servers {
				srv.Del(leaseKeyOf(key))
			}
		}
		p.quiet(t, c)
	})
}

func TestRenewalProlongsALeaseOnAllNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 30*time.Second)
		c := p.open(t, Config{})
		l := acquire(t, c, "k")
		for range 10 {
			time.Sleep(25 * time.Second)
			for _, srv := range p.servers {
				require.Greater(t, srv.TTL(leaseKeyOf("k")), 15*time.Second)
			}
		}
		require.NoError(t, l.Release(t.Context()))
		p.quiet(t, c)
	})
}

// A lease that has ended everywhere is not renewed back into life, nor released,
// whether another has taken the lock meanwhile or nobody has.
func TestALeaseOfAQuorumThatHasEndedStaysSo(t *testing.T) {
	for _, taken := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPanel(t, 3, 30*time.Second)
			c, d := p.open(t, Config{}), p.open(t, Config{})
			l := acquire(t, c, "k")
			synctest.Wait()
			for _, srv := range p.servers {
				srv.Del(leaseKeyOf("k"))
			}
			want := 0
			var other *Lease
			if taken {
				other = acquire(t, d, "k")
				synctest.Wait()
				want = 3
			}
			within(t, l.Context(), 11*time.Second, ErrLost)
			require.ErrorIs(t, l.Release(t.Context()), ErrLost)
			time.Sleep(10 * time.Second)
			require.Equal(t, want, p.has("k"))
			if taken {
				require.NoError(t, other.Context().Err())
				require.NoError(t, other.Release(t.Context()))
			}
			p.quiet(t, c, d)
		})
	}
}
