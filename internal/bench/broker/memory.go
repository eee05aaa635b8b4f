package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/redisha/redisha/internal/bench/harness"
)

var waitingBytes = harness.Quantity{Name: "B/waiting task", Unit: harness.Bytes}

// memory measures what a waiting task costs.
func (b *bench) memory(ctx context.Context) error {
	count := b.Count(20_000)
	b.Setting("Memory: `used_memory` with %d waiting tasks, less that of the empty server, with no client but the one that asks.", count)
	for _, size := range b.sizes() {
		c := harness.Comparison{
			Work: fmt.Sprintf("memory of a waiting task, %d B", size), Quantity: waitingBytes, Baseline: asynqs, Whole: true, Cold: true,
		}
		if size == sizes[0] {
			c.Targets = []harness.Target{{Contender: ours, Limit: harness.AtMost(200, harness.Median)}}
		}
		for _, s := range sides {
			c.Contenders = append(c.Contenders, harness.Contender{Name: s.name, Run: func(ctx context.Context, m *harness.B) error {
				return b.weigh(ctx, s, count, size, m)
			}})
		}
		if err := b.Compare(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) weigh(ctx context.Context, s side, count, size int, m *harness.B) error {
	if err := b.monitor.FlushAll(ctx).Err(); err != nil {
		return err
	}
	empty, err := infoNumber(ctx, b.monitor, "memory", "Memory", "used_memory")
	if err != nil {
		return err
	}
	p, err := s.open(settings{Addrs: []string{b.server.Addr()}, Queue: "bench", Producers: 64})
	if err != nil {
		return err
	}
	if err := errors.Join(fill(ctx, p, count, size), p.close()); err != nil {
		return err
	}
	full, err := infoNumber(ctx, b.monitor, "memory", "Memory", "used_memory")
	if err != nil {
		return err
	}
	m.Record(waitingBytes, float64(full-empty)/float64(count))
	return nil
}
