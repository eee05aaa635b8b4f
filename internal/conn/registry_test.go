package conn

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/redistest"
)

// busy makes n connections by n commands that overlap, which on a slow machine
// they have to be given time for.
func busy(t *testing.T, c *Client, n int) {
	t.Helper()
	for block := 100 * time.Millisecond; ; block *= 4 {
		var all sync.WaitGroup
		for range n {
			all.Go(func() { _ = c.BLPop(t.Context(), block, "nothing").Err() })
		}
		all.Wait()
		if c.registry.open() >= n {
			return
		}
		require.Less(t, block, 10*time.Second, "%d connections of %d", c.registry.open(), n)
	}
}

func TestTheCleanerClosesWhatNobodyUses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := inMemory(t, Config{})
		busy(t, c, 10)
		require.Equal(t, 10, c.registry.open())
		for range 59 {
			time.Sleep(time.Second)
			require.NoError(t, c.Ping(t.Context()).Err())
		}
		require.Equal(t, 10, c.registry.open(), "idle for less than a minute")
		for range 25 {
			time.Sleep(time.Second)
			require.NoError(t, c.Ping(t.Context()).Err())
		}
		require.Equal(t, 1, c.registry.open(), "one is in use every second")
		s := c.Stats().Pool
		require.Equal(t, 1, s.Total)
		require.Equal(t, 1, s.Idle)
		require.EqualValues(t, 9, s.Cleaned)
		busy(t, c, 10)
		require.Equal(t, 10, c.Stats().Pool.Total)
		time.Sleep(2 * time.Minute)
		require.Zero(t, c.Stats().Pool.Total)
		require.Zero(t, c.registry.open())
		require.Nil(t, c.registry.timer, "nothing to look at")
		require.NoError(t, c.Ping(t.Context()).Err())
		require.Zero(t, c.Stats().Commands.Failed())
	})
}

func TestTheCleanerLeavesMinIdleAndWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, srv := inMemory(t, Config{Pool: Pool{MinIdle: 3}})
		ctx := t.Context()
		busy(t, c, 10)
		popped := make(chan error, 1)
		go func() { popped <- c.BLPop(ctx, 5*time.Minute, "l").Err() }()
		ps := c.Subscribe(ctx, "news")
		defer ps.Close()
		message, err := ps.Receive(ctx)
		require.NoError(t, err)
		require.IsType(t, &redis.Subscription{}, message)
		received := make(chan error, 1)
		go func() { _, err := ps.ReceiveMessage(ctx); received <- err }()
		time.Sleep(3 * time.Minute)
		require.Equal(t, 3+2, c.registry.open(), "three idle ones, the blocked one, and the subscription")
		rdb := srv.Client(t)
		require.NoError(t, rdb.RPush(ctx, "l", "x").Err())
		require.NoError(t, <-popped)
		require.NoError(t, rdb.Publish(ctx, "news", "x").Err())
		require.NoError(t, <-received)
	})
}

func TestWithoutLimitNothingIsCleaned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := inMemory(t, Config{Pool: Pool{IdleTimeout: -1}})
		busy(t, c, 5)
		time.Sleep(time.Hour)
		require.Equal(t, 5, c.registry.open())
	})
}

// On the wall clock: who waits in go-redis' pool uses timers that all pools of the
// process share, and one that comes out of a bubble ends the test binary.
func TestACommandWaitsForAConnectionNoLongerThanMaxWait(t *testing.T) {
	c, srv := inMemory(t, Config{Endpoint: parse(t, "redis://127.0.0.1:6379?pool_size=1&pool_timeout=300ms"), Role: "broker"})
	ctx := t.Context()
	require.NoError(t, c.Ping(ctx).Err())
	blocked := make(chan error, 1)
	go func() { blocked <- c.BLPop(ctx, time.Minute, "l").Err() }()
	require.Eventually(t, func() bool { return c.Stats().Pool.Idle == 0 }, 20*time.Second, time.Millisecond)
	start := time.Now()
	require.ErrorIs(t, c.Get(ctx, "k").Err(), redis.ErrPoolTimeout)
	require.GreaterOrEqual(t, time.Since(start), 300*time.Millisecond)
	require.EqualValues(t, 1, c.Stats().Pool.Timeouts, "and not a multiple")
	require.NoError(t, srv.Client(t).RPush(ctx, "l", "x").Err())
	require.NoError(t, <-blocked)
}

// failing is a connection whose writes fail after some bytes.
type failing struct {
	net.Conn
	left int
}

