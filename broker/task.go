package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/compress"
)

// A Codec turns arguments into bytes and back. It must be safe for concurrent
// use, and its Decode must not keep the bytes.
type Codec = result.Codec

var (
	// JSON is encoding/json.
	JSON = result.JSON

	// Raw passes []byte and string unchanged, and refuses every other type.
	Raw = result.Raw
)

// A Priority says which tasks of a queue are taken first. It is strict: lower
// ones wait while there are higher ones.
type Priority int8

// The priorities. The zero value is the default.
const (
	PriorityLow     Priority = -1
	PriorityDefault Priority = 0
	PriorityHigh    Priority = 1
)

// stored is the priority's number in keys and envelopes.
func (p Priority) stored() uint8 { return uint8(1 - p) }

// A TaskConfig says how tasks of one kind are published and run. The zero
// TaskConfig is ready to use.
type TaskConfig struct {
	// Queue is where the task is published. Defaults to "default". 1 to 100
	// letters, digits and . _ -
	Queue string

	// Priority within the queue. Defaults to PriorityDefault.
	Priority Priority

	// MaxAttempts is how often the task is tried before it becomes a dead
	// letter; 1 means no retry. Defaults to 25, which with the default Backoff
	// is about half a day; at most 65535.
	MaxAttempts int

	// Backoff returns the pause before the next try, after so many attempts,
	// from 1, and the error of the last. What is negative counts as 0.
	// Defaults to [Backoff].
	Backoff func(attempts int, err error) time.Duration

	// Timeout ends the context of an attempt. Defaults to 0, no timeout; at
	// least 1ms.
	Timeout time.Duration

	// Retention is how long the result is kept, in a worker with
	// WorkerConfig.Results. 0 means result.Config.TTL for a [ResultTask], and
	// no result for a [Task].
	Retention time.Duration

	// Codec encodes the argument. Defaults to [JSON].
	Codec Codec

	// Confirm says what a publish waits for. Defaults to Config.Confirm.
	Confirm Confirm

	// QueueLimit refuses a publish with [ErrQueueFull] while the queue has so many
	// tasks, ready, delayed and running ones together, and of those that wait for
	// their [Key] the ones of the same key: those of other keys are not counted,
	// so that a busy key does not shut the queue to the others, and a queue may
	// hold so many for each key. Each partition has its part of the number.
	// Defaults to 0, no limit.
	QueueLimit int
}

// Backoff is the default of TaskConfig.Backoff: one second after the first
// attempt, doubled after each further one up to an hour, and of that a random
// part from half to the whole, so that tasks that failed together do not come
// back together.
func Backoff(attempts int, _ error) time.Duration {
	pause := time.Hour
	if attempts < 13 {
		pause = min(pause, time.Second<<max(attempts-1, 0))
	}
	return pause/2 + rand.N(pause/2+1)
}

// A definition is what all kinds of tasks have in common.
type definition struct {
	name string
	cfg  TaskConfig
	err  error // what is wrong with it, which every use reports

	trial *compress.Trial // whether its arguments shrink
}

func define(name string, cfg TaskConfig) definition {
	cfg.Queue = cmp.Or(cfg.Queue, "default")
	cfg.MaxAttempts = cmp.Or(cfg.MaxAttempts, 25)
	if cfg.Codec == nil {
		cfg.Codec = JSON
	}
	if cfg.Backoff == nil {
		cfg.Backoff = Backoff
	}
	return definition{name: name, cfg: cfg, err: validateTask(name, cfg), trial: new(compress.Trial)}
}

