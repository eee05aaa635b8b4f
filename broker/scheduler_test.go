package broker

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// startScheduler runs a scheduler until stop.
func startScheduler(t *testing.T, c *Client, cfg SchedulerConfig, add func(s *Scheduler)) (stop func() error) {
	t.Helper()
	s, err := NewScheduler(c, cfg)
	require.NoError(t, err)
	add(s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

func TestATickOfManySchedulersIsOneTask(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		task := NewTask[string]("report", TaskConfig{})
		var stops []func() error
		for range 3 {
			other, _ := newTestClient(t, c.conn.Unwrap(), Config{})
			stops = append(stops, startScheduler(t, other, SchedulerConfig{}, func(s *Scheduler) {
				task.Schedule(s, "hourly", "15 * * * *", "hour")
				task.Schedule(s, "often", "@every 10m", "often")
			}))
		}
		time.Sleep(5 * time.Hour) // the bubble begins at midnight
		require.NoError(t, stops[0]())
		time.Sleep(5*time.Hour - time.Second)
		require.NoError(t, stops[1]())
		require.NoError(t, stops[2]())
		require.Equal(t, QueueInfo{Ready: 10 + 60}, queueInfo(t, c, "default"))
		seen := map[string]int{}
		for _, m := range c.conn.XRange(t.Context(), newPartition("redisha", "default", 0, 1).streams[2], "-", "+").Val() {
			e, err := decodeEnvelope([]byte(m.Values[field].(string)))
			require.NoError(t, err)
			seen[e.id]++
		}
		require.Equal(t, 1, seen["tick:hourly:2000-01-01T09:15:00Z"])
		require.Equal(t, 1, seen["tick:often:2000-01-01T00:00:00Z"])
		require.Len(t, seen, 70)
	})
}

func TestTicksAcrossDaylightSavingAreOneTaskEach(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		time.Sleep(time.Until(time.Date(2000, 10, 28, 12, 0, 0, 0, berlin))) // the clock is set back in the night
		task := NewTask[string]("report", TaskConfig{})
		for range 2 {
			startScheduler(t, c, SchedulerConfig{Location: berlin}, func(s *Scheduler) {
				task.Schedule(s, "nightly", "30 2 * * *", "night")
				task.Schedule(s, "hourly", "30 * * * *", "hour")
			})
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		require.Equal(t, QueueInfo{Ready: 1 + 24}, queueInfo(t, c, "default"), "the night has two hours from two to three")
	})
}

func TestOnlyTheLastOfMissedTicksIsPublished(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, logs *logs) {
		task := NewTask[string]("report", TaskConfig{})
		startScheduler(t, c, SchedulerConfig{CatchUp: 3 * time.Minute}, func(s *Scheduler) {
			task.Schedule(s, "often", "* * * * *", "x")
		})
		time.Sleep(30 * time.Second)
		require.Equal(t, QueueInfo{Ready: 1}, queueInfo(t, c, "default"), "that of midnight")
		s.SetError("LOADING Redis is loading the dataset in memory")
		time.Sleep(9*time.Minute + 50*time.Second)
		s.SetError("")
		time.Sleep(30 * time.Second) // it is 00:10:50
		require.Equal(t, QueueInfo{Ready: 2}, queueInfo(t, c, "default"), "and that of 00:10")
		require.Equal(t, uint64(9), c.Stats().MissedTicks)
		require.Equal(t, 9, logs.count("a periodic task was missed"))
		require.Equal(t, uint64(2), c.Stats().Ticks)
		time.Sleep(2 * time.Minute)
		require.Equal(t, QueueInfo{Ready: 4}, queueInfo(t, c, "default"))
	})
}

