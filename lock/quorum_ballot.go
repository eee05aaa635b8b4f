package lock

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/bsm/redislock"
)

// A ballot is one attempt of a quorum at a lease, and what becomes of it until
// all nodes have forgotten it: which of them have given it, which may have, and
// on which it is being given back.
//
// Its token serves no other attempt: a late question, or a late delete, can do no
// harm to another one's lease. Nobody asks a node twice at once, and what a node
// gives after the ballot is over is given back when it has answered.
type ballot struct {
	quorum   *quorum
	request  request // a copy
	metadata string
	sent     time.Duration // by quorum.clock

	mu      sync.Mutex
	phase   phase
	seats   []seat
	lock    *redislock.Lock // what a node has given; it is the same for all
	fence   int64           // of the lease; 0 before a majority has drawn
	decided chan struct{}   // closed when it is known how the attempt has ended
	ended   bool            // it is closed
	err     error           // why it was not won
	late    int             // times that the nodes have had to answer
	parting *parting        // the release that somebody waits for; nil: none
}

type phase uint8

const (
	voting phase = iota
	won          // the lease is held
	over         // it never was, or is no more
)

// A seat is what is known of one node.
type seat struct {
	state seatState
	doubt bool  // a question was not answered, and may be yet
	draw  int64 // the token that it has drawn
	least int64 // its counter is not below
	err   error // why it has not given the lease
	other string
	left  time.Duration

	raised, raising bool // its counter was to be; is being
}

type seatState uint8

const (
	seatVacant seatState = iota // the node has nothing of this lease
	seatAsked                   // a question is under way
	seatFresh                   // it has, since lately: see renew
	seatFirm                    // it has
	seatGiving                  // a release is under way
	seatGiven                   // it was given back
	seatSwept                   // it is being deleted in the background
)

// obtain makes one attempt.
func (q *quorum) obtain(ctx context.Context, r *request) ([]*redislock.Lock, answer, error) {
	r.token = newToken()
	b := &ballot{
		quorum: q, request: *r, metadata: q.client.label.at(time.Now().UnixMilli()), sent: q.clock(),
		seats: make([]seat, len(q.members)), decided: make(chan struct{}),
	}
	r.ballot = b
	if err := b.hold(ctx); err != nil {
		return nil, answer{token: -1, left: b.settle(r)}, err
	}
	// A lease with less than half of its TTL left was late by a multiple of what
	// nodes may take: this process or the network stood still. Its first renewal,
	// due after a third, would have to save it at once.
	if late := q.clock() - b.sent; late > r.ttl/2 {
		b.abandon()
		return nil, answer{token: -1, left: -1}, fmt.Errorf("the answers took %s, too long for a lease of %s", late, r.ttl)
	}
	return nil, answer{token: b.fence}, nil
}

// hold asks all nodes at once and returns when the ballot is decided, however
// long some of them may take.
func (b *ballot) hold(ctx context.Context) error {
	q := b.quorum
	limit := nodeTimeout(b.request.ttl)
	nodes, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	least := q.propose(b.sent)

	b.mu.Lock()
	under := newCountdown(cancel)
	for i, m := range q.members {
		if b.seats[i].err = m.begin(); b.seats[i].err != nil {
			continue
		}
		b.seats[i].state = seatAsked
		under.add()
		q.client.stay()
		go func() {
			defer q.client.leave()
			defer under.done()
			b.ask(nodes, i, least, true)
		}()
	}
	under.done()
	b.judge(ctx)
	b.mu.Unlock()

	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case <-b.decided:
			return b.err
		case <-timer.C:
			timer.Reset(limit)
			b.mu.Lock()
			b.late++
			b.judge(ctx)
			b.mu.Unlock()
		case <-ctx.Done():
			b.abandon()
			return context.Cause(ctx)
		}
	}
}

