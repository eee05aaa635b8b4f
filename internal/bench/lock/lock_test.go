package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/bench/children"
	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) {
	children.Obey(order.obey)
	redis.SetLogger(quiet{})
	redistest.Main(m)
}

const testTTL = 5 * time.Second

func open(t *testing.T, s side, server *redistest.Server) locker {
	l, err := s.open(settings{addr: server.Addr(), ttl: testTTL})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.end()) })
	return l
}

// Every contender must do the same work.
func TestEverySideTakesTheKeyForItsTTLAndGivesItBack(t *testing.T) {
	server := redistest.Shared(t)
	rdb := server.Client(t)
	for _, s := range sides {
		t.Run(s.name, func(t *testing.T) {
			one, other := open(t, s, server), open(t, s, server)
			for _, take := range []func(context.Context, string) (held, error){one.try, one.acquire} {
				h, err := take(t.Context(), "key")
				require.NoError(t, err)
				left, err := rdb.PTTL(t.Context(), s.key("key")).Result()
				require.NoError(t, err)
				require.InDelta(t, testTTL, left, float64(testTTL/2))
				_, err = other.try(t.Context(), "key")
				require.ErrorIs(t, err, errTaken)

				require.NoError(t, h.Release(t.Context()))
				n, err := rdb.Exists(t.Context(), s.key("key")).Result()
				require.NoError(t, err)
				require.Zero(t, n)
			}
		})
	}
}

func TestEverySideWaits(t *testing.T) {
	server := redistest.Shared(t)
	for _, s := range sides {
		t.Run(s.name, func(t *testing.T) {
			one, other := open(t, s, server), open(t, s, server)
			h, err := one.try(t.Context(), "key")
			require.NoError(t, err)
			released := make(chan error, 1)
			time.AfterFunc(50*time.Millisecond, func() { released <- h.Release(t.Context()) })
			began := time.Now()
			h, err = other.acquire(t.Context(), "key")
			require.NoError(t, err)
			require.GreaterOrEqual(t, time.Since(began), 50*time.Millisecond)
			require.NoError(t, <-released)

			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err = one.acquire(ctx, "key")
			require.Error(t, err, "the wait ends with its context")
			require.NoError(t, h.Release(t.Context()))
		})
	}
}

func TestSidesAreFoundByName(t *testing.T) {
	for _, s := range sides {
		found, err := sideNamed(s.name)
		require.NoError(t, err)
		require.Equal(t, s.name, found.name)
	}
	_, err := sideNamed("nobody")
	require.ErrorContains(t, err, `"nobody"`)
}

func TestQuantileIsOfSortedValues(t *testing.T) {
	var values []time.Duration
	for i := range 100 {
		values = append(values, time.Duration(100-i))
	}
	require.InDelta(t, 51, quantile(values, 0.5), 0)
	require.InDelta(t, 100, quantile(values, 0.99), 0)
	require.InDelta(t, 100, quantile(values, 1), 0)
	require.InDelta(t, 7, quantile([]time.Duration{7}, 0.5), 0)
}

// values returns what record takes down, by way of a comparison of one turn.
func values(t *testing.T, record func(m *harness.B) error, quantities ...harness.Quantity) string {
	var stdout, stderr bytes.Buffer
	topic := harness.Topic{Name: "test", Beside: quantities, Run: func(ctx context.Context, s *harness.Suite) error {
		return s.Compare(ctx, harness.Comparison{Work: "work", Cold: true, Whole: true, Contenders: []harness.Contender{
			{Name: "one", Run: func(_ context.Context, m *harness.B) error { return record(m) }},
		}})
	}}
	require.Zero(t, harness.Run(t.Context(), topic, []string{"-rounds", "1"}, &stdout, &stderr), stderr.String())
	return stdout.String()
}

