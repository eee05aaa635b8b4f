package main

import (
	"context"
	"time"

	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

// sentinels runs all work that has Sentinels.
func (b *bench) sentinels(ctx context.Context) error {
	if !b.Wants(sentinelWork...) {
		return nil
	}
	servers, err := redistest.StartSentinels(ctx, redistest.SentinelsConfig{})
	if err != nil {
		return err
	}
	s := &stage{Sentinels: servers, news: observe(servers.Sentinels)}
	defer func() {
		s.news.close()
		_ = servers.Stop()
	}()
	b.Uses(servers.Nodes[0])
	for _, f := range []func(context.Context, *stage) error{b.faults, b.fewSentinels, b.lostSentinels, b.pings, b.crowd} {
		if err := f(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

var sentinelWork = []string{string(kill), string(stop), string(failover), deadSentinel, oneSentinel, hungSentinel, noSentinel, pingWork, crowdWork, crowdStops}

// faults is the first row of the table.
func (b *bench) faults(ctx context.Context, s *stage) error {
	for _, f := range []fault{kill, stop, failover} {
		if b.Quick && f != kill {
			continue
		}
		err := b.Compare(ctx, harness.Comparison{
			Work: string(f), Contenders: b.rounds(string(f), s, f, s.Addrs), Quantity: recovery,
			Targets: targets(50*time.Millisecond, 200*time.Millisecond), Rounds: 10, Cold: true, Whole: true,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	deadSentinel = "primary killed, 2 Sentinels configured, 1 down"
	oneSentinel  = "primary killed, 1 Sentinel of 3 configured"
	hungSentinel = "primary killed, 1 Sentinel of 3 stopped"
)

// fewSentinels kills the primary where not all Sentinels help. The contender is
// given the broken one first.
func (b *bench) fewSentinels(ctx context.Context, s *stage) error {
	all := s.Addrs()
	first := s.Sentinels.Sentinels[0]
	for _, w := range []struct {
		work  string
		spoil func() error
		addrs []string
	}{
		{deadSentinel, func() error { first.Kill(); return nil }, all[:2]},
		{oneSentinel, nil, all[2:]},
		{hungSentinel, first.Pause, all},
	} {
		if b.Quick {
			return nil
		}
		s.broken = w.spoil
		err := b.Compare(ctx, harness.Comparison{
			Work: w.work, Contenders: b.rounds(w.work, s, kill, func() []string { return w.addrs }), Quantity: recovery,
			Targets: targets(50*time.Millisecond, 200*time.Millisecond), Rounds: 5, Cold: true, Whole: true,
		})
		s.broken = nil
		if err != nil {
			return err
		}
	}
	return nil
}
