package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/redistest"
)

// An observer hears what all Sentinels announce, apart from every contender.
type observer struct {
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex
	news   []announcement
	change chan struct{} // closed with the next announcement
}

// An announcement is what a Sentinel published.
type announcement struct {
	at      time.Time
	from    string // address of the Sentinel
	channel string // "+switch-master"
	payload string
}

func observe(sentinels []*redistest.Server) *observer {
	ctx, cancel := context.WithCancel(context.Background())
	o := &observer{cancel: cancel, change: make(chan struct{})}
	for _, s := range sentinels {
		o.running.Go(func() { o.listen(ctx, s) })
	}
	return o
}

func (o *observer) listen(ctx context.Context, s *redistest.Server) {
	rdb := redis.NewClient(s.Options())
	defer func() { _ = rdb.Close() }()
	sub := rdb.PSubscribe(ctx, "+*", "-*")
	defer func() { _ = sub.Close() }()
	messages := sub.Channel()
	for {
		select {
		case <-ctx.Done():
			return
		case m, ok := <-messages:
			if !ok {
				return
			}
			o.take(announcement{at: time.Now(), from: s.Addr(), channel: m.Channel, payload: m.Payload})
		}
	}
}

func (o *observer) take(a announcement) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.news = append(o.news, a)
	close(o.change)
	o.change = make(chan struct{})
}

// forget drops what was heard.
func (o *observer) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.news = nil
}

// heard returns what was heard since forget, in order.
func (o *observer) heard() []announcement {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]announcement(nil), o.news...)
}

// first returns the first announcement on a channel since forget, if any.
func (o *observer) first(channel string) (announcement, bool) {
	for _, a := range o.heard() {
		if a.channel == channel {
			return a, true
		}
	}
	return announcement{}, false
}

// await waits for the first announcement on a channel.
func (o *observer) await(ctx context.Context, channel string) (announcement, error) {
	for {
		o.mu.Lock()
		change := o.change
		o.mu.Unlock()
		if a, ok := o.first(channel); ok {
			return a, nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return announcement{}, fmt.Errorf("no Sentinel announced %s: %w", channel, context.Cause(ctx))
		}
	}
}

// story tells what was heard, in times from zero.
func (o *observer) story(zero time.Time) string {
	var b strings.Builder
	for _, a := range o.heard() {
		fmt.Fprintf(&b, "%8.1f ms  %s %s: %s\n", ms(a.at.Sub(zero)), a.from, a.channel, a.payload)
	}
	return b.String()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (o *observer) close() {
	o.cancel()
	o.running.Wait()
}
