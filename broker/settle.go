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

// Bounds of the group commit of verdicts: a verdict waits for others for
// settleDelay at most.
const (
	settleDelay     = time.Millisecond
	settleAgain     = 200 * time.Millisecond // pause before what failed is tried again
	maxSettle       = 256
	maxMoves        = 100
	maxMoveBytes    = 512 << 10
	maxResultsPause = 12 * time.Second // after a server of results has hung
	maxUnsettled    = 1024             // verdicts that could not be stored; with more, no task is started
)

// A verdictKind says what becomes of a task.
type verdictKind uint8

const (
	undecided      verdictKind = iota // never stored
	ackVerdict                        // done
	retryVerdict                      // again, as a further attempt
	releaseVerdict                    // again, as the same attempt
	deadVerdict                       // set aside
	noteVerdict                       // not the end: a record for the result backend only
)

func (k verdictKind) String() string {
	return [...]string{"undecided", "done", "retry", "release", "dead letter", "note"}[k]
}

// A verdict is what became of a task, on its way to Redis.
type verdict struct {
	*task
	kind   verdictKind
	id     string        // of the task
	delay  time.Duration // of a retry or release; 0: ready at once
	value  []byte        // what is stored where the task goes
	record *result.Record
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
		v.id = e.id
	} else {
		v.id = madeUpID(t.entry)
	}
	v.release(delay)
	return v
}

// note passes on a record that is not final, if there is room: nothing waits for it.
func (s *source) note(t *task, r *result.Record) {
	select {
	case s.verdicts <- &verdict{task: t, kind: noteVerdict, record: r}:
	default:
	}
}

// settle stores verdicts until there are no more to come and all are stored, or
// r.settled is closed. What fails is tried again; the tasks stay with this
// consumer meanwhile.
func (s *source) settle() {
	var failed []*verdict
	wait := time.NewTimer(settleDelay)
	defer wait.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	for in, stop := s.verdicts, s.r.stop.Done(); in != nil || len(failed) > 0; {
		open := in
		if len(failed) >= maxUnsettled && stop != nil {
			open = nil
		}
		select {
		case v, ok := <-open:
			if !ok {
				in = nil
				continue
			}
			batch, more := gather(v, in, wait)
			if !more {
				in = nil
			}
			if len(failed) == 0 {
				again.Reset(settleAgain)
			}
			failed = append(failed, s.commit(batch)...)
		case <-again.C:
			if len(failed) > 0 {
				failed = s.commit(failed)
				again.Reset(settleAgain)
			}
		case <-stop:
			stop = nil // from now on verdicts must not wait
		case <-s.r.settled:
			s.abandon(in, failed)
			return
		case <-s.r.dead:
			s.abandon(in, failed)
			return
		}
	}
}

// abandon gives up what cannot be stored: these tasks will run again.
func (s *source) abandon(in <-chan *verdict, failed []*verdict) {
	n := len(failed)
	if in != nil {
		for v := range in { // until the executors have ended
			if v.kind != noteVerdict {
				n++
			}
		}
	}
	if n > 0 {
		s.r.w.log.Error("verdicts lost: these tasks will run again", "queue", s.p.queue, "partition", s.p.index, "tasks", n)
	}
}

// gather collects verdicts that come within settleDelay. more is false if in was
// closed meanwhile.
func gather(first *verdict, in <-chan *verdict, wait *time.Timer) (batch []*verdict, more bool) {
	batch = append(batch, first)
	wait.Reset(settleDelay)
	for len(batch) < maxSettle {
		select {
		case v, ok := <-in:
			if !ok {
				return batch, false
			}
			batch = append(batch, v)
		case <-wait.C:
			return batch, true
		}
	}
	return batch, true
}

// commit stores verdicts, those with a result behind it. It returns those that
// must be tried again. What has no result does not wait for the results' server.
func (s *source) commit(batch []*verdict) (failed []*verdict) {
	var plain, recorded []*verdict
	for _, v := range batch {
		if v.record == nil {
			plain = append(plain, v)
		} else {
			recorded = append(recorded, v)
		}
	}
	failed = s.store(plain)
	ready, unstored := s.storeResults(recorded)
	return slices.Concat(failed, unstored, s.store(ready))
}

