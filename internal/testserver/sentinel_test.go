package testserver_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

const sentinelAddr = "10.1.0.1:26379"

// sentinelClient returns a client of the Sentinel at sentinelAddr.
func sentinelClient(t *testing.T, n *testserver.Net, protocol int, password string) *redis.SentinelClient {
	t.Helper()
	c := redis.NewSentinelClient(&redis.Options{
		Addr: sentinelAddr, Dialer: n.Dial, Protocol: protocol, Password: password,
		MaxRetries: -1, DialerRetries: 1, PoolSize: 64, ContextTimeoutEnabled: true,
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func monitored() testserver.Monitored {
	return testserver.Monitored{
		Name: "mymaster", Primary: "10.0.0.1:6379", Epoch: 3,
		Replicas: []testserver.MonitoredReplica{{Addr: "10.0.0.2:6379"}, {Addr: "10.0.0.3:6379", Flags: "s_down,slave", LinkDown: true}},
		Others:   []testserver.OtherSentinel{{Addr: "10.1.0.2:26379", ID: "abc"}, {Addr: "10.1.0.3:26379", ID: "def", Flags: "s_down,sentinel"}},
	}
}

func TestSentinelTellsWhatItKnows(t *testing.T) {
	for _, protocol := range []int{2, 3} {
		synctest.Test(t, func(t *testing.T) {
			n := testserver.NewNet()
			s := testserver.NewSentinel(t, n, sentinelAddr)
			s.Monitor(monitored())
			c, ctx := sentinelClient(t, n, protocol, ""), t.Context()

			addr, err := c.GetMasterAddrByName(ctx, "mymaster").Result()
			require.NoError(t, err)
			require.Equal(t, []string{"10.0.0.1", "6379"}, addr)
			require.ErrorIs(t, c.GetMasterAddrByName(ctx, "other").Err(), redis.Nil)

			master, err := c.Master(ctx, "mymaster").Result()
			require.NoError(t, err)
			require.Equal(t, "3", master["config-epoch"])
			require.Equal(t, "master", master["flags"])
			require.Equal(t, "2", master["num-slaves"])
			require.ErrorContains(t, c.Master(ctx, "other").Err(), "No such master with that name")

			replicas, err := c.Replicas(ctx, "mymaster").Result()
			require.NoError(t, err)
			require.Len(t, replicas, 2)
			require.Equal(t, []string{"slave", "ok"}, []string{replicas[0]["flags"], replicas[0]["master-link-status"]})
			require.Equal(t, []string{"s_down,slave", "err"}, []string{replicas[1]["flags"], replicas[1]["master-link-status"]})

			others, err := c.Sentinels(ctx, "mymaster").Result()
			require.NoError(t, err)
			require.Equal(t, []string{"10.1.0.2", "26379", "abc", "sentinel"}, []string{others[0]["ip"], others[0]["port"], others[0]["runid"], others[0]["flags"]})

			masters, err := c.Masters(ctx).Result()
			require.NoError(t, err)
			require.Len(t, masters, 1)
			require.Contains(t, c.CkQuorum(ctx, "mymaster").Val(), "OK 3 usable Sentinels")
			require.Equal(t, "PONG", c.Ping(ctx).Val())

			s.Forget("mymaster")
			require.ErrorIs(t, c.GetMasterAddrByName(ctx, "mymaster").Err(), redis.Nil)
		})
	}
}

func TestSentinelAnswersWhatClientsAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := testserver.NewNet()
		s := testserver.NewSentinel(t, n, sentinelAddr)
		s.Monitor(monitored())
		ctx := t.Context()
		rdb := redis.NewClient(&redis.Options{Addr: sentinelAddr, Dialer: n.Dial, ClientName: "me", MaxRetries: -1, PoolSize: 64})
		defer func() { _ = rdb.Close() }()
		do := func(args ...any) any {
			v, err := rdb.Do(ctx, args...).Result()
			if err != nil {
				return err.Error()
			}
			return v
		}
		require.Equal(t, s.ID(), do("SENTINEL", "MYID"))
		require.Equal(t, []any{"sentinel", []any{"mymaster"}}, do("ROLE"))
		require.Equal(t, "me", do("CLIENT", "GETNAME"))
		require.Equal(t, "sentinel", do("HELLO").(map[any]any)["mode"])
		require.Contains(t, do("HELLO", "4"), "NOPROTO")
		require.Contains(t, do("HELLO", "3", "NOISE"), "syntax error")
		require.Contains(t, do("AUTH", "x"), "without any password configured")
		require.Contains(t, do("AUTH"), "wrong number of arguments")
		require.Contains(t, do("GET", "x"), "ERR unknown command 'get', with args beginning with: 'x'")
		require.Contains(t, do("SENTINEL"), "unknown subcommand")
		require.Contains(t, do("SENTINEL", "RESET", "mymaster"), "unknown subcommand")
		require.Contains(t, do("CLIENT", "KILL"), "unknown subcommand")

		s.Refuse("SENTINEL MASTER", "NOPERM no")
		require.Equal(t, "NOPERM no", do("SENTINEL", "MASTER", "mymaster"))
		s.Refuse("SENTINEL MASTER", "")
		s.Refuse("PING", "ERR busy")
		require.Equal(t, "ERR busy", do("PING"))

		var seen []string
		s.SetHook(func(args []string) { seen = args })
		do("SENTINEL", "MYID")
		require.Equal(t, []string{"SENTINEL", "MYID"}, seen)
	})
}

func TestSentinelWantsItsPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := testserver.NewNet()
		s := testserver.NewSentinel(t, n, sentinelAddr)
		s.Monitor(monitored())
		s.RequireAuth("", "right")
		ctx := t.Context()
		require.ErrorContains(t, sentinelClient(t, n, 3, "").Ping(ctx).Err(), "NOAUTH")
		require.ErrorContains(t, sentinelClient(t, n, 3, "wrong").Ping(ctx).Err(), "WRONGPASS")
		require.NoError(t, sentinelClient(t, n, 3, "right").Ping(ctx).Err())
		s.RequireAuth("app", "right")
		rdb := redis.NewClient(&redis.Options{Addr: sentinelAddr, Dialer: n.Dial, MaxRetries: -1, PoolSize: 64, Protocol: 2})
		defer func() { _ = rdb.Close() }()
		require.NoError(t, rdb.Do(ctx, "AUTH", "app", "right").Err())
	})
}

func TestSentinelAnnounces(t *testing.T) {
	for _, protocol := range []int{2, 3} {
		synctest.Test(t, func(t *testing.T) {
			n := testserver.NewNet()
			s := testserver.NewSentinel(t, n, sentinelAddr)
			s.Monitor(monitored())
			ctx := t.Context()
			sub := sentinelClient(t, n, protocol, "").Subscribe(ctx, "+switch-master", "+odown")
			defer func() { _ = sub.Close() }()
			for range 2 {
				_, err := sub.Receive(ctx)
				require.NoError(t, err)
			}
			require.Equal(t, 1, s.Subscribers("+switch-master"))
			s.Switch("mymaster", "10.0.0.2:6379", 4)
			m, err := sub.ReceiveMessage(ctx)
			require.NoError(t, err)
			require.Equal(t, "mymaster 10.0.0.1 6379 10.0.0.2 6379", m.Payload)
			require.NoError(t, sub.Ping(ctx))
			pong, err := sub.Receive(ctx)
			require.NoError(t, err)
			require.IsType(t, &redis.Pong{}, pong)

			s.Hang(true)
			s.Publish("+switch-master", "lost")
			s.Hang(false)
			s.Publish("+odown", "heard")
			m, err = sub.ReceiveMessage(ctx)
			require.NoError(t, err)
			require.Equal(t, "heard", m.Payload)
			require.NoError(t, sub.Unsubscribe(ctx, "+odown"))
			require.NoError(t, sub.Unsubscribe(ctx))
			synctest.Wait()
			require.Zero(t, s.Subscribers("+switch-master"))
			known, ok := s.Monitored("mymaster")
			require.True(t, ok)
			require.EqualValues(t, 4, known.Epoch)
		})
	}
}

func TestSentinelStopsHangsAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := testserver.NewNet()
		s := testserver.NewSentinel(t, n, sentinelAddr)
		s.Monitor(monitored())
		ping := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return sentinelClient(t, n, 2, "").Ping(ctx).Err()
		}
		require.NoError(t, ping())
		require.Equal(t, 1, s.Connections())
		s.Stop()
		synctest.Wait()
		require.Zero(t, s.Connections())
		require.ErrorContains(t, ping(), "connection refused")
		s.Restart()
		require.NoError(t, ping())
		s.Hang(true)
		s.Hang(true)
		require.ErrorContains(t, ping(), "i/o timeout")
		s.Hang(false)
		require.NoError(t, ping())

		n.Add(sentinelAddr, testserver.BlackHole)
		start := time.Now()
		require.Error(t, ping())
		require.GreaterOrEqual(t, time.Since(start), time.Second)
		time.Sleep(10 * time.Second) // go-redis goes on dialing for a while
		n.Add(sentinelAddr, nil)
		require.ErrorContains(t, ping(), "connection refused")
		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := s.Dial(canceled, "tcp", sentinelAddr)
		require.ErrorIs(t, err, context.Canceled)
		s.Close()
		s.Close()
		_, err = s.Dial(t.Context(), "tcp", sentinelAddr)
		require.ErrorContains(t, err, "connection refused")
	})
}

func TestFailoverClientFollowsFakeSentinels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := testserver.NewNet()
		a, b := testserver.New(t), testserver.New(t)
		n.Add("10.0.0.1:6379", a.Dial)
		n.Add("10.0.0.2:6379", b.Dial)
		s := testserver.NewSentinel(t, n, sentinelAddr)
		s.Monitor(testserver.Monitored{Name: "mymaster", Primary: "10.0.0.1:6379", Epoch: 1})
		rdb := redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: "mymaster", SentinelAddrs: []string{sentinelAddr}, Dialer: n.Dial, PoolSize: 64,
		})
		defer func() { _ = rdb.Close() }()
		ctx := t.Context()
		require.NoError(t, rdb.Set(ctx, "on", "a", 0).Err())
		require.NoError(t, b.Set("on", "b"))
		time.Sleep(time.Second)
		a.Stop()
		s.Switch("mymaster", "10.0.0.2:6379", 2)
		time.Sleep(time.Second)
		require.Equal(t, "b", rdb.Get(ctx, "on").Val())
	})
}
