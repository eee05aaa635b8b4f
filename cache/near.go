package cache

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"time"
)

// A keyspace is what the views of one prefix share in a client, of whatever types
// they are.
type keyspace struct {
	prefix string
	outage *outage
	locals atomic.Pointer[[]localTier] // copied to be changed
	watch  atomic.Pointer[watch]       // nil before the first read of a view with an L1
}

// A localTier is the L1 of a view.
type localTier interface {
	evict(text string)   // the key of that text
	tagEnds(hash uint64) // what has that tag
	clear()
}

// keyspace returns that of a prefix.
func (c *Client) keyspace(prefix string) *keyspace {
	c.spacesMu.Lock()
	defer c.spacesMu.Unlock()
	s := c.spaces[prefix]
	if s == nil {
		s = &keyspace{prefix: prefix, outage: newOutage(c)}
		c.spaces[prefix] = s
	}
	return s
}

// add adds an L1, which lasts as long as the client.
func (s *keyspace) add(c *Client, l localTier) {
	c.spacesMu.Lock()
	defer c.spacesMu.Unlock()
	var locals []localTier
	if before := s.locals.Load(); before != nil {
		locals = append(locals, *before...)
	}
	locals = append(locals, l)
	s.locals.Store(&locals)
}

// evict removes a key from the L1s.
func (s *keyspace) evict(text string) { s.each(func(l localTier) { l.evict(text) }) }

// each calls f for the L1s.
func (s *keyspace) each(f func(localTier)) {
	if locals := s.locals.Load(); locals != nil {
		for _, l := range *locals {
			f(l)
		}
	}
}

// A visit is a look into the local tiers, and what has to be known to add there
// what they did not have.
type visit[K Key, V any] struct {
	snapshot *snapshot[K, V] // nil: the context has no scope
	changes  uint64
	source   Source // of what was found
	from     origin // of what an L1 may keep
}

// near looks for key in the local tiers. If it returns nil, what is read then can be
// kept by the visit.
func (v *View[K, V]) near(ctx context.Context, key K, visit *visit[K, V]) *kept[V] {
	if s := v.snapshot(ctx); s != nil {
		k, changes := s.find(key)
		if k != nil {
			v.c.stats.scopeHits.Inc()
			visit.source = FromRequest
			return k
		}
		visit.snapshot, visit.changes = s, changes
	}
	if v.local == nil {
		return nil
	}
	k := v.local.find(key)
	if k != nil {
		v.c.stats.localHits.Inc()
		visit.source = FromLocal
		if visit.snapshot != nil {
			visit.snapshot.add(key, k, visit.changes)
		}
	}
	return k
}

// give returns what is kept, as Get does.
func (v *View[K, V]) give(k *kept[V]) (V, error) {
	if k.absent {
		return k.value, ErrNotFound
	}
	return v.copyOf(k.value), nil
}

// giveEntry is give, as FetchEntry does.
func (v *View[K, V]) giveEntry(k *kept[V], visit *visit[K, V]) (Entry[V], error) {
	value, err := v.give(k)
	h := header{stored: k.stored}
	return Entry[V]{Value: value, Source: visit.source, Age: h.age(time.Now())}, err
}

// asking is called before Redis is asked for what the local tiers do not have.
func (v *View[K, V]) asking(ctx context.Context, visit *visit[K, V], key K, redisKey string) {
	if visit != nil && v.local != nil {
		v.local.begin(ctx, key, redisKey, &visit.from)
	}
}

// keep adds to the local tiers what node has sent, if that is an answer.
func (v *View[K, V]) keep(visit *visit[K, V], key K, f found, value *V, node string) {
	if visit == nil || f.state != hit && f.state != absent {
		return
	}
	if v.local == nil {
		v.keepInScope(visit, key, f, value)
		return
	}
	k := v.keepable(f, value)
	v.local.put(key, k, &f, &visit.from, node)
	if visit.snapshot != nil {
		visit.snapshot.add(key, k, visit.changes)
	}
}

