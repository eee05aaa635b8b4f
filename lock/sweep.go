package lock

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

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

// The sweeper gives up what a failed, cancelled or late attempt may have left, so
// that the lock passes on to who waits: at once, and where the outcome is unknown once more a second later. What
// cannot be deleted while the server is away is tried again until its TTL, after
// which it is gone.
type sweeper struct {
	node   *node
	client *Client
	chore  chore
	limit  time.Duration // within which the server has to answer
	keep   time.Duration // how long is tried at least what is unsettled

	mu   sync.Mutex
	left []*leftover
}

// A leftover is what an attempt may have left under its token: leases, and a
// place in the queue.
type leftover struct {
	keys  keys
	token string
	entry string // "" if it never took a place in the queue
	due   time.Time
	until time.Time // TTLs have ended it by then
	tries outcome
}

// An outcome is how many deletes it takes.
type outcome int

const (
	settled   outcome = 1 // the server has answered: nothing of it is under way
	unsettled outcome = 2
)

func (s *sweeper) init(node *node) {
	s.node, s.client, s.limit = node, node.client, releaseTimeout
	s.chore.do = s.run
}

// add is called by who is inside of the client.
func (s *sweeper) add(r *request, o outcome) {
	s.put(&leftover{keys: r.keys, token: r.token, entry: r.entry, tries: o}, r.ttl)
}

// addEntry is add for the place in the queue of a request that was put there
// late, and may have got the lock meanwhile.
func (s *sweeper) addEntry(r *request, got bool) {
	token := r.token
	if got {
		token = "" // no lease's
	}
	s.put(&leftover{keys: r.keys, token: token, entry: r.entry, tries: settled}, r.ttl)
}

// addGrant gives up the lease that was handed over to a token that nobody waits
// for.
func (s *sweeper) addGrant(lease, token string) {
	s.put(&leftover{keys: keysOf(lease), token: token, tries: settled}, claimTTL)
}

func (s *sweeper) put(o *leftover, ttl time.Duration) {
	now := time.Now()
	if o.entry != "" {
		ttl = max(ttl, queueLife)
	}
	if o.tries > settled {
		ttl = max(ttl, s.keep)
	}
	o.due, o.until = now, now.Add(ttl).Add(sweepAgain) // the sum of the two may be too long
	s.mu.Lock()
	if len(s.left) >= maxSwept {
		s.mu.Unlock()
		return
	}
	s.left = append(s.left, o)
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
	ctx, cancel := context.WithTimeout(s.client.running, s.limit)
	defer cancel()
	pipe := s.node.conn.Pipeline()
	for _, o := range batch {
		passScript.Eval(ctx, pipe, o.keys.all, o.token, o.entry)
	}
	cmds := conn.Exec(ctx, pipe)
	now := time.Now()
	for i, o := range batch {
		if numbers, err := cmds[i].(*redis.Cmd).Int64Slice(); err == nil && len(numbers) == 2 && numbers[1] > 0 {
			s.node.standby.add(o.keys.all, numbers[1])
		}
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
