package broker

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A source is a run's end of one partition: the consumer that it is there, the
// tasks that it holds, and the goroutines that fetch, settle, and keep the lease.
type source struct {
	r     *run
	p     *partition
	stand // on the run's floor
	ledger
	inbox inbox // verdicts, from executors and the fetcher to settle

	mu     sync.Mutex
	lease  *lease // nil while there is none
	joins  int
	look   []time.Time // when to look for lost deliveries, soonest first
	logged map[string]time.Time

	unsettled atomic.Int64 // verdicts that could not be stored so far
	distrust  atomic.Bool  // the primary has changed: see maintenance.quiet
	clock     atomic.Pointer[reading]

	revoking bool          // some tasks of the partition were cancelled, when last asked
	step     int           // how many tasks fetch.lua reads at a time
	joined   chan struct{} // a token after each join
	fenced   chan struct{} // a token after each loss of the lease
	blocking
}

// A reading is the server's time, and when it came here.
type reading struct {
	server int64 // ms
	local  time.Time
}

// serverTime is the server's time in ms, or a moment earlier; 0 if not known.
func (s *source) serverTime(now time.Time) int64 {
	c := s.clock.Load()
	if c == nil {
		return 0
	}
	return c.server + now.Sub(c.local).Milliseconds()
}

func newSource(r *run, p *partition) *source {
	return &source{
		r: r, p: p, step: fetchStep,
		ledger: newLedger(), inbox: newInbox(), logged: make(map[string]time.Time),
		joined: make(chan struct{}, 1), fenced: make(chan struct{}, 1),
	}
}

// A task is a delivered entry, on its way to an executor and back.
type task struct {
	s     *source
	lease *lease
	entry
	raw     []byte // envelope
	revoked bool   // it was cancelled before it was started
	verdict verdict

	running   atomic.Pointer[attempt]
	cancelled atomic.Bool // while it ran
	void      atomic.Bool // another task has come under its entry ID
	doubted   atomic.Bool // another one may have, and be another worker's
}

// tasksOf makes tasks of what was read under l.
func (s *source) tasksOf(l *lease, found []delivered) []*task {
	tasks, list := make([]task, len(found)), make([]*task, len(found))
	for i, d := range found {
		t := &tasks[i]
		t.s, t.lease, t.entry, t.raw, t.revoked = s, l, d.entry, d.raw, d.revoked
		t.verdict.task = t
		list[i] = t
		s.add(t)
	}
	return list
}

func (s *source) taskOf(l *lease, d delivered) *task { return s.tasksOf(l, []delivered{d})[0] }

// suspect is called when the primary may be another one. It lets the fetcher look for
// deliveries whose reply was lost: at once, and again when a read that was cut off on
// this side has ended on the server's. And what is in work here ends only what is still
// this consumer's, which takes longer.
func (s *source) suspect() {
	s.inWork(func(t *task) { t.doubted.Store(true) })
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.look = []time.Time{now, now.Add(blockFor + 200*time.Millisecond)}
}

// A lease is a consumer with a heartbeat.
type lease struct {
	consumer string
	ctx      context.Context // parent of its tasks' contexts; ends when the lease is lost
	cancel   context.CancelCauseFunc
	fence    *time.Timer // ends the lease by itself

	keys []string // of fetch.lua

	mu      sync.Mutex
	renewed time.Time // when the last heartbeat that arrived was sent
	watched map[*attempt]struct{}
}

// safeFor is for how long after a heartbeat a lease is believed to be there.
func safeFor(lease time.Duration) time.Duration { return lease / 5 * 4 }

// beatTimeout bounds a heartbeat: a connection that hangs must leave time for
// another try.
func beatTimeout(lease time.Duration) time.Duration {
	return max(lease/5, min(lease/5*2, time.Second))
}

// safe reports whether tasks may be started: nobody else can have taken them yet.
func (l *lease) safe(d time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ctx.Err() == nil && time.Since(l.renewed) < safeFor(d)
}

