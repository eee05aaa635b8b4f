package broker

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

func TestHandlersGetArgumentAndDelivery(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		type mail struct{ To, Body string }
		task := NewTask[mail]("mail", TaskConfig{Queue: "mails", MaxAttempts: 7})
		type call struct {
			m mail
			d Delivery
		}
		calls := make(chan call, 1)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, m mail) error {
				calls <- call{m, *FromContext(ctx)}
				return nil
			})
		})
		want := mail{"ada", strings.Repeat("hello ", 1000)}
		id := publish(t, task, c, want, Header("traceparent", "00-aa-bb-01"), Header("tenant", "t1"))
		got := receive(t, calls)
		require.Equal(t, want, got.m)
		require.Equal(t, id, got.d.ID)
		require.Equal(t, "mail", got.d.Task)
		require.Equal(t, "mails", got.d.Queue)
		require.Equal(t, []int{1, 7, 0}, []int{got.d.Attempt, got.d.MaxAttempts, got.d.Unfinished})
		require.WithinDuration(t, time.Now(), got.d.Enqueued, 10*time.Second)
		require.Equal(t, "t1", got.d.Header("tenant"))
		require.Empty(t, got.d.Header("other"))
		require.Equal(t, map[string]string{"traceparent": "00-aa-bb-01", "tenant": "t1"}, got.d.Headers())
		awaitQueue(t, c, "mails", QueueInfo{})
	})
	require.Nil(t, FromContext(context.Background()))
	require.Nil(t, FromContext(nilContext))
}

func TestTasksArePickedUpAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		task := NewTask[int]("quick", TaskConfig{})
		done := make(chan struct{}, 1)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(context.Context, int) error { done <- struct{}{}; return nil })
		})
		for range 20 {
			time.Sleep(10 * time.Millisecond) // the worker waits in its blocking read
			start := time.Now()
			publish(t, task, c, 0)
			receive(t, done)
			require.Zero(t, time.Since(start))
		}
	})
}

func TestFailedTasksAreTriedAgainUntilTheLastAttempt(t *testing.T) {
	each(t, func(t *testing.T, c *Client, logs *logs) {
		type attempt struct {
			attempts int
			err      string
		}
		asked := make(chan attempt, 9)
		task := NewTask[string]("fails", TaskConfig{MaxAttempts: 3, Backoff: func(n int, err error) time.Duration {
			asked <- attempt{n, err.Error()}
			return 0
		}})
		attempts := make(chan int, 9)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, s string) error {
				attempts <- FromContext(ctx).Attempt
				return errTest
			})
		})
		id := publish(t, task, c, "x")
		for n := 1; n <= 3; n++ {
			require.Equal(t, n, receive(t, attempts))
		}
		require.Equal(t, attempt{1, "on purpose"}, receive(t, asked))
		require.Equal(t, attempt{2, "on purpose"}, receive(t, asked))
		awaitQueue(t, c, "default", QueueInfo{Dead: 1})
		letters, err := c.DeadLetters(t.Context(), "default", 10)
		require.NoError(t, err)
		require.Len(t, letters, 1)
		require.WithinDuration(t, time.Now(), letters[0].Died, 10*time.Second)
		require.WithinDuration(t, time.Now(), letters[0].Enqueued, 10*time.Second)
		letters[0].Died, letters[0].Enqueued = time.Time{}, time.Time{}
		require.Equal(t, DeadLetter{ID: id, Task: "fails", Reason: Exhausted, Error: "on purpose", Attempt: 3, Payload: []byte(`"x"`)}, letters[0])
		require.Equal(t, 3, logs.count("task failed"))
		require.Eventually(t, func() bool { return c.Stats().Dead == 1 }, 20*time.Second, time.Millisecond, "counted once Redis has answered")
		s := c.Stats()
		require.Equal(t, []uint64{3, 2, 1, 0}, []uint64{s.Started, s.Retried, s.Dead, s.Succeeded})
	})
}

