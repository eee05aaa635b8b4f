package result

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/pubsub"
)

// A hub is the one subscription of a client, which wakes its waiters. It has a
// connection (on Cluster one to each primary that has some of the records) and
// goroutines while somebody waits, and shortly after that.
//
// A confirmed subscription is a wake-up too: what was stored before it is only
// found by reading. This makes a new connection, on which everything is
// subscribed again, need no care of its own.
type hub struct {
	sub *pubsub.Channels
	log *slog.Logger

	mu     sync.Mutex
	topics map[string]*topic // by channel
	broken bool              // since the last confirmation

	unannounced, refusal sync.Once
}

// A topic is a channel that somebody waits for. All of it is guarded by hub.mu.
type topic struct {
	waiters map[*waiter]struct{}
	live    bool // the server has confirmed the subscription
}

// A waiter is one call of Wait, WaitAny or WaitAll.
type waiter struct {
	wake   chan struct{}       // holds one: read what is told
	topics map[string]*topic   // by channel, of what it still waits for; guarded by hub.mu
	told   map[string]struct{} // channels to read; guarded by hub.mu
}

// tell lets the waiters of a channel read. hub.mu is held.
func (t *topic) tell(channel string) {
	for w := range t.waiters {
		w.tell(channel)
	}
}

func (w *waiter) tell(channel string) {
	w.told[channel] = struct{}{}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// publishCommand is how store.lua tells waiters, so that the hub hears it.
func publishCommand(c *conn.Client) string {
	if c.Topology() == endpoint.Cluster {
		return "SPUBLISH" // PUBLISH would go to all nodes
	}
	return "PUBLISH"
}

func newHub(c *conn.Client, log *slog.Logger, closeTimeout time.Duration) (*hub, error) {
	h := &hub{log: log, topics: make(map[string]*topic)}
	var err error
	h.sub, err = pubsub.Open(c, pubsub.ChannelsConfig{
		Message:      h.deliver,
		Subscribed:   h.confirm,
		Refused:      h.refused,
		Lost:         h.lost,
		CloseTimeout: closeTimeout,
	})
	return h, err
}

// join registers a waiter for channels; leave must follow for each. It is told
// of each once that is subscribed, since what was stored before sends it nothing.
func (h *hub) join(channels []string) *waiter {
	w := &waiter{wake: make(chan struct{}, 1), topics: make(map[string]*topic, len(channels)), told: make(map[string]struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	var added []string
	for _, channel := range channels {
		t := h.topics[channel]
		if t == nil {
			t = &topic{waiters: make(map[*waiter]struct{})}
			h.topics[channel] = t
			added = append(added, channel)
		}
		w.topics[channel] = t
		t.waiters[w] = struct{}{}
		if t.live {
			w.tell(channel)
		}
	}
	if len(added) > 0 {
		h.sub.Add(added...)
	}
	return w
}

// leave ends the waiting for channels.
func (h *hub) leave(w *waiter, channels ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var last []string
	for _, channel := range channels {
		t := w.topics[channel]
		if t == nil {
			continue
		}
		delete(w.topics, channel)
		delete(w.told, channel)
		if delete(t.waiters, w); len(t.waiters) == 0 {
			delete(h.topics, channel)
			last = append(last, channel)
		}
	}
	if len(last) > 0 {
		h.sub.Remove(last...)
	}
}

// take returns the channels that the waiter was told of, and forgets them.
func (h *hub) take(w *waiter) map[string]struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	told := w.told
	w.told = make(map[string]struct{})
	return told
}

// live reports whether messages of all that the waiter waits for reach it.
func (h *hub) live(w *waiter) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range w.topics {
		if !t.live {
			return false
		}
	}
	return true
}

// close ends the subscription and waits for that for at most CloseTimeout.
func (h *hub) close() error { return h.sub.Close() }

// confirm wakes who waits for channel, which is subscribed from now on.
func (h *hub) confirm(channel string) {
	h.mu.Lock()
	mended := h.broken
	h.broken = false
	if t := h.topics[channel]; t != nil {
		t.live = true
		t.tell(channel)
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
		t.tell(channel)
	}
}

// lost notes that no messages of channels come for the time being: waiters read
// from time to time. Those of a Redis client that was closed shall see that at
// once.
func (h *hub) lost(channels []string, err error) {
	h.mu.Lock()
	news := !h.broken
	h.broken = true
	for _, channel := range channels {
		t := h.topics[channel]
		if t == nil {
			continue
		}
		t.live = false
		if errors.Is(err, redis.ErrClosed) {
			t.tell(channel)
		}
	}
	h.mu.Unlock()
	if news {
		h.log.Warn("result wake-ups interrupted, waiters read from time to time meanwhile", "err", err)
	}
}

// refused notes that a channel cannot be subscribed to, and logs the first.
func (h *hub) refused(channel string, err error) {
	h.mu.Lock()
	if t := h.topics[channel]; t != nil {
		t.live = false
	}
	h.mu.Unlock()
	h.refusal.Do(func() {
		h.log.Warn("result wake-ups are refused, waiters read from time to time: does the ACL allow the user SUBSCRIBE (on Cluster SSUBSCRIBE) and the channels?", "err", err)
	})
}

// warnUnannounced logs, once, that wake-ups cannot be sent.
func (h *hub) warnUnannounced() {
	h.unannounced.Do(func() {
		h.log.Warn("result wake-ups are refused, waiters find results up to 5s later: does the ACL allow the user PUBLISH (on Cluster SPUBLISH) and the channels?")
	})
}
