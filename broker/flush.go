package broker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/conn"
)

// resolve sends b until Redis answers, its callers are gone, or the client is closed.
func (l *lane) resolve(b *batch) {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		if b.appliedAt.IsZero() || l.failedAt.Load() > b.appliedAt.UnixNano() {
			timer := time.NewTimer(pause/2 + rand.N(pause))
			select {
			case <-timer.C:
			case <-l.abandonment(b):
			case <-l.c.life.Done():
			}
			timer.Stop()
		}
		select {
		case <-l.abandonment(b):
			l.openSince.Store(0)
			return // all callers know what is known
		default:
		}
		l.c.counts.resent.Inc()
		if l.attempt(l.c.life, b) {
			return
		}
	}
}

// attempt sends b once and reports whether it is resolved.
func (l *lane) attempt(ctx context.Context, b *batch) bool {
	if l.c.life.Err() != nil {
		l.fail(b, ErrClosed)
		return true
	}
	if !l.launch(b) {
		l.openSince.Store(0)
		return true // all callers left before anything was sent
	}
	now := time.Now()
	if now.Sub(l.used) > laneIdle {
		l.applied = 0 // the record may be gone, and that is no loss
	}
	if l.openSince.Load() == 0 {
		l.openSince.Store(now.UnixNano())
	}
	unconfirmed, err := l.send(ctx, b, now)
	l.used = time.Now()
	if err != nil {
		l.failedAt.Store(l.used.UnixNano())
		return l.failed(b, err)
	}
	return l.settle(b, unconfirmed)
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
	var before *nodeError
	l.mu.Lock()
	b.flying = false
	if !errors.As(err, &before) {
		b.sent = b.sent || what == unknown || !l.c.once && !fatal(err) && !errors.Is(err, breaker.ErrOpen)
	}
	l.mu.Unlock()
	var panicked *hookPanic
	if what != final && !errors.As(err, &panicked) {
		return false
	}
	l.fail(b, explain(err))
	return true
}

// A hookPanic is what a hook of the program's client did instead of an answer. The
// caller who happens to send for others must not take their tasks along.
type hookPanic struct{ cause any }

func (e *hookPanic) Error() string { return fmt.Sprintf("panic in a hook of the client: %v", e.cause) }

// settle ends b, which Redis has, unless its confirmation is open and there is
// time to ask for it again.
func (l *lane) settle(b *batch, unconfirmed error) bool {
	now := time.Now()
	degraded := false
	if unconfirmed == nil {
		if !l.open.IsZero() && l.c.cfg.DegradeAfter > 0 && now.Sub(l.open) >= l.c.cfg.DegradeAfter {
			l.c.log.Info("publishes are confirmed again", "queue", l.p.queue, "partition", l.p.index, "level", l.level.String())
		}
		l.open = time.Time{}
	} else {
		if l.open.IsZero() {
			l.open = now
		}
		if limit := l.c.cfg.DegradeAfter; limit > 0 && now.Sub(l.open) >= limit {
			if b.appliedAt.Sub(l.open) < limit { // the first one
				l.c.log.Warn("publishes are not confirmed any more: a failover may lose them", "queue", l.p.queue, "partition", l.p.index, "level", l.level.String(), "since", now.Sub(l.open), "err", unconfirmed)
			}
			degraded, unconfirmed = true, nil
		} else if now.Sub(b.appliedAt) < l.c.cfg.ConfirmTimeout && l.c.life.Err() == nil {
			l.mu.Lock()
			b.flying = false
			l.mu.Unlock()
			return false
		}
	}
	l.failedAt.Store(0)
	if unconfirmed != nil {
		unconfirmed = fmt.Errorf("%w after %s (Config.ConfirmTimeout)", unconfirmed, now.Sub(b.appliedAt).Round(time.Millisecond))
		l.failedAt.Store(now.UnixNano())
	}
	verdicts, lines, _ := strings.Cut(b.verdicts, "\n")
	i := -1
	l.finish(b, func(t *publishing) error {
		i++
		verdict := byte(verdictAdded)
		if i < len(verdicts) {
			verdict = verdicts[i]
		}
		switch verdict {
		case verdictAdded:
			l.c.counts.published.Inc()
		case verdictAlready:
			l.c.counts.duplicates.Inc()
		case verdictHeld:
			l.c.counts.duplicates.Inc()
			var holder string
			holder, lines, _ = strings.Cut(lines, "\n")
			return &DuplicateError{Key: t.unique, ID: holder}
		case verdictFull:
			return ErrQueueFull
		case verdictWrong:
			return fmt.Errorf("WRONGTYPE a key of %s…: does something else write the queue's keys?", l.p.prefix)
		default:
			return fmt.Errorf("%w: verdict %q", errReply, verdict)
		}
		if unconfirmed != nil {
			return &UnconfirmedError{ID: t.id, Applied: true, Err: unconfirmed}
		}
		if degraded {
			l.c.counts.degraded.Inc()
		}
		return nil
	})
	return true
}

