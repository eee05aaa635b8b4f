package cache

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// Delete removes keys from the cache. If it returns nil, no Get or Fetch that
// starts from then on returns what was loaded before, in any process. If not, the
// error, a [*KeysError], names the keys under which old values may still be there.
//
// Such keys are deleted in the background as soon as Redis can be reached; until
// then this process gets none of the old values (Get returns an error for these
// keys, Fetch calls the loader), while other processes may. 10,000 keys are
// remembered; a view that has more failures is cleared as a whole.
//
// On a Cluster the keys go to their nodes at once, and one that
// fails keeps the others from nothing. It does not end the hold of a DeleteFor.
func (v *View[K, V]) Delete(ctx context.Context, keys ...K) error {
	return v.delete(ctx, 0, keys)
}

// DeleteFor is Delete with a hold: until hold is over, no load of keys is stored,
// whichever process it runs in, and Add stores nothing. Fetch calls its loader
// meanwhile, for one caller or many at once, and Get misses.
//
// It is for deletes after which a loader may still read the old row for a while:
// because it reads from a replica of the database, or because the transaction
// that changes the row has not been committed. hold is the longest that this may
// last; at least 1ms.
//
// A hold ends early only by Set or SetMany, which have the new value to store, and
// by eviction, to which allkeys-lru and allkeys-lfu put it last and volatile-ttl
// first. Of several holds on a key the longest counts.
func (v *View[K, V]) DeleteFor(ctx context.Context, hold time.Duration, keys ...K) error {
	if hold < time.Millisecond {
		return fmt.Errorf("cache: delete: hold is %s, want at least 1ms (Delete is without)", hold)
	}
	return v.delete(ctx, millis(hold), keys)
}

var (
	//go:embed delete.lua
	deleteLua    string
	deleteScript = newScript(deleteLua)
)

// delete removes keys, with a hold in milliseconds if it is not 0.
func (v *View[K, V]) delete(ctx context.Context, hold int64, keys []K) error {
	if err := v.ready(ctx, "delete"); err != nil || len(keys) == 0 {
		return err
	}
	start := time.Now()
	failures := &KeysError[K]{op: "delete", of: len(keys)}
	for rest := keys; len(rest) > 0; {
		part := rest[:min(len(rest), maxPipeline)]
		rest = rest[len(part):]
		v.deletePart(ctx, hold, part, failures)
	}
	v.c.stats.deleteTime.Observe(time.Since(start))
	v.c.stats.deletes.Add(uint64(len(keys) - failures.n))
	return failures.orNil()
}

// deletePart deletes as many keys as fit into a pipeline.
func (v *View[K, V]) deletePart(ctx context.Context, hold int64, keys []K, failures *KeysError[K]) {
	redisKeys := make([]string, len(keys))
	for i, key := range keys {
		redisKeys[i] = joinKey(v.prefix, key)
		v.c.wrote(redisKeys[i])
		defer v.c.wrote(redisKeys[i])
		v.changing(ctx, key, redisKeys[i])
	}
	var until int64
	if hold > 0 {
		until = time.Now().UnixMilli() + hold
	}
	epoch := v.c.rdb.Epoch()
	cmds := v.c.runMany(ctx, deleteScript, redisKeys, func(int) []any { return []any{hold} })
	deleted := redisKeys[:0]
	for i, redisKey := range redisKeys {
		v.forget(keys[i], redisKey)
		if err := cmds[i].Err(); err == nil {
			deleted = append(deleted, redisKey)
		} else {
			v.c.countError(ctx)
			failures.add(keys[i], v.c.subject(redisKey), whoseEnd(ctx, err))
			if !isFinal(err) {
				v.c.owed.add(redisKey, until, v.prefix, v.Clear)
			}
		}
		v.changed(ctx, keys[i], redisKey, 0, nil) // when what is owed is known: a read asks for it after its mark
	}
	v.c.owed.ended(epoch, ending{until: until}, deleted...)
}

// unlinkAll removes all keys of the view, holds excepted.
func (v *View[K, V]) unlinkAll(ctx context.Context) error {
	v.c.wroteAll()
	defer v.c.wroteAll()
	return v.c.rdb.EachPrimary(ctx, func(ctx context.Context, node redis.UniversalClient) error {
		for cursor := uint64(0); ; {
			keys, next, err := node.Scan(ctx, cursor, v.prefix+"*", maxPipeline).Result()
			if err != nil {
				return err
			}
			if len(keys) > 0 {
				for _, cmd := range v.c.runMany(ctx, deleteScript, keys, func(int) []any { return []any{0} }) {
					if err := cmd.Err(); err != nil {
						return err
					}
				}
			}
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	})
}
