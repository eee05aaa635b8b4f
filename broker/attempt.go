package broker

import (
	"context"
	"sync"
	"time"
)

// An attempt is the context of a handler. It ends when the handler has returned,
// at its deadline, when the lease ends, or when the task is cancelled.
//
// It takes the place of context.WithTimeout and context.WithValue, which cost a
// timer and five allocations for each task. It is not known to the lease, nor its
// deadline to the run, before somebody asks for Done: most handlers never do, or
// pass the context on to calls that do.
type attempt struct {
	delivery Delivery
	lease    *lease
	r        *run
	payload  []byte
	value    []byte    // what the handler has returned
	deadline time.Time // zero without timeout
	place    int       // in run.deadlines; -1 outside. Guarded by its mutex

	mu    sync.Mutex
	err   error
	cause context.Context // answers context.Cause; nil before the end
	done  chan struct{}   // made by the first Done
	after []*afterFunc
}

type afterFunc struct{ f func() }

// Deadline returns when the attempt's time is over.
func (a *attempt) Deadline() (time.Time, bool) { return a.deadline, !a.deadline.IsZero() }

// Done returns a channel that is closed at the end.
func (a *attempt) Done() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watch()
	return a.done
}

// watch lets the lease and the deadline end a. a.mu is held.
func (a *attempt) watch() {
	if a.done != nil {
		return
	}
	a.done = make(chan struct{})
	if a.err != nil {
		close(a.done)
		return
	}
	a.lease.watch(a)
	if !a.deadline.IsZero() {
		a.r.deadlines.add(a)
	}
}

// Err returns why a has ended, or nil.
func (a *attempt) Err() error {
	a.mu.Lock()
	err := a.err
	a.mu.Unlock()
	switch {
	case err != nil:
		return err
	case a.lease.ctx.Err() != nil:
		a.end(context.Canceled, context.Cause(a.lease.ctx))
	case !a.deadline.IsZero() && !time.Now().Before(a.deadline):
		a.end(context.DeadlineExceeded, context.DeadlineExceeded)
	default:
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// Value finds the delivery, and the values of the context that Run was given.
func (a *attempt) Value(key any) any {
	if key == (deliveryKey{}) {
		return &a.delivery
	}
	a.mu.Lock()
	cause := a.cause
	a.mu.Unlock()
	if cause != nil {
		if v := cause.Value(key); v != nil { // context.Cause asks by a key of its own
			return v
		}
	}
	return a.lease.ctx.Value(key)
}

// AfterFunc lets contexts made from a follow it without a goroutine each: see
// package context.
func (a *attempt) AfterFunc(f func()) (stop func() bool) {
	a.mu.Lock()
	a.watch()
	if a.err != nil {
		a.mu.Unlock()
		go f()
		return func() bool { return false }
	}
	entry := &afterFunc{f}
	a.after = append(a.after, entry)
	a.mu.Unlock()
	return func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		for i, other := range a.after {
			if other == entry {
				a.after = append(a.after[:i], a.after[i+1:]...)
				return true
			}
		}
		return false
	}
}

// end ends a, once.
func (a *attempt) end(err, cause error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	a.finish(err, ctx)
}

// over ends a when its handler has returned.
func (a *attempt) over() { a.finish(context.Canceled, over) }

// over is what context.Cause finds after a handler has returned.
var over = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func (a *attempt) finish(err error, cause context.Context) {
	a.mu.Lock()
	if a.err != nil {
		a.mu.Unlock()
		return
	}
	a.err, a.cause = err, cause
	watched, after := a.done != nil, a.after
	a.after = nil
	if watched {
		close(a.done)
	}
	a.mu.Unlock()
	if watched {
		a.lease.unwatch(a)
		a.r.deadlines.remove(a)
	}
	for _, entry := range after {
		entry.f()
	}
}

// watch lets the lease end a.
func (l *lease) watch(a *attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watched == nil {
		l.watched = make(map[*attempt]struct{})
		// Also of a lease that has ended: it then runs at once.
		context.AfterFunc(l.ctx, l.endWatched)
	} else if l.ctx.Err() != nil {
		go l.endWatched()
	}
	l.watched[a] = struct{}{}
}

func (l *lease) unwatch(a *attempt) {
	l.mu.Lock()
	delete(l.watched, a)
	l.mu.Unlock()
}

func (l *lease) endWatched() {
	l.mu.Lock()
	all := make([]*attempt, 0, len(l.watched))
	for a := range l.watched {
		all = append(all, a)
	}
	l.mu.Unlock()
	for _, a := range all {
		a.end(context.Canceled, context.Cause(l.ctx))
	}
}

// deadlines end the attempts of a run when their time is over: a heap with one
// timer, which runs only while a handler waits for its context.
type deadlines struct {
	mu    sync.Mutex
	heap  []*attempt // by deadline; each knows its place
	timer *time.Timer
	at    time.Time // when the timer fires; zero while it is off
}

func (d *deadlines) add(a *attempt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a.place = len(d.heap)
	d.heap = append(d.heap, a)
	d.up(a.place)
	d.arm()
}

func (d *deadlines) remove(a *attempt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a.place < 0 {
		return
	}
	i, last := a.place, len(d.heap)-1
	d.swap(i, last)
	d.heap[last], d.heap = nil, d.heap[:last]
	a.place = -1
	if i < last {
		d.up(i)
		d.down(i)
	}
	if last == 0 && d.timer != nil {
		d.timer.Stop()
		d.at = time.Time{}
	}
}

// arm sets the timer for the first deadline, unless it fires before that anyway.
// d.mu is held.
func (d *deadlines) arm() {
	if len(d.heap) == 0 {
		return
	}
	first := d.heap[0].deadline
	switch {
	case d.timer == nil:
		d.timer = time.AfterFunc(time.Until(first), d.expire)
	case d.at.IsZero() || first.Before(d.at):
		d.timer.Reset(time.Until(first))
	default:
		return
	}
	d.at = first
}

func (d *deadlines) expire() {
	now := time.Now()
	d.mu.Lock()
	d.at = time.Time{}
	var late []*attempt
	for len(d.heap) > 0 && !d.heap[0].deadline.After(now) {
		a, last := d.heap[0], len(d.heap)-1
		d.swap(0, last)
		d.heap[last], d.heap = nil, d.heap[:last]
		d.down(0)
		a.place = -1
		late = append(late, a)
	}
	d.arm()
	d.mu.Unlock()
	for _, a := range late {
		a.end(context.DeadlineExceeded, context.DeadlineExceeded)
	}
}

func (d *deadlines) swap(i, j int) {
	d.heap[i], d.heap[j] = d.heap[j], d.heap[i]
	d.heap[i].place, d.heap[j].place = i, j
}

func (d *deadlines) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !d.heap[i].deadline.Before(d.heap[parent].deadline) {
			return
		}
		d.swap(i, parent)
		i = parent
	}
}

func (d *deadlines) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(d.heap) {
			return
		}
		if right := child + 1; right < len(d.heap) && d.heap[right].deadline.Before(d.heap[child].deadline) {
			child = right
		}
		if !d.heap[child].deadline.Before(d.heap[i].deadline) {
			return
		}
		d.swap(i, child)
		i = child
	}
}
