package lock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// A request is one call that wants a lease.
type request struct {
	options
	locks  []string // as they were given, the first first
	keys   keys
	token  string
	value  string // what the lease holds; of a quorum that is the ballot's
	word   any    // the same, as a word of a command
	entry  string // in the queue; "" unless it may have a place there
	drop   bool   // the entry may be in the queue when the lease is obtained
	counts *classCounts

	// Of a quorum.
	ballot *ballot // the last attempt
	rival  string  // the token of who has kept it from the lease
}

// key names the request in errors and logs.
func (r *request) key() string { return r.locks[0] }

// request checks a call's arguments and admits it; leave must follow if it
// returns no error.
func (c *Client) request(ctx context.Context, key string, opts []Option) (*request, error) {
	if !c.made() {
		return &request{counts: new(classCounts)}, errNotMade
	}
	r := &request{counts: c.counts.class(c.cfg.Class)}
	var err error
	if r.options, err = c.cfg.options(opts); err != nil {
		return r, err
	}
	if c.longest != 0 && r.ttl > c.longest {
		return r, fmt.Errorf("TTL is %s, want at most %s, the quorum's (Config.TTL): servers that restart abstain for as long", r.ttl, c.longest)
	}
	r.counts = c.counts.class(r.class)
	if ctx == nil {
		return r, errNilContext
	}
	r.locks = []string{key}
	if len(r.also) > 0 {
		r.locks = distinct(append(r.locks, r.also...))
	}
	if len(r.locks) > MaxKeys {
		return r, fmt.Errorf("%d keys at once, want at most %d", len(r.locks), MaxKeys)
	}
	if r.keys, err = c.cfg.keys(r.locks...); err != nil {
		return r, err
	}
	if err := c.enter(); err != nil {
		return r, err
	}
	r.token = newToken()
	return r, nil
}

// distinct removes what is there twice. It keeps the order, which matters to
// nobody: all locks of an acquisition are taken at once.
func distinct(keys []string) []string {
	seen := make(map[string]bool, len(keys))
	return slices.DeleteFunc(keys, func(key string) bool {
		there := seen[key]
		seen[key] = true
		return there
	})
}

// TryAcquire acquires the lease on key, or returns [ErrNotAcquired] if another
// holds it. It does not wait for the other. If its outcome remains unknown, the
// key is deleted in the background.
//
// ctx is the lease's parent: its end ends the lease's context. The lease is
// renewed until Release all the same, since the holder may need it to finish.
func (c *Client) TryAcquire(ctx context.Context, key string, opts ...Option) (*Lease, error) {
	r, err := c.request(ctx, key, opts)
	if err != nil {
		return nil, r.outcome(key, err)
	}
	defer c.leave()
	lease, _, err := c.try(ctx, ctx, r)
	return lease, r.outcome(key, err)
}

// Acquire is TryAcquire, but waits while another holds the key: until ctx ends,
// or for MaxWait. It then returns an error that is [ErrNotAcquired] and, if ctx
// has ended, the cause of that. A wait outlives an outage of the server of up to a
// minute; any other error ends it.
func (c *Client) Acquire(ctx context.Context, key string, opts ...Option) (*Lease, error) {
	r, err := c.request(ctx, key, opts)
	if err != nil {
		return nil, r.outcome(key, err)
	}
	defer c.leave()
	start := time.Now()
	lease, err := c.acquire(ctx, r)
	if err == nil {
		r.counts.wait.Observe(time.Since(start))
	}
	return lease, r.outcome(key, err)
}

// outcome counts how a call ended and names the call in its error.
func (r *request) outcome(key string, err error) error {
	switch {
	case err == nil:
		r.counts.acquired.Inc()
		return nil
	case errors.Is(err, ErrNotAcquired):
		r.counts.notAcquired.Inc()
	default:
		r.counts.failed.Inc()
	}
	return failed("acquire", key, err)
}

// Do acquires the lease on key as Acquire does, calls fn with its context, and
// releases it, also if fn panics. It returns fn's error, joined with [ErrLost]
// if the lease was lost before fn returned.
func (c *Client) Do(ctx context.Context, key string, fn func(context.Context, *Lease) error, opts ...Option) error {
	if fn == nil {
		return failed("do", key, errors.New("nil function: pass what to do under the lease"))
	}
	lease, err := c.Acquire(ctx, key, opts...)
	if err != nil {
		return err
	}
	returned := false
	defer func() {
		if !returned { // fn panicked
			_ = lease.Release(ctx)
		}
	}()
	err = fn(lease.Context(), lease)
	returned = true
	switch released := lease.Release(ctx); {
	case errors.Is(released, ErrLost) && !errors.Is(err, ErrLost):
		return errors.Join(err, released)
	case released != nil && !errors.Is(released, ErrLost):
		// fn did its work under the lease: no reason to do it again.
		c.log.WarnContext(ctx, "lease not released, its TTL will end it", "key", key, "token", lease.Token(), "err", released)
	}
	return err
}

// try makes an attempt, and a few more while several ask a quorum at once and none
// of them gets the lease.
func (c *Client) try(ctx, parent context.Context, r *request) (*Lease, answer, error) {
	pause := splitPause
	for n := 0; ; n++ {
		l, a, err := c.attempt(ctx, parent, r)
		if n == splitTries || !errors.Is(err, errSplit) {
			return l, a, err
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
			pause = min(2*pause, 16*splitPause)
		case <-ctx.Done():
			return nil, a, context.Cause(ctx)
		case <-c.closing.Done():
			return nil, a, ErrClosed
		}
	}
}

// attempt makes one attempt under ctx at a lease whose parent is to be parent. With
// ErrNotAcquired it returns what the server has told.
func (c *Client) attempt(ctx, parent context.Context, r *request) (*Lease, answer, error) {
	if err := ended(ctx); err != nil {
		return nil, answer{}, err
	}
	if err := c.store.admit(ctx, r.ttl); err != nil {
		if cause := ended(ctx); cause != nil {
			err = cause
		}
		return nil, answer{}, err
	}
	skew, sent := c.clock.skew(), time.Now()
	held, a, err := c.store.obtain(ctx, r)
	switch {
	case errors.Is(err, ErrNotAcquired) && a.left == noExpiry:
		return nil, a, fmt.Errorf("%w, and %w", err, errNoExpiry)
	case errors.Is(err, ErrNotAcquired):
		return nil, a, err
	case err != nil:
		if cause := ended(ctx); errors.Is(cause, errMaxWait) {
			return nil, a, fmt.Errorf("%w: %w", cause, err)
		} else if cause != nil {
			return nil, a, cause
		}
		if time.Since(sent) >= r.ttl { // redislock's own limit where ctx has none
			err = fmt.Errorf("no answer within the TTL (%s): %w", r.ttl, err)
		}
		return nil, a, err
	}
	l := newLease(parent, c, r, held, a.token, r.ttl, sent, skew)
	if err := l.start(); err != nil {
		c.store.giveUp(r, settled)
		return nil, a, err
	}
	return l, a, nil
}
