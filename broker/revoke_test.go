package broker

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/testserver"
)

// put makes a task ready as a publish would, with fields that no option sets.
func put(t testing.TB, c *Client, e envelope) {
	t.Helper()
	if e.enqueued == 0 {
		e.enqueued = c.conn.Time(context.Background()).Val().UnixMilli()
	}
	e.priority, e.attempt, e.maxAttempts, e.payload = 1, 1, 3, []byte("1")
	p := newPartition(c.cfg.Namespace, "default", 0, 1)
	require.NoError(t, c.conn.XAdd(context.Background(), &redis.XAddArgs{Stream: p.streams[2], Values: []any{field, appendEnvelope(nil, &e)}}).Err())
}

func TestATaskThatIsNotStartedInTimeExpires(t *testing.T) {
	each(t, func(t *testing.T, c *Client, logs *logs) {
		results := newResults(t, c.conn.Unwrap(), result.Config{})
		now := c.conn.Time(t.Context()).Val()
		started := make(chan string, 9)
		put(t, c, envelope{id: "late", task: "a", ttl: 60_000, enqueued: now.Add(-61 * time.Second).UnixMilli(), result: true})
		put(t, c, envelope{id: "in time", task: "a", ttl: 600_000, enqueued: now.Add(-61 * time.Second).UnixMilli(), result: true})
		put(t, c, envelope{id: "no limit", task: "a", enqueued: now.Add(-time.Hour).UnixMilli()})
		startWorker(t, c, WorkerConfig{Results: results}, func(w *Worker) {
			NewTask[int]("a", TaskConfig{}).Handle(w, func(ctx context.Context, _ int) error { started <- FromContext(ctx).ID; return nil })
		})
		r, err := results.Wait(t.Context(), "late")
		require.NoError(t, err)
		require.Equal(t, result.Expired, r.State)
		require.ElementsMatch(t, []string{"in time", "no limit"}, []string{receive(t, started), receive(t, started)})
		awaitQueue(t, c, "default", QueueInfo{})
		awaitCount(t, 1, func() uint64 { return c.Stats().Expired })
		require.Equal(t, 1, logs.count("task expired"))
		s := scripts{t, c.conn, newPartition("redisha", "default", 0, 1)}
		require.Equal(t, []string{"1", "2"}, []string{s.counter(countExpired), s.counter(countAcked)})
	})
}

func TestARevokedTaskThatIsQueuedIsNotStarted(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		results := newResults(t, c.conn.Unwrap(), result.Config{})
		p := newPartition("redisha", "default", 0, 1)
		started := make(chan string, 9)
		put(t, c, envelope{id: "a", task: "a"})
		put(t, c, envelope{id: "b", task: "a", result: true})
		require.NoError(t, c.conn.ZAdd(t.Context(), p.revoked, redis.Z{Score: float64(time.Now().UnixMilli()), Member: "b"}).Err())
		startWorker(t, c, WorkerConfig{Results: results}, func(w *Worker) {
			NewTask[int]("a", TaskConfig{}).Handle(w, func(ctx context.Context, _ int) error { started <- FromContext(ctx).ID; return nil })
		})
		r, err := results.Wait(t.Context(), "b")
		require.NoError(t, err)
		require.Equal(t, result.Cancelled, r.State)
		require.Equal(t, "a", receive(t, started))
		awaitQueue(t, c, "default", QueueInfo{})
		require.Empty(t, started)
		require.Zero(t, c.conn.ZCard(t.Context(), p.revoked).Val())
		awaitCount(t, 1, func() uint64 { return c.Stats().Cancelled })
		require.Equal(t, "1", scripts{t, c.conn, p}.counter(countCancelled))
	})
}

