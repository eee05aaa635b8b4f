package testserver_test

import (
	"context"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

func TestTTLFollowsTheBubblesClock(t *testing.T) {
	for range 2 { // a second bubble in the same process is where pooled timers break
		synctest.Test(t, func(t *testing.T) {
			rdb := testserver.New(t).Client(t)
			require.NoError(t, rdb.Set(t.Context(), "k", "v", time.Hour).Err())
			time.Sleep(time.Hour - time.Second)
			require.Equal(t, time.Second, rdb.TTL(t.Context(), "k").Val())
			time.Sleep(time.Second)
			require.ErrorIs(t, rdb.Get(t.Context(), "k").Err(), redis.Nil)
		})
	}
}

func TestTTLFollowsTheWallClockOutsideABubble(t *testing.T) {
	rdb := testserver.New(t).Client(t)
	require.NoError(t, rdb.Set(t.Context(), "k", "v", 20*time.Millisecond).Err())
	require.Eventually(t, func() bool { return rdb.Exists(t.Context(), "k").Val() == 0 },
		5*time.Second, 5*time.Millisecond)
}

func TestSetTimeStopsTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		rdb := s.Client(t)
		at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
		s.SetTime(at)
		time.Sleep(time.Hour)
		require.True(t, at.Equal(rdb.Time(t.Context()).Val()))
		s.SetTime(time.Time{})
		require.True(t, time.Now().Equal(rdb.Time(t.Context()).Val()))
	})
}

func TestLongPipelineDoesNotBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := testserver.New(t).Client(t)
		start := time.Now()
		cmds, err := rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			for range 10_000 {
				p.Echo(t.Context(), "a reply that is worth its bytes")
			}
			return nil
		})
		require.NoError(t, err)
		require.Len(t, cmds, 10_000)
		require.Zero(t, time.Since(start))
	})
}

func TestSubscriberWhoDoesNotReadHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		conn, err := s.Dial(t.Context(), "tcp", s.Addr())
		require.NoError(t, err)
		defer func() { _ = conn.Close() }()
		_, err = conn.Write([]byte("*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n"))
		require.NoError(t, err)
		synctest.Wait() // it is subscribed

		rdb := s.Client(t)
		start := time.Now()
		for range 100 {
			require.EqualValues(t, 1, rdb.Publish(t.Context(), "c", "m").Val())
		}
		require.Zero(t, time.Since(start))
	})
}

func TestListenServesTCP(t *testing.T) {
	s := testserver.New(t)
	require.Equal(t, "127.0.0.1:6379", s.Addr())
	addr, err := s.Listen()
	require.NoError(t, err)
	require.Equal(t, addr, s.Addr())
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer func() { _ = rdb.Close() }()
	require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
	require.Equal(t, "v", s.Client(t).Get(t.Context(), "k").Val()) // the same data

	require.NoError(t, rdb.PExpire(t.Context(), "k", 20*time.Millisecond).Err())
	require.Eventually(t, func() bool { return rdb.Exists(t.Context(), "k").Val() == 0 },
		5*time.Second, 5*time.Millisecond)
	at := time.UnixMilli(time.Now().UnixMilli()).Add(time.Hour)
	s.SetTime(at)
	require.True(t, at.Equal(rdb.Time(t.Context()).Val()))
	s.SetTime(time.Time{})
	require.WithinDuration(t, time.Now(), rdb.Time(t.Context()).Val(), time.Minute)

	s.Close()
	_, err = net.Dial("tcp", addr)
	require.Error(t, err)
}

