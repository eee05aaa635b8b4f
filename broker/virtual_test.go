package broker

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/testserver"
)

// inBubble runs test in virtual time, with a client that sends nothing twice.
func inBubble(t *testing.T, test func(t *testing.T, s *testserver.Server, c *Client, logs *logs)) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		c, l := newTestClient(t, bubbleRedis(t, s), Config{})
		test(t, s, c, l)
	})
}

func bubbleRedis(t *testing.T, s *testserver.Server) *redis.Client {
	opt := s.Options()
	opt.MaxRetries = -1
	opt.DialerRetries = 1
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func TestDelayedTasksStartOnTimeAndNeverEarly(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		task := NewTask[time.Time]("delayed", TaskConfig{})
		late := make(chan time.Duration, 200)
		startWorker(t, c, WorkerConfig{Lease: 15 * time.Second}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, due time.Time) error { late <- time.Since(due); return nil })
		})
		time.Sleep(123456789) // off the beat
		for i := range 50 {
			d := time.Duration(i*i) * 1234567 * time.Nanosecond
			publish(t, task, c, time.Now().Add(d), After(d))
			due := time.Now().Add(10*time.Second + d)
			publish(t, task, c, due, At(due))
		}
		publish(t, task, c, time.Now(), At(time.Now().Add(-time.Hour)))
		publish(t, task, c, time.Now(), After(-time.Hour))
		time.Sleep(20 * time.Second)
		require.Len(t, late, 102)
		for range 102 {
			d := <-late
			require.GreaterOrEqual(t, d, time.Duration(0))
			require.Less(t, d, 60*time.Millisecond)
		}
	})
}

// A delay counts from now, not from the last millisecond.
func TestDelaysAreRoundedUp(t *testing.T) {
	server := testserver.New(t)
	s := scripts{t, server.Client(t), newPartition("redisha", "mail", 0, 1)}
	s.join("c")
	s.publish("lane", 1, nil, "1", s.envelope("a"))
	e, _ := s.fetch("c", 1)
	server.SetTime(time.UnixMilli(1_900_000_000_000).Add(time.Microsecond))
	s.publish("lane", 2, nil, "x", "1", "b", "+10", 0, s.envelope("b"))
	require.Equal(t, []any{int64(1)}, s.move("c", "0", 3, e[0].id, "z", countRetried, "a", 10, "a"))
	for _, id := range []string{"a", "b"} {
		require.InDelta(t, 1_900_000_000_011, s.rdb.ZScore(t.Context(), s.p.delayed, id).Val(), 0, id)
	}
	server.SetTime(time.UnixMilli(1_900_000_000_010).Add(999 * time.Microsecond))
	require.Equal(t, int64(0), s.maintain("me", 500)[2])
	server.SetTime(time.UnixMilli(1_900_000_000_011))
	require.Equal(t, int64(2), s.maintain("me", 500)[2])
}

func TestRetriesFollowTheBackoff(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		task := NewTask[int]("fails", TaskConfig{MaxAttempts: 5, Backoff: func(n int, _ error) time.Duration { return time.Duration(n) * 6 * time.Second }})
		var at []time.Duration
		start := time.Now()
		startWorker(t, c, WorkerConfig{Lease: 15 * time.Second}, func(w *Worker) {
			task.Handle(w, func(context.Context, int) error {
				at = append(at, time.Since(start))
				if len(at) == 2 {
					return RetryAfter(time.Second, errTest)
				}
				return errTest
			})
		})
		publish(t, task, c, 1)
		time.Sleep(time.Minute)
		synctest.Wait()
		for i, want := range []time.Duration{0, 6 * time.Second, 7 * time.Second, 25 * time.Second, 49 * time.Second} {
			require.GreaterOrEqual(t, at[i], want, i)
			require.Less(t, at[i], want+500*time.Millisecond, i)
		}
		require.Len(t, at, 5)
		require.Equal(t, QueueInfo{Dead: 1}, queueInfo(t, c, "default"))
	})
}

