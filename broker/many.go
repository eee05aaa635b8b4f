package broker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Published is what became of one of the tasks that [Task.PublishMany] was given.
type Published struct {
	ID  string // also with an [UnconfirmedError]; else empty if it was not published
	Err error  // as Publish returns it
}

// PublishMany publishes a task for each argument and returns what became of each,
// in their order. The error is nil if all were published; else it wraps the first
// error of a task, or says why nothing was tried, and then there is no result.
//
// They travel in batches of up to 256 tasks or 512 KiB, at most four of which are
// encoded and under way at a time, however many arguments there are.
// Config.PublishTimeout bounds each batch. When ctx ends, what was not sent is not
// published. What options say is true of each task, but for [ID]: it names all of
// them, and each gets the ID [DerivedID](id, index). So a PublishMany that was
// interrupted may be repeated with the same arguments. Of tasks with the same
// [Unique] key the first is published, and the others have a [*DuplicateError] with
// its ID.
func (t *Task[A]) PublishMany(ctx context.Context, c *Client, args []A, opts ...PublishOption) ([]Published, error) {
	if t == nil {
		return nil, fmt.Errorf("broker: publish: %w", errUndefined)
	}
	result, err := c.publishMany(ctx, &t.def, t.wantResult, len(args), func(i int) any { return args[i] }, opts)
	if err != nil {
		return result, fmt.Errorf("broker: publish %q: %w", t.def.label(), err)
	}
	return result, nil
}

// maxParcels bounds what one PublishMany has under way.
const maxParcels = 4

// parcelBytes is what is worth a journey: what comes behind it is encoded meanwhile.
const parcelBytes = 48 << 10

// A parcel is a part of a PublishMany that travels through one lane.
type parcel struct {
	call  *call // its waiter and timer
	lane  *lane
	limit time.Time
	tasks []*publishing
	at    []int // whose they are
	bytes int
}

// A shipment is one PublishMany.
type shipment struct {
	c      *Client
	ctx    context.Context
	d      *definition
	o      *publishOptions
	level  Confirm
	queue  *queue
	lanes  []*lane
	result []Published

	open     map[*lane]*parcel // being filled; a nil lane is that of tasks that go anywhere
	underWay []*parcel
}