func TestTheErrorIsTheVerdict(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[string]("verdicts", TaskConfig{MaxAttempts: 2, Backoff: func(int, error) time.Duration { return time.Hour }})
		calls := make(chan string, 9)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, verdict string) error {
				calls <- fmt.Sprint(verdict, FromContext(ctx).Attempt)
				switch verdict {
				case "reject":
					return fmt.Errorf("wrapped: %w", Reject(errTest))
				case "soon":
					return fmt.Errorf("wrapped: %w", RetryAfter(0, errTest))
				case "later":
					return RetryAfter(time.Hour, errTest)
				case "backoff":
					return errTest
				}
				return nil
			})
		})
		publish(t, task, c, "reject")
		require.Equal(t, "reject1", receive(t, calls))
		awaitQueue(t, c, "default", QueueInfo{Dead: 1})
		letters, err := c.DeadLetters(t.Context(), "default", 1)
		require.NoError(t, err)
		require.Equal(t, Rejected, letters[0].Reason)
		require.Equal(t, "wrapped: broker: reject: on purpose", letters[0].Error)

		publish(t, task, c, "soon")
		require.Equal(t, "soon1", receive(t, calls))
		require.Equal(t, "soon2", receive(t, calls))
		awaitQueue(t, c, "default", QueueInfo{Dead: 2})
		publish(t, task, c, "later")
		publish(t, task, c, "backoff")
		awaitQueue(t, c, "default", QueueInfo{Dead: 2, Delayed: 2})
		publish(t, task, c, "fine")
		awaitQueue(t, c, "default", QueueInfo{Dead: 2, Delayed: 2})
	})
	require.EqualError(t, RetryAfter(time.Second, errTest), "broker: retry after 1s: on purpose")
	require.ErrorIs(t, RetryAfter(time.Second, errTest), errTest)
	require.ErrorIs(t, Reject(errTest), errTest)
}

func TestAPanicIsAFailedAttemptWithItsStackInTheLog(t *testing.T) {
	each(t, func(t *testing.T, c *Client, logs *logs) {
		task := NewTask[string]("panics", TaskConfig{MaxAttempts: 2, Backoff: atOnce})
		done := make(chan struct{}, 9)
		startWorker(t, c, WorkerConfig{Concurrency: 1}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, s string) error {
				switch s {
				case "panic":
					panic(errTest)
				case "goexit":
					runtime.Goexit()
				}
				done <- struct{}{}
				return nil
			})
		})
		publish(t, task, c, "panic")
		publish(t, task, c, "goexit")
		awaitQueue(t, c, "default", QueueInfo{Dead: 2})
		publish(t, task, c, "fine")
		receive(t, done)
		letters, err := c.DeadLetters(t.Context(), "default", 9)
		require.NoError(t, err)
		messages := []string{letters[0].Error, letters[1].Error}
		require.ElementsMatch(t, []string{"panic: on purpose", "the handler ended its goroutine (runtime.Goexit)"}, messages)
		require.Equal(t, 2, logs.count("handler panicked"))
		require.Contains(t, logs.String(), "worker_test.go")
		require.Equal(t, uint64(2), c.Stats().Panics)
		awaitQueue(t, c, "default", QueueInfo{Dead: 2})
		require.Zero(t, c.Stats().Running)
	})
	require.ErrorIs(t, &panicError{errTest}, errTest)
	require.NotErrorIs(t, &panicError{"text"}, errTest)
}

func TestABackoffThatPanicsIsReplaced(t *testing.T) {
	s := testserver.New(t)
	c, _ := newTestClient(t, s.Client(t), Config{})
	task := NewTask[int]("a", TaskConfig{Backoff: func(int, error) time.Duration { panic("no idea") }})
	startWorker(t, c, WorkerConfig{}, func(w *Worker) {
		task.Handle(w, func(context.Context, int) error { return errTest })
	})
	publish(t, task, c, 1)
	awaitQueue(t, c, "default", QueueInfo{Delayed: 1})
}

func TestDefaultBackoffGrowsFromASecondToAnHour(t *testing.T) {
	for attempts, want := range map[int]time.Duration{-1: time.Second, 0: time.Second, 1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 12: 2048 * time.Second, 13: time.Hour, 99: time.Hour, 65535: time.Hour} {
		seen := make(map[time.Duration]bool)
		for range 50 {
			pause := Backoff(attempts, nil)
			require.GreaterOrEqual(t, pause, want/2)
			require.LessOrEqual(t, pause, want)
			seen[pause] = true
		}
		require.Greater(t, len(seen), 10, "it varies")
	}
	var least, most time.Duration
	for n := 1; n < 25; n++ {
		pause := time.Hour
		if n < 13 {
			pause = time.Second << (n - 1)
		}
		least, most = least+pause/2, most+pause
	}
	require.Greater(t, least, 6*time.Hour)
	require.Less(t, most, 14*time.Hour)
}

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

func TestPrioritiesAreStrict(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		tasks := map[string]*Task[int]{
			"low":  NewTask[int]("low", TaskConfig{Priority: PriorityLow}),
			"mid":  NewTask[int]("mid", TaskConfig{}),
			"high": NewTask[int]("high", TaskConfig{Priority: PriorityHigh}),
		}
		for _, name := range []string{"low", "mid", "high", "low", "mid", "high"} {
			publish(t, tasks[name], c, 0)
		}
		order := make(chan string, 9)
		startWorker(t, c, WorkerConfig{Concurrency: 1}, func(w *Worker) {
			for _, task := range tasks {
				task.Handle(w, func(ctx context.Context, _ int) error { order <- FromContext(ctx).Task; return nil })
			}
		})
		for _, want := range []string{"high", "high", "mid", "mid", "low", "low"} {
			require.Equal(t, want, receive(t, order))
		}
	})
}

