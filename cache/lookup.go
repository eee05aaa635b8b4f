package cache

import (
	"context"
	"errors"
	"time"
)

// An Entry is a value with what is known of it. A loader of [View.FetchEntry] sets
// Value, TTL and Tags; what FetchEntry and [View.Lookup] return has Value, Source,
// Age and Stale.
type Entry[V any] struct {
	Value V

	// TTL is how long the value is to be kept, less up to a tenth; beside
	// [ErrNotFound], how long the absence is. 0: ViewConfig.TTL, or AbsentTTL.
	// Negative: it is not stored.
	TTL time.Duration

	// Tags are what [View.InvalidateTags] ends the value by, or the absence. The view
	// must have ViewConfig.Tags. They are not stored by name, and so not returned.
	Tags []string

	// Source is where the value came from.
	Source Source

	// Age is how long ago the value was stored, by the clocks of who stored it and
	// who reads it; 0 if that is unknown, as in a plain view, or for what a request
	// scope has of a write or a load.
	Age time.Duration

	// Stale says that the value's TTL is over, or that [View.Expire] has ended it:
	// it serves until it is refreshed, for ViewConfig.StaleFor.
	Stale bool
}

// A Source is where a value came from.
type Source uint8

const (
	FromLoader Source = iota // from the load of this call, or one that it shared
	FromRedis
	FromRequest // the request scope of the context
	FromLocal   // the process' own copies (ViewConfig.LocalEntries)
)

// String returns "loader", "redis", "request" or "local".
func (s Source) String() string {
	switch s {
	case FromLoader:
		return "loader"
	case FromRedis:
		return "redis"
	case FromRequest:
		return "request"
	case FromLocal:
		return "local"
	default:
		return "unknown"
	}
}

// FetchEntry is Fetch for a loader that says how long its value is to be kept, and its
// tags, and tells where the value came from. Beside ErrNotFound, the loader's TTL and tags are
// those of the absence.
func (v *View[K, V]) FetchEntry(ctx context.Context, key K, load func(context.Context, K) (Entry[V], error)) (Entry[V], error) {
	if load == nil {
		return v.fetch(ctx, key, nil)
	}
	return v.fetch(ctx, key, entryLoader[K, V](load))
}

// Lookup is Get with what is known of the value, and returns stale ones too.
func (v *View[K, V]) Lookup(ctx context.Context, key K) (Entry[V], error) {
	if err := v.ready(ctx, "lookup"); err != nil {
		return Entry[V]{}, err
	}
	var visit visit[K, V]
	if k := v.near(ctx, key, &visit); k != nil {
		return v.giveEntry(k, &visit)
	}
	redisKey := joinKey(v.prefix, key)
	var value V
	f := v.read(ctx, key, redisKey, &value, nil, &visit)
	if err := v.verdict("lookup", redisKey, f); err != nil && f.state != stale {
		return Entry[V]{}, err
	}
	return entryOf(value, f), nil
}

// entryOf is a value that was found in Redis.
func entryOf[V any](value V, f found) Entry[V] {
	return Entry[V]{Value: value, Source: FromRedis, Age: f.head.age(time.Now()), Stale: f.state == stale}
}

// A loader is what the program gave to load a value.
type loader[K Key, V any] interface {
	load(ctx context.Context, key K) (Entry[V], error)
}

type valueLoader[K Key, V any] func(context.Context, K) (V, error)

func (load valueLoader[K, V]) load(ctx context.Context, key K) (Entry[V], error) {
	value, err := load(ctx, key)
	return Entry[V]{Value: value}, err
}

type entryLoader[K Key, V any] func(context.Context, K) (Entry[V], error)

func (load entryLoader[K, V]) load(ctx context.Context, key K) (Entry[V], error) {
	return load(ctx, key)
}

var errNilLoad = errors.New("nil load function: pass what reads the source")

var errNilChange = errors.New("nil change function: pass what makes the new value of the old one")
