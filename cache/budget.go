package cache

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// A budget makes contexts for reads that end after limit. A context.WithTimeout
// for each would cost about a microsecond, a twentieth of a read on loopback:
// here all reads that begin within an eighth of limit share one timer.
type budget struct {
	limit time.Duration
	now   atomic.Pointer[slot]
	mu    sync.Mutex // held while the next slot is made
}

// A slot is what reads of about the same time share.
type slot struct {
	until time.Time     // reads that begin later need another one
	done  chan struct{} // closed when the last of its reads has had its limit
	timer *time.Timer
}

func (b *budget) slot(start time.Time) *slot {
	if s := b.now.Load(); s != nil && !start.After(s.until) {
		return s
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.now.Load(); s != nil && !start.After(s.until) {
		return s
	}
	share := b.limit / 8
	s := &slot{until: start.Add(share), done: make(chan struct{})}
	s.timer = time.AfterFunc(b.limit+share, func() { close(s.done) })
	b.now.Store(s)
	return s
}

// context returns the context of a read that begins at start.
func (b *budget) context(caller context.Context, start time.Time) context.Context {
	deadline := start.Add(b.limit)
	if d, ok := caller.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	return &readContext{caller: caller, slot: b.slot(start), deadline: deadline}
}

// stop ends the timer of the newest slot. Those before it end by themselves.
func (b *budget) stop() {
	if s := b.now.Load(); s != nil {
		s.timer.Stop()
	}
}

// A readContext has the values of its caller and the deadline that comes first,
// which is what bounds the wait for a reply. Its end, which bounds the waits for
// a connection, is that of the slot: a caller who gives up meanwhile leaves
// then. go-redis would not let it leave a read earlier either.
type readContext struct {
	caller   context.Context
	slot     *slot
	deadline time.Time
}

func (c *readContext) Deadline() (time.Time, bool) { return c.deadline, true }
func (c *readContext) Done() <-chan struct{}       { return c.slot.done }
func (c *readContext) Value(key any) any           { return c.caller.Value(key) }

func (c *readContext) Err() error {
	select {
	case <-c.slot.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}
