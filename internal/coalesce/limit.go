package coalesce

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redisha/redisha/internal/conn"
)

// A limit ends reads that have taken for so long. A context.WithTimeout for each
// would cost about a microsecond: here all reads that begin within an eighth of
// the limit share one timer.
type limit struct {
	after time.Duration // 0: never
	now   atomic.Pointer[slot]
	mu    sync.Mutex // held while the next slot is made
}

// A slot is what reads of about the same time share.
type slot struct {
	until time.Time     // reads that begin later need another one
	done  chan struct{} // closed when the last of its reads has had its time

	mu      sync.Mutex
	expired bool
	ends    []*end // of batches, with readers of this slot alone
}

// add has e expire with the slot.
func (s *slot) add(e *end) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expired {
		e.come(expired)
		return
	}
	s.ends = append(s.ends, e)
}

func (s *slot) expire() {
	close(s.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expired = true
	for _, e := range s.ends {
		e.come(expired)
	}
	s.ends = nil
}

// An end is that of a batch: all its readers wait for it, and for nothing else that
// they share, since a wait for two channels costs more than twice as much.
type end struct {
	how  atomic.Int32
	done chan struct{} // closed when the end has come
}

const (
	answered int32 = iota + 1 // or refused, or granted
	expired                   // its readers have had their time
)

func newEnd() *end { return &end{done: make(chan struct{})} }

// come reports false if there has been another end before.
func (e *end) come(how int32) bool {
	if !e.how.CompareAndSwap(0, how) {
		return false
	}
	close(e.done)
	return true
}

// A term is the time that a read has.
type term struct {
	start    time.Time
	deadline time.Time // zero: none
	slot     *slot     // nil without a limit
}

// begin is when a read of ctx begins.
func (l *limit) begin(ctx context.Context) term {
	t := term{start: time.Now()}
	t.deadline, _ = ctx.Deadline()
	if l.after <= 0 {
		return t
	}
	if d := t.start.Add(l.after); t.deadline.IsZero() || d.Before(t.deadline) {
		t.deadline = d
	}
	t.slot = l.slot(t.start)
	return t
}

func (l *limit) slot(start time.Time) *slot {
	if s := l.now.Load(); s != nil && !start.After(s.until) {
		return s
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.now.Load(); s != nil && !start.After(s.until) {
		return s
	}
	share := l.after / 8
	s := &slot{until: start.Add(share), done: make(chan struct{})}
	time.AfterFunc(l.after+share, s.expire)
	l.now.Store(s)
	return s
}

// context is what reads that share nothing with others' are sent with. It tells
// where they went if node is not "".
func (t *term) context(caller context.Context, node string) (context.Context, *conn.Route) {
	if t.slot == nil && node == "" {
		return caller, nil
	}
	c := &termContext{caller: caller, term: *t}
	if node == "" {
		return c, nil
	}
	c.route.Begin(node)
	return c, &c.route
}

// A termContext has the values of its caller and the deadline that comes first,
// which is what bounds the wait for a reply. Its end, which bounds the waits for
// a connection, is that of the slot: a caller who gives up meanwhile leaves
// then. go-redis would not let it leave a read earlier either.
type termContext struct {
	caller context.Context
	term   term
	route  conn.Route
}

func (c *termContext) Deadline() (time.Time, bool) {
	return c.term.deadline, !c.term.deadline.IsZero()
}

func (c *termContext) Done() <-chan struct{} {
	if c.term.slot == nil {
		return c.caller.Done()
	}
	return c.term.slot.done
}

func (c *termContext) Value(key any) any {
	if _, ok := key.(conn.RouteKey); ok {
		return &c.route
	}
	return c.caller.Value(key)
}

func (c *termContext) Err() error {
	if c.term.slot == nil {
		return c.caller.Err()
	}
	select {
	case <-c.term.slot.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}
