package conn

import (
	"sync"
	"sync/atomic"
)

// epochs counts changes of primary and tells those who listen.
type epochs struct {
	n atomic.Uint64

	mu        sync.Mutex
	changed   chan struct{} // closed by the next change; made when somebody waits
	next      int
	listeners map[int]func(uint64)
}

func (e *epochs) listen(f func(uint64)) (stop func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.listeners == nil {
		e.listeners = make(map[int]func(uint64))
	}
	id := e.next
	e.next++
	e.listeners[id] = f
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.listeners, id)
	}
}

// raise begins a new epoch. After stop has returned, f is not called any more.
func (e *epochs) raise() {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.n.Add(1)
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
	for _, f := range e.listeners {
		f(n)
	}
}

// nextChange is closed with the next change.
func (e *epochs) nextChange() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.changed == nil {
		e.changed = make(chan struct{})
	}
	return e.changed
}

// newEpoch tells all who must know that there is another primary.
func (c *Client) newEpoch() {
	if c.breakers != nil {
		c.breakers.reset()
	}
	c.epochs.raise()
}
