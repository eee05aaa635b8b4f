package broker

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/redisha/redisha/broker/result"
)

// execute runs handlers until there are no more tasks.
func (r *run) execute() {
	for t := range r.tasks {
		r.handle(t)
	}
}

// handle runs the handler of a task and passes on its verdict. A handler that
// ends its goroutine takes an executor with it, so handle starts another. A task
// on which nothing was decided is given back.
func (r *run) handle(t *task) {
	v := &verdict{task: t}
	finished := false
	defer func() {
		if !finished {
			r.executors.Go(r.execute)
		}
		if v.kind == undecided {
			v = release(t, time.Second)
		}
		t.s.verdicts <- v
		r.slots <- struct{}{}
	}()
	e, err := decodeEnvelope(t.raw)
	if err != nil {
		v.undecodable(e, err)
		finished = true
		return
	}
	v.id = e.id
	if r.work.Err() != nil { // fetched when the run stopped
		v.release(0)
		finished = true
		return
	}
	h := r.handlers[e.task]
	if h == nil {
		r.w.warnStrange(e, t.s.p.queue)
		v.release(strangePause(e))
		finished = true
		return
	}
	payload, err := r.w.c.compress.Decode(e.payload)
	if err != nil {
		v.undecodable(e, err)
		finished = true
		return
	}
	r.attempt(v, e, h, payload)
	finished = true
}

// strangePause is how long a task that nobody here knows rests until it is
// offered again: a quarter of its age, from a second to a minute.
func strangePause(e *envelope) time.Duration {
	age := time.Since(time.UnixMilli(e.enqueued))
	return min(max(age/4, time.Second), time.Minute)
}

// attempt runs h and turns what it returns into a verdict.
func (r *run) attempt(v *verdict, e *envelope, h *handler, payload []byte) {
	n := &r.w.c.counts
	n.started.Inc()
	n.running.Add(1)
	n.waitTime.Observe(time.Since(v.ready()))
	start := time.Now()
	if r.keepsResult(e) {
		v.s.note(v.task, &result.Record{ID: e.id, Task: e.task, State: result.Started, Attempt: int(e.attempt),
			Enqueued: time.UnixMilli(e.enqueued), Started: start, TTL: retention(e)})
		v.progress = r.reports(v.task, e, start)
	}
	// A handler that ends its goroutine returns nothing.
	value, err := []byte(nil), error(errGoexit)
	defer func() {
		n.running.Add(-1)
		if errors.Is(context.Cause(r.work), ErrDrainTimeout) {
			r.cut.Store(true)
		}
		n.runTime.Observe(time.Since(start))
		progress := v.progress.end()
		r.decide(v, e, value, err, h.def.cfg.Backoff)
		if v.record != nil {
			v.record.Started = start
			if v.record.State != result.Success {
				v.record.Progress = progress // how far it came
			}
		}
	}()
	value, err = r.call(v, e, h, payload)
}

var errGoexit = errors.New("the handler ended its goroutine (runtime.Goexit)")

