package harness

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// recorder is a contender that records values, one a round; the first round
// warms up, and gets the first value too.
func recorder(name string, values ...float64) Contender {
	round := -1
	return Contender{Name: name, Run: func(_ context.Context, b *B) error {
		b.Record(TimePerOp, values[max(round, 0)%len(values)])
		round++
		return nil
	}}
}

func suite() *Suite { return &Suite{stderr: io.Discard, told: time.Now()} }

// only runs one comparison and returns its rows.
func rowsOf(t *testing.T, s *Suite, c Comparison) []row {
	t.Helper()
	require.NoError(t, s.Compare(t.Context(), c))
	return s.report.rows
}

func TestEveryContenderTakesEveryPlaceAndFollowsEveryOther(t *testing.T) {
	require.Equal(t, [][]int{{0, 1, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}, {0, 2, 1}, {1, 0, 2}, {0, 1, 2}},
		[][]int{order(0, 3), order(1, 3), order(2, 3), order(3, 3), order(4, 3), order(5, 3), order(6, 3)})
	require.Equal(t, order(0, 3), order(-1, 3), "the warm-up goes as the first")
	require.Equal(t, []int{0}, order(7, 1))
}

func TestContendersTakeTurns(t *testing.T) {
	var calls []string
	contender := func(name string) Contender {
		log := func(what string) { calls = append(calls, name+" "+what) }
		return Contender{
			Name:  name,
			Setup: func(context.Context) error { log("setup"); return nil },
			Run: func(_ context.Context, b *B) error {
				require.Equal(t, time.Minute, b.Slice())
				log("run")
				return nil
			},
			Close: func() error { log("close"); return nil },
		}
	}
	c := Comparison{Work: "w", Contenders: []Contender{contender("a"), contender("b")}, Slice: time.Minute}
	require.NoError(t, suite().Compare(t.Context(), c))
	require.Equal(t, []string{
		"a setup", "b setup",
		"a run", "b run", // not counted
		"a run", "b run", "b run", "a run", "b run", "a run", "a run", "b run", "a run", "b run",
		"b close", "a close",
	}, calls)
}

func TestTheFirstRoundIsNotCountedUnlessCold(t *testing.T) {
	rounds := 0
	c := Comparison{Work: "w", Contenders: []Contender{{Name: "a", Run: func(_ context.Context, b *B) error {
		b.Record(TimePerOp, float64(rounds))
		rounds++
		return nil
	}}}}
	require.Equal(t, []float64{1, 2, 3, 4, 5}, rowsOf(t, suite(), c)[0].values)

	rounds, c.Cold = 0, true
	require.Equal(t, []float64{0, 1, 2, 3, 4}, rowsOf(t, suite(), c)[0].values)
}

func TestAQuickRunTakesATenthOfTheRounds(t *testing.T) {
	for rounds, quick := range map[int]int{0: 1, 5: 1, 11: 2, 150: 15} {
		s := suite()
		s.Quick = true
		c := Comparison{Work: "w", Rounds: rounds, Contenders: []Contender{recorder("a", 1)}}
		require.Len(t, rowsOf(t, s, c)[0].values, quick, "%d rounds", rounds)
	}
}

func TestOnlySkipsOtherWork(t *testing.T) {
	s := suite()
	s.only = regexp.MustCompile("^GET")
	for _, work := range []string{"GET 100 B", "SET 100 B", "GET 1 KiB"} {
		require.NoError(t, s.Compare(t.Context(), Comparison{Work: work, Contenders: []Contender{recorder("a", 1)}}))
	}
	require.Len(t, s.report.rows, 2)
	require.Equal(t, "GET 1 KiB", s.report.rows[1].work)
}

func TestARatioIsTheMedianOfTheRounds(t *testing.T) {
	c := Comparison{
		Work:     "w",
		Baseline: "base",
		Contenders: []Contender{
			recorder("base", 10, 10, 100, 10, 10),
			recorder("ours", 11, 12, 110, 9, 11), // 1.1, 1.2, 1.1, 0.9, 1.1
		},
		Targets: []Target{{Contender: "ours", Limit: AtMost(1.1001, Ratio)}},
	}
	rows := rowsOf(t, suite(), c)
	require.Len(t, rows, 2)
	require.True(t, rows[0].isBaseline)
	require.False(t, rows[1].missed())
	require.Equal(t, "1.100 (0.900 – 1.200) × base", rows[1].ratio())
	require.Equal(t, "baseline", rows[0].ratio())
}

