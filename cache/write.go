package cache

import (
	"context"
	_ "embed"
	"time"

	"github.com/redis/go-redis/v9"
)

// Set stores value under key, for ViewConfig.TTL unless an option says
// otherwise, in place of whatever is there, the hold of a DeleteFor included. It
// refuses a value above
// ViewConfig.MaxValueBytes. A load of the key that runs meanwhile, in whatever
// process, is not stored. After an error the value may be stored or not.
func (v *View[K, V]) Set(ctx context.Context, key K, value V, opts ...SetOption) error {
	_, err := v.store(ctx, "set", key, value, opts, func(redisKey string, stored []byte, ms int64) (bool, error) {
		return true, v.c.rdb.Set(ctx, redisKey, stored, time.Duration(ms)*time.Millisecond).Err()
	})
	return err
}

// Add is Set for a key that has no value, and reports whether it stored this
// one. Of several that Add one key at the same time, one does. An absence is no
// value, nor is a load under way, whose value is not stored then.
//
// After an error the value may be stored or not, so that an Add which is tried
// again may report false though the value is its own. Redis does not look
// into a value that has a header: one that Get cannot decode is one.
func (v *View[K, V]) Add(ctx context.Context, key K, value V, opts ...SetOption) (added bool, err error) {
	return v.writeIf(ctx, "add", 0, key, value, opts)
}

// Replace is Set for a key that has a value, by the rules of Add, and reports
// whether it stored this one. It brings nothing back that was deleted, and stores
// nothing where a load is under way.
func (v *View[K, V]) Replace(ctx context.Context, key K, value V, opts ...SetOption) (replaced bool, err error) {
	return v.writeIf(ctx, "replace", 1, key, value, opts)
}

var (
	//go:embed setif.lua
	setIfLua    string
	setIfScript = redis.NewScript(setIfLua) // executed again, it replies otherwise
)

func (v *View[K, V]) writeIf(ctx context.Context, op string, there int, key K, value V, opts []SetOption) (bool, error) {
	return v.store(ctx, op, key, value, opts, func(redisKey string, stored []byte, ms int64) (bool, error) {
		kind, dead := 0, ""
		switch {
		case v.cfg.Plain:
			kind = 1
		case v.cfg.Tags:
			kind = 2
		}
		if v.cfg.Tags { // whose generations a script cannot read
			held, err := v.c.poll(ctx, redisKey)
			if err != nil {
				return false, err
			}
			var was V
			f := v.decode(ctx, redisKey, held, &was, v.cfg.Codec, nil)
			if f.state == unread {
				return false, f.err
			}
			dead = f.sha
		}
		n, err := setIfScript.Run(ctx, v.c.rdb, []string{redisKey}, stored, ms, there, kind, time.Now().UnixMilli(), dead).Int()
		return n == 1, err
	})
}

// store has a value stored by send, which reports whether it is.
func (v *View[K, V]) store(ctx context.Context, op string, key K, value V, opts []SetOption,
	send func(redisKey string, stored []byte, ms int64) (bool, error),
) (done bool, err error) {
	if err := v.ready(ctx, op); err != nil {
		return false, err
	}
	start := time.Now()
	redisKey := joinKey(v.prefix, key)
	ttl, tags, err := v.options(opts)
	if err != nil {
		return false, v.failed(op, redisKey, err)
	}
	h, px := v.header(ttl, 0)
	if v.cfg.Tags {
		g, _, err := v.current(ctx, tags, px, 0)
		if err != nil {
			v.c.countError(ctx)
			return false, v.failed(op, redisKey, whoseEnd(ctx, err))
		}
		h.generation, h.tags = g.view, g.tags
	}
	_, stored, err := v.encode(&value, h)
	if err != nil {
		return false, v.failed(op, redisKey, err)
	}
	v.c.wrote(redisKey)
	defer v.c.wrote(redisKey)
	owed := v.c.owed.mark()
	changes := v.changing(ctx, key, redisKey)
	done, err = send(redisKey, stored, px)
	v.forget(key, redisKey)
	var is *V
	if done && err == nil {
		is = &value
	}
	v.changed(ctx, key, redisKey, changes, is)
	v.c.stats.setTime.Observe(time.Since(start))
	if err != nil {
		v.c.countError(ctx)
		return false, v.failed(op, redisKey, whoseEnd(ctx, err))
	}
	if done {
		v.c.owed.settle(redisKey, owed)
		v.c.stats.sets.Inc()
	}
	return done, nil
}

// forget is called when key has been written, or may have been: nobody who comes
// later gets what was loaded before.
func (v *View[K, V]) forget(key K, redisKey string) {
	v.flights.forget(key)
	v.outage.forget(redisKey)
}
