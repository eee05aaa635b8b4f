package lock

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bsm/redislock"
)

// A request is one call that wants a lease.
type request struct {
	options
	key   string
	keys  keys
	token string
}

// request checks a call's arguments and admits it; leave must follow if it
// returns no error.
func (c *Client) request(ctx context.Context, key string, opts []Option) (request, error) {
	r := request{key: key}
	var err error
	if ctx == nil {
		return r, errNilContext
	}
	if r.options, err = c.cfg.options(opts); err != nil {
		return r, err
	}
	if r.keys, err = c.cfg.keys(key); err != nil {
		return r, err
	}
	if err := c.enter(); err != nil {
		return r, err
	}
	r.token = newToken()
	return r, nil
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
		return nil, c.outcome(key, err)
	}
	defer c.leave()
	lease, _, err := c.try(ctx, ctx, r)
	return lease, c.outcome(key, err)
}

// Acquire is TryAcquire, but waits while another holds the key: until ctx ends,
// or for MaxWait. It then returns an error that is [ErrNotAcquired] and, if ctx
// has ended, the cause of that. Any other error ends the wait, too.
func (c *Client) Acquire(ctx context.Context, key string, opts ...Option) (*Lease, error) {
	r, err := c.request(ctx, key, opts)
	if err != nil {
		return nil, c.outcome(key, err)
	}
	defer c.leave()
	start := time.Now()
	lease, err := c.acquire(ctx, r)
	if err == nil {
		c.counts.wait.Observe(time.Since(start))
	}
	return lease, c.outcome(key, err)
}

// outcome counts how a call ended and names the call in its error.
func (c *Client) outcome(key string, err error) error {
	switch {
	case err == nil:
		c.counts.acquired.Inc()
		return nil
	case errors.Is(err, ErrNotAcquired):
		c.counts.notAcquired.Inc()
	default:
		c.counts.failed.Inc()
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
	case errors.Is(released, ErrLost):
		return errors.Join(err, released)
	case released != nil:
		// fn did its work under the lease: no reason to do it again.
		c.log.WarnContext(ctx, "lease not released, its TTL will end it", "key", key, "token", lease.Token(), "err", released)
	}
	return err
}

// try makes one attempt under ctx at a lease whose parent is to be parent. With
// ErrNotAcquired it returns how long the other's lease has left, negative if that
// is unknown.
func (c *Client) try(ctx, parent context.Context, r request) (*Lease, time.Duration, error) {
	if err := ended(ctx); err != nil {
		return nil, 0, err
	}
	if err := c.admit(ctx); err != nil {
		if cause := ended(ctx); cause != nil {
			err = cause
		}
		return nil, 0, err
	}
	skew, sent := c.clock.skew(), time.Now()
	metadata := c.holder.metadata(sent)
	a := &attempt{Scripter: c.conn, rdb: c.conn, keys: r.keys, value: r.token + metadata}
	held, err := redislock.New(a).Obtain(ctx, r.keys.lease, r.ttl, &redislock.Options{Token: r.token, Metadata: metadata})
	switch {
	case errors.Is(err, redislock.ErrNotObtained):
		return nil, a.left, ErrNotAcquired
	case err != nil:
		if !c.neverSent(err) {
			c.sweeper.add(r, unsettled)
		}
		if cause := ended(ctx); cause != nil {
			return nil, 0, cause
		}
		if time.Since(sent) >= r.ttl { // redislock's own limit where ctx has none
			err = fmt.Errorf("no answer within the TTL (%s): %w", r.ttl, err)
		}
		return nil, 0, c.explain(err, r.keys)
	case a.err != nil:
		c.sweeper.add(r, unsettled)
		if cause := ended(ctx); cause != nil {
			return nil, 0, cause
		}
		return nil, 0, fmt.Errorf("fencing token: %w", c.explain(a.err, r.keys))
	case a.token < 0: // it ended between the two scripts
		return nil, a.left, ErrNotAcquired
	}
	held.Client = c.locker
	l := newLease(parent, c, r, held, a.token, sent, skew)
	if err := l.start(); err != nil {
		c.sweeper.add(r, settled)
		return nil, 0, err
	}
	return l, 0, nil
}
