package result

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redisha/redisha/internal/conn"
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
	running bool                // run runs, and will look at topics before it ends
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

// woken reports whether a signal is there, and takes it.
func (w *waiter) woken() bool {
	select {
	case <-w.wake:
		return true
	default:
		return false
	}
}

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

// confirm wakes who waits for channel, which is subscribed from now on.
func (h *hub) confirm(channel string) {
	if h.confirmed(channel) {
		h.log.Info("result wake-ups are back")
	}
}

func (h *hub) confirmed(channel string) (mended bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
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
func (h *hub) interrupted(err error) int {
	h.mu.Lock()
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
		h.log.Warn("result wake-ups are refused, waiters find results up to 5s later: does the ACL allow the user PUBLISH and the channels?")
	})
}
