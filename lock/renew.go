package lock

import (
	"container/heap"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	// clockCheck is how often the clocks are compared while leases are held.
	clockCheck = time.Second

	// batchSize bounds the commands of one pipeline.
	batchSize = 1000

	// waitShare is which part of its life a lease that is due waits at the most for
	// a renewal of others that hangs.
	waitShare = 12
)

// The renewer renews all leases of a client: those that are due in one
// pipeline, by one goroutine, which is there only while it does so. Where a server
// does not answer, another one goes on before that costs a lease which is due
// meanwhile. A lease whose renewal fails is tried again, until its own timer, which
// it has from its first renewal on, ends it.
type renewer struct {
	client *Client
	chore  chore

	mu      sync.Mutex
	held    dueHeap[*Lease]
	checked time.Time     // when the clocks are compared next
	relief  *time.Timer   // while a batch is under way: lets another go on
	begun   time.Time     // of that batch
	relieve time.Time     // when it does
	flying  int           // batches under way
	settled chan struct{} // closed when there are none; nil before stop
}

func (r *renewer) init(c *Client) {
	r.client = c
	r.chore.do = r.run
}

func (r *renewer) add(l *Lease) {
	r.mu.Lock()
	if len(r.held) == 0 {
		r.checked = time.Now().Add(clockCheck)
	}
	heap.Push(&r.held, l)
	r.press(l)
	next := earlier(l.due, r.checked)
	r.mu.Unlock()
	r.chore.plan(next)
}

// remove is called under the lease's own mutex, so nothing here may take that.
func (r *renewer) remove(l *Lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.index >= 0 {
		heap.Remove(&r.held, l.index)
	}
}

// leases returns the leases held now.
func (r *renewer) leases() []*Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.held)
}

// run renews what is due and returns when to look again: never, once nothing is held.
func (r *renewer) run() (next time.Time) {
	this := r.chore.current()
	for {
		r.checkClocks()
		due := r.takeDue()
		if len(due) == 0 {
			break
		}
		if len(due) == batchSize {
			r.armRest()
		}
		batch := slices.DeleteFunc(due, func(l *Lease) bool {
			l.checkClock()
			return !l.arm()
		})
		if len(batch) == 0 {
			continue
		}
		stop := r.watch(func() { r.chore.pass(this) })
		r.renew(batch)
		stop()
		if r.chore.current() != this { // another goes on
			return time.Time{}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.held) == 0 {
		return time.Time{}
	}
	return earlier(r.held[0].due, r.checked)
}

// armRest lets those leases be lost in time that are due and that a batch has no
// room for: it may hang, and so may those behind it.
func (r *renewer) armRest() {
	now := time.Now()
	r.mu.Lock()
	rest := slices.DeleteFunc(slices.Clone(r.held), func(l *Lease) bool { return l.due.After(now) })
	r.mu.Unlock()
	for _, l := range rest {
		l.arm()
	}
}

func (r *renewer) checkClocks() {
	now := time.Now()
	r.mu.Lock()
	early := now.Before(r.checked)
	if !early {
		r.checked = now.Add(clockCheck)
	}
	r.mu.Unlock()
	if early {
		return
	}
	for _, l := range r.leases() {
		l.checkClock()
	}
}

// watch calls pass if a batch is under way for so long that others cannot wait,
// until stop is called.
func (r *renewer) watch(pass func()) (stop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flying++
	r.begun = time.Now()
	r.relieve = r.begun.Add(clockCheck / 4)
	if r.checked.After(r.relieve) {
		r.relieve = r.checked // so that the clocks are compared
	}
	timer := time.AfterFunc(time.Until(r.relieve), pass)
	r.relief = timer
	for _, l := range r.held {
		r.press(l)
	}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		timer.Stop()
		if r.relief == timer {
			r.relief = nil
		}
		if r.flying--; r.flying == 0 && r.settled != nil {
			close(r.settled)
		}
	}
}

// press lets the batch that is under way be relieved in time for a lease. One that is
// late already gives it the same time, else nothing but goroutines would come of it.
// The caller holds mu.
func (r *renewer) press(l *Lease) {
	if r.relief == nil {
		return
	}
	from := l.due
	if from.Before(r.begun) {
		from = r.begun
	}
	if at := from.Add(l.span / waitShare); at.Before(r.relieve) {
		r.relieve = at
		r.relief.Reset(time.Until(at))
	}
}

// stop ends the renewing, which is given up when ctx is done.
func (r *renewer) stop(ctx context.Context) error {
	if err := r.chore.stop(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	r.settled = make(chan struct{})
	settled := r.settled
	if r.flying == 0 {
		close(settled)
	}
	r.mu.Unlock()
	return await(ctx, settled)
}

// await returns nil once done is closed, or why ctx ended before.
func await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	default:
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// takeDue returns a batch of the leases that are due, and if there are any also
// those that will be shortly, so that leases acquired one after the other come to be
// renewed together.
func (r *renewer) takeDue() []*Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	var due []*Lease
	for len(r.held) > 0 && len(due) < batchSize {
		l := r.held[0]
		if ahead := l.due.Sub(now); ahead > l.ttl/20 || ahead > 0 && due == nil {
			break
		}
		due = append(due, l)
		l.span = l.ttl
		r.plan(l, now.Add(l.ttl)) // until the outcome is known
	}
	return due
}

// plan sets when the lease is due.
func (r *renewer) plan(l *Lease, due time.Time) {
	l.due = due
	if l.index >= 0 {
		heap.Fix(&r.held, l.index)
	}
}

// renew renews a batch. It gives up in time for another try.
func (r *renewer) renew(batch []*Lease) {
	c := r.client
	patience := releaseTimeout
	for _, l := range batch {
		patience = min(patience, max(l.lives()/4, MinTTL))
	}
	ctx, cancel := context.WithTimeout(c.running, patience)
	defer cancel()
	skew, sent := c.clock.skew(), time.Now()
	var failure error
	var failures uint64
	for i, err := range c.store.renew(ctx, batch) {
		l := batch[i]
		switch {
		case err == nil:
			c.counts.renewed.Inc()
			l.extend(sent, skew)
			r.again(l, sent.Add(l.ttl/3))
		case errors.Is(err, errGone):
			l.lose(refused)
		case errors.Is(err, errUnsafe):
			r.again(l, l.runOut())
		default:
			failures++
			failure = err
			r.again(l, time.Now().Add(max(l.lives()/30, 10*time.Millisecond)))
		}
	}
	if failures > 0 && ctx.Err() != context.Canceled { //nolint:errorlint // which Close causes
		c.counts.renewFailed.Add(failures)
		c.log.Warn("leases not renewed, will try again", "leases", failures, "key", batch[0].key(), "err", failure)
	}
}

// again makes the lease due at the given time, if it is held still and was not
// hurried while its renewal was under way.
func (r *renewer) again(l *Lease, due time.Time) {
	r.mu.Lock()
	r.plan(l, earlier(due, l.due))
	due = l.due
	held := l.index >= 0
	if held {
		r.press(l)
	}
	r.mu.Unlock()
	if held {
		r.chore.plan(due)
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
