//go:build unix

package lock

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// A fault disturbs a scene, in the end not any more.
type fault struct {
	name string
	do   func(random *rand.Rand) error
}

// disturb does all of the faults, with gaps between them, and all of them again
// in another order, until the scene ends.
func (s *scene) disturb(random *rand.Rand, faults []fault, gap time.Duration) {
	for {
		for _, i := range random.Perm(len(faults)) {
			if s.disturbing.Err() != nil {
				return
			}
			from := s.h.now()
			if err := faults[i].do(random); err != nil {
				s.t.Errorf("%s: %v", faults[i].name, err)
				return
			}
			s.mu.Lock()
			s.faults[faults[i].name]++
			s.log = append(s.log, fmt.Sprintf("%s to %s: %s", from, s.h.now(), faults[i].name))
			s.mu.Unlock()
			sleepIn(s.disturbing, between(random, 0, gap))
		}
	}
}

// during notes that all clients, or one, are in trouble while do runs.
func (s *scene) during(client string, do func() error) error {
	from := s.h.now()
	err := do()
	s.h.troubled(client, from, s.h.now())
	return err
}

// losing notes that leases are lost while do runs.
func (s *scene) losing(key string, do func() error) error {
	from := s.h.now()
	err := do()
	s.h.lost(key, from, s.h.now())
	return err
}

// serverFaults are done one after the other.
func (s *scene) serverFaults() []fault {
	ctx := context.Background()
	send := func(args ...any) func(*rand.Rand) error {
		return func(*rand.Rand) error {
			return s.during("", func() error { return s.admin.Do(ctx, args...).Err() })
		}
	}
	restart := func(random *rand.Rand) error {
		return s.during("", func() error {
			s.srv.Kill()
			sleepIn(s.disturbing, between(random, 0, 300*time.Millisecond))
			return s.srv.Restart(ctx)
		})
	}
	faults := []fault{
		{"server killed and restarted", func(random *rand.Rand) error {
			if s.keeps {
				return restart(random)
			}
			return s.losing("", func() error { return restart(random) })
		}},
		{"server stopped for a while", func(random *rand.Rand) error {
			return s.during("", func() error {
				if err := s.srv.Pause(); err != nil {
					return err
				}
				sleepIn(s.disturbing, between(random, 50*time.Millisecond, 1200*time.Millisecond))
				return s.srv.Continue()
			})
		}},
		{"CLIENT KILL TYPE normal", send("CLIENT", "KILL", "TYPE", "normal")},
		{"CLIENT KILL TYPE pubsub", send("CLIENT", "KILL", "TYPE", "pubsub")},
		{"SCRIPT FLUSH", send("SCRIPT", "FLUSH")},
		{"CLIENT PAUSE", func(random *rand.Rand) error {
			return s.during("", func() error {
				d := between(random, 10*time.Millisecond, 500*time.Millisecond)
				err := s.admin.Do(ctx, "CLIENT", "PAUSE", d.Milliseconds(), []string{"ALL", "WRITE"}[random.IntN(2)]).Err()
				sleepIn(s.disturbing, d)
				return err
			})
		}},
		{"counters of tokens deleted", func(*rand.Rand) error { return s.deleted("f", s.keys) }},
		{"queues deleted", func(*rand.Rand) error { return s.deleted("q", s.keys) }},
	}
	if s.keeps {
		return faults
	}
	return append(faults,
		fault{"FLUSHALL", func(*rand.Rand) error {
			return s.losing("", func() error { return s.admin.FlushAll(ctx).Err() })
		}},
		fault{"a lease deleted", func(random *rand.Rand) error {
			key := s.keys[random.IntN(len(s.keys))]
			return s.losing(key, func() error { return s.admin.Del(ctx, leaseKey(key)).Err() })
		}},
	)
}

func leaseKey(key string) string { return "redisha:lock:{" + key + "}" }

func (s *scene) deleted(suffix string, keys []string) error {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = leaseKey(key) + ":" + suffix
	}
	return s.admin.Del(context.Background(), names...).Err()
}

// clientFaults are done one after the other, to clients and child processes taken
// at random.
func (s *scene) clientFaults() []fault {
	aParty := func(do func(*party, *rand.Rand)) func(*rand.Rand) error {
		return func(random *rand.Rand) error {
			p := s.parties[random.IntN(len(s.parties))]
			return s.during(p.name, func() error { do(p, random); return nil })
		}
	}
	aChild := func(do func(*child, *rand.Rand) error) func(*rand.Rand) error {
		return func(random *rand.Rand) error { return do(s.children[random.IntN(len(s.children))], random) }
	}
	a, while := 10*time.Millisecond, 200*time.Millisecond
	return []fault{
		{"replies dropped", aParty(func(p *party, random *rand.Rand) {
			p.proxy.CutReplies(1 + random.IntN(5))
			sleepIn(s.disturbing, between(random, a, while))
			p.proxy.CutReplies(0)
		})},
		{"requests dropped", aParty(func(p *party, random *rand.Rand) {
			p.proxy.CutRequests(1 + random.IntN(5))
			sleepIn(s.disturbing, between(random, a, while))
			p.proxy.CutRequests(0)
		})},
		{"connections cut", aParty(func(p *party, _ *rand.Rand) { p.proxy.Cut() })},
		{"network gone silent", aParty(func(p *party, random *rand.Rand) {
			p.proxy.BlackHole(true)
			p.silent.Store(true)
			sleepIn(s.disturbing, between(random, a, 1500*time.Millisecond))
			p.silent.Store(false)
			p.proxy.BlackHole(false)
		})},
		{"network slow", aParty(func(p *party, random *rand.Rand) {
			p.proxy.Delay(between(random, time.Millisecond, 30*time.Millisecond))
			sleepIn(s.disturbing, between(random, a, while))
			p.proxy.Delay(0)
		})},
		{"clock jumped", aParty(func(p *party, random *rand.Rand) {
			by := between(random, 50*time.Millisecond, 2*time.Second)
			p.shift.Add(int64([]time.Duration{by, -by, time.Hour, -time.Hour}[random.IntN(4)]))
		})},
		{"client closed and another opened", aParty(func(p *party, _ *rand.Rand) {
			_ = p.get().Close() // says what it leaves to its TTL
			p.open()
		})},
		{"holder stopped for longer than its TTL", aChild(func(c *child, random *rand.Rand) error {
			return c.stop(childHolds, between(random, childTTL, childTTL+childTTL/2))
		})},
		{"waiter stopped for a while", aChild(func(c *child, random *rand.Rand) error {
			return c.stop(childWaits, between(random, 10*time.Millisecond, childTTL))
		})},
		{"holder killed", aChild(func(c *child, _ *rand.Rand) error { return c.replace(childHolds) })},
		{"waiter killed", aChild(func(c *child, _ *rand.Rand) error { return c.replace(childWaits) })},
	}
}

// heal undoes what may still disturb.
func (s *scene) heal() {
	for _, p := range s.parties {
		p.proxy.CutReplies(0)
		p.proxy.CutRequests(0)
		p.proxy.BlackHole(false)
		p.proxy.Delay(0)
	}
	_ = s.srv.Continue() // an error says that it does not run, or does
	_ = s.admin.Do(context.Background(), "CLIENT", "UNPAUSE").Err()
}