func validateTask(name string, cfg TaskConfig) error {
	switch {
	case name == "" || len(name) > maxNameBytes:
		return fmt.Errorf("the task's name has %d bytes, want 1 to %d", len(name), maxNameBytes)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return fmt.Errorf("the task's name is %q, want UTF-8 without spaces and control characters", name)
	case cfg.Priority < PriorityLow || cfg.Priority > PriorityHigh:
		return fmt.Errorf("TaskConfig.Priority is %d, want PriorityLow, PriorityDefault or PriorityHigh", cfg.Priority)
	case cfg.MaxAttempts < 1 || cfg.MaxAttempts > math.MaxUint16:
		return fmt.Errorf("TaskConfig.MaxAttempts is %d, want 1 to %d, or 0 for 25", cfg.MaxAttempts, math.MaxUint16)
	case cfg.Timeout != 0 && (cfg.Timeout < time.Millisecond || cfg.Timeout.Milliseconds() > maxMillis):
		return fmt.Errorf("TaskConfig.Timeout is %s, want at least 1ms, or 0 for none", cfg.Timeout)
	case cfg.QueueLimit < 0:
		return fmt.Errorf("TaskConfig.QueueLimit is %d, want at least 1, or 0 for none", cfg.QueueLimit)
	case cfg.Retention != 0 && (cfg.Retention < time.Millisecond || cfg.Retention.Milliseconds() > maxMillis):
		return fmt.Errorf("TaskConfig.Retention is %s, want at least 1ms, or 0 for the default", cfg.Retention)
	}
	if err := cfg.Confirm.validate("TaskConfig.Confirm"); err != nil {
		return err
	}
	return validateQueue(cfg.Queue)
}

var errUndefined = errors.New("a task that was not made by NewTask or NewResultTask")

// usable returns what is wrong with the definition.
func (d *definition) usable() error {
	if d == nil || d.name == "" && d.err == nil {
		return errUndefined
	}
	return d.err
}

// label names the task in errors.
func (d *definition) label() string {
	if d == nil {
		return ""
	}
	return d.name
}

// A Task is a kind of work with an argument of type A. It holds no state and is
// safe for concurrent use: make it a package-level variable, which publishers
// and workers share.
type Task[A any] struct {
	def        definition
	wantResult bool
}

// NewTask defines a task. The name identifies it in queues, so that it must stay
// as long as there are such tasks. A wrong definition is reported by every use.
func NewTask[A any](name string, cfg TaskConfig) *Task[A] {
	return &Task[A]{def: define(name, cfg), wantResult: cfg.Retention != 0}
}

// Name returns the task's name.
func (t *Task[A]) Name() string { return t.def.name }

// Publish puts a task into its queue and returns its ID. Once it returns nil,
// the task is in Redis, as safe as the level of [Confirm] says, and runs at least
// once.
//
// It waits for the server's answer, sends again after errors that may pass, and
// gives up when ctx ends or after Config.PublishTimeout, 15s by default, whichever
// comes first: also a ctx with a later deadline waits no longer. (A cancelled ctx
// may be noticed only when the server answers, or after the client's ReadTimeout.)
// If a task with the same given [ID] was published before, nothing happens, and the
// error is nil. errors.Is finds in an error
//
//   - [ErrUnconfirmed]: the task was sent, and may be there or not; the ID is
//     returned, and errors.As finds an [*UnconfirmedError]
//   - [ErrDuplicate]: a task with its [Unique] key is there
//   - [ErrQueueFull]: the queue has TaskConfig.QueueLimit tasks
//   - [ErrBrokerFull]: Redis is at maxmemory
//
// After every error but the first the task was not published.
//
// What callers publish at the same time travels together.
func (t *Task[A]) Publish(ctx context.Context, c *Client, arg A, opts ...PublishOption) (id string, err error) {
	if t == nil {
		return "", fmt.Errorf("broker: publish: %w", errUndefined)
	}
	if id, err = c.publish(ctx, &t.def, t.wantResult, arg, opts); err != nil {
		return id, fmt.Errorf("broker: publish %q: %w", t.def.label(), err)
	}
	return id, nil
}

