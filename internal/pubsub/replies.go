package pubsub

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// handle takes what the link has to tell. It reports whether there may be
// something to do: after a message there is not.
func (x *session) handle(ev event) (look bool, err error) {
	switch {
	case ev.err != nil && (!isReply(ev.err) || x.ps == nil):
		if x.unwritten != nil {
			return false, x.unwritten
		}
		return false, ev.err
	case ev.ps != nil:
		x.connected(ev.ps)
		return true, nil
	}
	x.alive()
	if ev.err != nil {
		return true, x.answeredBy(ev.err)
	}
	switch msg := ev.msg.(type) {
	case *redis.Message:
		x.deliver(msg)
		return false, nil
	case *redis.Subscription:
		return true, x.answered(msg)
	case *redis.Pong:
		x.done(ping, "")
	}
	return true, nil
}

// alive notes a sign of life.
func (x *session) alive() {
	x.seen = time.Now()
	x.deadline = x.seen.Add(x.s.cfg.Ping)
}

// drain takes what the link has told already, before the connection is given up.
func (x *session) drain() {
	for len(x.link.events) > 0 {
		_, err := x.handle(<-x.link.events)
		x.link.untold.Add(-1)
		if err != nil {
			return
		}
	}
}

// connected notes that dialling is done, and the PING after it written. The
// answer must still come within the time for both.
func (x *session) connected(ps *redis.PubSub) {
	x.ps, x.sent = ps, ping
	x.s.connects.Inc()
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.s.connected = true
}

func (x *session) deliver(msg *redis.Message) {
	x.s.mu.Lock()
	_, wanted := x.s.channels[msg.Channel]
	x.s.mu.Unlock()
	if !wanted {
		return
	}
	x.s.messages.Inc()
	if x.s.cfg.Message != nil {
		x.s.cfg.Message(msg.Channel, msg.Payload)
	}
}

// answered takes the answer of one channel to SUBSCRIBE or UNSUBSCRIBE.
func (x *session) answered(msg *redis.Subscription) error {
	switch msg.Kind {
	case "subscribe", "ssubscribe":
		x.confirm(msg.Channel)
		x.done(subscribe, msg.Channel)
	case "unsubscribe", "sunsubscribe":
		delete(x.confirmed, msg.Channel)
		asked := x.done(unsubscribe, msg.Channel)
		if x.sharded() {
			if !asked {
				x.displaced(msg.Channel, errUnserved)
			}
			return nil
		}
		x.s.mu.Lock()
		defer x.s.mu.Unlock()
		if x.s.channels[msg.Channel] {
			return fmt.Errorf("the server has unsubscribed %q", msg.Channel)
		}
	}
	return nil
}

// errUnserved is why a server unsubscribes a sharded channel.
var errUnserved = errors.New("the node does not serve the channel's slot any more")

// displaced tells that the server does not serve a channel.
func (x *session) displaced(channel string, err error) {
	delete(x.confirmed, channel)
	delete(x.refused, channel)
	x.s.mu.Lock()
	_, wanted := x.s.channels[channel]
	x.s.mu.Unlock()
	if wanted {
		x.s.cfg.displaced(channel, err)
	}
}

// confirm notes that the server has subscribed to channel.
func (x *session) confirm(channel string) {
	if x.served.IsZero() {
		x.served = time.Now()
	}
	x.confirmed[channel] = struct{}{}
	delete(x.refused, channel)
	x.s.mu.Lock()
	news := x.s.enliven(channel)
	if _, wanted := x.s.channels[channel]; !wanted { // an error was taken for its answer
		x.s.changed[channel] = struct{}{}
	}
	x.s.refused = len(x.refused)
	x.s.mu.Unlock()
	if news {
		x.s.tellSubscribed(channel)
	}
	x.tellRefused()
}

