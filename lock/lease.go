package lock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bsm/redislock"
)

// releaseTimeout bounds a release, which does not heed the end of its context.
const releaseTimeout = 3 * time.Second

// A Lease is a lock that is held until Release, or until it is lost. It is
// renewed in the background each third of its TTL. Its methods are safe for
// concurrent use.
type Lease struct {
	client *Client
	*request
	fence  int64
	begun  time.Time
	ctx    context.Context
	cancel context.CancelCauseFunc

	releasing sync.Mutex // held by the call of Release that is at work
	discarded bool

	mu        sync.Mutex
	held      []*redislock.Lock // one for each server; nil for one that has not granted the lease
	state     state
	abandoned bool          // left to its TTL by Close
	err       error         // of a lost lease
	deadline  time.Time     // when it counts as lost
	life      time.Duration // what it was made or renewed for last
	doomed    bool          // it is not renewed any more, since its endpoint takes no locks
	timer     *time.Timer   // fires at the deadline; nil until the first renewal is due, before which that cannot pass
	skew      time.Duration

	// The renewer's, under its mutex.
	scheduled
	span time.Duration // life, until the first renewal is due; then the TTL
}

type state uint8

const (
	held     state = iota
	leaving        // a release was sent, and its outcome is not known
	released       // or given back before anybody saw it
	lost
)

// newLease returns a lease whose keys live from the given instant on, if not
// longer, for life until it is renewed.
func newLease(parent context.Context, c *Client, r *request, held []*redislock.Lock, fence int64, life time.Duration, sent time.Time, skew time.Duration) *Lease {
	l := &Lease{client: c, request: r, held: held, fence: fence, begun: time.Now(), skew: skew, scheduled: scheduled{index: -1}}
	l.life, l.span = life, life
	l.deadline = sent.Add(life - margin(life))
	l.due = sent.Add(life / 3)
	l.ctx, l.cancel = context.WithCancelCause(parent)
	return l
}

// margin is how much earlier than its key a lease ends here: 1 % for clocks of
// different speed, and 2 ms for the resolution of timers and of Redis' own.
func (l *Lease) margin() time.Duration { return margin(l.ttl) }

func margin(ttl time.Duration) time.Duration { return ttl/100 + 2*time.Millisecond }

// start lets the lease be renewed and lost, unless it is worthless already.
func (l *Lease) start() error {
	c := l.client
	c.stay()
	l.keep()
	l.mu.Lock()
	late := !time.Now().Before(l.deadline) || c.clock.jumped(l.skew, margin(l.life))
	l.mu.Unlock()
	l.counts.held.Add(1)
	if !late { // else the renewer might lose it, before it is told to be late
		c.renewer.add(l) // from here on, Close sees it
	}
	var err error
	switch {
	case c.closing.Err() != nil:
		err = ErrClosed
	case l.ctx.Err() != nil:
		err = context.Cause(l.ctx)
	case late:
		err = fmt.Errorf("the answer came too late for a lease of %s", l.ttl)
	default:
		return nil
	}
	if l.leave(released, nil) {
		l.cancel(err)
		c.leave()
	}
	l.forget()
	return err
}

// keep lets the line know that the lease of one who has queued is held, until
// forget: a late message then does not give it up.
func (l *Lease) keep() {
	if l.entry != "" {
		l.client.line.keep(l.token)
	}
}

func (l *Lease) forget() {
	if l.entry != "" {
		l.client.line.forget(l.token)
	}
}

// Context is the parent that the lease was acquired with, and ends with the
// lease at the latest: with [ErrLost] as cause, at a lost lease's last moment,
// with [ErrClosed] as cause on Client.Close, and with Release.
func (l *Lease) Context() context.Context {
	if !l.made() {
		return noLease
	}
	return l.ctx
}

// made reports whether the lease is one that a Client has handed out.
func (l *Lease) made() bool { return l != nil && l.client != nil }

// noLease is the context of what is no lease.
var noLease = func() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(fmt.Errorf("lock: %w: this is no lease (was the error of its acquisition looked at?)", ErrLost))
	return ctx
}()

// Token is the fencing token: greater than that of each lease on the key before
// this one, while the server keeps the last token (30 days) or its clock is not
// set back further than to the last lease. A renewal does not change it. Pass it
// with every write, and let the resource refuse one that is smaller than the
// greatest it has seen: nothing else stops a holder that was paused.
// That of a nil lease is 0, which is smaller than any.
func (l *Lease) Token() int64 {
	if !l.made() {
		return 0
	}
	return l.fence
}

// Key is what was locked, as it was given; of several keys ([Also]) the first.
func (l *Lease) Key() string {
	if !l.made() {
		return ""
	}
	return l.key()
}

