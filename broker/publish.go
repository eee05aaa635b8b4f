package broker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// markTTL is how long an ID that was given keeps others like it out.
const markTTL = 24 * time.Hour

// publish encodes a task and gives it to a lane.
func (c *Client) publish(ctx context.Context, d *definition, wantResult bool, arg any, opts []PublishOption) (id string, err error) {
	if err := d.usable(); err != nil {
		return "", err
	}
	if err := c.usable(ctx); err != nil {
		return "", err
	}
	o, err := newPublishOptions(opts)
	if err != nil {
		return "", err
	}
	start := time.Now()
	defer func() { c.counts.observePublish(time.Since(start), err) }()
	payload, err := c.encode(d, arg)
	if err != nil {
		return "", err
	}
	if err := c.conn.Err(); err != nil {
		return "", err
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	q, err := c.awaitQueue(ctx, d.cfg.Queue)
	if err != nil {
		return "", err
	}
	l := q.pick(o.id)
	e := envelope{
		priority:    d.cfg.Priority.stored(),
		attempt:     1,
		maxAttempts: uint16(d.cfg.MaxAttempts),
		id:          o.id,
		task:        d.name,
		timeout:     uint64(ceilMillis(d.cfg.Timeout)),
		result:      wantResult,
		retention:   uint64(ceilMillis(d.cfg.Retention)),
		headers:     o.headers,
		payload:     payload,
	}
	if !o.given {
		e.id = generateID(start, l.p.index)
	}
	t := &publishing{id: e.id, priority: e.priority, due: o.due(), envelope: appendEnvelope(nil, &e), done: make(chan struct{})}
	if o.given {
		t.mark = l.p.idMark(e.id)
	}
	return e.id, l.publish(ctx, t)
}

// awaitQueue finds a queue, and waits for a server that is away as a lane does.
func (c *Client) awaitQueue(ctx context.Context, name string) (*queue, error) {
	for pause := newPause(); ; {
		q, err := c.queue(ctx, name)
		if err == nil || outcomeOf(err, true) == final || errors.Is(err, errMetadata) {
			return q, err
		}
		if ctx.Err() == nil {
			pause.wait(ctx.Done(), c.closing)
		}
		if err := c.usable(ctx); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("not sent: %w: %v", context.Cause(ctx), err) //nolint:errorlint // one cause
		}
	}
}

// encode returns the stored form of a task's argument.
func (c *Client) encode(d *definition, arg any) ([]byte, error) {
	plain, err := d.cfg.Codec.Append(nil, arg)
	if err != nil {
		return nil, fmt.Errorf("encode the argument, a %T: %w", arg, err)
	}
	if len(plain) > c.cfg.MaxPayloadBytes {
		return nil, fmt.Errorf("the argument has %d bytes, want at most %d (Config.MaxPayloadBytes): publish a reference to where it is kept", len(plain), c.cfg.MaxPayloadBytes)
	}
	return c.compress.AppendEncode(nil, plain), nil
}

// bound ends ctx after Config.PublishTimeout, unless it ends earlier by itself.
func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := c.cfg.PublishTimeout
	if deadline, ok := ctx.Deadline(); limit < 0 || ok && time.Until(deadline) <= limit {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s (Config.PublishTimeout): %w", limit, context.DeadlineExceeded))
}

// due is when the task may run, as publish.lua takes it.
func (o *publishOptions) due() string {
	switch {
	case o.after > 0:
		return "+" + strconv.FormatInt(ceilMillis(o.after), 10)
	case !o.at.IsZero():
		ms := o.at.UnixMilli()
		if o.at.Nanosecond()%int(time.Millisecond) != 0 {
			ms++
		}
		return strconv.FormatInt(max(ms, 0), 10)
	}
	return ""
}
