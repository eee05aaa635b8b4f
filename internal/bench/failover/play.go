package main

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redisha/redisha/internal/redistest"
)

// A play is what a client is asked for during a round.
type play struct {
	client  client
	writers []*writer
	heard   *ears

	stopWriters func()
	stopOthers  context.CancelFunc
	others      sync.WaitGroup // publishers and the subscriber
}

// play begins to write, to publish and to listen.
func (s *stage) play(ctx context.Context, c client) *play {
	p := &play{client: c, heard: &ears{}}
	var others context.Context
	others, p.stopOthers = context.WithCancel(ctx)
	for _, node := range s.Nodes {
		p.others.Go(func() { publish(others, node) })
	}
	p.others.Go(func() { c.subscribe(others, channel, p.heard.hear) })
	p.writers, p.stopWriters = startWriters(ctx, c)
	return p
}

// stop ends everything; commands under way are awaited. It may be called twice.
func (p *play) stop() {
	p.stopWriters()
	p.stopOthers()
	p.others.Wait()
}

// await waits until all seem to have recovered, until a deadline at most. Nobody
// is disturbed by being asked: whether it is so, judge finds out.
func (p *play) await(promoted time.Time, source string, deadline time.Time) {
	p.awaitWriters(promoted, deadline)
	for time.Now().Before(deadline) {
		if _, ok := p.heard.first(source, promoted); ok {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p *play) awaitWriters(promoted, deadline time.Time) {
	for time.Now().Before(deadline) {
		if !slices.ContainsFunc(p.writers, func(w *writer) bool { return w.succeeded.Load() < promoted.UnixNano() }) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// judge asks the new primary what it holds, and compares.
func (p *play) judge(ctx context.Context, next *redistest.Server, o *outcome) error {
	rdb := admin(next)
	defer func() { _ = rdb.Close() }()
	promoted := o.zero.Add(o.promoted)
	o.set, o.push, o.sub = -recoverLimit, -recoverLimit, noRecovery
	if at, ok := p.heard.first(strconv.Itoa(next.Port()), promoted); ok {
		o.sub = at.Sub(o.zero)
	}
	for _, w := range p.writers {
		d, err := w.deposited(ctx, rdb)
		if err != nil {
			return err
		}
		added := noRecovery
		if at, ok := recovered(w.calls, d, promoted); ok {
			added = at.Sub(o.zero)
		}
		if w.push {
			o.push = max(o.push, added)
			o.pushes.add(w.calls, d, p.client.unknown)
		} else {
			o.set = max(o.set, added)
			o.sets.add(w.calls, d, p.client.unknown)
		}
	}
	return nil
}
