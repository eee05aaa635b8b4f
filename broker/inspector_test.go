package broker

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

// An inspected is a queue "mail" of one partition with an inspector.
type inspected struct {
	*Inspector
	t       *testing.T
	rdb     redis.UniversalClient
	c       *Client
	results *result.Client
	s       scripts
}

func eachInspected(t *testing.T, test func(t *testing.T, i *inspected)) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c, _ := newTestClient(t, rdb, Config{})
		results := newResults(t, rdb, result.Config{})
		inspector, err := NewInspector(c, results)
		require.NoError(t, err)
		_, err = c.queue(t.Context(), "mail")
		require.NoError(t, err)
		test(t, &inspected{inspector, t, rdb, c, results, scripts{t, rdb, newPartition("redisha", "mail", 0, 1)}})
	})
}

func (i *inspected) info() QueueInfo { i.t.Helper(); return queueInfo(i.t, i.c, "mail") }

// ids lists the tasks in a state.
func (i *inspected) ids(state TaskState) (ids []string) {
	i.t.Helper()
	for task, err := range i.Tasks(i.t.Context(), "mail", state) {
		require.NoError(i.t, err)
		require.Equal(i.t, state, task.State)
		require.Equal(i.t, "mail", task.Queue)
		ids = append(ids, task.ID)
	}
	return ids
}

func TestQueuesAreListedWhereverTheyAre(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, namespace := range []string{"redisha", "a[b]*?\\", "a[b]*?\\:queue"} {
			c, _ := newTestClient(t, rdb, Config{Namespace: namespace})
			i, err := NewInspector(c, nil)
			require.NoError(t, err)
			none, err := i.Queues(t.Context())
			require.NoError(t, err)
			require.Empty(t, none)
			for _, name := range []string{"mail", "default", "z.9"} {
				_, err := c.queue(t.Context(), name)
				require.NoError(t, err)
			}
			require.NoError(t, rdb.Set(t.Context(), namespace+":queue:{not a queue}:meta", "x", 0).Err())
			names, err := i.Queues(t.Context())
			require.NoError(t, err)
			require.Equal(t, []string{"default", "mail", "z.9"}, names)
		}
	})
}

func TestAQueueThatNobodyHasUsedIsNotFound(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		ctx := t.Context()
		for name, call := range map[string]func() error{
			"queue":  func() error { _, err := i.Queue(ctx, "none"); return err },
			"pause":  func() error { return i.Pause(ctx, "none") },
			"resume": func() error { return i.Resume(ctx, "none") },
			"find":   func() error { _, err := i.Find(ctx, "none", "x"); return err },
			"retry":  func() error { _, err := i.RetryDead(ctx, "none", DeadFilter{}); return err },
			"delete": func() error { _, err := i.DeleteDead(ctx, "none", DeadFilter{}); return err },
			"cancel": func() error { _, err := i.Cancel(ctx, "none", "x"); return err },
			"purge":  func() error { _, err := i.Purge(ctx, "none"); return err },
			"memory": func() error { _, err := i.Memory(ctx, "none"); return err },
			"drop":   func() error { return i.DeleteQueue(ctx, "none") },
			"tasks": func() error {
				for _, err := range i.Tasks(ctx, "none", Ready) {
					return err
				}
				return nil
			},
		} {
			require.ErrorIs(t, call(), ErrNotFound, name)
		}
		_, err := i.Queue(ctx, "no spaces")
		require.ErrorContains(t, err, "want letters, digits")
		for _, err := range i.Tasks(ctx, "mail", "odd") {
			require.ErrorContains(t, err, `the state is "odd", want "ready", "in flight", "delayed", "parked" or "dead"`)
		}
		_, err = i.DeleteDead(ctx, "mail", DeadFilter{OlderThan: -1})
		require.ErrorContains(t, err, "DeadFilter.OlderThan is -1ns, want 0 or more")
		_, err = i.Cancel(ctx, "mail", "{")
		require.ErrorContains(t, err, "the ID has '{'")
		_, err = NewInspector(nil, nil)
		require.ErrorContains(t, err, "nil client")
		require.NoError(t, i.c.Close())
		require.ErrorIs(t, i.Pause(ctx, "mail"), ErrClosed)
		_, err = i.Queues(ctx)
		require.ErrorIs(t, err, ErrClosed)
	})
}

