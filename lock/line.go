package lock

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/pubsub"
)

const (
	// checkMost is how long a place goes unseen at the most. It is looked at
	// when the other's lease ends, in case that nobody releases it; and from
	// time to time, in case that messages or the queue itself were lost.
	checkMost = 3 * time.Second

	// checkJitter spreads the looks of many processes at one lease.
	checkJitter = 20 * time.Millisecond

	// lineLinger is how long a channel is kept after the last wait.
	lineLinger = 10 * time.Second

	// maxPlaced bounds the entries of one script.
	maxPlaced = 100
)

// A line is where a client's callers stand in the queues of locks, which are in
// Redis, and where they are told that a lock is theirs. It has one subscription
// and one goroutine, which is there only while it has something to do; a waiter
// has neither.
//
// While messages come, waiters sleep until one does, and the line looks at each
// place, which is a lock that somebody waits for: at the end of the lease that it
// waits for, and every few seconds. While no messages come, the line makes the
// first waiter of each place try again from time to time.
type line struct {
	node    *node
	process string // the name of this client in the queues
	sub     *pubsub.Channels
	chore   chore
	warned  sync.Once

	mu       sync.Mutex
	channels map[string]*channel
	places   map[string]*place  // by the queue's key
	waiters  map[string]*waiter // by token
	held     map[string]bool    // tokens of leases that are held, of those who have queued
	due      dueHeap[*place]
}

// A channel is where messages for some places come.
type channel struct {
	name   string
	live   bool
	gen    uint64 // counts how often it came and went
	places int
	idle   time.Time // since when there are none
}

// A place is a lock that callers wait for.
type place struct {
	keys      keys
	channel   *channel
	waiters   []*waiter     // in their order
	told      time.Time     // when its server has answered last
	clock     reading       // the last one of its server's
	refused   bool          // the scripts may not publish
	pause     time.Duration // until the next try, while no messages come
	scheduled               // when to look
}

// messages reports whether waiters are told when the lock is theirs.
func (p *place) messages() bool { return p.channel.live && !p.refused }

func newLine(s *node) (*line, error) {
	if s.conn.Endpoint().Proxy != "" { // which knows no subscriptions
		return nil, nil
	}
	l := &line{
		node:     s,
		process:  newProcess(s.conn.Topology() == endpoint.Cluster),
		channels: make(map[string]*channel),
		places:   make(map[string]*place),
		waiters:  make(map[string]*waiter),
		held:     make(map[string]bool),
	}
	l.chore.do = l.run
	var err error
	l.sub, err = pubsub.Open(s.conn, pubsub.ChannelsConfig{
		Message:      l.message,
		Subscribed:   l.subscribed,
		Lost:         l.lost,
		Refused:      l.refused,
		CloseTimeout: max(s.client.cfg.CloseTimeout, time.Second),
	})
	return l, err
}

// enter returns the caller's waiter; leave must follow. Its first attempt takes a
// place in the queue if messages would come.
func (l *line) enter(r *request) *waiter {
	if l == nil || len(r.locks) > 1 {
		return nil
	}
	w := &waiter{request: r, line: l, wake: make(chan call, 1), trying: true}
	l.mu.Lock()
	defer l.mu.Unlock()
	if ch := l.channels[l.channelOf(r.keys)]; ch != nil && ch.live {
		w.channel, w.gen = ch, ch.gen
		r.entry = l.entryOf(r)
		l.waiters[r.token] = w
	}
	return w
}

// entryOf is what give.lua makes a lease from.
func (l *line) entryOf(r *request) string {
	return r.token + l.process + lifeOf(r.ttl) + string(l.node.client.label)
}

// lifeOf is how long a lease with the given TTL lives after a hand-over, in
// milliseconds, of which there are four digits.
func lifeOf(ttl time.Duration) string {
	ms := min(ttl, claimTTL).Milliseconds()
	return strconv.FormatInt(10_000+ms, 10)[1:]
}

func (l *line) channelOf(k keys) string {
	if l.process[0] == sharded {
		return k.leases[0] + ":p:" + l.process
	}
	return l.node.client.cfg.Namespace + ":lock:p:" + l.process
}

// place returns the place of a lock.
func (l *line) place(k keys) *place {
	queue := k.queues[0]
	p := l.places[queue]
	if p != nil {
		return p
	}
	name := l.channelOf(k)
	ch := l.channels[name]
	if ch == nil {
		ch = &channel{name: name}
		l.channels[name] = ch
		l.sub.Add(name)
	}
	ch.places++
	p = &place{keys: k, channel: ch, pause: pollMin, scheduled: scheduled{due: time.Now().Add(checkMost)}}
	l.places[queue] = p
	heap.Push(&l.due, p)
	return p
}

