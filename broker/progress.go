package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redisha/redisha/broker/result"
)

// progressEvery is the least time between two records of a task's progress.
const progressEvery = 100 * time.Millisecond

var errNoProgress = errors.New("the task keeps no result: make it a ResultTask or set TaskConfig.Retention, and set WorkerConfig.Results")

// errDeliveryEnded is why a handler that has returned can report nothing more.
var errDeliveryEnded = errors.New("the handler has returned")

// Progress tells those who look at the task's result how far the handler is:
// its record has state [result.Progress], and v, encoded by the codec of
// WorkerConfig.Results, as Record.Progress. A record of a failed attempt keeps it.
//
// It does not wait for the server, and may be called as often as one likes: one
// record at most is stored each 100 ms, and the last v is not lost by that,
// unless the handler returns before. While the server of results is away,
// progress is dropped.
//
// The error says that the task keeps no result, that v cannot be encoded or is
// too large (a [*result.TooLargeError]), that the handler has returned, or that
// ctx has ended. It may be called by several goroutines at once.
func (d *Delivery) Progress(ctx context.Context, v any) error {
	if err := d.reportProgress(ctx, v); err != nil {
		return fmt.Errorf("broker: progress of %q: %w", d.ID, err)
	}
	return nil
}

func (d *Delivery) reportProgress(ctx context.Context, v any) error {
	switch {
	case ctx == nil:
		return errNilContext
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case d.progress == nil:
		return errNoProgress
	}
	value, err := d.progress.results.Encode(v)
	var tooLarge *result.TooLargeError
	if errors.As(err, &tooLarge) {
		tooLarge.Field = "Progress"
	}
	if err != nil {
		return err
	}
	return d.progress.report(value)
}

// A reporter passes the progress of one delivery on, at intervals.
type reporter struct {
	results *result.Client
	pass    func(*result.Record) bool // false: there is no room now
	record  result.Record             // but for the progress

	mu    sync.Mutex
	ended bool
	last  []byte      // what was reported last
	due   bool        // last is not passed on yet, and timer runs
	sent  time.Time   // when something was passed on
	timer *time.Timer // nil until it is needed
}

// reports returns the reporter of a task whose result is kept.
func (r *run) reports(t *task, e *envelope, start time.Time) *reporter {
	return &reporter{
		results: r.w.cfg.Results,
		pass:    func(rec *result.Record) bool { return t.s.note(t, rec) },
		record: result.Record{ID: e.id, Task: e.task, State: result.Progress, Attempt: int(e.attempt),
			Enqueued: time.UnixMilli(e.enqueued), Started: start, TTL: retention(e)},
	}
}

func (p *reporter) report(value []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return errDeliveryEnded
	}
	p.last = value
	if p.due {
		return nil
	}
	if wait := progressEvery - time.Since(p.sent); wait > 0 || !p.send() {
		p.arm(max(wait, progressEvery/10))
	}
	return nil
}

// send passes on what was reported last. p.mu is held.
func (p *reporter) send() bool {
	record := p.record
	record.Progress = p.last
	if !p.pass(&record) {
		return false
	}
	p.sent = time.Now()
	return true
}

// arm lets the timer send in d. p.mu is held.
func (p *reporter) arm(d time.Duration) {
	p.due = true
	if p.timer == nil {
		p.timer = time.AfterFunc(d, p.fire)
		return
	}
	p.timer.Reset(d)
}

func (p *reporter) fire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || !p.due {
		return
	}
	if p.due = false; !p.send() {
		p.arm(progressEvery)
	}
}

// end lets nothing more be passed on, and returns what was reported last. A nil
// reporter has reported nothing.
func (p *reporter) end() []byte {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	if p.timer != nil {
		p.timer.Stop()
	}
	return p.last
}
