package broker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redisha/redisha/breaker"
)

// Bounds of a batch. A task above maxBatchBytes travels alone.
const (
	maxBatch       = 256
	maxBatchBytes  = 512 << 10
	maxBatchValues = 1000 // arguments and keys of the script
)

// A lane is the ordered stream of batches from one client to one partition. It
// has one batch in flight, which it sends again under the same sequence number
// until it is resolved: publish.lua applies a number once.
//
// A number whose batch was ever written to a socket is never used for other
// tasks: those bytes may still arrive, after everything that was sent later.
type lane struct {
	c *Client
	p *partition

	// Publishers that can, pass over a lane that has failed lately, or whose
	// server does not answer. Unix nanoseconds; 0 for never.
	failedAt, sentAt atomic.Int64

	mu      sync.Mutex
	waiting []*publishing // not in a batch yet
	running bool          // a goroutine sends

	// What follows belongs to that goroutine.
	name    string
	seq     uint64
	applied uint64 // the last number that Redis has told to have
	used    time.Time
}

// laneIdle is how long a lane may rest and be sure that its record is still
// there; the maintenance drops records that were not used for laneAge.
const (
	laneAge  = 24 * time.Hour
	laneIdle = 12 * time.Hour
)

func newLane(c *Client, p *partition) *lane {
	return &lane{c: c, p: p, name: randomName()}
}

// avoided reports whether the lane failed within the last second, or has waited
// for an answer for more than 200 ms.
func (l *lane) avoided(now time.Time) bool {
	sent := l.sentAt.Load()
	return now.UnixNano()-l.failedAt.Load() < int64(time.Second) || sent != 0 && now.UnixNano()-sent > int64(200*time.Millisecond)
}

// randomName returns 12 letters and digits that nobody else has.
func randomName() string {
	n := rand.Uint64()
	var b [12]byte
	for i := range b {
		b[i] = idAlphabet[n&31]
		n >>= 5
	}
	return string(b[:])
}

// A publishing is a task on its way through a lane.
type publishing struct {
	id       string
	priority uint8
	due      string // as publish.lua takes it; "" now
	mark     string // key; "" without
	envelope []byte

	batch *batch // guarded by lane.mu; nil while it waits
	done  chan struct{}
	err   error // once done is closed
}

func (t *publishing) plain() bool { return t.due == "" && t.mark == "" }

// values is how many of the script's values the task takes.
func (t *publishing) values() int {
	switch {
	case t.plain():
		return 2
	case t.mark == "":
		return 6
	}
	return 7
}

// A batch is what one call of publish.lua adds.
type batch struct {
	seq       uint64
	tasks     []*publishing
	abandoned chan struct{} // closed when nobody waits for it any more

	// Guarded by lane.mu.
	waiters int
	sent    bool // it may have been written to a socket, so its tasks are fixed
	flying  bool // an attempt is under way
}

// publish waits until t is resolved or ctx ends.
func (l *lane) publish(ctx context.Context, t *publishing) error {
	l.mu.Lock()
	if !l.running {
		if !l.c.begin() {
			l.mu.Unlock()
			return ErrClosed
		}
		l.running = true
		go l.run()
	}
	l.waiting = append(l.waiting, t)
	l.mu.Unlock()
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return l.giveUp(t, context.Cause(ctx))
	}
}

// giveUp withdraws t for a caller who no longer waits, or says that it is too late.
func (l *lane) giveUp(t *publishing, cause error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-t.done:
		return t.err
	default:
	}
	b := t.batch
	if b == nil {
		l.waiting = slices.DeleteFunc(l.waiting, func(w *publishing) bool { return w == t })
		return fmt.Errorf("not sent: %w", cause)
	}
	if b.waiters--; b.waiters == 0 {
		close(b.abandoned)
	}
	if b.sent || b.flying {
		return &UnconfirmedError{ID: t.id, Err: cause}
	}
	b.tasks = slices.DeleteFunc(b.tasks, func(w *publishing) bool { return w == t })
	return fmt.Errorf("not sent: %w", cause)
}

// run sends batches until nobody waits. The caller that finds the lane idle
// starts it; Client.Close waits for it.
func (l *lane) run() {
	defer l.c.started.Done()
	for b := l.take(); b != nil; b = l.take() {
		l.resolve(b)
	}
}

// take makes the next batch of what waits, or ends the run.
func (l *lane) take() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, values, bytes := 0, 0, 0
	for n < len(l.waiting) && n < maxBatch {
		t := l.waiting[n]
		values += t.values()
		bytes += len(t.envelope)
		if n > 0 && (values > maxBatchValues || bytes > maxBatchBytes) {
			break
		}
		n++
	}
	if n == 0 {
		l.running, l.waiting = false, nil
		return nil
	}
	l.seq++
	b := &batch{seq: l.seq, tasks: slices.Clone(l.waiting[:n]), waiters: n, abandoned: make(chan struct{})}
	for _, t := range b.tasks {
		t.batch = b
	}
	l.waiting = append(l.waiting[:0], l.waiting[n:]...)
	clear(l.waiting[len(l.waiting) : len(l.waiting)+n])
	return b
}