// store stores verdicts. It returns those that must be tried again.
func (s *source) store(ready []*verdict) (failed []*verdict) {
	var acks, moves []*verdict
	for _, v := range ready {
		switch v.kind {
		case ackVerdict:
			acks = append(acks, v)
		case retryVerdict, releaseVerdict, deadVerdict:
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

// storeResults stores the records of a batch. A final one must be stored before
// its task may end, else whoever waits for it would wait for ever.
func (s *source) storeResults(batch []*verdict) (ready, failed []*verdict) {
	final := make(map[*task]bool)
	for _, v := range batch {
		if v.record != nil && v.kind != noteVerdict {
			final[v.task] = true
		}
	}
	var records []result.Record
	var owners []*verdict
	for _, v := range batch {
		switch {
		case v.kind == noteVerdict && final[v.task]:
			// overtaken
		case v.record != nil:
			records, owners = append(records, *v.record), append(owners, v)
		default:
			ready = append(ready, v)
		}
	}
	if len(records) == 0 {
		return ready, nil
	}
	start := time.Now()
	if start.UnixNano() < s.resultsAt.Load() && s.r.stop.Err() == nil {
		return ready, slices.DeleteFunc(owners, func(v *verdict) bool { return v.kind == noteVerdict })
	}
	ctx, cancel := context.WithTimeout(s.r.storing, s.r.w.cfg.Lease/5)
	defer cancel()
	outcomes, _ := s.r.w.cfg.Results.StoreMany(ctx, records)
	defer func() {
		if len(failed) > 0 { // a server that hangs must not have all the time
			s.resultsAt.Store(time.Now().Add(min(4*time.Since(start), maxResultsPause)).UnixNano())
		}
	}()
	for i, v := range owners {
		err := outcomes[i].Err
		var tooLarge *result.TooLargeError
		if errors.As(err, &tooLarge) {
			v.record = &result.Record{ID: v.record.ID, Task: v.record.Task, State: result.Failure, Attempt: v.record.Attempt,
				Enqueued: v.record.Enqueued, Started: v.record.Started, Finished: v.record.Finished, TTL: v.record.TTL,
				Cause: result.CauseOf(&unstorableError{tooLarge})}
			_, err = s.r.w.cfg.Results.Store(ctx, *v.record)
		}
		switch {
		case err == nil:
			v.record = nil
			ready = append(ready, v)
		case !v.record.State.Final() || hopeless(err):
			ready = append(ready, v) // work goes before knowing of it
		default:
			failed = append(failed, v)
		}
		if err != nil {
			s.r.w.c.counts.settleErrors.Inc()
			if s.worthLogging("result" + err.Error()) {
				s.r.w.log.Warn("cannot store a result", "queue", s.p.queue, "id", v.id, "err", err)
			}
		}
	}
	return ready, failed
}

// hopeless reports whether a result can never be stored: without permission, in a
// key of another type, or in a role without endpoint. A closed client is
// none of these: the task will run again and have its result.
func hopeless(err error) bool {
	return outcomeOf(err, true) == final && !redis.IsOOMError(err) && !errors.Is(err, ErrClosed)
}

// ack ends tasks that are done.
func (s *source) ack(batch []*verdict) (failed []*verdict, err error) {
	var byStream [streams][]*verdict
	for _, v := range batch {
		byStream[v.stream] = append(byStream[v.stream], v)
	}
	args := make([]any, 0, streams+len(batch))
	for _, vs := range byStream {
		args = append(args, len(vs))
	}
	for _, vs := range byStream {
		for _, v := range vs {
			args = append(args, v.entry.id)
		}
	}
	reply, err := ackScript.Run(s.r.base, s.r.w.c.conn, s.p.ackKeys(), args...).Slice()
	if err == nil && len(reply) != streams {
		err = fmt.Errorf("ack.lua returned %d values", len(reply))
	}
	if err != nil {
		s.settleFailed(err)
		return batch, err
	}
	for i, vs := range byStream {
		if message, bad := reply[i].(string); bad {
			s.settleFailed(errors.New(message))
			failed = append(failed, vs...)
			continue
		}
		acked, _ := reply[i].(int64)
		s.r.w.c.counts.lost.Add(uint64(max(int64(len(vs))-acked, 0)))
		s.r.w.c.counts.succeeded.Add(uint64(acked))
		for _, v := range vs {
			s.done(v.entry, true)
		}
	}
	return failed, nil
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
		case moved[i] == int64(0):
			s.r.w.c.counts.lost.Inc()
		default:
			s.count(v.kind)
		}
		s.done(v.entry, false)
	}
	return failed, nil
}

func (s *source) count(k verdictKind) {
	switch n := &s.r.w.c.counts; k {
	case retryVerdict:
		n.retried.Inc()
	case releaseVerdict:
		n.released.Inc()
	case deadVerdict:
		n.dead.Inc()
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
	args := make([]any, 0, 2+7*len(batch))
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
		}
		if onlyDead && v.kind == releaseVerdict {
			counter = countReaped
		}
		if to == "z" && v.delay == 0 {
			to = "r"
		}
		args = append(args, v.stream+1, v.entry.id, to, counter, v.id, ceilMillis(v.delay), v.value)
	}
	reply, err := moveScript.Run(ctx, r.w.c.conn, p.moveKeys(consumer), args...).Slice()
	if err == nil && len(reply) != len(batch) {
		err = fmt.Errorf("move.lua returned %d values for %d tasks", len(reply), len(batch))
	}
	return reply, err
}
