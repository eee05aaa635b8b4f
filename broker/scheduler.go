package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A SchedulerConfig configures a [Scheduler]. The zero SchedulerConfig is ready
// to use.
type SchedulerConfig struct {
	// Location is the time zone of cron expressions. Defaults to UTC.
	Location *time.Location

	// CatchUp is how late a tick may still be published. After a restart, or when
	// Redis is back, the last one that was missed is published if it is no older,
	// and those before it are left out. Defaults to 1m; at least 1s. It holds for a
	// new schedule, too, whose last tick is published if it is no older.
	CatchUp time.Duration
}

// A Scheduler publishes periodic tasks. Any number of them may run, one in each
// process for instance: a tick is one task, since all publish it under the same
// [ID], tick:<name>:<time in UTC>. A tick is delayed until its time by the clock of
// the Redis server, should the process's own be ahead.
//
// Times are those of the clock on the wall in Location. When that is set forward, a
// task whose time is left out runs at that moment; when it is set back, a task with
// fixed hours runs in the first of the two equal hours, and one that runs in every
// hour in both.
type Scheduler struct {
	c   *Client
	cfg SchedulerConfig

	mu      sync.Mutex
	entries []*periodic
	errs    []error
	running bool
}

// NewScheduler returns a Scheduler. It does no I/O.
func NewScheduler(c *Client, cfg SchedulerConfig) (*Scheduler, error) {
	if c == nil {
		return nil, errors.New("broker: new scheduler: nil client: pass one made by New")
	}
	if cfg.Location == nil {
		cfg.Location = time.UTC
	}
	cfg.CatchUp = cmp.Or(cfg.CatchUp, time.Minute)
	if cfg.CatchUp < time.Second {
		return nil, fmt.Errorf("broker: new scheduler: SchedulerConfig.CatchUp is %s, want at least 1s, or 0 for 1m", cfg.CatchUp)
	}
	return &Scheduler{c: c, cfg: cfg}, nil
}

// A periodic is one line of a scheduler's table.
type periodic struct {
	name     string
	schedule schedule
	publish  func(ctx context.Context, opts ...PublishOption) error
	log      []any
}

// Schedule lets s publish the task with arg at each tick of a cron expression: five
// fields (minute, hour, day of the month, month, day of the week), @hourly, @daily,
// @weekly, @monthly, @yearly, or "@every 90s", the multiples of that since 1970.
//
// The name identifies the schedule over all schedulers and versions of the program:
// 1 to 200 bytes. The options may be any but After, At and ID, which are the
// scheduler's; with [Unique], a tick is left out while the task of an earlier one
// has not ended. What is wrong is reported by Run.
func (t *Task[A]) Schedule(s *Scheduler, name, expression string, arg A, opts ...PublishOption) {
	if s == nil {
		return // Run says so
	}
	if t == nil {
		s.add(nil, name, expression, nil, opts, nil)
		return
	}
	s.add(&t.def, name, expression, arg, opts, func(ctx context.Context, more ...PublishOption) error {
		_, err := t.Publish(ctx, s.c, arg, append(opts[:len(opts):len(opts)], more...)...)
		return err
	})
}

func (s *Scheduler) add(d *definition, name, expression string, arg any, opts []PublishOption, publish func(context.Context, ...PublishOption) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &periodic{name: name, publish: publish, log: []any{"schedule", name, "task", d.label()}}
	var err error
	if e.schedule, err = s.check(d, name, expression, arg, opts); err != nil {
		s.errs = append(s.errs, fmt.Errorf("schedule %q: %w", name, err))
		return
	}
	s.entries = append(s.entries, e)
}

// check says what is wrong with a line.
func (s *Scheduler) check(d *definition, name, expression string, arg any, opts []PublishOption) (schedule, error) {
	if err := d.usable(); err != nil {
		return schedule{}, err
	}
	if s.running {
		return schedule{}, errors.New("Run has been called")
	}
	for _, e := range s.entries {
		if e.name == name {
			return schedule{}, errors.New("there is one of that name already")
		}
	}
	if err := validateGivenID(tickID(name, time.Time{})); name == "" || len(name) > 200 || err != nil {
		return schedule{}, cmp.Or(err, fmt.Errorf("its name has %d bytes, want 1 to 200", len(name)))
	}
	o, err := newPublishOptions(opts)
	if err != nil {
		return schedule{}, err
	}
	if o.given || o.after != 0 || !o.at.IsZero() {
		return schedule{}, errors.New("the options have After, At or ID, which the scheduler sets")
	}
	var plain []byte
	if err := s.c.encode(d, arg, &plain); err != nil {
		return schedule{}, err
	}
	return parseSchedule(expression, s.cfg.Location)
}

