package cache

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/coalesce"
	"github.com/redisha/redisha/internal/conn"
)

// A Result is what [View.GetMany] has for one of its keys.
type Result[V any] struct {
	Value V     // zero unless Err is nil
	Err   error // as Get returns it: nil, ErrMiss, ErrNotFound, or why Redis could not be asked
}

// GetMany is Get for several keys. It returns a result for each, in the order of
// keys; equal ones have a value each. On a Cluster all nodes are asked at once,
// and one that fails keeps the others from nothing. Config.ReadTimeout bounds all
// of it. The caller owns the values.
func (v *View[K, V]) GetMany(ctx context.Context, keys []K) []Result[V] {
	results := make([]Result[V], len(keys))
	if err := v.ready(ctx, "get"); err != nil {
		for i := range results {
			results[i].Err = err
		}
		return results
	}
	if len(keys) == 0 {
		return results
	}
	visits := make([]visit[K, V], len(keys))
	redisKeys := make([]string, 0, len(keys))
	due := make([]int, 0, len(keys)) // indexes of what the local tiers do not have
	for i, key := range keys {
		if k := v.near(ctx, key, &visits[i]); k != nil {
			results[i].Value, results[i].Err = v.give(k)
			continue
		}
		redisKey := joinKey(v.prefix, key)
		v.asking(ctx, &visits[i], key, redisKey)
		redisKeys, due = append(redisKeys, redisKey), append(due, i)
	}
	if len(due) == 0 {
		return results
	}
	start := time.Now()
	reads, known := v.readMany(ctx, redisKeys)
	took := time.Since(start)
	answered := false
	for n, i := range due {
		result, redisKey := &results[i], redisKeys[n]
		if err := reads[n].Err; err != nil {
			f := v.recall(ctx, redisKey, &result.Value, nil, v.c.unread(ctx, err, took))
			result.Err = v.verdict("get", redisKey, f)
			continue
		}
		answered = true
		node := reads[n].Node()
		f := v.judge(ctx, redisKey, reads[n].Value, &result.Value, nil, known)
		v.keep(&visits[i], keys[i], f, &result.Value, node)
		if f.state == unread {
			f = v.recall(ctx, redisKey, &result.Value, nil, v.c.unread(ctx, f.err, took))
		}
		if f.state == stale {
			var zero V
			result.Value = zero
		}
		result.Err = v.verdict("get", redisKey, f)
	}
	if answered {
		v.c.stats.getTime.Observe(time.Since(start))
	}
	return results
}

// readMany reads several keys of the view with that prefix, but for those whose
// Delete is owed.
func (c *Client) readMany(ctx context.Context, prefix string, keys []string) []coalesce.Result {
	return c.readManyBy(ctx, prefix, keys, c.readAll)
}

func (c *Client) readManyBy(ctx context.Context, prefix string, keys []string, read func(context.Context, []string) []coalesce.Result) []coalesce.Result {
	if c.owed.n.Load() == 0 {
		return read(ctx, keys)
	}
	results := make([]coalesce.Result, len(keys))
	asked := make([]string, 0, len(keys))
	for i, key := range keys {
		if results[i].Err = c.owed.check(prefix, key); results[i].Err == nil {
			asked = append(asked, key)
		}
	}
	answers := read(ctx, asked)
	for i := range results {
		if results[i].Err == nil {
			results[i], answers = answers[0], answers[1:]
		}
	}
	return results
}

// readAll is read for several keys. What this process has just written is read
// from the primary while the rest is read from replicas.
func (c *Client) readAll(ctx context.Context, keys []string) []coalesce.Result {
	if c.recent == nil {
		return c.primary.GetMany(ctx, keys)
	}
	written := make([]bool, len(keys))
	var own, others []string
	for i, key := range keys {
		if written[i] = c.recent.has(key); written[i] {
			own = append(own, key)
		} else {
			others = append(others, key)
		}
	}
	if len(own) == 0 {
		return c.reads.GetMany(ctx, keys)
	}
	done := make(chan []coalesce.Result, 1)
	go func() { done <- c.primary.GetMany(ctx, own) }()
	fromReplicas := c.reads.GetMany(ctx, others)
	fromPrimary := <-done
	results := make([]coalesce.Result, len(keys))
	for i := range keys {
		from := &fromReplicas
		if written[i] {
			from = &fromPrimary
		}
		results[i] = (*from)[0]
		*from = (*from)[1:]
	}
	return results
}

