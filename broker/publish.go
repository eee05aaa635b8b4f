package broker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"time"

	"github.com/redisha/redisha/internal/conn"
)

// Times for which keys keep other tasks out.
const (
	markTTL   = 24 * time.Hour // of an ID that was given
	uniqueTTL = 24 * time.Hour // of a unique key, since its task was last moved
)

// A call is what one Publish needs while it lasts. Calls are used again, unless
// something may still refer to them.
type call struct {
	task   publishing
	waiter waiter
	timer  *time.Timer
	plain  []byte // the argument as its codec made it
}

func (c *Client) newCall() *call {
	if k, ok := c.calls.Get().(*call); ok {
		return k
	}
	return &call{waiter: waiter{done: make(chan struct{}, 1)}}
}

// publish encodes a task and gives it to a lane.
func (c *Client) publish(ctx context.Context, d *definition, wantResult bool, arg any, opts []PublishOption) (id string, err error) {
	o, err := c.prepare(ctx, d, opts)
	if err != nil {
		return "", err
	}
	start := time.Now()
	unheard := false
	defer func() {
		if err != nil || !unheard {
			c.counts.observePublish(time.Since(start), err)
		}
	}()
	k := c.newCall()
	if err := c.encode(d, arg, &k.plain); err != nil {
		return "", err
	}
	limit := c.limit(ctx, start)
	q, level, err := c.target(ctx, d, start, limit)
	if err != nil {
		return "", err
	}
	unheard = level == ConfirmNone
	t := &k.task
	c.build(t, d, o, k.plain, wantResult, len(q.partitions))
	lanes := c.lanesOf(q, level)
	for {
		l := q.pick(lanes, t.placed)
		t.place(l.p, start)
		id = t.id // the call may be another's when travel returns
		err := c.travel(ctx, l, k, unheard, limit)
		if err == errPassedOver { //nolint:errorlint // it is ours, and bare
			continue
		}
		var unconfirmed *UnconfirmedError
		if err != nil && !errors.As(err, &unconfirmed) {
			return "", err
		}
		return id, err
	}
}

