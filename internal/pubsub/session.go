package pubsub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// A session is what run knows of one connection. At most one command is under
// way, or one for each of some sharded channels: its answer is the next reply, so
// an error belongs to it, what gathers meanwhile goes out at once, and a missing
// answer is noticed.
//
// Its goroutine is that of run; with Config.straight, messages are handled by that of
// the link where nothing else is.
type session struct {
	turn chan struct{} // full while something is handled, or done; no mutex, since a function of the owner may take its time
	over bool          // the connection is given up, or about to be

	s    *Subscription
	link *link
	ps   *redis.PubSub // nil until connected

	sent      command   // the command under way, or none
	batch     []string  // its channels that are not answered yet
	previous  command   // the last that had channels
	unwritten error     // why it could not be written
	seen      time.Time // the last sign of life
	deadline  time.Time // of the next one, while a command is under way

	confirmed map[string]struct{} // subscribed on the server
	served    time.Time           // first confirmation
	limit     int                 // channels in the next SUBSCRIBE
	refused   map[string]struct{}
	untold    []refusal
	retry     time.Time // when they are tried again
	empty     time.Time // since when there are no channels
}

// A command is one that must be answered. Dialling counts as one.
type command string

const (
	none        command = ""
	dial        command = "dial"
	ping        command = "PING"
	subscribe   command = "SUBSCRIBE"
	unsubscribe command = "UNSUBSCRIBE"
)

const (
	// maxBatch bounds the channels in a command, which Redis executes in one go.
	maxBatch = 1000

	// manyRefused is the number of channels which must be refused, and none
	// accepted, for the others not to be tried.
	manyRefused = 16
)

// newSession returns a session on l, which is about to be run and must answer
// within limit. All channels have to be subscribed.
func newSession(s *Subscription, l *link, limit time.Duration) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renew = false // the connection is new
	clear(s.changed)
	for channel := range s.channels {
		s.changed[channel] = struct{}{}
	}
	now := time.Now()
	return &session{
		s: s, link: l, turn: make(chan struct{}, 1),
		sent:      dial,
		seen:      now,
		deadline:  now.Add(limit),
		confirmed: make(map[string]struct{}),
		limit:     maxBatch,
		refused:   make(map[string]struct{}),
	}
}

// settled reports whether the connection has served for a while.
func (x *session) settled() bool { return !x.served.IsZero() && time.Since(x.served) >= settled }

// serve keeps the channels of the subscription subscribed until the connection
// is lost, refuses all, or is not wanted any more.
func (x *session) serve() error {
	timer := time.NewTimer(1)
	defer timer.Stop()
	for look := true; ; {
		if look {
			due, err := x.look()
			if err != nil {
				return err
			}
			timer.Reset(max(time.Until(due), 1))
		}
		select {
		case ev := <-x.link.events:
			var err error
			if look, err = x.take(ev); err != nil {
				return err
			}
		case <-x.s.wake:
			look = true
		case <-timer.C:
			look = true
		case <-x.s.ctx.Done():
			return x.s.ctx.Err()
		}
	}
}

func (x *session) look() (due time.Time, err error) {
	x.turn <- struct{}{}
	defer x.rest()
	if due, err = x.tend(time.Now()); err != nil {
		x.drain()
	}
	return due, err
}

func (x *session) take(ev event) (look bool, err error) {
	x.turn <- struct{}{}
	defer x.rest()
	defer x.link.untold.Add(-1)
	return x.handle(ev)
}

func (x *session) rest() { <-x.turn }

// end lets the link handle nothing more.
func (x *session) end() {
	x.turn <- struct{}{}
	defer x.rest()
	x.over = true
}

// straight handles a message for its link, unless something came before it, or is
// being handled, or the session is over. Then it reports false.
func (x *session) straight(msg *redis.Message) bool {
	if !x.s.cfg.straight || x.link.untold.Load() != 0 {
		return false
	}
	select {
	case x.turn <- struct{}{}:
		defer x.rest()
	default:
		return false
	}
	if x.over {
		return false
	}
	x.alive()
	x.deliver(msg)
	return true
}

// tend does what is due, and returns when to look again.
func (x *session) tend(now time.Time) (due time.Time, err error) {
	if x.s.renewed() {
		return due, errRenewed
	}
	if x.idle(now) {
		return due, errIdle
	}
	if !x.retry.IsZero() && !now.Before(x.retry) {
		x.retryRefused()
	}
	if x.sent == none {
		x.send(now)
	}
	if x.sent != none {
		// What waits to be handled is a sign of life, too.
		if !now.Before(x.deadline) && len(x.link.events) == 0 {
			return due, x.silent()
		}
		due = x.deadline
	} else {
		due = x.seen.Add(x.s.cfg.Ping)
	}
	due = earlier(due, x.retry)
	if !x.empty.IsZero() {
		due = earlier(due, x.empty.Add(linger))
	}
	return due, nil
}

