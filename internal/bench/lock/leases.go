package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/harness"
)

const (
	leasesWork = "10,000 held leases"
	leaseCount = 10000

	// takers is how many goroutines acquire and release the leases.
	takers = 32
)

// A second of one lease is the operation whose costs are told.
var (
	lost       = harness.Quantity{Name: "lost", Unit: harness.Count}
	goroutines = harness.Quantity{Name: "goroutines added", Unit: harness.Count}
	commands   = harness.Quantity{Name: "commands/s", Unit: harness.Rate}
)

// manyLeases holds many leases at once, which are to be renewed.
func (b *bench) manyLeases(ctx context.Context) error {
	if !b.Wants(leasesWork) {
		return nil
	}
	b.Setting("Held leases: %d of TTL %s, acquired by %d goroutines, then held for two TTLs (a quick run: a tenth of them, for two fifths of a TTL: one renewal each). goroutines added: the most that was seen while they were held, looked at each 2 ms, but for one look in a hundred, less the fewest (a client looks after its endpoint for a moment each second). "+
		"lost: whose context had ended. CPU/op: of a lease and a second. commands/s: as the server counts them, with those within scripts. redislock and redsync do not renew.", leaseCount, ttl, takers)
	worst := func(q harness.Quantity, bound float64) harness.Target {
		return harness.Target{Contender: ours, Quantity: q, Limit: harness.AtMost(bound, harness.Worst)}
	}
	c := harness.Comparison{
		Work: leasesWork, Quantity: goroutines, Cold: true, Slice: 2 * ttl,
		Targets: []harness.Target{worst(goroutines, 1), worst(lost, 0)},
	}
	for _, s := range sides {
		if s.name != ours && s.name != rueidislocks {
			continue
		}
		c.Contenders = append(c.Contenders, harness.Contender{Name: s.name, Run: func(ctx context.Context, m *harness.B) error {
			span, count := m.Slice(), leaseCount
			if b.Quick {
				span, count = ttl*2/5, leaseCount/10
			}
			return b.holdLeases(ctx, s, count, span, m)
		}})
	}
	return b.Compare(ctx, c)
}

// holdLeases acquires count leases, holds them for so long, and releases them.
func (b *bench) holdLeases(ctx context.Context, s side, count int, span time.Duration, m *harness.B) (err error) {
	l, err := s.open(settings{addr: b.server.Addr(), ttl: ttl})
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := l.end(); err == nil {
			err = closeErr
		}
	}()
	h, err := l.try(ctx, "lease-first") // connects, and starts what is always there
	if err != nil {
		return err
	}
	if err := h.Release(ctx); err != nil {
		return err
	}
	before := fewestGoroutines()
	leases := make([]held, count)
	if err := inParallel(count, func(i int) (err error) {
		leases[i], err = l.try(ctx, fmt.Sprintf("lease-%d", i))
		return err
	}); err != nil {
		return fmt.Errorf("acquire: %w", err)
	}
	if err := b.watchLeases(ctx, span, count, before, m); err != nil {
		return err
	}
	n := 0
	for _, h := range leases {
		if w, ok := h.(watched); ok && w.Context().Err() != nil {
			n++
		}
	}
	m.Record(lost, float64(n))
	return inParallel(count, func(i int) error {
		err := leases[i].Release(ctx)
		if n > 0 {
			return nil // told above
		}
		return err
	})
}

// fewestGoroutines returns how many there are when nothing is under way.
func fewestGoroutines() int {
	n := runtime.NumGoroutine()
	for range 100 {
		time.Sleep(time.Millisecond)
		n = min(n, runtime.NumGoroutine())
	}
	return n
}

// watchLeases looks at what holding costs.
func (b *bench) watchLeases(ctx context.Context, span time.Duration, count, before int, m *harness.B) error {
	runtime.GC()
	from, err := b.costs(ctx)
	if err != nil {
		return err
	}
	var seen []int
	fewest := before // go-redis may end one of its own meanwhile
	for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		n := runtime.NumGoroutine()
		seen, fewest = append(seen, n), min(fewest, n)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	until, err := b.costs(ctx)
	if err != nil {
		return err
	}
	took := until.at.Sub(from.at)
	ops := float64(count) * took.Seconds()
	slices.Sort(seen)
	m.Record(goroutines, float64(seen[len(seen)*99/100]-fewest))
	m.Record(harness.ClientCPU, float64(until.client-from.client)/ops)
	m.Record(harness.ServerCPU, float64(until.server-from.server)/ops)
	m.Record(commands, float64(until.commands-from.commands)/took.Seconds())
	return nil
}

// costs are what was used up to an instant.
type costs struct {
	at             time.Time
	client, server time.Duration
	commands       int64
}

func (b *bench) costs(ctx context.Context) (c costs, err error) {
	c.at = time.Now()
	c.client, _ = harness.ProcessCPU()
	if c.server, err = serverCPU(ctx, b.monitor); err != nil {
		return c, err
	}
	c.commands, err = infoNumber(ctx, b.monitor, "stats", "Stats", "total_commands_processed")
	return c, err
}

// inParallel calls f with all numbers below n, from several goroutines, and
// returns one of the errors.
func inParallel(n int, f func(i int) error) error {
	var running sync.WaitGroup
	errs := make(chan error, takers)
	for first := range takers {
		running.Go(func() {
			for i := first; i < n; i += takers {
				if err := f(i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	running.Wait()
	close(errs)
	return <-errs
}

// serverCPU returns the CPU time that the server has used, user and system.
func serverCPU(ctx context.Context, rdb *redis.Client) (used time.Duration, err error) {
	info, err := rdb.InfoMap(ctx, "cpu").Result()
	if err != nil {
		return 0, err
	}
	for _, name := range []string{"used_cpu_user", "used_cpu_sys"} {
		d, err := time.ParseDuration(info["CPU"][name] + "s")
		if err != nil {
			return 0, fmt.Errorf("INFO: %s: %w", name, err)
		}
		used += d
	}
	return used, nil
}
