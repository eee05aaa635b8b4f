package broker

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/conn"
)

var (
	// ErrClosed is returned by every call after Close. It is go-redis' own.
	ErrClosed = redis.ErrClosed

	// ErrUnconfirmed says that a publish was sent, and that it is not known
	// whether the task is in Redis. See [UnconfirmedError].
	ErrUnconfirmed = errors.New("not confirmed")

	// ErrBrokerFull is returned by Publish while Redis is at maxmemory. The
	// task is not published, unless the error is an [UnconfirmedError] as well.
	// Workers go on.
	ErrBrokerFull = errors.New("the server is at maxmemory")

	// ErrDuplicate is returned by Publish for a [Unique] task if there is one with
	// its key. See [DuplicateError].
	ErrDuplicate = errors.New("a task with the same unique key is there")

	// ErrQueueFull is returned by Publish while the queue holds
	// TaskConfig.QueueLimit tasks. The task is not published.
	ErrQueueFull = errors.New("the queue is full")

	// ErrLeaseLost is the cause that ends a handler's context when its worker
	// could not renew its lease: another worker may have the task by now.
	ErrLeaseLost = errors.New("broker: lease lost")

	// ErrCancelled is the cause that ends a handler's context when its task was
	// cancelled.
	ErrCancelled = errors.New("broker: task cancelled")

	// ErrDrainTimeout is the cause that ends the contexts of the handlers that
	// still run when WorkerConfig.DrainTimeout is over, and what Run then
	// returns.
	ErrDrainTimeout = errors.New("broker: drain timeout")

	errExpired = errors.New("broker: not started in time (ExpireAfter)")

	errNilContext = errors.New("nil context: pass context.Background() or the request's")
)

// An UnconfirmedError is the error of a publish whose outcome is not known:
// errors.Is finds [ErrUnconfirmed] in it. Publishing once more is safe only with
// an ID of the caller's, given by [ID] from the first time on.
type UnconfirmedError struct {
	ID string // the task's

	// Applied reports that Redis has taken the task, and that only its
	// confirmation by replicas is open. False: not known.
	Applied bool

	Err error // why there is no answer
}

func (e *UnconfirmedError) Error() string {
	if e.Applied {
		return fmt.Sprintf("%v: task %q is published, but may be lost in a failover: %v", ErrUnconfirmed, e.ID, e.Err)
	}
	return fmt.Sprintf("%v: task %q may have been published or not: %v", ErrUnconfirmed, e.ID, e.Err)
}

// Unwrap returns the cause.
func (e *UnconfirmedError) Unwrap() error { return e.Err }

// Is reports whether target is [ErrUnconfirmed].
func (e *UnconfirmedError) Is(target error) bool { return target == ErrUnconfirmed }

// A DuplicateError is the error of a publish whose [Unique] key another task
// holds: errors.Is finds [ErrDuplicate] in it.
type DuplicateError struct {
	Key string
	ID  string // of the task that holds it
}

func (e *DuplicateError) Error() string {
	return fmt.Sprintf("%v: task %q has the key %q", ErrDuplicate, e.ID, e.Key)
}

// Is reports whether target is [ErrDuplicate].
func (e *DuplicateError) Is(target error) bool { return target == ErrDuplicate }

// A RetryError lets a failed task be tried again after Delay instead of its
// backoff. It counts as an attempt.
type RetryError struct {
	Delay time.Duration // not negative
	Err   error
}

// RetryAfter wraps err so that the task is tried again after delay.
func RetryAfter(delay time.Duration, err error) error { return &RetryError{Delay: delay, Err: err} }

func (e *RetryError) Error() string {
	if e == nil {
		return "broker: retry: a nil *RetryError"
	}
	return fmt.Sprintf("broker: retry after %s: %v", e.Delay, e.Err)
}

// Unwrap returns the cause.
func (e *RetryError) Unwrap() error {
	if e == nil {
		return nil
	}
	return e.Err
}

// A RejectError makes a task a dead letter at once: trying again would not help.
type RejectError struct{ Err error }

// Reject wraps err so that the task becomes a dead letter.
func Reject(err error) error { return &RejectError{Err: err} }

