package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

const clusterWork = "one queue on a Cluster of 3 primaries"

var (
	uneven  = harness.Quantity{Name: "a node's tasks off a third, %", Unit: harness.Count}
	idleCPU = harness.Quantity{Name: "a node's CPU off a third, %", Unit: harness.Count}
)

// cluster measures how the work of one queue spreads over a Cluster.
func (b *bench) cluster(ctx context.Context) error {
	if !b.Wants(clusterWork) {
		return nil
	}
	count := b.Count(30_000)
	b.Setting("Cluster: 3 primaries without replicas on this machine; %d tasks of %d B are published by 64 producers and then done by a worker of concurrency 64. Off a third: of all that the nodes did, the share of the one that is farthest from a third, as a part of that; tasks: those that each node's counters say are done.", count, sizes[0])
	nodes, err := redistest.StartCluster(ctx, redistest.ClusterConfig{Replicas: -1})
	if err != nil {
		return err
	}
	b.Defer(nodes.Stop)
	var monitors []*redis.Client
	for _, node := range nodes.Nodes {
		rdb := redis.NewClient(node.Options())
		b.Defer(rdb.Close)
		monitors = append(monitors, rdb)
	}
	c := harness.Comparison{
		Work: clusterWork, Quantity: uneven, Whole: true, Cold: true,
		Targets: []harness.Target{{Contender: ours, Limit: harness.AtMost(20, harness.Worst)}},
	}
	for _, s := range sides {
		if b.Quick && s.name == asynqs {
			continue // it takes too long
		}
		c.Contenders = append(c.Contenders, harness.Contender{Name: s.name, Run: func(ctx context.Context, m *harness.B) error {
			return b.spread(ctx, s, nodes, monitors, count, m)
		}})
	}
	return b.Compare(ctx, c)
}

func (b *bench) spread(ctx context.Context, s side, nodes *redistest.Cluster, monitors []*redis.Client, count int, m *harness.B) error {
	for _, rdb := range monitors {
		if err := rdb.FlushAll(ctx).Err(); err != nil {
			return err
		}
	}
	o := settings{Addrs: nodes.Addrs(), Cluster: true, Queue: "bench", Producers: 64, Concurrency: 64}
	var before [3]costs
	for i, rdb := range monitors {
		var err error
		if before[i], err = spent(ctx, rdb); err != nil {
			return err
		}
	}
	all, err := spent(ctx, monitors...)
	if err != nil {
		return err
	}
	p, err := s.open(o)
	if err != nil {
		return err
	}
	if err := errors.Join(fill(ctx, p, count, sizes[0]), p.close()); err != nil {
		return err
	}
	if err := b.work(ctx, s, o, count); err != nil {
		return err
	}
	after, err := spent(ctx, monitors...)
	if err != nil {
		return err
	}
	if err := record(m, count, all, after); err != nil {
		return err
	}
	var done, cpu []float64
	for i, rdb := range monitors {
		n, err := doneOn(ctx, rdb)
		if err != nil {
			return err
		}
		used, err := spent(ctx, rdb)
		if err != nil {
			return err
		}
		done, cpu = append(done, float64(n)), append(cpu, float64(used.server-before[i].server))
	}
	m.Record(uneven, offMean(done))
	m.Record(idleCPU, offMean(cpu))
	return nil
}

// work handles count tasks.
func (b *bench) work(ctx context.Context, s side, o settings, count int) error {
	handled := make(chan struct{}, count)
	stop, err := s.start(o, func(message) { handled <- struct{}{} })
	if err != nil {
		return err
	}
	for range count {
		select {
		case <-handled:
		case <-ctx.Done():
			return errors.Join(stop(), context.Cause(ctx))
		}
	}
	return stop()
}

// doneOn returns how many tasks a node's counters say are done, of either side.
func doneOn(ctx context.Context, rdb *redis.Client) (done int64, err error) {
	keys, err := rdb.Keys(ctx, "*").Result()
	if err != nil {
		return 0, err
	}
	for _, key := range keys {
		var text string
		switch {
		case strings.HasSuffix(key, "}:st"):
			text, err = rdb.HGet(ctx, key, "acked").Result()
		case strings.HasPrefix(key, "asynq:{") && strings.HasSuffix(key, "}:processed"):
			text, err = rdb.Get(ctx, key).Result()
		default:
			continue
		}
		if errors.Is(err, redis.Nil) {
			continue
		}
		n, parseErr := strconv.ParseInt(text, 10, 64)
		if err := errors.Join(err, parseErr); err != nil {
			return 0, fmt.Errorf("%s: %w", key, err)
		}
		done += n
	}
	return done, nil
}

// offMean returns by how many percent of the mean the value is off it that is
// farthest.
func offMean(values []float64) float64 {
	sum, worst := 0.0, 0.0
	for _, v := range values {
		sum += v
	}
	mean := sum / float64(len(values))
	for _, v := range values {
		worst = max(worst, math.Abs(v-mean)/mean*100)
	}
	return worst
}