// current returns the lease, nil if there is none.
func (s *source) current() *lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lease
}

// keepLease joins the group, renews the lease every fifth of its time, and joins
// again under another name when it is lost. It ends when all verdicts are stored.
func (s *source) keepLease() {
	beat := time.Now()
	for retry := newPause(); ; {
		l := s.current()
		if l == nil {
			if s.r.stop.Err() == nil && s.join() {
				beat = time.Now()
				retry.reset()
				continue
			}
			retry.wait(s.r.settled)
		} else {
			s.rest(min(s.r.w.cfg.Lease/5, time.Second))
			if time.Since(beat) >= s.r.w.cfg.Lease/5-10*time.Millisecond {
				beat = time.Now()
				s.renew(l)
			}
			s.endRevoked(l)
		}
		select {
		case <-s.r.settled:
			return
		default:
		}
	}
}

// rest waits, or until the lease is lost or the run has ended.
func (s *source) rest(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.fenced:
	case <-s.r.settled:
	}
}

func (s *source) join() bool {
	cfg := s.r.w.cfg
	s.mu.Lock()
	s.joins++
	again := s.joins > 1
	consumer := s.r.name + ":" + strconv.Itoa(s.joins)
	s.mu.Unlock()
	sent := time.Now()
	bad, err := joinScript.Run(s.r.stop, s.r.w.c.conn, s.p.consumerKeys(consumer), cfg.Lease.Milliseconds()).StringSlice()
	if err != nil {
		if s.r.stop.Err() != nil {
			return false // not waited for any longer
		}
		s.trouble("cannot join the queue", err)
		return false
	}
	s.warnBad(bad)
	if again {
		s.restore(s.r.stop)
	}
	l := &lease{consumer: consumer, renewed: sent, keys: s.p.fetchKeys(consumer)}
	l.ctx, l.cancel = context.WithCancelCause(s.r.work)
	s.mu.Lock()
	l.fence = time.AfterFunc(time.Until(sent.Add(safeFor(cfg.Lease))), func() { s.lose(l, "no heartbeat arrived in time") })
	s.lease = l
	s.look = []time.Time{sent.Add(cfg.Lease / 3)}
	s.mu.Unlock()
	notify(s.joined)
	return true
}

// ensureGroups creates the groups that are missing.
func (s *source) ensureGroups(l *lease) {
	bad, err := joinScript.Run(s.r.reads, s.r.w.c.conn, s.p.consumerKeys(l.consumer), 0).StringSlice()
	if err != nil {
		s.trouble("cannot create the consumer group", err)
		return
	}
	s.warnBad(bad)
	s.restore(s.r.reads)
	s.r.w.log.Warn("consumer group was missing and is made anew: tasks that run may run again", "queue", s.p.queue, "partition", s.p.index)
}

// restore makes sure that the queue's metadata has survived what cost a lease or
// a group.
func (s *source) restore(ctx context.Context) {
	if err := s.r.w.c.restore(ctx, s.p.queue, s.p.of); err != nil && ctx.Err() == nil {
		s.trouble("queue metadata not restored", err)
	}
}

func (s *source) warnBad(errs []string) {
	for _, e := range errs {
		s.r.w.log.Error("stream without consumer group", "queue", s.p.queue, "partition", s.p.index, "err", e)
	}
}

// renew sends a heartbeat. If the key is gone, others may have taken the tasks.
func (s *source) renew(l *lease) {
	cfg := s.r.w.cfg
	if s.current() != l {
		return
	}
	ctx, cancel := context.WithTimeout(s.r.base, beatTimeout(cfg.Lease))
	defer cancel()
	sent := time.Now()
	s.ledger.mu.Lock()
	s.forget(sent) // also when nothing is acked any more
	s.ledger.mu.Unlock()
	there, err := s.r.w.c.conn.PExpire(ctx, s.p.heartbeat(l.consumer), cfg.Lease).Result()
	switch {
	case err != nil:
		s.trouble("heartbeat failed", err)
		s.suspect()
	case !there:
		s.lose(l, "Redis does not hold it any more")
	default:
		l.mu.Lock()
		l.renewed = sent
		l.mu.Unlock()
		l.fence.Reset(time.Until(sent.Add(safeFor(cfg.Lease))))
	}
}

