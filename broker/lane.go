package broker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of a batch. A task above maxBatchBytes travels alone.
const (
	maxBatch      = 256
	maxBatchBytes = 512 << 10
)

// Bounds of what waits in a lane, beyond which publishes wait for room.
const (
	maxWaiting      = 16 * maxBatch
	maxWaitingBytes = 16 * maxBatchBytes
)

// A lane is the ordered stream of batches from one client to one partition. It
// has one batch in flight, which it sends again under the same sequence number
// until it is resolved: publish.lua applies a number once.
//
// A number whose batch was ever written to a socket is never used for other
// tasks: those bytes may still arrive, after everything that was sent later.
//
// The publish that finds the lane idle sends at once, on its own goroutine. What
// came meanwhile, and what did not succeed at first, is left to a goroutine that
// ends when nothing waits.
type lane struct {
	c     *Client
	p     *partition
	level Confirm

	// Publishers that can, pass over a lane that has failed lately, or whose batch
	// is not resolved. Unix nanoseconds; 0 for never.
	failedAt, openSince atomic.Int64

	mu      sync.Mutex
	waiting []*publishing // not in a batch yet
	bytes   int           // of waiting
	busy    bool          // somebody sends
	room    chan struct{} // closed when there is room again; nil: nobody waits for that

	// What follows belongs to who sends.
	name    string
	seq     uint64
	applied uint64 // the last number that Redis has told to have
	used    time.Time
	touched time.Time // when Redis was told that the lane is used
	batch   batch
	sender  sender
	open    time.Time // since when confirmations fail; zero if they do not
	fsync   bool      // the server is known to be able to

	loaded, loadedPlain bool // the server has had publish.lua, plain.lua
}

// laneIdle is how long a lane may rest and be sure that its record is still
// there; the maintenance drops records that were not used for laneAge. Redis is
// told every laneTouch.
const (
	laneAge   = 24 * time.Hour
	laneIdle  = 12 * time.Hour
	laneTouch = time.Hour
)

func newLane(c *Client, p *partition, level Confirm) *lane {
	return &lane{c: c, p: p, level: level, name: randomName(), sender: newSender(p)}
}

// avoided reports whether the lane failed within the last second, or has a batch
// that has not been resolved, or confirmed, for more than 200 ms.
func (l *lane) avoided(now time.Time) bool {
	open := l.openSince.Load()
	return now.UnixNano()-l.failedAt.Load() < int64(time.Second) || open != 0 && now.UnixNano()-open > int64(passOverAfter)
}

const passOverAfter = 200 * time.Millisecond

// randomName returns 12 letters and digits that nobody else has.
func randomName() string {
	n := rand.Uint64()
	var b [12]byte
	for i := range b {
		b[i] = idAlphabet[n&31]
		n >>= 5
	}
	return string(b[:])
}

// A publishing is a task on its way through a lane.
type publishing struct {
	id         string
	envelope   []byte
	conditions any      // as publish.lua takes them; nil without
	keys       []string // of the conditions
	given      bool     // the ID
	unique     string   // the unique key
	key        string   // the concurrency key
	placed     string   // what decides the partition; "" any
	timed      bool     // its envelope must hold the time of publishing
	waiter     *waiter  // nil if nobody waits

	// Guarded by lane.mu, until it is resolved.
	batch    *batch // nil while it waits
	resolved bool
	err      error
}

// MarshalBinary returns the envelope, which the scripts take.
func (t *publishing) MarshalBinary() ([]byte, error) { return t.envelope, nil }

// A waiter waits for the publishings of one call.
type waiter struct {
	left atomic.Int32
	done chan struct{} // gets one message when left is 0
}

// A batch is what one call of publish.lua adds.
type batch struct {
	seq      uint64
	tasks    []*publishing
	verdicts string // of the last reply

	// Guarded by lane.mu.
	waiters   int           // publishings whose caller has not left; those without one never do
	abandoned chan struct{} // closed when there are none any more; nil: nobody asked
	sent      bool          // it may have been written to a socket, with an outcome that is not known
	flying    bool          // an attempt is under way
	appliedAt time.Time     // when Redis told first to have it
}

