package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/conn"
)

// ErrNotFound says that there is no such task, or no such queue.
var ErrNotFound = errors.New("not found")

// An Inspector looks into queues, and changes by hand what is in them: what an
// operator needs at night. It is safe for concurrent use, needs no worker, and
// holds nothing of its own, so that it need not be closed.
//
// What it does to several tasks is done in batches of up to 100, each a script
// that changes every task of it as a whole or not at all. If it fails in between,
// what was done stays done, and the call can be made again.
type Inspector struct {
	c       *Client
	results *result.Client
}

// NewInspector returns an inspector of the queues of c. Of tasks that it ends,
// and whose result somebody may wait for, it writes the result; with nil results
// it does not, and who waits for such a task waits in vain.
func NewInspector(c *Client, results *result.Client) (*Inspector, error) {
	if c == nil {
		return nil, errors.New("broker: new inspector: nil client: pass one made by New")
	}
	return &Inspector{c: c, results: results}, nil
}

// Queues lists the queues of the namespace by name, also those that are empty. It
// looks through all keys of the server: seconds, where there are millions.
func (i *Inspector) Queues(ctx context.Context) ([]string, error) {
	names, err := i.queues(ctx)
	if err != nil {
		return nil, fmt.Errorf("broker: list queues: %w", explain(err))
	}
	return names, nil
}