func TestSeveralQueuesAndPartitionsShareTheSlots(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		client, _ := throughNetwork(t, rdb)
		c, _ := newTestClient(t, client, Config{Partitions: 2})
		var running, most atomic.Int64
		var done sync.WaitGroup
		var tasks []*Task[int]
		for q := range 3 {
			tasks = append(tasks, NewTask[int](fmt.Sprint("task", q), TaskConfig{Queue: fmt.Sprint("queue", q)}))
		}
		done.Add(90)
		startWorker(t, c, WorkerConfig{Concurrency: 5}, func(w *Worker) {
			for _, task := range tasks {
				task.Handle(w, func(context.Context, int) error {
					n := running.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					time.Sleep(200 * time.Microsecond)
					running.Add(-1)
					done.Done()
					return nil
				})
			}
		})
		for i := range 90 {
			publish(t, tasks[i%3], c, i)
		}
		done.Wait()
		require.LessOrEqual(t, most.Load(), int64(5))
		for q := range 3 {
			awaitQueue(t, c, fmt.Sprint("queue", q), QueueInfo{})
		}
	})
}

// Slots and queues are counted when several partitions compete for one slot.
func TestATaskThatFindsNoSlotInTimeIsGivenBack(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		busy, other := NewTask[int]("busy", TaskConfig{Queue: "busy"}), NewTask[int]("other", TaskConfig{Queue: "other"})
		release, began := make(chan struct{}), make(chan string, 9)
		startWorker(t, c, WorkerConfig{Concurrency: 1}, func(w *Worker) {
			busy.Handle(w, func(ctx context.Context, _ int) error {
				began <- "busy"
				select {
				case <-release:
				case <-ctx.Done():
				}
				return nil
			})
			other.Handle(w, func(context.Context, int) error { began <- "other"; return nil })
		})
		synctest.Wait() // both block
		publish(t, busy, c, 1)
		require.Equal(t, "busy", receive(t, began))
		publish(t, other, c, 1)
		time.Sleep(1500 * time.Millisecond)
		require.EqualValues(t, 1, c.Stats().Released, "fetched in a blocking read, and released after a second")
		require.Equal(t, QueueInfo{Ready: 1}, queueInfo(t, c, "other"))
		close(release)
		require.Equal(t, "other", receive(t, began))
		awaitQueue(t, c, "other", QueueInfo{})
	})
}

func TestTenThousandTasksFromSixtyFourPublishersAreDoneOnce(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		const publishers = 64
		each := 157 // 10,048
		if strings.HasSuffix(t.Name(), "miniredis") {
			each = 25 // it is slow
		}
		task := NewTask[int]("many", TaskConfig{})
		ran := make([]atomic.Int32, publishers*each)
		startWorker(t, c, WorkerConfig{Concurrency: 64, Lease: 15 * time.Second}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, n int) error { ran[n].Add(1); return nil })
		})
		var all sync.WaitGroup
		for p := range publishers {
			all.Go(func() {
				for i := range each {
					_, err := task.Publish(context.Background(), c, p*each+i)
					require.NoError(t, err)
				}
			})
		}
		all.Wait()
		awaitQueue(t, c, "default", QueueInfo{})
		for i := range ran {
			require.Equal(t, int32(1), ran[i].Load(), i)
		}
		require.Eventually(t, func() bool { return c.Stats().Succeeded == uint64(len(ran)) }, 20*time.Second, time.Millisecond)
		s := c.Stats()
		require.Zero(t, s.Lost)
		require.Equal(t, uint64(len(ran)), s.RunTime.Count)
		require.Equal(t, uint64(len(ran)), s.WaitTime.Count)
		p := newPartition("redisha", "default", 0, 1)
		require.Zero(t, c.conn.XLen(t.Context(), p.streams[2]).Val(), "nothing is left in Redis")
	})
}

