package pubsub

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"
)

// A shard is the part of the channels that one server has.
type shard struct {
	of  *Channels
	sub *Subscription
}

// shardOf returns the shard of a node. The caller holds mu.
func (c *Channels) shardOf(node redis.UniversalClient) *shard {
	s := c.shards[node]
	if s == nil {
		s = &shard{of: c}
		cfg := Config{
			Open:         func(ctx context.Context) *redis.PubSub { return node.Subscribe(ctx) },
			Message:      s.message,
			Subscribed:   s.subscribed,
			Refused:      s.refused,
			Gap:          s.gap,
			Ping:         c.cfg.Ping,
			CloseTimeout: c.cfg.CloseTimeout,
		}
		if c.router != nil {
			cfg.displaced = s.displaced
		} else {
			cfg.straight = true
		}
		s.sub = newSubscription(cfg)
		c.shards[node] = s
	}
	return s
}

// message passes a message on, unless the channel is another shard's by now.
func (s *shard) message(channel, payload string) {
	s.of.telling.Lock()
	defer s.of.telling.Unlock()
	if s.note(channel, func(*place) {}) {
		s.of.cfg.Message(channel, payload)
	}
}

// subscribed is told that messages come from now on.
func (s *shard) subscribed(channel string) {
	s.of.telling.Lock()
	defer s.of.telling.Unlock()
	if s.note(channel, func(p *place) { p.live, p.lost, p.refused = true, false, false }) {
		s.of.cfg.Subscribed(channel)
	}
}

// refused is told that the server does not want a channel.
func (s *shard) refused(channel string, err error) {
	s.of.telling.Lock()
	defer s.of.telling.Unlock()
	if s.note(channel, func(p *place) { p.refused = true }) {
		s.of.cfg.Refused(channel, err)
	}
}

// displaced is told that a node does not serve a channel, or no longer.
func (s *shard) displaced(channel string, err error) {
	s.of.telling.Lock()
	defer s.of.telling.Unlock()
	news := false
	s.note(channel, func(p *place) {
		news = !p.lost
		s.of.router.bounced(channel, p)
	})
	if news {
		s.of.cfg.Lost([]string{channel}, err)
	}
}

// note lets f note what became of a channel, and reports whether it is the
// shard's. The caller holds telling.
func (s *shard) note(channel string, f func(*place)) bool {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	p := s.of.places[channel]
	if p == nil || p.shard != s {
		return false
	}
	f(p)
	return true
}

// gap is told that the connection is lost, or refuses all channels.
func (s *shard) gap(err error) {
	c := s.of
	c.telling.Lock()
	defer c.telling.Unlock()
	c.mu.Lock()
	refused, closed := errors.Is(err, errRefused), errors.Is(err, redis.ErrClosed)
	var lost []string
	for channel, p := range c.places {
		if p.shard != s {
			continue
		}
		if p.live = false; refused {
			p.refused = true
		}
		if !p.lost || closed {
			p.lost = true
			lost = append(lost, channel)
		}
	}
	if c.router != nil {
		c.router.trouble()
	}
	c.mu.Unlock()
	switch {
	case len(lost) == 0:
	case !refused:
		c.cfg.Lost(lost, err)
	default:
		for _, channel := range lost {
			c.cfg.Refused(channel, err)
		}
	}
}
