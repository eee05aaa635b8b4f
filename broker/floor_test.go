package broker

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// A testQueue is a source with so many tasks, each of which takes so long.
type testQueue struct {
	s     *source
	left  atomic.Int64
	takes time.Duration
	done  atomic.Int64
	most  atomic.Int64
}

// open runs a floor whose sources always find what is left. It returns when stop ends.
func openFloor(stop context.Context, f *floor, queues []*testQueue) {
	var sources, executors sync.WaitGroup
	of := make(map[*source]*testQueue)
	for _, q := range queues {
		of[q.s] = q
	}
	for range f.slots {
		executors.Go(func() {
			var t *task
			for {
				if t == nil {
					if t = f.take(); t == nil {
						return
					}
				}
				q := of[t.s]
				f.mu.Lock()
				q.most.Store(max(q.most.Load(), int64(t.s.stand.share.held)))
				f.mu.Unlock()
				time.Sleep(q.takes)
				q.done.Add(1)
				t = f.next(t.s)
			}
		})
	}
	for _, q := range queues {
		sources.Go(func() {
			for {
				n := f.reserve(q.s, maxFetch, stop, nil)
				if n == 0 {
					return
				}
				time.Sleep(time.Millisecond) // the round trip
				found := min(n, int(q.left.Load()))
				q.left.Add(-int64(found))
				f.unreserve(q.s, n-found, found == n)
				tasks := make([]*task, found)
				for i := range tasks {
					tasks[i] = &task{s: q.s}
				}
				f.put(tasks)
				if found == 0 {
					select {
					case <-time.After(600 * time.Millisecond):
					case <-stop.Done():
					}
				}
			}
		})
	}
	sources.Wait()
	f.close()
	executors.Wait()
}

func newTestQueue(f *floor, limit, tasks int, takes time.Duration) *testQueue {
	q := &testQueue{s: &source{}, takes: takes}
	q.left.Store(int64(tasks))
	f.join(limit, []*source{q.s})
	return q
}

func TestSlotsAreNeverLostNorGivenTwice(t *testing.T) {
	random := seeded(t)
	synctest.Test(t, func(t *testing.T) {
		for range 200 {
			f := newFloor(1 + random.IntN(12))
			var queues []*testQueue
			total, tasks := 0, make(map[*testQueue]int)
			for range 1 + random.IntN(5) {
				n := random.IntN(60)
				q := newTestQueue(f, 1+random.IntN(f.slots), n, time.Duration(random.IntN(20))*time.Millisecond)
				tasks[q] = n
				queues = append(queues, q)
				total += n
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			openFloor(ctx, f, queues)
			cancel()
			for _, q := range queues {
				require.EqualValues(t, tasks[q], q.done.Load(), "all are run")
				require.LessOrEqual(t, int(q.most.Load()), q.s.stand.share.limit)
				require.Zero(t, q.s.stand.share.held)
			}
			require.Equal(t, f.slots, f.free)
			require.Empty(t, f.ready)
		}
	})
}

// Whoever reads from a server that hangs leaves its slots to others.
func TestSlotsDoNotWaitForAnAnswerThatDoesNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFloor(4)
		hangs, well := &source{}, &source{}
		f.join(4, []*source{hangs, well})
		f.join(4, []*source{{}})
		require.Equal(t, 4, f.reserve(hangs, 9, t.Context(), nil))
		f.lend(hangs, 4)
		start := time.Now()
		require.Equal(t, 4, f.reserve(well, 9, t.Context(), nil))
		require.Equal(t, lentFor, time.Since(start))
		require.False(t, f.repay(hangs), "they are gone")
		f.unreserve(well, 2, false)

		require.Equal(t, 2, f.reserve(hangs, 9, t.Context(), nil))
		f.lend(hangs, 2)
		time.Sleep(lentFor / 2)
		require.True(t, f.repay(hangs))
		time.Sleep(time.Second)
		require.Zero(t, f.free, "what was answered in time is not taken back")
		f.unreserve(hangs, 2, false)
		f.unreserve(well, 2, false)
		require.Equal(t, []int{4, 0}, []int{f.free, hangs.stand.share.held})
	})
}

// Answers that come late bring tasks all the same: they are run, or given back.
func TestTasksOfLateAnswersAreRunOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		task := NewTask[int]("a", TaskConfig{})
		ran := make(chan int, 99)
		stop := startWorker(t, c, WorkerConfig{Concurrency: 4}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, i int) error { ran <- i; time.Sleep(time.Second); return nil })
		})
		time.Sleep(time.Second)
		s.SetLatency(2 * lentFor)
		for i := range 20 {
			publish(t, task, c, i)
		}
		seen := make(map[int]bool)
		for range 20 {
			i := receive(t, ran)
			require.False(t, seen[i], i)
			seen[i] = true
		}
		s.SetLatency(0)
		time.Sleep(time.Minute)
		require.Equal(t, QueueInfo{}, queueInfo(t, c, "default"))
		require.NoError(t, stop())
		require.Zero(t, c.Stats().Lost)
		require.EqualValues(t, 20, c.Stats().Succeeded)
	})
}

// A queue of tasks that take long must not hold up the others.
func TestQueuesShareTheSlotsEvenly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFloor(12)
		long := newTestQueue(f, 12, 1e6, 10*time.Second)
		short := newTestQueue(f, 12, 0, 10*time.Millisecond)
		other := newTestQueue(f, 12, 0, 10*time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { openFloor(ctx, f, []*testQueue{long, short, other}) })
		time.Sleep(15 * time.Second)
		require.EqualValues(t, 12, long.most.Load(), "alone, it has all of them")
		short.left.Store(1e6)
		other.left.Store(1e6)
		time.Sleep(10 * time.Second) // the long ones end
		before := []int64{short.done.Load(), other.done.Load()}
		time.Sleep(10 * time.Second)
		for i, q := range []*testQueue{short, other} {
			// Four slots, 11 ms for each task with its round trip.
			require.Greater(t, q.done.Load()-before[i], int64(2000), i)
		}
		long.most.Store(0)
		time.Sleep(20 * time.Second)
		require.EqualValues(t, 4, long.most.Load())
		cancel()
		running.Wait()
	})
}

func TestAQueueHasItsOwnConcurrency(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		a, b := NewTask[int]("a", TaskConfig{Queue: "a"}), NewTask[int]("b", TaskConfig{Queue: "b"})
		for i := range 40 {
			publish(t, a, c, i)
			publish(t, b, c, i)
		}
		var running, most [2]atomic.Int64
		done := make(chan int, 99)
		run := func(q int) func(context.Context, int) error {
			return func(context.Context, int) error {
				most[q].Store(max(most[q].Load(), running[q].Add(1)))
				time.Sleep(time.Second)
				running[q].Add(-1)
				done <- q
				return nil
			}
		}
		startWorker(t, c, WorkerConfig{Concurrency: 10, QueueConcurrency: map[string]int{"a": 3}}, func(w *Worker) {
			a.Handle(w, run(0))
			b.Handle(w, run(1))
		})
		for n := range 80 {
			receive(t, done)
			if n == 20 { // whoever came first may have had all slots
				most[0].Store(0)
				most[1].Store(0)
			}
		}
		require.EqualValues(t, 3, most[0].Load())
		require.EqualValues(t, 7, most[1].Load(), "what the other one may not have")
	})
	_, err := NewWorker(&Client{}, WorkerConfig{QueueConcurrency: map[string]int{"a": 0}})
	require.ErrorContains(t, err, `WorkerConfig.QueueConcurrency of "a" is 0, want at least 1`)
}
