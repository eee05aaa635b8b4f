package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redisha/redisha/broker/result"
)

// Bounds of the group commit of verdicts: a verdict waits for others for
// settleDelay at most.
const (
	settleDelay  = time.Millisecond
	settleAgain  = 200 * time.Millisecond // pause before what failed is tried again
	maxSettle    = 256
	maxMoves     = 100
	maxMoveBytes = 512 << 10
	maxUnsettled = 1024 // verdicts that could not be stored; with more, no task is fetched
	maxNotes     = 512  // verdicts that wait, and notes are dropped
)

// A verdictKind says what becomes of a task.
type verdictKind uint8

const (
	undecided      verdictKind = iota // never stored
	ackVerdict                        // done
	retryVerdict                      // again, as a further attempt
	releaseVerdict                    // again, as the same attempt
	deadVerdict                       // set aside
	cancelVerdict                     // revoked
	expireVerdict                     // not started in time
	noteVerdict                       // not the end: a record for the result backend only
)

func (k verdictKind) String() string {
	return [...]string{"undecided", "done", "retry", "release", "dead letter", "cancelled", "expired", "note"}[k]
}

// A verdict is what became of a task, on its way to Redis.
type verdict struct {
	*task
	kind   verdictKind
	id     string        // of the task
	delay  time.Duration // of a retry or release; 0: ready at once
	value  []byte        // what is stored where the task goes
	record *result.Record

	progress *reporter // of the handler; nil where no result is kept
	unique   string    // key under which the task is unique
	key      string    // of which it has a slot

	wasRevoked bool // its ID is in T:rv, and leaves it with the task's end
	mayBeDone  bool // an acknowledgement got no answer, and may have arrived
}

// of notes which task it is about.
func (v *verdict) of(e *envelope) {
	v.id, v.unique = e.id, e.unique
	if e.concurrency > 0 {
		v.key = e.key
	}
}

func (v *verdict) retry(e *envelope, delay time.Duration) {
	v.kind, v.delay = retryVerdict, max(delay, 0)
	v.value = withAttempt(v.raw, nextAttempt(e.attempt), 0)
}

func (v *verdict) release(delay time.Duration) {
	v.kind, v.delay, v.value = releaseVerdict, delay, v.raw
}

func (v *verdict) die(e *envelope, reason Reason, err error) {
	v.value = appendDeadLetter(nil, reason, err.Error(), v.raw)
	v.kind = deadVerdict
}

// cancel ends a task that was revoked, expire one that was not started in time.

func (v *verdict) cancel(e *envelope) {
	v.kind, v.wasRevoked = cancelVerdict, true
	v.record = v.s.r.record(e, result.Cancelled, ErrCancelled)
}

func (v *verdict) expire(e *envelope) {
	v.kind, v.record = expireVerdict, v.s.r.record(e, result.Expired, errExpired)
	v.s.r.w.log.Warn("task expired before it was started", "queue", v.s.p.queue, "task", e.task, "id", e.id)
}

// undecodable sets aside what can never be run, and leaves what a later version
// wrote. e may be nil.
func (v *verdict) undecodable(e *envelope, err error) {
	log := v.s.r.w.log
	if v.id == "" {
		v.id = madeUpID(v.entry)
	}
	if errors.Is(err, errLaterVersion) {
		v.release(time.Minute)
		log.Warn("task left for another worker", "queue", v.s.p.queue, "id", v.id, "err", err)
		return
	}
	v.die(e, Undecodable, err)
	if e != nil {
		v.record = v.s.r.record(e, result.Dead, err)
	}
	log.Error("task cannot be read and is a dead letter", "queue", v.s.p.queue, "id", v.id, "err", err)
}

// madeUpID stands for the ID of a task that cannot be read.
func madeUpID(e entry) string { return "entry:" + strconv.Itoa(e.stream) + ":" + e.id }

// release gives a task back that was not started.
func release(t *task, delay time.Duration) *verdict {
	v := &verdict{task: t}
	if e, err := decodeEnvelope(t.raw); err == nil {
		v.of(e)
	} else {
		v.id = madeUpID(t.entry)
	}
	v.release(delay)
	return v
}

// note passes on a record that is not final, if there is room: nothing waits for it.
func (s *source) note(t *task, r *result.Record) bool {
	return s.inbox.putIfRoom(&verdict{task: t, kind: noteVerdict, record: r})
}

