package breaker_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
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
	h := newHook(t, breaker.Config{})
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

func TestHalfOpenLetsOneCommandThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		trip(t, h)
		time.Sleep(time.Second + 1)
		require.Equal(t, breaker.StateHalfOpen, h.State())

		hang := make(chan error)
		probing := make(chan error)
		process := h.ProcessHook(func(context.Context, redis.Cmder) error { return <-hang })
		go func() { probing <- process(t.Context(), redis.NewCmd(t.Context(), "get", "k")) }()
		synctest.Wait()

		var open *breaker.OpenError
		require.ErrorAs(t, do(t.Context(), h, nil, "get", "k"), &open)
		require.Equal(t, 100*time.Millisecond, time.Until(open.RetryAt)) // a tenth of OpenFor

		hang <- nil
		require.NoError(t, <-probing)
		require.Equal(t, breaker.StateClosed, h.State())
		require.NoError(t, do(t.Context(), h, nil, "get", "k"))
	})
}

func TestFailedProbeOpensAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		trip(t, h)
		time.Sleep(time.Second + 1)
		require.Equal(t, io.EOF, do(t.Context(), h, io.EOF, "get", "k"))
		require.Equal(t, breaker.StateOpen, h.State())
		require.EqualValues(t, 2, h.Counts().Trips)
	})
}

func TestNeutralProbeMakesRoomForTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		trip(t, h)
		time.Sleep(time.Second + 1)
		for range 3 {
			require.Equal(t, redis.ErrPoolTimeout, do(t.Context(), h, redis.ErrPoolTimeout, "get", "k"))
			require.Equal(t, breaker.StateHalfOpen, h.State())
		}
		require.NoError(t, do(t.Context(), h, nil, "get", "k"))
		require.Equal(t, breaker.StateClosed, h.State())
	})
}

// A waiter that sleeps until RetryAt must not be told the same instant again:
// in virtual time it would never wake.
func TestRetryAtIsLateEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{OpenFor: 3 * time.Second})
		trip(t, h)
		start := time.Now()
		var open *breaker.OpenError
		require.ErrorAs(t, do(t.Context(), h, nil, "get", "k"), &open)
		time.Sleep(time.Until(open.RetryAt))
		require.Equal(t, breaker.StateHalfOpen, h.State())
		require.NoError(t, do(t.Context(), h, nil, "get", "k"))
		require.Equal(t, 3*time.Second, time.Since(start).Truncate(time.Microsecond))
	})
}

func TestOpenErrorSaysRoleNodeCauseAndTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the bubble's clock starts at midnight UTC
		h := newHook(t, breaker.Config{})
		trip(t, h)
		err := do(t.Context(), h, nil, "get", "k")
		require.ErrorIs(t, err, breaker.ErrOpen)
		require.NotErrorIs(t, err, errRefused) // or go-redis would repeat the command
		var open *breaker.OpenError
		require.ErrorAs(t, err, &open)
		require.Equal(t, "cache", open.Role)
		require.Equal(t, "10.0.0.1:6379", open.Node)
		require.Equal(t, error(errRefused), open.Cause)
		require.EqualError(t, err, "breaker: cache 10.0.0.1:6379 is open until "+open.RetryAt.Format("15:04:05.000")+
			", last failure: dial tcp: connect: connection refused")
	})
}

func TestRefusedPipelineHasTheErrorOnEachCommand(t *testing.T) {
	srv := newServer(t)
	h := newHook(t, breaker.Config{OpenFor: time.Hour})
	rdb := client(t, bubbleOptions(srv), h)
	trip(t, h)
	for _, pipelined := range []func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error){
		rdb.Pipelined, rdb.TxPipelined,
	} {
		var set, get redis.Cmder
		_, err := pipelined(t.Context(), func(p redis.Pipeliner) error {
			set, get = p.Set(t.Context(), "k", "v", 0), p.Get(t.Context(), "k")
			return nil
		})
		require.ErrorIs(t, err, breaker.ErrOpen)
		require.ErrorIs(t, set.Err(), breaker.ErrOpen)
		require.ErrorIs(t, get.Err(), breaker.ErrOpen)
	}
	require.EqualValues(t, 2, h.Counts().Rejected)
	require.Zero(t, h.Counts().Requests)
}