// resolve sends b until Redis answers, its callers are gone, or the client is closed.
func (l *lane) resolve(b *batch) {
	if time.Since(l.used) > laneIdle {
		l.applied = 0 // the record may be gone, and that is no loss
	}
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		if l.c.life.Err() != nil {
			l.finish(b, func(int, *publishing) error { return ErrClosed })
			return
		}
		if !l.launch(b) {
			return // all callers left before anything was sent
		}
		l.sentAt.Store(time.Now().UnixNano())
		reply, err := publishScript.Run(l.c.life, l.c.conn, l.p.publishKeys(b.marks()), b.args(l.name)...).Slice()
		l.used = time.Now()
		l.sentAt.Store(0)
		if err == nil {
			if err = l.land(b, reply); err == nil {
				l.failedAt.Store(0)
				return
			}
		}
		l.failedAt.Store(l.used.UnixNano())
		if l.failed(b, err) {
			return
		}
		l.c.counts.resent.Inc()
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-b.abandoned:
		case <-l.c.life.Done():
		}
		timer.Stop()
		select {
		case <-b.abandoned:
			return // all callers know that nothing is known
		default:
		}
	}
}

// launch marks the beginning of an attempt.
func (l *lane) launch(b *batch) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(b.tasks) == 0 {
		return false
	}
	b.flying = true
	return true
}

// failed judges a failed attempt. It reports true if b is resolved by it. The
// error of a client that sends again by itself is only that of its last sending:
// an earlier one may have arrived.
func (l *lane) failed(b *batch, err error) bool {
	what := outcomeOf(err, l.c.once)
	l.mu.Lock()
	b.flying = false
	b.sent = b.sent || what == unknown || !l.c.once && !fatal(err) && !errors.Is(err, breaker.ErrOpen)
	l.mu.Unlock()
	if what != final {
		return false
	}
	err = explain(err)
	l.finish(b, func(int, *publishing) error { return err })
	return true
}

// finish wakes the callers of b. An error after an attempt whose outcome is not
// known leaves that open: what was sent then may still arrive.
func (l *lane) finish(b *batch, verdict func(i int, t *publishing) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b.flying = false
	for i, t := range b.tasks {
		t.err = verdict(i, t)
		if t.err != nil && b.sent {
			t.err = &UnconfirmedError{ID: t.id, Err: t.err}
		}
		close(t.done)
	}
}

// Verdicts of publish.lua.
const (
	verdictAdded   = '0'
	verdictAlready = '1'
	verdictWrong   = 'w'
)

var errReply = errors.New("an answer of publish.lua that makes no sense")

// land reads the answer of publish.lua and resolves b by it.
func (l *lane) land(b *batch, reply []any) error {
	if len(reply) != 3 {
		return fmt.Errorf("%w: %v", errReply, reply)
	}
	number, verdicts, before := toUint(reply[0]), toString(reply[1]), toUint(reply[2])
	if number != b.seq {
		return fmt.Errorf("%w: sequence %d, want %d", errReply, number, b.seq)
	}
	if before < l.applied {
		l.c.counts.lostBatches.Add(l.applied - before)
		l.lost(before)
		if err := l.c.restore(l.c.life, l.p.queue, l.p.of); err != nil {
			l.c.log.Error("queue metadata not restored", "queue", l.p.queue, "err", err)
		}
	}
	l.applied = number
	l.c.counts.batches.Inc()
	l.mu.Lock()
	b.sent = false // nothing is open any more
	l.mu.Unlock()
	l.finish(b, func(i int, t *publishing) error {
		verdict := byte(verdictAdded)
		if i < len(verdicts) {
			verdict = verdicts[i]
		}
		switch verdict {
		case verdictAdded:
			l.c.counts.published.Inc()
			return nil
		case verdictAlready:
			l.c.counts.duplicates.Inc()
			return nil
		case verdictWrong:
			return fmt.Errorf("WRONGTYPE a key of %s…: does something else write the queue's keys?", l.p.prefix)
		}
		return fmt.Errorf("%w: verdict %q", errReply, verdict)
	})
	return nil
}

// lost logs that Redis has forgotten what came after the number before. If that
// is 0 it has no record of the lane, and there is no telling how much of what it
// ever held was still to be done.
func (l *lane) lost(before uint64) {
	if before == 0 {
		l.c.log.Warn("Redis lost the record of what was published: tasks that were not done may be gone", "queue", l.p.queue, "partition", l.p.index)
		return
	}
	l.c.log.Warn("Redis lost writes: tasks that were published last may be gone", "queue", l.p.queue, "partition", l.p.index, "at_most_batches", l.applied-before)
}

func (b *batch) marks() (keys []string) {
	for _, t := range b.tasks {
		if t.mark != "" {
			keys = append(keys, t.mark)
		}
	}
	return keys
}

func (b *batch) args(lane string) []any {
	args := make([]any, 0, 2+2*len(b.tasks))
	args = append(args, lane, b.seq)
	for _, t := range b.tasks {
		if t.plain() {
			args = append(args, priorityDigits[t.priority], t.envelope)
			continue
		}
		ttl := int64(0)
		if t.mark != "" {
			ttl = markTTL.Milliseconds()
		}
		args = append(args, "x", priorityDigits[t.priority], t.id, t.due, ttl, t.envelope)
	}
	return args
}

var priorityDigits = [priorities]string{"0", "1", "2"}

// toString and toUint read values of a script's answer; what is of another type
// is empty.
func toString(v any) string {
	s, _ := v.(string)
	return s
}

func toUint(v any) uint64 {
	switch v := v.(type) {
	case string:
		n, _ := strconv.ParseUint(v, 10, 64)
		return n
	case int64:
		return uint64(max(v, 0))
	}
	return 0
}