// Handle lets w run tasks of this kind with h, in up to WorkerConfig.Concurrency
// goroutines at once. What h returns decides:
//
//   - nil: the task is done
//   - an error: it is tried again after its backoff, or becomes a dead letter
//     after the last attempt; so does a panic, which is logged with its stack
//   - [RetryAfter]: it is tried again after that time
//   - [Snooze]: it runs again after that time, as the same attempt
//   - [Reject]: it becomes a dead letter
//   - [Skip]: it ends without having been done
//
// If the worker stops before h returns, ctx ends, and an error gives the task
// back without counting the attempt. [FromContext] tells about the delivery.
//
// What is wrong with the definition, or a second handler for the same name, is
// reported by Run.
func (t *Task[A]) Handle(w *Worker, h func(ctx context.Context, arg A) error) {
	if t == nil {
		w.register(nil, nil)
		return
	}
	if h == nil {
		w.register(&t.def, nil)
		return
	}
	w.register(&t.def, func(ctx context.Context, payload []byte, _ *result.Client) ([]byte, error) {
		arg, err := decodeArg[A](&t.def, payload)
		if err != nil {
			return nil, err
		}
		return nil, h(ctx, arg)
	})
}

// A ResultTask is a [Task] whose handler returns a value of type R, which is
// kept for whoever waits for it.
type ResultTask[A, R any] struct{ Task[A] }

// NewResultTask defines a task with a result.
func NewResultTask[A, R any](name string, cfg TaskConfig) *ResultTask[A, R] {
	return &ResultTask[A, R]{Task[A]{def: define(name, cfg), wantResult: true}}
}

// Handle is [Task.Handle] for a handler with a result, which is stored before
// the task is done. The worker needs WorkerConfig.Results.
func (t *ResultTask[A, R]) Handle(w *Worker, h func(ctx context.Context, arg A) (R, error)) {
	if t == nil {
		w.register(nil, nil)
		return
	}
	if h == nil {
		w.register(&t.def, nil)
		return
	}
	w.register(&t.def, func(ctx context.Context, payload []byte, results *result.Client) ([]byte, error) {
		arg, err := decodeArg[A](&t.def, payload)
		if err != nil {
			return nil, err
		}
		r, err := h(ctx, arg)
		if err != nil || results == nil {
			return nil, err
		}
		value, err := results.Encode(r)
		if err != nil {
			return nil, &unstorableError{err}
		}
		return value, nil
	})
}

// Wait waits until the task has ended and returns its result. If it did not
// succeed, errors.As finds a [*result.TaskError] in the error.
func (t *ResultTask[A, R]) Wait(ctx context.Context, c *result.Client, id string) (R, error) {
	var r R
	if t == nil {
		return r, fmt.Errorf("broker: wait %q: %w", id, errUndefined)
	}
	if err := t.def.usable(); err != nil {
		return r, fmt.Errorf("broker: wait %q: %w", id, err)
	}
	if c == nil {
		return r, fmt.Errorf("broker: wait %q: nil result client: pass one made by result.New", id)
	}
	record, err := c.Wait(ctx, id)
	if err != nil {
		return r, fmt.Errorf("broker: wait %q: %w", id, err)
	}
	if err := c.Decode(record, &r); err != nil {
		return r, fmt.Errorf("broker: wait %q: %w", id, err)
	}
	return r, nil
}

func decodeArg[A any](d *definition, payload []byte) (A, error) {
	var arg A
	if err := d.cfg.Codec.Decode(payload, &arg); err != nil {
		return arg, &undecodableError{fmt.Errorf("argument of type %T: %w", arg, err)}
	}
	return arg, nil
}

// An undecodableError makes a task a dead letter: it will never decode.
type undecodableError struct{ err error }

func (e *undecodableError) Error() string { return "undecodable: " + e.err.Error() }
func (e *undecodableError) Unwrap() error { return e.err }

// An unstorableError ends a task whose work is done but whose result cannot be kept.
type unstorableError struct{ err error }

func (e *unstorableError) Error() string {
	return "the task succeeded, but its result cannot be stored: " + e.err.Error()
}
func (e *unstorableError) Unwrap() error { return e.err }