func TestATargetMayBeAgainstTheBestOfSeveral(t *testing.T) {
	nan := math.NaN()
	contenders := func() []Contender {
		return []Contender{
			recorder("x", 10, 30, nan, 10, nan),
			recorder("y", 20, 20, 20, nan, nan),
			recorder("ours", 10, 10, 10, 10, 10),
		}
	}
	target := Target{Contender: "ours", Limit: AtMost(1, Ratio), Against: []string{"x", "y"}}
	rows := rowsOf(t, suite(), Comparison{Work: "w", Contenders: contenders(), Targets: []Target{target}})
	require.Equal(t, []float64{1, 0.5, 0.5, 1}, rows[2].ratios)
	require.Contains(t, rows[2].ratio(), "× best of x, y")
	require.Equal(t, "–", rows[0].ratio(), "there is no baseline")

	taken := readings{{"x", OpsPerSecond}: {10, 30, nan}, {"y", OpsPerSecond}: {20, 20, 20}}
	require.Equal(t, []float64{20, 30, 20}, taken.best([]string{"x", "y"}, OpsPerSecond), "more is better")
}

func TestFurtherTargetsGetRowsOfTheirOwn(t *testing.T) {
	errorsSeen := Quantity{Name: "errors", Unit: Count}
	c := Comparison{
		Work: "w",
		Contenders: []Contender{{Name: "ours", Run: func(_ context.Context, b *B) error {
			b.Record(P50, 40e6)
			b.Record(errorsSeen, 2)
			return nil
		}}},
		Quantity: P50,
		Targets: []Target{
			{Contender: "ours", Limit: AtMost(30e6, Worst), Quantity: P99},
			{Contender: "ours", Limit: AtMost(50e6, Median)},
			{Contender: "ours", Limit: AtMost(30e6, Worst)},
			{Contender: "ours", Limit: AtMost(0, Median), Quantity: errorsSeen},
		},
	}
	beside := []Quantity{errorsSeen}
	var table [][]string
	for _, r := range rowsOf(t, suite(), c) {
		table = append(table, r.cells(beside))
	}
	require.Equal(t, [][]string{
		{"w", "ours", "p50", "40 ms", "40 ms – 40 ms", "–", "≤ 50 ms", "met", "2"},
		{"w", "ours", "p99", "–", "–", "–", "worst ≤ 30 ms", "**missed**", "–"},
		{"w", "ours", "p50", "40 ms", "40 ms – 40 ms", "–", "worst ≤ 30 ms", "**missed**", "–"},
		{"w", "ours", "errors", "2", "2 – 2", "–", "≤ 0", "**missed**", "–"},
	}, table)
}

func TestARoundWithoutValueIsKnownAsSuch(t *testing.T) {
	taken := make(readings)
	taken.add("a", 2, map[Quantity]float64{P99: 7})
	values := taken[reading{"a", P99}]
	require.Len(t, values, 3)
	require.Equal(t, []float64{7}, measured(values))
	require.Equal(t, 7.0, values[2])
}

func TestAFailureSaysWhereItWas(t *testing.T) {
	var closed []string
	closer := func(name string) func() error {
		return func() error { closed = append(closed, name); return nil }
	}
	broken := errors.New("broken")
	fine := Contender{Name: "fine", Run: recorder("", 1).Run, Close: closer("fine")}
	never := Contender{Name: "never", Run: recorder("", 1).Run, Setup: func(context.Context) error { return nil }, Close: closer("never")}
	runs := 0

	err := suite().Compare(t.Context(), Comparison{Work: "GET", Contenders: []Contender{fine, {
		Name:  "bad",
		Close: closer("bad"),
		Run: func(context.Context, *B) error {
			if runs++; runs == 3 {
				return broken
			}
			return nil
		},
	}}})
	require.EqualError(t, err, "GET: bad, round 2: broken")
	require.ErrorIs(t, err, broken)
	require.Equal(t, []string{"bad", "fine"}, closed)

	closed = nil
	err = suite().Compare(t.Context(), Comparison{Work: "GET", Contenders: []Contender{fine, {
		Name:  "bad",
		Setup: func(context.Context) error { return broken },
		Run:   fine.Run,
		Close: closer("bad"),
	}, never}})
	require.EqualError(t, err, "GET: bad: set up: broken")
	require.Equal(t, []string{"bad", "fine"}, closed, "what was not set up is not closed")

	err = suite().Compare(t.Context(), Comparison{Work: "GET", Contenders: []Contender{{
		Name: "bad", Run: fine.Run, Close: func() error { return broken },
	}}})
	require.EqualError(t, err, "GET: bad: close: broken")
}

func TestACancelledComparisonEndsWithTheCause(t *testing.T) {
	why := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	turns := 0
	err := suite().Compare(ctx, Comparison{Work: "w", Contenders: []Contender{{Name: "a", Run: func(context.Context, *B) error {
		if turns++; turns == 2 {
			cancel(why)
		}
		return nil
	}}}})
	require.ErrorIs(t, err, why)
	require.Equal(t, 2, turns)
}

