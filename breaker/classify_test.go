package breaker_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
)

type reply string // an error reply, as go-redis has it

func (r reply) Error() string { return string(r) }
func (reply) RedisError()     {}

type closedByUs struct{ error }

func (closedByUs) BreakerNeutral() bool { return true }

var (
	errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	errTimeout = &net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}
	errReset   = &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
)

// The outcomes, as Counts of one call.
var (
	success      = breaker.Counts{Requests: 1, Successes: 1}
	failure      = breaker.Counts{Requests: 1, Failures: 1}
	writeFailure = breaker.Counts{Requests: 1, WriteFailures: 1}
	neutral      = breaker.Counts{Requests: 1, Neutral: 1}
	poolTimeout  = breaker.Counts{Requests: 1, Neutral: 1, PoolTimeouts: 1}
)

func TestErrorsAreClassified(t *testing.T) {
	for _, c := range []struct {
		err  error
		want breaker.Counts
	}{
		{nil, success},
		{redis.Nil, success},
		{redis.TxFailedErr, success},
		{reply("WRONGTYPE Operation against a key holding the wrong kind of value"), success},
		{reply("NOSCRIPT No matching script. Please use EVAL."), success},
		{reply("BUSYGROUP Consumer Group name already exists"), success},
		{reply("BUSYKEY Target key name already exists."), success},
		{reply("NOPERM this user has no permissions to run the 'get' command"), success},
		{reply("WRONGPASS invalid username-password pair or user is disabled."), success},
		{reply("UNBLOCKED client unblocked"), success},
		{reply("ERR unknown command 'FOO'"), success},
		{reply("CROSSSLOT Keys in request don't hash to the same slot"), success},
		{reply("LOADINGDOCK is no Redis error"), success},
		{reply(""), success},

		{reply("LOADING Redis is loading the dataset in memory"), failure},
		{reply("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."), failure},
		{reply("CLUSTERDOWN The cluster is down"), failure},
		{reply("BUSY Redis is busy running a script."), failure},
		{reply("ERR max number of clients reached"), failure},
		{reply("ERR max number of clients + cluster connections reached"), failure},
		{reply("upstream failure"), failure}, // of Envoy
		{reply("no upstream host"), failure},
		{fmt.Errorf("wrapped: %w", reply("LOADING Redis is loading")), failure},

		{reply("OOM command not allowed when used memory > 'maxmemory'."), writeFailure},
		{reply("READONLY You can't write against a read only replica."), writeFailure},
		{reply("NOREPLICAS Not enough good replicas to write."), writeFailure},
		{reply("MISCONF Redis is configured to save RDB snapshots, but …"), writeFailure},
		{reply("ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write against a read only replica."), writeFailure},

		{reply("MOVED 3999 127.0.0.1:6381"), neutral},
		{reply("ASK 3999 127.0.0.1:6381"), neutral},
		{reply("TRYAGAIN Multiple keys request during rehashing of slot"), neutral},

		{errRefused, failure},
		{&net.DNSError{Err: "no such host", Name: "redis.example", IsNotFound: true}, failure},
		{errTimeout, failure},
		{errReset, failure},
		{io.EOF, failure},
		{io.ErrUnexpectedEOF, failure},
		{io.ErrClosedPipe, failure},
		{syscall.EPIPE, failure},
		{context.DeadlineExceeded, failure}, // of DialTimeout, since the caller has no deadline
		{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, failure},
		{x509.HostnameError{Certificate: &x509.Certificate{}, Host: "redis.example"}, failure},
		{tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, failure},
		{tls.AlertError(40), failure},
		{failDial(newHook(t, breaker.Config{}), errors.New("resolver: no answer")), failure},

		{redis.ErrPoolTimeout, poolTimeout},
		{redis.ErrPoolExhausted, poolTimeout},

		{redis.ErrClosed, neutral},
		{&net.OpError{Op: "read", Err: net.ErrClosed}, neutral},
		{&breaker.OpenError{Cause: io.EOF}, neutral}, // of a breaker further in
		{closedByUs{io.EOF}, neutral},
		{fmt.Errorf("wrapped: %w", closedByUs{errReset}), neutral},
		{context.Canceled, neutral}, // of whoever's dial was shared
		{errors.New("redis: can't marshal breaker_test.T (implement encoding.BinaryMarshaler)"), neutral},
	} {
		t.Run(fmt.Sprint(c.err), func(t *testing.T) {
			h := newHook(t, breaker.Config{})
			require.Equal(t, c.err, do(t.Context(), h, c.err, "set", "k", "v"))
			require.Equal(t, c.want, h.Counts())
		})
	}
}