func TestRetriesAreNeverEarly(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		task := NewTask[int]("fails", TaskConfig{MaxAttempts: 200, Backoff: func(n int, _ error) time.Duration { return time.Duration(n) * 1234567 * time.Nanosecond }})
		failed := make(chan time.Time, 1)
		early := make(chan time.Duration, 99)
		startWorker(t, c, WorkerConfig{Lease: 15 * time.Second}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) error {
				n := FromContext(ctx).Attempt
				if n > 1 {
					early <- time.Since(<-failed) - time.Duration(n-1)*1234567*time.Nanosecond
				}
				if n == 30 {
					return nil
				}
				failed <- time.Now()
				return errTest
			})
		})
		time.Sleep(1111 * time.Microsecond)
		publish(t, task, c, 1)
		for range 29 {
			d := <-early
			require.GreaterOrEqual(t, d, time.Duration(0))
			require.Less(t, d, 60*time.Millisecond)
		}
	})
}

func TestUnknownTasksAreOfferedLessAndLessOften(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		startWorker(t, c, WorkerConfig{Lease: 15 * time.Second}, func(w *Worker) {
			NewTask[int]("known", TaskConfig{}).Handle(w, func(context.Context, int) error { return nil })
		})
		publish(t, NewTask[int]("unknown", TaskConfig{}), c, 1)
		time.Sleep(90 * time.Second)
		released := c.Stats().Released
		require.Greater(t, released, uint64(12))
		require.Less(t, released, uint64(22))
		require.Zero(t, c.Stats().Dead)
		publish(t, NewTask[int]("known", TaskConfig{}), c, 1)
		time.Sleep(time.Second)
		require.Equal(t, uint64(1), c.Stats().Succeeded)
	})
}

func TestAWorkerWithoutHeartbeatEndsItsHandlersBeforeTheLease(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, logs *logs) {
		task := NewTask[int]("long", TaskConfig{})
		began, ended := make(chan time.Time, 2), make(chan time.Time, 2)
		var cause error
		startWorker(t, c, WorkerConfig{Lease: 15 * time.Second}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) error {
				began <- time.Now()
				select {
				case <-ctx.Done():
					cause = context.Cause(ctx)
					ended <- time.Now()
					return ctx.Err()
				case <-time.After(time.Minute):
					return nil
				}
			})
		})
		publish(t, task, c, 1)
		<-began
		time.Sleep(10 * time.Second) // heartbeats keep it
		s.Stop()
		down := time.Now()
		at := <-ended
		require.ErrorIs(t, cause, ErrLeaseLost)
		require.LessOrEqual(t, at.Sub(down), 12*time.Second, "four fifths of the lease")
		require.GreaterOrEqual(t, at.Sub(down), 9*time.Second, "the last heartbeat was at most a fifth ago")
		require.NoError(t, s.Restart())
		<-began
		require.Less(t, time.Since(down), 40*time.Second, "it runs again")
		time.Sleep(2 * time.Minute)
		require.Equal(t, QueueInfo{}, queueInfo(t, c, "default"))
		require.Equal(t, uint64(1), c.Stats().LeasesLost)
		require.Equal(t, 1, logs.count("lease lost"))
	})
}

// Joining is the first heartbeat.
func TestAWorkerWithoutASecondHeartbeatEndsItsHandlersBeforeTheLease(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		task := NewTask[int]("long", TaskConfig{})
		began, ended := make(chan struct{}), make(chan error, 1)
		publish(t, task, c, 1)
		start := time.Now()
		startWorker(t, c, WorkerConfig{Lease: 15 * time.Second, DrainTimeout: -1}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) error {
				close(began)
				<-ctx.Done()
				ended <- context.Cause(ctx)
				return ctx.Err()
			})
		})
		<-began
		s.Stop()
		require.ErrorIs(t, <-ended, ErrLeaseLost)
		require.LessOrEqual(t, time.Since(start), 12*time.Second, "four fifths of the lease")
	})
}

