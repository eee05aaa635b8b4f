package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/broker/result"
)

const (
	maxTerm       = 3 * time.Second       // of the elected, without renewal
	minElection   = 20 * time.Millisecond // between two tries to be elected
	maintainEvery = 50 * time.Millisecond // at most this late are due tasks moved
	maxDue        = 500                   // tasks moved by one call
	maxDeliveries = 5                     // without an end, and a task is poison
	maxReap       = 100                   // tasks looked at together
	lanesEvery    = time.Minute
	revokedAge    = 24 * time.Hour // after which nobody will meet an ID that was cancelled
	orphansEvery  = time.Minute
	owedEvery     = time.Minute
	maxOrphans    = 10 // calls for each stream each time, of maxReap entries
	maxClockJump  = time.Second
)

// A maintenance is what the elected one of a partition remembers.
type maintenance struct {
	s *source

	// quiet is until when nobody is taken for dead. After an outage or a jump
	// of the server's clock, heartbeats are gone whose workers are alive, so
	// each has a whole lease to be heard of again.
	quiet time.Time

	server      time.Time // the server's clock,
	sent, heard time.Time // when it was asked for, and when the answer was here
	renewAt     time.Time // while elected; zero otherwise
	reapAt      time.Time
	lanesAt     time.Time
	slotsAt     time.Time
	orphansAt   time.Time
	owedAt      time.Time
	recordAt    time.Time // when to store results again, after a store that failed
}

// maintain does the maintenance of the partition while this run is elected, and
// otherwise waits to be. It ends when the run stops taking tasks.
func (s *source) maintain() {
	m := &maintenance{s: s}
	detach := s.r.w.c.conn.OnEpoch(func(uint64) { s.distrust.Store(true) })
	defer detach()
	for s.r.stop.Err() == nil {
		pause, err := m.once(s.r.reads)
		if err != nil {
			s.r.w.c.counts.maintainErrors.Inc()
			s.trouble("maintenance failed", explain(err))
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-s.r.stop.Done():
		}
		timer.Stop()
	}
}

// once does what is to do, and returns for how long nothing is. Between two
// renewals of its term it only looks whether a task is due, which is cheap.
func (m *maintenance) once(ctx context.Context) (time.Duration, error) {
	if m.s.distrust.Swap(false) {
		m.distrust()
		m.s.restore(ctx) // which may be on a server that lost more than this one
	}
	if time.Now().Before(m.renewAt) {
		if next, known := m.peek(ctx); known && (next.IsZero() || next.After(m.serverNow())) {
			return m.until(next), m.rest(ctx)
		}
	}
	return m.term(ctx)
}

// term begins or renews the term, and moves the tasks that are due.
func (m *maintenance) term(ctx context.Context) (time.Duration, error) {
	s := m.s
	term, sent := min(maxTerm, s.r.w.cfg.Lease/3), time.Now()
	m.renewAt = time.Time{}
	reply, err := maintainScript.Run(ctx, s.r.w.c.conn, s.p.maintainKeys(), s.r.name, term.Milliseconds(), maxDue).Slice()
	if err == nil && len(reply) != 5 {
		err = fmt.Errorf("maintain.lua returned %d values", len(reply))
	}
	if err != nil {
		m.distrust()
		return min(term, time.Second), err
	}
	m.watchClock(time.UnixMilli(int64(toUint(reply[1]))), sent, time.Now())
	moved, next := toUint(reply[2]), time.Time{}
	if ms := toUint(reply[3]); ms > 0 {
		next = time.UnixMilli(int64(ms))
	}
	if reply[0] != int64(1) {
		return max(min(next.Sub(m.server), time.Second), minElection), nil
	}
	m.renewAt = sent.Add(term / 3)
	s.r.w.c.counts.due.Add(moved)
	err = m.rest(ctx)
	if message := toString(reply[4]); message != "" {
		return maintainEvery, errors.Join(errors.New(message), err)
	}
	if moved == maxDue {
		return 0, err
	}
	return m.until(next), err
}

// peek returns when the next delayed task is due, zero if there is none.
func (m *maintenance) peek(ctx context.Context) (next time.Time, known bool) {
	first, err := m.s.r.w.c.conn.ZRangeWithScores(ctx, m.s.p.delayed, 0, 0).Result()
	if err != nil || len(first) == 0 {
		return time.Time{}, err == nil
	}
	return time.UnixMilli(int64(first[0].Score)), true
}

// serverNow is the server's time, or a round trip later.
func (m *maintenance) serverNow() time.Time { return m.server.Add(time.Since(m.sent)) }

// until is how long to wait for what is due at next, or may be published meanwhile.
func (m *maintenance) until(next time.Time) time.Duration {
	if next.IsZero() {
		return maintainEvery
	}
	return max(min(next.Sub(m.serverNow()), maintainEvery), time.Millisecond)
}

