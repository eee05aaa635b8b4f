package lock

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bsm/redislock"

	"github.com/redisha/redisha/breaker"
)

// A parting is a release that somebody waits for.
type parting struct {
	done chan struct{}
	over bool
	err  error
}

// release gives a lease back to all nodes that may have it, and returns when a
// majority of them has taken it, or told that the lease was gone; or when too many
// have not answered in time. The others go on in the background, and what they do
// not answer is deleted by their sweepers.
func (q *quorum) release(ctx context.Context, l *Lease) error {
	b := l.ballot
	p := &parting{done: make(chan struct{})}
	b.mu.Lock()
	b.phase, b.parting = over, p
	for i := range q.members {
		switch s := &b.seats[i]; {
		case s.state == seatVacant && s.doubt:
			b.sweep(s, q.members[i])
		case s.state == seatFirm, s.state == seatFresh, s.state == seatSwept:
			b.part(ctx, i)
		}
	}
	b.weigh(false)
	b.mu.Unlock()

	timer := time.NewTimer(nodeTimeoutMost)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		b.mu.Lock()
		b.weigh(true)
		b.mu.Unlock()
	}
	return p.err
}

// part lets the lease be given back to a node, where a question is not under way.
// The caller holds mu.
func (b *ballot) part(ctx context.Context, i int) {
	q, m, s := b.quorum, b.quorum.members[i], &b.seats[i]
	again := s.state == seatSwept
	if m.begin() != nil {
		if !again {
			b.sweep(s, m)
		}
		return
	}
	s.state = seatGiving
	held := b.lock
	q.client.stay()
	go func() {
		defer q.client.leave()
		ctx, cancel := context.WithTimeout(breaker.Bypass(context.WithoutCancel(ctx)), nodeTimeoutMost)
		defer cancel()
		b.giveBack(ctx, i, held, again)
	}()
}

// awaited reports whether somebody waits for the release. The caller holds mu.
func (b *ballot) awaited() bool { return b.parting != nil && !b.parting.over }

// giveBack gives the lease back to one node; again, if its sweeper has it already.
func (b *ballot) giveBack(ctx context.Context, i int, held *redislock.Lock, again bool) {
	m := b.quorum.members[i]
	begun := b.quorum.clock()
	err := m.part(ctx, held, b.request.keys)
	if errors.Is(err, redislock.ErrLockNotHeld) {
		m.end(begun, nil)
	} else {
		m.end(begun, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &b.seats[i]
	if !again && (s.doubt || err != nil && !errors.Is(err, redislock.ErrLockNotHeld)) {
		b.sweep(s, m)
	}
	switch {
	case err == nil:
		s.state = seatGiven
	case errors.Is(err, redislock.ErrLockNotHeld):
		s.state = seatVacant
	default:
		s.state, s.err = seatSwept, err
	}
	s.doubt = false // which is the sweeper's now
	b.weigh(false)
}

// weigh settles the release that somebody waits for, if that is possible: it has
// worked when a majority had the lease until now; the lease was gone if a majority
// cannot have had it. If neither is known in the end, it is enough that no majority
// can have it any more. The caller holds mu.
func (b *ballot) weigh(late bool) {
	p := b.parting
	if !b.awaited() {
		return
	}
	need := b.quorum.need
	back, without, pending := 0, 0, 0
	errs := make([]error, len(b.seats))
	for i := range b.seats {
		switch s := &b.seats[i]; s.state {
		case seatGiven:
			back++
		case seatVacant:
			without++
		case seatGiving, seatAsked:
			pending++
			errs[i] = errMissing
		default:
			errs[i] = fmt.Errorf("the lease is being deleted there: %w", errSilent)
			if s.err != nil {
				errs[i] = s.err
			}
		}
	}
	switch {
	case back >= need:
	case without >= need:
		p.err = redislock.ErrLockNotHeld
	case pending > 0 && !late:
		return
	case back+without >= need:
	default:
		p.err = b.quorum.outage(errs)
	}
	p.over = true
	close(p.done)
}