func TestCommandsOfATransactionPassTheBreaker(t *testing.T) {
	h := newHook(t, breaker.Config{OpenFor: time.Hour})
	rdb := client(t, bubbleOptions(newServer(t)), h)
	require.NoError(t, rdb.Watch(t.Context(), func(tx *redis.Tx) error {
		trip(t, h)
		require.ErrorIs(t, tx.Get(t.Context(), "k").Err(), breaker.ErrOpen)
		return nil
	}, "k"))
	require.ErrorIs(t, rdb.Watch(t.Context(), nil, "k"), breaker.ErrOpen)
}

func TestBypassPassesAnOpenBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		trip(t, h)
		ctx := breaker.Bypass(t.Context())
		require.NoError(t, do(ctx, h, nil, "evalsha", "renew"))
		require.Equal(t, io.EOF, do(ctx, h, io.EOF, "evalsha", "renew"))
		require.Equal(t, errTimeout, do(ctx, h, errTimeout, "blpop", "k", 0))
		require.Equal(t, breaker.StateOpen, h.State()) // unimpressed
		require.Equal(t, breaker.Counts{Requests: 3, Successes: 1, Failures: 1, Neutral: 1, Bypassed: 3, Trips: 1, DialFailures: 5}, h.Counts())

		time.Sleep(time.Second + 1)
		require.NoError(t, do(ctx, h, nil, "evalsha", "renew")) // the probe
		require.Equal(t, breaker.StateClosed, h.State())
		require.EqualValues(t, 3, h.Counts().Bypassed)
	})
}

func TestBypassCountsWhileClosed(t *testing.T) {
	h := newHook(t, breaker.Config{})
	ctx := breaker.Bypass(t.Context())
	for range 20 {
		_ = do(ctx, h, io.EOF, "evalsha", "renew")
	}
	require.Equal(t, breaker.StateOpen, h.State())
}

func TestBlockingCommandIsNoProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		var sent []string
		var answer error
		process := h.ProcessHook(func(_ context.Context, cmd redis.Cmder) error {
			sent = append(sent, cmd.Name())
			return answer
		})
		blpop := func() error { return process(t.Context(), redis.NewCmd(t.Context(), "blpop", "k", 0)) }

		trip(t, h)
		require.ErrorIs(t, blpop(), breaker.ErrOpen)
		require.EqualValues(t, 1, h.Counts().Rejected)
		require.Empty(t, sent)

		time.Sleep(time.Second + 1)
		answer = io.EOF // a PING goes ahead, and fails
		require.ErrorIs(t, blpop(), breaker.ErrOpen)
		require.Equal(t, []string{"ping"}, sent)
		require.Equal(t, breaker.StateOpen, h.State())

		time.Sleep(time.Second + 1)
		sent, answer = nil, redis.ErrPoolTimeout // and says nothing
		require.ErrorIs(t, blpop(), breaker.ErrOpen)
		require.Equal(t, []string{"ping"}, sent)
		require.Equal(t, breaker.StateHalfOpen, h.State())

		sent, answer = nil, nil // a program that only blocks comes back
		require.NoError(t, blpop())
		require.Equal(t, []string{"ping", "blpop"}, sent)
		require.Equal(t, breaker.StateClosed, h.State())
	})
}

func TestPipelineWithABlockingCommandIsNoProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		var sent [][]redis.Cmder
		send := h.ProcessPipelineHook(func(_ context.Context, cmds []redis.Cmder) error {
			sent = append(sent, cmds)
			return nil
		})
		trip(t, h)
		time.Sleep(time.Second + 1)
		cmds := []redis.Cmder{redis.NewCmd(t.Context(), "get", "k"), redis.NewCmd(t.Context(), "wait", 1, 0)}
		require.NoError(t, send(t.Context(), cmds))
		require.Len(t, sent, 2)
		require.Equal(t, "ping", sent[0][0].Name())
		require.Equal(t, cmds, sent[1])
	})
}

