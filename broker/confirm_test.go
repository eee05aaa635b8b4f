package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

func TestWhatReplicasDoNotConfirmIsAppliedAndUnconfirmed(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, other *Client, _ *logs) {
		c, _ := newTestClient(t, other.conn.Unwrap(), Config{Confirm: ConfirmReplicas(2)})
		task := NewTask[int]("a", TaskConfig{})
		s.SetReplicaAddrs("10.0.0.2:6379")
		start := time.Now()
		id, err := task.Publish(context.Background(), c, 1)
		require.ErrorIs(t, err, ErrUnconfirmed)
		var unconfirmed *UnconfirmedError
		require.ErrorAs(t, err, &unconfirmed)
		require.True(t, unconfirmed.Applied)
		require.Equal(t, id, unconfirmed.ID)
		require.EqualError(t, err, fmt.Sprintf(`broker: publish "a": not confirmed: task %q is published, but may be lost in a failover: 1 of 2 replicas have it after 5s (Config.ConfirmTimeout)`, id))
		require.Equal(t, 5*time.Second, time.Since(start))
		require.Equal(t, QueueInfo{Ready: 1}, queueInfo(t, c, "default"))

		time.AfterFunc(2*time.Second, func() { s.SetReplicaAddrs("10.0.0.2:6379", "10.0.0.3:6379") })
		start = time.Now()
		publish(t, task, c, 2)
		require.Equal(t, 2*time.Second, time.Since(start), "as soon as the second one has it")
		require.Equal(t, QueueInfo{Ready: 2}, queueInfo(t, c, "default"), "however often it was sent")
		stats := c.Stats()
		require.Equal(t, []uint64{2, 1, 1}, []uint64{stats.Published, stats.PublishErrors, stats.Unconfirmed})
	})
}

func TestACallerWhoLeavesDuringTheConfirmationIsToldThatItIsApplied(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, other *Client, _ *logs) {
		c, _ := newTestClient(t, other.conn.Unwrap(), Config{Confirm: ConfirmReplicas(1)})
		task := NewTask[int]("a", TaskConfig{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := task.Publish(ctx, c, 1)
		var unconfirmed *UnconfirmedError
		require.ErrorAs(t, err, &unconfirmed)
		require.True(t, unconfirmed.Applied)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		time.Sleep(time.Second)
		_, err = task.Publish(ctx, c, 2)
		require.NotErrorIs(t, err, ErrUnconfirmed)
		require.Equal(t, QueueInfo{Ready: 1}, queueInfo(t, c, "default"))
	})
}

func TestTheDefaultLevelRisesWithTheFirstReplica(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, logs *logs) {
		task := NewTask[int]("a", TaskConfig{})
		level := func() Confirm { return Confirm(c.defaults.level.Load()) }
		require.Zero(t, level(), "New does no I/O")
		publish(t, task, c, 1)
		require.Equal(t, ConfirmPrimary, level())
		s.SetReplicaAddrs("10.0.0.2:6379")
		publish(t, task, c, 2)
		require.Equal(t, ConfirmPrimary, level(), "asked a moment ago")
		time.Sleep(lookAgain)
		publish(t, task, c, 3)
		require.Equal(t, ConfirmReplicas(1), level())
		require.Equal(t, 1, logs.count("there are replicas now"))
		s.SetReplicaAddrs()
		time.Sleep(2 * lookAgain)
		_, err := task.Publish(context.Background(), c, 4)
		require.ErrorIs(t, err, ErrUnconfirmed, "the level does not fall by itself")
		require.Equal(t, ConfirmReplicas(1), level())
	})
}

func TestPublishesDegradeOnlyIfToldTo(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, other *Client, _ *logs) {
		c, logs := newTestClient(t, other.conn.Unwrap(), Config{Confirm: ConfirmReplicas(1), DegradeAfter: 8 * time.Second})
		task := NewTask[int]("a", TaskConfig{})
		_, err := task.Publish(context.Background(), c, 1)
		require.ErrorIs(t, err, ErrUnconfirmed)
		start := time.Now()
		publish(t, task, c, 2)
		require.InDelta(t, 3*time.Second, time.Since(start), float64(300*time.Millisecond), "8 s since the first")
		start = time.Now()
		for range 10 {
			publish(t, task, c, 3)
		}
		require.Less(t, time.Since(start), 20*time.Millisecond, "nobody waits any more")
		require.Equal(t, uint64(11), c.Stats().Degraded)
		require.Equal(t, 1, logs.count("publishes are not confirmed any more"))
		s.SetReplicaAddrs("10.0.0.2:6379")
		publish(t, task, c, 4)
		require.Equal(t, uint64(11), c.Stats().Degraded)
		require.Equal(t, 1, logs.count("publishes are confirmed again"))
	})
}

func TestWithConfirmNonePublishWaitsForNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, logs *logs) {
		task := NewTask[int]("a", TaskConfig{Confirm: ConfirmNone})
		ids := map[string]bool{publish(t, task, c, 0): true}
		s.SetError("LOADING Redis is loading the dataset in memory")
		for i := range 1000 {
			ids[publish(t, task, c, i)] = true
		}
		require.Len(t, ids, 1001)
		s.SetError("")
		time.Sleep(time.Second)
		require.Equal(t, QueueInfo{Ready: 1001}, queueInfo(t, c, "default"))
		require.Equal(t, uint64(1001), c.Stats().Published)

		s.SetFull(true)
		for i := range 10 {
			publish(t, task, c, i)
			synctest.Wait()
		}
		s.SetFull(false)
		require.Equal(t, uint64(10), c.Stats().PublishErrors)
		require.Equal(t, 1, logs.count("a task was not published"), "and not each time")

		s.SetError("LOADING Redis is loading the dataset in memory")
		sent := 0
		for {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := task.Publish(ctx, c, 0)
			cancel()
			if err != nil {
				require.ErrorContains(t, err, "not sent: ")
				break
			}
			sent++
		}
		require.LessOrEqual(t, sent, maxWaiting+maxBatch, "what waits is bounded")
		s.SetError("")
		require.NoError(t, c.Close(), "Close sends what waits")
		require.Equal(t, uint64(1001+sent), c.Stats().Published)
	})
}

func TestWrongLevelsAreRefused(t *testing.T) {
	s := testserver.New(t)
	for _, level := range []Confirm{ConfirmReplicas(0), ConfirmReplicas(101), -4} {
		_, err := New(s.Client(t), Config{Confirm: level})
		require.ErrorContains(t, err, "broker: Config.Confirm is ")
		c, _ := newTestClient(t, s.Client(t), Config{})
		_, err = NewTask[int]("a", TaskConfig{Confirm: level}).Publish(t.Context(), c, 1)
		require.ErrorContains(t, err, "TaskConfig.Confirm is ")
	}
	require.Equal(t, "default primary fsync none replicas(3)", fmt.Sprint(ConfirmDefault, ConfirmPrimary, ConfirmFsync, ConfirmNone, ConfirmReplicas(3)))
	for _, cfg := range []Config{{ConfirmTimeout: -1}, {DegradeAfter: -1}} {
		_, err := New(s.Client(t), cfg)
		require.ErrorContains(t, err, "want more than 0")
	}
}

func TestFsyncNeedsAServerThatCan(t *testing.T) {
	task := NewTask[int]("a", TaskConfig{Confirm: ConfirmFsync})
	server := redistest.New(t, redistest.Config{})
	c, _ := newTestClient(t, server.Client(t), Config{})
	_, err := task.Publish(t.Context(), c, 1)
	require.ErrorContains(t, err, "ConfirmFsync needs Redis 7.2 or later with appendonly: ERR ")
	require.NotErrorIs(t, err, ErrUnconfirmed)
	require.Equal(t, QueueInfo{}, queueInfo(t, c, "default"), "nothing is published that cannot be confirmed")

	server = redistest.New(t, redistest.Config{Lines: []string{"appendonly yes", "appendfsync everysec"}})
	if names, err := server.Client(t).Do(t.Context(), "command", "list", "filterby", "pattern", "waitaof").StringSlice(); err != nil || len(names) == 0 {
		t.Skip("this server has no WAITAOF")
	}
	c, _ = newTestClient(t, server.Client(t), Config{})
	start := time.Now()
	publish(t, task, c, 1)
	require.Greater(t, time.Since(start), 5*time.Millisecond, "it has waited for the disk")
	require.Equal(t, QueueInfo{Ready: 1}, queueInfo(t, c, "default"))
}

func TestConfirmedTasksAreOnTheReplica(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	replica := redistest.NewReplica(t, primary, redistest.Config{})
	onReplica := func(p *partition) int64 { return replica.Client(t).XLen(t.Context(), p.streams[2]).Val() }
	p := newPartition("redisha", "default", 0, 1)
	c, _ := newTestClient(t, primary.Client(t), Config{ConfirmTimeout: time.Second})
	task := NewTask[int]("a", TaskConfig{})
	for i := range int64(50) {
		publish(t, task, c, int(i))
		require.Equal(t, i+1, onReplica(p))
	}
	require.Equal(t, ConfirmReplicas(1), Confirm(c.defaults.level.Load()))

	require.NoError(t, replica.Pause())
	id, err := task.Publish(t.Context(), c, 50, ID("again"))
	var unconfirmed *UnconfirmedError
	require.ErrorAs(t, err, &unconfirmed)
	require.True(t, unconfirmed.Applied)
	require.Equal(t, "again", id)
	require.NoError(t, replica.Continue())
	publish(t, task, c, 50, ID("again"))
	require.Equal(t, int64(51), onReplica(p), "no second task, and the first one confirmed")
	publish(t, task, c, 51)
	require.Equal(t, QueueInfo{Ready: 52}, queueInfo(t, c, "default"))
}

