package broker

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/broker/result"
)

// A recorder stores the results of a source beside its settling, one batch at a
// time, so that what has no result never waits for the server of results. It
// belongs to settle, but for the one goroutine that stores.
//
// While the server fails, each try is of one record, with a short pause before
// it, and records that are not final are not kept for later. So the first try
// that succeeds lets all results go.
type recorder struct {
	s       *source
	waiting []*verdict // with records to store, in order
	flying  int        // so many are being stored
	failing bool       // the last store failed
	resting bool       // until rest fires
	rest    *time.Timer
	done    chan recorded // of the store under way
}

// recorded is what became of a batch.
type recorded struct {
	ready   []*verdict // their tasks may end
	failed  []*verdict // must be tried again
	trouble bool       // the server did not take a record, and may do so later
}

func newRecorder(s *source) *recorder {
	c := &recorder{s: s, rest: time.NewTimer(time.Hour), done: make(chan recorded, 1)}
	c.rest.Stop()
	return c
}

// take begins to store the records of a batch, and returns the verdicts that
// wait for none.
func (c *recorder) take(batch []*verdict) (ready []*verdict) {
	for _, v := range batch {
		if v.record == nil {
			ready = append(ready, v)
		} else {
			c.waiting = append(c.waiting, v)
		}
	}
	ready = append(ready, c.pass()...)
	c.launch()
	return ready
}

// pass returns, while the server fails, the verdicts whose records are not final:
// work goes before knowing of it.
func (c *recorder) pass() (ready []*verdict) {
	if !c.failing {
		return nil
	}
	kept := c.waiting[:0]
	for _, v := range c.waiting {
		if v.record.State.Final() {
			kept = append(kept, v)
			continue
		}
		v.record = nil
		ready = append(ready, v)
	}
	clear(c.waiting[len(kept):])
	c.waiting = kept
	return ready
}

// launch starts the next store, unless there is nothing to store or one under way.
func (c *recorder) launch() {
	if c.flying > 0 || c.resting || len(c.waiting) == 0 {
		return
	}
	n := min(len(c.waiting), maxSettle)
	if c.failing {
		n = 1
	}
	batch := c.waiting[:n:n]
	if c.waiting = c.waiting[n:]; len(c.waiting) == 0 {
		c.waiting = nil // let go of the batch
	}
	c.flying = n
	go func() { c.done <- c.s.storeResults(batch, c.s.r.w.cfg.Lease/5) }() // settle waits for it
}

// landed takes what a store has returned, and returns the verdicts whose tasks may
// end. What failed goes behind the others, since it may be the only one to fail.
func (c *recorder) landed(o recorded) (ready []*verdict) {
	c.flying, c.failing = 0, o.trouble
	c.waiting = append(c.waiting, o.failed...)
	if c.failing {
		c.resting = true
		c.rest.Reset(settleAgain)
	}
	c.launch()
	return append(o.ready, c.pass()...)
}

// rested ends the pause after a store that failed.
func (c *recorder) rested() {
	c.resting = false
	if len(c.waiting) == 0 {
		c.failing = false // with nothing to try it with
	}
	c.launch()
}

func (c *recorder) size() int { return c.flying + len(c.waiting) }

func (c *recorder) idle() bool { return c.size() == 0 }

// end waits for the store under way and gives up the rest: so many tasks.
func (c *recorder) end() (ready []*verdict, unrecorded int) {
	c.resting = true // nothing more is started
	if c.flying > 0 {
		ready = c.landed(<-c.done)
	}
	for _, v := range c.waiting {
		if v.kind != noteVerdict {
			unrecorded++
		}
	}
	return ready, unrecorded
}

func (c *recorder) stop() { c.rest.Stop() }

// storeResults stores the records of a batch. A final one must be stored before
// its task may end, else whoever waits for it would wait for ever.
func (s *source) storeResults(batch []*verdict, timeout time.Duration) (o recorded) {
	final := make(map[*task]bool)
	for _, v := range batch {
		if v.kind != noteVerdict {
			final[v.task] = true
		}
	}
	var records []result.Record
	var owners []*verdict
	for _, v := range batch {
		if v.kind == noteVerdict && final[v.task] {
			continue // overtaken
		}
		records, owners = append(records, *v.record), append(owners, v)
	}
	ctx, cancel := context.WithTimeout(s.r.storing, timeout)
	defer cancel()
	outcomes, _ := s.r.w.cfg.Results.StoreMany(ctx, records)
	for i, v := range owners {
		err := outcomes[i].Err
		var tooLarge *result.TooLargeError
		if errors.As(err, &tooLarge) {
			v.record = &result.Record{ID: v.record.ID, Task: v.record.Task, State: result.Failure, Attempt: v.record.Attempt,
				Enqueued: v.record.Enqueued, Started: v.record.Started, Finished: v.record.Finished, TTL: v.record.TTL,
				Cause: result.CauseOf(&unstorableError{tooLarge})}
			_, err = s.r.w.cfg.Results.Store(ctx, *v.record)
		}
		if err != nil {
			s.r.w.c.counts.settleErrors.Inc()
			if s.worthLogging("result" + err.Error()) {
				s.r.w.log.Warn("cannot store a result", "queue", s.p.queue, "id", v.id, "err", err)
			}
		}
		passes := err != nil && !hopeless(err)
		o.trouble = o.trouble || passes
		if passes && v.record.State.Final() {
			o.failed = append(o.failed, v)
			continue
		}
		v.record = nil // stored, or work goes before knowing of it
		o.ready = append(o.ready, v)
	}
	return o
}

// hopeless reports whether a result can never be stored: without permission, in a
// key of another type, or in a role without endpoint. A closed client is
// none of these: the task will run again and have its result.
func hopeless(err error) bool {
	return outcomeOf(err, true) == final && !redis.IsOOMError(err) && !errors.Is(err, ErrClosed)
}
