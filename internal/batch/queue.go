package batch

import (
	"context"
	"sync"
	"time"

	"github.com/redisha/redisha/breaker"
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
	maxLanes = 16
	laneTime = 50 * time.Microsecond
)

// overdueAfter is about how long a pipeline counts for its lane. One that is
// repeated, or whose connection is dead, must not hold up all others.
const overdueAfter = 50 * time.Millisecond

// A queue has the requests for one server.
type queue struct {
	b      *Batcher
	bypass bool
	base   context.Context

	mu      sync.Mutex
	waiting list
	lanes   int
	rtt     time.Duration // the lowest of late; 0 before the first
	quiet   chan struct{} // made by close, closed when nothing is under way

	// Pipelines under way: begun since the last tick, between the last two, before
	// those. The last ones are overdue and count no more.
	young, old, overdue int
	ticks               uint64
	ticker              *time.Timer // runs while requests wait
	ticking             bool
}

func newQueue(b *Batcher, bypass bool) *queue {
	q := &queue{b: b, bypass: bypass, lanes: minLanes, base: b.life}
	if bypass {
		q.base = breaker.Bypass(b.life)
	}
	return q
}

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

// enter admits a request if a lane is free that nobody waits for.
func (q *queue) enter() ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting.first == nil && q.free() && q.quiet == nil {
		return q.board()
	}
	return ticket{}
}

// wait returns when r is answered, refused, or admitted.
func (q *queue) wait(ctx context.Context, r *request) ticket {
	if f, ok := q.join(r); !ok {
		return ticket{}
	} else if f != nil {
		go q.run(f)
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
		q.landed(r.ticket)
		return ticket{}
	}
	return r.ticket
}

func (q *queue) join(r *request) (*flight, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.b.life.Err() != nil || q.quiet != nil {
		r.err = notSent(conn.ErrClosed)
		return nil, false
	}
	q.waiting.add(r)
	f := q.launch()
	if q.waiting.first != nil && !q.ticking {
		q.ticking = true
		if q.ticker == nil {
			q.ticker = time.AfterFunc(overdueAfter, q.tick)
		} else {
			q.ticker.Reset(overdueAfter)
		}
	}
	return f, true
}

// leave takes r out for a caller whose context has ended. It reports false if
// that is too late, since r was answered, granted or refused.
func (q *queue) leave(r *request, cause error) bool {
	q.mu.Lock()
	if r.state.Load() == waiting && r.err == nil {
		q.waiting.remove(r)
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

// launch gives a free lane to who waits: to the one request there is, or to a
// flight, which the caller of launch must run.
func (q *queue) launch() *flight {
	if !q.free() {
		return nil
	}
	switch q.waiting.n {
	case 0:
		q.settle()
		return nil
	case 1:
		r := q.waiting.first
		q.waiting.remove(r)
		r.ticket = q.board()
		r.state.Store(granted)
		r.done <- struct{}{}
		return nil
	}
	return q.take()
}

// take makes a flight of what waits, as far as the bounds allow.
func (q *queue) take() *flight {
	f := newFlight(q, q.board(), min(q.waiting.n, maxCommands))
	commands, bytes := 0, 0
	for r := q.waiting.first; r != nil; r = q.waiting.first {
		commands += len(r.commands)
		bytes += r.bytes
		if len(f.members) > 0 && (commands > maxCommands || bytes > maxBytes) {
			break
		}
		q.waiting.remove(r)
		f.add(r)
	}
	return f
}

// landed gives a lane back, or on.
func (q *queue) landed(t ticket) {
	if f := q.next(t); f != nil {
		go q.run(f)
	}
}

// next gives a lane back and returns the flight that takes it, if there is one.
func (q *queue) next(t ticket) *flight {
	took := time.Since(t.start)
	q.mu.Lock()
	defer q.mu.Unlock()
	switch q.ticks - t.ticks {
	case 0:
		q.young--
	case 1:
		q.old--
	default:
		q.overdue--
	}
	if q.rtt == 0 || took < q.rtt {
		q.rtt = took
	} else if t.only {
		q.rtt += (took - q.rtt) / 8
	}
	q.lanes = min(max(int(q.rtt/laneTime), minLanes), maxLanes)
	return q.launch()
}

// run flies until nobody waits.
func (q *queue) run(f *flight) {
	over := false
	defer func() {
		if !over { // the goroutine ends by a hook's Goexit
			q.landed(f.ticket)
		}
	}()
	for f != nil {
		f.fly()
		f = q.next(f.ticket)
	}
	over = true
}

// tick ages what is under way. Flights that have become overdue make room.
func (q *queue) tick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.overdue, q.old, q.young = q.overdue+q.old, q.young, 0
	q.ticks++
	for q.free() && q.waiting.first != nil {
		if f := q.launch(); f != nil {
			go q.run(f)
		}
	}
	if q.ticking = q.waiting.first != nil; q.ticking {
		q.ticker.Reset(overdueAfter)
	}
}

// settle tells close when nothing is under way.
func (q *queue) settle() {
	if q.quiet != nil && q.waiting.first == nil && q.young+q.old+q.overdue == 0 {
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

func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting.first == nil && q.young+q.old+q.overdue == 0
}

// close returns what is closed when nothing is under way any more.
func (q *queue) close() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.quiet == nil {
		q.quiet = make(chan struct{})
	}
	q.settle()
	return q.quiet
}

// reject refuses what waits.
func (q *queue) reject(cause error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for r := q.waiting.first; r != nil; r = q.waiting.first {
		q.waiting.remove(r)
		r.err = notSent(cause)
		r.done <- struct{}{}
	}
	q.settle()
}