// From 7.2 on WAIT speaks of the last write of its connection: a batch that is
// repeated on a new one must write, at maxmemory as well.
func TestARepeatedNumberWritesSoThatAWaitCoversIt(t *testing.T) {
	server := redistest.New(t, redistest.Config{Lines: []string{"maxmemory-policy noeviction"}})
	replica := redistest.NewReplica(t, server, redistest.Config{})
	s := scripts{t, server.Client(t), newPartition("redisha", "mail", 0, 1)}
	ctx := t.Context()
	offset := func() int {
		var n int
		for _, line := range strings.Split(s.rdb.Info(ctx, "replication").Val(), "\r\n") {
			if v, ok := strings.CutPrefix(line, "master_repl_offset:"); ok {
				n, _ = strconv.Atoi(v)
			}
		}
		require.NotZero(t, n)
		return n
	}
	s.publish("lane", 1, nil, "1", s.envelope("a"))
	require.NoError(t, replica.Pause())
	for _, maxmemory := range []string{"0", "1"} {
		require.NoError(t, s.rdb.ConfigSet(ctx, "maxmemory", maxmemory).Err())
		fresh := server.Client(t)
		before := offset()
		pipe := fresh.Pipeline()
		keys := slices.Concat(s.p.publishKeys())
		args := append([]any{lane1, 1, ""}, s.task("1", "", s.envelope("a"))...)
		script := publishScript.Eval(ctx, pipe, keys, args...)
		wait := pipe.Do(ctx, "wait", 1, 50)
		_, err := pipe.Exec(ctx)
		require.NoError(t, err)
		require.Equal(t, "1:1:", script.Val())
		require.Greater(t, offset(), before)
		require.EqualValues(t, 0, wait.Val(), "the replica is stopped, and has not got it")
	}
	require.NoError(t, replica.Continue())
}

const lane1 = "lane"

func TestRepliesDroppedBeforeTheConfirmationDoubleNothing(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	redistest.NewReplica(t, primary, redistest.Config{})
	client, net := throughNetwork(t, primary.Client(t))
	c, _ := newTestClient(t, client, Config{})
	task := NewTask[int]("single", TaskConfig{})
	publish(t, task, c, 0)
	const callers, each = 32, 10
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for i := range each {
				net.drop(1)
				_, err := task.Publish(context.Background(), c, i)
				require.NoError(t, err)
			}
		})
	}
	all.Wait()
	net.drop(0)
	require.Equal(t, QueueInfo{Ready: callers*each + 1}, queueInfo(t, c, "default"))
	require.NotZero(t, c.Stats().Resent)
}

// Invariant 1: what a publish has confirmed outlives the primary.
func TestConfirmedTasksOutliveThePrimary(t *testing.T) {
	s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
	rdb := ownClient(t, s.URL(), nil)
	c, _ := newTestClient(t, rdb, Config{})
	task := NewTask[int]("kept", TaskConfig{})
	publish(t, task, c, 0)
	require.Equal(t, ConfirmReplicas(1), Confirm(c.defaults.level.Load()))
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	require.NoError(t, s.Settled(ctx))

	var mu sync.Mutex
	confirmed := map[string]bool{}
	stop := make(chan struct{})
	var publishers sync.WaitGroup
	for range 16 {
		publishers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				id, err := task.Publish(ctx, c, n)
				if err == nil {
					mu.Lock()
					confirmed[id] = true
					mu.Unlock()
				}
			}
		})
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(confirmed) }
	require.Eventually(t, func() bool { return count() > 1000 }, 30*time.Second, time.Millisecond)
	old := s.Primary()
	old.Kill()
	_, err := s.AwaitPrimary(ctx, old.Addr())
	require.NoError(t, err)
	require.NoError(t, old.Restart(ctx), "it comes back as a replica")
	before := count()
	require.Eventually(t, func() bool { return count() > before+1000 }, 40*time.Second, time.Millisecond, "publishing goes on")
	close(stop)
	publishers.Wait()

	found := map[string]bool{}
	p := newPartition("redisha", "default", 0, 1)
	for from := "-"; ; {
		page, err := rdb.XRangeN(ctx, p.streams[2], from, "+", 5000).Result()
		require.NoError(t, err)
		for _, m := range page {
			e, err := decodeEnvelope([]byte(m.Values[field].(string)))
			require.NoError(t, err)
			require.False(t, found[e.id], "twice")
			found[e.id] = true
		}
		if len(page) < 5000 {
			break
		}
		from = "(" + page[len(page)-1].ID
	}
	for id := range confirmed {
		require.True(t, found[id], "%s of %d is lost", id, len(confirmed))
	}
	t.Logf("%d confirmed, %d there, stats %+v", len(confirmed), len(found), c.Stats().Unconfirmed)
	require.False(t, errors.Is(c.Check(ctx), ErrClosed))
}
