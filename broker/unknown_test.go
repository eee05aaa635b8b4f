package broker

import (
	"context"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

func TestTasksThatNobodyKnowsStayAndReachWhoKnowsThem(t *testing.T) {
	each(t, func(t *testing.T, c *Client, logs *logs) {
		known, unknown := NewTask[int]("known", TaskConfig{}), NewTask[int]("unknown", TaskConfig{})
		done := make(chan Delivery, 9)
		stop := startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			known.Handle(w, func(context.Context, int) error { done <- Delivery{}; return nil })
		})
		publish(t, unknown, c, 1)
		publish(t, unknown, c, 2)
		publish(t, known, c, 1)
		receive(t, done)
		awaitQueue(t, c, "default", QueueInfo{Delayed: 2})
		require.Equal(t, 1, logs.count("task left for another worker"), "told once")
		require.Contains(t, logs.String(), `queue=default task=unknown`)
		require.NotContains(t, logs.String(), "Results")
		require.NoError(t, stop())
		info := queueInfo(t, c, "default")
		require.EqualValues(t, 2, info.Ready+info.Delayed, "ready if they were due just now: %+v", info)

		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			unknown.Handle(w, func(ctx context.Context, _ int) error { done <- *FromContext(ctx); return nil })
		})
		d := receive(t, done)
		require.Equal(t, []int{1, 0}, []int{d.Attempt, d.Unfinished}, "nothing was burned")
		receive(t, done)
		awaitQueue(t, c, "default", QueueInfo{})
	})
}

func TestWhatCannotBeReadIsADeadLetter(t *testing.T) {
	each(t, func(t *testing.T, c *Client, logs *logs) {
		ctx := t.Context()
		p := newPartition("redisha", "default", 0, 1)
		numbers, words := NewTask[int]("same", TaskConfig{}), NewTask[string]("same", TaskConfig{})
		good := make(chan int, 1)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			numbers.Handle(w, func(_ context.Context, n int) error { good <- n; return nil })
		})
		id := publish(t, words, c, "not a number")
		bomb := appendEnvelope(nil, &envelope{priority: 1, attempt: 1, maxAttempts: 1, id: "bomb", task: "same", payload: []byte{0xc1, 0x10, 9, 0, 0, 0, 0, 0}})
		for _, raw := range []string{"what is this?", "", string(bomb)} {
			require.NoError(t, c.conn.XAdd(ctx, &redis.XAddArgs{Stream: p.streams[2], Values: []any{field, raw}}).Err())
		}
		awaitQueue(t, c, "default", QueueInfo{Dead: 4})
		publish(t, numbers, c, 5)
		require.Equal(t, 5, receive(t, good))
		letters, err := c.DeadLetters(ctx, "default", 9)
		require.NoError(t, err)
		byError := make(map[string]DeadLetter)
		for _, l := range letters {
			require.Equal(t, Undecodable, l.Reason)
			byError[l.Error] = l
		}
		require.Len(t, byError, 4)
		require.Equal(t, id, byError["undecodable: argument of type int: json: cannot unmarshal string into Go value of type int"].ID)
		require.Equal(t, `"not a number"`, string(byError["undecodable: argument of type int: json: cannot unmarshal string into Go value of type int"].Payload))
		require.Contains(t, byError["corrupt task: it begins with 77 68, want c1 19: does something else write to this queue?"].ID, "entry:2:")
		require.Contains(t, byError, "corrupt task: it begins with , want c1 19: does something else write to this queue?")
		require.Equal(t, "bomb", byError["compress: corrupt frame: algorithm is 9, want 0 (stored) or 1 (deflate): was it written by a later version?"].ID)
		require.Equal(t, 3, logs.count("task cannot be read and is a dead letter"))
	})
}

func TestTasksOfALaterVersionStay(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		p := newPartition("redisha", "default", 0, 1)
		startWorker(t, c, WorkerConfig{Queues: []string{"default"}}, func(w *Worker) {
			NewTask[int]("a", TaskConfig{}).Handle(w, func(context.Context, int) error { return nil })
		})
		later := string([]byte{mark, 0x29, 0, 2, 'w', 'h', 'o', ' ', 'k', 'n', 'o', 'w', 's'})
		require.NoError(t, c.conn.XAdd(t.Context(), &redis.XAddArgs{Stream: p.streams[1], Values: []any{field, later}}).Err())
		awaitQueue(t, c, "default", QueueInfo{Delayed: 1})
		for _, stored := range c.conn.HGetAll(t.Context(), p.envelopes).Val() {
			require.Equal(t, later, stored)
		}
	})
}