// Bounds of what SetMany and Delete send at once.
const (
	maxPipeline      = 1000
	maxPipelineBytes = 1 << 20 // of values; one more may exceed it
)

// SetMany is Set for several keys, with the same options. It stores what it can:
// for the others the error is a [*KeysError]. On a Cluster all nodes are written
// to at once. The keys are not stored as one: others may see some of them before.
func (v *View[K, V]) SetMany(ctx context.Context, values map[K]V, opts ...SetOption) error {
	if err := v.ready(ctx, "set"); err != nil || len(values) == 0 {
		return err
	}
	start := time.Now()
	ttl, tags, err := v.options(opts)
	if err != nil {
		return fmt.Errorf("cache: set: %w", err)
	}
	var g generations
	if v.cfg.Tags {
		if g, _, err = v.current(ctx, tags, millis(ttl)+v.cfg.StaleFor.Milliseconds(), 0); err != nil {
			v.c.countError(ctx)
			return fmt.Errorf("cache: set: %w", whoseEnd(ctx, err))
		}
	}
	failures := &KeysError[K]{op: "set", of: len(values)}
	var due []write[K, V]
	size := 0
	for key, value := range values {
		redisKey := joinKey(v.prefix, key)
		h, px := v.header(ttl, 0)
		h.generation, h.tags = g.view, g.tags
		_, stored, err := v.encode(&value, h)
		if err != nil {
			failures.add(key, v.c.subject(redisKey), err)
			continue
		}
		due = append(due, write[K, V]{key: key, redisKey: redisKey, value: &value, stored: stored, px: px})
		if size += len(stored); len(due) == maxPipeline || size >= maxPipelineBytes {
			v.send(ctx, due, failures)
			due, size = due[:0], 0
		}
	}
	v.send(ctx, due, failures)
	v.c.stats.setTime.Observe(time.Since(start))
	v.c.stats.sets.Add(uint64(len(values) - failures.n))
	return failures.orNil()
}

// A write is a value that is to be stored.
type write[K Key, V any] struct {
	key      K
	redisKey string
	value    *V
	stored   []byte
	px       int64 // TTL, ms
	changes  uint64
}

func (v *View[K, V]) send(ctx context.Context, due []write[K, V], failures *KeysError[K]) {
	if len(due) == 0 {
		return
	}
	pipe := v.c.rdb.Pipeline()
	cmds := make([]*redis.StatusCmd, len(due))
	for i, w := range due {
		v.c.wrote(w.redisKey)
		due[i].changes = v.changing(ctx, w.key, w.redisKey)
		cmds[i] = pipe.Set(ctx, w.redisKey, w.stored, time.Duration(w.px)*time.Millisecond)
	}
	owed := v.c.owed.mark()
	conn.Exec(ctx, pipe)
	for i, w := range due {
		v.c.wrote(w.redisKey)
		v.forget(w.key, w.redisKey)
		err := cmds[i].Err()
		if err != nil {
			w.value = nil // nobody knows
		}
		v.changed(ctx, w.key, w.redisKey, w.changes, w.value)
		if err != nil {
			v.c.countError(ctx)
			failures.add(w.key, v.c.subject(w.redisKey), whoseEnd(ctx, err))
			continue
		}
		v.c.owed.settle(w.redisKey, owed)
	}
}

// A KeysError says for which keys SetMany or Delete failed. errors.Is and
// errors.As look at the error of each.
type KeysError[K Key] struct {
	// Errs says why, by key. What the call was to do with its other keys is done.
	Errs map[K]error

	op       string
	of, n    int // how many keys the call had, and how many failed
	first    string
	firstErr error
}

// Error names one of the keys.
func (e *KeysError[K]) Error() string {
	if e.of == 1 {
		return fmt.Sprintf("cache: %s %q: %v", e.op, e.first, e.firstErr)
	}
	return fmt.Sprintf("cache: %s: %d of %d keys, first %q: %v", e.op, e.n, e.of, e.first, e.firstErr)
}

// Unwrap returns the errors of all keys.
func (e *KeysError[K]) Unwrap() []error {
	errs := make([]error, 0, len(e.Errs))
	for _, err := range e.Errs {
		errs = append(errs, err)
	}
	return errs
}

func (e *KeysError[K]) add(key K, subject string, err error) {
	if e.n++; e.n == 1 {
		e.Errs = make(map[K]error)
		e.first, e.firstErr = subject, err
	}
	e.Errs[key] = err
}

func (e *KeysError[K]) orNil() error {
	if e.n == 0 {
		return nil
	}
	return e
}
