package main

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/harness"
)

const (
	// ttl is such that nothing is renewed or lost while an operation is measured.
	ttl = 10 * time.Second

	// poolSize leaves a connection to each goroutine.
	poolSize = 300

	// keysEach is how many locks a goroutine takes in turn, which no other takes.
	keysEach = 16
)

// uncontended measures acquiring and releasing what nobody else wants.
func (b *bench) uncontended(ctx context.Context) error {
	b.Setting("Uncontended: an operation acquires without waiting, and releases; each goroutine has %d keys of its own. Pools of %d connections, for rueidislock its one pipelined connection.", keysEach, poolSize)
	for _, w := range []struct {
		work    string
		callers int
		limit   float64
		against []string
		rounds  int
		slice   time.Duration
	}{
		{"acquire + release, 1 goroutine", 1, 1.15, []string{redislockers}, 40, 150 * time.Millisecond},
		{"acquire + release, 32 goroutines", 32, 1, peers, 20, 250 * time.Millisecond},
		{"acquire + release, 256 goroutines", 256, 1, peers, 20, 250 * time.Millisecond},
	} {
		c := harness.Comparison{
			Work: w.work, Baseline: redislockers, Rounds: w.rounds, Slice: w.slice,
			Targets: []harness.Target{{Contender: ours, Limit: harness.AtMost(w.limit, harness.Ratio), Against: w.against}},
		}
		for _, s := range sides {
			c.Contenders = append(c.Contenders, b.cycles(s, w.callers))
		}
		if err := b.Compare(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// cycles measures a side with so many callers, of which each has its own keys.
func (b *bench) cycles(s side, callers int) harness.Contender {
	keys := make([][keysEach]string, callers)
	for caller := range keys {
		for i := range keysEach {
			keys[caller][i] = fmt.Sprintf("uncontended-%d-%d", caller, i)
		}
	}
	var l locker
	return harness.Contender{
		Name: s.name,
		Setup: func(context.Context) (err error) {
			l, err = s.open(settings{addr: b.server.Addr(), ttl: ttl, pool: poolSize})
			return err
		},
		Run: func(ctx context.Context, m *harness.B) error {
			return m.Measure(ctx, harness.Load{Callers: callers, Servers: []*redis.Client{b.monitor}}, func(ctx context.Context, caller, n int) error {
				h, err := l.try(ctx, keys[caller][n%keysEach])
				if err != nil {
					return err
				}
				return h.Release(ctx)
			})
		},
		Close: func() error { return l.end() },
	}
}