func TestAQueueSaysHowItIsDoing(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		ctx := t.Context()
		q, err := i.Queue(ctx, "mail")
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), q.Created, time.Minute)
		require.Equal(t, QueueStatus{Name: "mail", Partitions: 1, Created: q.Created, Counts: map[string]int64{}}, q)

		i.s.publish("lane", 1, nil, "0", i.s.envelope("a"), "1", i.s.envelope("b"), "1", i.s.envelope("c"), "2", i.s.envelope("d"))
		i.s.put(Delayed, keyed("later", "", ""))
		i.s.put(Dead, keyed("dead", "", ""))
		i.s.put(Parked, keyed("parked", "", "k"))
		i.s.join("me")
		i.s.fetch("me", 2)
		i.s.join("gone")
		i.s.fetch("gone", 1)
		i.s.join("idle")
		require.NoError(t, i.rdb.Del(ctx, i.s.p.heartbeat("gone")).Err())
		old := time.Now().Add(-time.Hour).UnixMilli()
		require.NoError(t, i.rdb.XAdd(ctx, &redis.XAddArgs{Stream: i.s.p.streams[releasedStream], ID: fmt.Sprint(old, "-1"), Values: []any{field, i.s.envelope("old")}}).Err())
		require.NoError(t, i.rdb.ZAdd(ctx, i.s.p.delayed, redis.Z{Score: float64(old), Member: "due"}).Err())
		require.NoError(t, i.Pause(ctx, "mail"))

		q, err = i.Queue(ctx, "mail")
		require.NoError(t, err)
		require.Equal(t, QueueInfo{Ready: 2, InFlight: 3, Delayed: 2, Parked: 1, Dead: 1, Paused: true}, q.QueueInfo)
		require.Equal(t, []int64{0, 0, 1, 1}, []int64{q.High, q.Default, q.Low, q.Returned})
		require.InDelta(t, time.Hour, q.Waiting, float64(time.Minute))
		require.InDelta(t, time.Hour, q.Overdue, float64(time.Minute))
		require.Equal(t, map[string]int64{"published": 4}, q.Counts)
		require.Len(t, q.Consumers, 3)
		gone, idle, me := q.Consumers[0], q.Consumers[1], q.Consumers[2]
		require.Equal(t, []any{"idle", int64(0)}, []any{idle.Name, idle.InFlight})
		require.Equal(t, []any{"gone", int64(1), time.Duration(0)}, []any{gone.Name, gone.InFlight, gone.Lease})
		require.Equal(t, []any{"me", int64(2)}, []any{me.Name, me.InFlight})
		require.InDelta(t, time.Minute, me.Lease, float64(30*time.Second))

		require.NoError(t, i.Resume(ctx, "mail"))
		require.False(t, i.info().Paused)
		require.Zero(t, i.rdb.Exists(ctx, i.s.p.paused).Val())
	})
}

func TestTasksAreListedByState(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		ctx := t.Context()
		const n = 2*maxInspect + 1 // three pages
		var all []string
		for k := range n {
			id := fmt.Sprintf("%04d", k)
			all = append(all, id)
			i.s.put(Ready, keyed("r"+id, "", ""))
			i.s.put(Delayed, keyed("z"+id, "", "")) // all due at the same moment
			i.s.put(Dead, keyed("d"+id, "", ""))
			i.s.put(Parked, keyed("p"+id, "", fmt.Sprint("key", k%2)))
		}
		with := func(prefix string) (ids []string) {
			for _, id := range all {
				ids = append(ids, prefix+id)
			}
			return ids
		}
		require.Equal(t, with("r"), i.ids(Ready))
		require.Equal(t, with("z"), i.ids(Delayed))
		dead := i.ids(Dead)
		require.Equal(t, "d0200", dead[0], "newest first")
		require.ElementsMatch(t, with("d"), dead)
		require.ElementsMatch(t, with("p"), i.ids(Parked))
		require.Empty(t, i.ids(InFlight))
		i.s.join("me")
		i.s.fetch("me", n-1)
		require.Equal(t, with("r")[:n-1], i.ids(InFlight))
		require.Equal(t, []string{"r0200"}, i.ids(Ready))
		for range i.Tasks(ctx, "mail", Dead) {
			break // whoever has seen enough
		}
	})
}

