package harness

import (
	"math"
	"slices"
)

// median returns the middle value, or the mean of the two in the middle; NaN of
// none. It leaves values as they are.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// interval returns bounds between which the median of what values is a sample
// of lies with a probability of at least 95 %, whatever the distribution: the
// order statistics that the sign test does not reject (Conover, Practical
// Nonparametric Statistics, 1999, section 3.2). Of fewer than six values they
// are the smallest and the greatest, and the probability is smaller.
func interval(values []float64) (low, high float64) {
	if len(values) == 0 {
		return math.NaN(), math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	below := 0 // values outside the bounds, on each side
	for tail := 0.0; below < n/2; below++ {
		tail += halfBinomial(n, below)
		if tail > 0.025 {
			break
		}
	}
	outside := max(below-1, 0)
	return sorted[outside], sorted[n-1-outside]
}

// halfBinomial is the probability of k heads in n tosses of a coin.
func halfBinomial(n, k int) float64 {
	gamma := func(x int) float64 { y, _ := math.Lgamma(float64(x)); return y }
	return math.Exp(gamma(n+1) - gamma(k+1) - gamma(n-k+1) - float64(n)*math.Ln2)
}

// ratios divides each value by that of the same round in base, which cancels
// what slows down both: pairs that lack a side, or have a base of 0, are left
// out.
func ratios(values, base []float64) []float64 {
	out := make([]float64, 0, len(values))
	for i := range min(len(values), len(base)) {
		if r := values[i] / base[i]; !math.IsNaN(r) && !math.IsInf(r, 0) {
			out = append(out, r)
		}
	}
	return out
}

// measured drops the rounds in which nothing was measured.
func measured(values []float64) []float64 {
	return slices.DeleteFunc(slices.Clone(values), math.IsNaN)
}
