package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-redsync/redsync/v4"
	redsyncredis "github.com/go-redsync/redsync/v4/redis"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/lock"
)

const (
	quorumWork  = "quorum of 5, acquire + release"
	orphansWork = "quorum of 5, orphan keys, all healthy"
	stallsWork  = "quorum of 5, orphan keys, one node stopped in between"

	nodeCount   = 5
	nodeStopped = ", a node stopped"

	// cycleCount is how many locks are taken and released in a turn that counts
	// what is left of them: 10,000 in five turns.
	cycleCount = 2000
	cyclists   = 16

	// failuresMost is how many failures of a turn end the run.
	failuresMost = 1000

	cycleTime = 5 * time.Second
	stallTime = 100 * time.Millisecond

	// cleanUp is when a contender has cleaned up for the second time.
	cleanUp = 2200 * time.Millisecond
)

var (
	orphans = harness.Quantity{Name: "orphans", Unit: harness.Count}
	cycled  = harness.Quantity{Name: "cycles", Unit: harness.Count}
	failed  = harness.Quantity{Name: "failed", Unit: harness.Count}
)

// An assembly is a contender over several nodes.
type assembly struct {
	name string
	open func(addrs []string, ttl time.Duration) (locker, error)
}

var assemblies = []assembly{
	{ours, openQuorum},
	{redsyncers, openRedsyncs()},
	{redsyncers + " FailFast", openRedsyncs(redsync.WithFailFast(true))},
}

func openQuorum(addrs []string, ttl time.Duration) (locker, error) {
	var nodes []redis.UniversalClient
	disconnect := func() (err error) {
		for _, node := range nodes {
			err = errors.Join(err, node.Close())
		}
		return err
	}
	for _, addr := range addrs {
		node, err := connect(settings{addr: addr})
		if err != nil {
			return locker{}, errors.Join(err, disconnect())
		}
		nodes = append(nodes, node)
	}
	c, err := lock.NewQuorum(nodes, lockConfig(ttl))
	if err != nil {
		return locker{}, errors.Join(err, disconnect())
	}
	return redishaLocker(c, disconnect), nil
}

func openRedsyncs(opts ...redsync.Option) func([]string, time.Duration) (locker, error) {
	return func(addrs []string, ttl time.Duration) (locker, error) {
		var clients []*redis.Client
		var pools []redsyncredis.Pool
		for _, addr := range addrs {
			rdb := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true, ReadTimeout: ttl / 20, MaxRetries: -1})
			clients = append(clients, rdb)
			pools = append(pools, goredis.NewPool(rdb))
		}
		return redsyncLocker(redsync.New(pools...), func() (err error) {
			for _, rdb := range clients {
				err = errors.Join(err, rdb.Close())
			}
			return err
		}, append([]redsync.Option{redsync.WithExpiry(ttl)}, opts...)...), nil
	}
}

// startNodes starts the primaries of the quorum.
func (b *bench) startNodes(ctx context.Context) error {
	if !b.Wants(quorumWork, orphansWork, stallsWork) {
		return nil
	}
	for range nodeCount {
		node, err := b.Server(ctx, redistest.Config{})
		if err != nil {
			return err
		}
		monitor := redis.NewClient(node.Options())
		b.Defer(monitor.Close)
		b.nodes, b.monitors = append(b.nodes, node), append(b.monitors, monitor)
	}
	b.started = time.Now()
	return nil
}