func TestATaskIsFoundByItsIDInEveryState(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		ctx := t.Context()
		full := func(id string) *envelope {
			e := keyed(id, "", "k")
			e.priority, e.enqueued, e.headers = 0, 1234, []header{{"traceparent", "00-1"}}
			e.payload = i.c.compress.AppendEncode(nil, []byte("argument"))
			return e
		}
		i.s.put(Ready, full("runs"))
		i.s.join("me")
		i.s.fetch("me", 1)
		for _, state := range []TaskState{Ready, Delayed, Parked, Dead} {
			i.s.put(state, full(string(state)))
		}
		for id, want := range map[string]TaskInfo{
			"runs":    {State: InFlight, Consumer: "me"},
			"ready":   {State: Ready},
			"delayed": {State: Delayed, Due: time.UnixMilli(4000000000001).UTC()},
			"parked":  {State: Parked},
			"dead":    {State: Dead, Reason: Exhausted, Error: "on purpose", Died: time.UnixMilli(1000).UTC()},
		} {
			got, err := i.Find(ctx, "mail", id)
			require.NoError(t, err)
			want.ID, want.Task, want.Queue, want.Priority = id, "t", "mail", PriorityHigh
			want.Attempt, want.MaxAttempts, want.Unfinished, want.Enqueued, want.Key = 3, 3, 2, time.UnixMilli(1234).UTC(), "k"
			want.Headers, want.Payload = map[string]string{"traceparent": "00-1"}, []byte("argument")
			want.at, want.Held = got.at, got.Held
			require.Equal(t, want, got)
		}
		_, err := i.Find(ctx, "mail", "absent")
		require.ErrorIs(t, err, ErrNotFound)
		require.EqualError(t, err, `broker: find in "mail": not found: no task with the ID "absent"`)
	})
}

func TestWhatCannotBeReadIsListedWithTheReason(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		ctx := t.Context()
		require.NoError(t, i.rdb.XAdd(ctx, &redis.XAddArgs{Stream: i.s.p.streams[2], ID: "7-1", Values: []any{field, "text"}}).Err())
		require.NoError(t, i.rdb.HSet(ctx, i.s.p.deadTasks, "bad", "text").Err())
		require.NoError(t, i.rdb.ZAdd(ctx, i.s.p.dead, redis.Z{Score: 1, Member: "bad"}).Err())
		for state, id := range map[TaskState]string{Ready: "entry:2:7-1", Dead: "bad"} {
			for task, err := range i.Tasks(ctx, "mail", state) {
				require.NoError(t, err)
				require.Equal(t, id, task.ID)
				require.Contains(t, task.Error, "corrupt task: it begins with 74 65")
			}
		}
		n, err := i.RetryDead(ctx, "mail", DeadFilter{})
		require.Zero(t, n)
		require.ErrorContains(t, err, `1 stayed, the first because of: task "bad": it cannot be read`)
		n, err = i.DeleteDead(ctx, "mail", DeadFilter{IDs: []string{"bad"}})
		require.NoError(t, err)
		require.Equal(t, 1, n)
		n, err = i.Purge(ctx, "mail")
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})
}