// ask asks a node, and takes note of its answer. The caller has begun the call.
func (b *ballot) ask(ctx context.Context, i int, least int64, draw bool) {
	q, m, r := b.quorum, b.quorum.members[i], &b.request
	begun := q.clock()
	v, sent, err := vote{}, false, m.fit(ctx)
	if err == nil && draw {
		err = m.seasoned(begun)
	}
	if err == nil {
		sent = true
		v, err = m.vote(ctx, r, b.metadata, least, draw)
	}
	m.end(begun, err)
	granted := err == nil
	doubt := sent && !granted && !errors.Is(err, ErrNotAcquired) && !m.neverSent(err)
	if granted {
		m.hears(v.now)
		if err = m.vouch(ctx); err == nil && draw {
			err = m.seasoned(begun)
		}
	} else {
		err = m.explain(err, r.keys)
	}
	m.blame(err)

	b.mu.Lock()
	defer b.mu.Unlock()
	s := &b.seats[i]
	s.state, s.err, s.other, s.left = seatVacant, err, v.other, v.left
	s.doubt = s.doubt || doubt
	switch {
	case b.phase == over && granted && b.awaited():
		b.part(ctx, i)
	case b.phase == over && (granted || s.doubt):
		b.sweep(s, m)
	case granted && err != nil:
		s.doubt = true // it must not count, and may be asked again: see heal
	case granted:
		s.least, b.lock = v.token, v.lock
		s.state = seatFresh
		if draw {
			s.state, s.draw = seatFirm, v.token
		}
		if b.phase == won {
			b.level(ctx)
		}
	}
	b.judge(ctx)
	b.weigh(false)
}

// judge decides the ballot as soon as that is possible: it is won, or it cannot be
// won any more. What nodes have given is then given back at once, while it may take
// longer to tell why it was not won. The caller holds mu.
//
// The last lease's token was in the counters of a majority, and any majority has
// one of these nodes: so the greatest token that a majority has drawn is greater.
// Of the majorities that have drawn, the one whose greatest token is the smallest
// gives the fence; the lease is won when a majority has a counter as great.
func (b *ballot) judge(ctx context.Context) {
	if b.phase == voting {
		b.count(ctx)
	}
	if b.ended || b.phase == voting {
		return
	}
	if b.phase == over {
		var certain bool
		if certain, b.err = b.verdict(); !certain {
			return
		}
	}
	b.ended = true
	close(b.decided)
}

// count wins or drops the ballot, or leaves it as it is. The caller holds mu.
func (b *ballot) count(ctx context.Context) {
	need := b.quorum.need
	draws := make([]int64, 0, maxNodes)
	pending := 0
	for i := range b.seats {
		switch s := &b.seats[i]; {
		case s.state == seatFirm:
			draws = append(draws, s.draw)
		case s.state == seatAsked && b.late == 0:
			pending++
		}
	}
	if len(draws) < need {
		if len(draws)+pending < need {
			b.drop()
		}
		return
	}
	if b.fence == 0 {
		slices.Sort(draws)
		b.fence = draws[need-1]
	}
	b.level(ctx)
	acknowledged, raising := 0, 0
	for i := range b.seats {
		switch s := &b.seats[i]; {
		case s.raising:
			raising++
		case s.state == seatFirm && s.least >= b.fence:
			acknowledged++
		}
	}
	switch {
	case acknowledged >= need:
		b.phase = won
	case b.late > 1 || raising == 0 && pending == 0:
		b.drop()
	}
}

// level raises the counters that are below the fence. Before the ballot is won it
// may take that for a majority to have it; after that, the token survives the loss
// of more counters, and [Client.Inspect] can tell it. The caller holds mu.
func (b *ballot) level(ctx context.Context) {
	for i := range b.seats {
		if s := &b.seats[i]; s.state == seatFirm && s.least < b.fence && !s.raised {
			s.raised, s.raising = true, true
			b.quorum.client.stay()
			go b.raise(ctx, i, b.fence)
		}
	}
}