func TestClosedServerTakesNoCalls(t *testing.T) {
	s, err := testserver.Start()
	require.NoError(t, err)
	rdb := redis.NewClient(s.Options())
	defer func() { _ = rdb.Close() }()
	require.NoError(t, rdb.Ping(t.Context()).Err())
	s.Close()
	s.Close()
	require.Error(t, rdb.Ping(t.Context()).Err())
	_, err = s.Dial(t.Context(), "tcp", s.Addr())
	require.EqualError(t, err, "dial tcp 127.0.0.1:6379: connect: connection refused")
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	_, err = s.Listen()
	require.EqualError(t, err, "testserver: listen: the server is closed")
	require.EqualError(t, s.Restart(), "testserver: restart: the server is closed")
}

func TestCloseEndsBlockedCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		opts := s.Options()
		opts.MaxRetries = -1
		rdb := redis.NewClient(opts)
		defer func() { _ = rdb.Close() }()
		failed := make(chan error)
		go func() { failed <- rdb.BLPop(t.Context(), 0, "l").Err() }()
		go func() { failed <- rdb.Wait(t.Context(), 1, 0).Err() }()
		synctest.Wait()
		s.Close()
		require.Error(t, <-failed)
		require.Error(t, <-failed)
	})
}

func TestStopCutsConnectionsAndKeepsData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		opts := s.Options()
		opts.MaxRetries = -1
		rdb := redis.NewClient(opts)
		defer func() { _ = rdb.Close() }()
		require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
		blocked := make(chan error)
		go func() { blocked <- rdb.BLPop(t.Context(), 0, "l").Err() }()
		synctest.Wait()
		runID := rdb.InfoMap(t.Context(), "server").Val()["Server"]["run_id"]

		s.Stop()
		require.Error(t, <-blocked)
		require.Error(t, rdb.Get(t.Context(), "k").Err()) // on a connection of before
		require.ErrorContains(t, rdb.Get(t.Context(), "k").Err(), "connection refused")
		time.Sleep(time.Millisecond)
		require.Zero(t, s.CurrentConnectionCount())

		require.NoError(t, s.Restart())
		require.Equal(t, "v", rdb.Get(t.Context(), "k").Val())
		require.NotEqual(t, runID, rdb.InfoMap(t.Context(), "server").Val()["Server"]["run_id"])
		go func() { blocked <- rdb.BLPop(t.Context(), 0, "l").Err() }()
		require.NoError(t, rdb.RPush(t.Context(), "l", "x").Err())
		require.NoError(t, <-blocked) // blocking works again
	})
}

func TestDialEndsWithItsContext(t *testing.T) {
	s := testserver.New(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(context.DeadlineExceeded)
	_, err := s.Dial(ctx, "tcp", s.Addr())
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestSetErrorFailsCommandsUntilCleared(t *testing.T) {
	s := testserver.New(t)
	rdb := s.Client(t)
	s.SetError("OOM command not allowed when used memory > 'maxmemory'.")
	require.ErrorContains(t, rdb.Set(t.Context(), "k", "v", 0).Err(), "OOM ")
	require.ErrorContains(t, rdb.Do(t.Context(), "ROLE").Err(), "OOM ")
	s.SetError("")
	require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
	require.NoError(t, rdb.Do(t.Context(), "ROLE").Err()) // what the server adds is still there
}

func TestPreHookSeesCommandsOfScripts(t *testing.T) {
	s := testserver.New(t)
	rdb := s.Client(t)
	require.NoError(t, rdb.Ping(t.Context()).Err())
	var seen []string // one client, one command at a time
	s.SetPreHook(func(c *server.Peer, cmd string, args ...string) bool {
		seen = append(seen, cmd)
		if cmd == "GET" {
			c.WriteBulk("from the hook")
			return true
		}
		return false
	})
	require.Equal(t, "from the hook", rdb.Eval(t.Context(), "return redis.call('GET', 'k')", nil).Val())
	require.Equal(t, []string{"EVAL", "GET"}, seen)
	s.SetPreHook(nil)
	require.ErrorIs(t, rdb.Get(t.Context(), "k").Err(), redis.Nil)
	require.NoError(t, rdb.Do(t.Context(), "ROLE").Err())
}