// A process that was stopped for a while may see an answer before its timers.
func TestWhatIsReadTooLateIsNotStarted(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		_, s := newMaintenance(t, c)
		s.r.floor = newFloor(2)
		s.r.floor.join(2, []*source{s})
		l := &lease{consumer: "me", ctx: t.Context(), renewed: time.Now()}
		read := func() int {
			require.Equal(t, 1, s.r.floor.reserve(s, 1, t.Context(), nil))
			s.start(l, []delivered{{entry: entry{2, "1-1"}, raw: appendEnvelope(nil, keyed("a", "", ""))}})
			return len(s.r.floor.ready)
		}
		time.Sleep(8 * time.Second) // of a lease of ten
		require.Zero(t, read())
		require.Equal(t, 2, s.r.floor.free)
		l.renewed = time.Now()
		time.Sleep(8*time.Second - time.Millisecond)
		require.Equal(t, 1, read())
	})
}

// The heartbeat's key is gone while the worker is well, as after a failover that
// lost it.
func TestALostHeartbeatFencesAndTheTaskRunsAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		task := NewTask[int]("long", TaskConfig{})
		deliveries, causes := make(chan Delivery, 9), make(chan error, 9)
		startWorker(t, c, WorkerConfig{Lease: 15 * time.Second}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, _ int) error {
				deliveries <- *FromContext(ctx)
				select {
				case <-ctx.Done():
					causes <- context.Cause(ctx)
					time.Sleep(30 * time.Second) // it takes its time
					return ctx.Err()
				case <-time.After(time.Minute):
					return nil
				}
			})
		})
		publish(t, task, c, 1)
		require.Equal(t, 0, (<-deliveries).Unfinished)
		p := newPartition("redisha", "default", 0, 1)
		for _, k := range s.Keys() {
			if strings.HasPrefix(k, p.prefix+"hb:") {
				s.Del(k)
			}
		}
		lost := time.Now()
		require.ErrorIs(t, <-causes, ErrLeaseLost)
		require.Less(t, time.Since(lost), 4*time.Second, "at the next heartbeat")
		d := <-deliveries
		require.Equal(t, []int{1, 1}, []int{d.Attempt, d.Unfinished}, "no attempt is burned, the delivery is counted")
		time.Sleep(2 * time.Minute)
		require.Equal(t, QueueInfo{}, queueInfo(t, c, "default"))
		require.Equal(t, uint64(1), c.Stats().Succeeded)
		require.NotZero(t, c.Stats().Lost, "the zombie's verdict came too late")
		require.Equal(t, c.Stats().Lost, c.Stats().Reaped, "twice, if a blocking read brought it back before the next heartbeat")
	})
}

