package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// A search is what a flight does.
type search[K Key, V any] struct {
	view      *View[K, V]
	flight    *flight[V]
	key       K
	redisKey  string
	loader    loader[K, V]
	ctx       context.Context // of the flight: it outlives the callers
	seat      *seat[K, V]     // nil: the loader serves no other search
	lease     []byte
	refreshes bool    // the lease stands in the header of a stale value,
	head      *header // which is this one
	keeps     bool    // what is loaded past Redis, which could not be read
}

// fly starts the goroutine of a flight, which is to find a result, and calls after
// when it is over. Client.Close ends it and waits for it.
func (v *View[K, V]) fly(ctx context.Context, fl *flight[V], key K, redisKey string, load loader[K, V], find func(*search[K, V]) result[V], after func()) {
	s := &search[K, V]{view: v, flight: fl, key: key, redisKey: redisKey, loader: load}
	s.seat, _ = load.(*seat[K, V])
	if !v.c.running.begin() {
		after()
		s.land(result[V]{step: anyStep, err: ErrClosed})
		return
	}
	var cancel context.CancelCauseFunc
	s.ctx, cancel = context.WithCancelCause(context.WithoutCancel(v.c.unscoped(ctx)))
	unlink := context.AfterFunc(v.c.ctx, func() { cancel(ErrClosed) })
	go func() {
		defer v.c.running.done()
		defer cancel(nil)
		defer unlink()
		defer after()
		res := result[V]{step: anyStep, err: errGoexit}
		defer func() {
			if r := recover(); r != nil {
				res = result[V]{step: anyStep, err: v.panicked(s.ctx, redisKey, r)}
			}
			s.land(res)
		}()
		res = find(s)
	}()
}

// land ends the flight with res.
func (s *search[K, V]) land(res result[V]) {
	s.waits()
	s.view.flights.close(s.key, s.flight)
	s.flight.res = res
	close(s.flight.done)
}

// waits is called before the search waits for something that may take long: others
// that share its loader go on without it.
func (s *search[K, V]) waits() {
	if s.seat != nil {
		s.seat.waits()
	}
}

const (
	minPoll  = 2 * time.Millisecond
	maxPoll  = 50 * time.Millisecond
	maxKills = 3 // how many different dead values a flight tries to replace
)

// find takes the load lease and loads, or waits for what another holder of the
// lease loads. It starts from the read of the caller that began the flight.
func (s *search[K, V]) find(first found) result[V] {
	v := s.view
	if first.state == unread {
		s.keeps = true
		return s.loadPast(first.err)
	}
	if err := v.c.owed.check(v.prefix, s.redisKey); err != nil {
		return s.loadPast(err)
	}
	s.lease = newLease()
	ttl := v.leaseTTL()
	giveUp := time.Now().Add(ttl)
	sha, kills, pause := first.sha, 0, time.Duration(0)
	for {
		var (
			step  = v.flights.step(s.flight)
			began uint64
			held  []byte
			err   error
		)
		if pause > 0 {
			if err := v.c.owed.check(v.prefix, s.redisKey); err != nil { // by now
				return s.loadPast(err)
			}
			held, err = v.c.poll(s.ctx, s.redisKey)
		} else {
			held, began, err = v.c.acquire(s.ctx, s.redisKey, s.lease, ttl, sha)
		}
		switch {
		case err != nil:
			v.c.countError(s.ctx)
			if pause == 0 {
				defer s.giveBack()
			}
			return s.loadPast(err)
		case began > 0:
			v.c.stats.leasesTaken.Inc()
			return s.loadLeased(began)
		}
		var value V
		switch f := v.decode(s.ctx, s.redisKey, held, &value, v.cfg.Codec, nil); f.state {
		case hit, stale:
			return result[V]{step: step, entry: entryOf(value, f), body: f.body, stored: f.state == hit}
		case absent:
			return result[V]{step: step, err: ErrNotFound, stored: true}
		case unread:
			return s.loadPast(f.err)
		case refused:
			return result[V]{step: step, err: f.err}
		case buried:
			return s.loadPast(nil)
		case missing:
			pause = 0
		case dead:
			if kills++; kills > maxKills {
				return s.loadPast(nil)
			}
			sha, pause = f.sha, 0
		case leased:
			if pause == 0 {
				v.c.stats.leaseWaits.Inc()
			}
			s.waits()
			pause = min(max(pause*8/5, minPoll), maxPoll)
			if !time.Now().Before(giveUp) {
				return s.loadPast(nil)
			}
			if err := sleep(s.ctx, pause/2+rand.N(pause)); err != nil {
				return result[V]{step: anyStep, err: err}
			}
		}
	}
}