// settle stores verdicts until there are no more to come and all are stored, or
// r.settled is closed. What fails is tried again; the tasks stay with this
// consumer meanwhile. A verdict with a result comes here again from the recorder.
// Those of tasks that are done and have no result are mostly taken by the next
// fetch before they come here.
func (s *source) settle() {
	var failed []*verdict
	again := time.NewTimer(settleAgain)
	defer again.Stop()
	defer s.inbox.stop()
	rec := newRecorder(s)
	defer rec.stop()
	fail := func(batch []*verdict) {
		if len(failed) == 0 && len(batch) > 0 {
			again.Reset(settleAgain)
		}
		failed = append(failed, batch...)
	}
	for open := true; open || len(failed) > 0 || !rec.idle(); {
		s.unsettled.Store(int64(len(failed) + rec.size()))
		select {
		case <-s.inbox.due:
			batch, refused, closed := s.inbox.take()
			open = open && !closed
			fail(refused)
			fail(s.store(rec.take(batch)))
		case o := <-rec.done:
			fail(s.store(rec.landed(o)))
		case <-rec.rest.C:
			rec.rested()
		case <-again.C:
			if len(failed) > 0 {
				failed = s.store(failed)
				again.Reset(settleAgain)
			}
		case <-s.r.settled:
			s.abandon(open, failed, rec)
			return
		case <-s.r.dead:
			s.abandon(open, failed, rec)
			return
		}
	}
}

// abandon gives up what cannot be stored: these tasks will run again.
func (s *source) abandon(open bool, failed []*verdict, rec *recorder) {
	ready, unrecorded := rec.end()
	n := len(failed) + len(s.store(ready)) + unrecorded
	for open { // until the executors have ended
		<-s.inbox.due
		batch, refused, closed := s.inbox.take()
		n += len(refused)
		for _, v := range batch {
			if v.kind != noteVerdict {
				n++
			}
		}
		open = !closed
	}
	if n > 0 {
		s.r.lost.Add(int64(n))
		s.r.w.log.Error("verdicts lost: these tasks will run again", "queue", s.p.queue, "partition", s.p.index, "tasks", n)
	}
}

// store stores verdicts. It returns those that must be tried again.
func (s *source) store(ready []*verdict) (failed []*verdict) {
	var acks, moves []*verdict
	for _, v := range ready {
		switch v.kind {
		case ackVerdict:
			if v.doubted.Load() {
				moves = append(moves, v)
			} else {
				acks = append(acks, v)
			}
		case retryVerdict, releaseVerdict, deadVerdict, cancelVerdict, expireVerdict:
			moves = append(moves, v)
		}
	}
	for len(acks) > 0 {
		n := min(len(acks), maxSettle)
		again, err := s.ack(acks[:n])
		failed = append(failed, again...)
		if acks = acks[n:]; err != nil {
			return slices.Concat(failed, acks, moves) // the server is away
		}
	}
	for len(moves) > 0 {
		n, bytes := 0, 0
		for n < min(len(moves), maxMoves) && (n == 0 || bytes+len(moves[n].value) <= maxMoveBytes) && moves[n].lease == moves[0].lease {
			bytes += len(moves[n].value)
			n++
		}
		again, err := s.move(moves[:n])
		failed = append(failed, again...)
		if moves = moves[n:]; err != nil {
			return append(failed, moves...)
		}
	}
	return failed
}

// ack ends tasks that are done.
func (s *source) ack(batch []*verdict) (failed []*verdict, err error) {
	args := appendEnds(nil, batch)
	reply, err := ackScript.Run(s.r.base, s.r.w.c.conn, s.p.endKeys(s.p.ackKeys(), batch), args...).Slice()
	if err == nil && len(reply) != streams {
		err = fmt.Errorf("ack.lua returned %d values", len(reply))
	}
	if err != nil {
		s.unanswered(batch, err)
		return batch, err
	}
	return s.acknowledged(batch, reply), nil
}

// unanswered notes that acknowledgements failed. If they may have arrived all the
// same, that they find nothing the next time is no loss.
func (s *source) unanswered(acks []*verdict, err error) {
	s.settleFailed(err)
	if outcomeOf(err, s.r.w.c.once) != unknown {
		return
	}
	for _, v := range acks {
		v.mayBeDone = true
	}
}

