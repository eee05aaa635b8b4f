package conn

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/testserver"
)

func TestANewEpochClosesTheBreakerAndWakesWhoWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, srv := inMemory(t, Config{Role: "broker", Breaker: breaker.Config{DialFailures: 1, OpenFor: time.Hour}})
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		srv.Stop()
		start := time.Now()
		done := make(chan error, 1)
		go func() { done <- c.Get(t.Context(), "k").Err() }()
		time.Sleep(10 * time.Second)
		require.Equal(t, "open", c.Stats().Breaker.State)
		require.NoError(t, srv.Restart())
		c.newEpoch()
		require.NoError(t, <-done)
		require.Equal(t, 10*time.Second, time.Since(start), "not the hour of the breaker")
	})
}

func TestEpochsAreToldUntilStop(t *testing.T) {
	c, _ := inMemory(t, Config{})
	var heard []uint64
	stop := c.OnEpoch(func(n uint64) { heard = append(heard, n) })
	c.newEpoch()
	c.newEpoch()
	stop()
	c.newEpoch()
	require.Equal(t, []uint64{1, 2}, heard)
	require.EqualValues(t, 3, c.Epoch())
}

func TestACallerWithoutDeadlineWaitsAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, srv := inMemory(t, Config{Role: "broker"})
		srv.Stop()
		start := time.Now()
		require.ErrorContains(t, c.Incr(t.Context(), "n").Err(), "a minute is over")
		require.GreaterOrEqual(t, time.Since(start), time.Minute)
		require.Less(t, time.Since(start), 63*time.Second)
	})
}

func TestCloseEndsTheWaitOfCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, srv := inMemory(t, Config{Role: "broker"})
		srv.Stop()
		done := make(chan error, 1)
		go func() { done <- c.Incr(t.Context(), "n").Err() }()
		time.Sleep(time.Second)
		start := time.Now()
		require.NoError(t, c.Close())
		require.ErrorIs(t, <-done, ErrClosed)
		require.Less(t, time.Since(start), 100*time.Millisecond)
	})
}

// Who learns of a new primary and connects to it at once keeps that connection
// when those to the last one are closed, however late that is.
func TestAConnectionToTheNewPrimaryOutlivesTheSwitch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testserver.NewNet()
		servers := make(map[string]*testserver.Server)
		for _, addr := range []string{"10.0.0.1:6379", "10.0.0.2:6379", "10.0.0.3:6379"} {
			servers[addr] = testserver.New(t)
			net.Add(addr, servers[addr].Dial)
		}
		sentinel := testserver.NewSentinel(t, net, "10.1.0.1:26379")
		sentinel.Monitor(testserver.Monitored{Name: "main", Primary: "10.0.0.1:6379", Epoch: 1})
		c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis+sentinel://10.1.0.1:26379/main?pool_size=1024"), Dialer: net.Dial, Logger: quiet()})
		require.NoError(t, c.Incr(t.Context(), "n").Err())
		time.Sleep(time.Second)

		busy := make(chan struct{}) // who closes the connections comes late to the second switch
		defer c.OnEpoch(func(n uint64) {
			if n == 1 {
				<-busy
			}
		})()
		sentinel.Switch("main", "10.0.0.2:6379", 2)
		time.Sleep(time.Second)
		sentinel.Switch("main", "10.0.0.3:6379", 3)
		time.Sleep(time.Second)
		require.Equal(t, "10.0.0.3:6379", c.Stats().Primary.Addr)

		hold := make(chan struct{}) // the reply
		servers["10.0.0.3:6379"].SetPreHook(func(_ *server.Peer, cmd string, _ ...string) bool {
			if cmd == "INCR" {
				<-hold
			}
			return false
		})
		done := make(chan error, 1)
		go func() { done <- c.Incr(t.Context(), "n").Err() }()
		synctest.Wait()
		close(busy)
		synctest.Wait()
		close(hold)
		require.NoError(t, <-done)
		n, err := servers["10.0.0.3:6379"].Get("n")
		require.NoError(t, err)
		require.Equal(t, "1", n)
	})
}
