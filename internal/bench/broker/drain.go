package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redisha/redisha/internal/bench/harness"
)

const (
	waitingCount = 100_000

	// drainLimit ends the turn of a side that is not through.
	drainLimit = 3 * time.Second
)

// drain measures how fast waiting tasks are done.
func (b *bench) drain(ctx context.Context) error {
	const format = "drain %d waiting tasks of %d B, concurrency %d"
	count := b.Count(waitingCount)
	b.Setting("Drain: the queue is filled once; each turn loads that state from an RDB file (DEBUG RELOAD), starts a worker, and ends when all tasks were handled, or after %s. Tasks handled, through the time from the worker's start.", drainLimit)
	for _, size := range b.sizes() {
		for _, concurrency := range []int{10, 64} {
			work := fmt.Sprintf(format, count, size, concurrency)
			if !b.Wants(work) {
				continue
			}
			c := harness.Comparison{
				Work: work, Quantity: harness.OpsPerSecond, Baseline: asynqs, Slice: b.Slice(drainLimit), Whole: true, Cold: true,
				Targets: []harness.Target{{Contender: ours, Limit: harness.AtLeast(6, harness.Ratio)}},
			}
			for _, s := range sides {
				var load func(context.Context) error
				o := settings{Addrs: []string{b.server.Addr()}, Queue: "bench", Concurrency: concurrency}
				c.Contenders = append(c.Contenders, harness.Contender{
					Name: s.name,
					Setup: func(ctx context.Context) (err error) {
						load, err = b.filled(ctx, s, o, count, size)
						return err
					},
					Run: func(ctx context.Context, m *harness.B) error {
						if err := load(ctx); err != nil {
							return err
						}
						return b.draining(ctx, s, o, count, m)
					},
				})
			}
			if err := b.Compare(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// filled fills a queue, and returns what brings the server back to that state.
func (b *bench) filled(ctx context.Context, s side, o settings, count, size int) (load func(context.Context) error, err error) {
	if err := b.monitor.FlushAll(ctx).Err(); err != nil {
		return nil, err
	}
	o.Producers = 64
	p, err := s.open(o)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(fill(ctx, p, count, size), p.close()); err != nil {
		return nil, err
	}
	file := fmt.Sprintf("%s-%d-%d.rdb", s.name, count, size)
	use := func(ctx context.Context) error { return b.monitor.ConfigSet(ctx, "dbfilename", file).Err() }
	if err := errors.Join(use(ctx), b.monitor.Save(ctx).Err()); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		return errors.Join(use(ctx), b.monitor.Do(ctx, "DEBUG", "RELOAD", "NOSAVE").Err())
	}, nil
}

func (b *bench) draining(ctx context.Context, s side, o settings, count int, m *harness.B) error {
	runtime.GC()
	from, err := spent(ctx, b.monitor)
	if err != nil {
		return err
	}
	var handled atomic.Int64
	all := make(chan struct{})
	stop, err := s.start(o, func(message) {
		if handled.Add(1) == int64(count) {
			close(all)
		}
	})
	if err != nil {
		return err
	}
	timer := time.NewTimer(m.Slice())
	defer timer.Stop()
	select {
	case <-all:
	case <-timer.C:
	case <-ctx.Done():
	}
	n := int(handled.Load())
	until, err := spent(ctx, b.monitor)
	if err := errors.Join(err, stop(), context.Cause(ctx)); err != nil {
		return err
	}
	if n := handled.Load(); n > int64(count) {
		return fmt.Errorf("%d tasks of %d were handled", n, count)
	}
	return record(m, n, from, until)
}

// flow measures publishing and working at once.
func (b *bench) flow(ctx context.Context) error {
	const producers, concurrency = 64, 64
	b.Setting("Publish and process at once: %d producers, and a worker of concurrency %d; all tasks that are published within the turn's time, through the time until the last one is handled. While more than %d tasks wait, producers pause.", producers, concurrency, waitingMost)
	for _, size := range b.sizes() {
		c := harness.Comparison{
			Work: fmt.Sprintf("publish and process %d B at once", size), Quantity: harness.OpsPerSecond, Baseline: asynqs, Slice: b.Slice(1500 * time.Millisecond),
			Targets: []harness.Target{{Contender: ours, Limit: harness.AtLeast(5, harness.Ratio)}},
		}
		for _, s := range sides {
			o := settings{Addrs: []string{b.server.Addr()}, Queue: "bench", Producers: producers, Concurrency: concurrency}
			c.Contenders = append(c.Contenders, harness.Contender{Name: s.name, Run: func(ctx context.Context, m *harness.B) error {
				return b.flowing(ctx, s, o, size, m)
			}})
		}
		if err := b.Compare(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// waitingMost is how many tasks wait while producers go on: what a worker that is
// slower than they does not let grow for ever.
const waitingMost = 5000

func (b *bench) flowing(ctx context.Context, s side, o settings, size int, m *harness.B) (err error) {
	p, err := b.fresh(ctx, s, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	var published, handled atomic.Int64
	published.Store(1)
	first := make(chan struct{})
	stop, err := s.start(o, func(message) {
		if handled.Add(1) == 1 {
			close(first)
		}
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	select {
	case <-first:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	messages := newMessages(size)
	runtime.GC()
	from, err := spent(ctx, b.monitor)
	if err != nil {
		return err
	}
	end := from.at.Add(m.Slice())
	var running sync.WaitGroup
	errs := make(chan error, o.Producers)
	for caller := range o.Producers {
		running.Go(func() {
			for n := caller; time.Now().Before(end); n++ {
				if published.Load()-handled.Load() > waitingMost {
					time.Sleep(time.Millisecond)
					continue
				}
				if err := p.publish(ctx, messages[n%variety]); err != nil {
					errs <- err
					return
				}
				published.Add(1)
			}
		})
	}
	running.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return err
	}
	for handled.Load() < published.Load() && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	until, err := spent(ctx, b.monitor)
	if err != nil {
		return err
	}
	return record(m, int(published.Load()-1), from, until)
}