func TestAGracefulStopRepeatsNothingAndLosesNothing(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		const n = 400
		task := NewTask[int]("steady", TaskConfig{})
		var ran [n]atomic.Int32
		handle := func(w *Worker) {
			task.Handle(w, func(_ context.Context, i int) error {
				time.Sleep(time.Duration(i%3) * time.Millisecond)
				ran[i].Add(1)
				return nil
			})
		}
		for i := range n {
			publish(t, task, c, i)
		}
		for round := 0; queueInfo(t, c, "default") != (QueueInfo{}); round++ {
			require.Less(t, round, 200)
			stop := startWorker(t, c, WorkerConfig{Concurrency: 4}, handle)
			time.Sleep(30 * time.Millisecond)
			start := time.Now()
			require.NoError(t, stop())
			require.Less(t, time.Since(start), 8*time.Second, "and not DrainTimeout")
			require.Zero(t, queueInfo(t, c, "default").InFlight)
		}
		for i := range ran {
			require.Equal(t, int32(1), ran[i].Load(), i)
		}
		p := newPartition("redisha", "default", 0, 1)
		for _, stream := range p.streams {
			require.Empty(t, c.conn.XInfoConsumers(t.Context(), stream, group).Val(), "no consumer is left")
		}
		require.Zero(t, c.conn.Exists(t.Context(), p.maintainer).Val())
		require.Empty(t, c.conn.Keys(t.Context(), p.prefix+"hb:*").Val())
	})
}

func TestUnfinishedTasksAreGivenBackAfterTheDrainTimeout(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[string]("slow", TaskConfig{})
		began, causes := make(chan string, 9), make(chan error, 9)
		handle := func(w *Worker) {
			task.Handle(w, func(ctx context.Context, s string) error {
				began <- s
				<-ctx.Done()
				causes <- context.Cause(ctx)
				if s == "finishes" {
					return nil
				}
				return ctx.Err()
			})
		}
		stop := startWorker(t, c, WorkerConfig{DrainTimeout: 50 * time.Millisecond}, handle)
		publish(t, task, c, "finishes")
		receive(t, began)
		publish(t, task, c, "gives up")
		receive(t, began)
		require.Equal(t, QueueInfo{InFlight: 2}, queueInfo(t, c, "default"))
		start := time.Now()
		require.ErrorIs(t, stop(), ErrDrainTimeout)
		require.Less(t, time.Since(start), 20*time.Second)
		require.ErrorIs(t, receive(t, causes), ErrDrainTimeout)
		require.Equal(t, QueueInfo{Ready: 1}, queueInfo(t, c, "default"))

		deliveries := make(chan Delivery, 1)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, s string) error {
				deliveries <- *FromContext(ctx)
				return nil
			})
		})
		d := receive(t, deliveries)
		require.Equal(t, []int{1, 0}, []int{d.Attempt, d.Unfinished}, "no attempt is burned")
		awaitQueue(t, c, "default", QueueInfo{})
	})
}

func TestAWorkerRunsOnceAtATime(t *testing.T) {
	s := testserver.New(t)
	c, _ := newTestClient(t, s.Client(t), Config{})
	task := NewTask[int]("a", TaskConfig{})
	w, err := NewWorker(c, WorkerConfig{})
	require.NoError(t, err)
	require.EqualError(t, w.Run(t.Context()), "broker: run: no task has a handler: call Handle before Run")
	began := make(chan struct{}, 1)
	task.Handle(w, func(context.Context, int) error { began <- struct{}{}; return nil })
	require.EqualError(t, w.Run(nilContext), "broker: run: nil context: pass context.Background() or the request's")
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		publish(t, task, c, 1)
		receive(t, began)
		require.EqualError(t, w.Run(ctx), "broker: run: it runs already: make a second worker")
		cancel()
		require.NoError(t, receive(t, done))
	}
	task.Handle(w, func(context.Context, int) error { return nil })
	require.EqualError(t, w.Run(t.Context()), `broker: run: handle "a": there is a handler for it already`)
	var none *Worker
	require.EqualError(t, none.Run(t.Context()), "broker: run: nil worker: pass one made by NewWorker")

	w, err = NewWorker(c, WorkerConfig{})
	require.NoError(t, err)
	NewTask[int]("nil", TaskConfig{}).Handle(w, nil)
	NewResultTask[int, int]("nil2", TaskConfig{}).Handle(w, nil)
	(*ResultTask[int, int])(nil).Handle(w, nil)
	require.EqualError(t, w.Run(t.Context()), "broker: run: handle \"nil\": the handler is nil\nhandle \"nil2\": the handler is nil\nhandle \"\": a task that was not made by NewTask or NewResultTask")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	w, err = NewWorker(c, WorkerConfig{})
	require.NoError(t, err)
	task.Handle(w, func(context.Context, int) error { return nil })
	require.NoError(t, w.Run(cancelled), "done before it began")
}

