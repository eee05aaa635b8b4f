package broker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/broker/result"
)

// Cancel ends a task. It reports true if the task was delayed or parked: it is
// gone, and its result is [result.Cancelled]. False means that this is requested:
// a worker that has the task ends its handler's context with [ErrCancelled] within
// about a second, and one that meets it within a day does not start it. A task
// that has ended already, or never was, is no error.
func (i *Inspector) Cancel(ctx context.Context, queue, id string) (done bool, err error) {
	if err := result.ValidateID(id); err != nil {
		return false, fmt.Errorf("broker: cancel in %q: %w", queue, err)
	}
	err = i.existing(ctx, queue, func(_ metadata, ps []*partition) error {
		at := partitionsOf(ps, id)
		if err := i.payAll(ctx, at...); err != nil {
			return err
		}
		for _, p := range at {
			if done, err = i.cancelWaiting(ctx, p, id); done || err != nil {
				return err
			}
		}
		// A given ID has a mark where it was published.
		target := at[0]
		for _, p := range at[1:] {
			n, err := i.c.conn.Exists(ctx, p.idMark(id)).Result()
			if err != nil {
				return err
			}
			if n > 0 {
				target = p
			}
		}
		return i.c.conn.ZAdd(ctx, target.revoked, redis.Z{Score: float64(time.Now().UnixMilli()), Member: id}).Err()
	})
	if err != nil {
		return done, fmt.Errorf("broker: cancel %q in %q: %w", id, queue, explain(err))
	}
	return done, nil
}

// cancelWaiting removes a task that is delayed or parked.
func (i *Inspector) cancelWaiting(ctx context.Context, p *partition, id string) (bool, error) {
	for _, state := range []TaskState{Delayed, Parked} {
		var t TaskInfo
		err := i.find(ctx, p, state, id, &t)
		if err == nil {
			continue
		}
		if !errors.Is(err, errEnough) {
			return false, err
		}
		var stayed refusal
		n, err := i.remove(ctx, p, countCancelled, []TaskInfo{t}, "cancelled by hand", &stayed)
		if err == nil {
			err = stayed.err()
		}
		if n > 0 || err != nil {
			return n > 0, err
		}
	}
	return false, nil
}

// Purge takes all tasks out of a queue that no worker has, the ready, the delayed
// and the parked ones, and returns how many: they are gone, and their results are
// [result.Cancelled]. Dead letters stay: see [Inspector.DeleteDead]. Publishers and
// workers may go on meanwhile; what is published then may stay.
func (i *Inspector) Purge(ctx context.Context, queue string) (int, error) {
	total, stayed := 0, refusal{}
	err := i.existing(ctx, queue, func(_ metadata, ps []*partition) error {
		for _, p := range ps {
			n, err := i.purge(ctx, p, &stayed)
			total += n
			if err != nil {
				return err
			}
			if err := i.payAll(ctx, p); err != nil {
				return err
			}
		}
		return stayed.err()
	})
	if err != nil {
		return total, fmt.Errorf("broker: purge %q: %w", queue, explain(err))
	}
	return total, nil
}

// purge empties a partition of about what it holds now: first the parked tasks,
// which those that are removed would make ready.
func (i *Inspector) purge(ctx context.Context, p *partition, stayed *refusal) (total int, err error) {
	now, err := i.c.count(ctx, p)
	if err != nil {
		return 0, err
	}
	limit := int(now.ready + now.delayed + now.parked)
	for _, state := range []TaskState{Parked, Delayed, Ready, Ready} { // once more for what was parked meanwhile
		for total < limit {
			var page []TaskInfo
			err := i.scan(ctx, p, state, func(tasks []TaskInfo) error {
				page = tasks
				return errEnough
			})
			if err != nil && !errors.Is(err, errEnough) {
				return total, err
			}
			if len(page) == 0 {
				break
			}
			n, err := i.remove(ctx, p, countPurged, page, "purged by hand", stayed)
			if total += n; err != nil {
				return total, err
			}
			if n == 0 {
				break // workers are faster, or they cannot be removed
			}
		}
	}
	return total, nil
}

// remove takes tasks out that no worker has, and then writes their results.
func (i *Inspector) remove(ctx context.Context, p *partition, counter string, batch []TaskInfo, why string, stayed *refusal) (n int, err error) {
	if len(batch) > maxInspect {
		batch = batch[:maxInspect]
	}
	args, more := []any{p.prefix, counter}, []string(nil)
	notes := make([]string, len(batch))
	for k, t := range batch {
		switch t.State {
		case Delayed:
			args = append(args, "z", t.at.name, "")
		case Parked:
			args = append(args, "q", t.at.name, t.at.raw)
		default:
			args = append(args, "s", strconv.Itoa(t.at.stream+1), t.at.name)
		}
		if i.results != nil {
			notes[k] = noteOf(&t, why)
		}
		args = append(args, t.ID, notes[k])
		more = append(more, p.keysOf(t.Unique, t.Key)...)
	}
	reply, err := removeScript.Run(ctx, i.c.conn, p.removeKeys(more), args...).Slice()
	if err == nil && len(reply) != len(batch) {
		err = fmt.Errorf("remove.lua returned %d values for %d tasks", len(reply), len(batch))
	}
	if err != nil {
		return 0, err
	}
	owed := make(map[string]string)
	for k, v := range reply {
		if message, bad := v.(string); bad {
			stayed.add(batch[k].ID, explain(errors.New(message)))
		} else if v == int64(1) {
			n++
			if notes[k] != "" {
				owed[batch[k].ID] = notes[k]
			}
		}
	}
	if len(owed) == 0 {
		return n, nil
	}
	return n, owing(i.c.pay(ctx, p, i.results, owed))
}

// payAll writes what an inspector that died has owed.
func (i *Inspector) payAll(ctx context.Context, ps ...*partition) error {
	if i.results == nil {
		return nil
	}
	for _, p := range ps {
		if err := owing(i.c.payAll(ctx, p, i.results)); err != nil {
			return err
		}
	}
	return nil
}

// owing is the error of what pay has left.
func owing(left int, err error) error {
	if left == 0 {
		return err
	}
	return fmt.Errorf("%d tasks were removed and their results not written: who waits for them waits until a worker with results writes them, or this call does when it is made again: %w", left, err)
}
