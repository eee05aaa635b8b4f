package conn

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
)

func TestANewEpochClosesTheBreakerAndWakesWhoWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, srv := inMemory(t, Config{Role: "broker", Breaker: breaker.Config{DialFailures: 1, OpenFor: time.Hour}})
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		srv.Stop()
		start := time.Now()
		done := make(chan error, 1)
		go func() { done <- c.Get(t.Context(), "k").Err() }()
		time.Sleep(10 * time.Second)
		require.Equal(t, "open", c.Stats().Breaker.State)
		require.NoError(t, srv.Restart())
		c.newEpoch()
		require.NoError(t, <-done)
		require.Equal(t, 10*time.Second, time.Since(start), "not the hour of the breaker")
	})
}

func TestEpochsAreToldUntilStop(t *testing.T) {
	c, _ := inMemory(t, Config{})
	var heard []uint64
	stop := c.OnEpoch(func(n uint64) { heard = append(heard, n) })
	c.newEpoch()
	c.newEpoch()
	stop()
	c.newEpoch()
	require.Equal(t, []uint64{1, 2}, heard)
	require.EqualValues(t, 3, c.Epoch())
}

func TestACallerWithoutDeadlineWaitsAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, srv := inMemory(t, Config{Role: "broker"})
		srv.Stop()
		start := time.Now()
		require.ErrorContains(t, c.Incr(t.Context(), "n").Err(), "a minute is over")
		require.GreaterOrEqual(t, time.Since(start), time.Minute)
		require.Less(t, time.Since(start), 63*time.Second)
	})
}

func TestCloseEndsTheWaitOfCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, srv := inMemory(t, Config{Role: "broker"})
		srv.Stop()
		done := make(chan error, 1)
		go func() { done <- c.Incr(t.Context(), "n").Err() }()
		time.Sleep(time.Second)
		start := time.Now()
		require.NoError(t, c.Close())
		require.ErrorIs(t, <-done, ErrClosed)
		require.Less(t, time.Since(start), 100*time.Millisecond)
	})
}