// fail ends b with an error of the server or the client. After an attempt whose
// outcome is not known that leaves it open: what was sent then may still arrive.
func (l *lane) fail(b *batch, err error) {
	l.finish(b, func(t *publishing) error {
		if b.sent || !b.appliedAt.IsZero() {
			return &UnconfirmedError{ID: t.id, Applied: !b.appliedAt.IsZero(), Err: err}
		}
		return err
	})
}

// finish wakes the callers of b.
func (l *lane) finish(b *batch, verdict func(t *publishing) error) {
	l.openSince.Store(0)
	l.mu.Lock()
	defer l.mu.Unlock()
	b.flying = false
	for i, t := range b.tasks {
		t.err = verdict(t)
		t.resolved, t.batch = true, nil
		b.tasks[i] = nil
		if w := t.waiter; w == nil {
			l.c.unheard(t.err)
		} else if w.left.Add(-1) == 0 {
			w.done <- struct{}{}
		}
	}
}

// unheard counts a publish for which nobody waits, and logs its error.
func (c *Client) unheard(err error) {
	if err == nil {
		return
	}
	c.counts.publishFailed(err)
	last, now := c.told.Load(), time.Now().UnixNano()
	if now-last > int64(time.Second) && c.told.CompareAndSwap(last, now) {
		c.log.Warn("a task was not published, and with ConfirmNone nobody is told", "err", err)
	}
}

// Verdicts of publish.lua.
const (
	verdictAdded   = '0'
	verdictAlready = '1'
	verdictHeld    = 'u'
	verdictFull    = 'f'
	verdictWrong   = 'w'
)

var errReply = errors.New("an answer of publish.lua that makes no sense")

// land reads the answer of publish.lua, behind which a WAIT took some time.
func (l *lane) land(b *batch, reply string, waited time.Duration) error {
	first, rest, _ := strings.Cut(reply, ":")
	second, verdicts, ok := strings.Cut(rest, ":")
	before, err1 := strconv.ParseUint(first, 10, 64)
	number, err2 := strconv.ParseUint(second, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return fmt.Errorf("%w: %.100q", errReply, reply)
	}
	if number != b.seq {
		return fmt.Errorf("%w: sequence %d, want %d", errReply, number, b.seq)
	}
	// What Redis lacks of this batch, which it had once, it has again by now.
	if had := min(l.applied, b.seq-1); before < had {
		l.c.counts.lostBatches.Add(had - before)
		l.lost(before, had)
		l.touched = time.Time{}
		if err := l.c.restore(l.c.life, l.p.queue, l.p.of); err != nil {
			l.c.log.Error("queue metadata not restored", "queue", l.p.queue, "err", err)
		}
	}
	if l.applied < number {
		l.c.counts.batches.Inc()
	}
	l.applied = number
	b.verdicts = verdicts
	l.mu.Lock()
	defer l.mu.Unlock()
	b.sent = false
	if b.appliedAt.IsZero() {
		b.appliedAt = time.Now().Add(-waited)
	}
	return nil
}

// lost logs that Redis has forgotten what came after the number before. If that
// is 0 it has no record of the lane, and there is no telling how much of what it
// ever held was still to be done.
func (l *lane) lost(before, had uint64) {
	if before == 0 {
		l.c.log.Warn("Redis lost the record of what was published: tasks that were not done may be gone", "queue", l.p.queue, "partition", l.p.index)
		return
	}
	l.c.log.Warn("Redis lost writes: tasks that were published last may be gone", "queue", l.p.queue, "partition", l.p.index, "at_most_batches", had-before)
}

// A sender makes the commands of a lane, in memory that it uses again.
type sender struct {
	args        []any
	plain       [priorities][]any // EVALSHA and the keys of plain.lua
	general     []any             // of publish.lua, for tasks without conditions
	conditional []any             // the keys behind them of those with
}

func newSender(p *partition) sender {
	var s sender
	for i := range s.plain {
		s.plain[i] = evalSHA(plainScript, p.plainKeys(1+i))
	}
	s.general = evalSHA(publishScript, p.publishKeys())
	for _, k := range p.conditionKeys() {
		s.conditional = append(s.conditional, k)
	}
	return s
}

func evalSHA(script *redis.Script, keys []string) []any {
	args := []any{"evalsha", script.Hash(), len(keys)}
	for _, k := range keys {
		args = append(args, k)
	}
	return args
}

// command returns the call of plain.lua for b, or of publish.lua if it is not plain
// or touch is set. It is valid until the next one.
func (s *sender) command(b *batch, lane string, touch bool) (args []any, plain bool) {
	if touch || !b.plain() {
		return s.publish(b, lane, touch), false
	}
	args = append(s.args[:0], s.plain[b.tasks[0].envelope[offPriority]]...)
	args = append(args, lane, b.seq)
	for _, t := range b.tasks {
		args = append(args, t)
	}
	s.args = args
	return args, true
}

