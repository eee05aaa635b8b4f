package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/redisha/redisha/internal/bench/harness"
)

// A bench is a run.
type bench struct {
	*harness.Suite
	stories bool
	kinds   map[string]map[string]int // how often each error came, by work and contender
}

// attempts is how often a round is tried in which the servers do not what they should.
const attempts = 3

// record takes down what a round showed.
func record(m *harness.B, o outcome) {
	value := func(d time.Duration) float64 { return float64(min(d, recoverLimit)) }
	m.Record(recovery, value(max(o.set, o.push, o.sub)))
	m.Record(setRecovery, value(o.set))
	m.Record(pushRecovery, value(o.push))
	m.Record(subRecovery, value(o.sub))
	m.Record(setErrors, float64(o.sets.errors))
	m.Record(pushErrors, float64(o.pushes.errors))
	m.Record(pushUnknown, float64(o.pushes.worstUnknown))
	m.Record(pushOthers, float64(o.pushes.errors-o.pushes.unknown))
	m.Record(twice, float64(o.pushes.duplicates))
	m.Record(lost, float64(o.sets.lost+o.pushes.lost))
}

// rounds returns the contenders of a work whose turns are rounds of the stage.
func (b *bench) rounds(work string, s *stage, f fault, addrs func() []string) []harness.Contender {
	var list []harness.Contender
	for _, c := range openers {
		list = append(list, harness.Contender{
			Name: c.name,
			Run: func(ctx context.Context, m *harness.B) error {
				o, err := b.settled(ctx, func() (outcome, error) { return s.round(ctx, f, addrs(), c.open) })
				if err != nil {
					return err
				}
				record(m, o)
				b.count(work, c.name, o.sets.kinds, o.pushes.kinds)
				b.tell(work, c.name, o)
				return nil
			},
		})
	}
	return list
}

// settled tries a round again if the servers did not do what they should.
func (b *bench) settled(ctx context.Context, round func() (outcome, error)) (o outcome, err error) {
	for range attempts {
		if o, err = round(); err == nil || !errors.Is(err, errUnsettled) || ctx.Err() != nil {
			return o, err
		}
		b.Note("once more: %v", err)
	}
	return o, err
}

// count adds up the errors by what they say.
func (b *bench) count(work, contender string, kinds ...map[string]int) {
	name := contender + ", " + work
	sum := b.kinds[name]
	if sum == nil {
		sum = make(map[string]int)
		b.kinds[name] = sum
	}
	for _, k := range kinds {
		for kind, n := range k {
			sum[kind] += n
		}
	}
}

// tellErrors adds the errors to the report, the most frequent first.
func (b *bench) tellErrors() {
	for _, name := range slices.Sorted(maps.Keys(b.kinds)) {
		sum := b.kinds[name]
		kinds := slices.SortedFunc(maps.Keys(sum), func(x, y string) int { return cmp.Or(sum[y]-sum[x], strings.Compare(x, y)) })
		var parts []string
		for i, kind := range kinds {
			if i == 4 {
				parts = append(parts, "…")
				break
			}
			parts = append(parts, fmt.Sprintf("%d × `%s`", sum[kind], kind))
		}
		if len(parts) > 0 {
			b.Setting("Errors of %s, in all rounds: %s.", name, strings.Join(parts, ", "))
		}
	}
}

func (b *bench) tell(work, contender string, o outcome) {
	if !b.stories {
		return
	}
	b.Note("%s, %s: fault %.1f ms, SET %.1f, RPUSH %.1f, message %.1f; SET %+v; RPUSH %+v\n%s", work, contender,
		ms(o.fault), ms(o.set), ms(o.push), ms(o.sub), o.sets, o.pushes, o.story)
}