func TestPoisonIsADeadLetterAfterFiveDeliveries(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, logs *logs) {
		results := newResults(t, c.conn.Unwrap(), result.Config{})
		task := NewResultTask[int, int]("poison", TaskConfig{MaxAttempts: 2})
		id := publish(t, &task.Task, c, 1)
		p := newPartition("redisha", "default", 0, 1)
		for n := range 5 {
			// A worker which takes the task and is never heard of again.
			consumer := fmt.Sprint("victim", n)
			require.NoError(t, joinScript.Run(t.Context(), c.conn, p.consumerKeys(consumer), 1000).Err())
			reply := scripts{t, c.conn, p}.turn(consumer, 1)
			found, err := parseFetched(reply[2+streams])
			require.NoError(t, err)
			require.Len(t, found, 1, n)
			e, err := decodeEnvelope(found[0].raw)
			require.NoError(t, err)
			require.Equal(t, []int{1, n}, []int{int(e.attempt), int(e.deliveries)})
			// Another one does the maintenance.
			stop := startWorker(t, c, WorkerConfig{Results: results, Queues: []string{"default", "other"}, Concurrency: 1, Lease: time.Second}, func(w *Worker) {
				NewTask[int]("other", TaskConfig{Queue: "other"}).Handle(w, func(context.Context, int) error { return nil })
			})
			for begin := time.Now(); c.Stats().Reaped == uint64(n); time.Sleep(time.Millisecond) {
				require.Less(t, time.Since(begin), 2*time.Second)
			}
			require.NoError(t, stop())
			if n < 4 {
				// The worker may have taken it, and put it off since it knows no such task.
				for begin := time.Now(); queueInfo(t, c, "default") != (QueueInfo{Ready: 1}); time.Sleep(time.Second) {
					require.Less(t, time.Since(begin), 2*time.Minute, "%+v", queueInfo(t, c, "default"))
					require.NoError(t, maintainScript.Run(t.Context(), c.conn, p.maintainKeys(), "test", 1, 10).Err())
				}
			}
		}
		require.Equal(t, QueueInfo{Dead: 1}, queueInfo(t, c, "default"))
		letters, err := c.DeadLetters(t.Context(), "default", 9)
		require.NoError(t, err)
		require.Equal(t, []any{id, Poison, 1, "delivered 5 times, and each time the worker died or lost its lease"},
			[]any{letters[0].ID, letters[0].Reason, letters[0].Attempt, letters[0].Error})
		rec, err := results.Get(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, result.Dead, rec.State)
		require.Equal(t, 1, logs.count(`msg="task is a dead letter"`))
	})
}

// After an outage heartbeats are gone whose workers are alive.
func TestNobodyIsTakenForDeadForALeaseAfterAnOutage(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		m, src := newMaintenance(t, c)
		p := src.p
		victim := func(name string) {
			require.NoError(t, joinScript.Run(t.Context(), c.conn, p.consumerKeys(name), 1).Err())
			require.NoError(t, c.conn.XAdd(t.Context(), &redis.XAddArgs{Stream: p.streams[2], Values: []any{field, samples2(name)}}).Err())
			scripts{t, c.conn, p}.turn(name, 1)
			time.Sleep(5 * time.Millisecond)
		}
		once := func() error { _, err := m.once(t.Context()); return err }

		victim("v1")
		require.NoError(t, once())
		require.Equal(t, uint64(1), c.Stats().Reaped, "without an outage at once")

		s.SetError("LOADING Redis is loading the dataset in memory")
		require.Error(t, once())
		s.SetError("")
		victim("v2")
		for range 9 {
			time.Sleep(time.Second)
			require.NoError(t, once())
			require.Equal(t, uint64(1), c.Stats().Reaped)
		}
		time.Sleep(2 * time.Second)
		require.NoError(t, once())
		require.Equal(t, uint64(2), c.Stats().Reaped)

		// A jump of the server's clock makes all heartbeats older.
		s.SetTime(time.Now().Add(time.Minute))
		time.Sleep(3 * time.Second)
		require.NoError(t, once())
		s.SetTime(time.Time{})
		victim("v3")
		require.NoError(t, once())
		require.Equal(t, uint64(2), c.Stats().Reaped)
		src.distrust.Store(true) // as a new epoch does
		time.Sleep(9 * time.Second)
		require.NoError(t, once())
		time.Sleep(9 * time.Second)
		require.NoError(t, once())
		require.Equal(t, uint64(2), c.Stats().Reaped)
		time.Sleep(2 * time.Second)
		require.NoError(t, once())
		require.Equal(t, uint64(3), c.Stats().Reaped)
	})
}

func samples2(id string) []byte {
	return appendEnvelope(nil, &envelope{priority: 1, attempt: 1, maxAttempts: 3, id: id, task: "t"})
}

func TestAnIdleWorkerAsksLittle(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		startWorker(t, c, WorkerConfig{Lease: 15 * time.Second}, func(w *Worker) {
			NewTask[int]("a", TaskConfig{}).Handle(w, func(context.Context, int) error { return nil })
		})
		time.Sleep(time.Second)
		commands := s.CommandCount()
		time.Sleep(time.Minute)
		require.Less(t, s.TotalConnectionCount(), 8)
		require.Less(t, (s.CommandCount()-commands)/60, 50, "commands a second, those within scripts included")
	})
}