// plain reports whether all tasks have the same priority, and none has what
// publish.lua must see to.
func (b *batch) plain() bool {
	for _, t := range b.tasks {
		if t.conditions != nil || t.timed || t.envelope[offPriority] != b.tasks[0].envelope[offPriority] {
			return false
		}
	}
	return true
}

func (s *sender) publish(b *batch, lane string, touch bool) []any {
	args := append(s.args[:0], s.general...)
	for _, t := range b.tasks {
		if t.conditions == nil {
			continue
		}
		if len(args) == len(s.general) {
			args = append(args, s.conditional...)
		}
		for _, k := range t.keys {
			args = append(args, k)
		}
	}
	args[2] = len(args) - 3
	flag := ""
	if touch {
		flag = "1"
	}
	args = append(args, lane, b.seq, flag)
	for _, t := range b.tasks {
		if t.conditions != nil {
			args = append(args, t.conditions)
		}
		args = append(args, t)
	}
	s.args = args
	return args
}

// send makes one attempt: the script, and behind it on the same connection the
// wait for its confirmation. The first result is why b is not confirmed.
func (l *lane) send(ctx context.Context, b *batch, now time.Time) (unconfirmed, err error) {
	touch := now.Sub(l.touched) > laneTouch
	args, plain := l.sender.command(b, l.name, touch)
	loaded, text := &l.loaded, publishText
	if plain {
		loaded, text = &l.loadedPlain, plainText
	}
	var reply string
	if *loaded {
		reply, unconfirmed, err = l.exec(ctx, args)
	}
	if !*loaded || err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
		args[0], args[1] = "eval", text
		reply, unconfirmed, err = l.exec(ctx, args)
	}
	if err != nil {
		return nil, err
	}
	*loaded = true
	waited := time.Duration(0)
	if unconfirmed != nil {
		waited = min(l.patience(), time.Since(now))
	}
	if err := l.land(b, reply, waited); err != nil {
		return nil, err
	}
	if touch {
		l.touched = now
	}
	return unconfirmed, nil
}

func (l *lane) exec(ctx context.Context, args []any) (reply string, unconfirmed, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			l.c.log.Error("panic in a hook of the client", "panic", cause, "stack", string(debug.Stack()))
			err = &hookPanic{cause}
		}
	}()
	script := redis.NewCmd(ctx, args...)
	if !l.level.waits() {
		_ = l.c.conn.Process(ctx, script)
		reply, err = script.Text()
		return reply, nil, err
	}
	node, err := l.node(ctx)
	if err != nil {
		return "", nil, err
	}
	wait := l.level.wait(ctx, l.patience())
	pipe := node.Pipeline()
	_ = pipe.BatchProcess(ctx, script, wait)
	conn.Exec(ctx, pipe)
	if reply, err = script.Text(); err != nil {
		if moved(err) {
			l.c.reload(ctx)
		}
		return "", nil, err
	}
	confirmed, err := l.level.confirmed(wait)
	if confirmed {
		return reply, nil, nil
	}
	if wait.Err() != nil {
		l.failedAt.Store(time.Now().UnixNano())
	}
	return reply, err, nil
}

// patience is how long one WAIT may take: a moment where nobody counts on it.
func (l *lane) patience() time.Duration {
	if limit := l.c.cfg.DegradeAfter; limit > 0 && !l.open.IsZero() && time.Since(l.open) >= limit {
		return time.Millisecond
	}
	return l.c.waitSlice
}

// node returns the client of the one server that has the partition. On a Cluster
// it follows no redirection: an ASK ends when the slot has arrived, and for a
// MOVED the topology is asked for again. The script and its WAIT must not part.
func (l *lane) node(ctx context.Context) (redis.UniversalClient, error) {
	node, err := l.c.conn.Node(ctx, l.p.lanes)
	if err != nil {
		return nil, &nodeError{err: err, passes: !fatal(err)}
	}
	if l.level == ConfirmFsync && !l.fsync {
		// Before a task is there that the server could not confirm.
		if err := node.Do(ctx, "waitaof", 1, 0, 1).Err(); err != nil {
			if isReply(err) && !passes(err) {
				return nil, &nodeError{err: fmt.Errorf("ConfirmFsync needs Redis 7.2 or later with appendonly: %w", err)}
			}
			return nil, &nodeError{err: err, passes: !fatal(err)}
		}
		l.fsync = true
	}
	return node, nil
}

// A nodeError is why nothing was sent.
type nodeError struct {
	err    error
	passes bool
}

func (e *nodeError) Error() string { return e.err.Error() }
func (e *nodeError) Unwrap() error { return e.err }

func moved(err error) bool { return redis.HasErrorPrefix(err, "MOVED") }

// reload has the topology of a Cluster asked for again.
func (c *Client) reload(ctx context.Context) {
	if cluster, ok := c.conn.Unwrap().(*redis.ClusterClient); ok {
		cluster.ReloadState(ctx)
	}
}

// toUint reads a number of a reply; what is of another type is 0.
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

// toString reads a string of a reply; what is of another type is empty.
func toString(v any) string {
	s, _ := v.(string)
	return s
}
