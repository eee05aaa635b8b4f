package breaker

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

var _ redis.Hook = (*Hook)(nil)

// ProcessHook judges a command and refuses it with an [*OpenError] while the
// breaker is open. A command that passes costs no allocation.
func (h *Hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	if h.cfg.Disabled {
		return next
	}
	return func(ctx context.Context, cmd redis.Cmder) error {
		if ctx == nil {
			return nilContext(cmd.Name())
		}
		kind := kindOf(cmd)
		if kind == handshake {
			return next(ctx, cmd)
		}
		_, err := h.do(ctx, &request{kind: kind, process: next, cmd: cmd})
		return err
	}
}

// ProcessPipelineHook does the same for a pipeline or transaction. If it is
// refused, each of its commands has the error.
func (h *Hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	if h.cfg.Disabled {
		return next
	}
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if ctx == nil {
			err := nilContext("pipeline")
			setErrs(cmds, err)
			return err
		}
		kind := kindOfAll(cmds)
		if kind == handshake {
			return next(ctx, cmds)
		}
		sent, err := h.do(ctx, &request{kind: kind, pipeline: next, cmds: cmds})
		if !sent {
			setErrs(cmds, err)
		}
		return err
	}
}

func setErrs(cmds []redis.Cmder, err error) {
	for _, cmd := range cmds {
		cmd.SetErr(err)
	}
}

// DialHook counts failed dials. It refuses none: only commands are refused.
func (h *Hook) DialHook(next redis.DialHook) redis.DialHook {
	if h.cfg.Disabled {
		return next
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if ctx == nil {
			return nil, nilContext("dial")
		}
		conn, err := h.dial(h.nest(ctx), next, network, addr)
		if err == nil {
			h.dialsFailed.Store(0)
			return conn, nil
		}
		if isNeutral(err) || errors.Is(ctx.Err(), context.Canceled) {
			return conn, err
		}
		h.tally.dialFailures.Add(1)
		failures := h.dialsFailed.Add(1)
		if limit := int64(h.cfg.DialFailures); limit > 0 && failures >= limit {
			h.all.Load().fail(err)
		}
		if !isNetwork(err) {
			err = &dialError{err}
		}
		return conn, err
	}
}

func (h *Hook) dial(ctx context.Context, next redis.DialHook, network, addr string) (net.Conn, error) {
	h.dialing.Add(1)
	defer h.dialing.Add(-1)
	return next(ctx, network, addr)
}

// dialError marks a dialer's error that is not recognised as the network's, so
// that the command which needed the dial counts as failed.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

type bypassKey struct{}

// Bypass returns a context whose commands pass even when the breaker is open:
// for what is worse to leave undone than to wait for, such as the renewal of a
// lock. They count as others do while the breaker is closed, and one may be the
// probe of a half-open breaker; those that pass an open breaker appear in Counts
// and do not change its state. Bypass of a nil context is nil.
func Bypass(ctx context.Context) context.Context {
	if ctx == nil {
		return nil
	}
	return context.WithValue(ctx, bypassKey{}, bypassKey{})
}

func bypasses(ctx context.Context) bool { return ctx.Value(bypassKey{}) != nil }

// nestedKey marks the context of what has been let through, for the commands
// that go-redis sends on the same client to that end.
type nestedKey struct{ hook *Hook }

func (h *Hook) nest(ctx context.Context) context.Context {
	return context.WithValue(ctx, nestedKey{h}, nestedKey{h})
}

func (h *Hook) nested(ctx context.Context) bool { return ctx.Value(nestedKey{h}) != nil }

// request is a command, or a pipeline.
type request struct {
	kind     kind
	process  redis.ProcessHook
	cmd      redis.Cmder
	pipeline redis.ProcessPipelineHook
	cmds     []redis.Cmder
}

