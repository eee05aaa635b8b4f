package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

const (
	sentinelWork = "Sentinel, primary killed"
	clusterWork  = "Cluster, primaries killed"

	// Each of five rounds, so a million tasks and ten kills in all.
	roundTasks = 200_000
	roundKills = 2

	withReplica = "replicas(1)"
	withPrimary = "primary"
)

// A stage is servers that fail over.
type stage struct {
	nodes   []*redistest.Server
	url     string
	settled func(ctx context.Context) error

	// kill kills a primary, and returns when another has its place and it is back
	// as a replica of that.
	kill func(ctx context.Context) error
}

// sentinels kills the primary that Sentinels watch.
func (b *bench) sentinels(ctx context.Context) error {
	if !b.Wants(sentinelWork) {
		return nil
	}
	b.Setting("Sentinel: three (down-after 1 s, failover-timeout 2 s, INFO each second), a primary and one replica, nothing on disk. A killed primary is started again as soon as the other is promoted, as its replica.")
	f, err := redistest.StartSentinels(ctx, redistest.SentinelsConfig{Replicas: 1})
	if err != nil {
		return err
	}
	defer func() { _ = f.Stop() }()
	b.Uses(f.Nodes[0])
	for _, s := range f.Sentinels { // else it takes twenty seconds until they are ready for the next failover
		if err := do(ctx, s, "SENTINEL", "DEBUG", "INFO-PERIOD", "1000"); err != nil {
			return err
		}
	}
	return b.failovers(ctx, sentinelWork, stage{
		nodes: f.Nodes, url: f.URL(), settled: f.Settled,
		kill: func(ctx context.Context) error {
			old := f.Primary()
			if old == nil {
				return errors.New("no Sentinel answers")
			}
			old.Kill()
			next, err := f.AwaitPrimary(ctx, old.Addr())
			if err != nil {
				return err
			}
			if err := old.Restart(ctx); err != nil {
				return err
			}
			return do(ctx, old, "REPLICAOF", "127.0.0.1", strconv.Itoa(next.Port()))
		},
	})
}

// clusters kills primaries of a Cluster.
func (b *bench) clusters(ctx context.Context) error {
	if !b.Wants(clusterWork) {
		return nil
	}
	b.Setting("Cluster: 3 primaries with one replica each, node-timeout 1.5 s, cluster-require-full-coverage no, nothing on disk. A killed primary, one of the three by chance, is started again as soon as its replica is promoted, and is a replica then.")
	c, err := redistest.StartCluster(ctx, redistest.ClusterConfig{Data: redistest.Config{Lines: []string{"cluster-require-full-coverage no"}}})
	if err != nil {
		return err
	}
	defer func() { _ = c.Stop() }()
	b.Uses(c.Nodes[0])
	return b.failovers(ctx, clusterWork, stage{
		nodes: c.Nodes, url: c.URL(), settled: c.Settled,
		kill: func(ctx context.Context) error {
			key := strconv.Itoa(rand.Int())
			old, err := c.PrimaryOf(ctx, key)
			if err != nil {
				return err
			}
			old.Kill()
			if _, err := c.AwaitPrimary(ctx, key, old.Addr()); err != nil {
				return err
			}
			return old.Restart(ctx)
		},
	})
}

func (b *bench) failovers(ctx context.Context, work string, s stage) error {
	count := b.count(roundTasks)
	c := harness.Comparison{Work: work, Quantity: lost, Cold: true, Whole: true}
	levels := []struct {
		name     string
		replicas int
	}{{withReplica, 1}, {withPrimary, 0}}
	if !confirmable {
		levels = levels[1:]
	} else {
		c.Targets = []harness.Target{never(withReplica, lost), atLeast(withReplica, confirmed, count), atLeast(withReplica, faults, roundKills), never(withReplica, ghosts), never(withReplica, excess)}
		if b.Quick {
			c.Targets = c.Targets[:2]
		}
	}
	for _, level := range levels {
		c.Contenders = append(c.Contenders, harness.Contender{Name: level.name, Run: func(ctx context.Context, m *harness.B) error {
			return b.failover(ctx, s, level.name, level.replicas, count, m)
		}})
	}
	return b.Compare(ctx, c)
}

// failover is one round.
func (b *bench) failover(ctx context.Context, s stage, name string, replicas, count int, m *harness.B) (err error) {
	kills := roundKills
	if b.Quick {
		kills = 1
	}
	began := time.Now()
	if err := errors.Join(settle(ctx, s), empty(ctx, s.nodes)); err != nil {
		return err
	}
	l, err := b.begin(ctx, s.url, replicas, count, true)
	if err != nil {
		return err
	}
	for i := range kills {
		if err := errors.Join(l.reach(ctx, count/10+i*count/2), settle(ctx, s)); err != nil {
			return errors.Join(err, l.abort())
		}
		time.Sleep(rand.N(500 * time.Millisecond))
		at := time.Now()
		before := l.confirmed()
		if err := s.kill(ctx); err != nil {
			return errors.Join(fmt.Errorf("kill %d: %w", i+1, err), l.abort())
		}
		b.tell("%s: killed after %d confirmed; %s until another had its place and it was back, %d confirmed by then", name, before, time.Since(at).Round(time.Millisecond), l.confirmed())
	}
	if err := l.finish(ctx); err != nil {
		return errors.Join(err, l.abort())
	}
	told, err := l.stop()
	if err != nil {
		return err
	}
	if err := settle(ctx, s); err != nil {
		return err
	}
	counted, err := l.search(ctx, s.nodes)
	if err != nil {
		return err
	}
	bound := kills*(workerCount*concurrency+unsettled) + int(max(told-counted, 0))
	b.close(name, l, kills, bound, began, m)
	return nil
}

// settle waits until the next fault may happen.
func settle(ctx context.Context, s stage) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return s.settled(ctx)
}

// abort ends a load whose round failed.
func (l *load) abort() error {
	l.target = 0
	l.enough.Store(true)
	_, err := l.stop()
	return err
}

// close takes down what a round showed.
func (b *bench) close(name string, l *load, happened, bound int, began time.Time, m *harness.B) {
	result := l.ledger.balance()
	result.record(m)
	m.Record(faults, float64(happened))
	m.Record(allowed, float64(bound))
	m.Record(excess, float64(max(result.duplicates-bound, 0)))
	m.Record(stall, float64(l.ledger.longest.Load()))
	m.Record(took, float64(time.Since(began)))
	b.tell("%s: %+v, bound of duplicates %d, longest time without a task %s, errors %v", name, result, bound, time.Duration(l.ledger.longest.Load()).Round(time.Millisecond), l.errs)
}

// do sends one command to a server.
func do(ctx context.Context, s *redistest.Server, args ...any) error {
	rdb := redis.NewClient(s.Options())
	defer func() { _ = rdb.Close() }()
	return rdb.Do(ctx, args...).Err()
}