// appendEnds appends what ends.lua reads. It sorts the batch as it needs it: by
// stream, and tasks with keys of their own behind the others.
func appendEnds(args []any, batch []*verdict) []any {
	var n [streams]int
	plain := true
	for _, v := range batch {
		if v.keyed() {
			plain = false
			continue
		}
		n[v.stream]++
	}
	for _, k := range n {
		args = append(args, k)
	}
	for stream := range n {
		if n[stream] == 0 {
			continue
		}
		for _, v := range batch {
			if v.stream == stream && !v.keyed() {
				args = append(args, v.entry.id)
			}
		}
	}
	if plain {
		return args
	}
	for _, v := range batch {
		if v.keyed() {
			args = append(args, v.stream+1, v.entry.id, v.id, v.unique, v.key)
		}
	}
	return args
}

// keyed reports whether the end of the task releases a key.
func (v *verdict) keyed() bool { return v.unique != "" || v.key != "" || v.wasRevoked }

// acknowledged reads what ends.lua has returned, and returns the verdicts that must
// be tried again.
func (s *source) acknowledged(batch []*verdict, reply []any) (failed []*verdict) {
	var acked int64
	refused := [streams]bool{}
	for i := range refused {
		if message, bad := reply[i].(string); bad {
			s.settleFailed(errors.New(message))
			refused[i] = true
			continue
		}
		n, _ := reply[i].(int64)
		acked += n
	}
	done := batch
	if refused != [streams]bool{} {
		done = nil
		for _, v := range batch {
			if refused[v.stream] {
				failed = append(failed, v)
			} else {
				done = append(done, v)
			}
		}
	}
	missing, before := max(int64(len(done))-acked, 0), int64(0)
	for _, v := range done {
		if v.mayBeDone && before < missing {
			before++
		}
	}
	s.r.w.c.counts.lost.Add(uint64(missing - before))
	s.r.w.c.counts.succeeded.Add(uint64(acked + before))
	s.end(done, true)
	return failed
}

// move takes tasks of one consumer elsewhere.
func (s *source) move(batch []*verdict) (failed []*verdict, err error) {
	moved, err := s.r.moveAll(s.r.base, s.p, batch[0].lease.consumer, false, batch)
	if err != nil {
		s.settleFailed(err)
		return batch, err
	}
	for i, v := range batch {
		switch message, bad := moved[i].(string); {
		case bad:
			s.settleFailed(errors.New(message))
			failed = append(failed, v)
			continue
		case moved[i] == int64(0) && !v.mayBeDone:
			s.r.w.c.counts.lost.Inc()
		default:
			s.count(v.kind)
		}
		s.end(batch[i:i+1], v.kind == ackVerdict)
	}
	return failed, nil
}

func (s *source) count(k verdictKind) {
	switch n := &s.r.w.c.counts; k {
	case ackVerdict:
		n.succeeded.Inc()
	case retryVerdict:
		n.retried.Inc()
	case releaseVerdict:
		n.released.Inc()
	case deadVerdict:
		n.dead.Inc()
	case cancelVerdict:
		n.cancelled.Inc()
	case expireVerdict:
		n.expired.Inc()
	}
}

func (s *source) settleFailed(err error) {
	s.r.w.c.counts.settleErrors.Inc()
	s.trouble("cannot store verdicts", explain(err))
	s.suspect()
}

// moveAll runs move.lua and returns its values, one for each task.
func (r *run) moveAll(ctx context.Context, p *partition, consumer string, onlyDead bool, batch []*verdict) ([]any, error) {
	flag := 0
	if onlyDead {
		flag = 1
	}
	args := make([]any, 0, 2+9*len(batch))
	args = append(args, consumer, flag)
	for _, v := range batch {
		to, counter := "z", countRetried
		switch {
		case v.kind == deadVerdict:
			to, counter = "d", countDead
		case v.kind == releaseVerdict:
			counter = countReleased
		case v.kind == ackVerdict:
			to, counter = "x", countAcked
		case v.kind == cancelVerdict:
			to, counter = "x", countCancelled
		case v.kind == expireVerdict:
			to, counter = "x", countExpired
		}
		if onlyDead && v.kind == releaseVerdict {
			counter = countReaped
		}
		if to == "z" && v.delay == 0 {
			to = "r"
		}
		args = append(args, v.stream+1, v.entry.id, to, counter, v.id, ceilMillis(v.delay), v.value, v.unique, v.key)
	}
	reply, err := moveScript.Run(ctx, r.w.c.conn, p.endKeys(p.moveKeys(consumer), batch), args...).Slice()
	if err == nil && len(reply) != len(batch) {
		err = fmt.Errorf("move.lua returned %d values for %d tasks", len(reply), len(batch))
	}
	return reply, err
}
