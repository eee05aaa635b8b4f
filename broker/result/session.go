package result

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// linger is how long the subscription's connection is kept when nobody
	// waits: who publishes and waits in turn shall not dial each time.
	linger = 5 * time.Second

	minBackoff     = 50 * time.Millisecond
	maxBackoff     = time.Second      // between attempts to connect
	refusedBackoff = 30 * time.Second // after SUBSCRIBE was refused again and again
)

// run holds sessions, one after the other, as long as somebody waits.
func (h *hub) run() {
	for {
		h.session()
		if h.stop() || !h.pause(h.backoff(refusedBackoff)) {
			return
		}
	}
}

// stop reports whether nobody waits; run must then end.
func (h *hub) stop() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running = len(h.topics) > 0
	return !h.running
}

// pause reports whether there is somebody to go on for after d.
func (h *hub) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return true
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
// itself, until nobody has waited for a while, the server refuses, or the hub is
// closed.
func (h *hub) session() {
	ctx, cancel := context.WithCancel(h.ctx)
	ps := h.rdb.Subscribe(ctx)
	h.begin()
	ended := make(chan struct{})
	var receiver sync.WaitGroup
	receiver.Go(func() {
		defer close(ended)
		h.receive(ctx, ps)
	})
	defer func() {
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
			if idle {
				return
			}
		case <-ended:
			return
		case <-ctx.Done():
			return
		}
	}
}

// begin lets everything be subscribed.
func (h *hub) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.changed)
	for channel := range h.topics {
		h.changed[channel] = struct{}{}
	}
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
				h.confirm(msg.Channel)
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
		fails := h.interrupted(err)
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
