package lock

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"time"
)

// A set is some of the nodes.
type set uint32

func (s set) has(i int) bool { return s&(1<<i) != 0 }
func (s set) len() int       { return bits.OnesCount32(uint32(s)) }
func (s *set) add(i int)     { *s |= 1 << i }

// A renewing is one round of renewals: of many leases on all nodes at once.
//
// A lease is renewed when a majority of nodes that are firm has done so. A node
// that got the lease later, in place of one that was lost, is fresh at first, and
// counts only after a renewal that it was not needed for: so a majority of nodes
// has had the lease without a gap, from its beginning to its last renewal, even if
// nodes forget it and are given it again.
type renewing struct {
	quorum *quorum
	leases []*tally
	done   chan struct{}

	mu        sync.Mutex
	undecided int
	ended     bool
}

// A tally counts the answers for one lease.
type tally struct {
	lease  *Lease
	ballot *ballot
	firm   set // when the round began
	fresh  set // then, too
	kept   set
	gone   set
	unsafe set
	failed set

	decided bool
	err     error
	cause   error // the last failure
}

// renew renews leases. It returns as soon as the outcome of each is known,
// without waiting for nodes that it does not take.
func (q *quorum) renew(ctx context.Context, leases []*Lease) []error {
	deadline, _ := ctx.Deadline()
	nodes, cancel := context.WithDeadline(q.client.running, deadline)
	under := newCountdown(cancel)
	r := &renewing{quorum: q, leases: make([]*tally, len(leases)), done: make(chan struct{}), undecided: len(leases)}
	asks := make([]roster, len(q.members))
	for i, l := range leases {
		r.leases[i] = &tally{lease: l, ballot: l.ballot}
		r.leases[i].enrol(asks, i)
	}
	for n, m := range q.members {
		a := &asks[n]
		if len(a.leases) == 0 {
			continue
		}
		if err := m.begin(); err != nil {
			r.note(n, a, repeat(err, len(a.leases)))
			continue
		}
		under.add()
		q.client.stay()
		go func() {
			defer q.client.leave()
			defer under.done()
			r.note(n, a, m.keep(nodes, a.renewals))
		}()
	}
	under.done()
	select {
	case <-r.done:
	case <-ctx.Done():
	}
	return r.end()
}

// A roster is what one node is asked for.
type roster struct {
	leases   []int // their places in renewing.leases
	renewals []renewal
}

func repeat(err error, n int) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}

// enrol puts a lease on the rosters of the nodes that have it.
func (t *tally) enrol(asks []roster, lease int) {
	b := t.ballot
	b.mu.Lock()
	defer b.mu.Unlock()
	for n := range b.seats {
		switch b.seats[n].state {
		case seatFirm:
			t.firm.add(n)
		case seatFresh:
			t.fresh.add(n)
		default:
			continue
		}
		asks[n].leases = append(asks[n].leases, lease)
		asks[n].renewals = append(asks[n].renewals, renewal{held: b.lock, ttl: b.request.ttl})
	}
}

// keep renews leases on one node. What it answers does not count unless it is the
// server that it was.
func (m *member) keep(ctx context.Context, renewals []renewal) []error {
	begun := m.quorum.clock()
	errs := m.node.renew(ctx, renewals)
	err := errs[0]
	if errors.Is(err, errGone) || errors.Is(err, errUnsafe) {
		err = nil
	}
	m.end(begun, err)
	if err == nil {
		if err := m.vouch(ctx); err != nil {
			return repeat(err, len(renewals))
		}
	}
	return errs
}

// note takes the answers of one node.
func (r *renewing) note(n int, a *roster, errs []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, err := range errs {
		t := r.leases[a.leases[k]]
		switch {
		case err == nil:
			t.kept.add(n)
		case errors.Is(err, errGone):
			t.gone.add(n)
			t.ballot.forget(n)
		case errors.Is(err, errUnsafe):
			t.unsafe.add(n)
		default:
			t.failed.add(n)
			t.cause = fmt.Errorf("%s: %w", r.quorum.members[n].name, err)
		}
		r.judge(t)
		if !t.decided || t.err != nil {
			continue
		}
		if again := t.kept & t.fresh; again != 0 {
			t.ballot.confirm(again)
		}
		if r.ended {
			t.ballot.heal(t.lease)
		}
	}
}

