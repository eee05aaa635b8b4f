package breaker_test

import (
	"context"
	"errors"
	"io"
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
		require.EqualValues(t, 1, h.Counts().Trips, "a probe that fails is the same outage")
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