// errors of tasks that were retried by hand and then succeed are forgotten.
func TestDeadTasksThatAreRetriedRunAgainAndHaveTheirResult(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		ctx := t.Context()
		task := NewResultTask[int, int]("work", TaskConfig{Queue: "mail", MaxAttempts: 1})
		works := make(chan bool, 10)
		stop := startWorker(t, i.c, WorkerConfig{Results: i.results}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, n int) (int, error) {
				if <-works {
					return 2 * n, nil
				}
				return 0, errTest
			})
		})
		works <- false
		id := publish(t, &task.Task, i.c, 21)
		_, err := task.Wait(ctx, i.results, id)
		require.ErrorContains(t, err, "on purpose")
		awaitQueue(t, i.c, "mail", QueueInfo{Dead: 1})

		n, err := i.RetryDead(ctx, "mail", DeadFilter{IDs: []string{"other", id}})
		require.NoError(t, err)
		require.Equal(t, 1, n)
		r, err := i.results.Get(ctx, id)
		require.NoError(t, err)
		require.False(t, r.State.Final(), "the old result is forgotten")
		works <- true
		got, err := task.Wait(ctx, i.results, id)
		require.NoError(t, err)
		require.Equal(t, 42, got)
		awaitQueue(t, i.c, "mail", QueueInfo{})
		require.NoError(t, stop())
		q, err := i.Queue(ctx, "mail")
		require.NoError(t, err)
		require.Equal(t, map[string]int64{"published": 1, "dead": 1, "revived": 1, "acked": 1}, q.Counts)
	})
}

func TestDeadLettersAreChosenByAFilter(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		ctx := t.Context()
		put := func(n int) {
			for k := range n {
				id := fmt.Sprintf("d%04d", k)
				raw := i.s.envelope(id)
				if k%2 == 1 {
					e := keyed(id, "", "")
					e.task = "odd"
					raw = appendEnvelope(nil, e)
				}
				reason := Exhausted
				if k%3 == 0 {
					reason = Poison
				}
				require.NoError(t, i.rdb.HSet(ctx, i.s.p.deadTasks, id, appendDeadLetter(nil, reason, "", raw)).Err())
				died := time.Now().Add(-time.Duration(k) * time.Hour).UnixMilli()
				require.NoError(t, i.rdb.ZAdd(ctx, i.s.p.dead, redis.Z{Score: float64(died), Member: id}).Err())
			}
		}
		const n = 250
		for name, c := range map[string]struct {
			filter DeadFilter
			want   int
		}{
			"all":    {DeadFilter{}, n},
			"task":   {DeadFilter{Task: "odd"}, n / 2},
			"reason": {DeadFilter{Reason: Poison}, 84},
			"both":   {DeadFilter{Task: "odd", Reason: Poison}, 42},
			"age":    {DeadFilter{OlderThan: 100*time.Hour - time.Minute}, n - 100},
			"one":    {DeadFilter{IDs: []string{"d0007"}}, 1},
			"some":   {DeadFilter{IDs: []string{"d0007", "d0008", "absent"}, Task: "odd"}, 1},
			"none":   {DeadFilter{IDs: []string{}}, 0},
		} {
			for action, do := range map[string]func(context.Context, string, DeadFilter) (int, error){"retry": i.RetryDead, "delete": i.DeleteDead} {
				put(n)
				got, err := do(ctx, "mail", c.filter)
				require.NoError(t, err, name)
				require.Equal(t, c.want, got, "%s %s", action, name)
				require.Equal(t, int64(n-c.want), i.info().Dead, name)
				if action == "retry" {
					require.Equal(t, int64(c.want), i.info().Ready, name)
				}
				require.NoError(t, i.rdb.Del(ctx, slices.Concat(i.s.p.streams[:], []string{i.s.p.dead, i.s.p.deadTasks})...).Err())
			}
		}
	})
}

func TestADelayedOrParkedTaskIsCancelledAtOnce(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		ctx := t.Context()
		i.s.put(Delayed, keyed("delayed", "u1", ""))
		i.s.put(Parked, keyed("parked", "u2", "k"))
		i.s.put(Parked, keyed("behind", "", "k"))
		for _, id := range []string{"delayed", "parked"} {
			done, err := i.Cancel(ctx, "mail", id)
			require.NoError(t, err)
			require.True(t, done)
			r, err := i.results.Wait(ctx, id)
			require.NoError(t, err)
			require.Equal(t, result.Cancelled, r.State)
			require.EqualError(t, r.Err(), `result: task t "`+id+`": cancelled at attempt 3: cancelled by hand`)
		}
		require.Equal(t, QueueInfo{Parked: 1}, i.info())
		require.Zero(t, i.rdb.Exists(ctx, i.s.p.unique("u1"), i.s.p.unique("u2"), i.s.p.revoked).Val())
		require.Equal(t, "2", i.s.counter(countCancelled))

		// One that waits for a worker, or has one, is asked for.
		i.s.put(Ready, keyed("ready", "", ""))
		done, err := i.Cancel(ctx, "mail", "ready")
		require.NoError(t, err)
		require.False(t, done)
		score, err := i.rdb.ZScore(ctx, i.s.p.revoked, "ready").Result()
		require.NoError(t, err)
		require.InDelta(t, float64(time.Now().UnixMilli()), score, 60_000)
		require.Equal(t, QueueInfo{Ready: 1, Parked: 1}, i.info())
	})
}