func (i *Inspector) queues(ctx context.Context) ([]string, error) {
	if err := i.c.usable(ctx); err != nil {
		return nil, err
	}
	prefix, suffix, _ := strings.Cut(metadataKey("", "*"), "*")
	prefix = i.c.cfg.Namespace + prefix
	var mu sync.Mutex
	var names []string
	err := i.c.conn.EachPrimary(ctx, func(ctx context.Context, node redis.UniversalClient) error {
		for cursor := uint64(0); ; {
			keys, next, err := node.Scan(ctx, cursor, escapeGlob(prefix)+"*"+escapeGlob(suffix), 1000).Result()
			if err != nil {
				return err
			}
			mu.Lock()
			for _, key := range keys {
				name := strings.TrimSuffix(strings.TrimPrefix(key, prefix), suffix)
				if validateQueue(name) == nil {
					names = append(names, name)
				}
			}
			mu.Unlock()
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	})
	slices.Sort(names)
	return slices.Compact(names), err
}

// escapeGlob makes a pattern of SCAN that matches s alone.
func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// A QueueStatus says how a queue is doing.
type QueueStatus struct {
	QueueInfo

	Name       string
	Partitions int
	Created    time.Time // by the clock of who used it first

	// High, Default and Low are the ready tasks by priority, Returned those
	// among them that workers gave back, of any priority: they are taken first.
	High, Default, Low, Returned int64

	// Waiting is for how long the oldest ready task has been ready.
	Waiting time.Duration

	// Overdue is how long ago the first delayed task was due: more than a
	// fraction of a second means that no worker moves them.
	Overdue time.Duration

	// Counts are what became of the tasks of this queue since it was made:
	// published, acked, dead, retried and so on, and revived, purged and deleted
	// for what was done by hand.
	Counts map[string]int64

	// Consumers are the workers, one for each partition that a worker serves.
	Consumers []Consumer
}

// A Consumer is a worker, or what a dead one has left, at one partition.
type Consumer struct {
	Name      string // host, process ID, and a random part
	Partition int
	InFlight  int64         // tasks that it has
	Lease     time.Duration // what is left of its lease; 0: it is dead
	Idle      time.Duration // since it last asked for tasks
}

// Queue says how a queue is doing. The error is [ErrNotFound] if it was never used.
func (i *Inspector) Queue(ctx context.Context, name string) (QueueStatus, error) {
	q := QueueStatus{Name: name, Counts: make(map[string]int64)}
	err := i.existing(ctx, name, func(m metadata, ps []*partition) error {
		q.Partitions, q.Created = m.Partitions, time.UnixMilli(m.Created).UTC()
		for _, p := range ps {
			if err := i.add(ctx, &q, p); err != nil {
				return explain(err)
			}
		}
		return nil
	})
	if err != nil {
		return QueueStatus{}, fmt.Errorf("broker: queue %q: %w", name, err)
	}
	return q, nil
}

// add adds what a partition holds.
func (i *Inspector) add(ctx context.Context, q *QueueStatus, p *partition) error {
	n, err := i.c.count(ctx, p)
	if err != nil {
		return err
	}
	q.QueueInfo.add(n)
	q.Returned += n.byStream[releasedStream]
	q.High += n.byStream[1]
	q.Default += n.byStream[2]
	q.Low += n.byStream[3]
	if n.oldest > 0 {
		q.Waiting = max(q.Waiting, time.Duration(n.now-n.oldest)*time.Millisecond)
	}
	if n.due > 0 {
		q.Overdue = max(q.Overdue, time.Duration(n.now-n.due)*time.Millisecond)
	}
	counts, err := i.c.conn.HGetAll(ctx, p.counters).Result()
	if err != nil {
		return err
	}
	for name, v := range counts {
		q.Counts[name] += int64(toUint(v))
	}
	consumers, err := i.consumers(ctx, p)
	q.Consumers = append(q.Consumers, consumers...)
	return err
}

// consumers lists those of a partition by name.
func (i *Inspector) consumers(ctx context.Context, p *partition) ([]Consumer, error) {
	pipe := i.c.conn.Pipeline()
	infos := make([]*redis.XInfoConsumersCmd, streams)
	for n, key := range p.streams {
		infos[n] = pipe.XInfoConsumers(ctx, key, group)
	}
	conn.Exec(ctx, pipe)
	byName := make(map[string]*Consumer)
	for _, info := range infos {
		consumers, err := info.Result()
		if holdsNothing(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, found := range consumers {
			one := byName[found.Name]
			if one == nil {
				one = &Consumer{Name: found.Name, Partition: p.index, Idle: found.Idle}
				byName[found.Name] = one
			}
			one.InFlight += found.Pending
			one.Idle = min(one.Idle, found.Idle)
		}
	}
	all := make([]Consumer, 0, len(byName))
	pipe = i.c.conn.Pipeline()
	for name, one := range byName {
		all = append(all, *one)
		pipe.PTTL(ctx, p.heartbeat(name))
	}
	if len(all) == 0 {
		return nil, nil
	}
	for n, cmd := range conn.Exec(ctx, pipe) {
		left, err := cmd.(*redis.DurationCmd).Result()
		if err != nil {
			return nil, err
		}
		all[n].Lease = max(left, 0)
	}
	slices.SortFunc(all, func(a, b Consumer) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// Pause lets workers take no more tasks of a queue, within a second; what runs
// goes on. Tasks are still published, and become due. It lasts until Resume.
func (i *Inspector) Pause(ctx context.Context, queue string) error {
	return i.flag(ctx, "pause", queue, func(pipe redis.Pipeliner, p *partition) { pipe.Set(ctx, p.paused, "1", 0) })
}

// Resume ends a pause.
func (i *Inspector) Resume(ctx context.Context, queue string) error {
	return i.flag(ctx, "resume", queue, func(pipe redis.Pipeliner, p *partition) { pipe.Del(ctx, p.paused) })
}

// flag changes something small in all partitions.
func (i *Inspector) flag(ctx context.Context, what, queue string, change func(redis.Pipeliner, *partition)) error {
	err := i.existing(ctx, queue, func(_ metadata, ps []*partition) error {
		pipe := i.c.conn.Pipeline()
		for _, p := range ps {
			change(pipe, p)
		}
		for _, cmd := range conn.Exec(ctx, pipe) {
			if err := cmd.Err(); err != nil {
				return explain(err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("broker: %s %q: %w", what, queue, err)
	}
	return nil
}

// existing calls fn with what is known of a queue, which must exist.
func (i *Inspector) existing(ctx context.Context, queue string, fn func(metadata, []*partition) error) error {
	if err := i.c.usable(ctx); err != nil {
		return err
	}
	if err := validateQueue(queue); err != nil {
		return err
	}
	m, err := i.c.metadata(ctx, queue)
	if errors.Is(err, redis.Nil) {
		return fmt.Errorf("%w: nobody has used this queue yet", ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("key %q: %w", metadataKey(i.c.cfg.Namespace, queue), explain(err))
	}
	return fn(m, i.c.partitions(queue, m.Partitions))
}