// distrust gives every worker a whole lease to be heard of.
func (m *maintenance) distrust() { m.quiet = time.Now().Add(m.s.r.w.cfg.Lease) }

// watchClock compares the server's clock with the one here. The server read its own
// at some moment between sent and heard: a call may be slow without a jump.
func (m *maintenance) watchClock(server, sent, heard time.Time) {
	if !m.server.IsZero() {
		least, most := sent.Sub(m.heard), heard.Sub(m.sent)
		if passed := server.Sub(m.server); passed < least-maxClockJump || passed > most+maxClockJump {
			m.distrust()
		}
	}
	m.server, m.sent, m.heard = server, sent, heard
}

// rest is what is done less often than moving due tasks.
func (m *maintenance) rest(ctx context.Context) error {
	s, now := m.s, time.Now()
	if now.After(m.lanesAt) {
		m.lanesAt = now.Add(lanesEvery)
		before := strconv.FormatInt(m.serverNow().Add(-revokedAge).UnixMilli(), 10)
		if err := m.s.r.w.c.conn.ZRemRangeByScore(ctx, m.s.p.revoked, "-inf", before).Err(); err != nil && !holdsNothing(err) {
			return err
		}
		if err := lanesScript.Run(ctx, m.s.r.w.c.conn, []string{m.s.p.lanes, m.s.p.lanesSeen}, laneAge.Milliseconds(), maxReap).Err(); err != nil {
			return err
		}
	}
	var err error
	if now.After(m.reapAt) && now.After(m.quiet) {
		m.reapAt = now.Add(m.s.r.w.cfg.Lease / 5)
		err = m.reap(ctx)
	}
	if now.After(m.orphansAt) {
		m.orphansAt = now.Add(orphansEvery)
		err = errors.Join(err, m.adopt(ctx))
	}
	if now.After(m.owedAt) && s.r.w.cfg.Results != nil {
		m.owedAt = now.Add(owedEvery)
		// A server of results that hangs must not hold the rest of the maintenance.
		short, cancel := context.WithTimeout(ctx, min(s.r.w.cfg.Lease/5, recordTimeout))
		if left, why := s.r.w.c.payAll(short, s.p, s.r.w.cfg.Results); why != nil && s.worthLogging("owed"+why.Error()) {
			s.r.w.log.Warn("results of tasks that were removed by hand are not written yet", "queue", s.p.queue, "partition", s.p.index, "tasks", left, "err", why)
		}
		cancel()
	}
	if now.After(m.slotsAt) {
		m.slotsAt = now.Add(slotsEvery)
		err = errors.Join(err, m.collectSlots(ctx))
	}
	return err
}

// adopt makes tasks ready again whose consumer was deleted by hand. Of what a
// stream has delivered, it looks at the oldest entries.
func (m *maintenance) adopt(ctx context.Context) error {
	s := m.s
	for i := range s.p.streams {
		from := "-"
		for range maxOrphans {
			reply, err := orphansScript.Run(ctx, s.r.w.c.conn, s.p.orphansKeys(i), from, maxReap).Slice()
			if err == nil && len(reply) != 2 {
				err = fmt.Errorf("orphans.lua returned %d values", len(reply))
			}
			if holdsNothing(err) {
				break
			}
			if err != nil {
				return err
			}
			if n := toUint(reply[0]); n > 0 {
				s.r.w.c.counts.reaped.Add(n)
				s.r.w.log.Error("tasks that no consumer had are ready again: was a consumer deleted by hand?", "queue", s.p.queue, "partition", s.p.index, "tasks", n)
			}
			if from = toString(reply[1]); from == "" {
				break
			}
		}
	}
	return nil
}

// reap gives the tasks of dead workers to others, and removes their consumers.
func (m *maintenance) reap(ctx context.Context) error {
	dead, err := m.dead(ctx)
	if err != nil {
		return err
	}
	for _, consumer := range dead {
		for i := range m.s.p.streams {
			if err := m.reapStream(ctx, consumer, i); err != nil {
				return err
			}
		}
		if err := leaveScript.Run(ctx, m.s.r.w.c.conn, m.s.p.leaveKeys(consumer), consumer, "", 1).Err(); err != nil {
			return err
		}
	}
	return nil
}

