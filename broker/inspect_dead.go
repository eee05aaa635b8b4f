package broker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/broker/result"
)

// A DeadFilter chooses dead letters: those for which everything holds that is
// set. The zero DeadFilter chooses all.
type DeadFilter struct {
	IDs       []string      // one of these
	Task      string        // tasks of this name
	Reason    Reason        // that died for this
	OlderThan time.Duration // that died so long ago, by the server's clock
}

func (f DeadFilter) match(t *TaskInfo) bool {
	return (f.Task == "" || t.Task == f.Task) && (f.Reason == 0 || t.Reason == f.Reason)
}

// RetryDead makes dead letters ready again, and returns how many: as their first
// attempt, published now. Their results are forgotten, so that who waits from now
// on waits for the new ones. Letters that come while it runs are left alone.
//
// The error tells how many could not be retried, and why the first of them: its
// unique key is another task's by now, or it cannot be read. The others were.
func (i *Inspector) RetryDead(ctx context.Context, queue string, which DeadFilter) (int, error) {
	n, err := i.eachDead(ctx, queue, which, i.revive)
	if err != nil {
		return n, fmt.Errorf("broker: retry dead letters of %q: %w", queue, err)
	}
	return n, nil
}

// DeleteDead deletes dead letters, and returns how many. Nothing else ever
// deletes one: who wants them gone after a month calls it with OlderThan.
func (i *Inspector) DeleteDead(ctx context.Context, queue string, which DeadFilter) (int, error) {
	n, err := i.eachDead(ctx, queue, which, i.drop)
	if err != nil {
		return n, fmt.Errorf("broker: delete dead letters of %q: %w", queue, err)
	}
	return n, nil
}

// A refusal counts the tasks of a batch that stayed, and says why the first did.
type refusal struct {
	n     int
	first error
}

func (r *refusal) add(id string, err error) {
	if r.n++; r.first == nil {
		r.first = fmt.Errorf("task %q: %w", id, err)
	}
}

func (r *refusal) err() error {
	if r.n == 0 {
		return nil
	}
	return fmt.Errorf("%d stayed, the first because of: %w", r.n, r.first)
}

// eachDead calls change with batches of the letters that f chooses.
func (i *Inspector) eachDead(ctx context.Context, queue string, f DeadFilter, change func(context.Context, *partition, []TaskInfo, *refusal) (int, error)) (int, error) {
	if f.OlderThan < 0 {
		return 0, fmt.Errorf("DeadFilter.OlderThan is %s, want 0 or more", f.OlderThan)
	}
	var stayed refusal
	total := 0
	err := i.existing(ctx, queue, func(_ metadata, ps []*partition) error {
		for _, p := range ps {
			// What dies from now on is another matter, and a task that is retried
			// and dies again must not come round for ever.
			now, err := i.c.count(ctx, p)
			if err != nil {
				return err
			}
			latest := float64(now.now + 1 - f.OlderThan.Milliseconds()) // move.lua rounds up
			err = i.deadPages(ctx, p, f.IDs, func(page []redis.Z) error {
				tasks, err := i.named(ctx, p, Dead, p.deadTasks, page)
				if err != nil {
					return err
				}
				var batch []TaskInfo
				for _, t := range tasks {
					if t.at.score <= latest && f.match(&t) {
						batch = append(batch, t)
					}
				}
				if len(batch) == 0 {
					return nil
				}
				n, err := change(ctx, p, batch, &stayed)
				total += n
				return err
			})
			if err != nil {
				return explain(err)
			}
		}
		return nil
	})
	if err == nil {
		err = stayed.err()
	}
	return total, err
}

// deadPages calls fn with the names of letters in pages: of ids, or of all.
func (i *Inspector) deadPages(ctx context.Context, p *partition, ids []string, fn func([]redis.Z) error) error {
	if ids == nil {
		return i.scanSet(ctx, p.dead, false, fn)
	}
	for len(ids) > 0 {
		batch := ids[:min(len(ids), maxInspect)]
		ids = ids[len(batch):]
		pipe := i.c.conn.Pipeline()
		scores := make([]*redis.FloatCmd, len(batch))
		for n, id := range batch {
			scores[n] = pipe.ZScore(ctx, p.dead, id)
		}
		_, _ = pipe.Exec(ctx) // each has its error
		var page []redis.Z
		for n, cmd := range scores {
			score, err := cmd.Result()
			if errors.Is(err, redis.Nil) {
				continue
			}
			if err != nil {
				return err
			}
			page = append(page, redis.Z{Member: batch[n], Score: score})
		}
		if len(page) > 0 {
			if err := fn(page); err != nil {
				return err
			}
		}
	}
	return nil
}

func (i *Inspector) revive(ctx context.Context, p *partition, batch []TaskInfo, stayed *refusal) (n int, err error) {
	before, err := i.forget(ctx, batch)
	if err != nil {
		return 0, err
	}
	args, more := []any{p.prefix}, []string(nil)
	for _, t := range batch {
		args = append(args, t.at.name, score(t))
		more = append(more, p.keysOf(t.Unique, t.Key)...)
	}
	reply, err := reviveScript.Run(ctx, i.c.conn, p.reviveKeys(more), args...).Slice()
	if err == nil && len(reply) != len(batch) {
		err = fmt.Errorf("revive.lua returned %d values for %d letters", len(reply), len(batch))
	}
	if err != nil {
		return 0, err
	}
	var back []result.Record
	for k, v := range reply {
		message, bad := v.(string)
		if r, forgotten := before[batch[k].ID]; bad && forgotten {
			back = append(back, r)
		}
		switch holder, held := strings.CutPrefix(message, "held "); {
		case held:
			stayed.add(batch[k].ID, fmt.Errorf("its unique key %q is held by the task %q", batch[k].Unique, holder))
		case message == "corrupt":
			stayed.add(batch[k].ID, errors.New("it cannot be read"))
		case bad:
			stayed.add(batch[k].ID, explain(errors.New(message)))
		case v == int64(1):
			n++
		}
	}
	if len(back) > 0 { // these are still dead
		_, err = i.results.StoreMany(ctx, back)
	}
	return n, err
}

func (i *Inspector) drop(ctx context.Context, p *partition, batch []TaskInfo, _ *refusal) (n int, err error) {
	var args []any
	for _, t := range batch {
		args = append(args, t.at.name, score(t))
	}
	reply, err := dropScript.Run(ctx, i.c.conn, p.dropKeys(), args...).Int64Slice()
	for _, v := range reply {
		n += int(v)
	}
	return n, err
}

func score(t TaskInfo) string { return strconv.FormatFloat(t.at.score, 'f', -1, 64) }

// forget deletes the results of tasks that will have new ones, and returns those
// that were final, by ID.
func (i *Inspector) forget(ctx context.Context, batch []TaskInfo) (map[string]result.Record, error) {
	var ids []string
	ttl := make(map[string]time.Duration)
	for _, t := range batch {
		if e, _ := decodeEnvelope(t.at.raw); t.at.result && e != nil && result.ValidateID(t.ID) == nil {
			ids = append(ids, t.ID)
			ttl[t.ID] = retention(e)
		}
	}
	if i.results == nil || len(ids) == 0 {
		return nil, nil
	}
	records, err := i.results.GetMany(ctx, ids...)
	if err != nil && len(records) == 0 {
		return nil, err
	}
	before := make(map[string]result.Record)
	for _, r := range records { // what cannot be read cannot be put back
		if r.State.Final() {
			r.TTL = ttl[r.ID]
			before[r.ID] = r
		}
	}
	return before, i.results.Forget(ctx, ids...)
}