// poll returns how long to wait for the next try without messages.
func (p *place) poll(left time.Duration) time.Duration {
	pause := p.pause/2 + rand.N(p.pause/2)
	p.pause = min(2*p.pause, pollMax)
	if left >= 0 && left < pause {
		pause = left + rand.N(pollMin) // not all at the same instant
	}
	return pause
}

// until returns how long to wait for the look at a lease that ends in left.
func until(left time.Duration) time.Duration {
	if left < 0 || left > checkMost {
		left = checkMost
	}
	return left + 2*time.Millisecond + rand.N(checkJitter)
}

// look lets the place be looked at by the given time.
func (l *line) look(p *place, at time.Time) {
	if at.Before(p.due) {
		p.due = at
		heap.Fix(&l.due, p.index)
	}
	l.chore.plan(at)
}

// refuse makes a place poll, since its scripts may not publish.
func (l *line) refuse(p *place) {
	p.refused = true
	l.warned.Do(func() {
		l.node.client.log.Warn("lock hand-overs are refused, waiters poll: does the ACL allow the user PUBLISH (on Cluster SPUBLISH) and the channels?",
			"channel", p.channel.name)
	})
}

func (l *line) keep(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[token] = true
}

func (l *line) forget(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, token)
}

func (l *line) remove(p *place) {
	delete(l.places, p.keys.queues[0])
	heap.Remove(&l.due, p.index)
	ch := p.channel
	if ch.places--; ch.places == 0 {
		ch.idle = time.Now()
		l.chore.plan(ch.idle.Add(lineLinger))
	}
}

// message is what comes from give.lua.
func (l *line) message(_, text string) {
	if len(text) < 1+tokenLen {
		return
	}
	token, rest := text[1:1+tokenLen], text[1+tokenLen:]
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.waiters[token]
	if text[0] != 'y' {
		return
	}
	at, rest, _ := strings.Cut(rest, " ")
	fence, lease, _ := strings.Cut(rest, " ")
	if w == nil {
		if !l.held[token] { // by a try that was faster
			l.node.sweeper.addGrant(lease, token)
		}
		return
	}
	w.placed = false // it was taken out
	w.signal(newCall(at, fence))
}

// subscribed puts all who wait on a channel into their queues.
func (l *line) subscribed(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ch := l.channels[name]
	if ch == nil {
		return
	}
	ch.live = true
	ch.gen++
	now := time.Now()
	for _, p := range l.places {
		if p.channel == ch {
			p.clock = reading{}
			for _, w := range p.waiters {
				w.placed = false
			}
			l.look(p, now)
		}
	}
}

// lost lets those who wait on channels poll.
func (l *line) lost(names []string, _ error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for _, name := range names {
		ch := l.channels[name]
		if ch == nil || !ch.live {
			continue
		}
		ch.live = false
		ch.gen++
		for _, p := range l.places {
			if p.channel == ch {
				p.pause, p.clock = pollMin, reading{}
				l.look(p, now.Add(p.poll(-1)))
			}
		}
	}
}

// refused tells, once, that waiters cannot be told anything: they poll.
func (l *line) refused(name string, err error) {
	l.warned.Do(func() {
		l.node.client.log.Warn("messages to waiters are refused, they poll: does the ACL allow the user SUBSCRIBE (on Cluster SSUBSCRIBE) and the channels?",
			"channel", name, "err", err)
	})
}

