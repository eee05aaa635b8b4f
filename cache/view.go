package cache

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/conn"
)

// A View keeps values of type V under keys of type K in a [Client]. It is safe
// for concurrent use.
type View[K Key, V any] struct {
	c        *Client
	err      error  // what is wrong with the definition
	name     string // with the version: <name>[.<version>]
	prefix   string // of all keys: <namespace>:cache:<name>[.<version>]:
	cfg      ViewConfig
	taking   Codec // cfg.Codec, or one that keeps what it decodes
	compress *compress.Codec
	flights  *table[K, V]
	outage   *outage
	space    *keyspace
	clone    func(V) V    // nil: local tiers share values
	local    *local[K, V] // nil: there is no L1
	timedOut error        // the cause of a load's end at its timeout

	generationKey string     // where the view's generation stands, if it has tags
	end           *endedView // by Clear, or by InvalidateTags
	guesses       *guesses   // which tags entries had; nil without tags
}

// NewView returns the view of c with that name, which is a part of the keys:
// letters, digits, "_" and "-". Views of one name, in whatever process, share
// their values, and should be defined alike.
//
// If the definition is wrong, every use of the view returns an error that says
// how, so that views can be package-level variables.
func NewView[K Key, V any](c *Client, name string, cfg ViewConfig) *View[K, V] {
	var role Config
	if c != nil {
		role = c.cfg
	}
	cfg = cfg.withDefaults(role)
	v := &View[K, V]{c: c, cfg: cfg, flights: newTable[K, V]()}
	if v.err = v.define(name); v.err != nil {
		v.err = fmt.Errorf("cache: view %q: %w", name, v.err)
	}
	return v
}

