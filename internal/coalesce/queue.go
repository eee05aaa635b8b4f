package coalesce

import (
	"runtime"
	"slices"
	"sync"
	"time"
)

// Bounds of the number of lanes, and the time in which one of them should
// become free, which gives the number.
const (
	minLanes = 2
	maxLanes = 16
	laneTime = 50 * time.Microsecond
)

// overdueAfter is about how long a flight counts for its lane. One that is
// repeated, or whose connection is dead, must not hold up all others.
const overdueAfter = 50 * time.Millisecond

// A queue has the reads from one server.
type queue struct {
	r    *Reader
	node string // of a Cluster; "" elsewhere

	mu        sync.Mutex
	waiting   []*batch // the first one departs next, the last one takes more keys
	gathering bool     // a read that waits lets others come, before it launches
	lanes     int
	rtt       time.Duration // to the server, as measured; 0 before
	quiet     chan struct{} // made by close, closed when nothing is under way

	// Flights, reads alone included: begun since the last tick, between the last
	// two, before those. The last ones are overdue and count no more.
	young, old, overdue int
	ticks               uint64
	ticker              *time.Timer // runs while reads wait
	ticking             bool
}

func newQueue(r *Reader, node string) *queue { return &queue{r: r, node: node, lanes: minLanes} }

// A ticket is the right to a lane.
type ticket struct {
	admitted bool
	only     bool // nothing else was under way
	ticks    uint64
	start    time.Time
}

// board takes a lane.
func (q *queue) board(now time.Time) ticket {
	q.young++
	return ticket{admitted: true, only: q.young+q.old+q.overdue == 1, ticks: q.ticks, start: now}
}

func (q *queue) free() bool { return q.young+q.old < q.lanes }

// enter admits a read if nothing else is under way, or gives it a seat. It does
// neither once the queue is closed.
func (q *queue) enter(key string, t *term) (ticket, seat) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.quiet != nil {
		return ticket{}, seat{}
	}
	if q.young+q.old == 0 && len(q.waiting) == 0 {
		return q.board(t.start), seat{}
	}
	s := q.add(key, t)
	if q.free() && !q.gathering {
		q.gathering = true
		q.mu.Unlock()
		runtime.Gosched() // whoever is about to read comes along
		q.mu.Lock()
		q.gathering = false
		q.launchAll()
	}
	q.tickOn()
	return ticket{}, s
}

// join gives one of several reads a seat. The queue has to be started then.
func (q *queue) join(key string, t *term) seat {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.quiet != nil {
		return seat{}
	}
	s := q.add(key, t)
	s.batch.grouped = true
	return s
}

func (q *queue) start() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.launchAll()
	q.tickOn()
}

func (q *queue) add(key string, t *term) seat {
	var b *batch
	if n := len(q.waiting); n > 0 && q.waiting[n-1].slot == t.slot && len(q.waiting[n-1].keys) < q.waiting[n-1].full {
		b = q.waiting[n-1]
	} else {
		b = q.r.newBatch(t.slot)
		q.waiting = append(q.waiting, b)
	}
	return seat{q, b, b.add(key, t)}
}

// aside admits a read that takes no lane.
func (q *queue) aside() ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.quiet != nil {
		return ticket{}
	}
	q.overdue++
	return ticket{admitted: true, ticks: q.ticks - 2}
}

// leave gives a seat in b up. It reports false if its reader has been granted a
// lane meanwhile.
func (q *queue) leave(b *batch) bool {
	q.mu.Lock()
	switch {
	case b.granted.admitted:
		q.mu.Unlock()
		return false
	case !b.departed:
		b.readers--
		q.mu.Unlock()
		return true
	}
	b.left++
	if b.left == b.readers && b.cancel != nil {
		b.cancel()
	}
	q.mu.Unlock()
	b.release()
	return true
}

// first returns the batch that departs next. Those that everybody has left are
// forgotten.
func (q *queue) first() *batch {
	for len(q.waiting) > 0 {
		b := q.waiting[0]
		if b.readers > 0 {
			return b
		}
		q.shift()
		b.recycle()
	}
	return nil
}

func (q *queue) shift() { q.waiting = slices.Delete(q.waiting, 0, 1) }

