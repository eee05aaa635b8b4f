package broker

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/redisha/redisha/broker/result"
)

// execute runs handlers, first that of t unless it is nil, until there are no more
// tasks.
func (r *run) execute(t *task) {
	for {
		if t == nil {
			if t = r.floor.take(); t == nil {
				return
			}
		}
		r.handle(t)
		t = r.floor.next(t.s)
	}
}

// handle runs the handler of a task and passes on its verdict. A handler that
// ends its goroutine takes an executor with it, so handle starts another. A task
// on which nothing was decided is given back.
func (r *run) handle(t *task) {
	v := &t.verdict
	finished := false
	defer func() {
		if v.kind == undecided {
			v = release(t, time.Second)
		}
		if t.void.Load() { // what it says of its entry would be said of another task
			r.w.c.counts.lost.Inc()
			v.kind = noteVerdict
		}
		t.s.inbox.put(v)
		if !finished {
			next := r.floor.next(t.s)
			r.executors.Go(func() { r.execute(next) })
		}
	}()
	r.consider(v)
	finished = true
}

// consider runs the handler of a task, unless there is a reason not to.
func (r *run) consider(v *verdict) {
	e, err := decodeEnvelope(v.raw)
	if err != nil {
		v.undecodable(e, err)
		return
	}
	v.of(e)
	switch {
	case r.work.Err() != nil: // fetched when the run stopped
		v.release(0)
		return
	case v.revoked:
		v.cancel(e)
		return
	case e.ttl > 0 && v.s.serverTime(time.Now()) > e.enqueued+int64(e.ttl):
		v.expire(e)
		return
	}
	h := r.handlers[e.task]
	if h == nil {
		r.w.warnStrange(e, v.s.p.queue)
		v.release(strangePause(e))
		return
	}
	payload, err := r.w.c.compress.Decode(e.payload)
	if err != nil {
		v.undecodable(e, err)
		return
	}
	r.attempt(v, e, h, payload)
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
	start := time.Now()
	n.waitTime.Observe(start.Sub(v.ready(start)))
	if r.keepsResult(e) {
		v.s.note(v.task, &result.Record{ID: e.id, Task: e.task, State: result.Started, Attempt: int(e.attempt),
			Enqueued: time.UnixMilli(e.enqueued), Started: start, TTL: retention(e)})
		v.progress = r.reports(v.task, e, start)
	}
	a := r.newAttempt(v, e, payload, start)
	// A handler that ends its goroutine returns nothing.
	err := error(errGoexit)
	defer func() {
		a.over()
		v.running.Store(nil)
		v.wasRevoked = v.cancelled.Load()
		n.running.Add(-1)
		if errors.Is(context.Cause(r.work), ErrDrainTimeout) {
			r.cut.Store(true)
		}
		n.runTime.Observe(time.Since(start))
		progress := v.progress.end()
		r.decide(v, e, a.value, err, h.def.cfg.Backoff)
		if v.record != nil {
			v.record.Started = start
			if v.record.State != result.Success {
				v.record.Progress = progress // how far it came
			}
		}
	}()
	err = r.call(a, h)
}

func (r *run) newAttempt(v *verdict, e *envelope, payload []byte, start time.Time) *attempt {
	a := &attempt{delivery: newDelivery(e, v.s.p.queue), lease: v.lease, r: r, payload: payload, place: -1}
	a.delivery.attempt, a.delivery.progress = a, v.progress
	if e.timeout > 0 {
		a.deadline = start.Add(time.Duration(min(e.timeout, uint64(maxTimeout.Milliseconds()))) * time.Millisecond)
	}
	v.running.Store(a)
	return a
}

var errGoexit = errors.New("the handler ended its goroutine (runtime.Goexit)")

// call runs h and contains a panic.
func (r *run) call(a *attempt, h *handler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			d := &a.delivery
			r.w.c.counts.panics.Inc()
			r.w.log.Error("handler panicked", "queue", d.Queue, "task", d.Task, "id", d.ID, "attempt", d.Attempt, "err", p, "stack", string(debug.Stack()))
			err = &panicError{p}
		}
	}()
	return h.chain(a, &a.delivery)
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
	if err == nil {
		v.kind = ackVerdict
		if v.record = r.record(e, result.Success, nil); v.record != nil {
			v.record.Value = value
		}
		return
	}
	judged, asking := false, false
	defer func() {
		if judged {
			return
		}
		cause := recover()
		if asking {
			r.w.log.Error("TaskConfig.Backoff panicked or ended its goroutine: the default pause is taken", "task", e.task, "id", e.id, "attempt", e.attempt, "err", cause)
		} else {
			err = fmt.Errorf("error of type %T that panics", err)
		}
		r.decide(v, e, nil, err, Backoff)
	}()
	v.kind, v.record = undecided, nil
	r.judge(v, e, err, func(attempts int, err error) time.Duration {
		asking = true
		pause := backoff(attempts, err)
		asking = false
		return pause
	})
	judged = true
	if v.kind != releaseVerdict {
		r.w.log.Warn("task failed", "queue", v.s.p.queue, "task", e.task, "id", e.id, "attempt", e.attempt, "verdict", v.kind.String(), "err", err)
	}
}

// judge decides by the error that the handler returned.
func (r *run) judge(v *verdict, e *envelope, err error, backoff policy) {
	var (
		undecodable *undecodableError
		unstorable  *unstorableError
		reject      *RejectError
		retry       *RetryError
		snooze      *SnoozeError
		skip        *SkipError
	)
	last := e.attempt >= e.maxAttempts
	_ = err.Error() // what panics in the log must panic here
	switch {
	case errors.As(err, &unstorable):
		v.kind = ackVerdict
		v.record = r.record(e, result.Failure, err)
	case v.wasRevoked:
		v.cancel(e)
	case errors.As(err, &undecodable):
		v.die(e, Undecodable, err)
		v.record = r.record(e, result.Dead, err)
	case errors.As(err, &skip) && skip != nil:
		v.kind = ackVerdict
		v.record = r.record(e, result.Cancelled, skip)
	case errors.As(err, &reject) && reject != nil:
		v.die(e, Rejected, err)
		v.record = r.record(e, result.Failure, reject.Err)
	case errors.As(err, &snooze) && snooze != nil:
		v.release(max(snooze.Delay, 0))
		v.value = withAttempt(v.raw, e.attempt, 0) // it was a verdict
	case errors.Is(err, ErrClosed) && r.closing(): // this client refused what the handler published
		v.release(0)
	case errors.As(err, &retry) && retry != nil && !last:
		v.retry(e, retry.Delay)
		v.record = r.record(e, result.Retry, retry.Err)
	case v.lease.ctx.Err() != nil && retry == nil:
		v.release(0)
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
func (t *task) ready(now time.Time) time.Time {
	p, ok := positionOf(t.entry)
	if !ok {
		return now
	}
	return time.UnixMilli(int64(p.ms))
}