// do sends r if the circuits let it. It returns the error of r, and whether r
// was sent.
func (h *Hook) do(ctx context.Context, r *request) (sent bool, err error) {
	if r.kind == blocking && h.State() != StateClosed && !h.nested(ctx) {
		if bypasses(ctx) {
			return true, h.bypass(ctx, r)
		}
		// As the probe it would keep everyone waiting for as long as it waits
		// itself. But a program that sends nothing else must come back.
		if sent, err := h.ping(ctx, r); !sent {
			return false, err
		} else if h.State() != StateClosed {
			return false, h.all.Load().refuse()
		}
	}
	if h.watchesWrites() && r.grows() {
		return h.write(ctx, r)
	}
	v, sent, err := h.through(ctx, r)
	if v.outcome == writeRefused {
		h.watchWrites()
		h.writes.Load().fail(v.cause)
	}
	return sent, err
}

// through sends r through the circuit that all commands pass.
func (h *Hook) through(ctx context.Context, r *request) (v verdict, sent bool, err error) {
	c := h.all.Load()
	admitted := c.call(func() error {
		sendCtx := ctx
		if State(c.state.Load()) == StateHalfOpen {
			// The probe may have to connect, and what Options.OnConnect sends
			// then comes through this hook too.
			sendCtx = h.nest(ctx)
		}
		v, err = r.send(sendCtx, h)
		h.tally.outcomes[v.outcome].Add(1)
		switch v.outcome {
		case failed:
			return c.note(v.cause)
		case neutral, poolTimeout:
			return errNeutral
		}
		return nil
	})
	switch {
	case admitted:
		return v, true, err
	case h.nested(ctx):
		_, err = r.send(ctx, h)
		return verdict{}, true, err
	case bypasses(ctx):
		return verdict{}, true, h.bypass(ctx, r)
	}
	return verdict{}, false, c.refuse()
}

// write sends r, which stores data, through both circuits.
func (h *Hook) write(ctx context.Context, r *request) (sent bool, err error) {
	c := h.writes.Load()
	admitted := c.call(func() error {
		var v verdict
		v, sent, err = h.through(ctx, r)
		switch v.outcome {
		case writeRefused:
			h.watchWrites()
			return c.note(v.cause)
		case alive:
			return nil
		}
		return errNeutral // no reply, so no word on writes
	})
	switch {
	case admitted:
		return sent, err
	case bypasses(ctx) || h.nested(ctx):
		_, sent, err = h.through(ctx, r)
		return sent, err
	}
	return false, c.refuse()
}

// bypass sends r past the circuits.
func (h *Hook) bypass(ctx context.Context, r *request) error {
	v, err := r.send(ctx, h)
	h.tally.outcomes[v.outcome].Add(1)
	h.tally.bypassed.Add(1)
	return err
}

// ping sends a probe in place of the blocking r.
func (h *Hook) ping(ctx context.Context, r *request) (sent bool, err error) {
	ping := redis.NewStatusCmd(ctx, "ping")
	probe := &request{process: r.process, cmd: ping, pipeline: r.pipeline}
	if r.pipeline != nil {
		probe.cmds = []redis.Cmder{ping}
	}
	_, sent, err = h.through(ctx, probe)
	return sent, err
}

// watchesWrites reports whether writes are counted: only for a Window after one
// was refused and until their circuit is closed again, so that they cost nothing
// where all is well.
func (h *Hook) watchesWrites() bool {
	until := h.writesWatched.Load()
	if until == 0 {
		return false
	}
	if int64(h.since()) < until || h.WriteState() != StateClosed {
		return true
	}
	h.writesWatched.CompareAndSwap(until, 0)
	return false
}

func (h *Hook) watchWrites() { h.writesWatched.Store(int64(h.since() + h.cfg.Window)) }

// send sends r and judges the outcome.
func (r *request) send(ctx context.Context, h *Hook) (verdict, error) {
	j := judge{hook: h, ctx: ctx, kind: r.kind}
	if _, ok := ctx.Deadline(); ok { // the clock is only read where it may matter
		j.sent = time.Now()
	}
	if r.pipeline == nil {
		err := r.process(ctx, r.cmd)
		return verdict{j.one(err), err}, err
	}
	err := r.pipeline(ctx, r.cmds)
	return j.all(r.cmds, err), err
}