// Release ends the lease's context and gives the lease back, also if ctx has
// ended: it waits for the server for 3s at most. It returns [ErrLost] if the
// lease was lost before. Other errors mean that it is unknown whether the server
// took it: the key is then deleted in the background, or ends with its TTL.
// Calling it again repeats the result, or tries again where that is unknown.
func (l *Lease) Release(ctx context.Context) error {
	if !l.made() {
		return fmt.Errorf("lock: release: %w: this is no lease (was the error of its acquisition looked at?)", ErrLost)
	}
	if ctx == nil {
		return failed("release", l.key(), errNilContext)
	}
	l.releasing.Lock()
	defer l.releasing.Unlock()
	l.expire()
	first := l.leave(leaving, nil)
	if first {
		defer l.client.leave()
		l.counts.hold.Observe(time.Since(l.begun))
		l.cancel(nil)
	}
	switch state, err := l.result(); state {
	case released:
		return nil
	case lost:
		l.discard()
		return err
	}
	defer l.forget()
	return l.giveBack(ctx, first)
}

// giveBack sends the release and judges the answer.
func (l *Lease) giveBack(ctx context.Context, first bool) error {
	c := l.client
	err := c.store.release(c.releases.bound(ctx), l)
	switch gone := errors.Is(err, redislock.ErrLockNotHeld); {
	case err == nil, gone && !first: // then what was tried first has worked
		l.counts.released.Inc()
		l.conclude(released, nil)
		return nil
	case gone:
		err = l.lossBy(refused)
		l.conclude(lost, err)
		l.reportLoss(refused)
		l.discard() // of several keys, some may be there still
		return err
	}
	if first {
		c.store.giveUp(l.request, unsettled)
	}
	l.counts.releaseFailed.Inc()
	return failed("release", l.key(), err)
}

// discard deletes, in the background, what may be left of a lost lease: its key
// lives a little longer than the lease itself.
func (l *Lease) discard() {
	if l.discarded || l.client.enter() != nil {
		return
	}
	defer l.client.leave()
	l.discarded = true
	l.client.store.giveUp(l.request, settled)
}

// leave ends the holding, so that the lease is not renewed any more. It reports
// whether the lease was held: then its part in Client.busy is to be given back.
func (l *Lease) leave(next state, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != held {
		return false
	}
	l.state, l.err = next, err
	if !l.abandoned {
		l.counts.held.Add(-1)
	}
	l.disarm()
	l.client.renewer.remove(l)
	return true
}

// grant returns what one server has granted.
func (l *Lease) grant(i int) *redislock.Lock {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[i]
}

func (l *Lease) conclude(s state, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.err = s, err
}

func (l *Lease) result() (state, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state, l.err
}

// extend moves the deadline after a renewal that was sent at the given time.
func (l *Lease) extend(sent time.Time, skew time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != held {
		return
	}
	l.life, l.deadline, l.skew = l.ttl, sent.Add(l.ttl-l.margin()), skew
	if l.timer != nil {
		l.timer.Reset(time.Until(l.deadline))
	}
}

// arm lets the lease be lost at its deadline, and reports whether it is held.
func (l *Lease) arm() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == held && l.timer == nil && !l.abandoned {
		l.timer = time.AfterFunc(time.Until(l.deadline), l.expire)
	}
	return l.state == held
}

// disarm stops the timer. The caller holds mu.
func (l *Lease) disarm() {
	if l.timer != nil {
		l.timer.Stop()
	}
}

func (l *Lease) lives() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.life
}

// runOut lets the lease end at its deadline, and returns when it would be due to
// be renewed if it were not.
func (l *Lease) runOut() (due time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.doomed = true
	return l.deadline.Add(l.ttl)
}

// expire ends a lease whose deadline has passed. It is what the timer calls.
func (l *Lease) expire() {
	l.mu.Lock()
	over, cause := l.state == held && !time.Now().Before(l.deadline), expired
	if l.doomed {
		cause = unsafe
	}
	l.mu.Unlock()
	if over { // else a renewal came in between, and has set the timer anew
		l.lose(cause)
	}
}

// checkClock loses the lease if the clock has jumped since its last renewal.
func (l *Lease) checkClock() {
	l.mu.Lock()
	skew, most := l.skew, margin(l.life)
	l.mu.Unlock()
	if l.client.clock.jumped(skew, most) {
		l.lose(clockJump)
	}
}

// lose ends a lease that cannot be counted on any more.
func (l *Lease) lose(cause lossCause) {
	err := l.lossBy(cause)
	if !l.leave(lost, err) {
		return
	}
	l.forget()
	l.counts.hold.Observe(time.Since(l.begun))
	l.reportLoss(cause)
	l.cancel(err)
	l.client.leave()
}

func (l *Lease) lossBy(cause lossCause) error {
	return fmt.Errorf("lock: %s: %w: %s", quote(l.key()), ErrLost, lossReasons[cause])
}

func (l *Lease) reportLoss(cause lossCause) {
	l.counts.lost[cause].Inc()
	l.client.log.Warn("lease lost", "key", l.key(), "token", l.fence, "reason", lossReasons[cause])
}

// end ends the context alone; the lease is renewed until its holder releases it.
func (l *Lease) end(cause error) {
	l.cancel(fmt.Errorf("lock: %s: %w", quote(l.key()), cause))
}

// abandon leaves the lease to its TTL.
func (l *Lease) abandon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.disarm()
	if l.state == held && !l.abandoned {
		l.abandoned = true
		l.counts.held.Add(-1)
	}
}
