package coalesce

import (
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/lanes"
)

// maxLanes bounds the batches under way to one server.
const maxLanes = 16

// A queue has the reads from one server.
type queue struct {
	r    *Reader
	node string // of a Cluster; "" elsewhere

	mu        sync.Mutex
	waiting   []*batch    // the first one departs next, the last one takes more keys
	gathering bool        // a read that waits lets others come, before it launches
	lanes     lanes.Lanes // of batches, and of reads that travel alone
}

func newQueue(r *Reader, node string) *queue {
	q := &queue{r: r, node: node}
	q.lanes = lanes.New(maxLanes, q.tick)
	return q
}

// enter admits a read if nothing else is under way, or gives it a seat. It does
// neither once the queue is closed.
func (q *queue) enter(key string, t *term) (lanes.Ticket, seat) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lanes.Closed() {
		return lanes.Ticket{}, seat{}
	}
	if q.lanes.Idle() && len(q.waiting) == 0 {
		return q.lanes.Board(t.start), seat{}
	}
	s := q.add(key, t)
	if q.lanes.Free() && !q.gathering {
		q.gathering = true
		q.mu.Unlock()
		runtime.Gosched() // whoever is about to read comes along
		q.mu.Lock()
		q.gathering = false
		q.launchAll()
	}
	q.tickOn()
	return lanes.Ticket{}, s
}

// join gives one of several reads a seat. The queue has to be started then.
func (q *queue) join(key string, t *term) seat {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lanes.Closed() {
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
func (q *queue) aside() lanes.Ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lanes.Closed() {
		return lanes.Ticket{}
	}
	return q.lanes.Aside()
}

// leave gives a seat in b up. It reports false if its reader has been granted a
// lane meanwhile.
func (q *queue) leave(b *batch) bool {
	q.mu.Lock()
	switch {
	case b.granted.Admitted:
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
	if q.lanes.Free() && !q.grant() {
		go q.run(q.lanes.Board(time.Now()))
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
		q.lanes.Settle()
		return true
	}
	if len(q.waiting) > 1 || b.readers > 1 || b.grouped {
		return false
	}
	q.shift()
	b.departed = true
	b.holders.Store(1)
	b.granted = q.lanes.Board(time.Now())
	if !b.end.come(answered) { // it leaves
		q.lanes.Leave(b.granted)
		b.granted = lanes.Ticket{}
		return q.grant()
	}
	return true
}

// landed gives a lane back, or on.
func (q *queue) landed(t lanes.Ticket, ok bool) {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lanes.Leave(t)
	if ok {
		q.lanes.Took(t, now.Sub(t.Start))
	}
	q.launch()
}

// run flies, on the lane of t, until nobody waits.
func (q *queue) run(t lanes.Ticket) {
	over := false
	defer func() {
		if !over { // the goroutine ends by a hook's Goexit
			q.landed(t, false)
		}
	}()
	for f := q.next(t, 0); f.batch != nil; {
		t = f.ticket
		took := f.batch.fly(f.ctx, t.Start)
		runtime.Gosched() // who was answered comes along, if it has more to read
		f = q.next(t, took)
	}
	over = true
}

// A flight is a batch that departs.
type flight struct {
	batch  *batch // nil: there is none
	ctx    *flightContext
	ticket lanes.Ticket
}

// next gives a lane back, on which the last flight took a round trip of so long if
// it was well, and returns the flight that takes it, if there is one.
func (q *queue) next(t lanes.Ticket, took time.Duration) flight {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lanes.Leave(t)
	if took > 0 {
		q.lanes.AtMost(took)
	}
	if !q.lanes.Free() || q.grant() {
		return flight{}
	}
	b := q.first()
	q.shift()
	return flight{b, b.depart(q.node), q.lanes.Board(time.Now())}
}

// tickOn lets what is overdue make room, while somebody waits.
func (q *queue) tickOn() {
	if len(q.waiting) > 0 {
		q.lanes.Watch()
	}
}

func (q *queue) tick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lanes.Age()
	q.launchAll()
	q.tickOn()
}

// Close refuses reads from now on.
func (q *queue) Close() (quiet <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	quiet = q.lanes.Close()
	if q.first() == nil {
		q.lanes.Settle()
	}
	return quiet
}

// Reject refuses what waits.
func (q *queue) Reject() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for b := q.first(); b != nil; b = q.first() {
		q.shift()
		b.departed = true
		b.holders.Store(int32(b.readers)) //nolint:gosec // it fits
		b.err = conn.ErrClosed
		b.end.come(answered)
	}
	q.lanes.Settle()
}
