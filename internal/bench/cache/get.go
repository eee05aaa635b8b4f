package main

import (
	"context"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/harness"
)

// networkDelay is how much longer a round trip takes through the proxy.
const networkDelay = time.Millisecond

var (
	sizes   = []int{100, 1024}
	callers = []int{1, 16, 128, 512}
)

// A set is what all contenders read.
type set struct {
	size  int
	names []string // as users of a view name them
	keys  []string // as they are called in Redis
}

// fill stores values of so many bytes of JSON under all keys of a set.
func (b *bench) fill(ctx context.Context, size int) (set, error) {
	s := set{size: size}
	pipe := b.monitor.Pipeline()
	for n := range keyCount {
		name := strconv.Itoa(size) + "-" + strconv.Itoa(n)
		s.names, s.keys = append(s.names, name), append(s.keys, prefix+name)
		pipe.Set(ctx, prefix+name, text(n, size), ttl)
		if pipe.Len() == 1000 {
			if _, err := pipe.Exec(ctx); err != nil {
				return set{}, err
			}
		}
	}
	return s, nil
}

// pick returns a number below n, at random, which differs with caller and call.
func pick(caller, call, n int) int {
	x := (uint64(caller)<<32 | uint64(uint32(call))) + 0x9E3779B97F4A7C15 //nolint:gosec // bits
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9                                  // splitmix64
	x = (x ^ x>>27) * 0x94D049BB133111EB
	high, _ := bits.Mul64(x^x>>31, uint64(n)) // cheaper than the remainder
	return int(high)                          //nolint:gosec // it fits
}

// get measures hits from Redis on this machine.
func (b *bench) get(ctx context.Context) error {
	return b.gets(ctx, "", b.server.Addr(), sides, func(callers int) []harness.Target {
		switch {
		case callers == 1:
			return []harness.Target{
				{Contender: ours, Limit: harness.AtLeast(0.95, harness.Ratio)},
				{Contender: ours, Quantity: harness.P50, Limit: harness.AtMost(1.05, harness.Ratio)},
			}
		case callers < 128:
			return []harness.Target{{Contender: ours, Limit: harness.AtLeast(1, harness.Ratio), Against: []string{pipelining, rueidises, rueidis20}}}
		}
		return []harness.Target{
			{Contender: ours, Limit: harness.AtLeast(8, harness.Ratio)},
			{Contender: ours, Limit: harness.AtLeast(1.5, harness.Ratio), Against: []string{rueidises, rueidis20}},
		}
	})
}

// getDelayed measures the same over a network, as far as there is one here.
func (b *bench) getDelayed(ctx context.Context) error {
	const over = ", 1 ms network"
	if !b.Wants(works(over)...) {
		return nil
	}
	addr, err := b.startDelay(ctx, b.server.Addr(), networkDelay)
	if err != nil {
		return err
	}
	b.Setting("1 ms network: a proxy in a process of its own holds back each request for %s, however many are under way; server CPU is without it.", networkDelay)
	return b.gets(ctx, over, addr, slowSides, func(callers int) []harness.Target {
		least := 1.0
		if callers == 1 {
			least = 0.98
		}
		return []harness.Target{{Contender: ours, Limit: harness.AtLeast(least, harness.Ratio), Against: []string{rueidises, rueidis20}}}
	})
}

func work(size, callers int, over string) string {
	if callers == 1 {
		return fmt.Sprintf("GET %d B, 1 caller%s", size, over)
	}
	return fmt.Sprintf("GET %d B, %d callers%s", size, callers, over)
}

func works(over string) (all []string) {
	for _, size := range sizes {
		for _, n := range callers {
			all = append(all, work(size, n, over))
		}
	}
	return all
}

func (b *bench) gets(ctx context.Context, over, addr string, sides []side, targets func(callers int) []harness.Target) error {
	for _, size := range sizes {
		if !slices.ContainsFunc(callers, func(n int) bool { return b.Wants(work(size, n, over)) }) {
			continue
		}
		set, err := b.fill(ctx, size)
		if err != nil {
			return err
		}
		for _, n := range callers {
			c := harness.Comparison{
				Work: work(size, n, over), Quantity: harness.OpsPerSecond, Baseline: plain,
				Targets: targets(n), Rounds: 9, Slice: b.Slice(250 * time.Millisecond),
			}
			if n == 1 && over == "" { // a ratio close to 1 wants more rounds
				c.Rounds, c.Slice = 41, b.Slice(100*time.Millisecond)
			}
			for _, s := range sides {
				c.Contenders = append(c.Contenders, b.getter(s, addr, set, n))
			}
			if err := b.Compare(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// getter measures the reads of a side.
func (b *bench) getter(s side, addr string, set set, callers int) harness.Contender {
	var c client
	return harness.Contender{
		Name:  s.name,
		Setup: func(context.Context) (err error) { c, err = s.open(addr); return err },
		Run: func(ctx context.Context, m *harness.B) error {
			load := harness.Load{Callers: callers, Servers: []*redis.Client{b.monitor}}
			if callers >= 128 {
				load.TimeEvery = 16 // hundreds of histograms crowd the processor's caches
			}
			return m.Measure(ctx, load, func(ctx context.Context, caller, n int) error {
				i := pick(caller, n, keyCount)
				value, err := c.get(ctx, set.names[i], set.keys[i])
				if err == nil && len(value) != set.size {
					return fmt.Errorf("%s has %d bytes, want %d", set.keys[i], len(value), set.size)
				}
				return err
			})
		},
		Close: func() error { return c.end() },
	}
}

// end closes what was opened.
func (c client) end() error {
	if c.close == nil {
		return nil
	}
	return c.close()
}
