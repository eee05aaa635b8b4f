package lock

import (
	"context"
	"time"

	"github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"
)

// A reading is of a server's clock: it showed a time at an instant that was not
// before what was sent.
type reading struct {
	server int64 // µs since the epoch; 0: there is none
	sent   time.Time
	skew   time.Duration // of our clocks at that instant
	epoch  uint64        // of the connection
}

// reading begins one, before what is sent.
func (s *node) reading() reading {
	return reading{skew: s.client.clock.skew(), epoch: s.conn.Epoch(), sent: time.Now()}
}

// when returns an instant of ours that is not after that of the server's time at,
// if its clock and ours differ by 1 % at the most.
func (r reading) when(at int64) time.Time {
	since := time.Duration(at-r.server) * time.Microsecond
	return r.sent.Add(since - (since / 99).Abs())
}

// take returns the lease that a message has brought, which give.lua has made.
// It returns nil if there is none, or if there is no telling for how long it lives
// yet, or not for long: an attempt then makes it anew.
//
// The lease began when the server says so, which a reading of its clock, made while
// we waited, turns into an instant of our own. If that lies ahead of us, a clock
// was set; if it lies before its time, the lease ends early here.
func (w *waiter) take(ctx, parent context.Context) *Lease {
	if w == nil || w.call.fence <= 0 || w.heard.server == 0 || ended(ctx) != nil {
		return nil
	}
	s, heard := w.line.node, w.heard
	c := s.client
	life := min(w.ttl, claimTTL)
	since := heard.when(w.call.at)
	switch passed := time.Since(since); {
	case passed < 0, passed > life/2,
		heard.epoch != s.conn.Epoch(),
		c.clock.jumped(heard.skew, margin(life)),
		!s.watch.clear.Load() || s.watch.barred.Load():
		return nil
	}
	s.watch.used.Store(true)
	w.hold(c.label, w.call.at/1000)
	held, err := redislock.New(sentAlready{}).ObtainMulti(ctx, w.keys.leases, w.ttl,
		&redislock.Options{Token: w.token, Metadata: w.value[tokenLen:]})
	if err != nil {
		return nil
	}
	held.Client = s.locker
	l := newLease(parent, c, w.request, []*redislock.Lock{held}, w.call.fence, life, since, heard.skew)
	if l.start() != nil {
		return nil // it was given back
	}
	return l
}

// observe notes how long the hand-over took, after which the lease is held.
func (w *waiter) observe() {
	if w == nil || w.call.at == 0 || w.heard.server == 0 {
		return
	}
	w.line.node.client.counts.handOver.Observe(max(time.Since(w.heard.when(w.call.at)), 0))
}

// sentAlready is what redislock obtains a lease through that give.lua has made.
type sentAlready struct{ redis.Scripter }

func (sentAlready) EvalSha(context.Context, string, []string, ...any) *redis.Cmd {
	return worked
}
