package cache

import (
	"context"
	"fmt"

	"github.com/redisha/redisha/internal/conn"
)

// Fetch returns the value of key, calling load if the cache does not have it.
//
// Concurrent calls for a key share one load, in this process and, as long as
// the load lease lives, in all others. It runs detached, in a goroutine of its
// own whose context has the values of the caller that began it and ends at
// ViewConfig.LoadTimeout: a caller that gives up returns at once, and neither
// ends the load nor fails the others. A panic or runtime.Goexit in load is an
// error for all its callers. load must not Fetch the same key.
//
// If load returns [ErrNotFound], alone or wrapped, Fetch returns ErrNotFound and
// the absence is cached. Any other error goes to all its callers.
//
// The caller owns the value: the caller that began the load gets what load
// returned, each other one a copy of its own, decoded from the stored bytes. A
// value above ViewConfig.MaxValueBytes is returned and not stored.
//
// A value whose TTL is over is returned at once while ViewConfig.StaleFor lasts,
// and one caller refreshes it in the background; see there. After a load that
// failed, other callers get its error for ViewConfig.ErrorTTL, as an [ErrLoadFailed].
//
// If Redis cannot be asked, Fetch calls load all the same, once for all callers
// of a key in this process that wait, and for Config.MaxFallbacks keys at once.
// What it returns then serves the Gets and Fetches of the process for two seconds,
// or until the process writes the key or Redis answers again.
// It fails only if the client is closed or its role is not configured.
func (v *View[K, V]) Fetch(ctx context.Context, key K, load func(context.Context, K) (V, error)) (V, error) {
	var l loader[K, V]
	if load != nil {
		l = valueLoader[K, V](load)
	}
	e, err := v.fetch(ctx, key, l)
	return e.Value, err
}

func (v *View[K, V]) fetch(ctx context.Context, key K, load loader[K, V]) (Entry[V], error) {
	if err := v.ready(ctx, "fetch"); err != nil {
		return Entry[V]{}, err
	}
	if load == nil {
		return Entry[V]{}, v.failed("fetch", joinKey(v.prefix, key), errNilLoad)
	}
	var visit visit[K, V]
	if k := v.near(ctx, key, &visit); k != nil {
		return v.giveEntry(k, &visit)
	}
	redisKey := joinKey(v.prefix, key)
	if v.flights.isYoung(key, v.c.patience()) {
		// A stampede: whoever comes later joins without a read of its own, so
		// that a thousand callers do not queue for connections. A flight that
		// has lasted for longer than a read would is not waited for: the value
		// may be there meanwhile.
		return v.miss(ctx, key, redisKey, load, found{state: unasked}, &visit)
	}
	var value V
	f := v.read(ctx, key, redisKey, &value, nil, &visit)
	switch f.state {
	case hit:
		return entryOf(value, f), nil
	case stale:
		return v.fresher(ctx, key, redisKey, load, value, f, &visit)
	}
	return v.miss(ctx, key, redisKey, load, f, &visit)
}

// maxJoins is how often a caller joins a flight in vain, since something was
// deleted at the wrong moment each time, before it takes one of its own.
const maxJoins = 3

// miss returns the value of key after a read that found f and no value.
func (v *View[K, V]) miss(ctx context.Context, key K, redisKey string, load loader[K, V], f found, visit *visit[K, V]) (Entry[V], error) {
	var zero Entry[V]
	var value V
	for joins := 0; ; joins++ {
		switch f.state {
		case hit:
			return entryOf(value, f), nil
		case stale:
			return v.fresher(ctx, key, redisKey, load, value, f, visit)
		case absent:
			return zero, ErrNotFound
		case refused:
			return zero, v.failed("fetch", redisKey, f.err)
		case unread:
			if conn.Ended(ctx) != nil {
				return zero, v.failed("fetch", redisKey, f.err)
			}
		}
		fl, steps, isNew := &flight[V]{done: make(chan struct{})}, 0, true
		if joins < maxJoins {
			fl, steps, isNew = v.flights.join(key, false)
		}
		if isNew {
			v.fly(ctx, fl, key, redisKey, load, func(s *search[K, V]) result[V] { return s.find(f) }, func() {})
		} else {
			v.c.stats.joined.Inc()
		}
		select {
		case <-fl.done:
		case <-ctx.Done():
			return zero, v.failed("fetch", redisKey, context.Cause(ctx))
		}
		mine := steps < fl.res.step
		if mine && (fl.res.err == nil || f.state != unasked) {
			return v.take(fl, key, redisKey, isNew, visit)
		}
		f = v.read(ctx, key, redisKey, &value, nil, visit)
		if mine && f.state != hit && f.state != stale {
			return v.take(fl, key, redisKey, isNew, visit) // the failure of the load, since Redis has no value either
		}
	}
}

// take returns the result of a flight that has ended. What is in Redis as well is
// kept in the request's scope.
func (v *View[K, V]) take(fl *flight[V], key K, redisKey string, own bool, visit *visit[K, V]) (Entry[V], error) {
	e, err := v.resultOf(fl, redisKey, own)
	if fl.res.stored {
		switch err {
		case nil:
			v.keepInScope(visit, key, found{state: hit}, &e.Value)
		case ErrNotFound: //nolint:errorlint // it is set bare
			v.keepInScope(visit, key, found{state: absent}, &e.Value)
		}
	}
	return e, err
}

func (v *View[K, V]) resultOf(fl *flight[V], redisKey string, own bool) (Entry[V], error) {
	switch err := fl.res.err; {
	case err == ErrNotFound: //nolint:errorlint // it is set bare
		return Entry[V]{}, err
	case err != nil:
		return Entry[V]{}, v.failed("fetch", redisKey, err)
	case own:
		return fl.res.entry, nil
	}
	var value V
	if err := v.cfg.Codec.Decode(fl.res.body, &value); err != nil {
		return Entry[V]{}, v.failed("fetch", redisKey, fmt.Errorf("decode what was just encoded: %w", err))
	}
	e := fl.res.entry
	e.Value = value
	return e, nil
}
