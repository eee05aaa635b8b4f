package batch

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/redisha/redisha/internal/conn"
)

// Bounds of a shared pipeline. A request above them travels alone.
const (
	maxCommands = 512
	maxBytes    = 256 << 10
)

// Bounds of the number of lanes, and the time in which one of them should
// become free, which gives the number.
const (
	minLanes = 2
	maxLanes = 8
	laneTime = 50 * time.Microsecond
)

// overdueAfter is about how long a pipeline counts for its lane. One that is
// repeated, or whose connection is dead, must not hold up all others.
const overdueAfter = 50 * time.Millisecond

// A queue has the requests for one server.
type queue struct {
	b *Batcher

	mu      sync.Mutex
	waiting [kinds]list // of each kind, which travel in pipelines of their own
	arrived uint64      // requests that have had to wait
	lanes   int
	rtt     time.Duration // to the server, as measured; 0 before
	quiet   chan struct{} // made by close, closed when nothing is under way

	// Pipelines under way: begun since the last tick, between the last two, before
	// those. The last ones are overdue and count no more.
	young, old, overdue int
	ticks               uint64
	ticker              *time.Timer // runs while requests wait
	ticking             bool
}

func newQueue(b *Batcher) *queue { return &queue{b: b, lanes: minLanes} }

// A ticket is the right to a lane.
type ticket struct {
	admitted bool
	only     bool // nothing else was under way
	ticks    uint64
	start    time.Time
}

// board takes a lane.
func (q *queue) board() ticket {
	q.young++
	return ticket{admitted: true, only: q.young+q.old+q.overdue == 1, ticks: q.ticks, start: time.Now()}
}

func (q *queue) free() bool { return q.young+q.old < q.lanes }

// first returns the request that has waited longest.
func (q *queue) first() *request {
	a, b := q.waiting[plain].first, q.waiting[bypass].first
	if a == nil || b != nil && b.number < a.number {
		return b
	}
	return a
}

// enter admits a request if a lane is free that nobody waits for.
func (q *queue) enter() ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.free() && q.first() == nil && q.quiet == nil {
		return q.board()
	}
	return ticket{}
}

// wait returns when r is answered, refused, or admitted.
func (q *queue) wait(ctx context.Context, r *request) ticket {
	if !q.join(r) {
		return ticket{}
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		if q.leave(r, context.Cause(ctx)) {
			return ticket{}
		}
		<-r.done
	}
	if r.state.Load() != granted {
		return ticket{}
	}
	if ctx.Err() != nil {
		r.err = notSent(context.Cause(ctx))
		q.landed(r.ticket, false)
		return ticket{}
	}
	return r.ticket
}

func (q *queue) join(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.quiet != nil {
		r.err = notSent(conn.ErrClosed)
		return false
	}
	q.arrived++
	r.number = q.arrived
	q.waiting[r.kind].add(r)
	q.launch()
	if q.first() != nil && !q.ticking {
		q.ticking = true
		if q.ticker == nil {
			q.ticker = time.AfterFunc(overdueAfter, q.tick)
		} else {
			q.ticker.Reset(overdueAfter)
		}
	}
	return true
}

// leave takes r out for a caller whose context has ended. It reports false if
// that is too late, since r was answered, granted or refused.
func (q *queue) leave(r *request, cause error) bool {
	q.mu.Lock()
	if r.state.Load() == waiting && r.err == nil {
		q.waiting[r.kind].remove(r)
		r.err = notSent(cause)
		q.settle()
		q.mu.Unlock()
		return true
	}
	q.mu.Unlock()
	if !r.state.CompareAndSwap(flying, left) {
		return false
	}
	r.flight.departed(true)
	r.err = abandoned(cause)
	return true
}

// launch gives a free lane to who waits.
func (q *queue) launch() {
	if q.free() && !q.grant() {
		go q.run(q.board())
	}
}

// grant gives a free lane to the one request that waits. It reports false if there
// are more.
func (q *queue) grant() bool {
	r := q.first()
	if r == nil {
		q.settle()
		return true
	}
	waiting := &q.waiting[r.kind]
	if waiting.n > 1 {
		return false
	}
	waiting.remove(r)
	r.ticket = q.board()
	r.state.Store(granted)
	r.done <- struct{}{}
	return true
}

// landed gives a lane back, or on.
func (q *queue) landed(t ticket, ok bool) {
	took := time.Since(t.start)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.disembark(t)
	if ok {
		q.measure(t, took)
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
	for f := q.next(t); f != nil; f = q.next(t) {
		t = f.ticket
		f.fly()
		runtime.Gosched() // who was answered comes along, if it has more to send
	}
	over = true
}

// next gives a lane back and returns the flight that takes it, if there is one.
func (q *queue) next(t ticket) *flight {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.disembark(t)
	if !q.free() || q.grant() {
		return nil
	}
	r := q.first()
	waiting := &q.waiting[r.kind]
	f := newFlight(q, r.kind, q.board(), min(waiting.n, maxCommands))
	commands, bytes := 0, 0
	for ; r != nil; r = waiting.first {
		commands += len(r.commands)
		bytes += r.bytes
		if len(f.members) > 0 && (commands > maxCommands || bytes > maxBytes) {
			break
		}
		waiting.remove(r)
		f.add(r)
	}
	return f
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

// measure learns the round trip from requests that travelled alone: that is never
// more than what one took, and tends to what those take that find nothing else
// under way.
func (q *queue) measure(t ticket, took time.Duration) {
	if took < q.rtt {
		q.rtt = took
	} else if t.only {
		q.rtt += (took - q.rtt) / 8
	}
	q.lanes = min(max(int(q.rtt/laneTime), minLanes), maxLanes)
}

// tick ages what is under way. Flights that have become overdue make room.
func (q *queue) tick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.overdue, q.old, q.young = q.overdue+q.old, q.young, 0
	q.ticks++
	q.launch()
	if q.ticking = q.first() != nil; q.ticking {
		q.ticker.Reset(overdueAfter)
	}
}

// settle tells close when nothing is under way.
func (q *queue) settle() {
	if q.quiet != nil && q.first() == nil && q.young+q.old+q.overdue == 0 {
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
	q.settle()
}

// reject refuses what waits.
func (q *queue) reject(cause error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for r := q.first(); r != nil; r = q.first() {
		q.waiting[r.kind].remove(r)
		r.err = notSent(cause)
		r.done <- struct{}{}
	}
	q.settle()
}