// In MULTI nothing blocks, and go-redis expects MULTI and EXEC around a
// transaction, so that a PING could not go ahead.
func TestTransactionWithABlockingCommandIsAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		rdb := client(t, bubbleOptions(newServer(t)), h)
		trip(t, h)
		time.Sleep(time.Second + 1)
		_, err := rdb.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
			p.BLPop(t.Context(), time.Second, "k")
			return nil
		})
		require.ErrorIs(t, err, redis.Nil)
		require.Equal(t, breaker.StateClosed, h.State())
	})
}

// As Options.OnConnect or a Dialer may.
func TestCommandsNestedInWhatWasLetThroughPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		trip(t, h)
		dial := h.DialHook(func(ctx context.Context, _, _ string) (net.Conn, error) {
			return nil, do(ctx, h, nil, "ping")
		})
		_, err := dial(t.Context(), "tcp", "10.0.0.1:6379")
		require.NoError(t, err)

		time.Sleep(time.Second + 1)
		process := h.ProcessHook(func(ctx context.Context, _ redis.Cmder) error {
			return do(ctx, h, nil, "xread", "block", 1, "streams", "s", "$")
		})
		require.NoError(t, process(t.Context(), redis.NewCmd(t.Context(), "get", "k")))
		require.Equal(t, breaker.StateClosed, h.State())

		// Another client's breaker is not let through with it.
		trip(t, h)
		time.Sleep(time.Second + 1)
		other := newHook(t, breaker.Config{})
		trip(t, other)
		process = h.ProcessHook(func(ctx context.Context, _ redis.Cmder) error { return do(ctx, other, nil, "get", "k") })
		require.ErrorIs(t, process(t.Context(), redis.NewCmd(t.Context(), "get", "k")), breaker.ErrOpen)
		require.Equal(t, breaker.StateHalfOpen, h.State())
	})
}

// The trap of a breaker in a hook: the handshake comes through the same hook,
// nested in the probe.
func TestHandshakeOfTheProbeIsNotRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		srv.RequireUserAuth("app", "secret")
		h := newHook(t, breaker.Config{})
		opt := bubbleOptions(srv)
		opt.Username, opt.Password, opt.DB, opt.ClientName = "app", "secret", 3, "test"
		opt.DialTimeout = time.Second
		up := opt.Dialer
		down := true
		opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if down {
				return nil, errRefused
			}
			return up(ctx, network, addr)
		}
		var nested []error
		opt.OnConnect = func(ctx context.Context, conn *redis.Conn) error {
			nested = append(nested, conn.Ping(ctx).Err())
			_, err := conn.Pipelined(ctx, func(p redis.Pipeliner) error { return p.Get(ctx, "k").Err() })
			if !errors.Is(err, redis.Nil) {
				nested = append(nested, err)
			}
			return errors.Join(nested...)
		}
		rdb := client(t, opt, h)

		require.ErrorIs(t, rdb.Get(t.Context(), "k").Err(), errRefused) // go-redis dials five times
		require.Equal(t, breaker.StateOpen, h.State())
		require.ErrorIs(t, rdb.Get(t.Context(), "k").Err(), breaker.ErrOpen)

		down = false
		require.ErrorIs(t, rdb.Get(t.Context(), "k").Err(), breaker.ErrOpen) // not yet
		time.Sleep(time.Second + 1)
		require.ErrorIs(t, rdb.Get(t.Context(), "k").Err(), redis.Nil)
		require.Equal(t, breaker.StateClosed, h.State())
		require.Equal(t, []error{nil}, nested)
		require.EqualValues(t, 2, h.Counts().Requests) // the two GETs
	})
}

func TestHandshakeIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		h := newHook(t, breaker.Config{})
		opt := bubbleOptions(srv)
		opt.DB, opt.ClientName = 3, "test"
		rdb := client(t, opt, h)
		require.NoError(t, rdb.Ping(t.Context()).Err())
		require.Equal(t, success, h.Counts())
	})
}

func TestHandshakeThatFailsCountsForItsCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		h := newHook(t, breaker.Config{})
		opt := bubbleOptions(srv)
		opt.PoolSize = 20
		opt.Dialer = func(context.Context, string, string) (net.Conn, error) {
			silent, _ := net.Pipe() // accepts, and never answers
			return silent, nil
		}
		rdb := client(t, opt, h)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { _ = rdb.Get(t.Context(), "k").Err() })
		}
		wg.Wait()
		require.Equal(t, breaker.Counts{Requests: 20, Failures: 20, Trips: 1}, h.Counts())
		require.ErrorIs(t, rdb.Get(t.Context(), "k").Err(), breaker.ErrOpen)
	})
}

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

func TestProbeOnAReusedConnectionForgetsFailedDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		trip(t, h)
		time.Sleep(time.Second + 1)
		require.NoError(t, do(t.Context(), h, nil, "get", "k"))
		_ = do(t.Context(), h, io.EOF, "get", "k") // one failure is no reason
		require.Equal(t, breaker.StateClosed, h.State())
	})
}

func TestPanicInACommandPassesAndIsNeutral(t *testing.T) {
	h := newHook(t, breaker.Config{MinCalls: 1})
	process := h.ProcessHook(func(context.Context, redis.Cmder) error { panic("marshal") })
	require.Panics(t, func() { _ = process(t.Context(), redis.NewCmd(t.Context(), "set", "k", "v")) })
	require.Equal(t, breaker.StateClosed, h.State())
}

func TestDisabledHookDoesNothing(t *testing.T) {
	h := newHook(t, breaker.Config{Disabled: true, MinCalls: 1})
	_ = do(t.Context(), h, io.EOF, "get", "k")
	for range 5 {
		require.Equal(t, error(errRefused), failDial(h, errRefused))
	}
	require.Equal(t, io.EOF, pipeline(t, h, []error{io.EOF}))
	require.Equal(t, breaker.StateClosed, h.State())
	require.Zero(t, h.Counts())
}

func TestNilContextIsAnError(t *testing.T) {
	h := newHook(t, breaker.Config{})
	var none context.Context
	cmds := []redis.Cmder{redis.NewCmd(t.Context(), "get", "k")}
	require.EqualError(t, h.ProcessHook(nil)(none, cmds[0]), "breaker: get: nil context: pass context.Background() or the request's")
	err := h.ProcessPipelineHook(nil)(none, cmds)
	require.EqualError(t, err, "breaker: pipeline: nil context: pass context.Background() or the request's")
	require.Equal(t, err, cmds[0].Err())
	_, err = h.DialHook(nil)(none, "tcp", "10.0.0.1:6379")
	require.ErrorContains(t, err, "nil context")
	require.Nil(t, breaker.Bypass(none))
}

func TestWrongConfigSaysWhatIsAllowed(t *testing.T) {
	for want, cfg := range map[string]breaker.Config{
		"breaker: Window is 1ms, want at least 10ms":                      {Window: time.Millisecond},
		"breaker: Window is -1s, want at least 10ms":                      {Window: -time.Second},
		"breaker: MinCalls is -1, want at least 1, or 0 for the default":  {MinCalls: -1},
		"breaker: FailureRatio is 50, want more than 0 and at most 1":     {FailureRatio: 50},
		"breaker: FailureRatio is -0.5, want more than 0 and at most 1":   {FailureRatio: -0.5},
		"breaker: FailureRatio is NaN, want more than 0 and at most 1":    {FailureRatio: math.NaN()},
		"breaker: OpenFor is -1s, want more than 0, or 0 for the default": {OpenFor: -time.Second},
	} {
		_, err := breaker.New("cache", "10.0.0.1:6379", cfg)
		require.EqualError(t, err, want)
	}
}

