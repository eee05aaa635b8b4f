package harness

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func turn(slice time.Duration) *B {
	return &B{slice: slice, values: make(map[Quantity]float64)}
}

func sleep(d time.Duration) func(context.Context, int, int) error {
	return func(context.Context, int, int) error { time.Sleep(d); return nil }
}

func TestMeasureCountsForTheSlice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := turn(99500 * time.Microsecond) // what has begun may end
		start := time.Now()
		require.NoError(t, b.Measure(t.Context(), Load{}, sleep(time.Millisecond)))
		require.Equal(t, 100*time.Millisecond, time.Since(start))
		require.Equal(t, 1e6, b.values[TimePerOp])
		require.Equal(t, 1000.0, b.values[OpsPerSecond])
		require.InEpsilon(t, 1e6, b.values[P50], 0.01)
		require.InEpsilon(t, 1e6, b.values[P99], 0.01)
		require.NotContains(t, b.values, ServerCPU)
	})
}

func TestMeasureAddsUpTheCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := turn(99500 * time.Microsecond)
		require.NoError(t, b.Measure(t.Context(), Load{Callers: 4}, sleep(time.Millisecond)))
		require.Equal(t, 4000.0, b.values[OpsPerSecond])
		require.Equal(t, 0.25e6, b.values[TimePerOp])
		require.InEpsilon(t, 1e6, b.values[P50], 0.01, "a latency is one caller's")
	})
}

func TestMeasureSharesACountOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := turn(time.Millisecond) // does not count
		var calls [3]atomic.Int64
		require.NoError(t, b.Measure(t.Context(), Load{Callers: 3, Count: 11}, func(_ context.Context, caller, n int) error {
			require.EqualValues(t, n, calls[caller].Add(1)-1)
			time.Sleep(time.Second)
			return nil
		}))
		require.Equal(t, [3]int64{4, 4, 3}, [3]int64{calls[0].Load(), calls[1].Load(), calls[2].Load()})
		require.Equal(t, 11.0/4, b.values[OpsPerSecond])
	})
}

func TestMeasureTimesTheCallsItIsAskedTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slowThird := func(_ context.Context, _, n int) error {
			time.Sleep(time.Duration(1+n%3) * time.Millisecond)
			return nil
		}
		b := turn(time.Second)
		require.NoError(t, b.Measure(t.Context(), Load{Count: 30, TimeEvery: 3}, slowThird))
		require.InEpsilon(t, 1e6, b.values[P99], 0.01, "the slow ones were not timed")

		b = turn(time.Second)
		require.NoError(t, b.Measure(t.Context(), Load{Count: 30, TimeEvery: -1}, slowThird))
		require.NotContains(t, b.values, P50)
		require.Equal(t, 2e6, b.values[TimePerOp])
	})
}

func TestMeasureEndsWithTheFirstError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := turn(time.Hour)
		start := time.Now()
		err := b.Measure(t.Context(), Load{Callers: 2}, func(_ context.Context, caller, n int) error {
			time.Sleep(time.Second)
			if caller == 1 && n == 2 {
				return errors.New("refused")
			}
			return nil
		})
		require.ErrorContains(t, err, "operations: refused")
		require.LessOrEqual(t, time.Since(start), 4*time.Second)
		require.Empty(t, b.values)
	})
}

func TestMeasureEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("interrupted")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, why)
		defer cancel()
		start := time.Now()
		require.ErrorIs(t, turn(time.Hour).Measure(ctx, Load{}, sleep(time.Second)), why)
		require.LessOrEqual(t, time.Since(start), 61*time.Second)
	})
}

func TestMeasureRefusesWhatItCannotDo(t *testing.T) {
	err := turn(time.Second).Measure(t.Context(), Load{Callers: -1}, sleep(0))
	require.ErrorContains(t, err, "Callers is -1 and Count 0, want at least 1")
	err = turn(time.Second).Measure(t.Context(), Load{Count: -2}, sleep(0))
	require.ErrorContains(t, err, "Count -2")
}

var sink atomic.Pointer[[1000]byte]

func TestMeasureCountsAllocations(t *testing.T) {
	b := turn(time.Second)
	require.NoError(t, b.Measure(t.Context(), Load{Count: 10000, TimeEvery: -1}, func(context.Context, int, int) error {
		sink.Store(new([1000]byte))
		return nil
	}))
	require.InDelta(t, 1, b.values[Allocs], 0.1)
	require.InDelta(t, 1024, b.values[AllocBytes], 50)
}

func TestMeasureCollectsTheHeapBeforehand(t *testing.T) {
	collections := func() uint32 {
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.NumForcedGC
	}
	before, meanwhile := collections(), uint32(0)
	require.NoError(t, turn(time.Second).Measure(t.Context(), Load{Count: 1}, func(context.Context, int, int) error {
		meanwhile = collections()
		return nil
	}))
	require.Equal(t, before+1, meanwhile)
}

func TestMeasureTakesCPUTimeOfBothSides(t *testing.T) {
	server := redistest.New(t, redistest.Config{})
	monitor, rdb := server.Client(t), server.Client(t)
	b := turn(time.Second)
	busy := func(ctx context.Context, _, _ int) error {
		// Both sides work for at least some hundred microseconds.
		if err := rdb.Eval(ctx, "for i = 1, 100000 do redis.sha1hex('') if i == 500 then return 1 end end", nil).Err(); err != nil {
			return err
		}
		for began := time.Now(); time.Since(began) < 200*time.Microsecond; {
		}
		return nil
	}
	require.NoError(t, b.Measure(t.Context(), Load{Count: 500, Servers: []*redis.Client{monitor}}, busy))
	for _, side := range []Quantity{ClientCPU, ServerCPU} {
		require.Greater(t, b.values[side], float64(50*time.Microsecond), side.Name)
		require.Less(t, b.values[side], float64(50*time.Millisecond), side.Name)
	}

	one, err := serverCPU(t.Context(), []*redis.Client{monitor})
	require.NoError(t, err)
	both, err := serverCPU(t.Context(), []*redis.Client{monitor, rdb})
	require.NoError(t, err)
	require.GreaterOrEqual(t, both, 2*one, "servers add up")

	require.NoError(t, monitor.Close())
	err = turn(time.Millisecond).Measure(t.Context(), Load{Servers: []*redis.Client{monitor}}, sleep(0))
	require.ErrorContains(t, err, "CPU time of the server: ")
}

func TestCPUTimeIsReadFromInfo(t *testing.T) {
	used, err := parseCPU("# CPU\r\nused_cpu_sys:1.500000\r\nused_cpu_user:2.250000\r\nused_cpu_sys_children:7.0\r\n")
	require.NoError(t, err)
	require.Equal(t, 3750*time.Millisecond, used)

	_, err = parseCPU("used_cpu_sys:1.5\r\n")
	require.EqualError(t, err, "INFO lacks used_cpu_user or used_cpu_sys")
	_, err = parseCPU("used_cpu_sys:x\r\nused_cpu_user:1\r\n")
	require.ErrorContains(t, err, `INFO: used_cpu_sys: strconv.ParseFloat: parsing "x"`)
}