func TestARevokedTaskThatRunsHasItsContextEnded(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		results := newResults(t, c.conn.Unwrap(), result.Config{})
		p := newPartition("redisha", "default", 0, 1)
		began, causes := make(chan string, 9), make(chan error, 9)
		startWorker(t, c, WorkerConfig{Results: results}, func(w *Worker) {
			NewTask[int]("a", TaskConfig{}).Handle(w, func(ctx context.Context, _ int) error {
				began <- FromContext(ctx).ID
				<-ctx.Done()
				causes <- context.Cause(ctx)
				if FromContext(ctx).ID == "stubborn" {
					return nil // it finished all the same
				}
				return ctx.Err()
			})
		})
		for _, id := range []string{"a", "stubborn"} {
			publish(t, NewTask[int]("a", TaskConfig{Retention: time.Hour}), c, 1, ID(id))
			require.Equal(t, id, receive(t, began))
			start := time.Now()
			require.NoError(t, c.conn.ZAdd(t.Context(), p.revoked, redis.Z{Score: float64(time.Now().UnixMilli()), Member: id}).Err())
			require.Equal(t, ErrCancelled, receive(t, causes))
			require.Less(t, time.Since(start), 10*time.Second, "a second, and a busy machine")
		}
		for id, want := range map[string]result.State{"a": result.Cancelled, "stubborn": result.Success} {
			r, err := results.Wait(t.Context(), id)
			require.NoError(t, err)
			require.Equal(t, want, r.State)
		}
		awaitQueue(t, c, "default", QueueInfo{})
		require.Zero(t, c.conn.ZCard(t.Context(), p.revoked).Val())
		awaitCount(t, 1, func() uint64 { return c.Stats().Cancelled })
		awaitCount(t, 1, func() uint64 { return c.Stats().Succeeded })
	})
}

func TestAPauseHoldsAndEndsWithinASecond(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		p := newPartition("redisha", "default", 0, 1)
		task := NewTask[int]("a", TaskConfig{})
		started := make(chan int, 99)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, i int) error { started <- i; return nil })
		})
		publish(t, task, c, 0)
		require.Equal(t, 0, receive(t, started))
		for i := range 20 {
			require.NoError(t, c.conn.Set(t.Context(), p.paused, "1", 0).Err())
			time.Sleep(time.Second + time.Duration(i)*17*time.Millisecond)
			publish(t, task, c, i)
			publish(t, task, c, i, After(time.Millisecond))
			time.Sleep(time.Minute)
			require.Empty(t, started)
			require.NoError(t, c.conn.Del(t.Context(), p.paused).Err())
			time.Sleep(time.Second)
			require.Len(t, started, 2)
			<-started
			<-started
		}
	})
}

func TestOldRevocationsAreForgotten(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		p := newPartition("redisha", "default", 0, 1)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			NewTask[int]("a", TaskConfig{}).Handle(w, func(context.Context, int) error { return nil })
		})
		for id, age := range map[string]time.Duration{"old": revokedAge, "young": revokedAge - 5*time.Minute} {
			require.NoError(t, c.conn.ZAdd(t.Context(), p.revoked, redis.Z{Score: float64(time.Now().Add(-age).UnixMilli()), Member: id}).Err())
		}
		time.Sleep(2 * time.Minute)
		require.Equal(t, []string{"young"}, c.conn.ZRange(t.Context(), p.revoked, 0, -1).Val())
	})
}

// A blocking read passes by fetch.lua, which knows what was revoked.
func TestARevokedTaskIsNotStartedByABlockingRead(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("a", TaskConfig{})
		inspector, err := NewInspector(c, nil)
		require.NoError(t, err)
		started := make(chan string, 9)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) error { started <- FromContext(ctx).ID; return nil })
		})
		publish(t, task, c, 1, ID("first"))
		require.Equal(t, "first", receive(t, started))
		done, err := inspector.Cancel(t.Context(), "default", "x")
		require.NoError(t, err)
		require.False(t, done)
		time.Sleep(blockFor + 100*time.Millisecond) // the read that waits began later
		publish(t, task, c, 1, ID("x"))
		awaitCount(t, 1, func() uint64 { return c.Stats().Cancelled })
		publish(t, task, c, 1, ID("last"))
		require.Equal(t, "last", receive(t, started))
		awaitQueue(t, c, "default", QueueInfo{})
		require.Zero(t, c.conn.ZCard(t.Context(), newPartition("redisha", "default", 0, 1).revoked).Val())
	})
}
