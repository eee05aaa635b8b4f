package conn

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestATransactionOfUnknownOutcomeCountsItsOwnCommands(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	n := newNetwork(t)
	c := open(t, Config{Role: "broker", Endpoint: parse(t, srv.URL()), Dialer: n.dial, Logger: quiet()})
	ctx := t.Context()
	require.NoError(t, c.Ping(ctx).Err())
	hit := n.proxy(srv.Addr()).CutAfter(func(r []byte) bool { return bytes.Contains(r, []byte("exec")) })
	_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
	<-hit
	require.ErrorIs(t, err, ErrOutcomeUnknown)
	require.EqualValues(t, 1, c.Stats().OutcomeUnknown, "MULTI and EXEC are none of the caller's")
}

func TestAPrimaryThatTakesNoFurtherClientIsUsable(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rep := redistest.NewReplica(t, srv, redistest.Config{})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis+replica://"+srv.Addr()+","+rep.Addr()+"?pool_size=1&pool_timeout=100ms"), Logger: quiet()})
	ctx := t.Context()
	admin := srv.Client(t)
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	time.Sleep(1500 * time.Millisecond)
	var n int
	fmt.Sscanf(admin.InfoMap(ctx, "clients").Val()["Clients"]["connected_clients"], "%d", &n)
	require.NoError(t, admin.ConfigSet(ctx, "maxclients", fmt.Sprint(n+1)).Err()) // + the replica link does not count
	var held []*redis.Conn
	for range 5 { // others take what is left
		o := *srv.Options()
		o.MaxRetries = -1
		x := redis.NewClient(&o)
		defer x.Close()
		h := x.Conn()
		if h.Ping(ctx).Err() == nil {
			held = append(held, h)
		}
	}
	go c.BLPop(ctx, time.Second, "none")
	time.Sleep(50 * time.Millisecond)
	short, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	start := time.Now()
	err := c.Get(short, "k").Err()
	t.Log("crowded one:", err, time.Since(start), "held", len(held))
	require.Less(t, time.Since(start), 20*time.Second)
	require.Eventually(t, func() bool { return !c.Stats().Primary.Down }, 20*time.Second, 10*time.Millisecond, "the pool's connection is healthy and idle")
}

func TestTheCauseOfAContextAndItsEndAreBothInTheError(t *testing.T) {
	c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis+replica://127.0.0.1:1,127.0.0.1:2"), Logger: quiet()})
	ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, cause{})
	defer cancel()
	err := c.Get(ctx, "k").Err()
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, cause{})
}

func TestAWrongPasswordIsSeenBehindABarrier(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rep := redistest.NewReplica(t, srv, redistest.Config{})
	n := newNetwork(t)
	c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis+replica://"+srv.Addr()+","+rep.Addr()), Dialer: n.dial, Logger: quiet()})
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	admin := srv.Client(t)
	admin.Ping(ctx)
	p := n.proxy(srv.Addr())
	p.Refuse(true)
	p.Cut()
	x, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	t.Log(c.Get(x, "k").Err())
	stop()
	require.NoError(t, admin.ConfigSet(ctx, "requirepass", "new").Err())
	p.Refuse(false)
	short, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	start := time.Now()
	err := c.Get(short, "k").Err()
	t.Log(err, "down", c.Stats().Primary.Down, time.Since(start))
	require.ErrorContains(t, err, "NOAUTH")
}

func TestCloseEndsAProbeThatHangs(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rep := redistest.NewReplica(t, srv, redistest.Config{})
	c, err := New(Config{Role: "broker", Endpoint: parse(t, "redis+replica://"+srv.Addr()+","+rep.Addr()+"?dial_timeout=60s"), Logger: quiet()})
	require.NoError(t, err)
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	require.NoError(t, srv.Pause())
	go c.Get(ctx, "k")
	require.Eventually(t, func() bool { return c.Stats().Primary.Down }, 30*time.Second, time.Millisecond)
	time.Sleep(200 * time.Millisecond)
	start := time.Now()
	t.Log(c.Close(), time.Since(start))
	require.Less(t, time.Since(start), 20*time.Second, "not the minute that it may take to connect")
}

func TestClientUnblockUnblocks(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, srv.URL()), Logger: quiet()})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.BLPop(ctx, time.Minute, "none").Err() }()
	admin := srv.Client(t)
	unblocked := 0
	require.Eventually(t, func() bool {
		list := admin.Do(ctx, "client", "list", "type", "normal").String()
		for line := range strings.Lines(list) {
			if i := strings.Index(line, "id="); i >= 0 && strings.Contains(line, "cmd=blpop") {
				id := strings.Fields(line[i+3:])[0]
				if admin.Do(ctx, "client", "unblock", id, "error").Val() == int64(1) {
					unblocked++
				}
			}
		}
		return len(done) > 0
	}, 30*time.Second, 20*time.Millisecond, "still blocked")
	require.ErrorContains(t, <-done, "UNBLOCKED client unblocked via CLIENT UNBLOCK")
	require.Equal(t, 1, unblocked, "it is not sent again")
}

func TestRetiringIdleConnectionsCutsNothing(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, srv.URL()+"?pool_size=16"), Logger: quiet()})
	ctx := t.Context()
	srv.Client(t).Del(ctx, "l")
	var ok, unknown, other atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				switch err := c.RPush(ctx, "l", "x").Err(); {
				case err == nil:
					ok.Add(1)
				case errors.Is(err, ErrOutcomeUnknown):
					unknown.Add(1)
				default:
					other.Add(1)
				}
			}
		})
	}
	for range 300 {
		time.Sleep(5 * time.Millisecond)
		c.registry.retireIdle(c.registry.gen.Load())
	}
	close(stop)
	wg.Wait()
	require.Zero(t, other.Load())
	require.Zero(t, unknown.Load())
}