// The same through a real client, as far as a server can bring it about.
func TestAnswersOfAServerAreClassified(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func(*server.Peer)
		want   breaker.Counts
	}{
		{"OK", func(p *server.Peer) { p.WriteOK() }, success},
		{"nil", func(p *server.Peer) { p.WriteNull() }, success},
		{"WRONGTYPE", func(p *server.Peer) { p.WriteError("WRONGTYPE wrong kind") }, success},
		{"LOADING", func(p *server.Peer) { p.WriteError("LOADING Redis is loading") }, failure},
		{"MASTERDOWN", func(p *server.Peer) { p.WriteError("MASTERDOWN Link with MASTER is down") }, failure},
		{"CLUSTERDOWN", func(p *server.Peer) { p.WriteError("CLUSTERDOWN Hash slot not served") }, failure},
		{"BUSY", func(p *server.Peer) { p.WriteError("BUSY Redis is busy running a script.") }, failure},
		{"max clients", func(p *server.Peer) { p.WriteError("ERR max number of clients reached") }, failure},
		{"OOM", func(p *server.Peer) { p.WriteError("OOM command not allowed") }, writeFailure},
		{"READONLY", func(p *server.Peer) { p.WriteError("READONLY You can't write against a read only replica.") }, writeFailure},
		{"NOREPLICAS", func(p *server.Peer) { p.WriteError("NOREPLICAS Not enough good replicas to write.") }, writeFailure},
		{"MISCONF", func(p *server.Peer) { p.WriteError("MISCONF Redis is configured to save") }, writeFailure},
		{"MOVED", func(p *server.Peer) { p.WriteError("MOVED 1 10.0.0.2:6379") }, neutral},
		{"cut connection", func(p *server.Peer) { p.Close() }, failure},
		{"silence", func(*server.Peer) {}, failure},
		{"not Redis", func(p *server.Peer) { p.WriteRaw("HTTP/1.1 400 Bad Request\r\n") }, neutral},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newServer(t)
				h := newHook(t, breaker.Config{})
				rdb := client(t, bubbleOptions(srv), h)
				require.NoError(t, rdb.Ping(t.Context()).Err()) // the handshake is over
				answer(srv, "SET", c.answer)
				before := h.Counts()

				_ = rdb.Set(t.Context(), "k", "v", 0).Err()
				got := h.Counts()
				got.Requests -= before.Requests
				got.Successes -= before.Successes
				require.Equal(t, c.want, got)
			})
		})
	}
}

func TestReplyCountsWhateverBecameOfItsCaller(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	h := newHook(t, breaker.Config{})
	_ = do(gone, h, reply("LOADING Redis is loading"), "get", "k")
	_ = do(gone, h, redis.Nil, "get", "k")
	require.Equal(t, breaker.Counts{Requests: 2, Successes: 1, Failures: 1}, h.Counts())
}

func TestCallersCancellationIsNeutral(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range []error{context.Canceled, errTimeout, io.EOF} {
		h := newHook(t, breaker.Config{})
		require.Equal(t, err, do(gone, h, err, "get", "k"))
		require.Equal(t, neutral, h.Counts())
	}
}

func TestCancellationAheadOfADeadlineIsNeutral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		process := h.ProcessHook(func(context.Context, redis.Cmder) error {
			time.Sleep(3 * time.Second)
			cancel()
			return errTimeout // of ReadTimeout
		})
		require.Equal(t, errTimeout, process(ctx, redis.NewCmd(ctx, "get", "k")))
		require.Equal(t, neutral, h.Counts())
	})
}