// dead lists the consumers without heartbeat.
func (m *maintenance) dead(ctx context.Context) ([]string, error) {
	c, p := m.s.r.w.c.conn, m.s.p
	infos := make([]*redis.XInfoConsumersCmd, streams)
	_, _ = c.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, key := range p.streams {
			infos[i] = pipe.XInfoConsumers(ctx, key, group)
		}
		return nil
	})
	var names []string
	for _, info := range infos {
		consumers, err := info.Result()
		if holdsNothing(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, consumer := range consumers {
			names = append(names, consumer.Name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 0 {
		return nil, nil
	}
	alive := make([]*redis.IntCmd, len(names))
	if _, err := c.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, name := range names {
			alive[i] = pipe.Exists(ctx, p.heartbeat(name))
		}
		return nil
	}); err != nil {
		return nil, err
	}
	var dead []string
	for i, name := range names {
		if alive[i].Val() == 0 {
			dead = append(dead, name)
		}
	}
	return dead, nil
}

// reapStream makes the tasks of a dead consumer ready again, as new entries, or
// dead letters if they are poison.
func (m *maintenance) reapStream(ctx context.Context, consumer string, stream int) error {
	s, key := m.s, m.s.p.streams[stream]
	for from := "-"; ; {
		pending, err := s.r.w.c.conn.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: key, Group: group, Start: from, End: "+", Count: maxReap, Consumer: consumer,
		}).Result()
		if holdsNothing(err) {
			return nil
		}
		if err != nil {
			return err
		}
		var batch []*verdict
		bytes := 0 // of the tasks that are in memory
		for _, p := range pending {
			v, err := m.reaped(ctx, entry{stream, p.ID})
			if err != nil {
				return err
			}
			if v == nil {
				continue
			}
			batch = append(batch, v)
			if bytes += len(v.raw) + len(v.value); bytes < maxMoveBytes {
				continue
			}
			if err := m.moveDead(ctx, consumer, batch); err != nil {
				return err
			}
			batch, bytes = nil, 0
		}
		if err := m.moveDead(ctx, consumer, batch); err != nil {
			return err
		}
		if len(pending) < maxReap {
			return nil
		}
		from = "(" + pending[len(pending)-1].ID
	}
}

// reaped decides what becomes of an entry whose worker has died; nil to leave it.
func (m *maintenance) reaped(ctx context.Context, at entry) (*verdict, error) {
	s := m.s
	raw, err := s.load(ctx, at)
	if err != nil {
		return nil, err
	}
	v := &verdict{task: &task{s: s, entry: at, raw: raw}}
	if raw == nil {
		v.kind = ackVerdict // the entry was deleted, nothing is left to run
		return v, nil
	}
	e, err := decodeEnvelope(raw)
	switch {
	case err != nil:
		v.undecodable(e, err)
	case int(e.deliveries)+1 < maxDeliveries:
		v.of(e)
		v.kind, v.value = releaseVerdict, withAttempt(raw, e.attempt, e.deliveries+1)
	default:
		err = fmt.Errorf("delivered %d times, and each time the worker died or lost its lease", maxDeliveries)
		v.of(e)
		v.die(e, Poison, err)
		v.record = s.r.record(e, result.Dead, err)
		s.r.w.log.Error("task is a dead letter", "queue", s.p.queue, "task", e.task, "id", e.id, "err", err)
	}
	// Whoever waits for the result must hear of it before the task is gone.
	if v.record != nil && !m.recorded(v) {
		return nil, nil
	}
	return v, nil
}

const recordTimeout = time.Second

// recorded stores the result of a dead task. It returns false if that must be
// tried again. A server that hangs must not hold the rest of the maintenance: it
// gets a second at most, and then a rest of twice the time that it took.
func (m *maintenance) recorded(v *verdict) bool {
	start := time.Now()
	if start.Before(m.recordAt) {
		return false
	}
	o := m.s.storeResults([]*verdict{v}, min(m.s.r.w.cfg.Lease/5, recordTimeout))
	if o.trouble {
		m.recordAt = time.Now().Add(2 * time.Since(start))
	}
	return len(o.ready) > 0
}

// moveDead moves tasks unless their consumer has a heartbeat again.
func (m *maintenance) moveDead(ctx context.Context, consumer string, batch []*verdict) error {
	s := m.s
	for len(batch) > 0 {
		n, bytes := 0, 0
		for n < len(batch) && (n == 0 || bytes+len(batch[n].value) <= maxMoveBytes) {
			bytes += len(batch[n].value)
			n++
		}
		moved, err := s.r.moveAll(ctx, s.p, consumer, true, batch[:n])
		if err != nil {
			return err
		}
		for i, v := range batch[:n] {
			if message, bad := moved[i].(string); bad {
				err = errors.Join(err, errors.New(message))
			} else if moved[i] == int64(1) {
				if v.kind == deadVerdict {
					s.r.w.c.counts.dead.Inc()
				}
				s.r.w.c.counts.reaped.Inc()
			}
		}
		if err != nil {
			return err
		}
		batch = batch[n:]
	}
	return nil
}
