package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
)

const (
	clusterKill = "Cluster, one of 3 primaries killed"
	clusterStop = "Cluster, one of 3 primaries stopped"

	nodeTimeout  = 1500 * time.Millisecond
	beforeFor    = 10 * time.Second // what the other slots are compared with
	duringFor    = 5 * time.Second
	clusterRound = 5
)

// clusterOpeners are the contenders on Cluster, in their order.
var clusterOpeners = []struct {
	name string
	open func(addrs []string) (client, error)
}{
	{"go-redis", func(addrs []string) (client, error) {
		return commands(redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs})), nil
	}},
	{"rueidis", func(addrs []string) (client, error) { return openRueidisWith(rueidis.ClientOption{InitAddress: addrs}) }},
	{"redisha", func(addrs []string) (client, error) {
		ep, err := endpoint.Parse("redis+cluster://" + join(addrs))
		if err != nil {
			return client{}, err
		}
		return openConn(ep)
	}},
}

// clusters runs all work on a Cluster.
func (b *bench) clusters(ctx context.Context) error {
	if b.Quick || !b.Wants(clusterKill, clusterStop) {
		return nil
	}
	b.Setting("Cluster: 3 primaries, 3 replicas, node-timeout %s, cluster-require-full-coverage no. A writer of SET and one of RPUSH on the slots of the primary that fails, two of SET on those of each other primary; recovery counts from the fault. p99 of the latter: over %s from the fault, to that of the %s before.", nodeTimeout, duringFor, beforeFor)
	servers, err := redistest.StartCluster(ctx, redistest.ClusterConfig{
		NodeTimeout: nodeTimeout,
		Data:        redistest.Config{Lines: []string{"cluster-require-full-coverage no"}},
	})
	if err != nil {
		return err
	}
	defer func() { _ = servers.Stop() }()
	b.Uses(servers.Nodes[0])
	s := &clusterStage{servers}
	for _, w := range []struct {
		work  string
		fault fault
	}{{clusterKill, kill}, {clusterStop, stop}} {
		var list []harness.Contender
		for _, c := range clusterOpeners {
			list = append(list, harness.Contender{Name: c.name, Run: func(ctx context.Context, m *harness.B) error {
				o, err := s.round(ctx, w.fault, c.open, m)
				if err != nil {
					return err
				}
				b.count(w.work, c.name, o.sets.kinds, o.pushes.kinds)
				b.tell(w.work, c.name, o)
				return nil
			}})
		}
		err := b.Compare(ctx, harness.Comparison{
			Work: w.work, Contenders: list, Quantity: recovery, Rounds: clusterRound, Cold: true, Whole: true,
			Targets: []harness.Target{
				atWorst(recovery, float64(4*time.Second)),
				{Contender: "redisha", Quantity: others, Limit: harness.AtMost(1, harness.Median)},
				atWorst(setErrors, 0),
				atWorst(pushUnknown, 1),
				atWorst(pushOthers, 0),
				atWorst(twice, 0),
			},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// A clusterStage is where rounds on a Cluster take place.
type clusterStage struct{ *redistest.Cluster }

// A site is a primary and a hash tag of its slots.
type site struct {
	primary *redistest.Server
	tag     string
}

// sites returns all primaries, each with a tag.
func (s *clusterStage) sites(ctx context.Context) ([]site, error) {
	var sites []site
	for i := 0; len(sites) < 3; i++ {
		if i == 1000 {
			return nil, errors.New("no keys for all primaries")
		}
		tag := "{" + strconv.Itoa(i) + "}"
		primary, err := s.PrimaryOf(ctx, tag)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(sites, func(x site) bool { return x.primary == primary }) {
			sites = append(sites, site{primary, tag})
		}
	}
	return sites, nil
}

// round lets a fault happen to one primary.
func (s *clusterStage) round(ctx context.Context, f fault, open func([]string) (client, error), m *harness.B) (o outcome, err error) {
	settling, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := s.Settled(settling); err != nil {
		return o, err
	}
	sites, err := s.sites(ctx)
	if err != nil {
		return o, err
	}
	for _, x := range sites {
		if _, err := do(ctx, x.primary, "FLUSHALL"); err != nil {
			return o, err
		}
	}
	c, err := open(s.Addrs())
	if err != nil {
		return o, fmt.Errorf("open: %w", err)
	}
	defer func() { err = errors.Join(err, c.close()) }()

	victim := sites[0]
	writers := []*writer{{name: victim.tag + "s"}, {name: victim.tag + "p", push: true}}
	for _, x := range sites[1:] {
		writers = append(writers, &writer{name: x.tag + "0"}, &writer{name: x.tag + "1"})
	}
	var ended atomic.Bool
	var running sync.WaitGroup
	for _, w := range writers {
		running.Go(func() { w.write(ctx, c, &ended) })
	}
	end := sync.OnceFunc(func() { ended.Store(true); running.Wait() })
	defer end()
	time.Sleep(warmUp + beforeFor)

	replicas, err := s.ReplicasOf(ctx, victim.tag)
	if err != nil {
		return o, err
	}
	watching, unwatch := context.WithCancel(ctx)
	defer unwatch()
	promoted := make(chan time.Time, len(replicas))
	for _, r := range replicas {
		running.Go(func() { awaitPromotion(watching, r, promoted) })
	}
	defer func() { err = errors.Join(err, mend(ctx, victim.primary)) }()
	if err := f.inflict(ctx, nil, victim.primary); err != nil {
		return o, err
	}
	o.zero = time.Now()
	p := &play{writers: writers[:2]}
	p.awaitBegun(o.zero, o.zero.Add(recoverLimit))
	time.Sleep(max(after, time.Until(o.zero.Add(duringFor))))
	unwatch()
	end()

	waiting, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	next, err := s.AwaitPrimary(waiting, victim.tag, victim.primary.Addr())
	if err != nil {
		return o, err
	}
	select {
	case at := <-promoted:
		o.promoted = at.Sub(o.zero)
		m.Record(untilPromoted, float64(o.promoted))
	default:
	}
	if err := s.judge(ctx, next, writers, c, &o); err != nil {
		return o, err
	}
	record(m, o)
	m.Record(subRecovery, math.NaN())
	before, during := p99(writers[2:], o.zero.Add(-beforeFor), o.zero), p99(writers[2:], o.zero, o.zero.Add(duringFor))
	m.Record(others, float64(during)/float64(max(2*before, before+time.Millisecond)))
	o.story = fmt.Sprintf("%8.1f ms  promoted\np99 of others before %s, during %s\n", ms(o.promoted), before, during) + tellWriters(o.zero, writers, c)
	return o, nil
}

// awaitPromotion tells when a replica says that it is a primary.
func awaitPromotion(ctx context.Context, s *redistest.Server, promoted chan<- time.Time) {
	rdb := admin(s)
	defer func() { _ = rdb.Close() }()
	for ctx.Err() == nil {
		if role, err := rdb.Do(ctx, "ROLE").Slice(); err == nil && len(role) > 0 && role[0] == "master" {
			promoted <- time.Now()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// judge compares what the new primary and the others hold with what was written.
func (s *clusterStage) judge(ctx context.Context, next *redistest.Server, writers []*writer, c client, o *outcome) error {
	rdb := redis.NewClusterClient(s.Options())
	defer func() { _ = rdb.Close() }()
	o.set, o.push, o.sub = -recoverLimit, -recoverLimit, -recoverLimit
	for i, w := range writers {
		var from asker = rdb
		if i < 2 {
			node := admin(next)
			defer func() { _ = node.Close() }()
			from = node
		}
		d, err := w.deposited(ctx, from)
		if err != nil {
			return err
		}
		if w.push {
			o.pushes.add(w.calls, d, c.unknown)
		} else {
			o.sets.add(w.calls, d, c.unknown)
		}
		if i >= 2 {
			continue
		}
		added := noRecovery
		for n, call := range w.calls {
			if call.err == nil && d[n] > 0 && (call.began.After(o.zero) || call.ended.After(o.zero.Add(100*time.Millisecond))) {
				added = call.ended.Sub(o.zero)
				break
			}
		}
		if w.push {
			o.push = added
		} else {
			o.set = added
		}
	}
	return nil
}

// awaitBegun waits until every writer has succeeded some time after the fault.
func (p *play) awaitBegun(fault, deadline time.Time) {
	p.awaitWriters(fault.Add(100*time.Millisecond), deadline)
}

// p99 is that of all commands which ended in a time.
func p99(writers []*writer, from, to time.Time) time.Duration {
	var took []time.Duration
	for _, w := range writers {
		for _, c := range w.calls {
			if c.began.Before(to) && !c.began.Before(from) {
				took = append(took, c.ended.Sub(c.began))
			}
		}
	}
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[len(took)*99/100]
}