// keepInScope adds to the request's scope.
func (v *View[K, V]) keepInScope(visit *visit[K, V], key K, f found, value *V) {
	if visit.snapshot != nil {
		visit.snapshot.add(key, v.keepable(f, value), visit.changes)
	}
}

func (v *View[K, V]) keepable(f found, value *V) *kept[V] {
	k := &kept[V]{absent: f.state == absent, stored: f.head.stored}
	if !k.absent {
		k.value = v.copyOf(*value)
	}
	return k
}

// changing is called before this process changes key, and changed afterwards: no
// local tier has the old value then. It returns what changed wants to know.
func (v *View[K, V]) changing(ctx context.Context, key K, redisKey string) (changes uint64) {
	v.space.evict(redisKey[len(v.prefix):])
	s := v.snapshot(ctx)
	if s == nil {
		return 0
	}
	return v.changeIn(s, key, redisKey)
}

// changed is told what key holds now; nil: nothing, or nobody knows.
func (v *View[K, V]) changed(ctx context.Context, key K, redisKey string, changes uint64, value *V) {
	v.space.evict(redisKey[len(v.prefix):])
	s := v.snapshot(ctx)
	if s == nil {
		return
	}
	since := v.changeIn(s, key, redisKey)
	if value != nil && since == changes+1 { // nothing else was written meanwhile
		s.add(key, &kept[V]{value: v.copyOf(*value)}, since)
	}
}

// clearNear removes the values of the view from the local tiers.
func (v *View[K, V]) clearNear(ctx context.Context) {
	v.space.each(localTier.clear)
	if s, _ := ctx.Value(scopeKey{v.c}).(*scope); s != nil {
		for _, known := range s.list() {
			if known.space == v.space {
				known.snapshot.clear()
			}
		}
	}
}

func (v *View[K, V]) changeIn(s *snapshot[K, V], key K, redisKey string) uint64 {
	for _, other := range s.scope.list() {
		if other.space == v.space && other.snapshot != any(s) {
			other.snapshot.forget(redisKey[len(v.prefix):])
		}
	}
	return s.change(key)
}

// A cloner is a type whose values local tiers can copy.
type cloner[V any] interface{ Clone() V }

// copier returns how values of V are copied: nil if they need not be.
func copier[V any]() (func(V) V, error) {
	t := reflect.TypeFor[V]()
	var value V
	switch _, isBytes := any(value).([]byte); {
	case t.Kind() == reflect.String:
		return nil, nil
	case isBytes:
		return func(v V) V { return any(bytes.Clone(any(v).([]byte))).(V) }, nil
	case t.Implements(reflect.TypeFor[cloner[V]]()):
		nilable := t.Kind() == reflect.Pointer || t.Kind() == reflect.Map || t.Kind() == reflect.Slice || t.Kind() == reflect.Interface
		return func(v V) V {
			if nilable && reflect.ValueOf(&v).Elem().IsNil() {
				return v
			}
			return any(v).(cloner[V]).Clone()
		}, nil
	case reflect.PointerTo(t).Implements(reflect.TypeFor[cloner[V]]()):
		return func(v V) V { return any(&v).(cloner[V]).Clone() }, nil
	}
	return nil, fmt.Errorf("%s has no method Clone() %s, by which ViewConfig.Clone copies: add it, or unset Clone and do not change values", t, t)
}

// copyOf returns a value for whoever may change it.
func (v *View[K, V]) copyOf(value V) V {
	if v.clone == nil {
		return value
	}
	return v.clone(value)
}

// evict removes a key from the L1s.
func (c *Client) evict(redisKey string) {
	rest, _ := strings.CutPrefix(redisKey, c.root)
	name, text, _ := strings.Cut(rest, ":")
	c.spacesMu.Lock()
	s := c.spaces[c.root+name+":"]
	c.spacesMu.Unlock()
	if s != nil {
		s.evict(text)
	}
}
