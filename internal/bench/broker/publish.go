package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/harness"
)

const (
	// variety is how many messages a producer has, of which it publishes one
	// after the other.
	variety = 64

	batchSize = 100
)

// publish measures publishing alone: what is published waits.
func (b *bench) publish(ctx context.Context) error {
	for _, size := range b.sizes() {
		for _, w := range []struct {
			producers int
			ratio     float64
		}{{1, 1}, {64, 4}, {256, 4}} {
			work := fmt.Sprintf("publish %d B, %s", size, plural(w.producers, "producer"))
			if err := b.publishing(ctx, work, size, w.producers, w.ratio, false); err != nil {
				return err
			}
		}
		if err := b.publishing(ctx, fmt.Sprintf("publish %d B, batches of %d", size, batchSize), size, 1, 10, true); err != nil {
			return err
		}
	}
	return nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (b *bench) publishing(ctx context.Context, work string, size, producers int, ratio float64, batches bool) error {
	c := harness.Comparison{
		Work: work, Quantity: harness.OpsPerSecond, Baseline: asynqs, Slice: b.Slice(700 * time.Millisecond),
		Targets: []harness.Target{{Contender: ours, Limit: harness.AtLeast(ratio, harness.Ratio)}},
	}
	for _, s := range sides {
		c.Contenders = append(c.Contenders, harness.Contender{Name: s.name, Run: func(ctx context.Context, m *harness.B) (err error) {
			p, err := b.fresh(ctx, s, settings{Addrs: []string{b.server.Addr()}, Queue: "bench", Producers: producers})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, p.close()) }()
			if batches {
				return b.inBatches(ctx, p, size, m)
			}
			messages := newMessages(size)
			if err := m.Measure(ctx, harness.Load{Callers: producers, Servers: []*redis.Client{b.monitor}}, func(ctx context.Context, caller, n int) error {
				return p.publish(ctx, messages[(caller+n)%variety])
			}); err != nil {
				return err
			}
			return nil
		}})
	}
	return b.Compare(ctx, c)
}

func newMessages(size int) []message {
	messages := make([]message, variety)
	for i := range messages {
		messages[i] = newMessage(i, size)
	}
	return messages
}

// fresh empties the server and opens a producer, which has published one task.
func (b *bench) fresh(ctx context.Context, s side, o settings) (*producer, error) {
	if err := b.monitor.FlushAll(ctx).Err(); err != nil {
		return nil, err
	}
	p, err := s.open(o)
	if err != nil {
		return nil, err
	}
	if err := p.publish(ctx, newMessage(0, sizes[0])); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// inBatches publishes batches one after the other. Who knows no batches publishes
// one task after the other.
func (b *bench) inBatches(ctx context.Context, p *producer, size int, m *harness.B) error {
	messages := make([]message, batchSize)
	for i := range messages {
		messages[i] = newMessage(i, size)
	}
	many := p.many
	if many == nil {
		many = func(ctx context.Context, ms []message) error {
			for _, m := range ms {
				if err := p.publish(ctx, m); err != nil {
					return err
				}
			}
			return nil
		}
	}
	runtime.GC()
	from, err := spent(ctx, b.monitor)
	if err != nil {
		return err
	}
	n := 0
	for end := from.at.Add(m.Slice()); time.Now().Before(end); n += batchSize {
		if err := many(ctx, messages); err != nil {
			return err
		}
	}
	until, err := spent(ctx, b.monitor)
	if err != nil {
		return err
	}
	return record(m, n, from, until)
}

// fill publishes count messages, numbered from 0, from several goroutines.
func fill(ctx context.Context, p *producer, count, size int) error {
	const fillers = 64
	var running sync.WaitGroup
	var next atomic.Int64
	errs := make(chan error, fillers)
	for range fillers {
		running.Go(func() {
			for n := next.Add(1) - 1; n < int64(count); n = next.Add(1) - 1 {
				if err := p.publish(ctx, newMessage(int(n), size)); err != nil {
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
