package lock

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

// A standby sees to locks that this client has handed over: who got the lease may be
// in a process that is stopped. When the life is over that the lease was made with,
// the lock is handed on, unless it was renewed or released meanwhile.
type standby struct {
	node  *node
	chore chore

	mu    sync.Mutex
	locks map[string]handedOver // by the first lease, or all keys of several; of each the last hand-over
}

type handedOver struct {
	keys []string
	due  time.Time
}

func (s *standby) init(n *node) {
	s.node, s.locks = n, make(map[string]handedOver)
	s.chore.do = s.run
}

// add notes a hand-over, after which the lease lives for so many milliseconds.
func (s *standby) add(keys []string, life int64) {
	due := time.Now().Add(time.Duration(life)*time.Millisecond + 2*time.Millisecond)
	s.mu.Lock()
	name := keys[0]
	if len(keys) > 3 { // of several locks
		name = strings.Join(keys, "\x00")
	}
	_, there := s.locks[name]
	if there || len(s.locks) < maxSwept { // else those who wait look themselves, a little later
		s.locks[name] = handedOver{keys, due}
	}
	s.mu.Unlock()
	if !there {
		s.chore.plan(due)
	}
}

// run wakes those who wait for what is due, and returns when to do so again.
func (s *standby) run() (next time.Time) {
	var due []handedOver
	now := time.Now()
	s.mu.Lock()
	for lease, h := range s.locks {
		if h.due.After(now) {
			next = soonest(next, h.due)
		} else if len(due) < batchSize {
			due = append(due, h)
			delete(s.locks, lease)
		} else {
			next = now
		}
	}
	s.mu.Unlock()
	if len(due) > 0 {
		s.wake(due)
	}
	return next
}

func soonest(a, b time.Time) time.Time {
	if a.IsZero() {
		return b
	}
	return earlier(a, b)
}

// wake asks once: while the server is away, those who wait ask themselves.
func (s *standby) wake(due []handedOver) {
	ctx, cancel := context.WithTimeout(s.node.client.running, releaseTimeout)
	defer cancel()
	slices.SortFunc(due, func(a, b handedOver) int { return a.due.Compare(b.due) })
	pipe := s.node.conn.Pipeline()
	cmds := make([]*redis.Cmd, len(due))
	for i, h := range due {
		cmds[i] = wakeScript.Eval(ctx, pipe, h.keys)
	}
	conn.Exec(ctx, pipe)
	for i, h := range due {
		if life, err := cmds[i].Int64(); err == nil && life > 0 {
			s.add(h.keys, life)
		}
	}
}