// launch gives a free lane to who waits.
func (q *queue) launch() {
	if q.free() && !q.grant() {
		go q.run(q.board(time.Now()))
	}
}

func (q *queue) launchAll() {
	for range len(q.waiting) {
		q.launch()
	}
}

// grant gives a free lane to the one read that waits. It reports false if there
// are more.
func (q *queue) grant() bool {
	b := q.first()
	if b == nil {
		q.settle()
		return true
	}
	if len(q.waiting) > 1 || b.readers > 1 || b.grouped {
		return false
	}
	q.shift()
	b.departed = true
	b.holders.Store(1)
	b.granted = q.board(time.Now())
	if !b.end.come(answered) { // it leaves
		q.disembark(b.granted)
		b.granted = ticket{}
		return q.grant()
	}
	return true
}

// landed gives a lane back, or on.
func (q *queue) landed(t ticket, ok bool) {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.disembark(t)
	if ok {
		q.measure(t, now.Sub(t.start))
	}
	q.launch()
}

// run flies, on the lane of t, until nobody waits.
func (q *queue) run(t ticket) {
	over := false
	defer func() {
		if !over { // the goroutine ends by a hook's Goexit
			q.landed(t, false)
		}
	}()
	for f := q.next(t, 0); f.batch != nil; {
		t = f.ticket
		took := f.batch.fly(f.ctx, t.start)
		runtime.Gosched() // who was answered comes along, if it has more to read
		f = q.next(t, took)
	}
	over = true
}

// A flight is a batch that departs.
type flight struct {
	batch  *batch // nil: there is none
	ctx    *flightContext
	ticket ticket
}

// next gives a lane back, on which the last flight took a round trip of so long if
// it was well, and returns the flight that takes it, if there is one.
func (q *queue) next(t ticket, took time.Duration) flight {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.disembark(t)
	if took > 0 && took < q.rtt {
		q.measure(t, took)
	}
	if !q.free() || q.grant() {
		return flight{}
	}
	b := q.first()
	q.shift()
	return flight{b, b.depart(q.node), q.board(time.Now())}
}

func (q *queue) disembark(t ticket) {
	switch q.ticks - t.ticks {
	case 0:
		q.young--
	case 1:
		q.old--
	default:
		q.overdue--
	}
}

// measure learns the round trip: it is never more than what one took, and tends to
// what reads take that find nothing else under way.
func (q *queue) measure(t ticket, took time.Duration) {
	switch {
	case q.rtt == 0 || took < q.rtt:
		q.rtt = took
	case t.only:
		q.rtt += (took - q.rtt) / 8
	}
	q.lanes = min(max(int(q.rtt/laneTime), minLanes), maxLanes)
}

// tickOn starts the ticker while somebody waits.
func (q *queue) tickOn() {
	if len(q.waiting) == 0 || q.ticking {
		return
	}
	q.ticking = true
	if q.ticker == nil {
		q.ticker = time.AfterFunc(overdueAfter, q.tick)
	} else {
		q.ticker.Reset(overdueAfter)
	}
}

// tick ages what is under way. Flights that have become overdue make room.
func (q *queue) tick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.overdue, q.old, q.young = q.overdue+q.old, q.young, 0
	q.ticks++
	q.launchAll()
	q.ticking = false
	q.tickOn()
}

// settle tells close when nothing is under way. It is called when nobody waits.
func (q *queue) settle() {
	if q.quiet != nil && q.young+q.old+q.overdue == 0 {
		select {
		case <-q.quiet:
		default:
			close(q.quiet)
			if q.ticker != nil {
				q.ticker.Stop()
			}
		}
	}
}

// close lets quiet be closed when nothing is under way any more.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.quiet == nil {
		q.quiet = make(chan struct{})
	}
	if q.first() == nil {
		q.settle()
	}
}

// reject refuses what waits.
func (q *queue) reject(cause error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for b := q.first(); b != nil; b = q.first() {
		q.shift()
		b.departed = true
		b.holders.Store(int32(b.readers)) //nolint:gosec // it fits
		b.err = cause
		b.end.come(answered)
	}
	q.settle()
}