// The task waits for the server's clock.
func TestASchedulerWhoseClockIsAheadPublishesNothingEarly(t *testing.T) {
	s := testserver.New(t)
	c, _ := newTestClient(t, s.Client(t), Config{})
	s.SetTime(time.Now().Add(-time.Hour))
	task := NewTask[string]("report", TaskConfig{})
	stop := startScheduler(t, c, SchedulerConfig{}, func(s *Scheduler) { task.Schedule(s, "often", "@every 1s", "x") })
	require.Eventually(t, func() bool { return queueInfo(t, c, "default").Delayed > 0 }, 30*time.Second, 5*time.Millisecond)
	require.NoError(t, stop())
	require.Zero(t, queueInfo(t, c, "default").Ready)
}

func TestATickIsLeftOutWhileTheTaskOfAnEarlierOneHolds(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, logs *logs) {
		task := NewTask[string]("report", TaskConfig{})
		startScheduler(t, c, SchedulerConfig{}, func(s *Scheduler) {
			task.Schedule(s, "often", "* * * * *", "x", Unique("report"), ExpireAfter(time.Hour))
		})
		time.Sleep(5*time.Minute + time.Second)
		require.Equal(t, QueueInfo{Ready: 1}, queueInfo(t, c, "default"))
		require.Equal(t, 5, logs.count("a periodic task is left out"))
	})
}

func TestWrongSchedulesAreReportedByRun(t *testing.T) {
	s := testserver.New(t)
	c, _ := newTestClient(t, s.Client(t), Config{})
	task := NewTask[string]("report", TaskConfig{})
	for want, add := range map[string]func(*Scheduler){
		`schedule "a": the schedule is "x", want a cron expression`: func(s *Scheduler) { task.Schedule(s, "a", "x", "") },
		`schedule "": its name has 0 bytes, want 1 to 200`:          func(s *Scheduler) { task.Schedule(s, "", "@daily", "") },
		`schedule "a\n": `: func(s *Scheduler) { task.Schedule(s, "a\n", "@daily", "") },
		`schedule "a": there is one of that name already`: func(s *Scheduler) {
			task.Schedule(s, "a", "@daily", "")
			task.Schedule(s, "a", "@hourly", "")
		},
		`which the scheduler sets`: func(s *Scheduler) { task.Schedule(s, "a", "@daily", "", After(1)) },
		`want 1 to 65535`:          func(s *Scheduler) { task.Schedule(s, "a", "@daily", "", Key("k", 0)) },
		`not made by NewTask`:      func(s *Scheduler) { (*Task[string])(nil).Schedule(s, "a", "@daily", "") },
		`encode the argument`:      func(s *Scheduler) { NewTask[func()]("f", TaskConfig{}).Schedule(s, "a", "@daily", func() {}) },
		`there are no schedules`:   func(*Scheduler) {},
	} {
		scheduler, err := NewScheduler(c, SchedulerConfig{})
		require.NoError(t, err)
		add(scheduler)
		require.ErrorContains(t, scheduler.Run(t.Context()), want)
		require.ErrorContains(t, scheduler.Run(t.Context()), "Run was called before")
	}
	_, err := NewScheduler(nil, SchedulerConfig{})
	require.ErrorContains(t, err, "nil client")
	_, err = NewScheduler(c, SchedulerConfig{CatchUp: time.Millisecond})
	require.ErrorContains(t, err, "SchedulerConfig.CatchUp is 1ms, want at least 1s")
	require.Empty(t, s.Keys())
}

func TestASchedulerEndsWithItsClient(t *testing.T) {
	s := testserver.New(t)
	c, err := New(s.Client(t), Config{})
	require.NoError(t, err)
	scheduler, err := NewScheduler(c, SchedulerConfig{})
	require.NoError(t, err)
	NewTask[string]("report", TaskConfig{}).Schedule(scheduler, "a", "@yearly", "")
	done := make(chan error, 1)
	go func() { done <- scheduler.Run(context.Background()) }()
	require.NoError(t, c.Close())
	require.ErrorIs(t, receive(t, done), ErrClosed)
}
