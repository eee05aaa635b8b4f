package resolve

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// A board is the half of a [Resolver] that its users see. The other half, one
// goroutine, decides and writes on it.
type board struct {
	state  atomic.Pointer[State]
	wanted chan struct{} // Refresh was called

	cancel  context.CancelFunc
	running sync.WaitGroup

	mu       sync.Mutex
	changed  chan struct{}
	err      error
	stats    Stats
	answered time.Time
}

func newBoard() (*board, context.Context) {
	ctx, cancel := context.WithCancel(context.Background())
	b := &board{wanted: make(chan struct{}, 1), changed: make(chan struct{}), cancel: cancel}
	b.state.Store(&State{})
	return b, ctx
}

func (b *board) State() *State { return b.state.Load() }

func (b *board) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

func (b *board) Refresh() {
	select {
	case b.wanted <- struct{}{}:
	default:
	}
}

func (b *board) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

func (b *board) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.stats
	if !b.answered.IsZero() {
		s.SinceAnswer = time.Since(b.answered)
	}
	return s
}

func (b *board) Close() error {
	b.cancel()
	b.running.Wait()
	return nil
}

// publish makes s the State, unless it says nothing new. The error goes first,
// so that who sees a primary sees no reason why there is none.
func (b *board) publish(s State, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	if s.equal(b.state.Load()) {
		return
	}
	b.state.Store(&s)
	close(b.changed)
	b.changed = make(chan struct{})
}

// count changes the statistics.
func (b *board) count(f func(*Stats)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.stats)
}

// polled counts a question that was answered, or not.
func (b *board) polled(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stats.Polls++
	if err != nil {
		b.stats.PollErrors++
	} else {
		b.answered = time.Now()
	}
}

// A pace says when to ask all servers: each second, and when it is wanted, but
// not too often.
type pace struct {
	last    time.Time // when they were asked
	pressed bool      // it is wanted
}

// due returns when to ask next.
func (p *pace) due() time.Time {
	if p.pressed {
		return p.last.Add(refreshEvery)
	}
	return p.last.Add(pollEvery)
}

// take reports whether it is time to ask, and counts that as done.
func (p *pace) take(now time.Time) bool {
	if !p.last.IsZero() && now.Before(p.due()) {
		return false
	}
	p.last, p.pressed = now, false
	return true
}
