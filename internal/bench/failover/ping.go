package main

import (
	"context"
	"slices"
	"time"

	"github.com/redisha/redisha/internal/bench/harness"
)

const pingWork = "new client, 1 Sentinel of 3 stopped"

// pings opens a client while one Sentinel hangs: the first one configured, then
// the second, and so on.
func (b *bench) pings(ctx context.Context, s *stage) error {
	var list []harness.Contender
	for _, c := range openers {
		round := 0
		list = append(list, harness.Contender{Name: c.name, Run: func(ctx context.Context, m *harness.B) error {
			if _, err := s.prepare(ctx); err != nil {
				return err
			}
			hung := s.Sentinels.Sentinels[0]
			if err := hung.Pause(); err != nil {
				return err
			}
			at := round % 3
			round++
			addrs := s.Addrs()
			addrs = slices.Insert(slices.Clone(addrs[1:]), at, addrs[0])
			took, err := firstPingOf(ctx, addrs, s.MasterName(), c.open)
			if err != nil {
				b.count(pingWork, c.name, map[string]int{kindOf(err): 1})
				took = recoverLimit
			}
			m.Record(firstPing, float64(took))
			return nil
		}})
	}
	return b.Compare(ctx, harness.Comparison{
		Work: pingWork, Contenders: list, Quantity: firstPing, Rounds: 12, Cold: true, Whole: true,
		Targets: []harness.Target{atWorst(firstPing, float64(400*time.Millisecond))},
	})
}

func firstPingOf(ctx context.Context, addrs []string, name string, open opener) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	c, err := open(addrs, name)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.close() }()
	err = c.ping(ctx)
	return time.Since(began), err
}
