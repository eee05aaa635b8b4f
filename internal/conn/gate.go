package conn

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// A gate counts who is inside and, once closed, lets nobody in and tells when
// the last one has left. Its zero value is open.
type gate struct {
	state atomic.Int64 // the number inside; closedBit once closed
	once  sync.Once
	mu    sync.Mutex
	empty chan struct{} // made by the first wait
}

const closedBit = 1 << 62

// enter reports whether the gate is open; if so, leave must follow.
func (g *gate) enter() bool {
	if g.state.Add(1)&closedBit != 0 {
		g.leave()
		return false
	}
	return true
}

func (g *gate) leave() {
	if g.state.Add(-1) == closedBit {
		g.signal()
	}
}

func (g *gate) closed() bool { return g.state.Load()&closedBit != 0 }

func (g *gate) close() {
	g.once.Do(func() {
		if g.state.Add(closedBit) == closedBit {
			g.signal()
		}
	})
}

func (g *gate) channel() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.empty == nil {
		g.empty = make(chan struct{})
	}
	return g.empty
}

// signal may be called more than once: who is refused enters and leaves too.
func (g *gate) signal() {
	ch := g.channel()
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-ch:
	default:
		close(ch)
	}
}

// wait returns once the gate is closed and nobody is inside, or ctx is done.
func (g *gate) wait(ctx context.Context) error {
	empty := g.channel()
	select {
	case <-empty: // first, since ctx may be over as well
		return nil
	default:
	}
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d commands still under way: %w", g.state.Load()&^closedBit, context.Cause(ctx))
	}
}