func (c *failing) Write(p []byte) (int, error) {
	n := min(c.left, len(p))
	c.left -= n
	if n < len(p) {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

func (c *failing) Read(p []byte) (int, error) { return 1, nil }
func (c *failing) Close() error               { return nil }

func TestAWriteOfWhichNothingLeftIsUnsent(t *testing.T) {
	r := newRegistry(0, 0)
	nc, err := r.add(&failing{left: 10}, "a", 0)
	require.NoError(t, err)
	_, err = nc.Write(make([]byte, 10))
	require.NoError(t, err)
	_, err = nc.Write(make([]byte, 10))
	require.Error(t, err)
	require.False(t, unsent(err), "the first part of the command has left")
	_, err = nc.Read(make([]byte, 1))
	require.NoError(t, err)
	_, err = nc.Write(make([]byte, 10))
	require.True(t, unsent(err), "the last command has been answered")
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)

	nc, err = r.add(&failing{left: 5}, "a", 0)
	require.NoError(t, err)
	_, err = nc.Write(make([]byte, 10))
	require.False(t, unsent(err), "a part of it has left")
}

func TestARetiredConnectionSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := inMemory(t, Config{Role: "broker"})
		ctx := t.Context()
		busy(t, c, 3)
		gen := c.registry.gen.Load()
		popped := make(chan error, 1)
		go func() { popped <- c.BLPop(ctx, time.Minute, "l").Err() }()
		synctest.Wait()
		c.registry.retire(gen)
		err := <-popped
		require.ErrorIs(t, err, ErrOutcomeUnknown)
		require.ErrorIs(t, err, errRetired)
		require.Zero(t, c.registry.open())
		require.NoError(t, c.Incr(ctx, "n").Err(), "the pooled ones are not used")
		c.registry.retire(gen)
		require.Equal(t, 1, c.registry.open(), "what was made since is left alone")
		require.Equal(t, 1, c.Stats().Pool.Total)
		require.Zero(t, c.Stats().Breaker.Failures, "it is not the server's fault")

		_, err = c.registry.add(&failing{}, "a", gen)
		require.ErrorIs(t, err, errRetired, "dialled before, there after")
		c.registry.retireAddr("127.0.0.1:6379")
		require.Zero(t, c.registry.open())
	})
}

func TestAServerThatTurnsReplicaLosesItsIdleConnections(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	other := redistest.New(t, redistest.Config{})
	admin := primary.Client(t)
	c := open(t, Config{Role: "broker", Endpoint: parse(t, primary.URL())})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	busy(t, c, 5)
	require.NoError(t, c.Incr(ctx, "n").Err())
	require.NoError(t, admin.ReplicaOf(ctx, "127.0.0.1", other.Client(t).Options().Addr[len("127.0.0.1:"):]).Err())
	done := make(chan error, 1)
	go func() { done <- c.Incr(ctx, "n").Err() }()
	require.Eventually(t, func() bool { return c.Stats().DialErrors+c.Stats().Repeats > 0 }, 20*time.Second, time.Millisecond)
	require.NoError(t, admin.ReplicaOf(ctx, "no", "one").Err())
	require.NoError(t, <-done)
	require.ErrorIs(t, wrongRole([]any{"slave", "127.0.0.1", int64(1)}, master), ErrReplica)
}

func TestBreakersOfARoleAreSummedUp(t *testing.T) {
	b := newBreakers("cache", breaker.Config{DialFailures: 1, OpenFor: time.Hour})
	one, err := b.of("a:1")
	require.NoError(t, err)
	same, err := b.of("a:1")
	require.NoError(t, err)
	require.Same(t, one, same)
	_, err = b.of("b:1")
	require.NoError(t, err)
	_, err = b.of("redis://user@b:1")
	require.Error(t, err)
	require.Equal(t, "closed", b.stats().State)
	_, _ = one.DialHook(func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no") })(t.Context(), "tcp", "a:1")
	s := b.stats()
	require.Equal(t, "open", s.State)
	require.EqualValues(t, 1, s.Trips)
	b.reset()
	require.Equal(t, "closed", b.stats().State)
}

func TestAServerThatLetsAReadTimeoutPassLosesItsIdleConnections(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, srv.URL()+"?read_timeout=1s")})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	busy(t, c, 5)
	require.NoError(t, srv.Pause())
	require.ErrorIs(t, c.Incr(ctx, "n").Err(), ErrOutcomeUnknown)
	done := make(chan error, 1)
	go func() { done <- c.Incr(ctx, "n").Err() }()
	time.Sleep(1500 * time.Millisecond)
	require.NoError(t, srv.Continue())
	require.NoError(t, <-done, "it was not sent into a connection to a server in doubt")
	require.EqualValues(t, 1, c.Stats().OutcomeUnknown)
}

func TestADeadlineThatCannotBeSetSendsNothing(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	r := newRegistry(0, 0)
	nc, err := r.add(a, "a", 0)
	require.NoError(t, err)
	r.retire(0)
	err = nc.SetWriteDeadline(time.Now())
	require.True(t, unsent(err))
	require.ErrorIs(t, err, errRetired)
	require.True(t, unsent(nc.SetReadDeadline(time.Now())))
	require.True(t, unsent(nc.SetDeadline(time.Now())))
}

func TestOneReadOnlyReplyIsEnoughToLeaveAServer(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	replica := redistest.NewReplica(t, primary, redistest.Config{})
	service := redistest.NewProxy(t, primary.Addr())
	c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis://"+service.Addr())})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	busy(t, c, 20)
	require.Equal(t, 20, c.registry.open())
	require.NoError(t, replica.Client(t).ReplicaOf(ctx, "no", "one").Err())
	require.NoError(t, primary.Client(t).ReplicaOf(ctx, "127.0.0.1", strconv.Itoa(replica.Port())).Err())
	service.SetTarget(replica.Addr()) // the open connections still lead to the old one
	require.NoError(t, c.Incr(ctx, "n").Err())
	require.LessOrEqual(t, c.Stats().Repeats, uint64(2), "not once for each of 20 connections")
}
