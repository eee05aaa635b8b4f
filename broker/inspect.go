package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

// QueueInfo counts the tasks of a queue.
type QueueInfo struct {
	Ready    int64 // wait for a worker
	InFlight int64 // with a worker
	Delayed  int64 // not due yet, retries included
	Parked   int64 // wait for another task of their concurrency key
	Dead     int64 // dead letters
	Paused   bool  // workers take none
}

// Queue counts the tasks of a queue. Of each partition the counts are of one
// moment. A queue that was never used has none.
func (c *Client) Queue(ctx context.Context, name string) (QueueInfo, error) {
	var info QueueInfo
	err := c.eachPartition(ctx, name, func(p *partition) error {
		n, err := c.count(ctx, p)
		info.add(n)
		return err
	})
	if err != nil {
		return QueueInfo{}, fmt.Errorf("broker: queue %q: %w", name, err)
	}
	return info, nil
}

func (q *QueueInfo) add(n tally) {
	q.Ready += n.ready
	q.InFlight += n.inFlight
	q.Delayed += n.delayed
	q.Parked += n.parked
	q.Dead += n.dead
	q.Paused = q.Paused || n.paused
}

// A tally is what count.lua says of a partition. Times are ms since 1970.
type tally struct {
	ready, inFlight, delayed, dead, parked int64
	paused                                 bool
	now, oldest, due                       int64 // 0: no task is ready, or delayed
	byStream                               [streams]int64
}

// count counts the tasks of a partition, at one moment; but where more than 1,000
// keys have parked tasks, those of the others are counted a moment later.
func (c *Client) count(ctx context.Context, p *partition) (t tally, err error) {
	reply, err := countScript.Run(ctx, c.conn, p.countKeys(), p.prefix).Slice()
	if err == nil && len(reply) != 14 {
		err = fmt.Errorf("count.lua returned %d values", len(reply))
	}
	if err != nil {
		return t, explain(err)
	}
	n := make([]int64, len(reply))
	for i, v := range reply {
		if n[i], err = strconv.ParseInt(fmt.Sprint(v), 10, 64); err != nil {
			return t, fmt.Errorf("count.lua: %w", err)
		}
	}
	t = tally{ready: n[0], inFlight: n[1], delayed: n[2], dead: n[3], parked: n[4], paused: n[6] > 0, now: n[7], oldest: n[8], due: n[9]}
	copy(t.byStream[:], n[10:])
	for from := int64(1000); from < n[5]; from += 1000 {
		more, err := c.parkedOf(ctx, p, from)
		if err != nil {
			return t, explain(err)
		}
		t.parked += more
	}
	return t, nil
}

// parkedOf counts the parked tasks of 1,000 keys.
func (c *Client) parkedOf(ctx context.Context, p *partition, from int64) (n int64, err error) {
	keys, err := c.conn.ZRange(ctx, p.parkedKeys, from, from+999).Result()
	if err != nil {
		return 0, err
	}
	pipe := c.conn.Pipeline()
	for _, key := range keys {
		pipe.LLen(ctx, p.parked(key))
	}
	for _, cmd := range conn.Exec(ctx, pipe) {
		length, err := cmd.(*redis.IntCmd).Result()
		if err != nil {
			return 0, err
		}
		n += length
	}
	return n, nil
}

// A DeadLetter is a task that was set aside. It stays until someone removes it.
type DeadLetter struct {
	ID, Task string // of an undecodable task a made-up ID, and no name
	Reason   Reason
	Error    string // of the last attempt, at most 4 KiB
	Attempt  int    // the last one
	Died     time.Time
	Enqueued time.Time
	Payload  []byte // the argument as its codec made it; nil if it cannot be read
}

// DeadLetters returns the latest dead letters of a queue, newest first, at most
// limit.
func (c *Client) DeadLetters(ctx context.Context, queue string, limit int) ([]DeadLetter, error) {
	var letters []DeadLetter
	if limit < 1 {
		return nil, fmt.Errorf("broker: dead letters of %q: limit is %d, want at least 1", queue, limit)
	}
	err := c.eachPartition(ctx, queue, func(p *partition) error {
		found, err := c.deadLetters(ctx, p, limit)
		letters = append(letters, found...)
		return explain(err)
	})
	if err != nil {
		return nil, fmt.Errorf("broker: dead letters of %q: %w", queue, err)
	}
	slices.SortStableFunc(letters, func(a, b DeadLetter) int { return b.Died.Compare(a.Died) })
	return letters[:min(len(letters), limit)], nil
}

func (c *Client) deadLetters(ctx context.Context, p *partition, limit int) ([]DeadLetter, error) {
	ids, err := c.conn.ZRevRangeWithScores(ctx, p.dead, 0, int64(limit-1)).Result()
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	names := make([]string, len(ids))
	for i, z := range ids {
		names[i], _ = z.Member.(string)
	}
	values, err := c.conn.HMGet(ctx, p.deadTasks, names...).Result()
	if err != nil {
		return nil, err
	}
	var letters []DeadLetter
	for i, v := range values {
		stored, ok := v.(string)
		if !ok {
			continue // removed meanwhile
		}
		letters = append(letters, c.deadLetter(names[i], time.UnixMilli(int64(ids[i].Score)).UTC(), []byte(stored)))
	}
	return letters, nil
}

// deadLetter decodes what can be decoded.
func (c *Client) deadLetter(id string, died time.Time, stored []byte) DeadLetter {
	d := DeadLetter{ID: id, Died: died}
	reason, message, raw, err := decodeDeadLetter(stored)
	if err != nil {
		d.Error = err.Error()
		return d
	}
	d.Reason, d.Error = reason, message
	if e, err := decodeEnvelope(raw); err == nil {
		d.ID, d.Task, d.Attempt, d.Enqueued = e.id, e.task, int(e.attempt), time.UnixMilli(e.enqueued).UTC()
		d.Payload, _ = c.compress.Decode(e.payload)
	}
	return d
}

// eachPartition calls fn for the partitions of a queue, none if it does not exist.
func (c *Client) eachPartition(ctx context.Context, queue string, fn func(*partition) error) error {
	if err := c.usable(ctx); err != nil {
		return err
	}
	if err := validateQueue(queue); err != nil {
		return err
	}
	m, err := c.metadata(ctx, queue)
	if errors.Is(err, redis.Nil) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("key %q: %w", metadataKey(c.cfg.Namespace, queue), explain(err))
	}
	for _, p := range c.partitions(queue, m.Partitions) {
		if err := fn(p); err != nil {
			return err
		}
	}
	return nil
}
