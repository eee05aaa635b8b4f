package breaker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// outcome is what a command's end says about the server. The greatest outcome
// among its commands is that of a pipeline.
type outcome uint8

const (
	neutral      outcome = iota // nothing
	poolTimeout                 // nothing: this side had no connection to spare
	alive                       // it replied
	writeRefused                // it replied, and takes no writes
	failed                      // it did not reply, or cannot serve
)

// verdict is an outcome and the error that led to it.
type verdict struct {
	outcome outcome
	cause   error
}

// judge knows what is to be known about a call besides its error.
type judge struct {
	hook *Hook
	ctx  context.Context
	kind kind
	sent time.Time // set if ctx has a deadline
}

// all judges a pipeline, which returned err.
func (j judge) all(cmds []redis.Cmder, err error) verdict {
	v, clean := verdict{}, true
	for _, cmd := range cmds {
		cause := cmd.Err()
		clean = clean && cause == nil
		if o := j.one(cause); o > v.outcome {
			v = verdict{o, cause}
		}
	}
	if clean && err != nil { // a reply that refused the connection is on no command
		return verdict{j.one(err), err}
	}
	return v
}

// one judges a command. A reply comes first: it is a fact about the server,
// whatever has become of the caller meanwhile.
func (j judge) one(err error) outcome {
	if err == nil || err == redis.Nil {
		return alive
	}
	var reply redis.Error
	switch {
	case errors.As(err, &reply):
		return judgeReply(reply.Error())
	case isNeutral(err):
		return neutral
	case errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted):
		return poolTimeout
	}
	switch ended := j.ctx.Err(); {
	case errors.Is(ended, context.Canceled):
		return neutral
	case ended != nil:
		return j.deadline(err)
	}
	// With Options.ContextTimeoutEnabled the socket's deadline is the caller's,
	// and may be a moment ahead of ctx.Err.
	if deadline, ok := j.ctx.Deadline(); ok && isTimeout(err) && !time.Now().Before(deadline) {
		return j.deadline(err)
	}
	switch {
	case j.kind == blocking && isTimeout(err) && !isDial(err):
		return neutral
	case isNetwork(err):
		return failed
	}
	return neutral // the command could not be written or its reply not be understood
}

// deadline judges a command whose caller's deadline passed first.
func (j judge) deadline(err error) outcome {
	slow := j.hook.cfg.SlowThreshold
	switch {
	case errors.Is(err, context.DeadlineExceeded) && j.hook.dialing.Load() == 0 && j.hook.dialsFailed.Load() == 0:
		return poolTimeout // on a socket it is os.ErrDeadlineExceeded; nobody dials: it waited for the pool
	case j.kind == blocking, slow < 0, j.sent.IsZero(), time.Since(j.sent) < slow:
		return neutral
	}
	return failed
}

// judgeReply judges an error reply by its first word.
func judgeReply(msg string) outcome {
	if strings.Contains(msg, "-READONLY ") { // a script's, before Redis 7.0
		return writeRefused
	}
	msg = strings.TrimPrefix(msg, "ERR ")
	word, _, _ := strings.Cut(msg, " ")
	switch word {
	case "LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY":
		return failed
	case "OOM", "READONLY", "NOREPLICAS", "MISCONF":
		return writeRefused
	case "MOVED", "ASK", "TRYAGAIN":
		return neutral
	}
	if strings.HasPrefix(msg, "max number of clients") || msg == "upstream failure" || msg == "no upstream host" { // the latter are Envoy's
		return failed
	}
	return alive
}

// isNeutral reports whether err was made on this side of the network.
func isNeutral(err error) bool {
	if errors.Is(err, ErrOpen) || errors.Is(err, redis.ErrClosed) || errors.Is(err, net.ErrClosed) {
		return true
	}
	var declared interface{ BreakerNeutral() bool }
	return errors.As(err, &declared) && declared.BreakerNeutral()
}

// isNetwork reports whether err is the network's, a dial's or TLS'.
func isNetwork(err error) bool {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) {
		return true
	}
	for _, target := range []any{
		new(net.Error), // also syscall.Errno, *net.OpError and context.DeadlineExceeded
		new(*dialError),
		new(*tls.CertificateVerificationError), new(tls.RecordHeaderError), new(tls.AlertError),
		new(x509.UnknownAuthorityError), new(x509.HostnameError), new(x509.CertificateInvalidError),
	} {
		if errors.As(err, target) {
			return true
		}
	}
	return false
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func isDial(err error) bool {
	var e *net.OpError
	return errors.As(err, &e) && e.Op == "dial"
}