func (v *View[K, V]) define(name string) error {
	if v.c == nil {
		return errors.New("nil Client: pass what New returned")
	}
	errs := []error{v.cfg.validate(name)}
	if v.cfg.LocalEntries > 0 {
		errs = append(errs, v.c.localAllowed())
	}
	if codec, ok := v.cfg.Codec.(typeChecker); ok {
		errs = append(errs, codec.check(reflect.TypeFor[V]()))
	}
	if v.cfg.Clone {
		var err error
		v.clone, err = copier[V]()
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	v.name = name
	if v.cfg.Version != "" {
		v.name = name + "." + v.cfg.Version
	}
	v.prefix = v.c.root + v.name + ":"
	v.generationKey = v.c.root + generationMark + v.name
	v.end = &endedView{prefix: v.prefix, clear: v.Clear}
	if v.cfg.Tags {
		v.end.ttl = max(millis(v.cfg.TTL)+v.cfg.StaleFor.Milliseconds(), millis(minGenerationTTL))
		v.guesses = newGuesses()
	}
	v.space = v.c.keyspace(v.prefix)
	v.outage = v.space.outage
	if v.cfg.LocalEntries > 0 {
		v.local = newLocal[K, V](v.c, v.space, v.cfg)
		v.space.add(v.c, v.local)
	}
	v.timedOut = fmt.Errorf("the load took longer than %s (ViewConfig.LoadTimeout): %w", v.cfg.LoadTimeout, context.DeadlineExceeded)
	v.taking = v.cfg.Codec
	if v.cfg.Codec == Raw && v.c.rdb.Own() { // a foreign client may cache its replies
		v.taking = takingCodec{}
	}
	var err error
	v.compress, err = compress.New(compress.Config{MinSize: v.cfg.MinCompressBytes, MaxSize: v.cfg.MaxValueBytes})
	return err
}

// Get returns the value of key, or ErrMiss if the cache does not have it, or
// ErrNotFound if it knows that there is none. Any other error says that Redis
// could not be asked, and that no Fetch has loaded the key a moment ago. The
// caller owns the value.
func (v *View[K, V]) Get(ctx context.Context, key K) (V, error) {
	var zero V
	if err := v.ready(ctx, "get"); err != nil {
		return zero, err
	}
	var visit visit[K, V]
	if k := v.near(ctx, key, &visit); k != nil {
		return v.give(k)
	}
	redisKey := joinKey(v.prefix, key)
	var value V
	if err := v.verdict("get", redisKey, v.read(ctx, key, redisKey, &value, nil, &visit)); err != nil {
		return zero, err
	}
	return value, nil
}

// GetInto is Get into *dst, which must not be nil. With [Raw], bytes are put into
// the memory of *dst as far as its capacity goes, so that a buffer can be used
// again and again; what else it held is overwritten. With any other codec, *dst is
// zero before it is decoded into. After an error its content is of no use.
func (v *View[K, V]) GetInto(ctx context.Context, key K, dst *V) error {
	if err := v.ready(ctx, "get"); err != nil {
		return err
	}
	if dst == nil {
		return v.failed("get", joinKey(v.prefix, key), errors.New("nil destination: pass a pointer to a value"))
	}
	var visit visit[K, V]
	if k := v.near(ctx, key, &visit); k != nil {
		return v.put(dst, k)
	}
	redisKey := joinKey(v.prefix, key)
	if v.cfg.Codec == Raw {
		// What is in the caller's memory is not kept.
		return v.verdict("get", redisKey, v.read(ctx, key, redisKey, dst, fillingCodec{}, nil))
	}
	var zero V
	*dst = zero
	return v.verdict("get", redisKey, v.read(ctx, key, redisKey, dst, nil, &visit))
}

// put sets *dst to a value of a local tier. Bytes are not shared with it.
func (v *View[K, V]) put(dst *V, k *kept[V]) (err error) {
	if k.absent || v.cfg.Codec != Raw {
		*dst, err = v.give(k)
		return err
	}
	raw, isBytes := any(k.value).([]byte)
	if !isBytes {
		raw, _ = Raw.Append(nil, &k.value) // never fails
	}
	return fillingCodec{}.Decode(raw, dst)
}

// verdict is what a read that found f returns.
func (v *View[K, V]) verdict(op, redisKey string, f found) error {
	switch f.state {
	case hit:
		return nil
	case absent:
		return ErrNotFound
	case unread:
		return v.failed(op, redisKey, f.err)
	}
	return ErrMiss
}

// options are for how long a call with opts stores its value, and its tags.
func (v *View[K, V]) options(opts []SetOption) (ttl time.Duration, tags []tag, err error) {
	ttl = v.cfg.TTL
	var names []string
	for _, opt := range opts {
		if opt.hasTTL {
			ttl = opt.ttl
		}
		names = append(names, opt.tags...)
	}
	if ttl < time.Millisecond {
		return 0, nil, fmt.Errorf("TTL is %s, want at least 1ms", ttl)
	}
	if ttl > maxTTL-v.cfg.StaleFor {
		return 0, nil, fmt.Errorf("TTL is %s, want at most %s", ttl, maxTTL-v.cfg.StaleFor)
	}
	tags, err = v.tagsOf(names)
	return ttl, tags, err
}

// whoseEnd returns why the caller's context was over, which surfaces as an i/o
// timeout, or else err.
func whoseEnd(ctx context.Context, err error) error {
	if over := conn.Ended(ctx); over != nil {
		return over
	}
	return err
}

// ready says why a call cannot even begin.
func (v *View[K, V]) ready(ctx context.Context, op string) error {
	switch {
	case v == nil || v.prefix == "" && v.err == nil:
		return fmt.Errorf("cache: %s: a View that was not made: NewView makes one", op)
	case ctx == nil:
		return nilContext(op)
	case v.err != nil:
		return v.err
	}
	return v.c.ready(ctx, op)
}

func (v *View[K, V]) failed(op, redisKey string, err error) error {
	return fmt.Errorf("cache: %s %q: %w", op, v.c.subject(redisKey), err)
}
