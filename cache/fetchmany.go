package cache

import (
	"context"
	"fmt"
	"time"

	"github.com/redisha/redisha/internal/conn"
)

// FetchMany is [View.Fetch] for several keys. It returns the values by key, without
// those of which there are none; equal keys count once. load gets the keys that have
// to be loaded, each once, and returns what it has of them. What it leaves out is
// cached as absent. If it returns an error as well, that is the error of the keys
// that it left out, unless it is [ErrNotFound].
//
// All that Fetch promises holds for each of the keys: one load in all processes, no
// value from before a Delete, and so on. So load does not get those that others are
// loading already: their values are waited for, and a Fetch of a key that load gets
// waits for this one. load gets 1,000 keys at the most at a time. It is called again,
// with some of the keys, if another's load comes to nothing, and by a call of its own
// for keys that Redis could not be asked for; such calls may run at the same time.
//
// What fails for some keys keeps others from nothing: the error is a [*KeysError],
// and the values of the others are returned beside it. On a Cluster all nodes are
// asked at once. The caller owns the map and the values.
func (v *View[K, V]) FetchMany(ctx context.Context, keys []K, load func(ctx context.Context, missing []K) (map[K]V, error)) (map[K]V, error) {
	if err := v.ready(ctx, "fetch"); err != nil {
		return nil, err
	}
	if load == nil {
		return nil, fmt.Errorf("cache: fetch: %w", errNilLoad)
	}
	f := &fetching[K, V]{view: v, ctx: ctx, load: load, values: make(map[K]V, len(keys))}
	due := f.begin(keys)
	for joins := 0; len(due) > 0; joins++ {
		f.read(due)
		var again []*wanted[K, V]
		for missing := f.sort(due); len(missing) > 0; {
			part := missing[:min(len(missing), maxPipeline)]
			missing = missing[len(part):]
			if over := conn.Ended(f.ctx); over != nil { // nobody wants more loads
				for _, w := range part {
					f.fail(w, over)
				}
				continue
			}
			again = append(again, f.fly(part, joins < maxJoins)...)
		}
		due = again
	}
	return f.values, f.failures.orNil()
}

// A fetching is a call of FetchMany.
type fetching[K Key, V any] struct {
	view     *View[K, V]
	ctx      context.Context
	load     func(context.Context, []K) (map[K]V, error)
	values   map[K]V
	failures *KeysError[K]
}

// A wanted key is one of which the call has nothing yet.
type wanted[K Key, V any] struct {
	key      K
	redisKey string
	visit    visit[K, V]
	found    found
	value    V // that was found
	flight   *flight[V]
	steps    int
	isNew    bool
}

// begin returns the keys that the local tiers do not have, each once.
func (f *fetching[K, V]) begin(keys []K) (due []*wanted[K, V]) {
	v := f.view
	all := make([]wanted[K, V], 0, len(keys))
	for _, key := range keys {
		n := len(f.values)
		var zero V
		if f.values[key] = zero; len(f.values) > n {
			all = append(all, wanted[K, V]{key: key})
		}
	}
	clear(f.values)
	f.failures = &KeysError[K]{op: "fetch", of: len(all)}
	due = make([]*wanted[K, V], 0, len(all))
	for i := range all {
		w := &all[i]
		switch k := v.near(f.ctx, w.key, &w.visit); {
		case k == nil:
			w.redisKey = joinKey(v.prefix, w.key)
			due = append(due, w)
		case !k.absent:
			f.values[w.key] = v.copyOf(k.value)
		}
	}
	return due
}

// read asks Redis for what is due.
func (f *fetching[K, V]) read(due []*wanted[K, V]) {
	v, start := f.view, time.Now()
	redisKeys := make([]string, len(due))
	for i, w := range due {
		redisKeys[i] = w.redisKey
		v.asking(f.ctx, &w.visit, w.key, w.redisKey)
	}
	reads, known := v.readMany(f.ctx, redisKeys)
	took, answered := time.Since(start), false
	for i, w := range due {
		if err := reads[i].Err; err != nil {
			w.found = v.recall(f.ctx, w.redisKey, &w.value, nil, v.c.unread(f.ctx, err, took))
			continue
		}
		answered = true
		node := reads[i].Node()
		w.found = v.judge(f.ctx, w.redisKey, reads[i].Value, &w.value, nil, known)
		v.keep(&w.visit, w.key, w.found, &w.value, node)
		if w.found.state == unread {
			w.found = v.recall(f.ctx, w.redisKey, &w.value, nil, v.c.unread(f.ctx, w.found.err, took))
			continue
		}
	}
	if answered {
		v.c.stats.getTime.Observe(time.Since(start))
	}
}

// sort takes what was found and returns what has to be loaded.
func (f *fetching[K, V]) sort(due []*wanted[K, V]) []*wanted[K, V] {
	missing := due[:0]
	var old []*wanted[K, V]
	for _, w := range due {
		switch s := w.found.state; {
		case s == hit, s == stale:
			f.values[w.key] = w.value
			if s == stale {
				old = append(old, w)
			}
		case s == absent:
		case s == refused, s == unread && conn.Ended(f.ctx) != nil:
			f.fail(w, w.found.err)
		default:
			missing = append(missing, w)
		}
	}
	f.refresh(old)
	return missing
}

// refresh has stale values refreshed in the background, together.
func (f *fetching[K, V]) refresh(old []*wanted[K, V]) {
	seats := f.view.seats(f.ctx, len(old), f.load)
	for i, w := range old {
		if _, _, isNew := f.view.refresh(f.ctx, w.key, w.redisKey, &seats[i], w.found); !isNew {
			seats[i].waits()
		}
	}
}

func (f *fetching[K, V]) fail(w *wanted[K, V], err error) {
	f.failures.add(w.key, f.view.c.subject(w.redisKey), err)
}

// fly has keys loaded, or waits for those that others load. It returns those for
// which that was in vain.
func (f *fetching[K, V]) fly(due []*wanted[K, V], join bool) (again []*wanted[K, V]) {
	v, news := f.view, 0
	for _, w := range due {
		w.flight, w.steps, w.isNew = &flight[V]{done: make(chan struct{})}, 0, true
		if join {
			w.flight, w.steps, w.isNew = v.flights.join(w.key, false)
		}
		if w.isNew {
			news++
		} else {
			v.c.stats.joined.Inc()
		}
	}
	seats := v.seats(f.ctx, news, f.load)
	for _, w := range due {
		if w.isNew {
			first := w.found
			v.fly(f.ctx, w.flight, w.key, w.redisKey, &seats[0], func(s *search[K, V]) result[V] { return s.find(first) }, func() {})
			seats = seats[1:]
		}
	}
	for _, w := range due {
		select {
		case <-w.flight.done:
		case <-f.ctx.Done():
			select {
			case <-w.flight.done: // while another key took all the time
			default:
				f.fail(w, context.Cause(f.ctx))
				continue
			}
		}
		if w.steps >= w.flight.res.step {
			again = append(again, w)
			continue
		}
		f.take(w)
	}
	return again
}

// take takes the result of a flight that has ended.
func (f *fetching[K, V]) take(w *wanted[K, V]) {
	if err := w.flight.res.err; err != nil && err != ErrNotFound { //nolint:errorlint // it is set bare
		f.fail(w, err)
		return
	}
	switch e, err := f.view.take(w.flight, w.key, w.redisKey, w.isNew, &w.visit); err {
	case nil:
		f.values[w.key] = e.Value
	case ErrNotFound: //nolint:errorlint // it is set bare
	default:
		f.fail(w, err)
	}
}
