package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

const (
	sentinelWork = "Sentinel, primary killed"
	clusterWork  = "Cluster, primaries killed"

	// Each of five rounds, so a million tasks and ten kills in all.
	roundTasks = 200_000
	roundKills = 2

	// behindFor is shorter than what makes a replica count as down, and more than
	// sockets hold.
	behindFor = 800 * time.Millisecond

	withReplica = "replicas(1)"
	withPrimary = "primary"
)

// A stage is servers that fail over.
type stage struct {
	nodes   []*redistest.Server
	url     string
	settled func(ctx context.Context) error

	// kill kills a primary, and returns when another has its place and it is back
	// as a replica of that. With behind, its replica is held up beforehand, so that
	// it lacks what came last.
	kill func(ctx context.Context, behind bool) error
}

// sentinels kills the primary that Sentinels watch.
func (b *bench) sentinels(ctx context.Context) error {
	if !b.Wants(sentinelWork) {
		return nil
	}
	b.Setting("Sentinel: three (down-after 1 s, failover-timeout 2 s, INFO each second, TILT after 10 s), a primary and one replica, nothing on disk. A killed primary is started again as soon as the other is promoted, as its replica. Before every second kill the replica is stopped for %s (SIGSTOP), so that it is behind; it goes on right after the kill.", behindFor)
	f, err := redistest.StartSentinels(ctx, redistest.SentinelsConfig{Replicas: 1})
	if err != nil {
		return err
	}
	defer func() { _ = f.Stop() }()
	b.Uses(f.Nodes[0])
	// Else it takes twenty seconds until they are ready for the next failover, and
	// on a busy machine they stop their work for half a minute now and then.
	for _, s := range f.Sentinels {
		if err := do(ctx, s, "SENTINEL", "DEBUG", "INFO-PERIOD", "1000", "TILT-TRIGGER", "10000", "TILT-PERIOD", "3000"); err != nil {
			return err
		}
	}
	return b.failovers(ctx, sentinelWork, stage{
		nodes: f.Nodes, url: f.URL(), settled: f.Settled,
		kill: func(ctx context.Context, behind bool) error {
			old := f.Primary()
			if old == nil {
				return errors.New("no Sentinel answers")
			}
			if err := killServer(old, f.Replicas(), behind); err != nil {
				return err
			}
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
	b.Setting("Cluster: 3 primaries with one replica each, node-timeout 1.5 s, cluster-require-full-coverage no, nothing on disk. A killed primary, one of the three by chance, is started again as soon as its replica is promoted, and is a replica then. Before every second kill that replica is stopped, as with Sentinel.")
	c, err := redistest.StartCluster(ctx, redistest.ClusterConfig{Data: redistest.Config{Lines: []string{"cluster-require-full-coverage no"}}})
	if err != nil {
		return err
	}
	defer func() { _ = c.Stop() }()
	b.Uses(c.Nodes[0])
	return b.failovers(ctx, clusterWork, stage{
		nodes: c.Nodes, url: c.URL(), settled: c.Settled,
		kill: func(ctx context.Context, behind bool) error {
			key := strconv.Itoa(rand.Int())
			old, err := c.PrimaryOf(ctx, key)
			if err != nil {
				return err
			}
			replicas, err := c.ReplicasOf(ctx, key)
			if err != nil {
				return err
			}
			if err := killServer(old, replicas, behind); err != nil {
				return err
			}
			if _, err := c.AwaitPrimary(ctx, key, old.Addr()); err != nil {
				return err
			}
			return old.Restart(ctx)
		},
	})
}

// killServer kills a primary, whose replicas are held up before if they are to be
// behind.
func killServer(primary *redistest.Server, replicas []*redistest.Server, behind bool) error {
	if !behind {
		primary.Kill()
		return nil
	}
	for _, r := range replicas {
		if err := r.Pause(); err != nil {
			return err
		}
	}
	time.Sleep(behindFor)
	primary.Kill()
	var err error
	for _, r := range replicas {
		err = errors.Join(err, r.Continue())
	}
	return err
}

func (b *bench) failovers(ctx context.Context, work string, s stage) error {
	count := b.Count(roundTasks)
	kills := roundKills
	if b.Quick {
		kills = 1
	}
	c := harness.Comparison{
		Work: work, Quantity: lost, Cold: true, Whole: true,
		Targets: []harness.Target{
			never(withReplica, lost), atLeast(withReplica, confirmed, count), atLeast(withReplica, faults, kills), never(withReplica, ghosts), never(withReplica, excess),
		},
	}
	for _, level := range []struct {
		name    string
		confirm broker.Confirm
	}{{withReplica, broker.ConfirmReplicas(1)}, {withPrimary, broker.ConfirmPrimary}} {
		c.Contenders = append(c.Contenders, harness.Contender{Name: level.name, Run: func(ctx context.Context, m *harness.B) error {
			return b.failover(ctx, s, level.name, level.confirm, count, kills, m)
		}})
	}
	return b.Compare(ctx, c)
}

// failover is one round.
func (b *bench) failover(ctx context.Context, s stage, name string, confirm broker.Confirm, count, kills int, m *harness.B) (err error) {
	began := time.Now()
	if err := errors.Join(settle(ctx, s), empty(ctx, s.nodes)); err != nil {
		return err
	}
	l, err := b.begin(ctx, s.url, confirm, count, rate, true)
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
		if err := s.kill(ctx, i%2 == 1); err != nil {
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
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
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
