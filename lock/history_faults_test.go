//go:build unix

package lock

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/redistest"
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

// serverFaults are done one after the other, each to a server taken at random, but
// for those that lose data: they are done to all.
func (s *scene) serverFaults() []fault {
	ctx := context.Background()
	one := func(random *rand.Rand) int { return random.IntN(s.nodes) }
	send := func(args ...any) func(*rand.Rand) error {
		return func(random *rand.Rand) error {
			return s.during("", func() error { return s.admins[one(random)].Do(ctx, args...).Err() })
		}
	}
	toAll := func(do func(admin *redis.Client) error) error {
		for _, admin := range s.admins {
			if err := do(admin); err != nil {
				return err
			}
		}
		return nil
	}
	var restarts []time.Duration
	faults := []fault{
		{"server killed and restarted", func(random *rand.Rand) error {
			now := s.h.now()
			restarts = slices.DeleteFunc(restarts, func(at time.Duration) bool { return at < now-2*quorumTTL })
			if s.quorum() && len(restarts) >= (s.nodes-1)/2 {
				return nil // more have lost their data than may
			}
			restarts = append(restarts, now)
			restart := func() error {
				srv := s.servers[one(random)]
				srv.Kill()
				sleepIn(s.disturbing, between(random, 0, 300*time.Millisecond))
				return srv.Restart(ctx)
			}
			return s.during("", func() error {
				if s.keeps || s.quorum() {
					return restart()
				}
				return s.losing("", restart)
			})
		}},
		{"server stopped for a while", func(random *rand.Rand) error {
			return s.during("", func() error {
				srv := s.servers[one(random)]
				if err := srv.Pause(); err != nil {
					return err
				}
				sleepIn(s.disturbing, between(random, 50*time.Millisecond, 1200*time.Millisecond))
				return srv.Continue()
			})
		}},
		{"CLIENT KILL TYPE normal", send("CLIENT", "KILL", "TYPE", "normal")},
		{"CLIENT KILL TYPE pubsub", send("CLIENT", "KILL", "TYPE", "pubsub")},
		{"SCRIPT FLUSH", send("SCRIPT", "FLUSH")},
		{"CLIENT PAUSE", func(random *rand.Rand) error {
			return s.during("", func() error {
				d := between(random, 10*time.Millisecond, 500*time.Millisecond)
				err := s.admins[one(random)].Do(ctx, "CLIENT", "PAUSE", d.Milliseconds(), []string{"ALL", "WRITE"}[random.IntN(2)]).Err()
				sleepIn(s.disturbing, d)
				return err
			})
		}},
		{"counters of tokens deleted", func(random *rand.Rand) error {
			if !s.quorum() {
				return s.deleted(s.admins[0], "f")
			}
			for _, i := range random.Perm(s.nodes)[:(s.nodes-1)/2] { // each majority keeps some
				if err := s.deleted(s.admins[i], "f"); err != nil {
					return err
				}
			}
			return nil
		}},
		{"queues deleted", func(*rand.Rand) error {
			return toAll(func(admin *redis.Client) error { return s.deleted(admin, "q") })
		}},
	}
	if s.keeps {
		return faults
	}
	return append(faults,
		fault{"FLUSHALL", func(*rand.Rand) error {
			return s.losing("", func() error {
				return toAll(func(admin *redis.Client) error { return admin.FlushAll(ctx).Err() })
			})
		}},
		fault{"a lease deleted", func(random *rand.Rand) error {
			key := s.keys[random.IntN(len(s.keys))]
			return s.losing(key, func() error {
				return toAll(func(admin *redis.Client) error { return admin.Del(ctx, leaseKeyOf(key)).Err() })
			})
		}},
	)
}

func (s *scene) deleted(admin *redis.Client, suffix string) error {
	var names []string
	for _, key := range s.keys {
		names = append(names, leaseKeyOf(key)+":"+suffix)
	}
	return admin.Del(context.Background(), names...).Err()
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
	aProxy := func(do func(*redistest.Proxy, *rand.Rand)) func(*rand.Rand) error {
		return aParty(func(p *party, random *rand.Rand) { do(p.proxies[random.IntN(s.nodes)], random) })
	}
	aChild := func(do func(*child, *rand.Rand) error) func(*rand.Rand) error {
		return func(random *rand.Rand) error { return do(s.children[random.IntN(len(s.children))], random) }
	}
	a, while := 10*time.Millisecond, 200*time.Millisecond
	return []fault{
		{"replies dropped", aProxy(func(p *redistest.Proxy, random *rand.Rand) {
			p.CutReplies(1 + random.IntN(5))
			sleepIn(s.disturbing, between(random, a, while))
			p.CutReplies(0)
		})},
		{"requests dropped", aProxy(func(p *redistest.Proxy, random *rand.Rand) {
			p.CutRequests(1 + random.IntN(5))
			sleepIn(s.disturbing, between(random, a, while))
			p.CutRequests(0)
		})},
		{"connections cut", aProxy(func(p *redistest.Proxy, _ *rand.Rand) { p.Cut() })},
		{"network gone silent", aParty(func(p *party, random *rand.Rand) {
			p.silence(true)
			sleepIn(s.disturbing, between(random, a, 1500*time.Millisecond))
			p.silence(false)
		})},
		{"network slow", aProxy(func(p *redistest.Proxy, random *rand.Rand) {
			p.Delay(between(random, time.Millisecond, 30*time.Millisecond))
			sleepIn(s.disturbing, between(random, a, while))
			p.Delay(0)
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
			return c.stop(childHolds, between(random, s.childTTL(), s.childTTL()+s.childTTL()/2))
		})},
		{"waiter stopped for a while", aChild(func(c *child, random *rand.Rand) error {
			return c.stop(childWaits, between(random, 10*time.Millisecond, s.childTTL()))
		})},
		{"holder killed", aChild(func(c *child, _ *rand.Rand) error { return c.replace(childHolds) })},
		{"waiter killed", aChild(func(c *child, _ *rand.Rand) error { return c.replace(childWaits) })},
	}
}

// heal undoes what may still disturb.
func (s *scene) heal() {
	for _, p := range s.parties {
		p.silence(false)
		for _, proxy := range p.proxies {
			proxy.CutReplies(0)
			proxy.CutRequests(0)
			proxy.Delay(0)
		}
	}
	for i, srv := range s.servers {
		_ = srv.Continue() // an error says that it does not run
		_ = s.admins[i].Do(context.Background(), "CLIENT", "UNPAUSE").Err()
	}
}

// silence lets nothing pass between a party and all servers.
func (p *party) silence(on bool) {
	p.silent.Store(on)
	for _, proxy := range p.proxies {
		proxy.BlackHole(on)
	}
}