func TestAWorkerWaitsForAServerThatIsAway(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, logs *logs) {
		task := NewTask[int]("a", TaskConfig{})
		done := make(chan int, 9)
		s.Stop()
		stop := startWorker(t, c, WorkerConfig{Lease: 15 * time.Second}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, n int) error { done <- n; return nil })
		})
		time.Sleep(5 * time.Minute)
		require.Less(t, logs.count("level=WARN"), 400, "it does not spin")
		require.NoError(t, s.Restart())
		publish(t, task, c, 1)
		require.Equal(t, 1, <-done)
		for n := 2; n < 5; n++ {
			s.Stop()
			time.Sleep(time.Minute)
			require.NoError(t, s.Restart())
			publish(t, task, c, n)
			require.Equal(t, n, <-done)
		}
		s.FlushAll()
		time.Sleep(30 * time.Second)
		publish(t, task, c, 9)
		require.Equal(t, 9, <-done)
		time.Sleep(time.Second)
		s.Stop()
		start := time.Now()
		require.NoError(t, stop())
		require.Less(t, time.Since(start), 10*time.Second, "it stops while the server is away")
		require.NoError(t, s.Restart())
		again, _ := newTestClient(t, bubbleRedis(t, s), Config{}) // without connections of before
		require.Equal(t, QueueInfo{}, queueInfo(t, again, "default"))
	})
}

// Redis comes back while the verdicts of many tasks wait to be stored.
func TestVerdictsOutlastAnOutageShorterThanTheLease(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		task := NewTask[int]("a", TaskConfig{})
		var ran [100]int
		release := make(chan struct{})
		startWorker(t, c, WorkerConfig{Lease: 15 * time.Second, Concurrency: 100}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, n int) error { <-release; ran[n]++; return nil })
		})
		for n := range 100 {
			publish(t, task, c, n)
		}
		synctest.Wait()
		s.SetError("LOADING Redis is loading the dataset in memory")
		close(release)
		time.Sleep(8 * time.Second)
		s.SetError("")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, QueueInfo{}, queueInfo(t, c, "default"))
		for n := range ran {
			require.Equal(t, 1, ran[n], n)
		}
		require.Greater(t, c.Stats().SettleErrors, uint64(0))
		require.Zero(t, c.Stats().Lost)
	})
}

// Callers of one batch leave one by one, before it was ever sent.
func TestATaskThatWasWithdrawnUnsentIsNotPublishedWithItsBatch(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		task := NewTask[string]("a", TaskConfig{})
		publish(t, task, c, "before")
		s.SetError("LOADING Redis is loading the dataset in memory")
		errs := make(map[string]chan error)
		leave := make(map[string]context.CancelFunc)
		for _, name := range []string{"first", "leaves", "stays"} {
			ctx, cancel := context.WithCancel(t.Context())
			leave[name], errs[name] = cancel, make(chan error, 1)
			go func() {
				_, err := task.Publish(ctx, c, name)
				errs[name] <- err
			}()
			synctest.Wait()
		}
		time.Sleep(time.Second)
		leave["first"]() // the other two come into one batch
		require.ErrorContains(t, <-errs["first"], "not sent: context canceled")
		time.Sleep(time.Second)
		leave["leaves"]()
		require.ErrorContains(t, <-errs["leaves"], "not sent: context canceled")
		time.Sleep(time.Second)
		s.SetError("")
		require.NoError(t, <-errs["stays"])
		leave["stays"]()
		require.Equal(t, QueueInfo{Ready: 2}, queueInfo(t, c, "default"))
		require.Equal(t, uint64(2), c.Stats().Batches)
	})
}

