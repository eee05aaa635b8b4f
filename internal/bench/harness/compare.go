package harness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"runtime/pprof"
	"slices"
	"time"
)

// minRounds is the least that a full run takes.
const minRounds = 5

// A Contender is one side of a comparison.
type Contender struct {
	Name string

	// Setup prepares it, outside of what is measured. Optional.
	Setup func(ctx context.Context) error

	// Run is one turn: it measures, by [B.Measure] or by itself with
	// [B.Record]. An error ends the whole run.
	Run func(ctx context.Context, b *B) error

	// Close ends what Setup began; it is called if Setup was. Optional.
	Close func() error
}

// A Comparison is one work, done by several contenders in turn. In each round
// each has one turn; the order is rotated from round to round, and reversed
// after each full rotation, so that nobody always goes first or always follows
// the same one.
type Comparison struct {
	Work       string // the rows' heading: "GET 100 B"
	Contenders []Contender
	Quantity   Quantity // what the rows show. Defaults to [TimePerOp]

	// Baseline names the contender to which the others' ratios are given.
	// Defaults to none.
	Baseline string

	// Targets are what is to be reached. One of another quantity than
	// Quantity, and a second one of a contender, gets a row of its own.
	Targets []Target

	// Rounds defaults to 5, which is the least. A quick run takes a tenth of
	// them, rounded up.
	Rounds int

	// Slice is how long a turn measures. Defaults to 1s.
	Slice time.Duration

	// Cold leaves out the round that is run beforehand and not counted.
	Cold bool

	// Whole says that a turn takes as long as it takes, whatever Slice is.
	Whole bool
}

func (c Comparison) withDefaults(quick bool) Comparison {
	c.Quantity = cmp.Or(c.Quantity, TimePerOp)
	c.Rounds = cmp.Or(c.Rounds, minRounds)
	c.Slice = cmp.Or(c.Slice, time.Second)
	if quick {
		c.Rounds = (c.Rounds + 9) / 10
	}
	c.Targets = slices.Clone(c.Targets)
	for i, t := range c.Targets {
		c.Targets[i].Quantity = cmp.Or(t.Quantity, c.Quantity)
	}
	return c
}

// among leaves those contenders whose names match, and the targets that need no
// other.
func (c Comparison) among(who *regexp.Regexp) Comparison {
	c.Contenders = slices.DeleteFunc(slices.Clone(c.Contenders), func(d Contender) bool { return !who.MatchString(d.Name) })
	if !c.has(c.Baseline) {
		c.Baseline = ""
	}
	c.Targets = slices.DeleteFunc(c.Targets, func(t Target) bool { return t.validate(c) != nil })
	return c
}

func (c Comparison) names() []string {
	names := make([]string, len(c.Contenders))
	for i, contender := range c.Contenders {
		names[i] = contender.Name
	}
	return names
}

func (c Comparison) has(name string) bool { return slices.Contains(c.names(), name) }

func (c Comparison) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Work == "" {
		bad("Work is empty, want a heading for the rows")
	}
	if len(c.Contenders) == 0 {
		bad("no Contenders, want at least one")
	}
	for i, contender := range c.Contenders {
		if contender.Name == "" || slices.Index(c.names(), contender.Name) != i {
			bad("contender %d is called %q, want a name that no other has", i, contender.Name)
		}
		if contender.Run == nil {
			bad("contender %q has no Run", contender.Name)
		}
	}
	if c.Rounds < 0 || c.Rounds > 0 && c.Rounds < minRounds {
		bad("Rounds is %d, want at least %d: fewer show nothing", c.Rounds, minRounds)
	}
	if c.Slice < 0 {
		bad("Slice is %s, want more than 0, or 0 for 1s", c.Slice)
	}
	if c.Baseline != "" && !c.has(c.Baseline) {
		bad("Baseline is %q, want one of the contenders %q", c.Baseline, c.names())
	}
	for _, t := range c.Targets {
		if err := t.validate(c); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Compare runs c and adds its rows to the table. With the flag -only it skips
// what does not match.
func (s *Suite) Compare(ctx context.Context, c Comparison) error {
	if ctx == nil {
		return errors.New("harness: compare: nil context: pass the one that Topic.Run gets")
	}
	if s.only != nil && !s.only.MatchString(c.Work) {
		return nil
	}
	if err := c.validate(); err != nil {
		return fmt.Errorf("harness: compare %q: %w", c.Work, err)
	}
	c = c.withDefaults(s.Quick)
	if s.rounds > 0 {
		c.Rounds = s.rounds
	}
	if s.who != nil {
		c = c.among(s.who)
	}
	taken, err := s.measure(ctx, c)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Work, err)
	}
	s.report.counted(c)
	s.report.rows = append(s.report.rows, c.rows(taken)...)
	return nil
}

// measure sets up the contenders, runs the rounds, and closes them.
func (s *Suite) measure(ctx context.Context, c Comparison) (taken readings, err error) {
	for _, contender := range c.Contenders {
		if contender.Close != nil {
			defer func() {
				if closeErr := contender.Close(); closeErr != nil {
					err = errors.Join(err, fmt.Errorf("%s: close: %w", contender.Name, closeErr))
				}
			}()
		}
		if contender.Setup == nil {
			continue
		}
		if err := contender.Setup(ctx); err != nil {
			return nil, fmt.Errorf("%s: set up: %w", contender.Name, err)
		}
	}
	taken = make(readings)
	first := -1 // warms up
	if c.Cold {
		first = 0
	}
	for round := first; round < c.Rounds; round++ {
		s.progress("%s: round %d of %d", c.Work, round+1, c.Rounds)
		for _, i := range order(round, len(c.Contenders)) {
			if err := ctx.Err(); err != nil {
				return nil, context.Cause(ctx)
			}
			contender := c.Contenders[i]
			b := &B{slice: c.Slice, values: make(map[Quantity]float64)}
			labels := pprof.Labels("work", c.Work, "contender", contender.Name)
			pprof.Do(ctx, labels, func(ctx context.Context) { err = contender.Run(ctx, b) })
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", contender.Name, round+1, err)
			}
			if round >= 0 {
				taken.add(contender.Name, round, b.values)
			}
		}
	}
	return taken, nil
}

// order says who goes when in a round: 0 1 2, 1 2 0, 2 0 1, and then 2 1 0, 0 2 1,
// 1 0 2, and again.
func order(round, n int) []int {
	round = max(round, 0)
	turns := make([]int, n)
	for i := range turns {
		turns[i] = (i + round) % n
	}
	if round/n%2 == 1 {
		slices.Reverse(turns)
	}
	return turns
}

// readings holds a contender's values of a quantity, by round; NaN where there
// is none.
type readings map[reading][]float64

type reading struct {
	contender string
	quantity  Quantity
}

func (r readings) add(contender string, round int, values map[Quantity]float64) {
	for quantity, value := range values {
		key := reading{contender, quantity}
		for len(r[key]) < round {
			r[key] = append(r[key], math.NaN())
		}
		r[key] = append(r[key], value)
	}
}

// best returns the best of several contenders' values, by round.
func (r readings) best(contenders []string, q Quantity) []float64 {
	var best []float64
	for _, name := range contenders {
		for round, value := range r[reading{name, q}] {
			switch {
			case round == len(best):
				best = append(best, value)
			case math.IsNaN(best[round]), q.MoreIsBetter && value > best[round], !q.MoreIsBetter && value < best[round]:
				best[round] = value
			}
		}
	}
	return best
}
