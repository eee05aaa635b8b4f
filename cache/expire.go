package cache

import (
	"context"
	_ "embed"
)

var (
	//go:embed expire.lua
	expireLua    string
	expireScript = newScript(headerLua + expireLua)
)

// Expire makes the values of keys stale, whatever is left of their TTL: the next
// Fetch refreshes them, as one does within ViewConfig.StaleFor, and the old values
// serve until then, and longer if the source fails. To Get they are misses. A value
// goes when the TTL that it has in Redis is over, which Expire leaves as it is.
//
// What is being loaded meanwhile is not stored, in whatever process, since it may be
// as old as the value. Cached absences go at once, and so do the errors of loads. A
// plain view's value is for redis-cli and other programs a miss from then on: a
// header is before it.
//
// If the error, a [*KeysError], is not nil, the keys that it names may not be
// expired. Delete is for values that must not be used any more.
func (v *View[K, V]) Expire(ctx context.Context, keys ...K) error {
	if err := v.ready(ctx, "expire"); err != nil || len(keys) == 0 {
		return err
	}
	var head []byte
	if v.cfg.Plain {
		head = appendHeader(nil, kindValue, header{flags: flagPlain, softExpiry: 1})
	}
	failures := &KeysError[K]{op: "expire", of: len(keys)}
	for rest := keys; len(rest) > 0; {
		part := rest[:min(len(rest), maxPipeline)]
		rest = rest[len(part):]
		v.expirePart(ctx, head, part, failures)
	}
	return failures.orNil()
}

func (v *View[K, V]) expirePart(ctx context.Context, head []byte, keys []K, failures *KeysError[K]) {
	redisKeys := make([]string, len(keys))
	for i, key := range keys {
		redisKeys[i] = joinKey(v.prefix, key)
		v.c.wrote(redisKeys[i])
		defer v.c.wrote(redisKeys[i])
		v.changing(ctx, key, redisKeys[i])
	}
	args := []any{head, millis(v.cfg.TTL)}
	for i, cmd := range v.c.runMany(ctx, expireScript, redisKeys, func(int) []any { return args }) {
		v.forget(keys[i], redisKeys[i])
		v.changed(ctx, keys[i], redisKeys[i], 0, nil)
		n, err := cmd.Int()
		if err != nil {
			v.c.countError(ctx)
			failures.add(keys[i], v.c.subject(redisKeys[i]), whoseEnd(ctx, err))
			continue
		}
		v.c.stats.expires.Add(uint64(n)) //nolint:gosec // 0 or 1
	}
}
