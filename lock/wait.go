package lock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// How long a waiter sleeps between two attempts: from pollMin, doubling, to
// pollMax, and not longer than the other's lease has left.
const (
	pollMin = 5 * time.Millisecond
	pollMax = 250 * time.Millisecond
)

var errMaxWait = errors.New("MaxWait is over")

// acquire makes attempts until one settles it.
func (c *Client) acquire(parent context.Context, r request) (*Lease, error) {
	ctx := parent
	if r.maxWait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(parent, r.maxWait, errMaxWait)
		defer cancel()
	}
	c.counts.waiting.Add(1)
	defer c.counts.waiting.Add(-1)
	w := waiter{closing: c.closing, pause: pollMin}
	for {
		lease, left, err := c.try(ctx, parent, r)
		if errors.Is(err, ErrNotAcquired) {
			if err = w.wait(ctx, left); err == nil {
				continue
			}
			if !errors.Is(err, ErrClosed) && !errors.Is(err, errMaxWait) {
				err = fmt.Errorf("%w: %w", ErrNotAcquired, err)
			}
		}
		if errors.Is(err, errMaxWait) {
			err = fmt.Errorf("%w, for %s (MaxWait)", ErrNotAcquired, r.maxWait)
		}
		return lease, err
	}
}

// A waiter sleeps until another attempt is worth while.
type waiter struct {
	closing context.Context
	pause   time.Duration
}

// wait returns nil when the waiter should try again, or why it should not. The
// other's lease ends in left; negative if that is unknown.
func (w *waiter) wait(ctx context.Context, left time.Duration) error {
	pause := w.pause/2 + rand.N(w.pause/2)
	w.pause = min(2*w.pause, pollMax)
	if left >= 0 && left < pause {
		pause = left + rand.N(pollMin) // not all at the same instant
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-w.closing.Done():
		return ErrClosed
	}
}
