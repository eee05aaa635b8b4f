package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

// memorySamples is how many parts of a large key MEMORY USAGE looks at.
const memorySamples = 100

// Memory estimates how many bytes of the server a queue takes: its tasks, dead
// letters and what it is kept by, but not the marks of given IDs and unique keys.
// https://redis.io/docs/latest/commands/memory-usage/
func (i *Inspector) Memory(ctx context.Context, queue string) (bytes int64, err error) {
	err = i.existing(ctx, queue, func(_ metadata, ps []*partition) error {
		for _, p := range ps {
			if err := i.memory(ctx, p.deleteKeys(), &bytes); err != nil {
				return err
			}
			err := i.scanSet(ctx, p.parkedKeys, false, func(page []redis.Z) error {
				var keys []string
				for _, z := range page {
					key, _ := z.Member.(string)
					keys = append(keys, p.parked(key), p.slots(key))
				}
				return i.memory(ctx, keys, &bytes)
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("broker: memory of %q: %w", queue, explain(err))
	}
	return bytes, nil
}

// memory adds up what keys take.
func (i *Inspector) memory(ctx context.Context, keys []string, bytes *int64) error {
	pipe := i.c.conn.Pipeline()
	for _, key := range keys {
		pipe.MemoryUsage(ctx, key, memorySamples)
	}
	for _, cmd := range conn.Exec(ctx, pipe) {
		n, err := cmd.(*redis.IntCmd).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		*bytes += n
	}
	return nil
}

// ErrQueueInUse is returned by [Inspector.DeleteQueue] for a queue that is not empty
// or not left alone.
var ErrQueueInUse = errors.New("the queue is in use")

var (
	errHoldsTasks = fmt.Errorf("%w: it holds tasks or dead letters: purge it, and delete them", ErrQueueInUse)
	errHasWorkers = fmt.Errorf("%w: a worker serves it, or did a few seconds ago", ErrQueueInUse)
)

// quietFor is how long nobody must have published into a queue that is deleted: a
// publisher that is still at it sends a batch again under its number, which the
// queue must remember.
const quietFor = time.Minute

// DeleteQueue deletes an empty queue, so that the next publish makes it anew, with
// another number of partitions perhaps. Stop its publishers and workers before. The
// error is [ErrQueueInUse] if it holds tasks or dead letters, has a worker, or was
// published to within the last minute. Its counters are gone then.
func (i *Inspector) DeleteQueue(ctx context.Context, queue string) error {
	err := i.existing(ctx, queue, func(_ metadata, ps []*partition) error {
		for _, p := range ps {
			if err := i.unused(ctx, p); err != nil {
				return err
			}
			if err := i.payAll(ctx, p); err != nil {
				return err
			}
		}
		for _, p := range ps {
			reply, err := deleteScript.Run(ctx, i.c.conn, p.deleteKeys(), quietFor.Milliseconds()).Text()
			switch {
			case err != nil:
				return err
			case reply == "tasks":
				return errHoldsTasks
			case reply == "workers":
				return errHasWorkers
			case reply != "":
				return fmt.Errorf("%w: somebody has published to it within the last %s", ErrQueueInUse, quietFor)
			}
		}
		i.c.queues.Delete(queue)
		return i.c.conn.Del(ctx, metadataKey(i.c.cfg.Namespace, queue)).Err()
	})
	if err != nil {
		return fmt.Errorf("broker: delete queue %q: %w", queue, explain(err))
	}
	return nil
}

// unused looks for tasks and workers, before anything is deleted.
func (i *Inspector) unused(ctx context.Context, p *partition) error {
	var info QueueInfo
	n, err := i.c.count(ctx, p)
	if err != nil {
		return err
	}
	if info.add(n); info.Ready+info.InFlight+info.Delayed+info.Parked+info.Dead > 0 {
		return errHoldsTasks
	}
	switch working, err := i.c.conn.Exists(ctx, p.maintainer).Result(); {
	case err != nil:
		return err
	case working > 0:
		return errHasWorkers
	}
	return nil
}