func tickID(name string, tick time.Time) string {
	return "tick:" + name + ":" + tick.UTC().Format("2006-01-02T15:04:05Z")
}

// Run publishes until ctx ends, and then returns nil; or, after the client was
// closed, [ErrClosed]. It returns an error at once if a schedule is wrong. While
// Redis is away it tries again, and leaves out what CatchUp does not cover; that is
// logged and counted (Stats.MissedTicks). It can be called once.
func (s *Scheduler) Run(ctx context.Context) error {
	if err := s.begin(ctx); err != nil {
		return fmt.Errorf("broker: scheduler: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	for _, e := range s.entries {
		all.Go(func() { s.follow(ctx, e) })
	}
	select {
	case <-ctx.Done():
	case <-s.c.closing:
	}
	cancel()
	all.Wait()
	select {
	case <-s.c.closing:
		return fmt.Errorf("broker: scheduler: %w", ErrClosed)
	default:
		return nil
	}
}

func (s *Scheduler) begin(ctx context.Context) error {
	if s == nil {
		return errors.New("nil scheduler: pass one made by NewScheduler")
	}
	if err := s.c.usable(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running {
		return errors.New("Run was called before")
	}
	s.running = true
	if len(s.entries) == 0 && len(s.errs) == 0 {
		return errors.New("there are no schedules")
	}
	return errors.Join(s.errs...)
}

// follow publishes the ticks of a line.
func (s *Scheduler) follow(ctx context.Context, e *periodic) {
	last := time.Now().Add(-s.cfg.CatchUp)
	for first := true; ; first = false {
		tick := s.await(ctx, e, last)
		if tick.IsZero() {
			return
		}
		for now := time.Now(); ; {
			after := e.schedule.next(tick)
			if after.IsZero() || after.After(now) {
				break
			}
			if !first { // else they are those of before
				s.miss(e, tick, errors.New("a later one was due"))
			}
			tick = after
		}
		if time.Since(tick) > s.cfg.CatchUp {
			s.miss(e, tick, errors.New("it came too late (SchedulerConfig.CatchUp)"))
		} else {
			s.publish(ctx, e, tick)
		}
		last = tick
	}
}

// longestSleep bounds how late a clock that was set is noticed.
const longestSleep = 30 * time.Second

// await returns the first tick behind last, when it is due; zero when ctx ends.
func (s *Scheduler) await(ctx context.Context, e *periodic, last time.Time) time.Time {
	timer := time.NewTimer(1)
	defer timer.Stop()
	for {
		tick := e.schedule.next(last)
		wait := time.Until(tick)
		if tick.IsZero() {
			wait = longestSleep
		} else if wait <= 0 {
			return tick
		}
		timer.Reset(min(wait, longestSleep))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return time.Time{}
		}
	}
}

// publish publishes a tick, and tries again until it counts as missed.
func (s *Scheduler) publish(ctx context.Context, e *periodic, tick time.Time) {
	limit := tick.Add(s.cfg.CatchUp)
	ctx, cancel := context.WithDeadlineCause(ctx, limit, errors.New("it is too late for this tick (SchedulerConfig.CatchUp)"))
	defer cancel()
	keep := func(o *publishOptions) { // its mark outlives the next tick, and the catching up
		if next := e.schedule.next(tick); !next.IsZero() {
			o.mark = 2 * next.Sub(tick)
		}
		o.mark = max(o.mark, 2*s.cfg.CatchUp)
	}
	for pause := newPause(); ; pause.wait(ctx.Done()) {
		err := e.publish(ctx, ID(tickID(e.name, tick)), At(tick), keep)
		switch {
		case err == nil:
			s.c.counts.ticks.Inc()
			return
		case errors.Is(err, ErrDuplicate):
			s.c.log.Info("a periodic task is left out: that of an earlier tick has not ended", append(e.log, "tick", tick, "err", err)...)
			return
		case fatal(err) || ctx.Err() != nil && time.Now().Before(limit):
			return // the end of Run
		case ctx.Err() != nil:
			s.miss(e, tick, err)
			return
		}
		s.c.log.Debug("a periodic task is not published yet", append(e.log, "tick", tick, "err", err)...)
	}
}

func (s *Scheduler) miss(e *periodic, tick time.Time, err error) {
	s.c.counts.missedTicks.Inc()
	s.c.log.Warn("a periodic task was missed", append(e.log[:len(e.log):len(e.log)], "tick", tick, "err", err)...)
}
