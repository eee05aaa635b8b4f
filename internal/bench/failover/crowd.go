package main

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/bench/harness"
)

const (
	crowdWork  = "primary killed, 200 callers, pool of 100, down-after 5 s"
	crowdStops = "primary stopped, 200 callers, pool of 100, down-after 5 s"
	crowdSize  = 200
	crowdRest  = 40 * time.Millisecond // of a caller, between two commands
	crowdDown  = 5 * time.Second
)

// crowd kills the primary under many callers, for whom there are not enough
// connections.
func (b *bench) crowd(ctx context.Context, s *stage) error {
	if b.Quick || !b.Wants(crowdWork, crowdStops) {
		return nil
	}
	if _, err := s.prepare(ctx); err != nil { // a Sentinel may still be stopped
		return err
	}
	if err := s.downAfter(ctx, crowdDown); err != nil {
		return err
	}
	for _, w := range []struct {
		work  string
		fault fault
	}{{crowdWork, kill}, {crowdStops, stop}} {
		err := b.Compare(ctx, harness.Comparison{
			Work: w.work, Contenders: b.crowds(w.work, s, w.fault), Quantity: recovery, Rounds: 5, Cold: true, Whole: true,
			Targets: []harness.Target{atWorst(poolTimeouts, 0), atWorst(breakerErrors, 0), atWorst(otherErrors, 0)},
		})
		if err != nil {
			return err
		}
	}
	return s.downAfter(ctx, time.Second)
}

func (b *bench) crowds(work string, s *stage, f fault) []harness.Contender {
	var list []harness.Contender
	for _, c := range openers {
		open := c.open
		if c.name == "go-redis" {
			open = openGoRedisPool(100)
		}
		list = append(list, harness.Contender{Name: c.name, Run: func(ctx context.Context, m *harness.B) error {
			o, err := b.settled(ctx, func() (outcome, error) { return s.crowdRound(ctx, f, open, m) })
			if err != nil {
				return err
			}
			b.count(work, c.name, o.sets.kinds)
			b.tell(work, c.name, o)
			return nil
		}})
	}
	return list
}

// downAfter sets after which silence the Sentinels take a node for down.
func (s *stage) downAfter(ctx context.Context, d time.Duration) error {
	for _, sentinel := range s.Sentinels.Sentinels {
		if _, err := do(ctx, sentinel, "SENTINEL", "SET", s.MasterName(), "down-after-milliseconds", strconv.FormatInt(d.Milliseconds(), 10)); err != nil {
			return err
		}
	}
	return nil
}

func openGoRedisPool(size int) opener {
	return func(addrs []string, name string) (client, error) {
		rdb := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: name, SentinelAddrs: addrs, PoolSize: size})
		return commands(rdb), nil
	}
}

// crowdRound has all callers write until the last of them has recovered.
func (s *stage) crowdRound(ctx context.Context, f fault, open opener, m *harness.B) (o outcome, err error) {
	primary, err := s.prepare(ctx)
	if err != nil {
		return o, err
	}
	c, err := open(s.Addrs(), s.MasterName())
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	var ended atomic.Bool
	var running sync.WaitGroup
	var writers []*writer
	for i := range crowdSize {
		w := &writer{name: strconv.Itoa(i), rest: crowdRest}
		writers = append(writers, w)
		running.Go(func() { w.write(ctx, c, &ended) })
	}
	stop := sync.OnceFunc(func() { ended.Store(true); running.Wait() })
	defer stop()
	time.Sleep(warmUp)
	if _, err := s.strike(ctx, f, primary, &o); err != nil {
		return o, err
	}
	p := &play{writers: writers}
	p.awaitWriters(o.zero.Add(o.promoted), o.zero.Add(recoverLimit))
	time.Sleep(after)
	stop()

	var timeouts, opened, rest int
	o.set = -recoverLimit
	for _, w := range writers {
		added := noRecovery
		for _, call := range w.calls {
			switch {
			case call.err == nil:
				if added == noRecovery && !call.ended.Before(o.zero.Add(o.promoted)) {
					added = call.ended.Sub(o.zero)
				}
			case errors.Is(call.err, redis.ErrPoolTimeout):
				timeouts++
			case errors.Is(call.err, breaker.ErrOpen):
				opened++
			default:
				rest++
			}
		}
		o.set = max(o.set, added)
		o.sets.add(w.calls, nil, c.unknown)
	}
	m.Record(recovery, float64(min(o.set, recoverLimit)))
	m.Record(setRecovery, float64(min(o.set, recoverLimit)))
	m.Record(setErrors, float64(o.sets.errors))
	m.Record(poolTimeouts, float64(timeouts))
	m.Record(breakerErrors, float64(opened))
	m.Record(otherErrors, float64(rest))
	o.story = s.tell(o, nil, c)
	return o, nil
}
