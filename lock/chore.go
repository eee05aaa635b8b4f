package lock

import (
	"context"
	"sync"
	"time"
)

// A chore is background work that is due at times: do runs in a goroutine of
// its own, never twice at once, and between two runs there is only a timer. It
// returns when it wants to run next; the zero time: not until it is planned.
type chore struct {
	do    func() (next time.Time)
	after func() // is called after each do, when stop does not wait for it any more; may be nil

	mu      sync.Mutex
	timer   *time.Timer
	next    time.Time     // when the timer fires; zero if it does not
	running chan struct{} // closed when do returns; nil if it does not run
	stopped bool
}

// plan makes the chore run at the given time, or earlier if it is planned so.
func (c *chore) plan(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.IsZero() || c.stopped || (!c.next.IsZero() && !at.Before(c.next)) {
		return
	}
	c.next = at
	if c.running == nil {
		c.arm()
	}
}

func (c *chore) arm() {
	if wait := time.Until(c.next); wait <= 0 {
		// Not by a timer: those of a synctest bubble that are due at once run on
		// the goroutines that arm them, several at a time, which the race detector
		// of Go 1.26 does not survive.
		if c.timer != nil {
			c.timer.Stop()
		}
		go c.run()
		return
	}
	if c.timer == nil {
		c.timer = time.AfterFunc(time.Until(c.next), c.run)
		return
	}
	c.timer.Reset(time.Until(c.next))
}

// current returns what tells the present run from others.
func (c *chore) current() chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

// pass lets another run begin now although the given one has not returned, which is
// to do nothing more then: stop does not wait for it any more.
func (c *chore) pass(run chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running != run || c.stopped {
		return
	}
	c.running = nil
	close(run)
	c.next = time.Now()
	c.arm()
}

func (c *chore) run() {
	c.mu.Lock()
	if c.stopped || c.running != nil {
		c.mu.Unlock()
		return
	}
	c.next = time.Time{}
	running := make(chan struct{})
	c.running = running
	c.mu.Unlock()

	again := c.do()
	if c.after != nil {
		defer c.after()
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running != running { // it was passed
		return
	}
	c.running = nil
	close(running)
	if !again.IsZero() && (c.next.IsZero() || again.Before(c.next)) {
		c.next = again
	}
	if !c.next.IsZero() && !c.stopped {
		c.arm()
	}
}

// stop lets do not run again, and waits until it has returned or ctx is done.
func (c *chore) stop(ctx context.Context) error {
	c.mu.Lock()
	c.stopped = true
	if c.timer != nil {
		c.timer.Stop()
	}
	running := c.running
	c.mu.Unlock()
	if running == nil {
		return nil
	}
	return await(ctx, running)
}