// maxAsked bounds the IDs of one question.
const maxAsked = 1000

// endRevoked ends the contexts of the tasks that run here and were cancelled. What
// they return decides: nil is done, and an error that they were.
func (s *source) endRevoked(l *lease) {
	var running []*task
	s.inWork(func(t *task) {
		if t.running.Load() != nil && !t.cancelled.Load() {
			running = append(running, t)
		}
	})
	if len(running) == 0 {
		return
	}
	c := s.r.w.c.conn
	ctx, cancel := context.WithTimeout(s.r.base, beatTimeout(s.r.w.cfg.Lease))
	defer cancel()
	n, err := c.ZCard(ctx, s.p.revoked).Result()
	for err == nil && n > 0 && len(running) > 0 {
		ids := make([]string, 0, maxAsked)
		var asked []*attempt
		some := running[:min(len(running), maxAsked)]
		running = running[len(some):]
		tasks := some[:0]
		for _, t := range some {
			if a := t.running.Load(); a != nil {
				ids, asked, tasks = append(ids, a.delivery.ID), append(asked, a), append(tasks, t)
			}
		}
		if len(ids) == 0 {
			continue
		}
		var scores []float64
		if scores, err = c.ZMScore(ctx, s.p.revoked, ids...).Result(); err == nil {
			for i, score := range scores {
				if score > 0 {
					tasks[i].cancelled.Store(true)
					asked[i].end(context.Canceled, ErrCancelled)
				}
			}
		}
	}
	if err != nil && !holdsNothing(err) {
		s.trouble("cannot ask for cancelled tasks", err)
	}
}

// lose ends a lease: the contexts of its tasks, and its fetching.
func (s *source) lose(l *lease, reason string) {
	s.mu.Lock()
	if s.lease != l {
		s.mu.Unlock()
		return
	}
	s.lease = nil
	s.mu.Unlock()
	l.fence.Stop()
	l.cancel(ErrLeaseLost)
	s.r.w.c.counts.leasesLost.Inc()
	s.r.w.log.Warn("lease lost", "queue", s.p.queue, "partition", s.p.index, "consumer", l.consumer, "reason", reason)
	notify(s.fenced)
}

// leave removes the consumer, at the end. What it still has pending is taken by
// the maintenance of others, at once since there is no heartbeat.
func (s *source) leave() {
	l := s.current()
	if l == nil {
		return
	}
	l.fence.Stop()
	l.cancel(nil)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.r.base), settleTimeout)
	defer cancel()
	_, err := leaveScript.Run(ctx, s.r.w.c.conn, s.p.leaveKeys(l.consumer), l.consumer, s.r.name, 0).Int()
	if err != nil && !fatal(err) {
		s.r.w.log.Warn("left without goodbye: unfinished tasks wait for the lease to run out", "queue", s.p.queue, "partition", s.p.index, "err", err)
	}
}

// trouble logs an error that will pass, and ends the run for one that will not.
func (s *source) trouble(message string, err error) {
	if fatal(err) {
		s.r.fail(err)
		return
	}
	if s.worthLogging(message + err.Error()) {
		s.r.w.log.Warn(message, "queue", s.p.queue, "partition", s.p.index, "err", err)
	}
}

// worthLogging is false for what was logged within the last ten seconds.
func (s *source) worthLogging(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if last, ok := s.logged[text]; ok && now.Sub(last) < 10*time.Second {
		return false
	}
	if len(s.logged) > 100 {
		clear(s.logged)
	}
	s.logged[text] = now
	return true
}

// lacksGroup reports whether err says that a group or its stream is not there.
func lacksGroup(message string) bool {
	return strings.Contains(message, "NOGROUP") || strings.Contains(message, "UNBLOCKED") || strings.Contains(message, "no longer exists")
}
