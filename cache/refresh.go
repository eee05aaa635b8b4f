package cache

import (
	"context"
	"errors"
	"time"
)

// refreshPause is for how long nobody refreshes a value again after a load that
// failed.
const refreshPause = 30 * time.Second

// maxRefreshes is how many refreshes a client runs at once. Who finds a stale value
// beyond that leaves it to a later caller.
const maxRefreshes = 64

// fresher returns what a Fetch gets that has read a stale value: that one at once,
// while it is refreshed in the background, or, with SoftLoadTimeout, the fresh one
// if it comes in time.
func (v *View[K, V]) fresher(ctx context.Context, key K, redisKey string, load loader[K, V], value V, f found, visit *visit[K, V]) (Entry[V], error) {
	old := entryOf(value, f)
	fl, steps, isNew := v.refresh(ctx, key, redisKey, load, f)
	if fl == nil || v.cfg.SoftLoadTimeout <= 0 {
		return old, nil
	}
	timeout := time.NewTimer(v.cfg.SoftLoadTimeout)
	defer timeout.Stop()
	select {
	case <-fl.done:
	case <-timeout.C:
		v.c.stats.softTimeouts.Inc()
		return old, nil
	case <-ctx.Done():
		return old, nil
	}
	if failed := fl.res.err != nil && !errors.Is(fl.res.err, ErrNotFound); failed || steps >= fl.res.step {
		return old, nil
	}
	return v.take(fl, key, redisKey, isNew, visit)
}

// refresh returns the flight that refreshes the stale value f, and how many steps it
// had taken; nil if nobody in this process does, since another one does, a load has
// just failed, or too many run. One flight for a key runs in a process.
func (v *View[K, V]) refresh(ctx context.Context, key K, redisKey string, load loader[K, V], f found) (fl *flight[V], steps int, isNew bool) {
	if f.head.isRefreshed(time.Now(), max(v.leaseTTL(), refreshPause)+time.Second) {
		fl, steps = v.flights.peek(key)
		return fl, steps, false
	}
	select {
	case v.c.refreshes <- struct{}{}:
	default:
		v.c.stats.refreshesRefused.Inc()
		return nil, 0, false
	}
	free := func() { <-v.c.refreshes }
	fl, steps, isNew = v.flights.join(key, true)
	if !isNew {
		free()
		return fl, steps, false
	}
	v.fly(ctx, fl, key, redisKey, load, func(s *search[K, V]) result[V] {
		return s.renew(f)
	}, free)
	return fl, 0, true
}

// errNotRefreshed is of a flight that brought nothing, and that nobody shares.
var errNotRefreshed = errors.New("refreshed by another one")

// renew loads in place of the stale value f, if nobody else does.
func (s *search[K, V]) renew(f found) result[V] {
	v := s.view
	if v.c.owed.check(v.prefix, s.redisKey) != nil {
		return result[V]{err: errNotRefreshed}
	}
	s.lease = newLease()
	s.refreshes, s.head = true, &f.head
	v.flights.step(s.flight)
	began, err := v.c.refresh(s.ctx, s.redisKey, s.lease, &f.head, v.leaseTTL())
	switch {
	case err != nil:
		v.c.countError(s.ctx)
		s.giveBack()
	case began > 0:
		v.c.stats.refreshes.Inc()
		return s.loadLeased(began)
	}
	return result[V]{err: errNotRefreshed}
}
