package resolve

import (
	"context"
	"strings"
	"time"
)

// A listener is subscribed to what one Sentinel announces.
type listener struct {
	addr   string
	access *access
	master string
}

// An event is a reason to ask all Sentinels.
type event int

const (
	nothing    event = iota
	subscribed       // what came before it was missed
	promoted         // a replica has become a primary
	switched         // a Sentinel has a new primary
)

// The channels that tell of a failover. The Sentinel that leads it sends the
// first one when the others begin to hear of it, and the second one when it is
// all over; the others send the second one as soon as they hear.
const (
	promotedChannel = "+promoted-slave"
	switchedChannel = "+switch-master"
)

// run listens until ctx is done, and calls heard for each event.
func (l *listener) run(ctx context.Context, heard func(event)) {
	for timeout := askTimeout; ; timeout = redialTimeout {
		_ = l.listen(ctx, timeout, heard) // the probe tells what is wrong with this Sentinel
		pause := time.NewTimer(pollEvery)
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
	}
}

// listen makes one subscription and returns what ended it. A silent peer is
// asked by PING after a second, and given up without an answer within another.
func (l *listener) listen(ctx context.Context, timeout time.Duration, heard func(event)) error {
	w, err := l.access.connect(ctx, timeout, l.addr)
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.tell(askTimeout, []string{"SUBSCRIBE", promotedChannel, switchedChannel}); err != nil {
		return err
	}
	for pinged := false; ; {
		wait := pollEvery
		if pinged {
			wait = pongTimeout
		}
		switch err := w.await(wait); {
		case err == nil:
			pinged = false
			e, err := l.next(w)
			if err != nil {
				return err
			}
			if e != nothing {
				heard(e)
			}
		case pinged || !timedOut(err):
			return err
		default:
			pinged = true
			if err := w.tell(askTimeout, []string{"PING"}); err != nil {
				return err
			}
		}
	}
}

// next reads what has begun to come.
func (l *listener) next(w *wire) (event, error) {
	if err := w.nc.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return nothing, err
	}
	v, err := w.receive()
	if err != nil {
		return nothing, err
	}
	if reply, ok := v.(replyError); ok {
		return nothing, reply
	}
	list, _ := v.([]any)
	if len(list) != 3 { // a PONG
		return nothing, nil
	}
	payload, _ := list[2].(string)
	switch {
	case list[0] == "subscribe":
		return subscribed, nil
	case list[0] != "message":
		return nothing, nil
	case list[1] == switchedChannel && l.about(payload):
		return switched, nil
	case list[1] == promotedChannel:
		if _, group, ok := strings.Cut(payload, " @ "); ok && l.about(group) {
			return promoted, nil
		}
	}
	return nothing, nil
}

// about reports whether an announcement begins with the master name, as in
// "mymaster 10.0.0.1 6379 10.0.0.2 6379".
func (l *listener) about(announcement string) bool {
	name, _, _ := strings.Cut(announcement, " ")
	return name == l.master
}

// tell sends commands and awaits no reply.
func (w *wire) tell(timeout time.Duration, commands ...[]string) error {
	if err := w.nc.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	return w.send(commands...)
}

// await waits until there is something to read. It takes nothing, so that its
// timeout loses nothing.
func (w *wire) await(timeout time.Duration) error {
	if err := w.nc.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := w.r.Peek(1)
	return err
}
