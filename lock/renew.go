package lock

import (
	"container/heap"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// clockCheck is how often the clocks are compared while leases are held.
	clockCheck = time.Second

	// batchSize bounds the commands of one pipeline.
	batchSize = 1000

	// batchPatience is how long the next batch of renewals waits for one.
	batchPatience = 50 * time.Millisecond
)

// The renewer renews all leases of a client: those that are due in one
// pipeline, by one goroutine, which is there only while it does so. A server that
// does not answer keeps that one waiting; what is due meanwhile gets another. A
// lease whose renewal fails is tried again, until its own timer ends it.
type renewer struct {
	client *Client
	chore  chore

	mu      sync.Mutex
	held    dueHeap[*Lease]
	flying  int           // batches under way
	settled chan struct{} // closed when there are none; nil before stop
}

func (r *renewer) init(c *Client) {
	r.client = c
	r.chore.do = r.run
}

func (r *renewer) add(l *Lease) {
	r.mu.Lock()
	heap.Push(&r.held, l)
	due := l.due
	r.mu.Unlock()
	r.chore.plan(earlier(due, time.Now().Add(clockCheck)))
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
	for _, l := range r.leases() {
		l.checkClock()
	}
	if due := r.takeDue(); len(due) > 0 {
		batches := slices.Collect(slices.Chunk(due, batchSize))
		r.mu.Lock()
		r.flying += len(batches)
		r.mu.Unlock()
		go r.renewAll(batches) // stop waits for it
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.held) == 0 {
		return time.Time{}
	}
	return earlier(r.held[0].due, time.Now().Add(clockCheck))
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

// takeDue returns the leases that are due, and if there are any also those that
// will be shortly, so that leases acquired one after the other come to be renewed
// together.
func (r *renewer) takeDue() []*Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	var due []*Lease
	for len(r.held) > 0 {
		l := r.held[0]
		if ahead := l.due.Sub(now); ahead > l.ttl/20 || ahead > 0 && due == nil {
			break
		}
		due = append(due, l)
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

// renewAll renews one batch after the other. Where one has no answer for a while,
// another goroutine goes on with the rest.
func (r *renewer) renewAll(batches [][]*Lease) {
	for len(batches) > 0 {
		batch := batches[0]
		batches = batches[1:]
		if len(batches) == 0 {
			r.renew(batch)
			return
		}
		var passed atomic.Bool // the rest, to another
		rest := batches
		timer := time.AfterFunc(batchPatience, func() {
			if passed.CompareAndSwap(false, true) {
				r.renewAll(rest)
			}
		})
		r.renew(batch)
		timer.Stop()
		if !passed.CompareAndSwap(false, true) {
			return
		}
	}
}

// renew renews a batch. It gives up in time for another try.
func (r *renewer) renew(batch []*Lease) {
	defer r.landed()
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

func (r *renewer) landed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flying--; r.flying == 0 && r.settled != nil {
		close(r.settled)
	}
}

// again makes the lease due at the given time, if it is held still.
func (r *renewer) again(l *Lease, due time.Time) {
	r.mu.Lock()
	r.plan(l, due)
	held := l.index >= 0
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
