package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/redisha/redisha/internal/bench/harness"
)

var (
	latest = harness.Quantity{Name: "late, p99"}
	early  = harness.Quantity{Name: "early", Unit: harness.Count}
)

// delays measures how far from their time delayed tasks are started.
func (b *bench) delays(ctx context.Context) error {
	const work = "delayed tasks"
	count := b.Count(5000)
	within := b.Slice(4 * time.Second)
	b.Setting("Delayed: %d tasks, each published with a random delay from 1 s to %s, and a worker of concurrency 64. late: from the end of the delay, which begins with the call of publish, to the handler's start; it holds the way to the server. early: tasks that were started before. asynq looks for due tasks each 5 s (its default).", count, time.Second+within)
	c := harness.Comparison{
		Work: work, Quantity: latest, Cold: true, Whole: true,
		Targets: []harness.Target{
			{Contender: ours, Limit: harness.AtMost(float64(100*time.Millisecond), harness.Worst)},
			{Contender: ours, Quantity: early, Limit: harness.AtMost(0, harness.Worst)},
		},
	}
	for _, s := range sides {
		if b.Quick && s.name == asynqs {
			continue // it takes too long
		}
		c.Contenders = append(c.Contenders, harness.Contender{Name: s.name, Run: func(ctx context.Context, m *harness.B) error {
			return b.delaying(ctx, s, count, within, m)
		}})
	}
	return b.Compare(ctx, c)
}

func (b *bench) delaying(ctx context.Context, s side, count int, within time.Duration, m *harness.B) (err error) {
	o := settings{Addrs: []string{b.server.Addr()}, Queue: "bench", Producers: 64, Concurrency: 64}
	p, err := s.open(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := b.monitor.FlushAll(ctx).Err(); err != nil {
		return err
	}
	due := make([]time.Time, count)
	late := make([]time.Duration, count)
	var mu sync.Mutex
	left, all := count, make(chan struct{})
	stop, err := s.start(o, func(msg message) {
		now := time.Now()
		mu.Lock()
		defer mu.Unlock()
		n := msg.N - firstN
		late[n] = now.Sub(due[n])
		if left--; left == 0 {
			close(all)
		}
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	var publishing sync.WaitGroup
	errs := make([]error, o.Producers)
	for caller := range o.Producers {
		publishing.Go(func() {
			for n := caller; n < count && errs[caller] == nil; n += o.Producers {
				delay := time.Second + rand.N(within)
				mu.Lock()
				due[n] = time.Now().Add(delay)
				mu.Unlock()
				errs[caller] = p.after(ctx, newMessage(n, sizes[0]), delay)
			}
		})
	}
	publishing.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	select {
	case <-all:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	slices.Sort(late)
	tooEarly, _ := slices.BinarySearch(late, 0)
	m.Record(latest, float64(quantile(late, 0.99)))
	m.Record(early, float64(tooEarly))
	return nil
}
