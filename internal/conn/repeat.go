package conn

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
)

// progress is what is known of a call, over all its attempts.
type progress struct {
	start time.Time
	tries int    // attempts that have failed
	gen   uint64 // of the registry, when the last attempt began

	waited bool // for a primary
}

// process sends cmd, and sends it again as long as that is safe and its context
// allows.
func (c *Client) process(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, p *progress) error {
	if err := c.begin(ctx, p); err != nil {
		return err
	}
	err := next(ctx, c.once(cmd))
	for err != nil && err != redis.Nil { //nolint:errorlint // the hot path
		o := outcomeOf(err)
		if o == final {
			return err
		}
		if o == lost {
			c.doubt(ctx, p, err)
			if !repeatable(cmd) {
				c.unknown.Inc()
				return &outcomeError{err}
			}
		}
		if over := c.again(ctx, p, o, err); over != nil {
			return over
		}
		cmd.SetErr(nil)
		err = next(ctx, c.once(cmd))
	}
	return err
}

// processPipeline does the same for a pipeline, command by command, and for a
// transaction as a whole.
func (c *Client) processPipeline(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, p *progress) error {
	if err := c.begin(ctx, p); err != nil {
		setErrs(cmds, err)
		return err
	}
	pick := pickCommands
	if transaction(cmds) {
		pick = pickTransaction
	}
	rest := cmds
	for {
		err := next(ctx, c.onceEach(rest))
		stamp(rest, err)
		if err == nil && firstError(rest) == nil {
			break
		}
		if lostOne := firstLost(rest); lostOne != nil {
			c.doubt(ctx, p, lostOne)
		}
		todo, o, cause := pick(c, rest)
		if len(todo) == 0 {
			break
		}
		if over := c.again(ctx, p, o, cause); over != nil {
			for _, cmd := range todo {
				if outcomeOf(cmd.Err()) != final {
					cmd.SetErr(over)
				}
			}
			break
		}
		for _, cmd := range todo {
			cmd.SetErr(nil)
		}
		rest = todo
	}
	return firstError(cmds)
}

// stamp gives the error of a pipeline that got no connection to its commands:
// go-redis leaves them as if they had succeeded.
func stamp(cmds []redis.Cmder, err error) {
	if err != nil && firstError(cmds) == nil {
		setErrs(cmds, err)
	}
}

func firstError(cmds []redis.Cmder) error {
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil {
			return err
		}
	}
	return nil
}

func firstLost(cmds []redis.Cmder) error {
	for _, cmd := range cmds {
		if err := cmd.Err(); outcomeOf(err) == lost {
			return err
		}
	}
	return nil
}

// pickCommands returns the commands of a pipeline that are to be sent again, in
// order, with the greatest outcome among them and its error. A read that follows
// one of them is read again, since it must see what that one writes. So is a WAIT,
// whatever it said; and it is never sent alone: on a connection that has written
// nothing it counts replicas that may have nothing.
func pickCommands(c *Client, cmds []redis.Cmder) (todo []redis.Cmder, worst outcome, cause error) {
	for _, cmd := range cmds {
		err := cmd.Err()
		o := outcomeOf(err)
		switch {
		case waitsForReplicas(cmd):
			if len(todo) > 0 {
				todo = append(todo, cmd)
			} else if o == lost {
				cmd.SetErr(&outcomeError{err})
			}
			continue
		case o == final:
			if len(todo) > 0 && (err == nil || err == redis.Nil) && kindOf(cmd) == readKind { //nolint:errorlint // go-redis returns it bare
				todo = append(todo, cmd)
			}
			continue
		case o == lost && !repeatable(cmd):
			c.unknown.Inc()
			cmd.SetErr(&outcomeError{err})
			continue
		}
		todo = append(todo, cmd)
		if o > worst {
			worst, cause = o, err
		}
	}
	return todo, worst, cause
}

func waitsForReplicas(cmd redis.Cmder) bool {
	name := cmd.Name()
	return name == "wait" || name == "waitaof"
}

