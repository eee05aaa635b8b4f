package stats

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	// firstBound is the upper bound of the first bucket: 64 µs, about one
	// round trip to a server on the same host. Each further bucket doubles it.
	firstBound = 64 * time.Microsecond

	// boundedBuckets is the number of buckets that have an upper bound. The
	// last bound is 64 µs × 2^18 = 16.8 s; what took longer is in the bucket
	// behind it.
	boundedBuckets = 19
)

// A Histogram counts durations in buckets whose bounds double from 64 µs to
// 16.8 s. Finding the bucket takes a few instructions: no search, no floats.
type Histogram struct {
	buckets [boundedBuckets + 1]atomic.Uint64
	sum     atomic.Int64 // nanoseconds
}

// Observe counts d. A negative duration counts as zero.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	h.buckets[bucketOf(d)].Add(1)
	h.sum.Add(int64(d))
}

// bucketOf returns the first bucket whose bound is not below d.
func bucketOf(d time.Duration) int {
	if d <= firstBound {
		return 0
	}
	return min(bits.Len64(uint64((d-1)/firstBound)), boundedBuckets)
}

// A HistogramSnapshot is what a [Histogram] held at one moment. Its parts are
// read one after the other, so a snapshot taken under load may be off by the
// observations that were under way.
type HistogramSnapshot struct {
	// Count is the number of observations, Sum their total.
	Count uint64
	Sum   time.Duration

	// Buckets[i] counts the observations of at most Bound(i), those of the
	// buckets before it not included. The last one has no bound.
	Buckets [boundedBuckets + 1]uint64
}

// Snapshot returns what h holds.
func (h *Histogram) Snapshot() HistogramSnapshot {
	var s HistogramSnapshot
	for i := range h.buckets {
		s.Buckets[i] = h.buckets[i].Load()
		s.Count += s.Buckets[i]
	}
	s.Sum = time.Duration(h.sum.Load())
	return s
}

// Bound is the upper bound of bucket i, inclusive; 0 for the last one, which has none.
func Bound(i int) time.Duration {
	if i < 0 || i >= boundedBuckets {
		return 0
	}
	return firstBound << i
}

// Cumulative returns, for each bound in seconds, the observations up to it: the
// form in which Prometheus takes a histogram.
func (s HistogramSnapshot) Cumulative() map[float64]uint64 {
	m := make(map[float64]uint64, boundedBuckets)
	var n uint64
	for i := range boundedBuckets {
		n += s.Buckets[i]
		m[Bound(i).Seconds()] = n
	}
	return m
}