// A blocking read has a connection for itself, so not all partitions can have one.
func TestMorePartitionsThanConnectionsAreServed(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		small, _ := throughNetwork(t, rdb)
		opt := *small.Options()
		opt.PoolSize, opt.PushNotificationProcessor = 5, nil
		few := redis.NewClient(&opt)
		defer few.Close()
		worker, logs := newTestClient(t, few, Config{})
		c, _ := newTestClient(t, rdb, Config{Partitions: 8})
		task := NewTask[int]("a", TaskConfig{})
		publish(t, task, c, 0)
		got := make(chan int, 99)
		stop := startWorker(t, worker, WorkerConfig{Lease: time.Minute}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, i int) error { got <- i; return nil })
		})
		for i := range 40 {
			if i > 0 {
				publish(t, task, c, i)
			}
			require.Equal(t, i, receive(t, got))
		}
		require.NoError(t, stop())
		require.NoError(t, worker.Close())
		awaitQueue(t, c, "default", QueueInfo{})
		if worker.conn.Stats().Pool.MaxTotal > 0 {
			require.Contains(t, logs.String(), "some are polled")
		}
	})
}

func TestClosingTheClientDrainsItsWorkers(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("a", TaskConfig{})
		began, release := make(chan struct{}, 1), make(chan struct{})
		w, err := NewWorker(c, WorkerConfig{})
		require.NoError(t, err)
		task.Handle(w, func(context.Context, int) error { began <- struct{}{}; <-release; return nil })
		done := make(chan error, 1)
		go func() { done <- w.Run(context.Background()) }()
		publish(t, task, c, 1)
		receive(t, began)
		time.AfterFunc(20*time.Millisecond, func() { close(release) })
		require.NoError(t, c.Close())
		require.EqualError(t, receive(t, done), "broker: run: redis: client is closed")
		again, _ := newTestClient(t, c.conn.Unwrap(), Config{})
		require.Equal(t, QueueInfo{}, queueInfo(t, again, "default"), "it was acknowledged")
	})
}

func TestClosingTheClientGivesBackWhatCannotBeFinishedInTime(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		short, _ := newTestClient(t, c.conn.Unwrap(), Config{CloseTimeout: 200 * time.Millisecond})
		task := NewTask[int]("a", TaskConfig{})
		began, hung := make(chan int, 9), make(chan struct{})
		w, err := NewWorker(short, WorkerConfig{})
		require.NoError(t, err)
		task.Handle(w, func(ctx context.Context, n int) error {
			began <- n
			<-ctx.Done()
			return ctx.Err()
		})
		run := func() (done chan error) {
			done = make(chan error, 1)
			go func() { done <- w.Run(context.Background()) }()
			return done
		}
		done := run()
		publish(t, task, c, 1)
		receive(t, began)
		require.NoError(t, short.Close())
		require.ErrorIs(t, receive(t, done), ErrClosed)
		require.Equal(t, QueueInfo{Ready: 1}, queueInfo(t, c, "default"))

		stubborn, err := New(c.conn.Unwrap(), Config{CloseTimeout: 100 * time.Millisecond})
		require.NoError(t, err)
		w, err = NewWorker(stubborn, WorkerConfig{})
		require.NoError(t, err)
		task.Handle(w, func(context.Context, int) error { began <- 0; <-hung; return nil })
		done = run()
		receive(t, began)
		require.EqualError(t, stubborn.Close(), "broker: close: publishes or handlers still run after 100ms (Config.CloseTimeout)")
		close(hung)
		require.ErrorIs(t, receive(t, done), ErrClosed)
		require.Equal(t, QueueInfo{}, queueInfo(t, c, "default"))
	})
}

func TestAClusterClientServesFourPartitionsForEachPrimary(t *testing.T) {
	t.Run("miniredis", func(t *testing.T) {
		addr, err := testserver.New(t).Listen()
		require.NoError(t, err)
		testCluster(t, addr)
	})
	t.Run("redis", func(t *testing.T) { // one node with all slots: scripts over two of them fail
		server := redistest.New(t, redistest.Config{Lines: []string{"cluster-enabled yes"}})
		node := server.Client(t)
		require.NoError(t, node.ClusterAddSlotsRange(t.Context(), 0, 16383).Err())
		require.Eventually(t, func() bool {
			return strings.Contains(node.ClusterInfo(t.Context()).Val(), "cluster_state:ok")
		}, 10*time.Second, 10*time.Millisecond)
		testCluster(t, server.Addr())
	})
}

