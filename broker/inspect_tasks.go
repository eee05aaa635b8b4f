package broker

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

// A TaskState says where a task is.
type TaskState string

// The states.
const (
	Ready    TaskState = "ready"
	InFlight TaskState = "in flight"
	Delayed  TaskState = "delayed"
	Parked   TaskState = "parked"
	Dead     TaskState = "dead"
)

// A TaskInfo is a task as it is in its queue.
type TaskInfo struct {
	// ID, Task and what follows are as the task has them; of one that cannot be
	// read the ID is a made-up one, and Error says why.
	ID, Task, Queue      string
	State                TaskState
	Priority             Priority
	Attempt, MaxAttempts int
	Unfinished           int // as in [Delivery]
	Enqueued             time.Time
	Unique, Key          string // its unique key, and that of its concurrency limit
	Headers              map[string]string
	Payload              []byte // the argument as its codec made it

	// Due is when a delayed task becomes ready.
	Due time.Time

	// Consumer is who has a task in flight, and Held for how long.
	Consumer string
	Held     time.Duration

	// Reason, Error and Died are those of a dead letter.
	Reason Reason
	Error  string
	Died   time.Time

	at location
}

// A location is where the bytes of a task are.
type location struct {
	p      *partition
	stream int    // of a ready task or one in flight
	name   string // entry ID; name in T:z or T:dl; concurrency key
	score  float64
	raw    []byte // envelope
	result bool   // somebody may wait for its result
}