func TestPurgeTakesOutWhatNoWorkerHas(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		ctx := t.Context()
		i.s.put(Ready, keyed("runs", "", "k"))
		i.s.join("me")
		held, _ := i.s.fetch("me", 1)
		const n = maxInspect + 10
		for k := range n {
			i.s.put(Ready, keyed(fmt.Sprint("r", k), fmt.Sprint("ur", k), ""))
			i.s.put(Delayed, keyed(fmt.Sprint("z", k), fmt.Sprint("uz", k), ""))
			i.s.put(Parked, keyed(fmt.Sprint("p", k), fmt.Sprint("up", k), fmt.Sprint("k", k%3)))
			i.s.put(Ready, keyed(fmt.Sprint("s", k), "", fmt.Sprint("k", k%3)))
		}
		i.s.put(Parked, keyed("next", "", "k"))
		i.s.put(Dead, keyed("dead", "", ""))
		purged, err := i.Purge(ctx, "mail")
		require.NoError(t, err)
		require.Equal(t, 4*n+1, purged)
		require.Equal(t, QueueInfo{InFlight: 1, Dead: 1}, i.info())
		require.Equal(t, fmt.Sprint(4*n+1), i.s.counter(countPurged))
		for _, id := range []string{"r0", "z109", "p50", "s7", "next"} {
			r, err := i.results.Wait(ctx, id)
			require.NoError(t, err)
			require.Equal(t, result.Cancelled, r.State)
			require.Equal(t, "purged by hand", r.Cause.Message)
		}
		require.NoError(t, i.results.Forget(ctx, "runs"))
		keys, err := i.rdb.Keys(ctx, i.s.p.prefix+"*").Result()
		require.NoError(t, err)
		streamKeys := i.s.p.streams[:]
		require.ElementsMatch(t, append([]string{i.s.p.slots("k"), i.s.p.heartbeat("me"), i.s.p.counters, i.s.p.dead, i.s.p.deadTasks}, streamKeys...), keys,
			"no unique key, no slot, no list is left but what runs has")
		require.Equal(t, []any{int64(0), int64(0), int64(1), int64(0)}, i.s.run(ackScript, i.s.p.ackKeys(), 0, 0, 1, 0, held[0].id))
		purged, err = i.Purge(ctx, "mail")
		require.NoError(t, err)
		require.Zero(t, purged)
	})
}

// Who waits for a task that the inspector ended must be told of it.
func TestResultsThatCannotBeWrittenAreTold(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		ctx := t.Context()
		i.s.put(Delayed, keyed("x", "", ""))
		require.NoError(t, i.rdb.LPush(ctx, "redisha:result:x", "text").Err())
		n, err := i.Purge(ctx, "mail")
		require.Equal(t, 1, n)
		require.ErrorContains(t, err, "1 tasks were removed and their results not written")
	})
}

func TestTheMemoryOfAQueueGrowsWithItsTasks(t *testing.T) {
	rdb := redistest.Shared(t).Client(t)
	c, _ := newTestClient(t, rdb, Config{})
	i, err := NewInspector(c, nil)
	require.NoError(t, err)
	_, err = c.queue(t.Context(), "mail")
	require.NoError(t, err)
	s := scripts{t, rdb, newPartition("redisha", "mail", 0, 1)}
	last, err := i.Memory(t.Context(), "mail")
	require.NoError(t, err)
	require.Zero(t, last)
	for _, state := range []TaskState{Ready, Delayed, Parked, Dead} {
		for k := range 100 {
			s.put(state, keyed(fmt.Sprint(state, k), "", "k"))
		}
		n, err := i.Memory(t.Context(), "mail")
		require.NoError(t, err)
		require.Greater(t, n, last+100*int64(len(s.envelope("x")))/2, state)
		last = n
	}
}

