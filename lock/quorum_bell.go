package lock

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/redisha/redisha/internal/pubsub"
)

// A bell tells the waiters of a quorum's client that a lock was given back. It
// listens on each node while somebody waits, and a little longer. Nothing depends
// on it: who waits tries again anyway.
type bell struct {
	quorum *quorum
	subs   []*pubsub.Channels
	chore  chore

	mu     sync.Mutex
	spots  map[string]*spot // by channel
	warned bool
}

// A spot is a lock that somebody waits for, or has waited for lately.
type spot struct {
	channel string
	live    set      // nodes that would tell
	last    []string // what each node has told last
	ringers []*ringer
	idle    time.Time // since when nobody waits
}

// A ringer is a caller who waits.
type ringer struct {
	bell  *bell
	spots []*spot
	ring  chan struct{} // holds one
}

const freeSuffix = ":free"

func newBell(q *quorum) (*bell, error) {
	b := &bell{quorum: q, spots: make(map[string]*spot)}
	b.chore.do = b.dropIdle
	for n, m := range q.members {
		sub, err := pubsub.Open(m.conn, pubsub.ChannelsConfig{
			Message:      func(channel, text string) { b.told(n, channel, text) },
			Subscribed:   func(channel string) { b.listens(n, true, channel) },
			Lost:         func(channels []string, _ error) { b.listens(n, false, channels...) },
			Refused:      func(channel string, err error) { b.refused(n, channel, err) },
			CloseTimeout: max(q.client.cfg.CloseTimeout, 0),
		})
		if err != nil {
			return nil, err
		}
		b.subs = append(b.subs, sub)
	}
	return b, nil
}

// enter adds a caller who waits for locks; leave must follow.
func (b *bell) enter(k keys) *ringer {
	if b == nil {
		return nil
	}
	r := &ringer{bell: b, ring: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, lease := range k.leases {
		channel := lease + freeSuffix
		s := b.spots[channel]
		if s == nil {
			s = &spot{channel: channel, last: make([]string, len(b.subs))}
			b.spots[channel] = s
			for _, sub := range b.subs {
				sub.Add(channel)
			}
		}
		s.ringers = append(s.ringers, r)
		r.spots = append(r.spots, s)
	}
	return r
}

// rings returns what is sent on when it is worth while to try.
func (r *ringer) rings() <-chan struct{} {
	if r == nil {
		return nil
	}
	return r.ring
}

// leave takes the caller out. Who leaves without the lock passes on what it was
// told and has not heard.
func (r *ringer) leave(acquired bool) {
	if r == nil {
		return
	}
	b := r.bell
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for _, s := range r.spots {
		s.ringers = slices.DeleteFunc(s.ringers, func(o *ringer) bool { return o == r })
		if len(s.ringers) == 0 {
			s.idle = now
			b.chore.plan(now.Add(lineLinger))
		} else if len(r.ring) > 0 && !acquired {
			s.wake()
		}
	}
}

// wake lets the first of those who wait try.
func (s *spot) wake() {
	for _, r := range s.ringers {
		select {
		case r.ring <- struct{}{}:
			return
		default: // it will try anyway
		}
	}
}

// told is a node's message that a lock was given back there. When a majority has
// said so, or all that would, it is time to try.
func (b *bell) told(n int, channel, message string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.spots[channel]
	if s == nil {
		return
	}
	s.last[n] = message
	told := 0
	for _, m := range s.last {
		if m == message {
			told++
		}
	}
	if told == min(b.quorum.need, max(s.live.len(), 1)) {
		s.wake()
	}
}

func (b *bell) listens(n int, live bool, channels ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, channel := range channels {
		if s := b.spots[channel]; s != nil {
			s.live &^= 1 << n
			if live {
				s.live.add(n)
			}
		}
	}
}

func (b *bell) refused(n int, channel string, err error) {
	b.listens(n, false, channel)
	b.mu.Lock()
	first := !b.warned
	b.warned = true
	b.mu.Unlock()
	if first {
		b.quorum.client.log.Warn("messages of released locks are refused, waiters poll: does the ACL allow the user SUBSCRIBE and the channels?",
			"node", b.quorum.members[n].name, "channel", channel, "err", err)
	}
}

// dropIdle leaves the channels that were not needed for a while, and returns when
// to do so again.
func (b *bell) dropIdle() (next time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for channel, s := range b.spots {
		if len(s.ringers) > 0 {
			continue
		}
		if end := s.idle.Add(lineLinger); end.After(now) {
			if next.IsZero() || end.Before(next) {
				next = end
			}
			continue
		}
		delete(b.spots, channel)
		for _, sub := range b.subs {
			sub.Remove(channel)
		}
	}
	return next
}

func (b *bell) close(ctx context.Context) error {
	err := b.chore.stop(ctx)
	var all sync.WaitGroup
	errs := make([]error, len(b.subs))
	for n, sub := range b.subs {
		all.Go(func() { errs[n] = sub.Close() })
	}
	all.Wait()
	return errors.Join(err, errors.Join(errs...))
}