// run looks at the places that are due and returns when to look again.
func (l *line) run() (next time.Time) {
	for {
		jobs := l.takeDue()
		if len(jobs) == 0 {
			break
		}
		l.send(jobs)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	next = l.dropIdle()
	if len(l.due) > 0 && (next.IsZero() || l.due[0].due.Before(next)) {
		next = l.due[0].due
	}
	return next
}

// dropIdle leaves the channels that were not needed for a while, and returns when
// to do so again.
func (l *line) dropIdle() (next time.Time) {
	now := time.Now()
	for name, ch := range l.channels {
		if ch.places > 0 {
			continue
		}
		if end := ch.idle.Add(lineLinger); end.After(now) {
			if next.IsZero() || end.Before(next) {
				next = end
			}
			continue
		}
		delete(l.channels, name)
		l.sub.Remove(name)
	}
	return next
}

// A look is a call of wait.lua: for those of a place who have no entry in the
// queue, or else for two of them, to see whether the queue is there still.
type look struct {
	place   *place
	gen     uint64 // of the channel
	fresh   bool
	waiters []*waiter
	entries []any // theirs, strings
	cmd     *redis.Cmd
}

// takeDue returns what wait.lua is to be called for, and wakes those who have to
// try without messages.
func (l *line) takeDue() (looks []*look) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for len(l.due) > 0 && !l.due[0].due.After(now) && len(looks) < batchSize {
		p := l.due[0]
		p.due = now.Add(checkMost + rand.N(checkJitter))
		if p.messages() {
			if o := p.look(); o != nil {
				looks = append(looks, o)
			}
		} else {
			if first := p.waiters[0]; !first.trying {
				first.signal(call{})
			}
			p.due = now.Add(p.poll(-1))
		}
		heap.Fix(&l.due, p.index)
	}
	return looks
}

// look returns nil if there is nothing to be done: all are trying.
func (p *place) look() *look {
	o := &look{place: p, gen: p.channel.gen, fresh: true}
	var placed []*waiter
	for _, w := range p.waiters {
		switch {
		case w.trying:
		case w.placed:
			placed = append(placed, w)
		case len(o.waiters) < maxPlaced:
			o.waiters = append(o.waiters, w)
		}
	}
	if len(o.waiters) == 0 {
		o.fresh = false
		switch len(placed) {
		case 0:
			return nil
		case 1:
			o.waiters = placed
		default:
			o.waiters = []*waiter{placed[0], placed[1+rand.IntN(len(placed)-1)]}
		}
	}
	for _, w := range o.waiters {
		o.entries = append(o.entries, w.entry)
	}
	return o
}

// send calls wait.lua and notes what it tells.
func (l *line) send(looks []*look) {
	s := l.node
	ctx, cancel := context.WithTimeout(s.client.running, releaseTimeout)
	defer cancel()
	clock := s.reading()
	pipe := s.conn.Pipeline()
	for _, o := range looks {
		o.cmd = waitScript.Eval(ctx, pipe, o.place.keys.all, o.entries...)
	}
	conn.Exec(ctx, pipe)
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range looks {
		l.note(o, clock, now)
	}
}

func (l *line) note(o *look, clock reading, now time.Time) {
	p := o.place
	reply, err := o.cmd.Int64Slice()
	if err == nil && len(reply) != 5 {
		err = fmt.Errorf("wait.lua returned %d numbers, want 5", len(reply))
	}
	current := o.gen == p.channel.gen
	if err == nil {
		p.told = now
	}
	if err == nil && current {
		p.clock = clock
		p.clock.server = reply[3]
	}
	for i, w := range o.waiters {
		switch entry, _ := o.entries[i].(string); {
		case entry != w.entry: // it has another token now
			l.node.sweeper.put(&leftover{keys: p.keys, token: entry[:tokenLen], entry: entry, tries: settled}, w.ttl)
		case w.left:
			l.node.sweeper.addEntry(w.request, w.got)
		case w.trying:
			w.stale = true
		case err == nil && reply[4] == int64(i+1): // the message was lost, or comes later than this
			w.placed = false
			w.signal(call{})
		case err == nil:
			w.placed = current
		}
	}
	if len(p.waiters) == 0 {
		return
	}
	switch {
	case isReply(err) && !passes(err), err != nil && now.Sub(p.told) >= outageMost: // which the waiters' own attempts get too, and tell
		for _, w := range p.waiters {
			if !w.trying {
				w.signal(call{})
			}
		}
		l.look(p, now.Add(p.poll(-1)))
		return
	case err != nil:
		l.look(p, now.Add(p.poll(-1)))
		return
	case reply[2] == 1:
		l.refuse(p)
		l.look(p, now.Add(p.poll(-1)))
		return
	case !o.fresh && reply[0] > 0: // the queue was lost: all are to be put back
		for _, w := range p.waiters {
			w.placed = w.placed && slices.Contains(o.waiters, w)
		}
	}
	p.pause = pollMin
	if slices.ContainsFunc(p.waiters, func(w *waiter) bool { return !w.placed && !w.trying }) {
		l.look(p, now)
		return
	}
	l.look(p, now.Add(until(leftOf(reply[1]))))
}

// close ends the subscription.
func (l *line) close(ctx context.Context) error {
	if l == nil {
		return nil
	}
	return errors.Join(l.chore.stop(ctx), l.sub.Close())
}