// earlier returns the earlier of a and b, which may be zero.
func earlier(a, b time.Time) time.Time {
	if !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (x *session) silent() error {
	if x.ps == nil {
		return errors.New("connecting takes too long")
	}
	return fmt.Errorf("no answer to %s within %s", x.wire(x.sent), x.s.cfg.Ping)
}

// wire returns the name of cmd on the wire.
func (x *session) wire(cmd command) string {
	if x.sharded() && (cmd == subscribe || cmd == unsubscribe) {
		return "S" + string(cmd)
	}
	return string(cmd)
}

// sharded reports whether the channels are those of one node of a Cluster. Each
// then has a command of its own, since one command takes those of one slot; what
// has gathered is written at once and answered in order.
func (x *session) sharded() bool { return x.s.cfg.displaced != nil }

// idle reports whether there have been no channels for a while.
func (x *session) idle(now time.Time) bool {
	x.s.mu.Lock()
	empty := len(x.s.channels) == 0
	x.s.mu.Unlock()
	switch {
	case !empty:
		x.empty = time.Time{}
	case x.empty.IsZero():
		x.empty = now
	}
	return empty && now.Sub(x.empty) >= linger
}

// send sends what is due: SUBSCRIBE and UNSUBSCRIBE in turn, since neither may
// wait for ever, else PING after a silence.
func (x *session) send(now time.Time) {
	x.sent, x.batch = x.next()
	if x.sent == none && now.Sub(x.seen) >= x.s.cfg.Ping {
		x.sent = ping
	}
	x.deadline = now.Add(x.s.cfg.Ping)
	ctx := once(x.s.cfg.Ping)
	var err error
	switch {
	case x.sent == ping:
		err = x.ps.Ping(ctx)
	case x.sharded():
		err = x.sendSharded(ctx)
	case x.sent == subscribe:
		err = x.ps.Subscribe(ctx, x.batch...)
	case x.sent == unsubscribe:
		err = x.ps.Unsubscribe(ctx, x.batch...)
	}
	// The link fails too, or has failed and closed ps. What it has read before
	// comes first, and its own error tells more.
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, redis.ErrClosed) {
		x.unwritten = fmt.Errorf("%s: %w", x.wire(x.sent), err)
	}
}

func (x *session) sendSharded(ctx context.Context) error {
	for _, channel := range x.batch {
		var err error
		if x.sent == subscribe {
			err = x.ps.SSubscribe(ctx, channel)
		} else {
			err = x.ps.SUnsubscribe(ctx, channel)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// next returns the command by which the server learns what has changed, and its
// channels.
func (x *session) next() (command, []string) {
	var added, removed, fresh []string
	s := x.s
	s.mu.Lock()
	for channel := range s.changed {
		_, wanted := s.channels[channel]
		_, confirmed := x.confirmed[channel]
		switch {
		case wanted && !confirmed:
			added = append(added, channel)
		case !wanted && confirmed:
			removed = append(removed, channel)
		default:
			delete(s.changed, channel)
			delete(x.refused, channel)
			if s.enliven(channel) { // removed, and added again before anything was sent
				fresh = append(fresh, channel)
			}
		}
		if len(added) == x.limit || len(removed) == maxBatch {
			break
		}
	}
	sent, batch := none, []string(nil)
	switch {
	case len(removed) > 0 && (len(added) == 0 || x.previous == subscribe):
		sent, batch = unsubscribe, removed
	case len(added) > 0:
		sent, batch = subscribe, added
	}
	for _, channel := range batch {
		delete(s.changed, channel)
	}
	if sent != none {
		x.previous = sent
	}
	s.refused = len(x.refused)
	s.mu.Unlock()
	for _, channel := range fresh {
		x.s.tellSubscribed(channel)
	}
	return sent, batch
}

// enliven reports whether channel is wanted and was not live; it is now. The
// caller holds mu.
func (s *Subscription) enliven(channel string) bool {
	if live, wanted := s.channels[channel]; !wanted || live {
		return false
	}
	s.channels[channel] = true
	s.live++
	s.cut = false
	return true
}

func (s *Subscription) tellSubscribed(channel string) {
	if s.cfg.Subscribed != nil {
		s.cfg.Subscribed(channel)
	}
}
