package result

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

const (
	// linger is how long the subscription's connection is kept when nobody
	// waits: who publishes and waits in turn shall not dial each time.
	linger = 5 * time.Second

	minBackoff     = 50 * time.Millisecond
	maxBackoff     = time.Second      // between attempts to connect
	refusedBackoff = 30 * time.Second // after SUBSCRIBE was refused again and again
)

// A hub is the one subscription of a client, which wakes its waiters. While
// somebody waits, and for linger after that, two goroutines serve it: run
// subscribes and unsubscribes what join and leave have asked for, receive reads
// what the server sends. They end with close at the latest.
//
// A confirmed subscription is a wake-up too: what was stored before it is only
// found by reading. This makes a new connection, on which go-redis subscribes
// everything again, need no care of its own.
type hub struct {
	rdb    *conn.Client
	log    *slog.Logger
	counts *counts
	ctx    context.Context // ends by close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	kick   chan struct{} // holds one: changed is not empty

	mu      sync.Mutex
	topics  map[string]*topic   // by channel
	changed map[string]struct{} // channels that run has to look at
	current *redis.PubSub       // nil between two sessions
	running bool                // run is, or will look at topics again before it ends
	closed  bool
	broken  bool // since the last confirmation
	fails   int  // errors in a row

	unannounced sync.Once
}

// A topic is a channel that somebody waits for.
type topic struct {
	waiters map[*waiter]struct{}
	live    atomic.Bool // the server has confirmed the subscription
}

// A waiter is one caller of Wait.
type waiter struct {
	topic   *topic
	channel string
	wake    chan struct{} // holds one: read now
}

func (t *topic) signal() {
	for w := range t.waiters {
		w.signal()
	}
}

// live reports whether messages reach the waiter.
func (w *waiter) live() bool { return w.topic.live.Load() }

func (w *waiter) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func newHub(c *conn.Client, log *slog.Logger, n *counts) *hub {
	h := &hub{
		rdb: c, log: log, counts: n,
		kick:    make(chan struct{}, 1),
		topics:  make(map[string]*topic),
		changed: make(map[string]struct{}),
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// join registers a waiter for channel; leave must follow. The waiter is woken
// once it is subscribed, since what was stored before that sends it nothing.
func (h *hub) join(channel string) *waiter {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.topics[channel]
	if t == nil {
		t = &topic{waiters: make(map[*waiter]struct{})}
		h.topics[channel] = t
		h.change(channel)
	}
	w := &waiter{topic: t, channel: channel, wake: make(chan struct{}, 1)}
	t.waiters[w] = struct{}{}
	if t.live.Load() {
		w.signal()
	}
	if !h.running && !h.closed {
		h.running = true
		h.tasks.Go(h.run)
	}
	return w
}

func (h *hub) leave(w *waiter) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(w.topic.waiters, w)
	if len(w.topic.waiters) > 0 {
		return
	}
	delete(h.topics, w.channel)
	if w.topic.live.Load() {
		h.counts.subscriptions.Add(-1)
	}
	h.change(w.channel)
}

// change tells run to look at channel. The caller holds mu.
func (h *hub) change(channel string) {
	h.changed[channel] = struct{}{}
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

// close ends the goroutines and waits for them for at most timeout.
func (h *hub) close(timeout time.Duration) error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	ended := make(chan struct{})
	go func() { // ends with the tasks, which have their own ends
		defer close(ended)
		h.tasks.Wait()
	}()
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	select {
	case <-ended:
		return nil
	case <-limit.C:
		return fmt.Errorf("the subscription has not ended within CloseTimeout (%s)", timeout)
	}
}

// run holds sessions as long as somebody waits.
func (h *hub) run() {
	for h.session() && h.pause(h.backoff(refusedBackoff)) {
	}
}

// pause reports whether there is somebody to go on for after d.
func (h *hub) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return !h.stop()
		case <-h.kick:
			if h.stop() {
				return false
			}
		case <-h.ctx.Done():
			return false
		}
	}
}

// session subscribes on one go-redis subscription, which connects again by
// itself, until nobody waits, the hub is closed, or the server refuses. In the
// last case it reports true: try again later.
func (h *hub) session() (again bool) {
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	ps := h.rdb.Subscribe(ctx)
	h.begin(ps)
	refused := make(chan struct{})
	var receiver sync.WaitGroup
	receiver.Go(func() {
		defer close(refused)
		h.receive(ctx, ps)
	})
	defer func() {
		h.end()
		cancel()
		_ = ps.Close() // ends the receiver
		receiver.Wait()
	}()

	sent := make(map[string]struct{}) // subscribed, or about to be by go-redis
	timer := time.NewTimer(linger)
	defer timer.Stop()
	for {
		failed, idle := h.flush(ctx, ps, sent)
		kick := h.kick
		switch {
		case failed:
			kick = nil // what comes meanwhile is flushed with the rest
			timer.Reset(h.backoff(maxBackoff))
		case idle:
			timer.Reset(linger)
		default:
			timer.Stop()
		}
		select {
		case <-kick:
		case <-timer.C:
			if idle && h.stop() {
				return false
			}
		case <-refused:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// begin makes ps the current subscription, with everything to be subscribed.
func (h *hub) begin(ps *redis.PubSub) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current = ps
	clear(h.changed)
	for channel := range h.topics {
		h.changed[channel] = struct{}{}
	}
}

func (h *hub) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current = nil
	h.allDead()
}

// stop ends run if nobody waits.
func (h *hub) stop() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.topics) > 0 {
		return false
	}
	h.running = false
	return true
}

