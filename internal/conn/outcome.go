package conn

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
)

// ErrOutcomeUnknown is the error of a command that may have been executed and
// must not be executed twice: it was sent, and its reply was lost. The error that
// wraps it has the cause.
var ErrOutcomeUnknown = errors.New("outcome unknown: sent, and no reply came")

type outcomeError struct{ err error }

func (e *outcomeError) Error() string {
	return "outcome unknown: sent, and no reply came: " + e.err.Error()
}
func (e *outcomeError) Unwrap() []error { return []error{ErrOutcomeUnknown, e.err} }

// unsentError is an error by which the server has seen nothing of the command.
// It unwraps to a list, since go-redis takes off one layer of what a handshake
// returns.
type unsentError struct {
	err     error
	connect bool // no connection could be made
}

func (e *unsentError) Error() string   { return e.err.Error() }
func (e *unsentError) Unwrap() []error { return []error{e.err} }

func unsent(err error) bool {
	var e *unsentError
	return errors.As(err, &e)
}

// unconnected reports whether no connection could be made.
func unconnected(err error) bool {
	var e *unsentError
	return errors.As(err, &e) && e.connect
}

// An outcome is what an error says about the command.
type outcome uint8

const (
	final   outcome = iota // the reply, or an error that repeating does not mend
	refused                // the server has not executed it, for now
	notSent                // the server has seen nothing of it
	lost                   // it may have been executed
	tripped                // refused by the circuit breaker
	crowded                // no connection became free
)

func outcomeOf(err error) outcome {
	if err == nil || err == redis.Nil { //nolint:errorlint // the hot path
		return final
	}
	var reply redis.Error
	var last *finalError
	switch {
	case errors.As(err, &last):
		return final
	case errors.As(err, &reply):
		switch msg := reply.Error(); {
		case refusal(msg):
			return refused
		case upstreamFailed(msg):
			return lost
		}
		return final
	case errors.Is(err, breaker.ErrOpen):
		return tripped
	case errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted):
		return crowded
	case errors.Is(err, ErrClosed), errors.Is(err, ErrNotConfigured):
		return final
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		if unsent(err) { // the dial's own limit
			return notSent
		}
		return final // go-redis returns it before it sends; on a socket a deadline has another error
	case strings.HasPrefix(err.Error(), "redis: Conn is in a bad state"):
		return final // of a redis.Conn or a WATCH: its connection is gone for good
	case unsent(err):
		return notSent
	case isNetwork(err), strings.HasPrefix(err.Error(), "redis: can't parse"), strings.HasPrefix(err.Error(), "redis: invalid reply"):
		return lost
	}
	return final
}

// A finalError is one that must not be repeated, whatever it says.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

func isNetwork(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed)
}

// refusal reports whether an error reply says that the command was not executed
// for a reason that passes.
func refusal(msg string) bool {
	word, _, _ := strings.Cut(msg, " ")
	switch word {
	case "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS":
		return true
	case "UNBLOCKED": // by a change of role, and not by CLIENT UNBLOCK
		return strings.HasPrefix(msg, "UNBLOCKED force unblock")
	}
	return strings.HasPrefix(msg, "ERR max number of clients") || msg == "no upstream host" ||
		strings.HasPrefix(msg, "ERR Error running script") && strings.Contains(msg, "-READONLY ")
}

// upstreamFailed reports whether an error reply is a proxy's, whose server may
// have executed the command.
// https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/other_protocols/redis#failure-modes
func upstreamFailed(msg string) bool {
	return msg == "upstream failure" || strings.HasPrefix(msg, "finished with ") && strings.HasSuffix(msg, " error(s)")
}

func readOnly(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && (strings.HasPrefix(reply.Error(), "READONLY ") || strings.Contains(reply.Error(), "-READONLY "))
}

// gaveUpError is the error of a command for which ctx or patience ended while it
// waited for a server.
type gaveUpError struct{ over, err error }

func (e *gaveUpError) Error() string {
	return e.over.Error() + " while waiting for Redis: " + e.err.Error()
}
func (e *gaveUpError) Unwrap() []error { return []error{e.over, e.err} }

// patience bounds the waiting of a caller whose context has no deadline.
const patience = time.Minute

var errPatience = errors.New("a minute is over (the context has no deadline)")

// endOfPatience is when a caller that began at start waits no longer, by its
// context's deadline or by patience.
func endOfPatience(ctx context.Context, start time.Time) time.Time {
	if deadline, ok := ctx.Deadline(); ok {
		return deadline
	}
	return start.Add(patience)
}
