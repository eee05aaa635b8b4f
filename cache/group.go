package cache

import (
	"sync"
	"sync/atomic"
	"time"
)

// A group counts goroutines, so that Close can wait for them for a while, which
// a sync.WaitGroup cannot.
type group struct {
	isClosed atomic.Bool
	mu       sync.Mutex
	n        int
	idle     chan struct{} // closed once the group is closed and empty
}

// begin adds one, for which done must be called, unless the group is closed.
func (g *group) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isClosed.Load() {
		return false
	}
	g.n++
	return true
}

// more adds one while another is there, also to a closed group.
func (g *group) more() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
}

func (g *group) done() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n--
	if g.n == 0 && g.isClosed.Load() {
		close(g.idle)
	}
}

func (g *group) close() (idle <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.isClosed.Swap(true) && g.n == 0 {
		close(g.idle)
	}
	return g.idle
}

func (g *group) closed() bool { return g.isClosed.Load() }

// A throttle lets a kind of log record through once in ten seconds.
type throttle struct{ last atomic.Int64 }

func (t *throttle) allow() bool {
	now, last := time.Now().UnixNano(), t.last.Load()
	return (last == 0 || now-last >= int64(10*time.Second)) && t.last.CompareAndSwap(last, now)
}