// judge decides what becomes of a lease, if that is known. The caller holds mu.
func (r *renewing) judge(t *tally) {
	if t.decided {
		return
	}
	need := r.quorum.need
	kept := (t.kept & t.firm).len()
	left := t.firm &^ t.gone
	switch {
	case kept >= need:
	case left.len() < need:
		t.err = errGone
	case (left &^ t.unsafe).len() < need:
		t.err = errUnsafe
	case t.firm&^(t.kept|t.gone|t.unsafe|t.failed) == 0:
		t.err = fmt.Errorf("renewed by %d of %d nodes, want %d: %w", kept, len(r.quorum.members), need, t.cause)
	default:
		return
	}
	t.decided = true
	if r.undecided--; r.undecided == 0 {
		close(r.done)
	}
}

// end returns the outcomes, and lets nodes that have lost leases be given them
// again.
func (r *renewing) end() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	errs := make([]error, len(r.leases))
	for i, t := range r.leases {
		switch {
		case !t.decided:
			errs[i] = fmt.Errorf("renewed by %d of %d nodes in time, want %d", (t.kept & t.firm).len(), len(r.quorum.members), r.quorum.need)
		case t.err != nil:
			errs[i] = t.err
		default:
			t.ballot.heal(t.lease)
		}
	}
	return errs
}

// forget takes note that a node has the lease no more.
func (b *ballot) forget(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := &b.seats[n]; s.state == seatFirm || s.state == seatFresh {
		s.state = seatVacant
	}
}

// confirm lets nodes count that were fresh before a renewal which has worked
// without them.
func (b *ballot) confirm(kept set) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n := range b.seats {
		if s := &b.seats[n]; s.state == seatFresh && kept.has(n) {
			s.state = seatFirm
		}
	}
}

// heal lets the nodes that have not got the lease, or not any more, be asked for
// it again.
func (b *ballot) heal(l *Lease) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.phase != won {
		return
	}
	for n, m := range b.quorum.members {
		if b.seats[n].state == seatVacant {
			m.heal(l)
		}
	}
}

// heal lets a doctor ask the node for a lease: for one after the other, so that
// thousands do not come at once when a server is back.
func (m *member) heal(l *Lease) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.sick) >= maxSwept || m.watch.barred.Load() {
		return
	}
	m.sick = append(m.sick, l)
	if !m.healing {
		m.healing = true
		m.client.stay()
		go m.doctor()
	}
}

// doctor heals until there is nothing left to heal, or the node does not answer:
// the next renewal begins anew. What was healed is renewed soon, so that it counts.
func (m *member) doctor() {
	defer m.client.leave()
	var healed []*Lease
	begun := time.Now()
	for {
		m.mu.Lock()
		if len(m.sick) == 0 || len(healed) > 0 && time.Since(begun) > nodeTimeoutMost {
			m.client.renewer.hurry(healed)
			healed, begun = nil, time.Now()
		}
		if len(m.sick) == 0 {
			m.healing = false
			m.mu.Unlock()
			return
		}
		l := m.sick[0]
		m.sick = m.sick[1:]
		m.mu.Unlock()
		switch ok, err := l.ballot.cure(m); {
		case ok:
			healed = append(healed, l)
		case err != nil:
			m.mu.Lock()
			m.sick = nil
			m.mu.Unlock()
		}
	}
}

// cure asks a node for a lease that a majority of the others has, and reports
// whether that has worked. It returns an error if the node does not answer.
func (b *ballot) cure(m *member) (bool, error) {
	s := &b.seats[m.number]
	b.mu.Lock()
	if b.phase != won || s.state != seatVacant || m.client.running.Err() != nil {
		b.mu.Unlock()
		return false, nil
	}
	if err := m.begin(); err != nil {
		b.mu.Unlock()
		return false, err
	}
	s.state = seatAsked
	fence := b.fence
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), nodeTimeoutMost) // not client.running, which bypasses the breaker
	defer cancel()
	b.ask(ctx, m.number, fence, false)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case s.state == seatFresh:
		return true, nil
	case m.isSilent(m.quorum.clock()):
		return false, errSilent
	}
	return false, nil
}

// hurry renews leases now.
func (r *renewer) hurry(leases []*Lease) {
	now := time.Now()
	for _, l := range leases {
		r.again(l, now)
	}
	if len(leases) > 0 {
		r.chore.plan(now)
	}
}