// prepare refuses what cannot be published.
func (c *Client) prepare(ctx context.Context, d *definition, opts []PublishOption) (*publishOptions, error) {
	if err := d.usable(); err != nil {
		return nil, err
	}
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	o, err := newPublishOptions(opts)
	if err != nil {
		return nil, err
	}
	if c.cfg.Headers != nil {
		if o, err = o.withHeaders(c.cfg.Headers(ctx)); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// withHeaders adds what Config.Headers has told and no option has.
func (o *publishOptions) withHeaders(more map[string]string) (*publishOptions, error) {
	if len(more) == 0 {
		return o, nil
	}
	names := make([]string, 0, len(more))
	for name := range more {
		names = append(names, name)
	}
	sort.Strings(names)
	all := *o
	all.headers, all.headerBytes, all.errs = nil, 0, nil
	for _, name := range names {
		Header(name, more[name])(&all)
	}
	for _, h := range o.headers {
		Header(h.name, h.value)(&all)
	}
	return &all, errors.Join(all.errs...)
}

// target finds out where a task goes, and how it is confirmed there.
func (c *Client) target(ctx context.Context, d *definition, now, limit time.Time) (*queue, Confirm, error) {
	if err := c.conn.Err(); err != nil {
		return nil, 0, err
	}
	if ctx.Err() != nil {
		return nil, 0, context.Cause(ctx)
	}
	want := d.cfg.Confirm
	if want == ConfirmDefault {
		want = c.cfg.Confirm
	}
	if q, ok := c.queues.Load(d.cfg.Queue); ok {
		if level, ok := c.knownConfirm(want, now); ok {
			return q.(*queue), level, nil
		}
	}
	ctx, cancel := c.bound(ctx, limit)
	defer cancel()
	q, err := c.awaitQueue(ctx, d.cfg.Queue)
	if err != nil {
		return nil, 0, err
	}
	level, err := c.confirm(ctx, want)
	for pause := newPause(); err != nil && outcomeOf(err, true) != final; {
		pause.wait(ctx.Done(), c.closing)
		if err := c.usable(ctx); err != nil {
			return nil, 0, err
		}
		if ctx.Err() != nil {
			return nil, 0, fmt.Errorf("not sent: %w: %v", context.Cause(ctx), err) //nolint:errorlint // one cause
		}
		level, err = c.confirm(ctx, want)
	}
	return q, level, err
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

// encode makes the plain form of a task's argument, in the memory of plain.
func (c *Client) encode(d *definition, arg any, plain *[]byte) (err error) {
	b, err := d.cfg.Codec.Append((*plain)[:0], arg)
	if err != nil {
		return fmt.Errorf("encode the argument, a %T: %w", arg, err)
	}
	if len(b) > c.cfg.MaxPayloadBytes {
		return fmt.Errorf("the argument has %d bytes, want at most %d (Config.MaxPayloadBytes): publish a reference to where it is kept", len(b), c.cfg.MaxPayloadBytes)
	}
	*plain = b
	return nil
}

// build makes the task, but for what its partition decides.
func (c *Client) build(t *publishing, d *definition, o *publishOptions, plain []byte, wantResult bool, partitions int) {
	e := envelope{
		priority:    d.cfg.Priority.stored(),
		attempt:     1,
		maxAttempts: uint16(d.cfg.MaxAttempts),
		id:          o.id,
		task:        d.name,
		ttl:         uint64(ceilMillis(o.expire)),
		timeout:     uint64(ceilMillis(d.cfg.Timeout)),
		result:      wantResult,
		retention:   uint64(ceilMillis(d.cfg.Retention)),
		headers:     o.headers,
	}
	t.reset()
	t.id, t.given, t.timed = o.id, o.given, e.ttl > 0
	if !o.given {
		e.id = blankID // place fills it in
	}
	if o.unique {
		if t.unique = o.uniqueKey; t.unique == "" {
			sum := sha256.Sum256(plain)
			t.unique = d.name + ":" + hex.EncodeToString(sum[:16])
		}
		if o.uniqueTTL == 0 {
			e.unique = t.unique
		}
	}
	if o.limit > 0 {
		t.key = o.key
		e.concurrency, e.key = uint64(o.limit), o.key
	}
	switch {
	case o.limit > 0:
		t.placed = o.key
	case o.unique:
		t.placed = t.unique
	default:
		t.placed = o.id
	}
	t.conditions = conditions(d, o, partitions)
	t.envelope = c.compress.AppendTried(d.trial, appendEnvelope(t.envelope[:0], &e), plain)
}

// conditions are those of the task as publish.lua takes them; nil without.
func conditions(d *definition, o *publishOptions, partitions int) any {
	due := o.due()
	if due == "" && !o.given && !o.unique && o.limit == 0 && d.cfg.QueueLimit == 0 {
		return nil
	}
	b := make([]byte, 0, 48+len(o.key))
	b = append(append(b, due...), ';')
	mark := int64(0)
	if o.given {
		mark = max(markTTL, o.mark).Milliseconds()
	}
	b = append(strconv.AppendInt(b, mark, 10), ';')
	switch {
	case o.unique && o.uniqueTTL == 0:
		b = strconv.AppendInt(append(b, '+'), uniqueTTL.Milliseconds(), 10)
	case o.unique:
		b = strconv.AppendInt(b, ceilMillis(o.uniqueTTL), 10)
	default:
		b = append(b, '0')
	}
	b = append(b, ';')
	b = append(strconv.AppendInt(b, int64(o.limit), 10), ';')
	bound := (d.cfg.QueueLimit + partitions - 1) / partitions
	b = append(strconv.AppendInt(b, int64(bound), 10), ';')
	return string(append(b, o.key...))
}

const blankID = "t000000000000000000000000"

// place gives t an ID and keys of the partition.
func (t *publishing) place(p *partition, now time.Time) {
	if !t.given {
		t.id = generateID(now, p.index)
		copy(t.envelope[headSize+1:], t.id)
	}
	t.keys = t.keys[:0]
	if t.given {
		t.keys = append(t.keys, p.idMark(t.id))
	}
	if t.unique != "" {
		t.keys = append(t.keys, p.unique(t.unique))
	}
	if t.key != "" {
		t.keys = append(t.keys, p.slots(t.key), p.parked(t.key))
	}
}

func (t *publishing) reset() { *t = publishing{envelope: t.envelope, keys: t.keys} }

// errPassedOver says that the lane fails, and that the task was taken back from it.
var errPassedOver = errors.New("passed over")

// travel takes the call's task through a lane. Where nobody wants to hear of it,
// it returns when the task waits there.
func (c *Client) travel(ctx context.Context, l *lane, k *call, unheard bool, limit time.Time) error {
	t := &k.task
	if !unheard {
		t.waiter = &k.waiter
		k.waiter.left.Store(1)
	}
	lead, err := c.board(ctx, l, k, limit, t)
	if err != nil {
		return err
	}
	if unheard {
		if lead {
			go l.run(true)
		}
		return nil
	}
	if lead {
		l.lead(leadContext(ctx, limit))
	}
	free := t.placed == "" && l.p.of > 1
	for {
		select {
		case <-k.waiter.done:
			return c.done(k)
		default:
		}
		var alarm <-chan time.Time
		if free || !limit.IsZero() {
			alarm = k.alarm(free, limit)
		}
		select {
		case <-k.waiter.done:
			return c.done(k)
		case <-ctx.Done():
			return l.giveUp(t, context.Cause(ctx))
		case <-alarm:
			now := time.Now()
			if !limit.IsZero() && !now.Before(limit) {
				return l.giveUp(t, c.tooLong())
			}
			if free && l.passOver(t, now) {
				return errPassedOver
			}
		}
	}
}

func (c *Client) done(k *call) error {
	err := k.task.err
	c.giveBack(k)
	return err
}

// giveBack lets another use a call that nothing refers to.
func (c *Client) giveBack(k *call) {
	if k.timer != nil {
		k.timer.Stop()
	}
	c.calls.Put(k)
}

// board puts tasks into a lane, once there is room.
func (c *Client) board(ctx context.Context, l *lane, k *call, limit time.Time, tasks ...*publishing) (lead bool, err error) {
	for {
		lead, room, err := l.enter(tasks...)
		if room == nil {
			return lead, err
		}
		select {
		case <-room:
		case <-ctx.Done():
			return false, fmt.Errorf("not sent: %w", context.Cause(ctx))
		case <-k.alarm(false, limit):
			return false, fmt.Errorf("not sent: %w", c.tooLong())
		case <-c.life.Done():
			return false, ErrClosed
		}
	}
}

// alarm returns when to look again.
func (k *call) alarm(soon bool, limit time.Time) <-chan time.Time {
	wait := passOverAfter + passOverAfter/4
	if !limit.IsZero() && (!soon || time.Until(limit) < wait) {
		wait = time.Until(limit)
	} else if !soon {
		return nil
	}
	if k.timer == nil {
		k.timer = time.NewTimer(wait)
	} else {
		k.timer.Reset(wait)
	}
	return k.timer.C
}

// limit is when a publish that began at start ends by Config.PublishTimeout; zero
// if its context ends earlier, or only that bounds it.
func (c *Client) limit(ctx context.Context, start time.Time) time.Time {
	if c.cfg.PublishTimeout < 0 {
		return time.Time{}
	}
	limit := start.Add(c.cfg.PublishTimeout)
	if deadline, ok := ctx.Deadline(); ok && !deadline.After(limit) {
		return time.Time{}
	}
	return limit
}

func (c *Client) tooLong() error {
	return fmt.Errorf("no answer within %s (Config.PublishTimeout): %w", c.cfg.PublishTimeout, context.DeadlineExceeded)
}

// bound is for what happens rarely: a context with a timer.
func (c *Client) bound(ctx context.Context, limit time.Time) (context.Context, context.CancelFunc) {
	if limit.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadlineCause(ctx, limit, c.tooLong())
}

// A leading is the context of an attempt that a caller makes himself. Its deadline
// bounds the socket alone, and costs no timer: since the connection waits for
// nothing under such a context, nobody waits for its end.
type leading struct {
	context.Context
	limit time.Time
}

func (c leading) Deadline() (time.Time, bool) { return c.limit, true }

func leadContext(ctx context.Context, limit time.Time) context.Context {
	ctx = conn.Once(ctx)
	if limit.IsZero() {
		return ctx
	}
	return leading{ctx, limit}
}