func TestNodeWithAPasswordIsRefusedWithoutShowingIt(t *testing.T) {
	for _, node := range []string{"redis://:hunter2@10.0.0.1:6379", "app:hunter2@10.0.0.1:6379", "redis://hunter2"} {
		_, err := breaker.New("cache", node, breaker.Config{})
		require.EqualError(t, err, `breaker: node of role "cache" is a URL or holds a user: pass host:port, or a socket's path`)
	}
	for _, node := range []string{"10.0.0.1:6379", "[::1]:6379", "/run/redis@1/redis.sock", "@abstract", ""} {
		_, err := breaker.New("cache", node, breaker.Config{})
		require.NoError(t, err)
	}
}

func TestStatesHaveNames(t *testing.T) {
	require.Equal(t, "closed", breaker.StateClosed.String())
	require.Equal(t, "half-open", breaker.StateHalfOpen.String())
	require.Equal(t, "open", breaker.StateOpen.String())
	require.Equal(t, "State(7)", breaker.State(7).String())
}

func TestHookAllocatesNothing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	h := newHook(t, breaker.Config{})
	var answer error
	process := h.ProcessHook(func(context.Context, redis.Cmder) error { return answer })
	send := h.ProcessPipelineHook(func(context.Context, []redis.Cmder) error { return nil })
	for _, args := range [][]any{{"get", "k"}, {"SET", "k", "v"}, {"blpop", "k", 0}, {"xread", "count", 1, "block", 0, "streams", "s", "$"}} {
		cmd := redis.NewCmd(ctx, args...)
		require.Zero(t, testing.AllocsPerRun(1000, func() { _ = process(ctx, cmd) }), args)
	}
	get := redis.NewCmd(ctx, "get", "k")
	answer = redis.Nil
	require.Zero(t, testing.AllocsPerRun(1000, func() { _ = process(ctx, get) }))
	cmds := []redis.Cmder{get, get, get}
	require.Zero(t, testing.AllocsPerRun(1000, func() { _ = send(ctx, cmds) }))
}

func TestCountsAddUpUnderConcurrency(t *testing.T) {
	h := newHook(t, breaker.Config{OpenFor: time.Millisecond, OnStateChange: func(breaker.Change) {}})
	answers := []error{nil, redis.Nil, io.EOF, redis.ErrPoolTimeout, reply("OOM command not allowed"), reply("MOVED 1 a:1")}
	commands := [][]any{{"get", "k"}, {"set", "k", "v"}, {"del", "k"}, {"evalsha", "sha", 0}}
	const workers, calls = 16, 500
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range calls {
				_ = do(t.Context(), h, answers[(i+w)%len(answers)], commands[i%len(commands)]...)
				switch i % 50 {
				case 7:
					_ = failDial(h, errRefused)
				case 23:
					_, _, _ = h.State(), h.WriteState(), h.Counts()
				case 49:
					h.Reset()
				}
			}
		})
	}
	wg.Wait()
	c := h.Counts()
	require.EqualValues(t, workers*calls, c.Requests+c.Rejected)
	require.EqualValues(t, workers*calls/50, c.DialFailures)
	require.Zero(t, c.Bypassed)
}

// A subscription's commands do not come through hooks; its dials do.
func TestSubscriptionIsNotRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		rdb := client(t, bubbleOptions(newServer(t)), h)
		trip(t, h)
		sub := rdb.Subscribe(t.Context(), "news")
		defer sub.Close()
		_, err := sub.Receive(t.Context())
		require.NoError(t, err)
	})
}

func TestOnlyBlockingWorkerSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		h := newHook(t, breaker.Config{})
		rdb := client(t, bubbleOptions(srv), h)
		require.NoError(t, rdb.Ping(t.Context()).Err())
		answer(srv, "BLPOP", func(p *server.Peer) { p.Close() })
		var open *breaker.OpenError
		require.Eventually(t, func() bool {
			return errors.As(rdb.BLPop(t.Context(), time.Minute, "k").Err(), &open)
		}, time.Minute, time.Millisecond)

		srv.Server().SetPreHook(nil)
		_, err := srv.Push("k", "v")
		require.NoError(t, err)
		time.Sleep(time.Until(open.RetryAt))
		got, err := rdb.BLPop(t.Context(), time.Minute, "k").Result()
		require.NoError(t, err)
		require.Equal(t, []string{"k", "v"}, got)
	})
}