// fixed reports whether the batch must keep its tasks.
func (b *batch) fixed() bool { return b.sent || b.flying || !b.appliedAt.IsZero() }

// enter adds tasks to the lane. If nobody sends, the caller is to do so. Where there
// is no room, it returns a channel instead that is closed when there is.
func (l *lane) enter(tasks ...*publishing) (lead bool, room <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) >= maxWaiting || l.bytes >= maxWaitingBytes {
		if l.room == nil {
			l.room = make(chan struct{})
		}
		return false, l.room, nil
	}
	if !l.busy {
		if !l.c.begin() {
			return false, nil, ErrClosed
		}
		l.busy, lead = true, true
	}
	l.waiting = append(l.waiting, tasks...)
	for _, t := range tasks {
		l.bytes += len(t.envelope)
	}
	return lead, nil, nil
}

// lead sends the first batch of what waits, once, and leaves the rest, or what
// did not succeed, to a goroutine.
func (l *lane) lead(ctx context.Context) {
	b := l.take()
	resolved := b == nil || l.attempt(ctx, b)
	if resolved && !l.more() {
		l.c.started.Done()
		return
	}
	go l.run(resolved)
}

// more reports whether tasks wait. If not, the lane is idle from then on.
func (l *lane) more() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = len(l.waiting) > 0
	return l.busy
}

// run sends batches until nobody waits. Client.Close waits for it.
func (l *lane) run(resolved bool) {
	defer l.c.started.Done()
	if !resolved {
		l.resolve(&l.batch)
	}
	for l.more() {
		if b := l.take(); b != nil && !l.attempt(l.c.life, b) {
			l.resolve(b)
		}
	}
}

// take makes the next batch of what waits.
func (l *lane) take() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, bytes := 0, 0
	for n < len(l.waiting) && n < maxBatch {
		size := len(l.waiting[n].envelope)
		if n > 0 && bytes+size > maxBatchBytes {
			break
		}
		bytes += size
		n++
	}
	if n == 0 {
		return nil
	}
	l.seq++
	b := &l.batch
	*b = batch{seq: l.seq, tasks: append(b.tasks[:0], l.waiting[:n]...), waiters: n}
	for _, t := range b.tasks {
		t.batch = b
	}
	l.waiting = slices.Delete(l.waiting, 0, n)
	l.bytes -= bytes
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
	return b
}

// giveUp withdraws t for a caller who no longer waits, or says that it is too late.
func (l *lane) giveUp(t *publishing, cause error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.resolved {
		return t.err
	}
	b := t.batch
	if l.withdraw(t) {
		return fmt.Errorf("not sent: %w", cause)
	}
	l.leave(b)
	return &UnconfirmedError{ID: t.id, Applied: !b.appliedAt.IsZero(), Err: cause}
}

// passOver withdraws t, for another lane, if this one fails.
func (l *lane) passOver(t *publishing, now time.Time) bool {
	if !l.avoided(now) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !t.resolved && l.withdraw(t)
}

// withdraw takes t out if it was never written to a socket.
func (l *lane) withdraw(t *publishing) bool {
	b := t.batch
	isIt := func(w *publishing) bool { return w == t }
	switch {
	case b == nil:
		l.waiting = slices.DeleteFunc(l.waiting, isIt)
		l.bytes -= len(t.envelope)
	case b.fixed():
		return false
	default:
		b.tasks = slices.DeleteFunc(b.tasks, isIt)
		l.leave(b)
	}
	t.batch = nil
	return true
}

func (l *lane) leave(b *batch) {
	if b.waiters--; b.waiters == 0 && b.abandoned != nil {
		close(b.abandoned)
	}
}

// abandonment returns a channel that is closed when nobody waits for b any more.
func (l *lane) abandonment(b *batch) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b.abandoned == nil {
		b.abandoned = make(chan struct{})
		if b.waiters == 0 {
			close(b.abandoned)
		}
	}
	return b.abandoned
}