func TestABatchThatNobodyWaitsForIsGivenUp(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		client, net := throughNetwork(t, c.conn.Unwrap())
		lossy, _ := newTestClient(t, client, Config{})
		task := NewTask[int]("a", TaskConfig{})
		publish(t, task, lossy, 1)
		net.drop(1 << 20)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := task.Publish(ctx, lossy, 2)
		require.ErrorIs(t, err, ErrUnconfirmed)
		synctest.Wait()
		resent := lossy.Stats().Resent
		require.NotZero(t, resent)
		time.Sleep(time.Minute)
		require.Equal(t, resent, lossy.Stats().Resent)
		net.drop(0)
		publish(t, task, lossy, 3)
		require.Equal(t, QueueInfo{Ready: 3}, queueInfo(t, c, "default"), "it was applied, once, in this case")
	})
}

func TestOldLanesAreForgotten(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		m, src := newMaintenance(t, c)
		task := NewTask[int]("a", TaskConfig{})
		publish(t, task, c, 1)
		lanes := func() int64 { return c.conn.HLen(t.Context(), src.p.lanes).Val() }
		time.Sleep(23 * time.Hour)
		_, err := m.once(t.Context())
		require.NoError(t, err)
		require.Equal(t, int64(1), lanes())
		time.Sleep(2 * time.Hour)
		_, err = m.once(t.Context())
		require.NoError(t, err)
		require.Zero(t, lanes())
		publish(t, task, c, 2)
		require.Zero(t, c.Stats().LostBatches, "that is no loss")
		require.Equal(t, QueueInfo{Ready: 2}, queueInfo(t, c, "default"))
	})
}

// newMaintenance returns that of a run which does nothing else.
func newMaintenance(t *testing.T, c *Client) (*maintenance, *source) {
	t.Helper()
	w, err := NewWorker(c, WorkerConfig{Lease: 10 * time.Second})
	require.NoError(t, err)
	work, cancel := context.WithCancelCause(t.Context())
	stop, stopAll := context.WithCancelCause(t.Context())
	t.Cleanup(func() { cancel(nil); stopAll(nil) })
	r := &run{w: w, name: "me", base: t.Context(), storing: t.Context(), stop: stop, stopAll: stopAll, work: work, cancel: cancel, dead: make(chan struct{})}
	src := newSource(r, newPartition("redisha", "default", 0, 1))
	return &maintenance{s: src}, src
}

func TestAGivenIDIsFreeAfterADay(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		task := NewTask[int]("a", TaskConfig{})
		publish(t, task, c, 1, ID("x"))
		time.Sleep(24*time.Hour - time.Minute)
		publish(t, task, c, 1, ID("x"))
		require.Equal(t, int64(1), queueInfo(t, c, "default").Ready)
		time.Sleep(2 * time.Minute)
		publish(t, task, c, 1, ID("x"))
		require.Equal(t, int64(2), queueInfo(t, c, "default").Ready)

		publish(t, task, c, 1, ID("later"), After(48*time.Hour))
		time.Sleep(71 * time.Hour)
		publish(t, task, c, 1, ID("later"))
		require.Equal(t, QueueInfo{Ready: 2, Delayed: 1}, queueInfo(t, c, "default"))
	})
}

// On a Cluster the server that has a queue's metadata may lose it, when those that
// have its tasks lose nothing.
func TestMetadataThatAFailoverLostIsWrittenAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		task := NewTask[int]("a", TaskConfig{})
		publish(t, task, c, 1)
		key := metadataKey("redisha", "default")
		m, s := newMaintenance(t, c)
		require.NoError(t, c.conn.Del(t.Context(), key).Err())
		_, err := m.once(t.Context())
		require.NoError(t, err)
		require.Zero(t, c.conn.Exists(t.Context(), key).Val())
		s.distrust.Store(true) // as a new epoch does
		_, err = m.once(t.Context())
		require.NoError(t, err)
		require.Contains(t, c.conn.Get(t.Context(), key).Val(), `"partitions":1,`)
	})
}