func testCluster(t *testing.T, addr string) {
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{addr}})
	t.Cleanup(func() { _ = rdb.Close() })
	c, _ := newTestClient(t, rdb, Config{})
	task := NewTask[int]("a", TaskConfig{MaxAttempts: 2, Backoff: atOnce})
	require.Equal(t, "a", task.Name())
	const n = 40
	done := make(chan int, n)
	stop := startWorker(t, c, WorkerConfig{Lease: 15 * time.Second}, func(w *Worker) {
		task.Handle(w, func(ctx context.Context, i int) error {
			if FromContext(ctx).Attempt == 1 && i%4 == 0 {
				return errTest
			}
			done <- i
			return nil
		})
	})
	for i := range n {
		publish(t, task, c, i, After(time.Duration(i%3)*time.Millisecond))
	}
	seen := make(map[int]bool)
	for range n {
		seen[receive(t, done)] = true
	}
	require.Len(t, seen, n)
	awaitQueue(t, c, "default", QueueInfo{})
	require.Contains(t, rdb.Get(t.Context(), metadataKey("redisha", "default")).Val(), `"partitions":4`)
	require.NoError(t, stop())
}

// Without what package testserver adds: no CLIENT ID, so that reads block to their end.
func TestBareMiniredisWillDo(t *testing.T) {
	server := miniredis.RunT(t)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = rdb.Close() })
	c, logs := newTestClient(t, rdb, Config{})
	p := newPartition("redisha", "default", 0, 1)
	task := NewTask[string]("a", TaskConfig{MaxAttempts: 2, Backoff: atOnce})
	publish(t, task, c, "abandoned")
	require.NoError(t, joinScript.Run(t.Context(), rdb, p.consumerKeys("victim"), 60_000).Err())
	scripts{t, rdb, p}.turn("victim", 1)
	server.Del(p.heartbeat("victim"))
	done := make(chan string, 9)
	stop := startWorker(t, c, WorkerConfig{}, func(w *Worker) {
		task.Handle(w, func(ctx context.Context, s string) error {
			if s == "retried" && FromContext(ctx).Attempt == 1 {
				return errTest
			}
			done <- s
			return nil
		})
	})
	require.Equal(t, "abandoned", receive(t, done))
	for _, s := range []string{"plain", "retried"} {
		publish(t, task, c, s)
		require.Equal(t, s, receive(t, done))
	}
	publish(t, task, c, "delayed", After(20*time.Millisecond))
	require.Equal(t, "delayed", receive(t, done))
	awaitQueue(t, c, "default", QueueInfo{})
	start := time.Now()
	require.NoError(t, stop())
	require.Less(t, time.Since(start), 8*time.Second, "the end of a read, and not DrainTimeout")
	require.Equal(t, 1, logs.count("level=WARN"), "the failed attempt")
}

func TestClosingTheConnectionEndsTheWorker(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		client, _ := throughNetwork(t, rdb)
		c, _ := newTestClient(t, client, Config{})
		task := NewTask[int]("a", TaskConfig{})
		began := make(chan struct{}, 1)
		w, err := NewWorker(c, WorkerConfig{})
		require.NoError(t, err)
		task.Handle(w, func(ctx context.Context, _ int) error { began <- struct{}{}; <-ctx.Done(); return ctx.Err() })
		done := make(chan error, 1)
		go func() { done <- w.Run(context.Background()) }()
		publish(t, task, c, 1)
		receive(t, began)
		start := time.Now()
		require.NoError(t, client.Close())
		err = receive(t, done)
		require.ErrorIs(t, err, ErrClosed)
		require.Less(t, time.Since(start), 20*time.Second)
	})
}

func TestTimeoutsEndTheContextOfAnAttempt(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[int]("slow", TaskConfig{Timeout: 20 * time.Millisecond, MaxAttempts: 2, Backoff: atOnce})
		errs := make(chan error, 9)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) error {
				<-ctx.Done()
				errs <- ctx.Err()
				return ctx.Err()
			})
		})
		publish(t, task, c, 1)
		require.ErrorIs(t, receive(t, errs), context.DeadlineExceeded)
		require.ErrorIs(t, receive(t, errs), context.DeadlineExceeded)
		awaitQueue(t, c, "default", QueueInfo{Dead: 1})
	})
}

func TestValuesOfRunsContextReachTheHandlers(t *testing.T) {
	s := testserver.New(t)
	c, _ := newTestClient(t, s.Client(t), Config{})
	type key struct{}
	task := NewTask[int]("a", TaskConfig{})
	w, err := NewWorker(c, WorkerConfig{})
	require.NoError(t, err)
	got := make(chan any, 1)
	task.Handle(w, func(ctx context.Context, _ int) error { got <- ctx.Value(key{}); return nil })
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	publish(t, task, c, 1)
	require.Equal(t, "value", receive(t, got))
	cancel()
	require.NoError(t, receive(t, done))
}