// Tasks goes through the tasks of a queue that are in one state, in pages of 100:
// delayed ones by when they are due, dead ones newest first, others about in
// their order, each within its partition. Tasks that move meanwhile may be missed,
// or come twice. It ends after an error, of which errors.Is finds [ErrNotFound] if
// the queue was never used.
func (i *Inspector) Tasks(ctx context.Context, queue string, state TaskState) iter.Seq2[TaskInfo, error] {
	return func(yield func(TaskInfo, error) bool) {
		err := i.existing(ctx, queue, func(_ metadata, ps []*partition) error {
			for _, p := range ps {
				if err := i.scan(ctx, p, state, func(page []TaskInfo) error {
					for _, t := range page {
						if !yield(t, nil) {
							return errEnough
						}
					}
					return nil
				}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(TaskInfo{}, fmt.Errorf("broker: %s tasks of %q: %w", state, queue, explain(err)))
		}
	}
}

var errEnough = errors.New("enough was seen")

// Find looks for a task by its ID in all states. Where it is neither delayed nor
// dead, that means reading the queue. The error is [ErrNotFound] if it is not
// there: never published, done, or on its way from one state to another.
func (i *Inspector) Find(ctx context.Context, queue, id string) (TaskInfo, error) {
	var found TaskInfo
	err := i.existing(ctx, queue, func(_ metadata, ps []*partition) error {
		for _, p := range partitionsOf(ps, id) {
			for _, state := range []TaskState{Delayed, Dead, InFlight, Parked, Ready} {
				if err := i.find(ctx, p, state, id, &found); err != nil {
					return err
				}
			}
		}
		return fmt.Errorf("%w: no task with the ID %q", ErrNotFound, id)
	})
	if errors.Is(err, errEnough) {
		return found, nil
	}
	return TaskInfo{}, fmt.Errorf("broker: find in %q: %w", queue, explain(err))
}

// find returns errEnough when it has found the task.
func (i *Inspector) find(ctx context.Context, p *partition, state TaskState, id string, found *TaskInfo) error {
	look := func(page []TaskInfo) error {
		for _, t := range page {
			if t.ID == id {
				*found = t
				return errEnough
			}
		}
		return nil
	}
	switch state {
	case Delayed, Dead:
		set, hash := p.sets(state)
		score, err := i.c.conn.ZScore(ctx, set, id).Result()
		if errors.Is(err, redis.Nil) {
			return nil
		}
		if err != nil {
			return err
		}
		page, err := i.named(ctx, p, state, hash, []redis.Z{{Member: id, Score: score}})
		if err != nil {
			return err
		}
		return look(page)
	}
	return i.scan(ctx, p, state, look)
}

// partitionsOf are the partitions in which a task may be, the likeliest first: a
// generated ID carries its partition; another one's hash chose it, unless the task
// has a key.
func partitionsOf(ps []*partition, id string) []*partition {
	if n, ok := generatedPartition(id); ok && n < len(ps) {
		return ps[n : n+1]
	}
	first := jumpHash(hashID(id), len(ps))
	return append([]*partition{ps[first]}, slices.Delete(slices.Clone(ps), first, first+1)...)
}

// scan calls fn with the tasks of a partition in pages.
func (i *Inspector) scan(ctx context.Context, p *partition, state TaskState, fn func([]TaskInfo) error) error {
	switch state {
	case Ready, InFlight:
		for n := range p.streams {
			var err error
			if state == Ready {
				err = i.scanReady(ctx, p, n, fn)
			} else {
				err = i.scanInFlight(ctx, p, n, fn)
			}
			if err != nil && !holdsNothing(err) {
				return err
			}
		}
		return nil
	case Delayed, Dead:
		set, hash := p.sets(state)
		return i.scanSet(ctx, set, state == Dead, func(page []redis.Z) error {
			tasks, err := i.named(ctx, p, state, hash, page)
			if err != nil {
				return err
			}
			return fn(tasks)
		})
	case Parked:
		return i.scanParked(ctx, p, fn)
	}
	return fmt.Errorf("the state is %q, want %q, %q, %q, %q or %q", state, Ready, InFlight, Delayed, Parked, Dead)
}

// sets are where tasks that wait for a time, or for a human, are.
func (p *partition) sets(state TaskState) (set, hash string) {
	if state == Dead {
		return p.dead, p.deadTasks
	}
	return p.delayed, p.envelopes
}

// scanReady goes through what the group has not delivered yet.
func (i *Inspector) scanReady(ctx context.Context, p *partition, stream int, fn func([]TaskInfo) error) error {
	key, from := p.streams[stream], "-"
	groups, err := i.c.conn.XInfoGroups(ctx, key).Result()
	if err != nil {
		return err
	}
	for _, g := range groups {
		if g.Name == group {
			from = "(" + g.LastDeliveredID
		}
	}
	for {
		entries, err := i.c.conn.XRangeN(ctx, key, from, "+", maxInspect).Result()
		if err != nil || len(entries) == 0 {
			return err
		}
		page := make([]TaskInfo, len(entries))
		for n, e := range entries {
			page[n] = i.entry(p, Ready, stream, e)
		}
		if err := fn(page); err != nil || len(entries) < maxInspect {
			return err
		}
		from = "(" + entries[len(entries)-1].ID
	}
}

// scanInFlight goes through what is pending.
func (i *Inspector) scanInFlight(ctx context.Context, p *partition, stream int, fn func([]TaskInfo) error) error {
	key := p.streams[stream]
	for from := "-"; ; {
		pending, err := i.c.conn.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: key, Group: group, Start: from, End: "+", Count: maxInspect}).Result()
		if err != nil || len(pending) == 0 {
			return err
		}
		pipe := i.c.conn.Pipeline()
		for _, one := range pending {
			pipe.XRangeN(ctx, key, one.ID, one.ID, 1)
		}
		var page []TaskInfo
		for n, cmd := range conn.Exec(ctx, pipe) {
			entries, err := cmd.(*redis.XMessageSliceCmd).Result()
			if err != nil {
				return err
			}
			if len(entries) == 0 {
				continue // done meanwhile
			}
			t := i.entry(p, InFlight, stream, entries[0])
			t.Consumer, t.Held = pending[n].Consumer, pending[n].Idle
			page = append(page, t)
		}
		if err := fn(page); err != nil || len(pending) < maxInspect {
			return err
		}
		from = behind(pending[len(pending)-1].ID)
	}
}

// behind is the least entry ID after id. (miniredis knows no "(" in XPENDING.)
func behind(id string) string {
	ms, n, _ := strings.Cut(id, "-")
	return ms + "-" + strconv.FormatUint(toUint(n)+1, 10)
}

// scanSet goes through a sorted set by score, also while members are taken away.
func (i *Inspector) scanSet(ctx context.Context, key string, newestFirst bool, fn func([]redis.Z) error) error {
	bound, seen := "", make(map[string]bool) // the last score, and its members so far
	for {
		by := redis.ZRangeBy{Min: "-inf", Max: "+inf", Count: int64(maxInspect + len(seen))}
		read := i.c.conn.ZRangeByScoreWithScores
		if newestFirst {
			read = i.c.conn.ZRevRangeByScoreWithScores
		}
		switch {
		case bound == "":
		case newestFirst:
			by.Max = bound
		default:
			by.Min = bound
		}
		page, err := read(ctx, key, &by).Result()
		if err != nil {
			return err
		}
		fresh := slices.DeleteFunc(slices.Clone(page), func(z redis.Z) bool { return seen[z.Member.(string)] })
		if len(fresh) == 0 {
			return nil
		}
		last := strconv.FormatFloat(page[len(page)-1].Score, 'f', -1, 64)
		if last != bound {
			clear(seen)
		}
		bound = last
		for _, z := range page {
			if z.Score == page[len(page)-1].Score {
				seen[z.Member.(string)] = true
			}
		}
		if err := fn(fresh); err != nil || int64(len(page)) < by.Count {
			return err
		}
	}
}

// named reads the tasks of a page of a sorted set from the hash beside it.
func (i *Inspector) named(ctx context.Context, p *partition, state TaskState, hash string, page []redis.Z) ([]TaskInfo, error) {
	names := make([]string, len(page))
	for n, z := range page {
		names[n], _ = z.Member.(string)
	}
	values, err := i.c.conn.HMGet(ctx, hash, names...).Result()
	if err != nil {
		return nil, err
	}
	var tasks []TaskInfo
	for n, v := range values {
		stored, ok := v.(string)
		if !ok {
			continue // removed meanwhile
		}
		at := location{p: p, name: names[n], score: page[n].Score, raw: []byte(stored)}
		when := time.UnixMilli(int64(page[n].Score)).UTC()
		if state == Delayed {
			t := i.describe(Delayed, names[n], at)
			t.Due = when
			tasks = append(tasks, t)
			continue
		}
		reason, message, raw, err := decodeDeadLetter(at.raw)
		if err != nil {
			message = err.Error()
		}
		at.raw = raw
		t := i.describe(Dead, names[n], at)
		t.Reason, t.Error, t.Died = reason, message, when
		tasks = append(tasks, t)
	}
	return tasks, nil
}

// scanParked goes through the parked tasks of each key.
func (i *Inspector) scanParked(ctx context.Context, p *partition, fn func([]TaskInfo) error) error {
	return i.scanSet(ctx, p.parkedKeys, false, func(keys []redis.Z) error {
		for _, z := range keys {
			key, _ := z.Member.(string)
			for from := int64(0); ; from += maxInspect {
				envelopes, err := i.c.conn.LRange(ctx, p.parked(key), from, from+maxInspect-1).Result()
				if err != nil {
					return err
				}
				page := make([]TaskInfo, len(envelopes))
				for n, e := range envelopes {
					page[n] = i.describe(Parked, "parked:"+key+":"+strconv.FormatInt(from+int64(n), 10), location{p: p, name: key, raw: []byte(e)})
				}
				if err := fn(page); err != nil {
					return err
				}
				if len(envelopes) < maxInspect {
					break
				}
			}
		}
		return nil
	})
}

// entry describes an entry of a stream.
func (i *Inspector) entry(p *partition, state TaskState, stream int, e redis.XMessage) TaskInfo {
	value, _ := e.Values[field].(string)
	return i.describe(state, madeUpID(entry{stream, e.ID}), location{p: p, stream: stream, name: e.ID, raw: timed([]byte(value), e.ID)})
}

// describe decodes what can be decoded. madeUp stands for the ID of what cannot.
func (i *Inspector) describe(state TaskState, madeUp string, at location) TaskInfo {
	t := TaskInfo{ID: madeUp, Queue: at.p.queue, State: state, at: at}
	e, err := decodeEnvelope(at.raw)
	if err != nil {
		t.Error = err.Error()
	}
	if e == nil || err != nil && !errors.Is(err, errLaterVersion) {
		return t
	}
	t.ID, t.Task = e.id, e.task
	t.Priority, t.Attempt, t.MaxAttempts, t.Unfinished = Priority(1-int8(e.priority)), int(e.attempt), int(e.maxAttempts), int(e.deliveries)
	t.Enqueued = time.UnixMilli(e.enqueued).UTC()
	t.Unique, t.Key = e.unique, e.key
	t.at.result = e.result
	if len(e.headers) > 0 {
		d := newDelivery(e, at.p.queue)
		t.Headers = d.Headers()
	}
	if err == nil {
		if t.Payload, err = i.c.compress.Decode(e.payload); err != nil {
			t.Error = err.Error()
		}
	}
	return t
}
