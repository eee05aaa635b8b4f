package harness

import (
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestMedianIsTheMiddle(t *testing.T) {
	values := []float64{9, 1, 5}
	require.Equal(t, 5.0, median(values))
	require.Equal(t, []float64{9, 1, 5}, values, "the values keep their order")
	require.Equal(t, 3.0, median([]float64{5, 1, 9, 1}))
	require.Equal(t, 7.0, median([]float64{7}))
	require.True(t, math.IsNaN(median(nil)))
}

// The bounds are those of the tables of the sign test.
func TestIntervalLeavesOutWhatTheSignTestRejects(t *testing.T) {
	for n, outside := range map[int]int{1: 0, 2: 0, 5: 0, 6: 0, 8: 0, 9: 1, 12: 2, 15: 3, 20: 5, 25: 7, 50: 17, 100: 39, 2000: 955} {
		values := make([]float64, n)
		for i := range values {
			values[i] = float64(n - i)
		}
		low, high := interval(values)
		require.Equal(t, [2]float64{float64(outside + 1), float64(n - outside)}, [2]float64{low, high}, "%d values", n)
	}
	low, high := interval(nil)
	require.True(t, math.IsNaN(low) && math.IsNaN(high))
}

func TestIntervalHoldsTheMedian(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(-1e9, 1e9), 1, 300).Draw(t, "values")
		low, high := interval(values)
		m := median(values)
		require.LessOrEqual(t, low, m)
		require.GreaterOrEqual(t, high, m)
		require.Contains(t, values, low)
		require.Contains(t, values, high)
	})
}

func TestRatiosAreMadeWithinARound(t *testing.T) {
	// The machine is slow in the second round, for both.
	base, values := []float64{10, 40, 10}, []float64{11, 44, 11}
	require.InDeltaSlice(t, []float64{1.1, 1.1, 1.1}, ratios(values, base), 1e-9)

	nan := math.NaN()
	require.Equal(t, []float64{2}, ratios([]float64{nan, 1, 1, 2, 9}, []float64{1, nan, 0, 1}),
		"a round that lacks a side is left out")
	require.Empty(t, ratios(nil, base))
}

func TestMeasuredDropsRoundsWithoutValue(t *testing.T) {
	values := []float64{1, math.NaN(), 0}
	require.Equal(t, []float64{1, 0}, measured(values))
	require.Len(t, values, 3)
	require.Zero(t, values[2], "the values are left as they are")
}

func TestQuantilesAreExactBelow256Nanoseconds(t *testing.T) {
	var l latencies
	for ns := range 100 {
		l.add(1 + timeNs(ns))
	}
	require.Equal(t, 50.0, l.quantile(0.5))
	require.Equal(t, 99.0, l.quantile(0.99))
	require.Equal(t, 100.0, l.quantile(1))
	require.Equal(t, 1.0, l.quantile(0))
}

func TestQuantilesAreWithinAHundredth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ns := rapid.SliceOfN(rapid.Int64Range(0, maxLatency), 1, 500).Draw(t, "ns")
		q := rapid.Float64Range(0.001, 1).Draw(t, "q")
		var a, b latencies // as two callers
		for i, v := range ns {
			[]*latencies{&a, &b}[i%2].add(timeNs(int(v)))
		}
		a.merge(&b)
		slices.Sort(ns)
		want := float64(ns[max(int(math.Ceil(q*float64(len(ns))))-1, 0)])
		require.InDelta(t, want, a.quantile(q), max(want/128, 0.5))
	})
}

func TestLatenciesOutOfRangeCountAtTheEnds(t *testing.T) {
	var l latencies
	require.True(t, math.IsNaN(l.quantile(0.5)))
	l.add(-1)
	require.Zero(t, l.quantile(1))
	l.add(math.MaxInt64)
	require.InEpsilon(t, float64(maxLatency), l.quantile(1), 0.01)
}
