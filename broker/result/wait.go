package result

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// rereadInterval bounds how long a lost wake-up goes unnoticed.
	rereadInterval = 5 * time.Second

	// A waiter without a subscription polls, ever more rarely.
	minPoll = 50 * time.Millisecond
	maxPoll = 2 * time.Second
)

// Wait returns the record of a task once its state is final, be it [Success] or
// not: see [Record.Err] and [Client.Decode]. It returns at once if it is already.
//
// It is woken by a message when the state is stored, and reads again every five
// seconds in case that was lost. Where the server refuses SUBSCRIBE it polls, at
// intervals that grow to two seconds. It rides through outages: an error of the
// connection, a server that is loading, a failover end the wait only when ctx
// is done. An ID that nobody ever stores is waited for until then, too.
//
// When ctx is done, the error wraps context.Cause(ctx), and the record is the
// last one that was read. After Close the error is [ErrClosed].
func (c *Client) Wait(ctx context.Context, id string) (Record, error) {
	r := Record{ID: id}
	err := c.begin(ctx, id)
	if err == nil {
		start := time.Now()
		c.counts.waiters.Add(1)
		r, err = c.await(ctx, id)
		c.counts.waiters.Add(-1)
		if err == nil {
			c.counts.waits.Observe(time.Since(start))
		}
	}
	if err != nil {
		return r, fmt.Errorf("result: wait %q: %w", id, err)
	}
	return r, nil
}

func (c *Client) await(ctx context.Context, id string) (Record, error) {
	r, err := c.read(ctx, id)
	if done, err := c.settled(ctx, r, err); done {
		return r, err
	}
	w := c.hub.join(c.key(id))
	defer c.hub.leave(w)
	timer := time.NewTimer(minPoll)
	defer timer.Stop()
	poll := minPoll
	for {
		woken := false
		select {
		case <-w.wake:
			woken = true
		case <-timer.C:
			woken = w.woken()
		case <-c.done:
			return r, ErrClosed
		case <-ctx.Done():
			return r, ended(ctx, r, err)
		}
		var last Record
		if last, err = c.read(ctx, id); err == nil {
			r = last
		}
		if done, err := c.settled(ctx, r, err); done {
			if err == nil && !woken {
				c.counts.healed.Inc()
			}
			return r, err
		}
		if err == nil && w.live() {
			poll = minPoll
			timer.Reset(rereadInterval)
			continue
		}
		timer.Reset(poll)
		poll = min(2*poll, maxPoll)
	}
}

// settled reports whether a wait is over after reading r with err, and its error.
func (c *Client) settled(ctx context.Context, r Record, err error) (bool, error) {
	switch {
	case err == nil:
		return r.State.Final(), nil
	case ctx.Err() != nil:
		return true, ended(ctx, r, err)
	case c.passing(err):
		return false, nil
	}
	return true, err
}

// ended is the error of a wait whose ctx is done; err is that of the last read.
func ended(ctx context.Context, r Record, err error) error {
	cause := context.Cause(ctx)
	switch {
	case err == nil, err == cause: //nolint:errorlint // with nothing around it
		return fmt.Errorf("%w; the task is %s", cause, r.State)
	case errors.Is(err, cause):
		return err // it says what the read was waiting for
	}
	return fmt.Errorf("%w; the last read failed: %v", cause, err) //nolint:errorlint // one cause
}

// passing reports whether err may be gone at a later read: the server cannot be
// reached or cannot serve now. What it says about the key, the user or the
// command will not change by waiting.
func (c *Client) passing(err error) bool {
	if c.conn.Err() != nil || errors.Is(err, ErrClosed) || errors.Is(err, ErrCorrupt) {
		return false
	}
	var reply redis.Error
	if !errors.As(err, &reply) {
		return true
	}
	_, moved := redis.IsMovedError(err)
	_, ask := redis.IsAskError(err)
	return moved || ask || redis.IsLoadingError(err) || redis.IsMasterDownError(err) || redis.IsClusterDownError(err) ||
		redis.IsTryAgainError(err) || redis.IsMaxClientsError(err) || redis.HasErrorPrefix(err, "BUSY")
}
