package broker

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

func TestOrphansScriptMovesOnlyWhatNobodyHas(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		orphans := func(from string, n int) []any {
			return s.run(orphansScript, s.p.orphansKeys(2), from, n).([]any)
		}
		require.Equal(t, []any{int64(0), ""}, orphans("-", 10), "no stream")
		s.join("a")
		s.join("b")
		for i, id := range []string{"1", "2", "3", "4", "5"} {
			s.publish("lane", i+1, nil, "1", s.envelope(id))
		}
		s.fetch("a", 1)
		lost, _ := s.fetch("b", 3)
		require.NoError(t, s.rdb.XGroupDelConsumer(ctx, s.p.streams[2], group, "b").Err())
		require.Equal(t, []any{int64(1), lost[0].id}, orphans("-", 2))
		require.Equal(t, []any{int64(2), ""}, orphans(lost[0].id, 3), "5 is not delivered")
		require.Equal(t, []any{int64(0), ""}, orphans("-", 10))
		_, ids := s.fetch("a", 10)
		require.Equal(t, []string{"2", "3", "4", "5"}, ids)
		require.Equal(t, "3", s.counter(countReaped))
	})
}

func TestATaskWhoseConsumerIsDeletedByHandRunsAgain(t *testing.T) {
	each(t, func(t *testing.T, c *Client, logs *logs) {
		task := NewTask[int]("t", TaskConfig{Backoff: atOnce})
		began, release := make(chan int32, 9), make(chan struct{})
		var runs atomic.Int32
		handle := func(w *Worker) {
			task.Handle(w, func(context.Context, int) error {
				n := runs.Add(1)
				began <- n
				if n == 1 {
					<-release
					return errTest
				}
				return nil
			})
		}
		first := startWorker(t, c, WorkerConfig{}, handle)
		publish(t, task, c, 1)
		receive(t, began)
		p := newPartition("redisha", "default", 0, 1)
		consumers, err := c.conn.XInfoConsumers(t.Context(), p.streams[2], group).Result()
		require.NoError(t, err)
		for _, x := range consumers {
			require.NoError(t, c.conn.XGroupDelConsumer(t.Context(), p.streams[2], group, x.Name).Err())
		}
		close(release)
		require.NoError(t, first())
		startWorker(t, c, WorkerConfig{}, handle) // looks when it is elected, and once a minute
		require.Equal(t, int32(2), receive(t, began))
		awaitQueue(t, c, "default", QueueInfo{})
		require.Contains(t, logs.String(), "was a consumer deleted by hand?")
	})
}

func TestAnAcknowledgementDeletesNoTaskThatWasNotDelivered(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		ctx := t.Context()
		add := func(id string) {
			require.NoError(t, s.rdb.XAdd(ctx, &redis.XAddArgs{Stream: s.p.streams[2], ID: id, Values: []any{field, s.envelope(id)}}).Err())
		}
		ack := func(ids ...any) any {
			return s.run(ackScript, s.p.ackKeys(), append([]any{0, 0, len(ids), 0}, ids...)...).([]any)[2]
		}
		add("9-1")
		require.Equal(t, int64(0), ack("9-1"), "no group")
		require.Equal(t, int64(1), s.rdb.XLen(ctx, s.p.streams[2]).Val())
		s.join("a")
		s.fetch("a", 1)
		add("10-1")
		add("10-2")
		require.Equal(t, int64(1), ack("9-1", "10-1", "10-2"))
		require.Equal(t, int64(2), s.rdb.XLen(ctx, s.p.streams[2]).Val(), "they are for others")
		s.fetch("a", 1)
		require.NoError(t, s.rdb.XGroupDelConsumer(ctx, s.p.streams[2], group, "a").Err())
		require.Equal(t, int64(0), ack("10-1", "10-2"))
		entries := s.rdb.XRange(ctx, s.p.streams[2], "-", "+").Val()
		require.Len(t, entries, 1, "delivered, done, and nobody's: it goes")
		require.Equal(t, "10-2", entries[0].ID)

		// Numbers are compared, and not their digits; tasks with keys go the same way.
		add("10-9")
		add("10-10")
		s.join("b")
		s.fetch("b", 2)
		require.Equal(t, int64(2), ack("10-2", "10-9", "10-10"))
		keyed := func(id string) any {
			return s.run(ackScript, append(s.p.ackKeys(), s.p.unique("u")), 0, 0, 0, 0, 3, id, id, "u", "").([]any)[2]
		}
		require.NoError(t, s.rdb.Set(ctx, s.p.unique("u"), "10-10", 0).Err())
		require.Equal(t, int64(0), keyed("10-10"))
		require.Equal(t, int64(1), s.rdb.XLen(ctx, s.p.streams[2]).Val(), "it is for others")
		require.Equal(t, int64(1), s.rdb.Exists(ctx, s.p.unique("u")).Val())
		s.fetch("b", 1)
		require.Equal(t, int64(1), keyed("10-10"))
		require.Zero(t, s.rdb.Exists(ctx, s.p.unique("u")).Val())
		require.Zero(t, s.rdb.XLen(ctx, s.p.streams[2]).Val())
		add("11-1")
		s.fetch("b", 1)
		require.NoError(t, s.rdb.Set(ctx, s.p.unique("u"), "11-1", 0).Err())
		require.NoError(t, s.rdb.XGroupDelConsumer(ctx, s.p.streams[2], group, "b").Err())
		require.Equal(t, int64(0), keyed("11-1"))
		require.Zero(t, s.rdb.Exists(ctx, s.p.unique("u")).Val(), "delivered, done, and nobody's: its keys are free")
		require.Zero(t, s.rdb.XLen(ctx, s.p.streams[2]).Val())
	})
}

// PERSIST by hand, or a client that knows no terms.
func TestATermWithoutTTLIsNobodys(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("t", TaskConfig{})
		p := newPartition("redisha", "default", 0, 1)
		require.NoError(t, c.conn.Set(t.Context(), p.maintainer, "someone", 0).Err())
		ran := make(chan int, 1)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(context.Context, int) error { ran <- 1; return nil })
		})
		publish(t, task, c, 1, After(50*time.Millisecond))
		receive(t, ran)
	})
}
