package result

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/pubsub"
)

// A hub is the one subscription of a client, which wakes its waiters. It has a
// connection and goroutines while somebody waits, and shortly after that.
//
// A confirmed subscription is a wake-up too: what was stored before it is only
// found by reading. This makes a new connection, on which everything is
// subscribed again, need no care of its own.
type hub struct {
	sub    *pubsub.Subscription
	log    *slog.Logger
	detach func() // from the changes of primary

	mu     sync.Mutex
	topics map[string]*topic // by channel
	broken bool              // since the last confirmation

	unannounced, refused sync.Once
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

func newHub(c *conn.Client, log *slog.Logger, closeTimeout time.Duration) (*hub, error) {
	h := &hub{log: log, topics: make(map[string]*topic)}
	var err error
	h.sub, err = pubsub.New(pubsub.Config{
		Open:         func(ctx context.Context) *redis.PubSub { return c.Subscribe(ctx) },
		Message:      h.deliver,
		Subscribed:   h.confirm,
		Refused:      h.warnRefused,
		Gap:          h.interrupted,
		CloseTimeout: closeTimeout,
	})
	if err != nil {
		return nil, err
	}
	h.detach = c.OnEpoch(func(uint64) { h.sub.Renew() })
	return h, nil
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
		h.sub.Add(channel)
	}
	w := &waiter{topic: t, channel: channel, wake: make(chan struct{}, 1)}
	t.waiters[w] = struct{}{}
	if t.live.Load() {
		w.signal()
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
	h.sub.Remove(w.channel)
}

// close ends the subscription and waits for that for at most CloseTimeout.
func (h *hub) close() error {
	h.detach()
	return h.sub.Close()
}

// confirm wakes who waits for channel, which is subscribed from now on.
func (h *hub) confirm(channel string) {
	h.mu.Lock()
	mended := h.broken
	h.broken = false
	if t := h.topics[channel]; t != nil {
		t.live.Store(true)
		t.signal()
	}
	h.mu.Unlock()
	if mended {
		h.log.Info("result wake-ups are back")
	}
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

// interrupted notes that no messages come for the time being: waiters read from
// time to time. Those of a Redis client that was closed shall see that at once.
func (h *hub) interrupted(err error) {
	h.mu.Lock()
	news := !h.broken
	h.broken = true
	for _, t := range h.topics {
		t.live.Store(false)
		if errors.Is(err, redis.ErrClosed) {
			t.signal()
		}
	}
	h.mu.Unlock()
	if news {
		h.log.Warn("result wake-ups interrupted, waiters read from time to time meanwhile", "err", err)
	}
}

// warnRefused logs, once, that a channel cannot be subscribed to.
func (h *hub) warnRefused(_ string, err error) {
	h.refused.Do(func() {
		h.log.Warn("result wake-ups are refused, waiters read from time to time: does the ACL allow the user SUBSCRIBE and the channels?", "err", err)
	})
}

// warnUnannounced logs, once, that wake-ups cannot be sent.
func (h *hub) warnUnannounced() {
	h.unannounced.Do(func() {
		h.log.Warn("result wake-ups are refused, waiters find results up to 5s later: does the ACL allow the user PUBLISH and the channels?")
	})
}