// flush subscribes and unsubscribes what has changed. What could not be
// subscribed remains changed.
func (h *hub) flush(ctx context.Context, ps *redis.PubSub, sent map[string]struct{}) (failed, idle bool) {
	var subscribe, unsubscribe []string
	h.mu.Lock()
	for channel := range h.changed {
		_, isSent := sent[channel]
		if h.topics[channel] != nil {
			subscribe = append(subscribe, channel)
		} else if isSent {
			unsubscribe = append(unsubscribe, channel)
		}
	}
	clear(h.changed)
	idle = len(h.topics) == 0
	h.mu.Unlock()

	if len(subscribe) > 0 {
		failed = ps.Subscribe(ctx, subscribe...) != nil
		for _, channel := range subscribe {
			sent[channel] = struct{}{} // also if it failed: go-redis keeps them
		}
	}
	if len(unsubscribe) > 0 {
		_ = ps.Unsubscribe(ctx, unsubscribe...) // if it fails, go-redis has forgotten them, and connects anew
		for _, channel := range unsubscribe {
			delete(sent, channel)
		}
	}
	if failed {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, channel := range subscribe {
			h.changed[channel] = struct{}{}
		}
	}
	return failed, idle
}

// receive reads what the server sends until ctx is done, ps is closed, or the
// server refuses.
func (h *hub) receive(ctx context.Context, ps *redis.PubSub) {
	for {
		msg, err := ps.Receive(ctx)
		switch msg := msg.(type) {
		case *redis.Subscription:
			if msg.Kind == "subscribe" {
				h.confirm(ps, msg.Channel)
			}
		case *redis.Message:
			h.deliver(msg.Channel, msg.Payload)
		}
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, redis.ErrClosed) {
			h.wakeAll() // the Redis client was closed: they shall see it
			return
		}
		fails := h.interrupted(ps, err)
		var reply redis.Error
		if errors.As(err, &reply) {
			return
		}
		// go-redis has tried to connect again before it returned the error, so
		// the first one needs no pause.
		if fails > 1 && !sleep(ctx, h.backoff(maxBackoff)) {
			return
		}
	}
}

// confirm wakes who waits for channel, which is subscribed from now on.
func (h *hub) confirm(ps *redis.PubSub, channel string) {
	if h.confirmed(ps, channel) {
		h.log.Info("result wake-ups are back")
	}
}

func (h *hub) confirmed(ps *redis.PubSub, channel string) (mended bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.current != ps {
		return false
	}
	mended, h.broken, h.fails = h.broken, false, 0
	if t := h.topics[channel]; t != nil {
		if !t.live.Swap(true) {
			h.counts.subscriptions.Add(1)
		}
		t.signal()
	}
	return mended
}

// deliver wakes who waits for channel if the state in the message is final, or
// is none that store.lua sends.
func (h *hub) deliver(channel, payload string) {
	if payload != "" && !State(payload[0]).Final() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.topics[channel]; t != nil {
		t.signal()
	}
}

func (h *hub) wakeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.topics {
		t.signal()
	}
}

// interrupted notes that no messages come for the time being, and returns the
// number of errors in a row.
func (h *hub) interrupted(ps *redis.PubSub, err error) int {
	h.mu.Lock()
	if h.current != ps {
		h.mu.Unlock()
		return 0
	}
	h.allDead()
	h.fails++
	fails, news := h.fails, !h.broken
	h.broken = true
	h.mu.Unlock()
	if news {
		h.counts.gaps.Inc()
		h.log.Warn("result wake-ups interrupted, waiters read from time to time meanwhile", "err", err)
	}
	return fails
}

// allDead marks everything as not subscribed. The caller holds mu.
func (h *hub) allDead() {
	for _, t := range h.topics {
		if t.live.Swap(false) {
			h.counts.subscriptions.Add(-1)
		}
	}
}

// warnUnannounced logs, once, that wake-ups cannot be sent.
func (h *hub) warnUnannounced() {
	h.unannounced.Do(func() {
		h.log.Warn("the server refuses " + publishCommand + " on result channels, waiters find results up to 5s later: does the user's ACL allow the channels?")
	})
}

// backoff is the pause after fails errors in a row, with up to a quarter off so
// that clients do not come back all at once.
func (h *hub) backoff(limit time.Duration) time.Duration {
	h.mu.Lock()
	fails := max(h.fails, 1)
	h.mu.Unlock()
	d := limit
	if fails < 16 {
		d = min(minBackoff<<(fails-1), limit)
	}
	return d - rand.N(d/4)
}

// sleep reports whether d has passed before ctx was done.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