func TestRawArgumentsPassUnchanged(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		task := NewTask[[]byte]("raw", TaskConfig{Codec: Raw})
		got := make(chan []byte, 1)
		startWorker(t, c, WorkerConfig{}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, b []byte) error { got <- b; return nil })
		})
		for _, b := range [][]byte{{0xc1, 0x10, 0, 0}, {}, []byte(strings.Repeat("x", 5000))} {
			publish(t, task, c, b)
			require.Equal(t, b, receive(t, got))
		}
	})
}

func TestSettingsOfCompressionNeedNotAgree(t *testing.T) {
	s := testserver.New(t)
	plain, _ := newTestClient(t, s.Client(t), Config{Compress: compress.Config{MinSize: -1}})
	small, _ := newTestClient(t, s.Client(t), Config{Compress: compress.Config{MinSize: 1}})
	task := NewTask[string]("a", TaskConfig{})
	got := make(chan string, 9)
	startWorker(t, plain, WorkerConfig{}, func(w *Worker) {
		task.Handle(w, func(_ context.Context, s string) error { got <- s; return nil })
	})
	publish(t, task, small, strings.Repeat("y", 1000))
	publish(t, task, plain, strings.Repeat("y", 1000))
	require.Len(t, receive(t, got), 1000)
	require.Len(t, receive(t, got), 1000)
}

func newResults(t testing.TB, rdb redis.UniversalClient, cfg result.Config) *result.Client {
	t.Helper()
	results, err := result.New(rdb, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, results.Close()) })
	return results
}

func TestResultsAreStoredBeforeTheTaskIsDone(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		results := newResults(t, c.conn.Unwrap(), result.Config{})
		double := NewResultTask[int, int]("double", TaskConfig{MaxAttempts: 3, Backoff: atOnce})
		fails := NewResultTask[string, int]("fails", TaskConfig{MaxAttempts: 2, Backoff: atOnce})
		kept := NewTask[string]("kept", TaskConfig{Retention: time.Hour})
		forgotten := NewTask[string]("forgotten", TaskConfig{})
		started := make(chan struct{})
		startWorker(t, c, WorkerConfig{Results: results}, func(w *Worker) {
			double.Handle(w, func(ctx context.Context, n int) (int, error) {
				if n == 7 {
					<-started
				}
				if FromContext(ctx).Attempt < 2 {
					return 0, errTest
				}
				return 2 * n, nil
			})
			fails.Handle(w, func(_ context.Context, s string) (int, error) {
				if s == "reject" {
					return 0, Reject(errTest)
				}
				return 1, fmt.Errorf("wrapped: %w", errTest)
			})
			kept.Handle(w, func(_ context.Context, s string) error { return nil })
			forgotten.Handle(w, func(_ context.Context, s string) error { return nil })
		})
		ctx := t.Context()
		id := publish(t, &double.Task, c, 21)
		got, err := double.Wait(ctx, results, id)
		require.NoError(t, err)
		require.Equal(t, 42, got)
		rec, err := results.Get(ctx, id)
		require.NoError(t, err)
		require.Equal(t, []any{result.Success, 2, "double"}, []any{rec.State, rec.Attempt, rec.Task})
		require.False(t, rec.Started.IsZero() || rec.Finished.IsZero() || rec.Enqueued.IsZero())
		require.False(t, rec.Finished.Before(rec.Started))

		slow := publish(t, &double.Task, c, 7)
		require.Eventually(t, func() bool {
			rec, err := results.Get(ctx, slow)
			return err == nil && rec.State == result.Started
		}, 20*time.Second, time.Millisecond)
		close(started)

		id = publish(t, &fails.Task, c, "x")
		_, err = fails.Wait(ctx, results, id)
		var failed *result.TaskError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, result.Failure, failed.State)
		require.Equal(t, 2, failed.Attempt)
		require.Equal(t, result.Cause{Type: "*fmt.wrapError", Message: "wrapped: on purpose", Chain: []string{"*errors.errorString: on purpose"}}, failed.Cause)

		id = publish(t, &fails.Task, c, "reject")
		_, err = fails.Wait(ctx, results, id)
		require.ErrorAs(t, err, &failed)
		require.Equal(t, "on purpose", failed.Message)

		id = publish(t, kept, c, "x")
		rec, err = results.Wait(ctx, id)
		require.NoError(t, err)
		require.Equal(t, result.Success, rec.State)
		ttl := c.conn.PTTL(ctx, "redisha:result:"+id).Val()
		require.LessOrEqual(t, ttl, time.Hour)
		require.Greater(t, ttl, 50*time.Minute)

		id = publish(t, forgotten, c, "x")
		awaitQueue(t, c, "default", QueueInfo{Dead: 2})
		rec, err = results.Get(ctx, id)
		require.NoError(t, err)
		require.Equal(t, result.Pending, rec.State, "nobody wants it")
	})
}

