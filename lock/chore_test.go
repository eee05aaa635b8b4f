package lock

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAChoreRunsWhenItIsPlanned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
		var runs []time.Duration
		next := map[int]time.Time{1: at(4)} // after the second run: again at 4 s
		c := &chore{do: func() time.Time {
			runs = append(runs, time.Since(start))
			return next[len(runs)-1]
		}}
		c.plan(at(3))
		c.plan(at(2)) // earlier than planned
		c.plan(at(5)) // later: is forgotten
		c.plan(time.Time{})
		time.Sleep(2500 * time.Millisecond)
		c.plan(at(3))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, []time.Duration{2 * time.Second, 3 * time.Second, 4 * time.Second}, runs)
		require.NoError(t, c.stop(t.Context()))
		c.plan(time.Now())
		time.Sleep(time.Minute)
		require.Len(t, runs, 3, "it was stopped")
	})
}

func TestAChoreDoesNotRunTwiceAtOnceAndStopWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running, runs := 0, 0
		c := &chore{}
		c.do = func() time.Time {
			running, runs = running+1, runs+1
			if running != 1 {
				t.Error("runs twice at once")
			}
			c.plan(time.Now()) // while it runs
			time.Sleep(time.Second)
			running--
			return time.Now().Add(time.Hour) // later than planned
		}
		c.plan(time.Now())
		time.Sleep(5*time.Second + 500*time.Millisecond)
		c.run() // as by a timer that had fired before it was set anew
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.Equal(t, 11, runs)

		ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errTest)
		defer cancel()
		require.ErrorIs(t, c.stop(ctx), errTest)
		require.NoError(t, c.stop(t.Context()))
		require.Zero(t, running)
		time.Sleep(time.Minute)
		require.Equal(t, 11, runs)
	})
}