// raise sees to it that a node's counter is not below the fence.
func (b *ballot) raise(ctx context.Context, i int, fence int64) {
	q, m := b.quorum, b.quorum.members[i]
	defer q.client.leave()
	begun := q.clock()
	var least int64
	err := m.begin()
	if err == nil {
		nodes, cancel := context.WithTimeout(context.WithoutCancel(ctx), nodeTimeout(b.request.ttl))
		defer cancel()
		least, err = m.node.raise(nodes, b.request.keys, fence)
		m.end(begun, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &b.seats[i]
	s.raising = false
	if err == nil {
		s.least = least
	} else if b.phase == voting {
		s.err = fmt.Errorf("fencing token: %w", m.explain(err, b.request.keys))
	}
	b.judge(ctx)
}

// While several ask at once and none gets the lease, each tries again, so often and
// after a pause of about so much, twice as much each time: who comes alone gets it.
const (
	splitTries = 8
	splitPause = 2 * time.Millisecond
)

// errSplit says that nobody may have the lock: several ask at once, and each was
// given a part. Trying again settles it.
var errSplit = fmt.Errorf("%w, or several ask for it at once", ErrNotAcquired)

// verdict says why a ballot was not won, and whether that is certain: else an answer
// that is still to come may tell. The caller holds mu.
//
// Another has the lock if a majority tells that its lease is there. A lease that a
// minority has may be one of several who ask at once: each gives back what it got
// and comes again with another token. One that was seen before, too, is held.
func (b *ballot) verdict() (certain bool, err error) {
	errs := make([]error, len(b.seats))
	bad, pending := 0, 0
	for i := range b.seats {
		switch s := &b.seats[i]; {
		case s.state == seatAsked && b.late == 0:
			pending++
		case s.state == seatAsked, s.raising:
			errs[i] = fmt.Errorf("no answer within %s", nodeTimeout(b.request.ttl))
			bad++
		case s.err != nil && !errors.Is(s.err, ErrNotAcquired):
			errs[i] = s.err
			bad++
		}
	}
	rival, shown := b.rival()
	switch {
	case shown >= b.quorum.need:
		return true, ErrNotAcquired
	case len(b.seats)-bad < b.quorum.need:
		return true, b.quorum.outage(errs)
	case pending > 0:
		return false, nil
	case rival != "" && rival == b.request.rival:
		return true, ErrNotAcquired
	}
	return true, errSplit
}

// rival returns the token of who has the most of the nodes that refused, and how
// many these are. The caller holds mu.
func (b *ballot) rival() (token string, shown int) {
	count := make(map[string]int)
	for i := range b.seats {
		if s := &b.seats[i]; errors.Is(s.err, ErrNotAcquired) && s.other != "" {
			if count[s.other]++; count[s.other] > shown {
				token, shown = s.other, count[s.other]
			}
		}
	}
	return token, shown
}

// settle tells the request whom this attempt has met, and returns when the first of
// the others' leases ends; negative if that is unknown.
func (b *ballot) settle(r *request) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	r.rival, _ = b.rival()
	least := time.Duration(-1)
	for i := range b.seats {
		s := &b.seats[i]
		if errors.Is(s.err, ErrNotAcquired) && s.left >= 0 && (least < 0 || s.left < least) {
			least = s.left
		}
	}
	return least
}

// abandon gives up in the background what the nodes may have given.
func (b *ballot) abandon() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop()
}

func (q *quorum) giveUp(r *request, _ outcome) {
	r.ballot.abandon()
	if len(r.locks) > 1 { // a node that has lost one of the keys may have the others
		for _, m := range q.members {
			m.sweeper.add(r, settled)
		}
	}
}

// drop lets the sweepers delete what is left; where a question or a release is
// under way, what follows it does so. The caller holds mu.
func (b *ballot) drop() {
	b.phase = over
	for i, m := range b.quorum.members {
		switch s := &b.seats[i]; {
		case s.state == seatVacant && s.doubt, s.state == seatFirm, s.state == seatFresh:
			b.sweep(s, m)
		}
	}
}

// sweep lets a node's sweeper delete what may be there. The caller holds mu.
func (b *ballot) sweep(s *seat, m *member) {
	o := settled
	if s.doubt {
		o = unsettled
	}
	m.sweeper.add(&b.request, o)
	s.state = seatSwept
}

// A countdown calls f when all that was added is done. It begins with one.
type countdown struct {
	mu sync.Mutex
	n  int
	f  func()
}

func newCountdown(f func()) *countdown { return &countdown{n: 1, f: f} }

func (c *countdown) add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
}

func (c *countdown) done() {
	c.mu.Lock()
	c.n--
	last := c.n == 0
	c.mu.Unlock()
	if last {
		c.f()
	}
}
