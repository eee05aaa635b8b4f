package breaker_test

import (
	"context"
	"io"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
)

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
	h := newHook(t, breaker.Config{OpenFor: time.Hour})
	ctx := breaker.Bypass(t.Context())
	for range 20 {
		_ = do(ctx, h, io.EOF, "evalsha", "renew")
	}
	require.Equal(t, breaker.StateOpen, h.State())
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
