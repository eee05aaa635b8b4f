package breaker_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
)

func TestRefusedWritesLeaveReadsAlone(t *testing.T) {
	for _, refusal := range []string{
		"OOM command not allowed", "READONLY You can't write", "NOREPLICAS Not enough", "MISCONF Redis is configured",
	} {
		t.Run(refusal[:4], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHook(t, breaker.Config{})
				full := reply(refusal)
				for range 20 {
					require.Equal(t, full, do(t.Context(), h, full, "set", "k", "v"))
					require.NoError(t, do(t.Context(), h, nil, "get", "k"))
				}
				require.Equal(t, breaker.StateClosed, h.State())
				require.Equal(t, breaker.StateOpen, h.WriteState())
				require.EqualValues(t, 1, h.Counts().WriteTrips)
				require.Zero(t, h.Counts().Trips)

				var open *breaker.OpenError
				require.ErrorAs(t, do(t.Context(), h, nil, "set", "k", "v"), &open)
				require.True(t, open.WritesOnly)
				require.Equal(t, error(full), open.Cause)
				require.ErrorContains(t, open, "is open for writes until")
				// What frees memory, or may only read, goes on.
				for _, args := range [][]any{{"get", "k"}, {"del", "k"}, {"xack", "s", "g", "1-1"}, {"evalsha", "sha", 0}} {
					require.NoError(t, do(t.Context(), h, nil, args...))
				}
				require.NoError(t, do(breaker.Bypass(t.Context()), h, nil, "set", "k", "v"))

				time.Sleep(time.Second + 1)
				require.Equal(t, breaker.StateHalfOpen, h.WriteState())
				require.NoError(t, do(t.Context(), h, nil, "SET", "k", "v"))
				require.Equal(t, breaker.StateClosed, h.WriteState())
			})
		})
	}
}

func TestWritesThatSucceedKeepTheirCircuitClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		for range 100 {
			_ = do(t.Context(), h, reply("OOM command not allowed"), "set", "k", "v")
			require.NoError(t, do(t.Context(), h, nil, "set", "k", "v"))
			require.NoError(t, do(t.Context(), h, nil, "set", "k", "v"))
		}
		require.Equal(t, breaker.StateClosed, h.WriteState())
	})
}

func TestLostRepliesAreNotHeldAgainstWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{MinCalls: 2, FailureRatio: 1})
		_ = do(t.Context(), h, reply("OOM command not allowed"), "set", "k", "v")
		_ = do(t.Context(), h, io.EOF, "set", "k", "v")
		require.Equal(t, breaker.StateClosed, h.WriteState())
		_ = do(t.Context(), h, reply("OOM command not allowed"), "set", "k", "v")
		require.Equal(t, breaker.StateOpen, h.WriteState())
	})
}

func TestWritesAreForgottenAfterAWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{MinCalls: 2})
		_ = do(t.Context(), h, reply("OOM command not allowed"), "evalsha", "sha", 0)
		time.Sleep(10 * time.Second)
		require.NoError(t, do(t.Context(), h, nil, "set", "k", "v"))
		_ = do(t.Context(), h, reply("OOM command not allowed"), "evalsha", "sha", 0)
		require.Equal(t, breaker.StateClosed, h.WriteState())
	})
}

func TestWritesStayRefusedThoughTheWindowIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{MinCalls: 1, OpenFor: time.Hour})
		_ = do(t.Context(), h, reply("OOM command not allowed"), "set", "k", "v")
		time.Sleep(time.Hour - time.Second)
		require.ErrorIs(t, do(t.Context(), h, nil, "set", "k", "v"), breaker.ErrOpen)
	})
}

func TestWritesThatPassByBypassDoNotMoveTheirCircuit(t *testing.T) {
	h := newHook(t, breaker.Config{OpenFor: time.Hour, MinCalls: 1})
	trip(t, h)
	_ = do(breaker.Bypass(t.Context()), h, reply("OOM command not allowed"), "set", "k", "v")
	_ = do(breaker.Bypass(t.Context()), h, reply("OOM command not allowed"), "evalsha", "renew")
	require.Equal(t, breaker.StateClosed, h.WriteState())
}

func TestPipelineIsAWriteIfItDoesNothingElse(t *testing.T) {
	for _, c := range []struct {
		commands []string
		refused  bool
	}{
		{[]string{"set", "HSET", "xadd"}, true},
		{[]string{"multi", "set", "exec"}, true},
		{[]string{"set", "get"}, false},
		{[]string{"set", "del"}, false},
		{[]string{"multi", "exec"}, false},
	} {
		h := newHook(t, breaker.Config{MinCalls: 1})
		_ = do(t.Context(), h, reply("OOM command not allowed"), "set", "k", "v")
		require.Equal(t, breaker.StateOpen, h.WriteState())
		send := h.ProcessPipelineHook(func(context.Context, []redis.Cmder) error { return nil })
		var cmds []redis.Cmder
		for _, name := range c.commands {
			cmds = append(cmds, redis.NewCmd(t.Context(), name))
		}
		err := send(t.Context(), cmds)
		require.Equal(t, c.refused, errors.Is(err, breaker.ErrOpen), "%v: %v", c.commands, err)
		require.Equal(t, err, cmds[0].Err())
	}
}

func TestAServerThatIsDownIsRefusedWholeThoughItsWritesAreWatched(t *testing.T) {
	h := newHook(t, breaker.Config{OpenFor: time.Hour})
	_ = do(t.Context(), h, reply("OOM command not allowed"), "set", "k", "v")
	trip(t, h)
	var open *breaker.OpenError
	require.ErrorAs(t, do(t.Context(), h, nil, "set", "k", "v"), &open)
	require.False(t, open.WritesOnly)
	require.Equal(t, breaker.StateClosed, h.WriteState())
}