// quorum measures locks over several nodes, of which one may be stopped.
func (b *bench) quorum(ctx context.Context) error {
	if !b.Wants(quorumWork, orphansWork, stallsWork) {
		return nil
	}
	b.Setting("Quorum: %d servers, TTL %s; one goroutine; a node is stopped by SIGSTOP. failed: attempts or releases, which are then tried again, and count as one slow operation. redsync: go-redis with ContextTimeoutEnabled, MaxRetries −1 and a ReadTimeout of TTL/20, which is what redsync gives a node; else it would wait for a stopped one for many seconds.", nodeCount, ttl)
	b.Setting("Orphan keys: %d goroutines take and release locks without waiting, %d times in a turn (or for %s), half of them keys of their own, half of them two keys that others want as well; keys that are left on all nodes %s later, but for counters and queues. "+
		"A node stopped in between: it stands still every other %s.", cyclists, cycleCount, cycleTime, cleanUp, stallTime)
	if wait := time.Until(b.started.Add(ttl + time.Second)); wait > 0 { // a restarted node abstains for as long as a lease lives
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return errors.Join(b.quorumSpeed(ctx), b.quorumOrphans(ctx))
}

func (b *bench) addrs() (addrs []string) {
	for _, node := range b.nodes {
		addrs = append(addrs, node.Addr())
	}
	return addrs
}

func (b *bench) quorumSpeed(ctx context.Context) error {
	c := harness.Comparison{Work: quorumWork, Quantity: harness.P50, Slice: b.slice(700 * time.Millisecond)}
	for _, a := range assemblies {
		var l locker
		n := 0
		// What a contender leaves behind must not be in its way, so each lock has a
		// new key; and an attempt that fails costs the time until one does not.
		cycle := func(ctx context.Context, m *harness.B) error {
			failures := 0
			defer func() { m.Record(failed, float64(failures)) }()
			return m.Measure(ctx, harness.Load{Servers: b.monitors[1:]}, func(ctx context.Context, _, _ int) error {
				for {
					n++
					h, err := l.try(ctx, fmt.Sprintf("quorum-%d", n))
					if err == nil {
						err = h.Release(ctx)
					}
					if err == nil || ctx.Err() != nil {
						return err
					}
					if failures++; failures > failuresMost {
						return err
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
		c.Contenders = append(c.Contenders, harness.Contender{
			Name: a.name, Run: cycle,
			Setup: func(context.Context) (err error) { l, err = a.open(b.addrs(), ttl); return err },
			Close: func() error { return l.end() },
		}, harness.Contender{
			Name: a.name + nodeStopped,
			Run: func(ctx context.Context, m *harness.B) (err error) {
				if err := b.nodes[0].Pause(); err != nil {
					return err
				}
				defer func() { err = errors.Join(err, b.nodes[0].Continue()) }()
				return cycle(ctx, m)
			},
		})
		if a.name == ours {
			c.Targets = append(c.Targets, harness.Target{Contender: a.name + nodeStopped, Limit: harness.AtMost(1.5, harness.Ratio), Against: []string{a.name}})
		}
	}
	return b.Compare(ctx, c)
}

func (b *bench) quorumOrphans(ctx context.Context) error {
	works := []string{orphansWork, stallsWork}
	count := cycleCount
	if b.Quick { // each has to wait for what is cleaned up
		works, count = works[1:], cycleCount/10
	}
	for _, work := range works {
		c := harness.Comparison{
			Work: work, Quantity: orphans, Cold: true, Whole: true,
			Targets: []harness.Target{
				{Contender: ours, Limit: harness.AtMost(0, harness.Worst)},
				{Contender: ours, Quantity: cycled, Limit: harness.AtLeast(float64(count), harness.Worst)},
			},
		}
		for _, a := range assemblies {
			c.Contenders = append(c.Contenders, harness.Contender{Name: a.name, Run: func(ctx context.Context, m *harness.B) error {
				return b.countOrphans(ctx, a, count, work == stallsWork, m)
			}})
		}
		if err := b.Compare(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) countOrphans(ctx context.Context, a assembly, count int, stalls bool, m *harness.B) (err error) {
	for _, rdb := range b.monitors {
		if err := rdb.FlushAll(ctx).Err(); err != nil {
			return err
		}
	}
	l, err := a.open(b.addrs(), ttl)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.end()) }()
	mend := func() error { return nil }
	if stalls {
		mend = b.stall()
	}
	n, failures := b.cycle(ctx, l, count)
	if err := mend(); err != nil {
		return err
	}
	if n == 0 || failures == n {
		return fmt.Errorf("%d of %d locks failed", failures, n)
	}
	time.Sleep(cleanUp)
	left, err := b.left(ctx)
	if err != nil {
		return err
	}
	m.Record(cycled, float64(n))
	m.Record(failed, float64(failures))
	m.Record(orphans, float64(len(left)))
	return nil
}

// stall stops a node for a moment again and again. What it returns ends that.
func (b *bench) stall() (mend func() error) {
	end, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			err := b.nodes[0].Pause()
			time.Sleep(stallTime)
			err = errors.Join(err, b.nodes[0].Continue())
			select {
			case <-end:
				ended <- err
				return
			case <-time.After(stallTime):
			}
		}
	}()
	return func() error { close(end); return <-ended }
}

// cycle takes and releases locks, and returns how often it tried and how often
// that failed, other than since another had the lock.
func (b *bench) cycle(ctx context.Context, l locker, count int) (tried, failures int64) {
	var running sync.WaitGroup
	var next, errs atomic.Int64
	end := time.Now().Add(cycleTime)
	for g := range cyclists {
		running.Go(func() {
			for {
				n := next.Add(1)
				if n > int64(count) || ctx.Err() != nil || time.Now().After(end) {
					next.Add(-1)
					return
				}
				key := fmt.Sprintf("own-%d", n)
				if g%2 == 0 {
					key = fmt.Sprintf("shared-%d", g/2%2)
				}
				h, err := l.try(ctx, key)
				if err == nil {
					err = h.Release(ctx)
				}
				if err != nil && !errors.Is(err, errTaken) {
					errs.Add(1)
					time.Sleep(time.Millisecond) // else failures use up all cycles
				}
			}
		})
	}
	running.Wait()
	return next.Load(), errs.Load()
}

// left returns the keys of locks that are on the nodes.
func (b *bench) left(ctx context.Context) (left []string, err error) {
	for _, rdb := range b.monitors {
		keys, err := rdb.Keys(ctx, "*").Result()
		if err != nil {
			return nil, err
		}
		for _, key := range keys {
			if !strings.HasSuffix(key, "}:f") && !strings.HasSuffix(key, "}:q") {
				left = append(left, key)
			}
		}
	}
	return left, nil
}
