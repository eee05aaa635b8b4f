package lock

import (
	"context"
	"slices"
	"strconv"
	"time"
)

// A waiter is one call that waits.
type waiter struct {
	*request
	line  *line
	wake  chan call // holds one
	call  call      // the last one
	heard reading   // the place's clock when the waiter woke

	// Guarded by line.mu.
	place   *place // nil before the first attempt has failed
	trying  bool   // an attempt is under way, or will be
	placed  bool   // its entry is in the queue, as far as is known
	stale   bool   // its entry may have come there after it was taken out
	left    bool
	got     bool // the lock
	channel *channel
	gen     uint64 // of the channel, when the attempt began
}

// A call wakes a waiter. That without a token lets him try again. The other says
// that the lease was made for him.
type call struct {
	at    int64 // the server's time when that was, µs
	fence int64 // the fencing token
}

// newCall reads what is in a message.
func newCall(at, fence string) (c call) {
	c.at, _ = strconv.ParseInt(at, 10, 64)
	c.fence, _ = strconv.ParseInt(fence, 10, 64)
	return c
}

// failed notes an attempt after which the lock is another's, or which an outage has
// met.
func (w *waiter) failed(a answer, outage bool) {
	l := w.line
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	p := w.place
	if p == nil {
		p = l.place(w.keys)
		p.waiters = append(p.waiters, w)
		w.place = p
		l.waiters[w.token] = w
	}
	ch := p.channel
	w.trying, w.stale = false, false
	w.placed = w.entry != "" && ch.live && ch == w.channel && ch.gen == w.gen // else the entry was taken for one of a process that is gone
	w.entry = l.entryOf(w.request)                                            // from now on it may be placed
	if w.placed {
		p.clock = a.clock
	}
	if !outage {
		p.told = now
	}
	if a.refused {
		l.refuse(p)
	}
	switch {
	case outage, !p.messages():
		l.look(p, now.Add(p.poll(a.left)))
	case !w.placed:
		l.look(p, now)
	default:
		l.look(p, now.Add(until(a.left)))
	}
}

// told returns when the server has answered last: a waiter, or a look.
func (w *waiter) told() time.Time {
	if w == nil || w.place == nil {
		return time.Time{}
	}
	w.line.mu.Lock()
	defer w.line.mu.Unlock()
	return w.place.told
}

// wait sleeps until the lease is there, or another attempt is worth while.
func (w *waiter) wait(ctx context.Context) error {
	select {
	case w.call = <-w.wake:
		w.drop = w.call == call{} // a message says that the entry was taken out of the queue
		w.line.mu.Lock()
		defer w.line.mu.Unlock()
		w.heard, w.channel, w.gen = w.place.clock, w.place.channel, w.place.channel.gen
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-w.line.node.client.closing.Done():
		return ErrClosed
	}
}

// signal wakes the waiter. The caller holds line.mu.
func (w *waiter) signal(c call) {
	w.trying = true
	select {
	case <-w.wake: // one that says less, or the same
	default:
	}
	w.wake <- c
}

// renew gives a request another token, if what an attempt may have left under the
// one that it has is being given up: that would delete a later lease, too. What a
// quorum's attempts leave they know themselves.
func (w *waiter) renew(r *request, outage *outageError) {
	if w == nil {
		if outage.swept {
			r.token = newToken()
		}
		return
	}
	l := w.line
	l.mu.Lock()
	defer l.mu.Unlock()
	w.gen-- // whether its entry is in the queue is to be seen
	if !outage.swept {
		return
	}
	delete(l.waiters, w.token)
	w.token, w.entry, w.drop, w.stale = newToken(), "", false, false
	l.waiters[w.token] = w
	select {
	case <-w.wake: // for the token that it had
	default:
	}
}

// leave ends the waiter. Unless it has got the lock, its place in the queue and
// what was set aside for it are given up.
func (w *waiter) leave(acquired bool) {
	if w == nil {
		return
	}
	l := w.line
	l.mu.Lock()
	delete(l.waiters, w.token)
	if p := w.place; p != nil {
		p.waiters = slices.DeleteFunc(p.waiters, func(o *waiter) bool { return o == w })
		if len(p.waiters) == 0 {
			l.remove(p)
		}
	}
	w.left, w.got = true, acquired
	queued, stale := w.entry != "", w.stale
	l.mu.Unlock()
	switch {
	case !acquired && queued:
		l.node.sweeper.add(w.request, settled)
	case stale:
		l.node.sweeper.addEntry(w.request, acquired)
	}
}
