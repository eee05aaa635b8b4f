package lock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// How long who is told nothing sleeps between two attempts: from pollMin,
// doubling, to pollMax, and not longer than the other's lease has left.
const (
	pollMin = 5 * time.Millisecond
	pollMax = 250 * time.Millisecond
)

// outageMost is how long servers may be away before a wait ends.
const outageMost = time.Minute

var (
	errMaxWait  = errors.New("MaxWait is over")
	errNoExpiry = errors.New("its key does not expire, as if another program had set it: see Inspect, and delete it by hand if it is no lease")
)

// acquire makes attempts until one settles it.
func (c *Client) acquire(parent context.Context, r *request) (l *Lease, err error) {
	ctx := parent
	if r.maxWait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(parent, r.maxWait, errMaxWait)
		defer cancel()
	}
	r.counts.waiting.Add(1)
	defer r.counts.waiting.Add(-1)
	w := c.line.enter(r)
	defer func() { w.leave(err == nil) }()
	p := poller{closing: c.closing, pause: pollMin}
	if c.bell != nil {
		p.told = time.Now()
	}
	var met error  // that another has the lock
	var last error // of an outage that was outlived
	defer func() { p.ringer.leave(err == nil) }()
	for {
		lease := w.take(ctx, parent)
		var a answer
		var err error
		if lease == nil {
			lease, a, err = c.try(ctx, parent, r)
		}
		if err == nil {
			w.observe()
			return lease, nil
		}
		taken := errors.Is(err, ErrNotAcquired)
		if taken {
			if errors.Is(err, errNoExpiry) && !errors.Is(met, errNoExpiry) {
				c.log.Warn("lock waited for whose key does not expire", "key", r.key())
			}
			met, p.told = ErrNotAcquired, time.Now()
			if errors.Is(err, errNoExpiry) {
				met = err
			}
		}
		if told := w.told(); told.After(p.told) {
			p.told = told
		}
		if outage := p.outlives(err); taken || outage != nil {
			if !taken {
				last, a.left = err, -1
				w.renew(r, outage)
			}
			if w != nil {
				w.failed(a, !taken)
				err = w.wait(ctx)
			} else {
				if p.ringer == nil {
					p.ringer = c.bell.enter(r.keys)
				}
				err = p.wait(ctx, a.left)
			}
			if err == nil {
				continue
			}
			if met != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, errMaxWait) {
				err = fmt.Errorf("%w: %w", met, err)
			}
		}
		switch {
		case errors.Is(err, errMaxWait) && met != nil:
			err = fmt.Errorf("%w, for %s (MaxWait)", met, r.maxWait)
		case errors.Is(err, errMaxWait):
			err = fmt.Errorf("no answer within %s: %w", r.maxWait, cmp.Or(last, err))
		}
		return nil, err
	}
}

// A poller sleeps until another attempt is worth while, where no queue is kept.
type poller struct {
	closing context.Context
	pause   time.Duration
	ringer  *ringer   // nil where nobody tells of releases
	told    time.Time // when the servers have told last that another has the lock; of a quorum at first, when the wait began
}

// outlives returns the outage that err tells of, if the wait goes on all the same.
func (p *poller) outlives(err error) *outageError {
	var outage *outageError
	if errors.As(err, &outage) && time.Since(p.told) < outageMost {
		return outage
	}
	return nil
}

// wait returns nil when the caller should try again, or why it should not. The
// other's lease ends in left; negative if that is unknown.
func (p *poller) wait(ctx context.Context, left time.Duration) error {
	pause := p.pause/2 + rand.N(p.pause/2)
	p.pause = min(2*p.pause, pollMax)
	if left >= 0 && left < pause {
		pause = left + rand.N(pollMin) // not all at the same instant
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-p.ringer.rings():
		p.pause = pollMin
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.closing.Done():
		return ErrClosed
	}
}
