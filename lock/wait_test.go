package lock

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// late is a context whose end comes a little after its deadline, as each one's does.
type late struct {
	context.Context
	deadline time.Time
}

func (l late) Deadline() (time.Time, bool) { return l.deadline, true }

func TestADeadlineThatHasPassedIsTheEndOfTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errTest)
		defer cancel()
		require.NoError(t, ended(ctx))
		require.Equal(t, errTest, ended(late{ctx, time.Now()}), "whatever go-redis has made of it")
		require.Equal(t, errTest, ended(ctx))
	})
}

func TestAPollerSleepsWithJitterAndNotBeyondTheOthersLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := poller{closing: t.Context(), pause: pollMin}
		sleep := func(left time.Duration) time.Duration {
			start := time.Now()
			require.NoError(t, w.wait(t.Context(), left))
			return time.Since(start)
		}
		for most := pollMin; most <= pollMax; most *= 2 {
			d := sleep(-1)
			require.GreaterOrEqual(t, d, most/2)
			require.LessOrEqual(t, d, most)
		}
		var long, short []time.Duration
		for range 100 {
			long = append(long, sleep(time.Hour))
			short = append(short, sleep(50*time.Millisecond))
		}
		for i := range long {
			require.GreaterOrEqual(t, long[i], pollMax/2)
			require.LessOrEqual(t, long[i], pollMax)
			require.GreaterOrEqual(t, short[i], 50*time.Millisecond)
			require.Less(t, short[i], 50*time.Millisecond+pollMin)
		}
		require.NotEqual(t, long[0], long[1])
		require.NotEqual(t, short[0], short[1])
		require.Less(t, sleep(0), pollMin, "it has ended just now")
	})
}
