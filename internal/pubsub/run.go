package pubsub

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// linger is how long a connection without channels is kept: who adds and
	// removes in turn shall not dial each time.
	linger = 5 * time.Second

	minBackoff     = 50 * time.Millisecond
	maxBackoff     = time.Second      // between attempts to connect
	refusedBackoff = 30 * time.Second // after channels were refused

	// settled is how long a connection must have served for the failures before
	// it to be forgotten. The first one that has served is replaced at once; a
	// server that cuts whoever subscribes shall not be dialled without pause.
	settled = time.Second
)

// How a session ends when nothing is wrong with the connection.
var (
	errIdle    = errors.New("no channels")
	errRenewed = errors.New("connecting anew, since the primary has changed")
)

// errRefused ends a session all of whose channels were refused.
var errRefused = errors.New("the server refuses the channels")

// run holds sessions, one after the other, as long as there are channels.
func (s *Subscription) run() {
	fails := 0
	limit := 2 * s.cfg.Ping
	for {
		x := s.connect(limit)
		if x == nil {
			return
		}
		err := x.serve()
		x.end()
		x.link.cancel()
		s.disconnected(err)
		if s.ctx.Err() != nil {
			return
		}
		// One who has just lost its connection does not wait long for another: on
		// Cluster the next node may be better. Where that was too short it does.
		limit = 2 * s.cfg.Ping
		if !x.served.IsZero() {
			limit = s.cfg.Ping
		}
		var wait time.Duration
		switch {
		case errors.Is(err, redis.ErrClosed):
			s.stop(true)
			return
		case errors.Is(err, errIdle), errors.Is(err, errRenewed):
			fails = 0
		case errors.Is(err, errRefused):
			wait = jittered(refusedBackoff)
		default:
			if x.settled() {
				fails = 0
			}
			if x.served.IsZero() {
				fails = max(fails, 1)
			}
			wait = backoff(fails)
			fails++
		}
		if !s.pause(wait) {
			return
		}
	}
}

// disconnected notes that nothing is subscribed any more, and tells the owner.
func (s *Subscription) disconnected(err error) {
	s.mu.Lock()
	for channel := range s.channels {
		s.channels[channel] = false
	}
	s.live, s.refused, s.connected = 0, 0, false
	if s.ctx.Err() != nil || len(s.channels) == 0 || errors.Is(err, errIdle) {
		s.mu.Unlock()
		return
	}
	s.lastErr = err
	news := !s.cut
	s.cut = true
	if news {
		s.gaps.Inc()
		s.lastGap = time.Now()
	}
	s.mu.Unlock()
	if s.cfg.Gap != nil && (news || errors.Is(err, redis.ErrClosed)) {
		s.cfg.Gap(err)
	}
}

// stop reports whether there are no channels, or anyway: run must then end, and
// the next Add starts it.
func (s *Subscription) stop(anyway bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = len(s.channels) > 0 && !anyway
	return !s.running
}

// pause reports whether there is something to go on for after d, or at once
// after Renew.
func (s *Subscription) pause(d time.Duration) bool {
	// One that is due at once crashes the race detector of Go 1.26, if two of a bubble of
	// synctest are looked at together (timer.maybeRunChan).
	timer := time.NewTimer(max(d, 1))
	defer timer.Stop()
	for {
		if s.stop(false) {
			return false
		}
		if s.renewed() {
			return true
		}
		if d <= 0 {
			return s.ctx.Err() == nil
		}
		select {
		case <-timer.C:
			return true
		case <-s.wake:
		case <-s.ctx.Done():
			return false
		}
	}
}

// renewed reports whether Renew was called, and forgets it.
func (s *Subscription) renewed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	renew := s.renew
	s.renew = false
	return renew
}

// backoff is the pause after a failure, and fails others before it: none for the
// first, then from minBackoff up to maxBackoff.
func backoff(fails int) time.Duration {
	if fails == 0 {
		return 0
	}
	return jittered(min(minBackoff<<min(fails-1, 10), maxBackoff))
}

// jittered takes up to a quarter off d, so that clients do not come back all at once.
func jittered(d time.Duration) time.Duration { return d - rand.N(d/4) }
