package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/endpoint"
)

const noSentinel = "all Sentinels killed, primary up"

const (
	withoutFor = 4 * time.Second
	newCallers = 50 // callers at once, so that connections must be made without Sentinels
)

// lostSentinels kills all Sentinels and nothing else.
func (b *bench) lostSentinels(ctx context.Context, s *stage) error {
	var list []harness.Contender
	for _, c := range openers {
		list = append(list, harness.Contender{Name: c.name, Run: func(ctx context.Context, m *harness.B) error {
			return b.withoutSentinels(ctx, s, c.name, c.open, m)
		}})
	}
	return b.Compare(ctx, harness.Comparison{
		Work: noSentinel, Contenders: list, Quantity: allErrors, Rounds: 5, Cold: true, Whole: true,
		Targets: []harness.Target{
			atWorst(allErrors, 0),
			atWorst(openFallback, float64(2*time.Second)),
			atWorst(openFails, float64(3*time.Second)),
		},
	})
}

func (b *bench) withoutSentinels(ctx context.Context, s *stage, name string, open opener, m *harness.B) (err error) {
	primary, err := s.prepare(ctx)
	if err != nil {
		return err
	}
	c, err := open(s.Addrs(), s.MasterName())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	p := s.play(ctx, c)
	defer p.stop()
	time.Sleep(warmUp)
	for _, sentinel := range s.Sentinels.Sentinels {
		sentinel.Kill()
	}
	killed := time.Now()
	time.Sleep(withoutFor / 2)
	errs := make(chan error, newCallers)
	var callers sync.WaitGroup
	for range newCallers {
		callers.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			errs <- c.ping(ctx)
		})
	}
	callers.Wait()
	close(errs)
	time.Sleep(withoutFor/2 - min(time.Since(killed)-withoutFor/2, withoutFor/2))
	p.stop()

	kinds := make(map[string]int)
	failed := 0
	for err := range errs {
		if err != nil {
			failed++
			kinds[kindOf(err)]++
		}
	}
	var longest time.Duration
	for _, w := range p.writers {
		for _, call := range w.calls {
			if call.err != nil {
				failed++
				kinds[kindOf(call.err)]++
			}
			if call.ended.After(killed) {
				longest = max(longest, call.ended.Sub(call.began))
			}
		}
	}
	m.Record(allErrors, float64(failed))
	m.Record(slowest, float64(longest))
	b.count(noSentinel, name, kinds)
	if name == "redisha" {
		return b.newWithoutSentinels(ctx, s, primary.Addr(), m)
	}
	return nil
}

// newWithoutSentinels opens new clients while no Sentinel answers.
func (b *bench) newWithoutSentinels(ctx context.Context, s *stage, primary string, m *harness.B) error {
	url := sentinelURL(s.Addrs(), s.MasterName())
	took, err := b.timePing(ctx, url+"?fallback_primary="+primary, patience)
	if err != nil {
		b.count(noSentinel, "redisha", map[string]int{"with fallback_primary: " + kindOf(err): 1})
		took = recoverLimit
	}
	m.Record(openFallback, float64(took))
	const limit = 2 * time.Second
	took, err = b.timePing(ctx, url, limit)
	if err == nil {
		return errors.New("a client knows the primary, and no Sentinel runs")
	}
	m.Record(openFails, float64(took))
	b.count(noSentinel, "redisha, a new client without fallback_primary", map[string]int{kindOf(err): 1})
	return nil
}

// timePing opens a client, and returns how long it took to its first PING.
func (b *bench) timePing(ctx context.Context, url string, limit time.Duration) (time.Duration, error) {
	ep, err := endpoint.Parse(url)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	c, err := openConn(ep)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.close() }()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = c.ping(ctx)
	return time.Since(began), err
}