// call runs h with its context and contains a panic.
func (r *run) call(v *verdict, e *envelope, h *handler, payload []byte) (value []byte, err error) {
	delivery := newDelivery(e, v.s.p.queue)
	delivery.progress = v.progress
	ctx := context.WithValue(v.lease.ctx, deliveryKey{}, delivery)
	if e.timeout > 0 {
		limit := time.Duration(min(e.timeout, uint64(maxTimeout.Milliseconds()))) * time.Millisecond
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	defer func() {
		if p := recover(); p != nil {
			r.w.c.counts.panics.Inc()
			r.w.log.Error("handler panicked", "queue", v.s.p.queue, "task", e.task, "id", e.id, "attempt", e.attempt, "err", p, "stack", string(debug.Stack()))
			value, err = nil, &panicError{p}
		}
	}()
	return h.run(ctx, payload, r.w.cfg.Results)
}

const maxTimeout = 100 * 365 * 24 * time.Hour

// A panicError is a panic of a handler as the error of its attempt.
type panicError struct{ value any }

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

func (e *panicError) Unwrap() error {
	err, _ := e.value.(error)
	return err
}

// A policy is how long to wait after so many failed attempts.
type policy func(attempts int, err error) time.Duration

// decide judges a task whose handler has returned. The methods of err and the
// policy are not ours: whichever panics or ends the goroutine is replaced.
func (r *run) decide(v *verdict, e *envelope, value []byte, err error, backoff policy) {
	judged, asking := false, false
	defer func() {
		if judged {
			return
		}
		_ = recover()
		if !asking {
			err = fmt.Errorf("error of type %T that panics", err)
		}
		r.decide(v, e, nil, err, Backoff)
	}()
	v.kind, v.record = undecided, nil
	r.judge(v, e, value, err, func(attempts int, err error) time.Duration {
		asking = true
		pause := backoff(attempts, err)
		asking = false
		return pause
	})
	judged = true
	if err != nil && v.kind != releaseVerdict {
		r.w.log.Warn("task failed", "queue", v.s.p.queue, "task", e.task, "id", e.id, "attempt", e.attempt, "verdict", v.kind.String(), "err", err)
	}
}

// judge decides by what the handler returned.
func (r *run) judge(v *verdict, e *envelope, value []byte, err error, backoff policy) {
	var (
		undecodable *undecodableError
		unstorable  *unstorableError
		reject      *RejectError
		retry       *RetryError
	)
	last := e.attempt >= e.maxAttempts
	if err != nil {
		_ = err.Error() // what panics in the log must panic here
	}
	switch {
	case err == nil:
		v.kind = ackVerdict
		v.record = r.record(e, result.Success, nil)
		if v.record != nil {
			v.record.Value = value
		}
		return
	case errors.As(err, &unstorable):
		v.kind = ackVerdict
		v.record = r.record(e, result.Failure, err)
	case errors.As(err, &undecodable):
		v.die(e, Undecodable, err)
		v.record = r.record(e, result.Dead, err)
	case errors.As(err, &reject) && reject != nil:
		v.die(e, Rejected, err)
		v.record = r.record(e, result.Failure, reject.Err)
	case errors.As(err, &retry) && retry != nil && !last:
		v.retry(e, retry.Delay)
		v.record = r.record(e, result.Retry, retry.Err)
	case v.lease.ctx.Err() != nil && retry == nil:
		v.release(0)
		return
	case last:
		v.die(e, Exhausted, err)
		v.record = r.record(e, result.Failure, err)
	default:
		v.retry(e, backoff(int(e.attempt), err))
		v.record = r.record(e, result.Retry, err)
	}
}

// keepsResult reports whether the result of a task is wanted and can be kept.
func (r *run) keepsResult(e *envelope) bool {
	if e.result && r.w.cfg.Results == nil {
		r.w.warnResultless(e)
	}
	return e.result && r.w.cfg.Results != nil
}

func retention(e *envelope) time.Duration {
	return time.Duration(min(e.retention, uint64(maxTimeout.Milliseconds()))) * time.Millisecond
}

// record is what the result backend shall know; nil for nothing.
func (r *run) record(e *envelope, state result.State, err error) *result.Record {
	if !r.keepsResult(e) || result.ValidateID(e.id) != nil {
		return nil
	}
	rec := &result.Record{
		ID: e.id, Task: e.task, State: state, Attempt: int(e.attempt),
		Enqueued: time.UnixMilli(e.enqueued), TTL: retention(e), Cause: result.CauseOf(err),
	}
	if state.Final() {
		rec.Finished = time.Now()
	}
	return rec
}

// ready is when the entry of a task came into its stream, by the server's clock.
func (t *task) ready() time.Time {
	ms, _, _ := strings.Cut(t.entry.id, "-")
	n, err := strconv.ParseInt(ms, 10, 64)
	if err != nil {
		return time.Now()
	}
	return time.UnixMilli(n)
}