// done notes that channel has its answer to cmd, and reports whether that was
// under way.
func (x *session) done(cmd command, channel string) bool {
	i := slices.Index(x.batch, channel)
	switch {
	case x.sent != cmd:
		return false
	case cmd == ping:
	case i < 0:
		return false
	case i == 0: // all but always
		x.batch = x.batch[1:]
	default:
		x.batch = slices.Delete(x.batch, i, i+1)
	}
	if len(x.batch) > 0 {
		return true
	}
	x.sent, x.batch = none, nil
	if cmd == subscribe {
		x.limit = min(2*x.limit, maxBatch)
	}
	return true
}

// answeredBy takes an error as the answer to the command under way. SUBSCRIBE
// is refused as a whole if one of its channels is: smaller and smaller ones
// find out which.
func (x *session) answeredBy(err error) error {
	if x.sharded() {
		return x.oneAnsweredBy(err)
	}
	sent, batch := x.sent, x.batch
	if passing(err) || sent == none {
		return err
	}
	x.sent, x.batch = none, nil
	switch {
	case sent != subscribe: // UNSUBSCRIBE or PING is forbidden: we can do without
		return nil
	case len(batch) > 1:
		x.limit = len(batch) / 2
		x.lookAgain(batch)
		return nil
	}
	return x.refuse(batch[0], err)
}

// oneAnsweredBy takes an error as the answer to the oldest of the commands under
// way, one for each sharded channel. It may be that of another: a slot that goes
// while its channel is unsubscribed from has two answers, the server's own
// sunsubscribe and MOVED. Then that channel is asked for again, as all that are
// displaced, and its own answer is an odd one in turn.
func (x *session) oneAnsweredBy(err error) error {
	elsewhere := redis.HasErrorPrefix(err, "MOVED") || redis.IsClusterDownError(err)
	sent, channel := x.sent, ""
	if len(x.batch) > 0 {
		channel = x.batch[0]
	}
	x.done(sent, channel)
	switch {
	case elsewhere && sent == subscribe:
		x.displaced(channel, err)
	case elsewhere:
	case passing(err) || sent == none:
		return err
	case sent == subscribe:
		return x.refuse(channel, err)
	}
	return nil // UNSUBSCRIBE or PING is forbidden: we can do without
}

// refuse notes that channel alone was refused. It is an error if that happened
// to all channels, or to many and none was accepted.
func (x *session) refuse(channel string, err error) error {
	x.refused[channel] = struct{}{}
	if x.retry.IsZero() {
		x.retry = time.Now().Add(jittered(refusedBackoff))
	}
	x.s.mu.Lock()
	x.s.refused, x.s.lastErr = len(x.refused), err
	all := len(x.confirmed) == 0 && (len(x.s.changed) == 0 && len(x.batch) == 0 || len(x.refused) >= manyRefused)
	x.s.mu.Unlock()
	if all {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	x.untold = append(x.untold, refusal{channel, err})
	x.tellRefused()
	return nil
}

// A refusal is one that the owner has to be told.
type refusal struct {
	channel string
	err     error
}

// tellRefused tells the owner of refusals, once it is clear that others are
// accepted.
func (x *session) tellRefused() {
	if len(x.confirmed) == 0 {
		return
	}
	for _, r := range x.untold {
		if x.s.cfg.Refused != nil {
			x.s.cfg.Refused(r.channel, r.err)
		}
	}
	x.untold = nil
}

func (x *session) retryRefused() {
	x.retry = time.Time{}
	var channels []string
	for channel := range x.refused {
		channels = append(channels, channel)
	}
	x.lookAgain(channels)
}

// lookAgain lets channels be sent once more.
func (x *session) lookAgain(channels []string) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	for _, channel := range channels {
		x.s.changed[channel] = struct{}{}
	}
}

// passing reports whether err says that the server cannot serve now, or not on
// this connection, rather than that it does not want to.
func passing(err error) bool {
	if redis.IsLoadingError(err) || redis.IsMasterDownError(err) || redis.IsClusterDownError(err) ||
		redis.IsTryAgainError(err) || redis.IsMaxClientsError(err) || redis.IsReadOnlyError(err) || errors.Is(err, redis.Nil) {
		return true
	}
	return redis.HasErrorPrefix(err, "BUSY") || redis.HasErrorPrefix(err, "NOAUTH")
}