func (c *Client) publishMany(ctx context.Context, d *definition, wantResult bool, n int, arg func(int) any, opts []PublishOption) (_ []Published, err error) {
	o, err := c.prepare(ctx, d, opts)
	if err != nil {
		return nil, err
	}
	if o.given {
		if err := validateGivenID(DerivedID(o.id, n)); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	s := &shipment{c: c, ctx: ctx, d: d, o: o, result: make([]Published, n), open: make(map[*lane]*parcel)}
	if s.queue, s.level, err = c.target(ctx, d, start, c.limit(ctx, start)); err != nil {
		return nil, err
	}
	s.lanes = c.lanesOf(s.queue, s.level)
	var plain []byte
	for i := range n {
		if ctx.Err() != nil {
			s.result[i].Err = fmt.Errorf("not sent: %w", context.Cause(ctx))
			continue
		}
		if err := c.encode(d, arg(i), &plain); err != nil {
			s.result[i].Err = err
			continue
		}
		s.add(i, plain, wantResult)
	}
	s.flush()
	c.counts.publishTime.Observe(time.Since(start))
	return s.result, s.verdict()
}

// add builds a task and puts it into its parcel, which leaves when it is full.
func (s *shipment) add(i int, plain []byte, wantResult bool) {
	t := new(publishing)
	o := s.o
	if o.given {
		own := *o
		own.id = DerivedID(o.id, i)
		o = &own
	}
	s.c.build(t, s.d, o, plain, wantResult, len(s.queue.partitions))
	var l *lane
	if t.placed != "" {
		l = s.queue.pick(s.lanes, t.placed)
	}
	g := s.open[l]
	if g != nil && (len(g.tasks) == maxBatch || g.bytes >= parcelBytes) {
		s.leave(l, false)
		g = nil
	}
	if g == nil {
		if l != nil && len(s.open) == maxParcels { // so many partitions: the fullest goes
			s.leave(s.fullest(), false)
		}
		g = &parcel{call: s.c.newCall()}
		s.open[l] = g
	}
	g.tasks, g.at, g.bytes = append(g.tasks, t), append(g.at, i), g.bytes+len(t.envelope)
}

func (s *shipment) fullest() (fullest *lane) {
	most := -1
	for l, g := range s.open {
		if len(g.tasks) > most {
			fullest, most = l, len(g.tasks)
		}
	}
	return fullest
}

// leave sends the parcel that is open for a lane. The last one may be sent by the
// caller itself.
func (s *shipment) leave(l *lane, last bool) {
	g := s.open[l]
	delete(s.open, l)
	for len(s.underWay) >= maxParcels {
		s.land()
	}
	if l == nil {
		l = s.queue.pick(s.lanes, "")
	}
	s.board(g, l, last)
}

func (s *shipment) flush() {
	for l := range s.open {
		s.leave(l, len(s.open) == 1)
	}
	for len(s.underWay) > 0 {
		s.land()
	}
}

// board gives a parcel to a lane.
func (s *shipment) board(g *parcel, l *lane, last bool) {
	now := time.Now()
	g.lane, g.limit = l, s.c.limit(s.ctx, now)
	unheard := s.level == ConfirmNone
	for k, t := range g.tasks {
		t.place(l.p, now)
		s.result[g.at[k]].ID = t.id
		if !unheard {
			t.waiter = &g.call.waiter
		}
	}
	g.call.waiter.left.Store(int32(len(g.tasks)))
	if s.ctx.Err() != nil {
		s.refuse(g, fmt.Errorf("not sent: %w", context.Cause(s.ctx)))
		return
	}
	lead, err := s.c.board(s.ctx, l, g.call, g.limit, g.tasks...)
	switch {
	case err != nil:
		s.refuse(g, err)
		return
	case lead && last && !unheard:
		l.lead(leadContext(s.ctx, g.limit))
	case lead:
		go l.run(true)
	}
	if !unheard {
		s.underWay = append(s.underWay, g)
	}
}

func (s *shipment) refuse(g *parcel, err error) {
	for _, i := range g.at {
		s.result[i] = Published{Err: err}
	}
}

// land waits for the first parcel that is under way.
func (s *shipment) land() {
	g := s.underWay[0]
	s.underWay = s.underWay[1:]
	free := g.tasks[0].placed == "" && len(s.lanes) > 1
	var gone error
	for gone == nil {
		var alarm <-chan time.Time
		if free || !g.limit.IsZero() {
			alarm = g.call.alarm(free, g.limit)
		}
		select {
		case <-g.call.waiter.done:
			for k, t := range g.tasks {
				s.note(g.at[k], t.err)
			}
			s.c.giveBack(g.call)
			return
		case <-s.ctx.Done():
			gone = context.Cause(s.ctx)
		case <-alarm:
			now := time.Now()
			if !g.limit.IsZero() && !now.Before(g.limit) {
				gone = s.c.tooLong()
			} else if free && s.passOver(g, now) {
				return
			}
		}
	}
	for k, t := range g.tasks {
		s.note(g.at[k], g.lane.giveUp(t, gone))
	}
}

// passOver takes what was not sent back from a lane that fails, and gives it to
// another. It reports whether nothing was left behind.
func (s *shipment) passOver(g *parcel, now time.Time) bool {
	other := &parcel{call: s.c.newCall()}
	rest := &parcel{}
	for k, t := range g.tasks {
		to := rest
		if g.lane.passOver(t, now) {
			to = other
		}
		to.tasks, to.at = append(to.tasks, t), append(to.at, g.at[k])
	}
	if len(other.tasks) == 0 {
		return false
	}
	g.tasks, g.at = rest.tasks, rest.at
	left := g.call.waiter.left.Add(-int32(len(other.tasks)))
	s.board(other, s.queue.pick(s.lanes, ""), false)
	if len(g.tasks) > 0 && left == 0 { // the others were resolved before
		g.call.waiter.done <- struct{}{}
	}
	return len(g.tasks) == 0
}

func (s *shipment) note(i int, err error) {
	var unconfirmed *UnconfirmedError
	if err != nil && !errors.As(err, &unconfirmed) {
		s.result[i].ID = ""
	}
	s.result[i].Err = err
}

// verdict counts what failed.
func (s *shipment) verdict() error {
	failed := 0
	var first error
	for i := range s.result {
		if err := s.result[i].Err; err != nil {
			s.c.counts.publishFailed(err)
			if failed++; first == nil {
				first = err
			}
		}
	}
	if failed == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d tasks failed, the first: %w", failed, len(s.result), first)
}
