package lock

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/redisha/redisha/internal/conn"
)

const (
	// sweepAgain is the pause before the second delete of a key: the attempt
	// that the first one followed may still be under way.
	sweepAgain = time.Second

	// maxSwept bounds what is remembered for deletion. What does not fit is left
	// to its TTL.
	maxSwept = 10_000
)

// The sweeper deletes the keys that a failed, cancelled or late attempt may have
// left: at once, and where the outcome is unknown once more a second later. What
// cannot be deleted while the server is away is tried again until its TTL, after
// which it is gone.
type sweeper struct {
	client *Client
	chore  chore

	mu   sync.Mutex
	left []*leftover
}

// A leftover is the key of an attempt, as far as it holds the attempt's token.
type leftover struct {
	key, token string
	due        time.Time
	until      time.Time // its TTL has ended it by then
	tries      outcome
}

// An outcome is how many deletes it takes.
type outcome int

const (
	settled   outcome = 1 // the server has answered: nothing of it is under way
	unsettled outcome = 2
)

func (s *sweeper) init(c *Client) {
	s.client = c
	s.chore.do = s.run
}

// add is called by who is inside of the client.
func (s *sweeper) add(r request, o outcome) {
	now := time.Now()
	s.mu.Lock()
	if len(s.left) >= maxSwept {
		s.mu.Unlock()
		return
	}
	s.left = append(s.left, &leftover{key: r.keys.lease, token: r.token, due: now, until: now.Add(r.ttl + sweepAgain), tries: o})
	s.mu.Unlock()
	s.client.stay()
	s.chore.plan(now)
}

// run deletes what is due and returns when the next is.
func (s *sweeper) run() (next time.Time) {
	for batch := range slices.Chunk(s.takeDue(), batchSize) {
		s.sweep(batch)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.left {
		if next.IsZero() || o.due.Before(next) {
			next = o.due
		}
	}
	return next
}

func (s *sweeper) takeDue() (due []*leftover) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.left = slices.DeleteFunc(s.left, func(o *leftover) bool {
		if o.due.After(now) {
			return false
		}
		due = append(due, o)
		return true
	})
	return due
}

func (s *sweeper) sweep(batch []*leftover) {
	ctx, cancel := context.WithTimeout(s.client.running, releaseTimeout)
	defer cancel()
	pipe := s.client.conn.Pipeline()
	for _, o := range batch {
		pipe.Eval(ctx, discardLua, []string{o.key}, o.token)
	}
	cmds := conn.Exec(ctx, pipe)
	now := time.Now()
	for i, o := range batch {
		if cmds[i].Err() == nil || s.client.closing.Err() != nil {
			o.tries--
		}
		if o.tries <= 0 || now.After(o.until) {
			s.client.leave()
			continue
		}
		o.due = now.Add(sweepAgain)
		s.mu.Lock()
		s.left = append(s.left, o)
		s.mu.Unlock()
	}
}
