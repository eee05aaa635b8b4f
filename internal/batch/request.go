package batch

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/lanes"
)

// A request is what one caller waits for.
type request struct {
	kind       kind
	number     uint64       // in the order of arrival
	prev, next *request     // in list, under queue.mu
	ticket     lanes.Ticket // of a granted lane
	flight     *flight      // set when it departs

	commands []command
	bytes    int
	deadline time.Time // zero without

	state  atomic.Uint32
	open   atomic.Int32  // commands that have had no reply
	failed atomic.Bool   // one had an error
	done   chan struct{} // receives once: the request is granted a lane, answered, or refused
	err    error         // of a refused one

	room [2]command
}

// States of a request. Waiting ones change under queue.mu; from flying to
// answered or left leads whoever is first.
const (
	waiting uint32 = iota
	granted        // its caller may send it alone
	flying
	answered
	left // its caller is gone
)

// A command is the one that travels. Nobody else has the redis.Cmd in it, so that
// a caller who leaves reads nothing that is written.
type command struct {
	*redis.Cmd
	of *request

	// Of the last attempt; the caller's once the request is answered.
	val     any
	err     error
	replied bool
}

func newRequest(ctx context.Context, k kind, cmds []*redis.Cmd, bytes int) *request {
	r := &request{kind: k, bytes: bytes, done: make(chan struct{}, 1)}
	r.deadline, _ = ctx.Deadline()
	r.commands = r.room[:min(len(cmds), len(r.room))]
	if len(cmds) > len(r.room) {
		r.commands = make([]command, len(cmds))
	}
	for i, cmd := range cmds {
		r.commands[i].Cmd, r.commands[i].of = cmd, r
	}
	r.open.Store(int32(len(cmds)))
	return r
}

// SetErr is what go-redis calls for each command as soon as it has read its
// reply, so that a request is answered then and not when its pipeline is over:
// others in it may be sent again, for a long time. A request one of whose commands
// has failed is answered in the end only, since it is for conn to say whether that
// one is sent again, and a read behind it with it.
func (c *command) SetErr(err error) {
	val := c.Val()
	c.Cmd.SetErr(err)
	if c.of.state.Load() != flying {
		return
	}
	switch {
	case err == nil && val == nil: // before it is sent again
		c.err = nil
		return
	case err == nil, err == redis.Nil: //nolint:errorlint // go-redis sets it bare
		c.val, c.err = val, err
	default:
		c.SetVal(nil) // what was read of a broken reply
		c.val, c.err = nil, err
		c.of.failed.Store(true)
		return
	}
	if !c.replied {
		c.replied = true
		if c.of.open.Add(-1) == 0 && !c.of.failed.Load() {
			c.of.answer()
		}
	}
}

// answer lets the caller go on, unless it has left.
func (r *request) answer() {
	if r.state.CompareAndSwap(flying, answered) {
		r.flight.departed(false)
		r.done <- struct{}{}
	}
}

// conclude answers a request whose pipeline is over. What has neither reply nor
// error gets err.
func (r *request) conclude(err error) {
	if r.state.Load() != flying {
		return
	}
	for i := range r.commands {
		if c := &r.commands[i]; c.val == nil && c.err == nil {
			c.err = err
		}
	}
	r.answer()
}

// results replaces the commands of a request that was not sent alone.
func (r *request) results(cmds []*redis.Cmd) []*redis.Cmd {
	for i := range cmds {
		if r.err != nil {
			cmds[i] = redis.NewCmdResult(nil, r.err)
			continue
		}
		cmds[i] = redis.NewCmdResult(r.commands[i].val, r.commands[i].err)
	}
	return cmds
}

func abandoned(cause error) error { return fmt.Errorf("%w: %w", conn.ErrOutcomeUnknown, cause) }

// size returns about how many bytes the words have, and false if some are of a
// type that go-redis asks itself for its bytes, which may fail, and with it the
// pipeline.
func size(words [][]any) (bytes int, ok bool) {
	for _, cmd := range words {
		for _, word := range cmd {
			switch word := word.(type) {
			case string:
				bytes += len(word)
			case []byte:
				bytes += len(word)
			case int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64, float32, float64, bool, nil, time.Duration, time.Time:
				bytes += 8
			default:
				return 0, false
			}
		}
	}
	return bytes, true
}

// A list has the requests that wait, the first one first.
type list struct {
	first, last *request
	n           int
}

func (l *list) add(r *request) {
	r.prev = l.last
	if l.last == nil {
		l.first = r
	} else {
		l.last.next = r
	}
	l.last = r
	l.n++
}

func (l *list) remove(r *request) {
	if r.prev == nil {
		l.first = r.next
	} else {
		r.prev.next = r.next
	}
	if r.next == nil {
		l.last = r.prev
	} else {
		r.next.prev = r.prev
	}
	r.prev, r.next = nil, nil
	l.n--
}
