package redistest_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// through returns a client of the server behind the proxy which sends nothing twice.
func through(t *testing.T, p *redistest.Proxy) *redis.Client {
	rdb := redis.NewClient(&redis.Options{
		Addr: p.Addr(), MaxRetries: -1, DialerRetries: 1, PoolSize: 10, DisableIdentity: true,
		ReadTimeout: 10 * time.Second, ContextTimeoutEnabled: true,
	})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func TestProxyForwards(t *testing.T) {
	s := redistest.Shared(t)
	p := redistest.NewProxy(t, s.Addr())
	rdb := through(t, p)
	big := bytes.Repeat([]byte("x"), 1<<20)
	require.NoError(t, rdb.Set(t.Context(), "k", big, 0).Err())
	got, err := rdb.Get(t.Context(), "k").Bytes()
	require.NoError(t, err)
	require.True(t, bytes.Equal(big, got))
	st := p.Stats()
	require.EqualValues(t, 1, st.Connections)
	require.Equal(t, 1, st.Open)
	require.Greater(t, st.RequestBytes, int64(1<<20))
	require.Greater(t, st.ReplyBytes, int64(1<<20))
	require.Positive(t, st.Requests)
	require.Positive(t, st.Replies)
	require.Zero(t, st.Cuts)
	require.NoError(t, rdb.Close())
	require.Eventually(t, func() bool { return p.Stats().Open == 0 }, 20*time.Second, 5*time.Millisecond)
	require.Zero(t, p.Stats().Cuts)
}

// What was sent is executed although its reply is lost.
func TestProxyCutsReplyOfMatch(t *testing.T) {
	s := redistest.Shared(t)
	p := redistest.NewProxy(t, s.Addr())
	rdb := through(t, p)
	require.NoError(t, rdb.Ping(t.Context()).Err())
	for i := range 20 {
		cut := p.CutAfter(func(request []byte) bool { return bytes.Contains(request, []byte("incr")) })
		require.NoError(t, rdb.Set(t.Context(), "other", i, 0).Err())
		require.ErrorIs(t, rdb.Incr(t.Context(), "n").Err(), io.EOF)
		<-cut
		require.EqualValues(t, i+1, p.Stats().Cuts)
		n, err := rdb.Get(t.Context(), "n").Int()
		require.NoError(t, err)
		require.Equal(t, i+1, n)
	}
	p.CutAfter(func([]byte) bool { return true })
	p.CutAfter(nil)
	require.NoError(t, rdb.Incr(t.Context(), "n").Err())
}

func TestProxyCutsSomeReplies(t *testing.T) {
	s := redistest.Shared(t)
	p := redistest.NewProxy(t, s.Addr())
	rdb := through(t, p)
	require.NoError(t, rdb.Ping(t.Context()).Err())
	p.CutReplies(1)
	require.ErrorIs(t, rdb.Incr(t.Context(), "n").Err(), io.EOF)
	require.Equal(t, "1", rdb.Get(t.Context(), "n").Val())
	p.CutReplies(5)
	p.CutReplies(0)
	require.NoError(t, rdb.Incr(t.Context(), "n").Err())
}

// What was not forwarded is not executed.
func TestProxyCutsRequests(t *testing.T) {
	s := redistest.Shared(t)
	p := redistest.NewProxy(t, s.Addr())
	rdb := through(t, p)
	require.NoError(t, rdb.Ping(t.Context()).Err())
	p.CutRequests(1)
	require.ErrorIs(t, rdb.Incr(t.Context(), "n").Err(), io.EOF)
	require.ErrorIs(t, rdb.Get(t.Context(), "n").Err(), redis.Nil)
	require.EqualValues(t, 1, p.Stats().Cuts)
}

func TestProxyDelaysBothWays(t *testing.T) {
	s := redistest.Shared(t)
	p := redistest.NewProxy(t, s.Addr())
	rdb := through(t, p)
	require.NoError(t, rdb.Ping(t.Context()).Err())
	p.Delay(50 * time.Millisecond)
	begin := time.Now()
	require.NoError(t, rdb.Ping(t.Context()).Err())
	require.GreaterOrEqual(t, time.Since(begin), 100*time.Millisecond)
	p.Delay(0)
	require.NoError(t, rdb.Ping(t.Context()).Err())
}

// A delay is a latency: what is sent one after the other arrives so.
func TestDelayDoesNotAddUp(t *testing.T) {
	p := redistest.NewProxy(t, echo(t))
	conn, err := net.Dial("tcp", p.Addr())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = conn.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(conn, make([]byte, 1))
	require.NoError(t, err)
	const delay = 2 * time.Second
	p.Delay(delay)
	for range 2 {
		_, err := conn.Write([]byte("x"))
		require.NoError(t, err)
		time.Sleep(50 * time.Millisecond)
	}
	var arrived [2]time.Time
	for i := range arrived {
		_, err := io.ReadFull(conn, make([]byte, 1))
		require.NoError(t, err)
		arrived[i] = time.Now()
	}
	require.Less(t, arrived[1].Sub(arrived[0]), delay) // at least that if the first held up the second
}

func TestBlackHoleHoldsEverythingBack(t *testing.T) {
	s := redistest.Shared(t)
	p := redistest.NewProxy(t, s.Addr())
	rdb := through(t, p)
	require.NoError(t, rdb.Ping(t.Context()).Err())
	p.BlackHole(true)
	p.BlackHole(true)
	old, fresh := make(chan error, 1), make(chan error, 1)
	go func() { old <- rdb.Incr(t.Context(), "n").Err() }()
	go func() { fresh <- through(t, p).Incr(t.Context(), "n").Err() }()
	require.Eventually(t, func() bool { return p.Stats().Open == 2 && p.Stats().Requests >= 3 }, 20*time.Second, time.Millisecond)
	require.Never(t, func() bool { return len(old)+len(fresh) > 0 }, 50*time.Millisecond, 5*time.Millisecond)
	direct := s.Client(t)
	require.ErrorIs(t, direct.Get(t.Context(), "n").Err(), redis.Nil)
	p.BlackHole(false)
	require.NoError(t, <-old)
	require.NoError(t, <-fresh)
	require.Equal(t, "2", direct.Get(t.Context(), "n").Val())
}

// The server does not learn that a client has gone, the counter does.
func TestBlackHoleHidesTheEnd(t *testing.T) {
	ended := make(chan struct{})
	l := listen(t, func(conn net.Conn) {
		_, _ = io.Copy(io.Discard, conn)
		close(ended)
	})
	p := redistest.NewProxy(t, l)
	conn, err := net.Dial("tcp", p.Addr())
	require.NoError(t, err)
	_, err = conn.Write([]byte("x"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return p.Stats().Requests == 1 }, 20*time.Second, time.Millisecond)
	p.BlackHole(true)
	require.NoError(t, conn.Close())
	require.Eventually(t, func() bool { return p.Stats().Open == 0 }, 20*time.Second, time.Millisecond)
	select {
	case <-ended:
		require.Fail(t, "the server sees the end")
	case <-time.After(20 * time.Millisecond):
	}
	p.BlackHole(false)
	<-ended
}

func TestProxyRefusesAndCuts(t *testing.T) {
	s := redistest.Shared(t)
	p := redistest.NewProxy(t, s.Addr())
	rdb := through(t, p)
	require.NoError(t, rdb.Ping(t.Context()).Err())
	p.Refuse(true)
	require.NoError(t, rdb.Ping(t.Context()).Err(), "old connections go on")
	require.Equal(t, 1, p.Cut())
	require.Zero(t, p.Stats().Open)
	require.Error(t, rdb.Ping(t.Context()).Err())
	require.Eventually(t, func() bool { return rdb.Ping(t.Context()).Err() != nil && p.Stats().Connections > 1 },
		20*time.Second, 5*time.Millisecond)
	p.Refuse(false)
	require.Eventually(t, func() bool { return rdb.Ping(t.Context()).Err() == nil }, 20*time.Second, 5*time.Millisecond)
}

func TestNewTargetIsForNewConnections(t *testing.T) {
	one, two := redistest.New(t, redistest.Config{}), redistest.Shared(t)
	p := redistest.NewProxy(t, one.Addr())
	rdb := through(t, p)
	require.NoError(t, rdb.Set(t.Context(), "who", "one", 0).Err())
	require.NoError(t, two.Client(t).Set(t.Context(), "who", "two", 0).Err())
	p.SetTarget(two.Addr())
	require.Equal(t, "one", rdb.Get(t.Context(), "who").Val())
	p.Cut()
	require.Eventually(t, func() bool { return rdb.Get(t.Context(), "who").Val() == "two" }, 20*time.Second, 5*time.Millisecond)

	one.Kill()
	p.SetTarget(one.Addr()) // a client of a server that is down sees its connection close
	p.Cut()
	require.Eventually(t, func() bool { return rdb.Ping(t.Context()).Err() != nil }, 20*time.Second, 5*time.Millisecond)
}

func TestProxyClosesInAnyState(t *testing.T) {
	target := echo(t)
	for name, set := range map[string]func(*redistest.Proxy){
		"plain":      func(*redistest.Proxy) {},
		"black hole": func(p *redistest.Proxy) { p.BlackHole(true) },
		"delay":      func(p *redistest.Proxy) { p.Delay(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			p, err := redistest.StartProxy(target)
			require.NoError(t, err)
			var using sync.WaitGroup
			for range 5 {
				conn, err := net.Dial("tcp", p.Addr())
				require.NoError(t, err)
				using.Go(func() { _, _ = io.Copy(io.Discard, conn) })
				using.Go(func() {
					for {
						if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
							_ = conn.Close()
							return
						}
					}
				})
			}
			require.Eventually(t, func() bool { return p.Stats().Requests > 10 }, 20*time.Second, time.Millisecond)
			set(p)
			cut := p.CutAfter(func([]byte) bool { return false })
			require.NoError(t, p.Close())
			require.NoError(t, p.Close())
			using.Wait()
			require.Zero(t, p.Stats().Open)
			require.Zero(t, len(cut))
		})
	}
}

func TestProxyTellsABadTarget(t *testing.T) {
	_, err := redistest.StartProxy("nowhere")
	require.ErrorContains(t, err, `target is "nowhere", want host:port`)
}

// echo returns the address of a server that sends back what it gets.
func echo(t *testing.T) string {
	return listen(t, func(conn net.Conn) { _, _ = io.Copy(conn, conn) })
}

// listen returns the address of a server, which the test's end closes.
func listen(t *testing.T, serve func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer func() { _ = conn.Close() }()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	return l.Addr().String()
}