func TestARaceTellsOfItsWindowAlone(t *testing.T) {
	us := time.Microsecond
	r := &race{
		got: [][]grant{
			{{at: 1, handOver: time.Hour, wait: time.Hour}, {at: 15, handOver: 1 * us, wait: 4 * us}, {at: 16, handOver: 2 * us, wait: 5 * us}},
			{{at: 17, handOver: 3 * us, wait: 6 * us}, {at: 50, handOver: time.Hour, wait: time.Hour}},
		},
		from:  gauge{at: 10, reads: 100, served: 4},
		until: gauge{at: 20, reads: 115, served: 7},
	}
	r.asleep.Store(3)
	report := values(t, r.record, harness.P50, harness.P99, waitP99, readsPerLock, mostToLeast, asleep)
	require.Regexp(t, `\| 2 µs +\| 3 µs +\| 6 µs +\| 5 +\| 2 +\| 3 +\|\n`, report)

	require.ErrorContains(t, (&race{got: [][]grant{{}}}).record(nil), "nobody got the lock")
}

// A lockerOf acquires by a function.
func lockerOf(acquire func(context.Context) (held, error)) locker {
	return locker{acquire: func(ctx context.Context, _ string) (held, error) { return acquire(ctx) }}
}

type releaser func()

func (f releaser) Release(context.Context) error { f(); return nil }

func TestARaceFindsTwoHolders(t *testing.T) {
	server := redistest.Shared(t)
	broken := lockerOf(func(context.Context) (held, error) { return releaser(func() {}), nil })
	r := &race{lockers: []locker{broken, broken}, monitor: server.Client(t)}
	require.ErrorContains(t, r.run(t.Context(), 20*time.Millisecond), "hold the lock at the same time")
}

