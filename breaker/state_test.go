package breaker_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
)

func TestOpensAtTheRatioOfEnoughCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		for range 10 {
			require.NoError(t, do(t.Context(), h, nil, "get", "k"))
		}
		for range 9 {
			require.Equal(t, io.EOF, do(t.Context(), h, io.EOF, "get", "k"))
			_ = do(t.Context(), h, redis.ErrPoolTimeout, "get", "k") // does not count
		}
		require.Equal(t, breaker.StateClosed, h.State())
		require.Equal(t, io.EOF, do(t.Context(), h, io.EOF, "get", "k")) // 10 of 20
		require.Equal(t, breaker.StateOpen, h.State())
		require.ErrorIs(t, do(t.Context(), h, nil, "get", "k"), breaker.ErrOpen)
		require.EqualValues(t, 1, h.Counts().Trips)
		require.EqualValues(t, 1, h.Counts().Rejected)
	})
}

func TestFailuresLeaveTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{Window: time.Minute})
		for range 19 {
			_ = do(t.Context(), h, io.EOF, "get", "k")
		}
		time.Sleep(time.Minute)
		for range 19 {
			_ = do(t.Context(), h, io.EOF, "get", "k")
		}
		require.Equal(t, breaker.StateClosed, h.State())
		_ = do(t.Context(), h, io.EOF, "get", "k")
		require.Equal(t, breaker.StateOpen, h.State())
	})
}

func TestOpensAfterFailedDialsInARow(t *testing.T) {
	h := newHook(t, breaker.Config{OpenFor: time.Hour})
	for range 4 {
		require.Equal(t, error(errRefused), failDial(h, errRefused))
	}
	dial := h.DialHook(func(context.Context, string, string) (net.Conn, error) { return nil, nil })
	_, err := dial(t.Context(), "tcp", "10.0.0.1:6379")
	require.NoError(t, err)
	for range 4 {
		_ = failDial(h, errRefused)
		_ = failDial(h, redis.ErrClosed) // neutral
	}
	require.Equal(t, breaker.StateClosed, h.State())
	_ = failDial(h, errRefused)
	require.Equal(t, breaker.StateOpen, h.State())
	require.EqualValues(t, 9, h.Counts().DialFailures)
}

func TestDialFailuresCanBeLeftToTheRatio(t *testing.T) {
	h := newHook(t, breaker.Config{DialFailures: -1})
	for range 100 {
		_ = failDial(h, errRefused)
	}
	_ = do(t.Context(), h, errRefused, "get", "k")
	require.Equal(t, breaker.StateClosed, h.State())
}

func TestDialGivenUpByItsCallerIsNeutral(t *testing.T) {
	h := newHook(t, breaker.Config{})
	dial := h.DialHook(func(ctx context.Context, _, _ string) (net.Conn, error) { return nil, ctx.Err() })
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := dial(gone, "tcp", "10.0.0.1:6379")
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, h.Counts().DialFailures)
}

func TestDialersOwnErrorStaysWhatItIs(t *testing.T) {
	own := errors.New("resolver: no primary")
	err := failDial(newHook(t, breaker.Config{}), own)
	require.ErrorIs(t, err, own)
	require.EqualError(t, err, own.Error())
}

func TestResetClosesBothCircuits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes []breaker.Change
		h := newHook(t, breaker.Config{OpenFor: time.Hour, MinCalls: 1, OnStateChange: func(c breaker.Change) {
			c.Cause = nil
			changes = append(changes, c)
		}})
		_ = do(t.Context(), h, reply("READONLY You can't write"), "set", "k", "v")

		// A command that the old server fails after the reset.
		hang, late := make(chan error), make(chan error)
		process := h.ProcessHook(func(context.Context, redis.Cmder) error { return <-hang })
		go func() { late <- process(t.Context(), redis.NewCmd(t.Context(), "get", "k")) }()
		synctest.Wait()

		trip(t, h)
		for range 4 {
			_ = failDial(h, errRefused)
		}
		h.Reset()
		hang <- io.EOF
		require.Equal(t, io.EOF, <-late)
		_ = failDial(h, errRefused) // the first, again

		require.Equal(t, breaker.StateClosed, h.State())
		require.Equal(t, breaker.StateClosed, h.WriteState())
		require.NoError(t, do(t.Context(), h, nil, "set", "k", "v"))
		h.Reset() // nothing to tell
		all := breaker.Change{Role: "cache", Node: "10.0.0.1:6379"}
		writes := all
		writes.WritesOnly = true
		require.Equal(t, []breaker.Change{
			move(writes, breaker.StateClosed, breaker.StateOpen), move(all, breaker.StateClosed, breaker.StateOpen),
			move(all, breaker.StateOpen, breaker.StateClosed), move(writes, breaker.StateOpen, breaker.StateClosed),
		}, changes)
	})
}

func move(c breaker.Change, from, to breaker.State) breaker.Change {
	c.From, c.To = from, to
	return c
}

func TestResetForgetsFailedDials(t *testing.T) {
	h := newHook(t, breaker.Config{})
	for range 4 {
		_ = failDial(h, errRefused)
	}
	h.Reset()
	_ = failDial(h, errRefused)
	require.Equal(t, breaker.StateClosed, h.State())
}

func TestResultOfAnOldServersCallOpensNothingAfterReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{MinCalls: 1, OnStateChange: func(c breaker.Change) { t.Errorf("%+v", c) }})
		hang, late := make(chan error), make(chan error)
		process := h.ProcessHook(func(context.Context, redis.Cmder) error { return <-hang })
		go func() { late <- process(t.Context(), redis.NewCmd(t.Context(), "get", "k")) }()
		synctest.Wait()
		h.Reset()
		hang <- io.EOF
		require.Equal(t, io.EOF, <-late)
		require.Equal(t, breaker.StateClosed, h.State())
		require.Zero(t, h.Counts().Trips)
	})
}

func TestChangesAreToldInOrderAndMayReadTheHook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h *breaker.Hook
		var changes []breaker.Change
		h = newHook(t, breaker.Config{OnStateChange: func(c breaker.Change) {
			require.Equal(t, c.To, h.State())
			_ = h.Counts()
			changes = append(changes, c)
		}})
		trip(t, h)
		time.Sleep(time.Second + 1)
		_ = do(t.Context(), h, io.EOF, "get", "k")
		time.Sleep(time.Second + 1)
		require.NoError(t, do(t.Context(), h, nil, "get", "k"))

		var moves [][2]breaker.State
		var causes []error
		for _, c := range changes {
			moves, causes = append(moves, [2]breaker.State{c.From, c.To}), append(causes, c.Cause)
		}
		require.Equal(t, [][2]breaker.State{
			{breaker.StateClosed, breaker.StateOpen}, {breaker.StateOpen, breaker.StateHalfOpen},
			{breaker.StateHalfOpen, breaker.StateOpen}, {breaker.StateOpen, breaker.StateHalfOpen},
			{breaker.StateHalfOpen, breaker.StateClosed},
		}, moves)
		require.Equal(t, []error{errRefused, nil, io.EOF, nil, nil}, causes)
	})
}

func TestStatesHaveNames(t *testing.T) {
	require.Equal(t, "closed", breaker.StateClosed.String())
	require.Equal(t, "half-open", breaker.StateHalfOpen.String())
	require.Equal(t, "open", breaker.StateOpen.String())
	require.Equal(t, "State(7)", breaker.State(7).String())
}
