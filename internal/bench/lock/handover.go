package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/harness"
)

const (
	waiters  = 16
	holdTime = time.Millisecond
	restTime = 5 * time.Millisecond

	// settleIn is how long waiters run before they are looked at, and on after.
	settleIn = 300 * time.Millisecond

	// drainTime is how long those who wait are given when the turn is over.
	drainTime = 2 * time.Second

	// patience is how long a lock may take that somebody waits for.
	patience = 30 * time.Second
)

// What hand-overs are measured by; harness.P50 and harness.P99 are theirs.
var (
	waitP99      = harness.Quantity{Name: "wait p99"}
	readsPerLock = harness.Quantity{Name: "reads/lock", Unit: harness.Count}
	mostToLeast  = harness.Quantity{Name: "most/least served", Unit: harness.Count}
	asleep       = harness.Quantity{Name: "asleep, the lock free", Unit: harness.Count}
)

// handOver has many clients want one lock, who either do something else after
// they had it, so that it must go to another, or want it again at once.
func (b *bench) handOver(ctx context.Context) error {
	const others, again = "hand-over, 16 clients", "hand-over, 16 clients who want it again at once"
	if !b.Wants(others, again) {
		return nil
	}
	b.Setting("Hand-over: %d clients with connections of their own acquire one lock, hold it for %s, release it, rest for %s or not at all, and want it again. It is measured from the holder's call of release to the return of the next acquisition, whoever's that is; "+
		"one process, one clock. Who polls and wants it again at once mostly gets it himself, which makes his hand-over short and the others' wait long. most/least: of the locks that each client got in a turn. "+
		"reads/lock: the server's `total_reads_processed`, which counts reads of sockets, through the locks, within the turn, but for PING, ROLE and INFO, which clients send for other reasons. asleep: who still waited %s after the others had left.", waiters, holdTime, restTime, drainTime)
	best := func(q harness.Quantity, ratio float64, against ...string) harness.Target {
		return harness.Target{Contender: ours, Quantity: q, Limit: harness.AtMost(ratio, harness.Ratio), Against: against}
	}
	worst := func(q harness.Quantity, bound float64) harness.Target {
		return harness.Target{Contender: ours, Quantity: q, Limit: harness.AtMost(bound, harness.Worst)}
	}
	for _, w := range []struct {
		work    string
		rest    time.Duration
		targets []harness.Target
	}{
		{others, restTime, []harness.Target{best(harness.P50, 1./3, rueidislocks), best(harness.P99, 0.1, redislockers, redsyncers), worst(readsPerLock, 3)}},
		{again, 0, []harness.Target{best(harness.P50, 1./3, rueidislocks), worst(asleep, 0), worst(mostToLeast, 1.1), worst(readsPerLock, 3)}},
	} {
		c := harness.Comparison{Work: w.work, Quantity: harness.P50, Slice: b.slice(1500 * time.Millisecond), Cold: true, Targets: w.targets}
		for _, s := range sides {
			c.Contenders = append(c.Contenders, b.relay(s, w.rest))
		}
		if err := b.Compare(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// relay is a side's turns, of clients that are opened once.
func (b *bench) relay(s side, rest time.Duration) harness.Contender {
	var lockers []locker
	return harness.Contender{
		Name: s.name,
		Setup: func(context.Context) error {
			for range waiters {
				l, err := s.open(settings{addr: b.server.Addr(), ttl: ttl})
				if err != nil {
					return err
				}
				lockers = append(lockers, l)
			}
			return nil
		},
		Run: func(ctx context.Context, m *harness.B) error {
			r := &race{key: "handover", rest: rest, lockers: lockers, monitor: b.monitor}
			if err := r.run(ctx, m.Slice()); err != nil {
				return err
			}
			return r.record(m)
		},
		Close: func() (err error) {
			for _, l := range lockers {
				err = errors.Join(err, l.end())
			}
			return err
		},
	}
}

// A race is a turn in which all lockers want one lock.
type race struct {
	key     string
	rest    time.Duration // after a release
	lockers []locker
	monitor *redis.Client

	began    time.Time
	holders  atomic.Int32
	released atomic.Int64 // when the last holder called release, in ns since began
	served   atomic.Int64
	over     atomic.Bool
	asleep   atomic.Int64 // who waited in vain when the race was over

	got         [][]grant // by locker
	from, until gauge     // the window that is looked at
}

// A grant is a lock that a locker got. Instants are since the race began.
type grant struct {
	at       time.Duration
	wait     time.Duration
	handOver time.Duration
}

// A gauge is what the server and the holders have done up to an instant.
type gauge struct {
	at     time.Duration
	reads  int64
	served int64
}

// run has all lockers run, looks at a window of the given length, and ends when
// each has had its turn.
func (r *race) run(ctx context.Context, window time.Duration) error {
	waiting, giveUp := context.WithCancel(ctx)
	defer giveUp()
	r.began = time.Now()
	r.released.Store(-1)
	r.got = make([][]grant, len(r.lockers))
	errs := make([]error, len(r.lockers)+1)
	var running sync.WaitGroup
	for i, l := range r.lockers {
		running.Go(func() {
			if r.got[i], errs[i] = r.wants(waiting, l); errs[i] != nil {
				r.over.Store(true)
			}
		})
	}
	errs[len(r.lockers)] = r.watch(ctx, window)
	r.over.Store(true)
	// Who waits still gets the lock, unless he sleeps on while nobody has it.
	last := time.AfterFunc(drainTime, giveUp)
	running.Wait()
	last.Stop()
	return errors.Join(errs...)
}

// watch takes the gauges.
func (r *race) watch(ctx context.Context, window time.Duration) (err error) {
	time.Sleep(settleIn)
	if r.from, err = r.gauge(ctx); err != nil {
		return err
	}
	time.Sleep(window)
	if r.until, err = r.gauge(ctx); err != nil {
		return err
	}
	time.Sleep(settleIn / 10)
	return nil
}

func (r *race) gauge(ctx context.Context) (g gauge, err error) {
	others, err := upkeepCalls(ctx, r.monitor)
	if err != nil {
		return g, err
	}
	g.at, g.served = time.Since(r.began), r.served.Load()
	if g.reads, err = infoNumber(ctx, r.monitor, "stats", "Stats", "total_reads_processed"); err != nil {
		return g, err
	}
	g.reads -= others
	return g, nil
}

// upkeep are commands that clients send whether there are locks or not, each in
// a read of its own.
var upkeep = []string{"ping", "role", "hello", "info"}

// upkeepCalls returns how many of those the server has executed.
func upkeepCalls(ctx context.Context, rdb *redis.Client) (n int64, err error) {
	info, err := rdb.InfoMap(ctx, "commandstats").Result()
	if err != nil {
		return 0, err
	}
	for _, name := range upkeep {
		fields := info["Commandstats"]["cmdstat_"+name]
		if fields == "" {
			continue
		}
		var calls int64
		if _, err := fmt.Sscanf(fields, "calls=%d,", &calls); err != nil {
			return 0, fmt.Errorf("INFO: %s is %q: %w", name, fields, err)
		}
		n += calls
	}
	return n, nil
}

// infoNumber returns a number from INFO (https://redis.io/commands/info).
func infoNumber(ctx context.Context, rdb *redis.Client, section, heading, name string) (int64, error) {
	info, err := rdb.InfoMap(ctx, section).Result()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(info[heading][name], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("INFO: %s: %w", name, err)
	}
	return n, nil
}

// wants acquires, holds and releases until the race is over.
func (r *race) wants(ctx context.Context, l locker) (got []grant, err error) {
	for !r.over.Load() {
		asked := time.Since(r.began)
		h, err := l.acquire(ctx, r.key)
		now := time.Since(r.began)
		if err != nil {
			if r.over.Load() && ctx.Err() != nil {
				r.asleep.Add(1)
				return got, nil
			}
			return got, withCause(ctx, err)
		}
		if n := r.holders.Add(1); n != 1 {
			return got, fmt.Errorf("%d hold the lock at the same time", n)
		}
		g := grant{at: now, wait: now - asked, handOver: -1}
		if last := r.released.Load(); last >= 0 {
			g.handOver = now - time.Duration(last)
		}
		got = append(got, g)
		r.served.Add(1)
		time.Sleep(holdTime)
		r.holders.Add(-1)
		r.released.Store(int64(time.Since(r.began)))
		if err := h.Release(ctx); err != nil {
			return got, err
		}
		time.Sleep(r.rest)
	}
	return got, nil
}

// withCause adds why ctx has ended, which not all contenders tell.
func withCause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// record takes down what was seen within the window.
func (r *race) record(m *harness.B) error {
	var handOvers, waits []time.Duration
	most, least := 0, -1
	for _, got := range r.got {
		n := 0
		for _, g := range got {
			if g.at < r.from.at || g.at > r.until.at {
				continue
			}
			n++
			handOvers = append(handOvers, g.handOver)
			waits = append(waits, g.wait)
		}
		most = max(most, n)
		if least < 0 || n < least {
			least = n
		}
	}
	locks := r.until.served - r.from.served
	if len(handOvers) == 0 || locks == 0 {
		return errors.New("nobody got the lock while it was looked at")
	}
	m.Record(harness.P50, quantile(handOvers, 0.5))
	m.Record(harness.P99, quantile(handOvers, 0.99))
	m.Record(waitP99, quantile(waits, 0.99))
	m.Record(asleep, float64(r.asleep.Load()))
	m.Record(mostToLeast, float64(most)/float64(max(least, 1)))
	// A turn begins and ends amid locks, so that thousandths mean nothing.
	m.Record(readsPerLock, math.Round(100*float64(r.until.reads-r.from.reads)/float64(locks))/100)
	return nil
}

// quantile returns the value that a part q of the values does not exceed, in
// nanoseconds. It sorts them.
func quantile(values []time.Duration, q float64) float64 {
	slices.Sort(values)
	return float64(values[min(int(q*float64(len(values))), len(values)-1)])
}