func TestARaceCountsWhoSleepsOn(t *testing.T) {
	server := redistest.Shared(t)
	free := make(chan struct{}, 1)
	free <- struct{}{}
	good := lockerOf(func(ctx context.Context) (held, error) {
		select {
		case <-free:
			return releaser(func() { free <- struct{}{} }), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	sleeper := lockerOf(func(ctx context.Context) (held, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	r := &race{lockers: []locker{good, sleeper, good}, monitor: server.Client(t)}
	require.NoError(t, r.run(t.Context(), 50*time.Millisecond))
	require.Equal(t, int64(1), r.asleep.Load())
	require.NotEmpty(t, r.got[0])
	require.Empty(t, r.got[1])
	require.Greater(t, r.until.served, r.from.served)

	failed := errors.New("failed")
	broken := lockerOf(func(context.Context) (held, error) { return nil, failed })
	r = &race{lockers: []locker{broken}, monitor: server.Client(t)}
	require.ErrorIs(t, r.run(t.Context(), 50*time.Millisecond), failed)
}

// benchOn is a bench on the server.
func benchOn(t *testing.T, server *redistest.Server) *bench {
	return &bench{Suite: &harness.Suite{Quick: true}, server: server, monitor: server.Client(t)}
}

func TestWhoWaitsBehindAMishapIsServed(t *testing.T) {
	server := redistest.Shared(t)
	b := benchOn(t, server)
	for _, name := range []string{ours, redislockers} {
		s, err := sideNamed(name)
		require.NoError(t, err)
		for what, trial := range map[string]func(context.Context, side) ([]time.Duration, error){
			"gone": b.killWaiters, "stopped": b.stopWaiter, "holder dies": b.killHolder,
		} {
			served, err := trial(t.Context(), s)
			require.NoError(t, err, "%s, %s", name, what)
			require.Len(t, served, trialKeys)
			for _, took := range served {
				require.Greater(t, took, -time.Second/10, "%s, %s", name, what)
			}
		}
	}
}

func TestAStoppedWaiterCostsTheClaim(t *testing.T) {
	b := benchOn(t, redistest.Shared(t))
	served, err := b.stopWaiter(t.Context(), sides[0])
	require.NoError(t, err)
	for _, took := range served {
		require.GreaterOrEqual(t, took, claimTTL-100*time.Millisecond, "it was first in line: else nothing is shown")
	}
}

func TestAChildTellsWhatIsWrong(t *testing.T) {
	_, err := startChild(t.Context(), order{Side: "nobody"})
	require.ErrorContains(t, err, "no contender is called")
	_, err = startChild(t.Context(), order{Side: redislockers, Addr: "127.0.0.1:1", TTL: testTTL})
	require.ErrorContains(t, err, "refused")
}

func TestLeasesAreHeldAndGivenBack(t *testing.T) {
	server := redistest.Shared(t)
	b := benchOn(t, server)
	for _, s := range sides {
		if s.name != ours && s.name != rueidislocks {
			continue
		}
		report := values(t, func(m *harness.B) error { return b.holdLeases(t.Context(), s, 200, 100*time.Millisecond, m) }, lost)
		require.Regexp(t, `\| 0 +\|\n`, report)
		for i := range 200 {
			n, err := b.monitor.Exists(t.Context(), s.key(fmt.Sprintf("lease-%d", i))).Result()
			require.NoError(t, err)
			require.Zero(t, n)
		}
	}
}

func TestInParallelCallsEachOnceAndReturnsAnError(t *testing.T) {
	const n = 1000
	var calls [n]int
	require.NoError(t, inParallel(n, func(i int) error { calls[i]++; return nil }))
	for _, count := range calls {
		require.Equal(t, 1, count)
	}
	failed := errors.New("failed")
	require.ErrorIs(t, inParallel(n, func(i int) error {
		if i%7 == 0 {
			return failed
		}
		return nil
	}), failed)
}

func TestOrphansAreCounted(t *testing.T) {
	server := redistest.Shared(t)
	b := benchOn(t, server)
	b.monitors = []*redis.Client{b.monitor}
	rdb := server.Client(t)
	for _, key := range []string{"lock:{a}", "lock:{b}", "lock:{a}:f"} {
		require.NoError(t, rdb.Set(t.Context(), key, "x", 0).Err())
	}
	require.NoError(t, rdb.RPush(t.Context(), "lock:{a}:q", "x").Err())
	left, err := b.left(t.Context())
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"lock:{a}", "lock:{b}"}, left)
}

func TestCyclesAreCountedAndBounded(t *testing.T) {
	free := releaser(func() {})
	n, failed := new(bench).cycle(t.Context(), locker{try: func(_ context.Context, key string) (held, error) {
		switch key {
		case "shared-0":
			return nil, errTaken
		case "own-7":
			return nil, errors.New("failed")
		}
		return free, nil
	}}, 1000)
	require.Equal(t, int64(1000), n)
	require.LessOrEqual(t, failed, int64(1))
}

func TestAQuickRunComparesAllSides(t *testing.T) {
	redistest.Require(t)
	var stdout, stderr bytes.Buffer
	code := harness.Run(t.Context(), topic, []string{"-quick", "-only", "32 goroutines"}, &stdout, &stderr)
	require.Zero(t, code, stderr.String())
	for _, s := range sides {
		require.Regexp(t, `\| acquire \+ release, 32 goroutines +\| `+s.name+` +\| time/op +\| [\d.]+ .?s `, stdout.String())
	}
	require.NotContains(t, stdout.String(), "hand-over,")
}

func TestNoChildOutlivesATrial(t *testing.T) {
	p, err := startChild(t.Context(), order{Side: redislockers, Addr: redistest.Shared(t).Addr(), TTL: testTTL, Keys: []string{"k"}, Hold: true})
	require.NoError(t, err)
	require.NoError(t, p.Stop())
	p.Kill()
	select {
	case <-p.Ended():
	default:
		t.Fatal("it has not ended")
	}
}

func TestUpkeepIsNotCountedAsReadsOfLocks(t *testing.T) {
	server := redistest.Shared(t)
	rdb := server.Client(t)
	r := &race{monitor: rdb}
	before, err := r.gauge(t.Context())
	require.NoError(t, err)
	for range 5 {
		require.NoError(t, rdb.Ping(t.Context()).Err())
	}
	require.NoError(t, rdb.Set(t.Context(), "key", 1, 0).Err())
	after, err := r.gauge(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(1), after.reads-before.reads)
}
