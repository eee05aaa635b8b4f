package cache

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"iter"

	"github.com/redis/go-redis/v9"
)

// A Map keeps short-lived state that processes share and that cannot be loaded from
// elsewhere: the state of OpenID and SAML flows, OAuth callbacks, login tokens, who
// listens for push messages. Unlike a [View] it never loads, is read from the primary,
// keeps each value for the whole of its TTL, and fails when Redis does. Use it with a server that does not
// evict. It is safe for concurrent use.
//
// A value is one string, <namespace>:map:<name>:<key>: exactly what the codec makes of
// it. A key has 1 to 8192 bytes; errors and logs do not name it, since it may be a secret. A failover
// may lose what was written last, a Take included.
//
// Where a reply was lost, errors.Is finds redisha.ErrOutcomeUnknown in the error of Add,
// Update and Take: it may have happened.
type Map[K Key, V any] struct{ values[V] }

// NewMap returns the map of c with that name, which is a part of the keys: letters,
// digits, "_" and "-". Maps of one name share their entries, and should be defined
// alike. A wrong definition is an error of each use.
func NewMap[K Key, V any](c *Client, name string, cfg MapConfig) *Map[K, V] {
	return &Map[K, V]{newValues[V](c, "map", name, cfg)}
}

// Get returns the value of key, or [ErrMiss].
func (m *Map[K, V]) Get(ctx context.Context, key K) (V, error) {
	value, _, err := m.get(ctx, "get", joinKey(m.prefix, key))
	return value, err
}

// get also returns what the value is in Redis.
func (m *Map[K, V]) get(ctx context.Context, op, redisKey string) (value V, held []byte, err error) {
	if err := m.keyed(ctx, op, redisKey); err != nil {
		return value, nil, err
	}
	if held, err = m.read(ctx, op, redisKey); err != nil {
		return value, nil, err
	}
	if held == nil || !m.decode(held, &value) {
		return value, nil, ErrMiss
	}
	return value, held, nil
}

// Set stores value under key, in place of whatever is there, for MapConfig.TTL unless
// [TTL] says otherwise.
func (m *Map[K, V]) Set(ctx context.Context, key K, value V, opts ...SetOption) error {
	_, err := m.set(ctx, "set", "", key, value, opts)
	return err
}

// Add is Set for a key that has no value, and reports whether it stored this one. Of
// several that Add one key, one does: an identifier that must not be used
// twice, as that of a SAML assertion, is added once.
func (m *Map[K, V]) Add(ctx context.Context, key K, value V, opts ...SetOption) (added bool, err error) {
	return m.set(ctx, "add", "nx", key, value, opts)
}

func (m *Map[K, V]) set(ctx context.Context, op, mode string, key K, value V, opts []SetOption) (bool, error) {
	redisKey := joinKey(m.prefix, key)
	if err := m.keyed(ctx, op, redisKey); err != nil {
		return false, err
	}
	stored, ms, err := m.encode(&value, opts)
	if err != nil {
		return false, m.failed(op, err)
	}
	words := []any{"set", redisKey, stored, "px", cmp.Or(ms, m.ttl)}
	if mode != "" {
		words = append(words, mode)
	}
	switch err := m.c.rdb.Do(ctx, words...).Err(); {
	case errors.Is(err, redis.Nil):
		return false, nil
	case err != nil:
		return false, m.undone(ctx, op, err)
	}
	return true, nil
}

var (
	//go:embed update.lua
	updateLua    string
	updateScript = onceScript(updateLua) // executed again, it finds its own value
)

// maxUpdates is how often an Update begins again: each time another one has succeeded.
const maxUpdates = 100

// Update replaces the value of key by what change makes of it, and returns that; or
// [ErrMiss] if there is none. What others write meanwhile is not lost: change is called
// again, with what they wrote. If it returns an error, nothing is stored, and Update
// returns that error. The value keeps its TTL, unless [TTL] gives another.
//
// Of several that wait for a login to be approved, one approves it:
//
//	flows.Update(ctx, code, func(f Flow) (Flow, error) {
//		if f.User != "" {
//			return f, errTaken
//		}
//		f.User = user
//		return f, nil
//	})
func (m *Map[K, V]) Update(ctx context.Context, key K, change func(V) (V, error), opts ...SetOption) (V, error) {
	var zero V
	redisKey := joinKey(m.prefix, key)
	if change == nil {
		return zero, m.failed("update", errNilChange)
	}
	for range maxUpdates {
		value, held, err := m.get(ctx, "update", redisKey)
		if err != nil {
			return zero, err
		}
		if value, err = change(value); err != nil {
			return zero, err
		}
		stored, ms, err := m.encode(&value, opts)
		if err != nil {
			return zero, m.failed("update", err)
		}
		ttl := any("")
		if ms > 0 {
			ttl = ms
		}
		n, err := m.c.run(ctx, updateScript, redisKey, stored, shaOf(held), ttl).Int()
		switch {
		case err != nil:
			return zero, m.undone(ctx, "update", err)
		case n == 1:
			return value, nil
		}
	}
	return zero, m.failed("update", fmt.Errorf("others have changed the value %d times meanwhile: try again", maxUpdates))
}

// Take returns the value of key and removes it, or returns [ErrMiss]. Of several that Take
// a value one gets it: what may be used once is taken. It is never given twice by one server, and after an
// error it may be gone.
func (m *Map[K, V]) Take(ctx context.Context, key K) (V, error) {
	var value V
	redisKey := joinKey(m.prefix, key)
	if err := m.keyed(ctx, "take", redisKey); err != nil {
		return value, err
	}
	held, err := m.c.rdb.GetDel(ctx, redisKey).Bytes()
	switch {
	case errors.Is(err, redis.Nil):
		return value, ErrMiss
	case err != nil:
		return value, m.undone(ctx, "take", err)
	case !m.decode(held, &value):
		return value, ErrMiss
	}
	return value, nil
}

// Delete removes key, if it is there.
func (m *Map[K, V]) Delete(ctx context.Context, key K) error {
	redisKey := joinKey(m.prefix, key)
	if err := m.keyed(ctx, "delete", redisKey); err != nil {
		return err
	}
	if err := m.c.rdb.Unlink(ctx, redisKey).Err(); err != nil {
		return m.undone(ctx, "delete", err)
	}
	return nil
}

// A MapEntry is an entry of a [Map].
type MapEntry[K Key, V any] struct {
	Key   K
	Value V
}

// All goes through the entries, in no order. Those that are made, moved or removed
// meanwhile may be missed, and an entry may come twice. It goes through all keys of the
// server, of a Cluster's servers one after the other. It ends after an error.
func (m *Map[K, V]) All(ctx context.Context) iter.Seq2[MapEntry[K, V], error] {
	return func(yield func(MapEntry[K, V], error) bool) {
		if err := m.ready(ctx, "all"); err != nil {
			yield(MapEntry[K, V]{}, err)
			return
		}
		err := m.scan(ctx, func(text string, held []byte) bool {
			var e MapEntry[K, V]
			var ok bool
			if e.Key, ok = parseKey[K](text); !ok || !m.decode(held, &e.Value) {
				return true
			}
			return yield(e, nil)
		})
		if err != nil {
			yield(MapEntry[K, V]{}, m.undone(ctx, "all", err))
		}
	}
}
