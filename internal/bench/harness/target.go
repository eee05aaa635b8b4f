package harness

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// A Target is what a contender is to reach. It is judged over all rounds, and
// missed where nothing was measured.
type Target struct {
	Contender string
	Quantity  Quantity // zero: Comparison.Quantity
	Limit     Limit

	// Against names whom a [Ratio] is to; with several, the best of them in
	// each round. Defaults to Comparison.Baseline.
	Against []string
}

// A Limit bounds a figure of a contender. Make one by [AtMost] or [AtLeast].
type Limit struct {
	bound float64
	least bool
	of    Of
}

// Of says which figure is bounded.
type Of int

// The figures.
const (
	Ratio  Of = iota // the median of the ratios of each round
	Median           // the median of the rounds
	Worst            // the worst of the rounds
)

// AtMost is met by a figure up to bound: a ratio, or a value in the unit of the
// quantity, so nanoseconds of a [Duration].
func AtMost(bound float64, of Of) Limit { return Limit{bound: bound, of: of} }

// AtLeast is met by a figure from bound on, as [AtMost] up to it.
func AtLeast(bound float64, of Of) Limit { return Limit{bound: bound, least: true, of: of} }

func (l Limit) met(figure float64) bool {
	if l.least {
		return figure >= l.bound // never for NaN
	}
	return figure <= l.bound
}

// figure picks what l bounds from the values and ratios of all rounds.
func (l Limit) figure(values, ratios []float64) float64 {
	switch values = measured(values); {
	case l.of == Ratio:
		return median(ratios)
	case l.of == Median:
		return median(values)
	case len(values) == 0:
		return math.NaN()
	case l.least:
		return slices.Min(values)
	}
	return slices.Max(values)
}

func (l Limit) format(u Unit) string {
	sign := "≤ "
	if l.least {
		sign = "≥ "
	}
	switch l.of {
	case Ratio:
		return sign + digits(l.bound) + " ×"
	case Median:
		return sign + u.format(l.bound)
	}
	return "worst " + sign + u.format(l.bound)
}

func (t Target) validate(c Comparison) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, name := range append([]string{t.Contender}, t.Against...) {
		if !c.has(name) {
			bad("a target names %q, want one of the contenders %q", name, c.names())
		}
	}
	if t.Limit.bound <= 0 && (t.Limit == Limit{} || t.Limit.of == Ratio) {
		bad("the target of %q has no bound: set Limit by AtMost or AtLeast", t.Contender)
	}
	if slices.Contains(t.Against, t.Contender) {
		bad("the target of %q is against itself", t.Contender)
	}
	if t.Limit.of == Ratio && len(t.Against) == 0 {
		if c.Baseline == "" {
			bad("the target of %q is a ratio, and to nobody: set Against or Comparison.Baseline", t.Contender)
		} else if c.Baseline == t.Contender {
			bad("the target of %q is a ratio to itself: set Against", t.Contender)
		}
	}
	return errors.Join(errs...)
}
