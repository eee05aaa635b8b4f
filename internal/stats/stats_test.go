package stats

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCounterAndGaugeCountFromManyGoroutines(t *testing.T) {
	var c Counter
	var g Gauge
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 1000 {
				c.Inc()
				g.Add(1)
				g.Add(-1)
			}
		})
	}
	wg.Wait()
	c.Add(7)
	require.EqualValues(t, 16_007, c.Load())
	require.Zero(t, g.Load())
	g.Set(-3)
	require.EqualValues(t, -3, g.Load())
}

func TestADurationFallsIntoTheFirstBucketWhoseBoundIsNotBelowIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(-1000, int64(time.Minute)).Draw(t, "d"))
		i := bucketOf(max(d, 0))
		if i < boundedBuckets {
			require.LessOrEqual(t, d, Bound(i))
		}
		if i > 0 {
			require.Greater(t, d, Bound(i-1))
		}
	})
	for i := range boundedBuckets {
		require.Equal(t, i, bucketOf(Bound(i)), "a bound belongs to its own bucket")
		require.Equal(t, i+1, bucketOf(Bound(i)+1))
	}
	require.Equal(t, boundedBuckets, bucketOf(1<<62))
	require.Zero(t, Bound(boundedBuckets))
	require.Zero(t, Bound(-1))
}

func TestHistogramSnapshotIsCumulativeForPrometheus(t *testing.T) {
	var h Histogram
	for _, d := range []time.Duration{-1, 64 * time.Microsecond, 65 * time.Microsecond, time.Hour} {
		h.Observe(d)
	}
	s := h.Snapshot()
	require.EqualValues(t, 4, s.Count)
	require.Equal(t, time.Hour+129*time.Microsecond, s.Sum)
	m := s.Cumulative()
	require.Len(t, m, boundedBuckets)
	require.EqualValues(t, 2, m[0.000064])
	require.EqualValues(t, 3, m[0.000128])
	require.EqualValues(t, 3, m[Bound(boundedBuckets-1).Seconds()], "what is above the last bound is in Count alone")
}

func TestCommandsListEveryFamilyAndClassFromTheStart(t *testing.T) {
	var c Commands
	s := c.Snapshot()
	require.Len(t, s.Latency, int(families))
	require.Len(t, s.Errors, int(errorClasses))
	seen := map[string]bool{}
	for _, l := range s.Latency {
		require.NotEmpty(t, l.Family)
		require.False(t, seen[l.Family])
		seen[l.Family] = true
	}
	for _, e := range s.Errors {
		require.NotEmpty(t, e.Class)
		require.False(t, seen[e.Class])
		seen[e.Class] = true
	}
	c.Observe(Write, time.Millisecond)
	c.Observe(Pipeline, time.Millisecond)
	c.Pipelined(5)
	c.Failed(Timeout)
	s = c.Snapshot()
	require.EqualValues(t, 2, s.Total())
	require.EqualValues(t, 1, s.Failed())
	require.EqualValues(t, 5, s.Pipelined)
	require.EqualValues(t, 1, s.Latency[Write].Count)
	require.Equal(t, ErrorCount{Class: "timeout", Count: 1}, s.Errors[Timeout])
}

func TestObservingAllocatesNothing(t *testing.T) {
	var c Commands
	require.Zero(t, testing.AllocsPerRun(100, func() {
		c.Observe(Read, time.Millisecond)
		c.Failed(Network)
	}))
}

func BenchmarkObserve(b *testing.B) {
	var c Commands
	for b.Loop() {
		c.Observe(Read, 100*time.Microsecond)
	}
}
