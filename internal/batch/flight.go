package batch

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/lanes"
)

// A flight is one pipeline of several requests, sent by a goroutine of its own:
// it must not end with one of its callers.
type flight struct {
	q       *queue
	ticket  lanes.Ticket
	members []*request

	ctx      flightContext
	aboard   atomic.Int32 // members that wait
	deserted atomic.Bool  // one has left
}

// A flightContext has the latest deadline of its members, and ends when all have
// left, as they do by then: that costs no timer.
type flightContext struct {
	context.Context
	cancel   context.CancelFunc
	deadline time.Time
	endless  bool // a member has no deadline
}

func (c *flightContext) Deadline() (time.Time, bool) { return c.deadline, !c.endless }

func newFlight(q *queue, k kind, t lanes.Ticket, n int) *flight {
	f := &flight{q: q, ticket: t, members: make([]*request, 0, n)}
	f.ctx.Context, f.ctx.cancel = context.WithCancel(q.b.life[k])
	return f
}

// add is called under queue.mu, before the flight departs.
func (f *flight) add(r *request) {
	f.members = append(f.members, r)
	f.aboard.Add(1)
	r.flight = f
	if r.deadline.IsZero() {
		f.ctx.endless = true
	} else if r.deadline.After(f.ctx.deadline) {
		f.ctx.deadline = r.deadline
	}
	r.state.Store(flying)
}

// departed is told that a member waits no more. If all are gone before their
// replies came, nobody wants those.
func (f *flight) departed(early bool) {
	if early {
		f.deserted.Store(true)
	}
	if f.aboard.Add(-1) == 0 && f.deserted.Load() {
		f.ctx.cancel()
	}
}

func (f *flight) fly() {
	err := errNoReply
	defer func() {
		if cause := recover(); cause != nil {
			f.q.b.cn.Logger().Error("panic in a hook of the client", "panic", cause, "stack", string(debug.Stack()))
			err = abandoned(fmt.Errorf("panic in a hook of the client: %v", cause))
		}
		f.ctx.cancel()
		for _, r := range f.members {
			r.conclude(err)
		}
	}()
	n := 0
	for _, r := range f.members {
		n += len(r.commands)
	}
	cmds := make([]redis.Cmder, 0, n)
	for _, r := range f.members {
		for i := range r.commands {
			cmds = append(cmds, &r.commands[i])
		}
	}
	pipe := f.q.b.cn.Pipeline()
	_ = pipe.BatchProcess(&f.ctx, cmds...)
	conn.Exec(&f.ctx, pipe)
}

var errNoReply = fmt.Errorf("%w: the client has returned none", conn.ErrOutcomeUnknown)