// loadLeased loads under the lease and stores the value, if nobody has deleted
// or set the key since. began is the server's time in µs when the lease was taken.
func (s *search[K, V]) loadLeased(began uint64) result[V] {
	v, n := s.view, &s.view.c.stats
	step := v.flights.step(s.flight)
	out := s.call(func() {})
	// From here on nobody joins: who comes after a Delete that FILL does not
	// see must not get what was loaded before it.
	v.flights.close(s.key, s.flight)
	var (
		valid = true
		held  bool
		err   error
	)
	if v.cfg.Tags && out.isAnswer() {
		valid, err = s.stamp(&out, began)
	}
	if err == nil {
		held, err = s.settle(&out)
	}
	switch {
	case err != nil:
		v.c.countError(s.ctx)
		v.c.warn(s.ctx, &v.c.warnedFill, "loaded value not stored", s.redisKey, err)
		s.giveBack()
	case !held && out.stored != nil:
		n.fillsRefused.Inc()
	}
	if valid && held || !out.isAnswer() {
		step = anyStep
	}
	return result[V]{step: step, entry: Entry[V]{Value: out.value}, body: out.body, err: out.err, stored: held && out.stored != nil}
}

// stamp writes the generations which the outcome of a load names into what is to be
// stored. If one of them was raised meanwhile, the outcome may be from before: then it
// is replaced by that of another load, once. It reports whether nobody who has joined
// came after a Clear or an InvalidateTags that the load could not know; else, and if
// the second load is outdated too, there is nothing to store. Nor is there after an
// error: Redis did not say.
func (s *search[K, V]) stamp(out *outcome[V], began uint64) (valid bool, err error) {
	v := s.view
	for {
		g, outdated, err := s.generations(out, began)
		if err != nil {
			return valid, err
		}
		if !outdated {
			if out.stored != nil {
				g.stamp(out.stored)
			}
			return true, nil
		}
		v.c.stats.loadsOutdated.Inc()
		if !valid {
			if began = s.begin(); began > 0 {
				valid = true // nobody joins any more
				if *out = s.call(func() {}); out.isAnswer() {
					continue
				}
				return true, nil
			}
		}
		out.stored = nil
		return valid, nil
	}
}

// generations are those that the outcome of a load names, as View.current has them,
// for which it waits no longer than FILL does.
func (s *search[K, V]) generations(out *outcome[V], began uint64) (g generations, outdated bool, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.view.c.leaseSlack())
	defer cancel()
	return s.view.current(ctx, out.tags, out.px, began)
}

// begin returns the server's time in µs if the search still holds its lease, which
// then lives as long again; else 0.
func (s *search[K, V]) begin() uint64 {
	v := s.view
	if s.refreshes {
		began, _ := v.c.refresh(s.ctx, s.redisKey, s.lease, s.head, v.leaseTTL())
		return began
	}
	_, began, _ := v.c.acquire(s.ctx, s.redisKey, s.lease, v.leaseTTL(), "")
	return began
}

