package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// An outcome is what a load came to.
type outcome[V any] struct {
	value  V
	body   []byte // the codec's bytes of value
	stored []byte // what to store; nil: nothing
	tags   []tag  // of it
	px     int64  // TTL of it, ms
	fresh  int64  // how long it is not stale, ms
	err    error
}

// isAnswer reports whether the source answered: with a value, or that there is none.
func (o *outcome[V]) isAnswer() bool { return o.err == nil || errors.Is(o.err, ErrNotFound) }

// keepFor is how long the outcome may be kept in an outage; 0: not at all.
func (o *outcome[V]) keepFor() time.Duration {
	if o.stored == nil {
		return 0
	}
	return min(time.Duration(o.fresh)*time.Millisecond, keepFor)
}

// call calls the loader, until LoadTimeout at most. It calls after once the
// loader has returned, which may be later.
func (s *search[K, V]) call(after func()) outcome[V] {
	v, n := s.view, &s.view.c.stats
	if v.c.running.closed() { // while the flight waited for its place
		after()
		return outcome[V]{err: ErrClosed}
	}
	if s.seat != nil {
		s.seat.book(s.ctx, s.key)
	}
	ctx, cancel := context.WithTimeoutCause(s.ctx, v.cfg.LoadTimeout, v.timedOut)
	defer cancel()
	done := make(chan outcome[V], 1)
	start := time.Now()
	n.loads.Inc()
	v.c.running.more()
	go s.runLoad(ctx, start, done, after)
	var out outcome[V]
	select {
	case out = <-done:
	case <-ctx.Done():
		out.err = ctx.Err()
	}
	if out.err != nil && ctx.Err() != nil && errors.Is(out.err, ctx.Err()) {
		out.err = context.Cause(ctx) // says whose timeout it was
	}
	n.loadTime.Observe(time.Since(start))
	if !out.isAnswer() {
		n.loadErrors.Inc()
	}
	return out
}

// runLoad calls the loader on the goroutine of a load, and sends what it came
// to. Client.Close ends it and waits for it.
func (s *search[K, V]) runLoad(ctx context.Context, start time.Time, done chan<- outcome[V], after func()) {
	out := outcome[V]{err: errGoexit}
	defer s.view.c.running.done()
	defer func() {
		if r := recover(); r != nil {
			out = outcome[V]{err: s.view.panicked(s.ctx, s.redisKey, r)}
		}
		after()
		done <- out
	}()
	e, err := s.loader.load(ctx, s.key)
	out = s.view.outcomeOf(s.ctx, s.redisKey, e, err, time.Since(start))
}

// outcomeOf makes ready what the loader returned after took.
func (v *View[K, V]) outcomeOf(ctx context.Context, redisKey string, e Entry[V], err error, took time.Duration) outcome[V] {
	tags, wrong := v.tagsOf(e.Tags)
	if wrong != nil && (err == nil || errors.Is(err, ErrNotFound)) {
		return outcome[V]{err: wrong}
	}
	switch {
	case errors.Is(err, ErrNotFound):
		out := outcome[V]{err: ErrNotFound, tags: tags}
		if ttl := cmp.Or(e.TTL, v.cfg.AbsentTTL); ttl >= 0 {
			out.stored = appendHeader(nil, kindAbsence, header{stored: unixMilli(time.Now()), loadTime: loadMillis(took), tags: tags})
			out.px = jitter(min(ttl, maxTTL))
			out.fresh = out.px
		}
		return out
	case err != nil:
		return outcome[V]{err: err}
	}
	ttl := cmp.Or(e.TTL, v.cfg.TTL)
	h, px := v.header(max(ttl, 0), took)
	h.tags = tags
	body, stored, err := v.encode(&e.Value, h)
	if tooLarge := (*tooLargeError)(nil); errors.As(err, &tooLarge) {
		v.c.warn(ctx, &v.c.warnedSize, "loaded value not stored", redisKey, err)
		err = nil
	}
	if err != nil {
		return outcome[V]{err: err}
	}
	if ttl < 0 {
		stored = nil
	}
	return outcome[V]{value: e.Value, body: body, stored: stored, tags: tags, px: px, fresh: px - v.cfg.StaleFor.Milliseconds()}
}

var errGoexit = errors.New("the load ended its goroutine (runtime.Goexit)")

// panicked logs a panic of the program's functions, of which the stack would
// otherwise be lost, and returns it as an error.
func (v *View[K, V]) panicked(ctx context.Context, redisKey string, r any) error {
	v.c.log.ErrorContext(ctx, "load panicked", "key", redisKey, "err", fmt.Sprint(r), "stack", string(debug.Stack()))
	if err, ok := r.(error); ok {
		return fmt.Errorf("the load panicked: %w", err)
	}
	return fmt.Errorf("the load panicked: %v", r)
}