// pickTransaction returns all commands of a transaction or none. It was not
// executed if each of its commands has failed and one was refused.
func pickTransaction(c *Client, cmds []redis.Cmder) (todo []redis.Cmder, worst outcome, cause error) {
	inner := cmds[1 : len(cmds)-1]
	safe := true
	for _, cmd := range inner {
		err := cmd.Err()
		if err == nil || err == redis.Nil { //nolint:errorlint // go-redis returns it bare
			return nil, final, nil // it was executed
		}
		safe = safe && repeatable(cmd)
		if o := outcomeOf(err); o > worst {
			worst, cause = o, err
		}
	}
	if worst == lost && !safe {
		c.unknown.Add(uint64(len(inner)))
		for _, cmd := range cmds {
			if err := cmd.Err(); err != nil {
				cmd.SetErr(&outcomeError{err})
			}
		}
		return nil, final, nil
	}
	if worst == final {
		return nil, final, nil
	}
	return cmds, worst, cause
}

// begin waits, before the first attempt, until there is a primary.
func (c *Client) begin(ctx context.Context, p *progress) error {
	p.gen = c.registry.gen.Load()
	if c.follower == nil || c.follower.barrier.down.Load() == nil {
		return nil
	}
	return c.await(ctx, p)
}

// await waits while the barrier is shut. Who is not patient waits only for the
// first primary to be found, and no longer than a dial may take.
func (c *Client) await(ctx context.Context, p *progress) error {
	f := c.follower
	if probing(ctx) {
		return nil
	}
	hasty := !c.patient || failsFast(ctx)
	for {
		o := f.barrier.down.Load()
		if o == nil {
			return nil
		}
		limit := endOfPatience(ctx, p.start)
		if hasty {
			limit = o.since.Add(c.dialTimeout)
			if !o.first {
				return &unsentError{err: &neutralError{f.reason(o)}, connect: true}
			}
		}
		if !p.waited {
			p.waited = true
			c.waits.Inc()
		}
		if err := c.wait(ctx, o.over, limit); err != nil {
			if hasty && errors.Is(err, errPatience) {
				err = &neutralError{f.reason(o)}
			} else {
				err = &gaveUpError{err, f.reason(o)}
			}
			return &unsentError{err: err, connect: true}
		}
	}
}

// reason is why there is no usable primary.
func (f *follower) reason(o *outage) error {
	if f.resolver.State().Primary == "" {
		return f.whyNone()
	}
	if why := o.why.Load(); why != nil {
		return *why
	}
	return o.cause
}

// again decides whether a call whose attempt has failed is tried again, and waits
// until it is time. It returns the call's error if not.
func (c *Client) again(ctx context.Context, p *progress, o outcome, err error) error {
	changed := c.epochs.nextChange()
	if readOnly(err) {
		c.demoted(p.gen, err)
	}
	p.tries++
	switch {
	case c.gate.closed() && o != refused:
		return err
	case Ended(ctx) != nil:
		return err
	case c.maxRepeats >= 0 && p.tries > c.maxRepeats, failsFast(ctx):
		return err
	case o == crowded && !c.switching(p) && !c.doubtful(ctx, p, err):
		return err
	case !c.patient && (o == tripped || unconnected(err) || p.tries > 1):
		return err
	}
	limit := endOfPatience(ctx, p.start)
	if f := c.follower; f != nil && f.barrier.down.Load() != nil {
		if gaveUp := c.await(ctx, p); gaveUp != nil {
			return gaveUp
		}
	} else if pause := c.pause(p, o, err); pause > 0 {
		if !c.patient {
			return err
		}
		if over := c.wait(ctx, changed, time.Now().Add(pause)); over != nil && !errors.Is(over, errPatience) {
			return &gaveUpError{over, err}
		}
		if !time.Now().Before(limit) {
			return &gaveUpError{errPatience, err}
		}
	}
	if c.gate.closed() {
		return err
	}
	c.repeats.Inc()
	p.gen = c.registry.gen.Load()
	return nil
}

// switching reports whether the primary has gone or changed since the attempt
// began: then it is no wonder that all connections were in use.
func (c *Client) switching(p *progress) bool {
	return c.registry.gen.Load() != p.gen || c.follower != nil && c.follower.barrier.down.Load() != nil
}

// doubtWithin is how long the primary may take to answer when all connections to
// it were in use for MaxWait.
const doubtWithin = 500 * time.Millisecond

