package batch

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/lanes"
)

// Bounds of a shared pipeline. A request above them travels alone.
const (
	maxCommands = 512
	maxBytes    = 256 << 10
)

// maxLanes bounds the pipelines under way to one server.
const maxLanes = 8

// A queue has the requests for one server.
type queue struct {
	b *Batcher

	mu      sync.Mutex
	waiting [kinds]list // of each kind, which travel in pipelines of their own
	arrived uint64      // requests that have had to wait
	lanes   lanes.Lanes
}

func newQueue(b *Batcher) *queue {
	q := &queue{b: b}
	q.lanes = lanes.New(maxLanes, q.tick)
	return q
}

// first returns the request that has waited longest.
func (q *queue) first() *request {
	a, b := q.waiting[plain].first, q.waiting[bypass].first
	if a == nil || b != nil && b.number < a.number {
		return b
	}
	return a
}

// enter admits a request if a lane is free that nobody waits for.
func (q *queue) enter() lanes.Ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lanes.Free() && q.first() == nil && !q.lanes.Closed() {
		return q.lanes.Board(time.Now())
	}
	return lanes.Ticket{}
}

// wait returns when r is answered, refused, or admitted.
func (q *queue) wait(ctx context.Context, r *request) lanes.Ticket {
	if !q.join(r) {
		return lanes.Ticket{}
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		if q.leave(r, context.Cause(ctx)) {
			return lanes.Ticket{}
		}
		<-r.done
	}
	if r.state.Load() != granted {
		return lanes.Ticket{}
	}
	if ctx.Err() != nil {
		r.err = notSent(context.Cause(ctx))
		q.landed(r.ticket, false)
		return lanes.Ticket{}
	}
	return r.ticket
}

func (q *queue) join(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lanes.Closed() {
		r.err = notSent(conn.ErrClosed)
		return false
	}
	q.arrived++
	r.number = q.arrived
	q.waiting[r.kind].add(r)
	q.launch()
	if q.first() != nil {
		q.lanes.Watch()
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
	if q.lanes.Free() && !q.grant() {
		go q.run(q.lanes.Board(time.Now()))
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
	r.ticket = q.lanes.Board(time.Now())
	r.state.Store(granted)
	r.done <- struct{}{}
	return true
}

// landed gives a lane back, or on.
func (q *queue) landed(t lanes.Ticket, ok bool) {
	took := time.Since(t.Start)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lanes.Leave(t)
	if ok {
		q.lanes.Took(t, took)
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
	for f := q.next(t); f != nil; f = q.next(t) {
		t = f.ticket
		f.fly()
		runtime.Gosched() // who was answered comes along, if it has more to send
	}
	over = true
}

// next gives a lane back and returns the flight that takes it, if there is one.
func (q *queue) next(t lanes.Ticket) *flight {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lanes.Leave(t)
	if !q.lanes.Free() || q.grant() {
		return nil
	}
	r := q.first()
	waiting := &q.waiting[r.kind]
	f := newFlight(q, r.kind, q.lanes.Board(time.Now()), min(waiting.n, maxCommands))
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

// tick lets what is overdue make room.
func (q *queue) tick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lanes.Age()
	q.launch()
	if q.first() != nil {
		q.lanes.Watch()
	}
}

// settle lets Close return when nothing waits or is under way.
func (q *queue) settle() {
	if q.first() == nil {
		q.lanes.Settle()
	}
}

// Close refuses requests from now on.
func (q *queue) Close() (quiet <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	quiet = q.lanes.Close()
	q.settle()
	return quiet
}

// Reject refuses what waits.
func (q *queue) Reject() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for r := q.first(); r != nil; r = q.first() {
		q.waiting[r.kind].remove(r)
		r.err = notSent(conn.ErrClosed)
		r.done <- struct{}{}
	}
	q.settle()
}