func TestResultsOfTasksThatCannotRunAreDead(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		results := newResults(t, c.conn.Unwrap(), result.Config{MaxValueBytes: 100})
		numbers := NewResultTask[int, string]("same", TaskConfig{})
		words := NewResultTask[string, string]("same", TaskConfig{})
		unstorable := NewResultTask[int, func()]("func", TaskConfig{})
		startWorker(t, c, WorkerConfig{Results: results}, func(w *Worker) {
			numbers.Handle(w, func(_ context.Context, n int) (string, error) { return strings.Repeat("x", n), nil })
			unstorable.Handle(w, func(_ context.Context, n int) (func(), error) { return func() {}, nil })
		})
		_, err := words.Wait(t.Context(), results, publish(t, &words.Task, c, "x"))
		var failed *result.TaskError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, result.Dead, failed.State)

		_, err = numbers.Wait(t.Context(), results, publish(t, &numbers.Task, c, 200))
		require.ErrorAs(t, err, &failed)
		require.Equal(t, result.Failure, failed.State)
		require.Equal(t, "the task succeeded, but its result cannot be stored: Value is 202 bytes, want at most 100: return less, or raise result.Config.MaxValueBytes", failed.Message)

		_, err = unstorable.Wait(t.Context(), results, publish(t, &unstorable.Task, c, 1))
		require.ErrorAs(t, err, &failed)
		require.Contains(t, failed.Message, "the task succeeded, but its result cannot be stored: result: encode func()")
		awaitQueue(t, c, "default", QueueInfo{Dead: 1})
		got, err := numbers.Wait(t.Context(), results, publish(t, &numbers.Task, c, 3))
		require.NoError(t, err)
		require.Equal(t, "xxx", got)
	})
}

func TestWaitRefusesWhatCannotBeAwaited(t *testing.T) {
	task := NewResultTask[int, int]("a", TaskConfig{})
	_, err := task.Wait(t.Context(), nil, "x")
	require.EqualError(t, err, `broker: wait "x": nil result client: pass one made by result.New`)
	_, err = (*ResultTask[int, int])(nil).Wait(t.Context(), nil, "x")
	require.ErrorIs(t, err, errUndefined)
	_, err = NewResultTask[int, int]("", TaskConfig{}).Wait(t.Context(), nil, "x")
	require.ErrorContains(t, err, "the task's name has 0 bytes")
}

// While the result backend is away, tasks with a result are not acknowledged;
// others are.
func TestTasksWaitForAResultBackendThatIsAway(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		backend := testserver.New(t)
		results := newResults(t, backend.Client(t), result.Config{})
		with, without := NewResultTask[int, int]("with", TaskConfig{}), NewTask[int]("without", TaskConfig{})
		startWorker(t, c, WorkerConfig{Results: results, Lease: 15 * time.Second}, func(w *Worker) {
			with.Handle(w, func(_ context.Context, n int) (int, error) { return n, nil })
			without.Handle(w, func(context.Context, int) error { return nil })
		})
		backend.SetError("LOADING Redis is loading the dataset in memory")
		id := publish(t, &with.Task, c, 5)
		require.Eventually(t, func() bool { return c.Stats().RunTime.Count == 1 }, 20*time.Second, time.Millisecond)
		publish(t, without, c, 1)
		require.Eventually(t, func() bool { return c.Stats().Succeeded == 1 }, 20*time.Second, time.Millisecond)
		require.Equal(t, QueueInfo{InFlight: 1}, queueInfo(t, c, "default"))
		backend.SetError("")
		got, err := with.Wait(t.Context(), results, id)
		require.NoError(t, err)
		require.Equal(t, 5, got)
		awaitQueue(t, c, "default", QueueInfo{})

		backend.SetError("NOPERM no permissions") // that will not pass: the work is done all the same
		publish(t, &with.Task, c, 6)
		awaitQueue(t, c, "default", QueueInfo{})
	})
}

func TestWithoutBackendResultsAreMissedWithAWarning(t *testing.T) {
	s := testserver.New(t)
	c, logs := newTestClient(t, s.Client(t), Config{})
	task := NewResultTask[int, int]("a", TaskConfig{})
	startWorker(t, c, WorkerConfig{}, func(w *Worker) {
		task.Handle(w, func(_ context.Context, n int) (int, error) { return n, nil })
	})
	publish(t, &task.Task, c, 1)
	publish(t, &task.Task, c, 2)
	awaitQueue(t, c, "default", QueueInfo{})
	require.Equal(t, 1, logs.count("WorkerConfig.Results is nil"))
}