// settle puts what a load under the lease came to into the place of the lease, and
// reports whether it was still there.
func (s *search[K, V]) settle(out *outcome[V]) (held bool, err error) {
	v := s.view
	switch {
	case out.stored != nil:
		return v.c.fill(s.ctx, s.redisKey, s.lease, out.stored, out.px)
	case out.isAnswer():
		return v.c.release(s.ctx, s.redisKey, s.lease, -1)
	case errors.Is(out.err, ErrClosed): // which says nothing of the source
		return v.c.release(s.ctx, s.redisKey, s.lease, 0)
	case s.refreshes:
		return v.c.release(s.ctx, s.redisKey, s.lease, refreshPause)
	case v.cfg.ErrorTTL < 0:
		return v.c.release(s.ctx, s.redisKey, s.lease, 0)
	}
	marker := appendEntry(nil, entry{kind: kindError, body: []byte(out.err.Error())})
	return v.c.fill(s.ctx, s.redisKey, s.lease, marker, millis(v.cfg.ErrorTTL))
}

// loadPast loads without storing the value, since Redis gave the error cause,
// or, if that is nil, since nothing may be stored. One such load runs for a key
// at a time. Who comes after it has begun waits for the next one: there is no
// FILL that would notice a Delete in between.
func (s *search[K, V]) loadPast(cause error) result[V] {
	v, c := s.view, s.view.c
	if cause != nil && isFinal(cause) {
		return result[V]{step: anyStep, err: cause}
	}
	if err := v.flights.enter(s.ctx, s.key, s.waits); err != nil {
		return result[V]{step: anyStep, err: err}
	}
	defer v.flights.leave(s.key)
	leave := func() {}
	if s.seat != nil { // its loader sees to that, for all keys together
		s.seat.past, s.seat.cause = true, cause
	} else {
		var err error
		if leave, err = c.fallback(s.ctx, v.cfg.LoadTimeout, s.redisKey, cause); err != nil {
			return result[V]{step: anyStep, err: err}
		}
	}
	v.flights.close(s.key, s.flight)
	var kept *keptLoad
	if s.keeps {
		kept = v.outage.begin(s.redisKey)
	}
	out := s.call(leave)
	if s.keeps {
		v.outage.end(s.redisKey, kept, out.body, out.keepFor())
	}
	return result[V]{step: anyStep, entry: Entry[V]{Value: out.value}, body: out.body, err: out.err}
}

// fallback takes a place for a load that does without Redis, because of cause if that
// is not nil. It waits for one until timeout at most.
func (c *Client) fallback(ctx context.Context, timeout time.Duration, redisKey string, cause error) (leave func(), err error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case c.fallbacks <- struct{}{}:
	case <-timer.C:
		c.stats.fallbacksRefused.Inc()
		err := fmt.Errorf("%d loads without the cache run already (Config.MaxFallbacks)", c.cfg.MaxFallbacks)
		if cause != nil {
			err = fmt.Errorf("%w, because of: %w", err, cause)
		}
		return nil, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if cause != nil {
		c.stats.fallbacks.Inc()
		c.warn(ctx, &c.warnedFallback, "cache not usable, loading without it", redisKey, cause)
	}
	c.stats.fallbacksRunning.Add(1)
	return func() {
		c.stats.fallbacksRunning.Add(-1)
		<-c.fallbacks
	}, nil
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// giveBack releases, in the background, a lease that may have been left behind
// with nobody to work under it: the reply to ACQUIRE or FILL was lost, or FILL
// was refused. It would keep others waiting until it expires. While Redis is
// away, as in a failover, it tries again for as long as the lease may live.
func (s *search[K, V]) giveBack() {
	c := s.view.c
	c.running.more()
	go func() {
		defer c.running.done()
		expired := time.Now().Add(s.view.leaseTTL())
		for pause := minGiveBack; time.Now().Before(expired); pause = min(2*pause, maxGiveBack) {
			if _, err := c.release(s.ctx, s.redisKey, s.lease, 0); err == nil || isFinal(err) || sleep(c.ctx, pause) != nil {
				return
			}
		}
	}()
}

// Pauses between attempts to release a lease.
const (
	minGiveBack = 50 * time.Millisecond
	maxGiveBack = time.Second
)