func TestCallersDeadlineCountsOnceTheServerHadTime(t *testing.T) {
	for _, c := range []struct {
		name    string
		cfg     breaker.Config
		allowed time.Duration
		command string
		want    breaker.Counts
	}{
		{"too short", breaker.Config{}, 99 * time.Millisecond, "get", neutral},
		{"long enough", breaker.Config{}, 100 * time.Millisecond, "get", failure},
		{"own threshold", breaker.Config{SlowThreshold: 2 * time.Second}, time.Second, "get", neutral},
		{"off", breaker.Config{SlowThreshold: -1}, time.Minute, "get", neutral},
		{"blocking", breaker.Config{}, time.Minute, "blpop", neutral},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newServer(t)
				h := newHook(t, c.cfg)
				opt := bubbleOptions(srv)
				opt.ContextTimeoutEnabled = true
				opt.ReadTimeout = time.Hour
				rdb := client(t, opt, h)
				require.NoError(t, rdb.Ping(t.Context()).Err())
				answer(srv, strings.ToUpper(c.command), func(*server.Peer) {})

				ctx, cancel := context.WithTimeout(t.Context(), c.allowed)
				defer cancel()
				err := rdb.Do(ctx, c.command, "k", 0).Err()
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				require.NotErrorIs(t, err, context.DeadlineExceeded) // the trap
				c.want.Requests++
				c.want.Successes++
				require.Equal(t, c.want, h.Counts())
			})
		})
	}
}

// A context's timer may fire a moment after the socket's.
func TestDeadlineOfTheSocketMayComeBeforeThatOfTheContext(t *testing.T) {
	h := newHook(t, breaker.Config{})
	ctx := lateContext{t.Context(), time.Now().Add(-time.Millisecond)}
	require.Equal(t, errTimeout, do(ctx, h, errTimeout, "get", "k"))
	require.Equal(t, neutral, h.Counts())
}

func TestContextThatEndsWithoutADeadlineIsNeutral(t *testing.T) {
	h := newHook(t, breaker.Config{})
	require.Equal(t, errTimeout, do(endedContext{t.Context()}, h, errTimeout, "get", "k"))
	require.Equal(t, neutral, h.Counts())
}

type endedContext struct{ context.Context }

func (endedContext) Err() error { return context.DeadlineExceeded }

type lateContext struct {
	context.Context
	deadline time.Time
}

func (c lateContext) Deadline() (time.Time, bool) { return c.deadline, true }

func TestDeadlineWhileWaitingForThePoolIsNeutral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		waiting := h.ProcessHook(func(ctx context.Context, _ redis.Cmder) error {
			<-ctx.Done()
			return ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, waiting(ctx, redis.NewCmd(ctx, "get", "k")), context.DeadlineExceeded)
		require.Equal(t, poolTimeout, h.Counts())
	})
}

func TestDeadlineWhileDialingIsTheServersFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHook(t, breaker.Config{})
		opt := bubbleOptions(newServer(t))
		opt.DialTimeout = 10 * time.Second
		opt.DialerRetries = 1
		opt.Dialer = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		rdb := client(t, opt, h)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, rdb.Get(ctx, "k").Err(), context.DeadlineExceeded)
		require.Equal(t, failure, h.Counts())
		time.Sleep(time.Minute) // the dial goes on alone and fails
		require.EqualValues(t, 1, h.Counts().DialFailures)
	})
}

func TestFullPoolIsNeutralAndCounted(t *testing.T) {
	srv := newServer(t)
	require.NoError(t, srv.Start())
	h := newHook(t, breaker.Config{})
	opt := bubbleOptions(srv)
	opt.PoolSize = 1
	opt.PoolTimeout = 10 * time.Millisecond
	rdb := client(t, opt, h)
	held := rdb.Conn()
	defer held.Close()
	require.NoError(t, held.Ping(t.Context()).Err())

	require.ErrorIs(t, rdb.Get(t.Context(), "k").Err(), redis.ErrPoolTimeout)
	require.Equal(t, breaker.Counts{Requests: 2, Successes: 1, Neutral: 1, PoolTimeouts: 1}, h.Counts())
}