func (e *RejectError) Error() string {
	if e == nil {
		return "broker: reject: a nil *RejectError"
	}
	return fmt.Sprintf("broker: reject: %v", e.Err)
}

// Unwrap returns the cause.
func (e *RejectError) Unwrap() error {
	if e == nil {
		return nil
	}
	return e.Err
}

// A SnoozeError puts a task off: it runs again after Delay, as the same attempt.
// Retries are left as they are, so a task may be put off for ever. It is what
// River calls JobSnooze.
type SnoozeError struct{ Delay time.Duration }

// Snooze returns the error by which a handler puts its task off for delay, because
// it cannot be done yet: nothing has failed.
func Snooze(delay time.Duration) error { return &SnoozeError{Delay: delay} }

func (e *SnoozeError) Error() string {
	if e == nil {
		return "broker: snooze: a nil *SnoozeError"
	}
	return fmt.Sprintf("broker: snooze for %s", e.Delay)
}

// A SkipError ends a task that need not be done any more, which is neither a success
// nor a failure: no retry, no dead letter, and as its result the state cancelled
// with Err. It is what Celery calls Ignore; asynq.SkipRetry is [Reject] here.
type SkipError struct{ Err error }

// Skip wraps err, the reason, so that the task ends without having been done.
func Skip(err error) error { return &SkipError{Err: err} }

func (e *SkipError) Error() string {
	if e == nil {
		return "broker: skip: a nil *SkipError"
	}
	return fmt.Sprintf("broker: skip: %v", e.Err)
}

// Unwrap returns the reason.
func (e *SkipError) Unwrap() error {
	if e == nil {
		return nil
	}
	return e.Err
}

// fatal reports whether err means that the connection will never serve again.
func fatal(err error) bool {
	return errors.Is(err, ErrClosed) || errors.Is(err, conn.ErrNotConfigured)
}

// An outcome is what a failed call says about what the server did.
type outcome uint8

const (
	unknown outcome = iota // executed or not: no answer came
	refused                // not executed, and may be tried again
	final                  // not executed, and trying again would not help
)

// passing are the first words of replies that a server gives for a while.
var passing = map[string]bool{
	"LOADING": true, "READONLY": true, "MASTERDOWN": true, "CLUSTERDOWN": true, "TRYAGAIN": true,
	"BUSY": true, "NOREPLICAS": true, "MISCONF": true, "UNBLOCKED": true, "MOVED": true, "ASK": true,
}

// outcomeOf judges the error of a script. own says that the client sends
// nothing twice; another one may have sent the command before it failed to
// connect.
func outcomeOf(err error, own bool) outcome {
	var reply redis.Error
	var op *net.OpError
	var dns *net.DNSError
	var before *nodeError
	switch {
	case errors.As(err, &before):
		if before.passes {
			return refused
		}
		return final
	case fatal(err):
		return final
	case errors.Is(err, breaker.ErrOpen), errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted):
		return refused
	case errors.As(err, &op) && op.Op == "dial", errors.As(err, &dns):
		if own {
			return refused
		}
	case errors.As(err, &reply):
		if passes(err) {
			return refused
		}
		return final
	}
	return unknown
}

// passes reports whether an error reply is one that a server gives for a while.
func passes(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	word, _, _ := strings.Cut(reply.Error(), " ")
	return passing[word] || strings.HasPrefix(reply.Error(), "ERR max number of clients")
}

// holdsNothing reports whether err says that nothing can be pending in a stream:
// there is no such stream or group, or a key of another type.
func holdsNothing(err error) bool {
	return isReply(err) && (lacksGroup(err.Error()) || strings.Contains(err.Error(), "no such key") || strings.Contains(err.Error(), "WRONGTYPE"))
}

// explain adds to an error reply what experience knows of its cause.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case redis.IsOOMError(err):
		return fmt.Errorf("%w: %w", ErrBrokerFull, err)
	case isReply(err) && strings.Contains(err.Error(), "WRONGTYPE"):
		return fmt.Errorf("%w: does something else write the queue's keys?", err)
	}
	return err
}

func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}
