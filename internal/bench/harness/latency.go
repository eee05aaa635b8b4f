package harness

import (
	"math"
	"math/bits"
	"time"
)

// precisionBits is such that a bucket is no wider than 1/128 of its values.
const precisionBits = 7

// maxLatency is the greatest latency told apart, some 18 minutes.
const maxLatency = 1<<40 - 1

// latencies is a histogram of nanoseconds in 17 KB, after the manner of Gil
// Tene's HdrHistogram: exact below 256 ns, within 0.8 % above. One bucket counts
// up to 2^32 operations.
type latencies struct {
	counts [(40 - precisionBits + 1) << precisionBits]uint32
	n      uint64
}

func (l *latencies) add(d time.Duration) {
	l.counts[bucketOf(uint64(min(max(d, 0), maxLatency)))]++
	l.n++
}

func (l *latencies) merge(other *latencies) {
	for i, n := range other.counts {
		l.counts[i] += n
	}
	l.n += other.n
}

// quantile returns the latency that a part q of the operations did not exceed,
// in nanoseconds; NaN of none.
func (l *latencies) quantile(q float64) float64 {
	if l.n == 0 {
		return math.NaN()
	}
	rank := max(math.Ceil(q*float64(l.n)), 1)
	seen := 0.0
	for i, n := range l.counts {
		if n == 0 {
			continue
		}
		if seen+float64(n) >= rank {
			low, width := bucketBounds(i)
			return low + (width-1)*(rank-seen-0.5)/float64(n)
		}
		seen += float64(n)
	}
	return maxLatency
}

// bucketOf returns ns itself below 256; above, the power of two that ns is
// shifted by, and its highest eight bits.
func bucketOf(ns uint64) int {
	shift := max(bits.Len64(ns)-precisionBits-1, 0)
	return shift<<precisionBits + int(ns>>shift)
}

// bucketBounds returns the smallest value in a bucket, and how many it holds.
func bucketBounds(i int) (low, width float64) {
	shift := max(i>>precisionBits-1, 0)
	return float64(uint64(i-shift<<precisionBits) << shift), float64(uint64(1) << shift)
}
