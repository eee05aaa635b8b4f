package pubsub

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// A link is one go-redis subscription, and the goroutine that connects it and
// reads from it. Nobody waits for that: go-redis dials under a mutex, so
// whatever else touches the subscription meanwhile would hang with it.
type link struct {
	ctx    context.Context // the link is wanted
	cancel context.CancelFunc
	events chan event
	untold atomic.Int32 // events on their way that are not handled yet
}

// An event is what a link has to tell. The first is ps, once it is connected
// and a PING has been written, or err; the others are messages, or err. After an
// error that is no reply of the server there is no other.
type event struct {
	ps  *redis.PubSub
	msg any
	err error
}

// connect returns a session on a new link, which must be connected and answer
// within limit, or nil after Close.
func (s *Subscription) connect(limit time.Duration) *session {
	select {
	case s.slots <- struct{}{}:
	case <-s.ctx.Done():
		return nil
	}
	l := &link{events: make(chan event, 256)}
	l.ctx, l.cancel = context.WithCancel(s.ctx)
	x := newSession(s, l, limit)
	s.tasks.Go(func() {
		defer func() { <-s.slots }()
		l.run(s.cfg.Open, limit, x.straight)
	})
	return x
}

// run connects and reads until ctx ends or the connection breaks. It tells of what
// comes, but for messages that straight has handled.
func (l *link) run(open func(context.Context) *redis.PubSub, limit time.Duration, straight func(*redis.Message) bool) {
	ctx, cancel := context.WithTimeout(l.ctx, limit)
	defer cancel()
	ps := open(ctx)
	if ps == nil {
		l.tell(event{err: errors.New("Config.Open has returned nil")})
		return
	}
	defer func() { _ = ps.Close() }()
	if err := ps.Ping(ctx); err != nil { // this connects
		l.tell(event{err: fmt.Errorf("connect: %w", err)})
		return
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(l.ctx, func() { // ends the reading
		defer close(closed)
		_ = ps.Close()
	})
	defer func() {
		if !stop() {
			<-closed
		}
	}()
	ended := once(0)
	for ev := (event{ps: ps}); l.tell(ev); {
		if ev.err != nil && !isReply(ev.err) {
			return
		}
		ev = receive(ended, ps)
		for msg, ok := ev.msg.(*redis.Message); ok && straight(msg); msg, ok = ev.msg.(*redis.Message) {
			ev = receive(ended, ps)
		}
	}
}

// tell reports whether ev was passed on: the link is still wanted.
func (l *link) tell(ev event) bool {
	l.untold.Add(1)
	select {
	case l.events <- ev:
		return true
	case <-l.ctx.Done():
		return false
	}
}

// receive waits for what the server sends. go-redis panics on arrays that no
// Redis sends.
func receive(ctx context.Context, ps *redis.PubSub) (ev event) {
	defer func() {
		if p := recover(); p != nil {
			ev = event{err: fmt.Errorf("unreadable reply: %v", p)}
		}
	}()
	msg, err := ps.Receive(ctx)
	return event{msg: msg, err: err}
}

// once returns a context for one use of an open connection, with limit as its
// deadline unless that is 0. It is cancelled already: reads and writes of a
// subscription look at deadlines alone, while a dial fails at once. So go-redis
// does not connect again by itself, under its mutex, with channels of its own
// choice, and without telling.
func once(limit time.Duration) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	if limit > 0 {
		ctx, cancel = context.WithTimeout(ctx, limit)
	}
	cancel()
	return ctx
}

// isReply reports whether err is an answer of the server.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}