func TestAnEmptyQueueIsDeletedAndMadeAnew(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		ctx := t.Context()
		task := NewTask[int]("work", TaskConfig{Queue: "mail"})
		publish(t, task, i.c, 1)
		err := i.DeleteQueue(ctx, "mail")
		require.ErrorIs(t, err, ErrQueueInUse)
		require.ErrorContains(t, err, "it holds tasks or dead letters")
		_, err = i.Purge(ctx, "mail")
		require.NoError(t, err)
		err = i.DeleteQueue(ctx, "mail")
		require.ErrorIs(t, err, ErrQueueInUse)
		require.ErrorContains(t, err, "somebody has published to it within the last 1m0s")
		for _, z := range i.rdb.ZRange(ctx, i.s.p.lanesSeen, 0, -1).Val() {
			require.NoError(t, i.rdb.ZIncrBy(ctx, i.s.p.lanesSeen, -61_000, z).Err())
		}
		i.s.maintain("me", 1)
		err = i.DeleteQueue(ctx, "mail")
		require.ErrorIs(t, err, ErrQueueInUse)
		require.ErrorContains(t, err, "a worker serves it, or did a few seconds ago")
		require.NoError(t, i.rdb.Del(ctx, i.s.p.maintainer).Err())
		require.NoError(t, i.Pause(ctx, "mail"))

		require.NoError(t, i.DeleteQueue(ctx, "mail"))
		require.Empty(t, i.s.keys(), "nothing is left")
		names, err := i.Queues(ctx)
		require.NoError(t, err)
		require.Empty(t, names)
		publish(t, task, i.c, 2)
		require.Equal(t, QueueInfo{Ready: 1}, i.info())
	})
}

func TestOnAClusterAllPartitionsAreInspected(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1})
	rdb := cluster.Client(t)
	c, _ := newTestClient(t, rdb, Config{})
	results := newResults(t, rdb, result.Config{})
	i, err := NewInspector(c, results)
	require.NoError(t, err)
	ctx := t.Context()
	task := NewTask[int]("work", TaskConfig{Queue: "mail", Retention: time.Hour})
	var ids []string
	for n := range 60 {
		id := publish(t, task, c, n)
		if n%2 == 0 {
			id = publish(t, task, c, n, ID(fmt.Sprint("given", n)), After(time.Hour))
		}
		ids = append(ids, id)
	}
	names, err := i.Queues(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"mail"}, names)
	require.NoError(t, i.Pause(ctx, "mail"))
	q, err := i.Queue(ctx, "mail")
	require.NoError(t, err)
	require.Equal(t, 12, q.Partitions)
	require.Equal(t, QueueInfo{Ready: 60, Delayed: 30, Paused: true}, q.QueueInfo)
	require.Equal(t, int64(90), q.Counts["published"])
	for _, id := range ids {
		found, err := i.Find(ctx, "mail", id)
		require.NoError(t, err)
		require.Equal(t, id, found.ID)
	}
	n, err := i.Memory(ctx, "mail")
	require.NoError(t, err)
	require.Positive(t, n)
	done, err := i.Cancel(ctx, "mail", ids[0])
	require.NoError(t, err)
	require.True(t, done)
	done, err = i.Cancel(ctx, "mail", ids[1])
	require.NoError(t, err)
	require.False(t, done)
	purged, err := i.Purge(ctx, "mail")
	require.NoError(t, err)
	require.Equal(t, 89, purged)
	records, err := results.WaitAll(ctx, ids...)
	require.NoError(t, err)
	for _, r := range records {
		require.Equal(t, result.Cancelled, r.State)
	}
	require.NoError(t, i.Resume(ctx, "mail"))
	require.Equal(t, QueueInfo{}, queueInfo(t, c, "mail"))
}
