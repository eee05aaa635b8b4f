package tracking

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	minBackoff     = 50 * time.Millisecond
	maxBackoff     = time.Second      // between attempts to connect
	refusedBackoff = 30 * time.Second // after the server has refused

	// settled is how long a connection must have stood to be replaced at once: a
	// server that cuts whoever tracks shall not be dialled without pause.
	settled = time.Second
)

// refusing is the value of node.stands where the server refuses.
const refusing = -1

// errRefused ends a connection to a server that does not let itself be tracked.
var errRefused = errors.New("the server does not tell of changes (CLIENT TRACKING)")

// A node is one primary, and the connection to it.
type node struct {
	t      *Tracker
	opt    *redis.Options // of its client
	ctx    context.Context
	cancel context.CancelFunc

	hopeless error // why it cannot be tracked at all

	// stands is the number of prefixes, in the order in which they were added, of
	// which the server tells; or refusing.
	stands atomic.Int64

	mu     sync.Mutex // guards changes of stands
	link   *link      // in use or being made; nil in between
	wakeup chan struct{}
}

func newNode(t *Tracker, opt *redis.Options) *node {
	n := &node{t: t, opt: opt, wakeup: make(chan struct{}, 1)}
	n.ctx, n.cancel = context.WithCancel(t.ctx)
	return n
}

// run holds connections, one after the other.
func (n *node) run() {
	fails := 0
	for {
		stood, err := n.serve()
		wait := time.Duration(0)
		switch {
		case n.ctx.Err() != nil || n.hopeless != nil:
			return
		case n.t.cn.Err() != nil || errors.Is(err, redis.ErrClosed):
			n.closed(err)
			return
		case errors.Is(err, errEpoch):
			fails = 0
		case errors.Is(err, errRefused):
			wait = jittered(refusedBackoff)
		default:
			n.t.failed(err)
			if stood >= settled {
				fails = 0
			}
			if stood == 0 {
				fails = max(fails, 1)
			}
			wait = backoff(fails)
			fails++
		}
		n.pause(wait)
	}
}

// closed is told that the Redis client was closed, or can never serve.
func (n *node) closed(err error) {
	n.mu.Lock()
	n.stands.Store(0)
	n.mu.Unlock()
	if n.t.only == nil { // follow tells
		return
	}
	if reason := n.t.cn.Err(); reason != nil {
		err = reason
	}
	n.t.gap(err)
}

// serve connects and reads until the connection breaks, and returns how long it
// has stood.
func (n *node) serve() (stood time.Duration, err error) {
	l := n.newLink()
	defer l.cancel(nil)
	if err = n.hopeless; err == nil {
		err = l.run()
	}
	if cause := context.Cause(l.ctx); cause != nil {
		err = cause
	}
	if !l.since.IsZero() {
		stood = max(time.Since(l.since), 1)
	}
	n.lost(err)
	return stood, err
}

// newLink returns the next connection, which renew can end from now on.
func (n *node) newLink() *link {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &link{n: n}
	l.ctx, l.cancel = context.WithCancelCause(n.ctx)
	n.link = l
	return l
}

// confirmed notes that the server tells of the first count prefixes. Before the
// first word what was cached without being told of changes has to go: while it
// refused, and of a Cluster's node what it may have answered in another's place.
func (n *node) confirmed(l *link, count int) {
	if refused := n.stands.Load() == refusing; refused || l.since.IsZero() && n.t.only == nil {
		n.stands.Store(0)
		n.t.gap(errBegins)
	}
	if l.since.IsZero() {
		l.since = time.Now()
	}
	n.mu.Lock()
	if l.ctx.Err() != nil { // renewed meanwhile
		n.mu.Unlock()
		return
	}
	n.stands.Store(int64(count))
	n.mu.Unlock()
	n.t.stands()
}

// lost notes that nothing is told any more.
func (n *node) lost(cause error) {
	n.mu.Lock()
	n.link = nil
	stood := n.stands.Load() > 0
	refused := errors.Is(cause, errRefused)
	switch {
	case refused:
		n.stands.Store(refusing)
	case stood || n.ctx.Err() != nil:
		n.stands.Store(0)
	}
	n.mu.Unlock()
	if stood {
		n.t.gap(cause)
	}
	if refused {
		n.t.refused(cause)
	}
}

// renew ends the epoch and the connection, and lets another be made at once.
func (n *node) renew(cause error) {
	n.mu.Lock()
	if n.stands.Load() > 0 {
		n.stands.Store(0)
	}
	if n.link != nil {
		n.link.cancel(cause)
	}
	n.mu.Unlock()
	n.t.gap(cause)
	n.signal()
}

// retire ends the node. Its owner ends the epoch.
func (n *node) retire() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stands.Store(0)
	n.cancel()
}

// wake lets the connection send what prefixes are new.
func (n *node) wake() {
	n.mu.Lock()
	l := n.link
	n.mu.Unlock()
	if l != nil {
		l.wake()
	}
}

// signal ends a pause.
func (n *node) signal() {
	select {
	case n.wakeup <- struct{}{}:
	default:
	}
}

// pause waits for d, but not longer than until the primary has changed.
func (n *node) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-n.wakeup:
	case <-n.ctx.Done():
	}
}

// backoff is the pause after a failure, and fails others before it: none for the
// first, then from minBackoff up to maxBackoff.
func backoff(fails int) time.Duration {
	if fails == 0 {
		return 0
	}
	return jittered(min(minBackoff<<min(fails-1, 10), maxBackoff))
}

// jittered takes up to a quarter off d, so that clients do not come back all at once.
func jittered(d time.Duration) time.Duration { return d - rand.N(d/4) }

func refusal(err error) error { return fmt.Errorf("%w: %w", errRefused, err) }
