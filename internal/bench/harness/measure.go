package harness

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// A B is one turn of one contender: it takes down what was measured.
type B struct {
	slice  time.Duration
	values map[Quantity]float64
}

// Slice is how long [B.Measure] measures: Comparison.Slice.
func (b *B) Slice() time.Duration { return b.slice }

// Record takes down a value, in the unit of q. A second value of q in the same
// turn replaces the first; NaN says that there is none.
func (b *B) Record(q Quantity, value float64) { b.values[q] = value }

// A Load says how operations are called.
type Load struct {
	// Callers is how many goroutines call the operation, one after the other
	// each. Defaults to 1.
	Callers int

	// Count is how many operations are called in all. Defaults to as many as
	// end within B.Slice.
	Count int

	// TimeEvery is which operations of a caller are timed for P50 and P99: 10
	// is every tenth. Defaults to 1, which costs some 100 ns an operation;
	// negative: none, and no P50 and P99.
	TimeEvery int

	// Servers are clients of the servers whose CPU time counts, which no
	// contender uses. Defaults to none, and no ServerCPU.
	Servers []*redis.Client
}

// Measure calls op from Load.Callers goroutines at once and records all the
// quantities of this package. op gets the number of the caller and of the
// caller's call, both from 0. Its first error ends the measuring.
//
// The heap is collected first, so that no contender pays for another's garbage.
// CPU time and allocations are those of the whole process: nothing else should
// run in it.
func (b *B) Measure(ctx context.Context, load Load, op func(ctx context.Context, caller, n int) error) error {
	if load.Callers < 0 || load.Count < 0 {
		return fmt.Errorf("measure: Callers is %d and Count %d, want at least 1, or 0 for the default", load.Callers, load.Count)
	}
	m := measuring{load: load, op: op}
	m.load.Callers = max(load.Callers, 1)
	if load.TimeEvery == 0 {
		m.load.TimeEvery = 1
	}
	serverBefore, err := serverCPU(ctx, load.Servers)
	if err != nil {
		return err
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpuBefore, cpuKnown := ProcessCPU()

	elapsed, err := m.run(ctx, b.slice)
	if err != nil {
		return err
	}

	cpuAfter, _ := ProcessCPU()
	runtime.ReadMemStats(&after)
	serverAfter, err := serverCPU(ctx, load.Servers)
	if err != nil {
		return err
	}
	n := float64(m.n)
	b.Record(TimePerOp, float64(elapsed)/n)
	b.Record(OpsPerSecond, n/elapsed.Seconds())
	b.Record(Allocs, float64(after.Mallocs-before.Mallocs)/n)
	b.Record(AllocBytes, float64(after.TotalAlloc-before.TotalAlloc)/n)
	if cpuKnown {
		b.Record(ClientCPU, float64(cpuAfter-cpuBefore)/n)
	}
	if len(load.Servers) > 0 {
		b.Record(ServerCPU, float64(serverAfter-serverBefore)/n)
	}
	if m.times.n > 0 {
		b.Record(P50, m.times.quantile(0.5))
		b.Record(P99, m.times.quantile(0.99))
	}
	return nil
}

// measuring is one call of Measure.
type measuring struct {
	load Load
	op   func(ctx context.Context, caller, n int) error
	stop atomic.Bool

	mu    sync.Mutex // what follows is added up as the callers end
	n     int
	times latencies
	err   error
}

func (m *measuring) run(ctx context.Context, slice time.Duration) (elapsed time.Duration, err error) {
	var ready, callers sync.WaitGroup
	start := make(chan struct{})
	ready.Add(m.load.Callers)
	for caller := range m.load.Callers {
		callers.Go(func() {
			ctx, end := context.WithCancel(ctx) // its own, as a request has
			defer end()
			times := new(latencies)
			ready.Done()
			<-start
			n, err := m.call(ctx, caller, times)
			m.mu.Lock()
			defer m.mu.Unlock()
			m.n += n
			m.times.merge(times)
			if m.err == nil && err != nil {
				m.err = err
				m.stop.Store(true)
			}
		})
	}
	ready.Wait()
	halt := func() { m.stop.Store(true) }
	defer context.AfterFunc(ctx, halt)()
	if m.load.Count == 0 {
		defer time.AfterFunc(slice, halt).Stop()
	}
	began := time.Now()
	close(start)
	callers.Wait()
	elapsed = time.Since(began)

	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case m.err != nil:
		return 0, fmt.Errorf("after %d operations: %w", m.n, m.err)
	case m.n == 0:
		return 0, fmt.Errorf("no operation began within %s", slice)
	}
	return elapsed, nil
}

// call is one caller's loop. It returns how many operations ended well.
func (m *measuring) call(ctx context.Context, caller int, times *latencies) (n int, err error) {
	limit := math.MaxInt
	if m.load.Count > 0 {
		limit = m.load.Count / m.load.Callers
		if caller < m.load.Count%m.load.Callers {
			limit++
		}
	}
	for every := m.load.TimeEvery; n < limit && !m.stop.Load(); n++ {
		if every < 0 || n%every != 0 {
			err = m.op(ctx, caller, n)
		} else {
			began := time.Now()
			err = m.op(ctx, caller, n)
			times.add(time.Since(began))
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// serverCPU returns the CPU time that the servers have used since they started,
// user and system.
func serverCPU(ctx context.Context, servers []*redis.Client) (used time.Duration, err error) {
	for _, rdb := range servers {
		info, err := rdb.Info(ctx, "cpu").Result()
		if err != nil {
			return 0, fmt.Errorf("CPU time of the server: %w", err)
		}
		one, err := parseCPU(info)
		if err != nil {
			return 0, err
		}
		used += one
	}
	return used, nil
}

// parseCPU reads the CPU time in an INFO reply (https://redis.io/commands/info).
func parseCPU(info string) (used time.Duration, err error) {
	found := 0
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name != "used_cpu_user" && name != "used_cpu_sys" {
			continue
		}
		seconds, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("INFO: %s: %w", name, err)
		}
		used += time.Duration(seconds * float64(time.Second))
		found++
	}
	if found != 2 {
		return 0, errors.New("INFO lacks used_cpu_user or used_cpu_sys")
	}
	return used, nil
}
