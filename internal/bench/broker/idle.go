package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/redisha/redisha/internal/bench/harness"
)

const (
	idleWork = "idle, from publish to handler"

	// A turn takes samples from several queues at once, each with a worker that
	// is idle before each sample for longer than it rests between two looks.
	idleQueues  = 16
	idleSamples = 2
	idleAtLeast = 600 * time.Millisecond
	idleAtMost  = 1700 * time.Millisecond
)

// idle measures how soon an idle worker starts a task.
func (b *bench) idle(ctx context.Context) error {
	samples := idleSamples
	if b.Quick {
		samples = 1
	}
	b.Setting("Idle: from the call of publish to that of the handler, in one process; %d queues, each with a worker of its own that has had nothing to do for a random time from %s to %s; %d samples of each in a turn. asynq looks for tasks each 0.5 to 1.5 s (its default), or each 5 to 15 ms (TaskCheckInterval 10 ms).",
		idleQueues, idleAtLeast, idleAtMost, samples)
	c := harness.Comparison{
		Work: idleWork, Quantity: harness.P50, Baseline: asynqs, Cold: true, Whole: true,
		Targets: []harness.Target{{Contender: ours, Limit: harness.AtMost(float64(time.Millisecond), harness.Median)}},
	}
	for _, s := range append(slices.Clone(sides), fairAsynq) {
		c.Contenders = append(c.Contenders, harness.Contender{Name: s.name, Run: func(ctx context.Context, m *harness.B) error {
			return b.pickUp(ctx, s, samples, m)
		}})
	}
	return b.Compare(ctx, c)
}

func (b *bench) pickUp(ctx context.Context, s side, samples int, m *harness.B) error {
	if err := b.monitor.FlushAll(ctx).Err(); err != nil {
		return err
	}
	var running sync.WaitGroup
	took := make([][]time.Duration, idleQueues)
	errs := make([]error, idleQueues)
	for i := range idleQueues {
		running.Go(func() {
			o := settings{Addrs: []string{b.server.Addr()}, Queue: fmt.Sprintf("idle-%d", i), Concurrency: 10}
			took[i], errs[i] = pickUpOne(ctx, s, o, samples)
		})
	}
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	m.Record(harness.P50, float64(quantile(all, 0.5)))
	m.Record(harness.P99, float64(quantile(all, 0.99)))
	return nil
}

func pickUpOne(ctx context.Context, s side, o settings, samples int) (took []time.Duration, err error) {
	started := make(chan time.Time, 1)
	stop, err := s.start(o, func(message) { started <- time.Now() })
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	p, err := s.open(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	for n := range 1 + samples {
		if n > 0 { // the first warms up
			time.Sleep(idleAtLeast + rand.N(idleAtMost-idleAtLeast))
		}
		called := time.Now()
		if err := p.publish(ctx, newMessage(n, sizes[0])); err != nil {
			return nil, err
		}
		select {
		case at := <-started:
			if n > 0 {
				took = append(took, at.Sub(called))
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return took, nil
}

// quantile returns the value that a part q of the sorted values does not exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