// doubtful reports whether all connections are in use because the primary hangs,
// and not because there are too few: it does not answer a new one.
func (c *Client) doubtful(ctx context.Context, p *progress, err error) bool {
	if c.follower == nil || !c.patient {
		return false
	}
	c.follower.shut(err)
	if o := c.follower.barrier.down.Load(); o != nil {
		_ = c.wait(ctx, o.over, time.Now().Add(doubtWithin))
	}
	return c.switching(p)
}

// Pauses between attempts where nothing tells when the next one may succeed.
const (
	minPause = 5 * time.Millisecond
	maxPause = 250 * time.Millisecond
)

func (c *Client) pause(p *progress, o outcome, err error) time.Duration {
	var open *breaker.OpenError
	if errors.As(err, &open) {
		return max(time.Until(open.RetryAt), minPause)
	}
	if p.tries == 1 && o != refused && !unconnected(err) {
		return 0 // a connection broke: take another
	}
	d := maxPause
	if p.tries < 7 {
		d = min(minPause<<(p.tries-1), maxPause)
	}
	return d - rand.N(d/4)
}

// wait returns nil when ch is closed; the end of ctx or errPatience else.
func (c *Client) wait(ctx context.Context, ch <-chan struct{}, limit time.Time) error {
	timer := time.NewTimer(time.Until(limit))
	defer timer.Stop()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return endOf(ctx)
	case <-c.closing:
		return ErrClosed
	case <-timer.C:
		if Ended(ctx) != nil {
			return endOf(ctx)
		}
		return errPatience
	}
}

// doubt is told that a reply has not come. If the server let the read timeout
// pass, its idle connections are given up: what is written into them now may
// wait there as long, and be executed in the end, while a new connection shows
// first whether somebody answers.
func (c *Client) doubt(ctx context.Context, p *progress, err error) {
	var timeout net.Error
	if c.cluster || !errors.As(err, &timeout) || !timeout.Timeout() || Ended(ctx) != nil {
		return // on Cluster nodeHook knows which node it was
	}
	c.registry.retireIdle(p.gen)
	if c.follower != nil {
		c.follower.shut(err)
		c.follower.resolver.Refresh()
	}
}

// endOf is the end of ctx, which is over or about to be, and its cause.
func endOf(ctx context.Context) error {
	<-ctx.Done()                                         // a deadline surfaces a moment before it ends the context
	if cause := context.Cause(ctx); cause != ctx.Err() { //nolint:errorlint // whether it has a cause of its own
		return fmt.Errorf("%w (%w)", cause, ctx.Err())
	}
	return ctx.Err()
}

// demoted is told that the server takes no writes: an address that always leads
// to the primary leads to another server now, or will.
func (c *Client) demoted(gen uint64, err error) {
	if c.cluster {
		return // go-redis reloads the topology
	}
	c.registry.retireIdle(gen)
	if c.follower != nil {
		c.follower.shut(err)
		c.follower.resolver.Refresh()
	}
}

type failFastKey struct{}

// Once returns a context whose commands are neither repeated nor held back while
// there is no primary.
func Once(ctx context.Context) context.Context {
	return context.WithValue(ctx, failFastKey{}, failFastKey{})
}

func failsFast(ctx context.Context) bool { return ctx.Value(failFastKey{}) != nil }

// A single command on Cluster: go-redis' cluster client sends again by itself
// what was cut, unless the command says otherwise. All are repeated here.
type single struct{ redis.Cmder }

func (single) NoRetry() bool { return true }

func (c *Client) once(cmd redis.Cmder) redis.Cmder {
	if !c.cluster {
		return cmd
	}
	cmd.SetStepCount(1) // else go-redis makes a context with a timer to look it up, and needs it for nothing
	return single{cmd}
}

func (c *Client) onceEach(cmds []redis.Cmder) []redis.Cmder {
	if !c.cluster {
		return cmds
	}
	singles := cmds
	for i, cmd := range cmds {
		if i == 0 && cmd.Name() == "multi" || i == len(cmds)-1 && cmd.Name() == "exec" {
			continue
		}
		if &singles[0] == &cmds[0] {
			singles = append([]redis.Cmder(nil), cmds...)
		}
		singles[i] = single{cmd}
	}
	return singles
}
