package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/redisha/redisha/internal/bench/children"
	"github.com/redisha/redisha/internal/bench/harness"
)

const (
	goneWork    = "a waiter's process is gone"
	stoppedWork = "a waiter's process is stopped"
	diesWork    = "a holder dies"

	// trialKeys is how many locks one process waits for or holds.
	trialKeys = 5

	// kills is how many processes are killed in a turn.
	kills = 4

	// queueUp is how long a waiter is given to get to its place.
	queueUp = 60 * time.Millisecond

	// queueLimit is how long that may take where it can be seen.
	queueLimit = 10 * time.Second

	// claimTTL is how long a lock is reserved for a waiter that does not answer.
	claimTTL = 2 * time.Second

	// servedLimit is how long the next is waited for, whatever happens.
	servedLimit = 5 * time.Second

	// shortTTL is that of a lock whose holder dies.
	shortTTL = time.Second
)

var servedWorst = harness.Quantity{Name: "next served, worst"}

// mishaps has waiters and holders end, or stop, that nobody told of it.
func (b *bench) mishaps(ctx context.Context) error {
	if !b.Wants(goneWork, stoppedWork, diesWork) {
		return nil
	}
	b.Setting("Mishaps: a process of its own waits for %d locks before anybody else does; it is killed (%d times a turn) or stopped (SIGSTOP) while another process holds them, who then releases one after the other. "+
		"Next served: from the call of release to the return of the acquisition that waited behind it. A holder dies: a process is killed that holds %d locks (TTL %s); from the end of the key as PEXPIRETIME tells it, of which Redis knows milliseconds. %s: not within that time.",
		trialKeys, kills, trialKeys, shortTTL, servedLimit)
	for _, w := range []struct {
		work  string
		limit time.Duration
		trial func(ctx context.Context, s side) ([]time.Duration, error)
	}{
		{goneWork, 5 * time.Millisecond, b.killWaiters},
		{stoppedWork, claimTTL + 50*time.Millisecond, b.stopWaiter},
		{diesWork, 50 * time.Millisecond, b.killHolder},
	} {
		c := harness.Comparison{
			Work: w.work, Quantity: servedWorst, Cold: true, Whole: true,
			Targets: []harness.Target{{Contender: ours, Limit: harness.AtMost(float64(w.limit), harness.Worst)}},
		}
		for _, s := range sides {
			c.Contenders = append(c.Contenders, harness.Contender{Name: s.name, Run: func(ctx context.Context, m *harness.B) error {
				ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("nobody was served within %s", patience))
				defer cancel()
				served, err := w.trial(ctx, s)
				if err != nil {
					return withCause(ctx, err)
				}
				m.Record(servedWorst, float64(slices.Max(served)))
				m.Record(harness.P50, quantile(served, 0.5))
				return nil
			}})
		}
		if err := b.Compare(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// A scene is where a trial plays: a holder, a process that meets with a mishap,
// and who waits behind it.
type scene struct {
	side     side
	keys     []string
	holder   locker
	follower locker
	held     []held
	process  *children.Process
	waiting  sync.WaitGroup
	giveUp   context.CancelFunc // of the follower
	served   []arrival
}

// An arrival is what became of the wait for a key.
type arrival struct {
	at   time.Time
	done chan struct{}
	err  error
}

var sceneCount int

func (b *bench) newScene(s side, ttl time.Duration) (sc *scene, err error) {
	sceneCount++
	sc = &scene{side: s, served: make([]arrival, trialKeys), giveUp: func() {}}
	for i := range trialKeys {
		sc.keys = append(sc.keys, fmt.Sprintf("mishap-%d-%d", sceneCount, i))
		sc.served[i].done = make(chan struct{})
	}
	o := settings{addr: b.server.Addr(), ttl: ttl}
	if sc.holder, err = s.open(o); err != nil {
		return sc, err
	}
	sc.follower, err = s.open(o)
	return sc, err
}

// end ends the process and what was opened.
func (sc *scene) end() error {
	if sc.process != nil {
		sc.process.Kill()
	}
	sc.giveUp()
	sc.waiting.Wait()
	return errors.Join(sc.holder.end(), sc.follower.end())
}

// hold has the holder take all keys.
func (sc *scene) hold(ctx context.Context) error {
	for _, key := range sc.keys {
		h, err := sc.holder.try(ctx, key)
		if err != nil {
			return err
		}
		sc.held = append(sc.held, h)
	}
	return nil
}

// follow has the follower wait for all keys.
func (sc *scene) follow(ctx context.Context) {
	ctx, sc.giveUp = context.WithCancel(ctx)
	for i, key := range sc.keys {
		sc.waiting.Go(func() {
			a := &sc.served[i]
			defer close(a.done)
			h, err := sc.follower.acquire(ctx, key)
			a.at = time.Now()
			if a.err = err; err == nil {
				a.err = h.Release(ctx)
			}
		})
	}
}

// stage lets a process wait for all keys, and the follower behind it.
func (b *bench) stage(ctx context.Context, sc *scene) (err error) {
	if err := sc.hold(ctx); err != nil {
		return err
	}
	o := order{Side: sc.side.name, Addr: b.server.Addr(), TTL: ttl, Keys: sc.keys}
	if sc.process, err = startChild(ctx, o); err != nil {
		return err
	}
	if err := b.queued(ctx, sc, 1); err != nil {
		return err
	}
	sc.follow(ctx)
	return b.queued(ctx, sc, 2)
}

// queued waits until so many wait for each key, which only our own queue tells.
func (b *bench) queued(ctx context.Context, sc *scene, n int64) error {
	time.Sleep(queueUp)
	if sc.side.name != ours {
		return nil
	}
	for _, key := range sc.keys {
		for end := time.Now().Add(queueLimit); ; time.Sleep(time.Millisecond) {
			got, err := b.monitor.LLen(ctx, sc.side.key(key)+":q").Result()
			if err != nil {
				return err
			}
			if got == n {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("%d wait for %s, want %d", got, key, n)
			}
		}
	}
	return nil
}

// release has the holder release key i, and returns how long the follower then
// took.
func (sc *scene) release(ctx context.Context, i int) (time.Duration, error) {
	began := time.Now()
	if err := sc.held[i].Release(ctx); err != nil {
		return 0, err
	}
	return sc.await(i, began)
}

// await returns how long after since the follower got key i.
func (sc *scene) await(i int, since time.Time) (time.Duration, error) {
	a := &sc.served[i]
	select {
	case <-a.done:
		return a.at.Sub(since), a.err
	case <-time.After(time.Until(since.Add(servedLimit))):
		return servedLimit, nil
	}
}

// killWaiters kills processes that wait first in line, and releases what they
// wait for a moment later.
func (b *bench) killWaiters(ctx context.Context, s side) (served []time.Duration, err error) {
	n := kills
	if b.Quick {
		n = 1
	}
	for range n {
		some, err := b.killWaiter(ctx, s)
		if err != nil {
			return nil, err
		}
		served = append(served, some...)
	}
	return served, nil
}

func (b *bench) killWaiter(ctx context.Context, s side) (served []time.Duration, err error) {
	sc, err := b.newScene(s, ttl)
	defer func() { err = errors.Join(err, sc.end()) }()
	if err != nil {
		return nil, err
	}
	if err := b.stage(ctx, sc); err != nil {
		return nil, err
	}
	sc.process.Kill()
	if rand.IntN(2) == 0 { // else the server learns of it at the same time
		time.Sleep(rand.N(5 * time.Millisecond))
	}
	for i := range sc.keys {
		took, err := sc.release(ctx, i)
		if err != nil {
			return nil, err
		}
		served = append(served, took)
	}
	return served, nil
}

// stopWaiter stops a process that waits first in line.
func (b *bench) stopWaiter(ctx context.Context, s side) (served []time.Duration, err error) {
	sc, err := b.newScene(s, ttl)
	defer func() { err = errors.Join(err, sc.end()) }()
	if err != nil {
		return nil, err
	}
	if err := b.stage(ctx, sc); err != nil {
		return nil, err
	}
	if err := sc.process.Stop(); err != nil {
		return nil, err
	}
	began := make([]time.Time, len(sc.keys))
	for i := range sc.keys { // all at about the same time, since each may take long
		began[i] = time.Now()
		if err := sc.held[i].Release(ctx); err != nil {
			return nil, err
		}
		time.Sleep(5 * time.Millisecond)
	}
	for i := range sc.keys {
		took, err := sc.await(i, began[i])
		if err != nil {
			return nil, err
		}
		served = append(served, took)
	}
	return served, nil
}

// errEnded says that a key was gone before its holder was killed.
var errEnded = errors.New("a key has ended before its holder died")

// killHolder kills a process that holds all keys while the follower waits. On a
// busy machine it may take several tries.
func (b *bench) killHolder(ctx context.Context, s side) (served []time.Duration, err error) {
	for {
		served, err = b.tryKillHolder(ctx, s)
		if !errors.Is(err, errEnded) || ctx.Err() != nil {
			return served, err
		}
	}
}

func (b *bench) tryKillHolder(ctx context.Context, s side) (served []time.Duration, err error) {
	sc, err := b.newScene(s, shortTTL)
	defer func() { err = errors.Join(err, sc.end()) }()
	if err != nil {
		return nil, err
	}
	o := order{Side: s.name, Addr: b.server.Addr(), TTL: shortTTL, Keys: sc.keys, Hold: true}
	if sc.process, err = startChild(ctx, o); err != nil {
		return nil, err
	}
	sc.follow(ctx)
	if err := b.queued(ctx, sc, 1); err != nil {
		return nil, err
	}
	sc.process.Kill()
	ends := make([]time.Time, len(sc.keys))
	for i, key := range sc.keys {
		at, err := b.monitor.PExpireTime(ctx, s.key(key)).Result()
		if err != nil {
			return nil, err
		}
		if at <= 0 {
			return nil, fmt.Errorf("%w: %s", errEnded, key)
		}
		ends[i] = time.UnixMilli(at.Milliseconds())
	}
	for i := range sc.keys {
		took, err := sc.await(i, ends[i])
		if err != nil {
			return nil, err
		}
		served = append(served, took)
	}
	return served, nil
}