func TestAWrongComparisonIsRefused(t *testing.T) {
	a, b := recorder("a", 1), recorder("b", 1)
	ratio := func(name string, against ...string) []Target {
		return []Target{{Contender: name, Limit: AtMost(1, Ratio), Against: against}}
	}
	for want, c := range map[string]Comparison{
		"Work is empty":                        {Contenders: []Contender{a}},
		"no Contenders":                        {Work: "w"},
		`contender 1 is called "a", want a`:    {Work: "w", Contenders: []Contender{a, a}},
		`contender 0 is called ""`:             {Work: "w", Contenders: []Contender{{Run: a.Run}}},
		`contender "x" has no Run`:             {Work: "w", Contenders: []Contender{{Name: "x"}}},
		"Rounds is 4, want at least 5":         {Work: "w", Contenders: []Contender{a}, Rounds: 4},
		"Rounds is -1, want at least 5":        {Work: "w", Contenders: []Contender{a}, Rounds: -1},
		"Slice is -1s":                         {Work: "w", Contenders: []Contender{a}, Slice: -time.Second},
		`Baseline is "x", want one of the con`: {Work: "w", Contenders: []Contender{a}, Baseline: "x"},
		`a target names "x", want one of the`:  {Work: "w", Contenders: []Contender{a}, Baseline: "a", Targets: ratio("x")},
		`a target names "y", want one of the`:  {Work: "w", Contenders: []Contender{a}, Targets: ratio("a", "y")},
		`the target of "a" has no bound`:       {Work: "w", Contenders: []Contender{a, b}, Baseline: "b", Targets: []Target{{Contender: "a"}}},
		`the target of "b" is against itself`:  {Work: "w", Contenders: []Contender{a, b}, Targets: ratio("b", "a", "b")},
		`a ratio, and to nobody`:               {Work: "w", Contenders: []Contender{a}, Targets: ratio("a")},
		`a ratio to itself`:                    {Work: "w", Contenders: []Contender{a}, Baseline: "a", Targets: ratio("a")},
	} {
		err := suite().Compare(t.Context(), c)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, fmt.Sprintf("harness: compare %q: ", c.Work))
	}
	var none context.Context
	require.ErrorContains(t, suite().Compare(none, Comparison{}), "nil context")
}

func TestRoundsAndContendersMayBeChosenByFlags(t *testing.T) {
	var turns []string
	run := func(name string) Contender {
		return Contender{Name: name, Run: func(_ context.Context, b *B) error {
			turns = append(turns, name)
			b.Record(TimePerOp, 2)
			return nil
		}}
	}
	chosen := Topic{Name: "topic", Run: func(ctx context.Context, s *Suite) error {
		require.Equal(t, s.only == nil, s.Wants("GET"))
		return s.Compare(ctx, Comparison{
			Work: "SET", Contenders: []Contender{run("peer"), run("ours")}, Baseline: "peer", Cold: true, Whole: true,
			Targets: []Target{{Contender: "ours", Limit: AtMost(1, Worst)}, {Contender: "ours", Limit: AtMost(1, Ratio)}},
		})
	}}
	code, stdout, _ := start(t, chosen, "-rounds", "2", "-contender", "ours", "-only", "SET")
	require.Equal(t, exitMet, code, "it proves nothing")
	require.Equal(t, []string{"ours", "ours"}, turns)
	require.Contains(t, stdout, "; 2 rounds.\n")
	require.Contains(t, stdout, "Targets: 0 of 1 met, 1 **missed**. A quick run")

	code, _, _ = start(t, chosen, "-rounds", "6", "-contender", "ours")
	require.Equal(t, exitMet, code, "it proves nothing either")

	turns = nil
	code, stdout, _ = start(t, chosen, "-rounds", "6")
	require.Equal(t, exitMissed, code)
	require.Len(t, turns, 12)
	require.Contains(t, stdout, "Targets: 1 of 2 met, 1 **missed**.\n")
}

func TestATopicMayHaveFlagsAndALimitOfItsOwn(t *testing.T) {
	var told string
	own := Topic{
		Name:       "topic",
		QuickLimit: 10 * time.Millisecond,
		Flags:      func(flags *flag.FlagSet) { flags.StringVar(&told, "tell", "", "") },
		Run: func(ctx context.Context, s *Suite) error {
			s.Note("told %s", told)
			<-ctx.Done()
			return context.Cause(ctx)
		},
	}
	code, stdout, stderr := start(t, own, "-quick", "-tell", "it")
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "topic: told it\n")
	require.Contains(t, stdout, "a quick run takes at most 10ms")
}
