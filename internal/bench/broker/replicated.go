package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

var replicationBytes = harness.Quantity{Name: "replication B/task", Unit: harness.Bytes}

// replicated measures what needs a replica: what tasks cost on its link, and
// publishing that waits for it.
func (b *bench) replicated(ctx context.Context) error {
	const confirmedWork, bytesWork = "publish 100 B, 64 producers, confirmed by a replica", "replication of a task, published and done, %d B"
	if !b.Wants(confirmedWork, fmt.Sprintf(bytesWork, sizes[0]), fmt.Sprintf(bytesWork, sizes[1])) {
		return nil
	}
	primary, err := b.Server(ctx, redistest.Config{})
	if err != nil {
		return err
	}
	replica, err := redistest.StartReplica(ctx, primary, redistest.Config{})
	if err != nil {
		return err
	}
	b.Defer(replica.Stop)
	monitor := redis.NewClient(primary.Options())
	b.Defer(monitor.Close)
	pair := &bench{Suite: b.Suite, server: primary, monitor: monitor}
	if err := pair.confirmed(ctx, confirmedWork); err != nil {
		return err
	}
	return pair.replication(ctx, bytesWork)
}

// confirmed lets redisha wait until a replica has each task, and asynq not.
func (b *bench) confirmed(ctx context.Context, work string) error {
	const producers = 64
	b.Setting("Confirmed: redisha returns from publish when the one replica has the task; asynq, which knows no such thing, when the primary has it. Both on that primary.")
	c := harness.Comparison{
		Work: work, Quantity: harness.OpsPerSecond, Baseline: asynqs, Rounds: 7, Slice: b.Slice(700 * time.Millisecond),
		Targets: []harness.Target{{Contender: ours, Limit: harness.AtLeast(2, harness.Ratio)}},
	}
	messages := newMessages(sizes[0])
	for _, s := range sides {
		c.Contenders = append(c.Contenders, harness.Contender{Name: s.name, Run: func(ctx context.Context, m *harness.B) (err error) {
			p, err := b.fresh(ctx, s, settings{Addrs: []string{b.server.Addr()}, Queue: "bench", Producers: producers, Confirm: 1})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, p.close()) }()
			return m.Measure(ctx, harness.Load{Callers: producers, Servers: []*redis.Client{b.monitor}}, func(ctx context.Context, caller, n int) error {
				return p.publish(ctx, messages[(caller+n)%variety])
			})
		}})
	}
	return b.Compare(ctx, c)
}

func (b *bench) replication(ctx context.Context, work string) error {
	count := b.Count(10_000)
	b.Setting("Replication: how far `master_repl_offset` advances while %d tasks are published by 64 producers and then done by a worker of concurrency 64.", count)
	for _, size := range b.sizes() {
		c := harness.Comparison{Work: fmt.Sprintf(work, size), Quantity: replicationBytes, Baseline: asynqs, Whole: true, Cold: true}
		for _, s := range sides {
			c.Contenders = append(c.Contenders, harness.Contender{Name: s.name, Run: func(ctx context.Context, m *harness.B) error {
				return b.replicate(ctx, s, count, size, m)
			}})
		}
		if err := b.Compare(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) replicate(ctx context.Context, s side, count, size int, m *harness.B) (err error) {
	o := settings{Addrs: []string{b.server.Addr()}, Queue: "bench", Producers: 64, Concurrency: 64}
	p, err := b.fresh(ctx, s, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	from, err := infoNumber(ctx, b.monitor, "replication", "Replication", "master_repl_offset")
	if err != nil {
		return err
	}
	if err := fill(ctx, p, count, size); err != nil {
		return err
	}
	var handled atomic.Int64
	all := make(chan struct{})
	stop, err := s.start(o, func(message) {
		if handled.Add(1) == int64(count)+1 {
			close(all)
		}
	})
	if err != nil {
		return err
	}
	select {
	case <-all:
	case <-ctx.Done():
	}
	if err := errors.Join(stop(), context.Cause(ctx)); err != nil {
		return err
	}
	until, err := infoNumber(ctx, b.monitor, "replication", "Replication", "master_repl_offset")
	m.Record(replicationBytes, float64(until-from)/float64(count))
	return err
}