func TestPipelineIsJudgedByAllItsCommands(t *testing.T) {
	wrongType, loading := reply("WRONGTYPE wrong kind"), reply("LOADING Redis is loading")
	for _, c := range []struct {
		name string
		errs []error // of the commands; go-redis returns the first
		want breaker.Counts
	}{
		{"all well", []error{nil, redis.Nil, nil}, success},
		{"the first failed otherwise", []error{wrongType, nil, loading}, failure},
		{"only the last timed out", []error{nil, nil, errTimeout}, failure},
		{"moved and answered", []error{reply("MOVED 1 10.0.0.2:6379"), nil}, success},
		{"all moved", []error{reply("MOVED 1 10.0.0.2:6379"), reply("ASK 1 10.0.0.2:6379")}, neutral},
		{"full", []error{nil, reply("OOM command not allowed")}, writeFailure},
		{"full and cut", []error{reply("OOM command not allowed"), io.EOF}, failure},
		{"no connection free", []error{redis.ErrPoolTimeout, redis.ErrPoolTimeout}, poolTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHook(t, breaker.Config{})
			err := pipeline(t, h, c.errs)
			require.Equal(t, c.want, h.Counts())
			require.Equal(t, firstError(c.errs), err)
		})
	}
}

func pipeline(t *testing.T, h *breaker.Hook, errs []error) error {
	send := h.ProcessPipelineHook(func(_ context.Context, cmds []redis.Cmder) error {
		for i, cmd := range cmds {
			cmd.SetErr(errs[i])
		}
		return firstError(errs)
	})
	cmds := make([]redis.Cmder, len(errs))
	for i := range cmds {
		cmds[i] = redis.NewStringCmd(t.Context(), "get", "k")
	}
	return send(t.Context(), cmds)
}

func firstError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// go-redis puts a reply that refuses the connection on no command.
func TestPipelineThatFoundNoConnectionIsJudgedByItsError(t *testing.T) {
	h := newHook(t, breaker.Config{})
	loading := reply("LOADING Redis is loading")
	send := h.ProcessPipelineHook(func(context.Context, []redis.Cmder) error { return loading })
	require.Equal(t, loading, send(t.Context(), []redis.Cmder{redis.NewStringCmd(t.Context(), "get", "k")}))
	require.Equal(t, failure, h.Counts())
}

func TestBlockingCommandMayWaitButNotLoseItsConnection(t *testing.T) {
	for _, args := range [][]any{
		{"blpop", "k", 0}, {"BRPOP", "k", 0}, {"brpoplpush", "a", "b", 0}, {"blmove", "a", "b", "left", "right", 0},
		{"blmpop", 0, 1, "k", "left"}, {"bzpopmin", "k", 0}, {"bzpopmax", "k", 0}, {"bzmpop", 0, 1, "k", "min"},
		{"wait", 1, 0}, {"waitAOF", 1, 0, 0}, {[]byte("blpop"), "k", 0},
		{"xread", "block", 0, "streams", "s", "$"}, {"XREAD", "COUNT", 1, "BLOCK", 0, "STREAMS", "s", "$"},
		{"xreadgroup", "group", "g", "c", "block", 0, "streams", "s", ">"},
		{"TS.READ", "k", "-", "BLOCK", 1000, 1},
	} {
		t.Run(fmt.Sprint(args...), func(t *testing.T) {
			h := newHook(t, breaker.Config{})
			_ = do(t.Context(), h, errTimeout, args...)
			require.Equal(t, neutral, h.Counts())
			_ = do(t.Context(), h, io.EOF, args...)
			_ = do(t.Context(), h, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, args...)
			require.Equal(t, breaker.Counts{Requests: 3, Neutral: 1, Failures: 2}, h.Counts())
		})
	}
}

func TestCommandThatOnlyLooksBlockingIsJudgedAsAnyOther(t *testing.T) {
	for _, args := range [][]any{
		{"xread", "streams", "block", "0"},
		{"xread", "count", 1, "STREAMS", "block", "0"},
		{"xreadgroup", "group", "block", "block", "streams", "s", ">"},
		{"xread"}, {"xreadgroup", "group"}, {"ts.read", "block"},
		{"lpop", "blpop"}, {"waitaoftwoandmorebytes"}, {""}, {nil}, {7}, {},
	} {
		t.Run(fmt.Sprint(args...), func(t *testing.T) {
			h := newHook(t, breaker.Config{})
			_ = do(t.Context(), h, errTimeout, args...)
			require.Equal(t, failure, h.Counts())
		})
	}
}