func TestAServerThatQuotesThePasswordIsCutShort(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Lines: []string{`rename-command AUTH ""`, `rename-command HELLO ""`}})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis://:geheim@"+srv.Addr()), Logger: quiet()})
	err := c.Check(t.Context())
	t.Log(err)
	require.NotContains(t, err.Error(), "geheim")
}

func TestGarbageIsNoReply(t *testing.T) {
	addr := listen(t, func(nc net.Conn) {
		r := bufio.NewReader(nc)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			switch strings.ToLower(strings.TrimSpace(line)) {
			case "hello", "setinfo", "setname", "role":
				fmt.Fprint(nc, "-ERR unknown command\r\n")
			case "incr":
				fmt.Fprint(nc, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
			}
		}
	})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis://"+addr), Logger: quiet()})
	x, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	err := c.Incr(x, "n").Err()
	require.ErrorIs(t, err, ErrOutcomeUnknown)
}

func TestAClusterFarAwayIsReached(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Proxied: true})
	for _, n := range cluster.Nodes {
		cluster.Proxy(n).Delay(65 * time.Millisecond) // each way
	}
	c := open(t, Config{Role: "broker", Endpoint: parse(t, cluster.URL()), Logger: quiet()})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, c.Incr(ctx, "n").Err())
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	require.Zero(t, c.Stats().OutcomeUnknown)
}

func TestAWatchedTransactionIsNotRepeated(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, srv.URL())})
	admin := srv.Client(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	admin.Set(ctx, "k", "1", 0)
	err := c.Watch(ctx, func(tx *redis.Tx) error {
		tx.Get(ctx, "k")
		admin.Set(ctx, "k", "other", 0) // somebody else
		admin.ConfigSet(ctx, "min-replicas-to-write", "1")
		time.AfterFunc(300*time.Millisecond, func() { admin.ConfigSet(ctx, "min-replicas-to-write", "0") })
		_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Set(ctx, "k", "mine", 0); return nil })
		return err
	}, "k")
	require.Error(t, err)
	require.Zero(t, c.Stats().Repeats)
	require.Equal(t, "other", admin.Get(ctx, "k").Val())
}

func TestANewClusterClientWaitsForItsNodes(t *testing.T) {
	c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis+cluster://"+closedAddr)})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	start := time.Now()
	err := c.Set(ctx, "k", "v", 0).Err()
	t.Log(time.Since(start), err)
	require.Greater(t, time.Since(start), 2900*time.Millisecond)
}

func TestAnACLWithoutPINGDoesNotShutTheBarrier(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Users: []string{"app on >secret ~* -@all +@read +@write"}})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis+replica://app:secret@"+srv.Addr()+",127.0.0.1:1")})
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	srv.Kill()
	time.AfterFunc(200*time.Millisecond, func() { srv.Restart(context.Background()) })
	short, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	start := time.Now()
	err := c.Set(short, "k", "v", 0).Err()
	t.Log(time.Since(start), err)
	t.Logf("%+v", c.Stats().Primary)
	require.NoError(t, err)
}

func TestAPipelineThatBeginsWithAHandshakeCommandIsAPipeline(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	n := newNetwork(t)
	c := open(t, Config{Role: "broker", Endpoint: parse(t, srv.URL()), Dialer: n.dial})
	ctx := t.Context()
	require.NoError(t, c.Ping(ctx).Err())
	hit := n.proxy(srv.Addr()).CutAfter(func(r []byte) bool { return bytes.Contains(r, []byte("incr")) })
	cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Do(ctx, "client", "id"); p.Incr(ctx, "n"); return nil })
	<-hit
	require.ErrorIs(t, cmds[1].Err(), ErrOutcomeUnknown)
	require.ErrorIs(t, err, ErrOutcomeUnknown)
}

func TestDrainWaitsForReadsOfReplicas(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	replica := redistest.NewReplica(t, primary, redistest.Config{})
	n := newNetwork(t)
	c, err := New(Config{Role: "cache", Endpoint: parse(t, "redis+replica://"+primary.Addr()+","+replica.Addr()+"?read_from=replica"), Dialer: n.dial})
	require.NoError(t, err)
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	require.Eventually(t, func() bool { return c.Reader().Get(ctx, "k").Err() == nil }, 20*time.Second, 50*time.Millisecond)
	p := n.proxy(replica.Addr())
	p.Delay(500 * time.Millisecond)
	seen := p.Stats().Requests
	done := make(chan error, 1)
	go func() { done <- c.Reader().Get(ctx, "k").Err() }()
	require.Eventually(t, func() bool { return p.Stats().Requests > seen }, 20*time.Second, time.Millisecond)
	dctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	require.NoError(t, c.Drain(dctx))
	require.NoError(t, <-done)
}

func TestRetiringIdleConnectionsSparesWhoWrites(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	var d net.Dialer
	began, go_ := make(chan struct{}), make(chan struct{})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, srv.URL()), Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &slowWrite{nc, began, go_}, nil
	}})
	ctx := t.Context()
	done := make(chan error, 1)
	go func() { done <- c.RPush(ctx, "l", "x").Err() }()
	<-began
	c.registry.retireIdle(c.registry.gen.Load()) // as after a read timeout of another command
	close(go_)
	require.NoError(t, <-done)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

type slowWrite struct {
	net.Conn
	began chan struct{}
	go_   chan struct{}
}

func (s *slowWrite) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("rpush")) {
		close(s.began)
		n, err := s.Conn.Write(p)
		<-s.go_
		return n, err
	}
	return s.Conn.Write(p)
}

type cause struct{}

func (cause) Error() string { return "my cause" }
