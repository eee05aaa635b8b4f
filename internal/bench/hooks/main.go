// Command hooks shows what the hooks of a connection cost: breaker, statistics,
// and what watches over closing and repeating.
//
//	go run ./hooks
//
// Both sides are a go-redis client whose last hook answers each command itself,
// so that nothing is left but go-redis' way through its hooks. What one with a
// connection's hooks takes longer is what they cost.
package main

import (
	"cmp"
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/harness"
)

func main() { harness.Main(topic) }

var topic = harness.Topic{
	Name:   "hooks",
	About:  "what a connection's hooks cost",
	Beside: []harness.Quantity{without, allocs},
	Run:    compare,
}

var (
	added   = harness.Quantity{Name: "added/op"}
	without = harness.Quantity{Name: "without/op"}
	allocs  = harness.Quantity{Name: "added allocs/op", Unit: harness.Count}
)

const (
	rounds = 60
	slice  = 60 * time.Millisecond // of each side, in each round
	turns  = 2                     // of each side, within a round

	alone, crowd = 1, 512
)

func compare(ctx context.Context, s *harness.Suite) error {
	hooked, bare, err := clients()
	if err != nil {
		return err
	}
	s.Defer(hooked.Close)
	s.Defer(bare.Close)
	s.Setting("Both sides: `redis.NewClient`, its last hook answers; the other hooks are those of a role's connection with its defaults, breaker on. Nothing is sent.")
	s.Setting("added/op: this process' processor time through operations with the hooks, less that without, over %d × %s each, by turns. What else runs on the machine takes no part in it but by the caches.", turns, slice/turns)
	s.Setting("added allocs/op: `testing.AllocsPerRun` with the hooks less that without.")
	for _, w := range []struct {
		work    string
		op      func(rdb redis.UniversalClient) func()
		callers int
		limit   time.Duration // 0: none
		allocs  float64
	}{
		{"GET, 1 goroutine", single, alone, 300 * time.Nanosecond, 0},
		{"GET, 512 goroutines", single, crowd, 800 * time.Nanosecond, 0},
		{"pipeline of 10 GET, 1 goroutine", pipeline, alone, 0, 1},
		{"pipeline of 10 GET, 512 goroutines", pipeline, crowd, 0, 1},
	} {
		target := func(q harness.Quantity, bound float64, of harness.Of) harness.Target {
			return harness.Target{Contender: "redisha", Quantity: q, Limit: harness.AtMost(bound, of)}
		}
		targets := []harness.Target{target(allocs, w.allocs, harness.Worst)}
		if w.limit > 0 {
			targets = append(targets, target(added, float64(w.limit), harness.Median))
		}
		err := s.Compare(ctx, harness.Comparison{
			Work: w.work, Quantity: added, Targets: targets, Rounds: rounds, Slice: 2 * slice,
			Contenders: []harness.Contender{{Name: "redisha", Run: func(_ context.Context, b *harness.B) error {
				with, base, err := measure(w.op, w.callers, hooked, bare)
				if err != nil {
					return err
				}
				b.Record(added, float64(with-base))
				b.Record(without, float64(base))
				b.Record(allocs, testing.AllocsPerRun(200, w.op(hooked))-testing.AllocsPerRun(200, w.op(bare)))
				return nil
			}}},
		})
		if err != nil {
			return err
		}
	}
	if n := hooked.Stats().Commands.Total(); n == 0 {
		return errors.New("the hooks have counted nothing: they were not asked")
	}
	return nil
}

// measure returns the processor time of an operation with and without hooks.
func measure(op func(redis.UniversalClient) func(), callers int, hooked, bare redis.UniversalClient) (with, base time.Duration, err error) {
	runtime.GC()
	var w, b spent
	for range turns {
		if err := cmp.Or(b.add(callers, func() func() { return op(bare) }), w.add(callers, func() func() { return op(hooked) })); err != nil {
			return 0, 0, err
		}
	}
	return w.each(), b.each(), nil
}

// spent adds up processor time and operations.
type spent struct {
	time time.Duration
	n    int
}

func (s *spent) each() time.Duration { return s.time / time.Duration(max(s.n, 1)) }

// add has callers call operations for a while. Each has an operation of its own.
func (s *spent) add(callers int, op func() func()) error {
	var running sync.WaitGroup
	counts := make([]int, callers)
	before, ok := harness.ProcessCPU()
	if !ok {
		return errors.New("this system does not tell a process' processor time")
	}
	until := time.Now().Add(slice / turns)
	for i := range callers {
		running.Go(func() {
			call := op()
			for time.Now().Before(until) {
				for range batch {
					call()
				}
				counts[i] += batch
			}
		})
	}
	running.Wait()
	after, _ := harness.ProcessCPU()
	s.time += after - before
	for _, n := range counts {
		s.n += n
	}
	return nil
}

// batch is how many operations are called between two looks at the clock.
const batch = 100

// single returns the sending of one command, which is made beforehand.
func single(rdb redis.UniversalClient) func() {
	ctx := context.Background()
	cmd := redis.NewStringCmd(ctx, "get", "key")
	return func() { _ = rdb.Process(ctx, cmd) }
}

// pipeline returns the sending of a pipeline.
func pipeline(rdb redis.UniversalClient) func() {
	ctx := context.Background()
	var cmds [10]*redis.StringCmd
	for i := range cmds {
		cmds[i] = redis.NewStringCmd(ctx, "get", "key")
	}
	pipe := rdb.Pipeline()
	return func() {
		for _, cmd := range cmds {
			_ = pipe.Process(ctx, cmd)
		}
		_, _ = pipe.Exec(ctx)
	}
}
