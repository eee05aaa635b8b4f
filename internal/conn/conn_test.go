package conn

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/stats"
	"github.com/redisha/redisha/internal/testserver"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func parse(t *testing.T, url string) endpoint.Endpoint {
	t.Helper()
	ep, err := endpoint.Parse(url)
	require.NoError(t, err)
	return ep
}

func open(t *testing.T, cfg Config) *Client {
	t.Helper()
	if cfg.Role == "" {
		cfg.Role = "cache"
	}
	c, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// inMemory returns a client of a server in memory.
func inMemory(t *testing.T, cfg Config) (*Client, *testserver.Server) {
	t.Helper()
	srv := testserver.New(t)
	if cfg.Endpoint.Addrs == nil {
		cfg.Endpoint = parse(t, "redis://127.0.0.1:6379?pool_size=1024")
	}
	cfg.Dialer = srv.Dial
	return open(t, cfg), srv
}

func TestConnectionsAreNamedAfterRoleAndApplication(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	c := open(t, Config{Role: "broker", Application: "shop", Endpoint: parse(t, srv.URL())})
	name, err := c.ClientGetName(t.Context()).Result()
	require.NoError(t, err)
	require.Equal(t, "redisha:broker:shop", name)
}

func TestCommandsAreCountedByFamilyAndClass(t *testing.T) {
	c, srv := inMemory(t, Config{})
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	require.ErrorIs(t, c.Get(ctx, "absent").Err(), redis.Nil)
	require.Error(t, c.LPush(ctx, "k", 1).Err()) // WRONGTYPE
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.LPush(ctx, "k", 1); return nil })
	require.Error(t, err)
	_, err = c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.Get(ctx, "k"); return nil })
	require.NoError(t, err)
	require.NoError(t, c.XGroupCreateMkStream(ctx, "s", "g", "0").Err())
	_ = c.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{"s", ">"}, Block: time.Millisecond})
	_ = c.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "g", Consumer: "block", Streams: []string{"s", ">"}, Block: -1})
	_ = c.XRead(ctx, &redis.XReadArgs{Streams: []string{"s", "0"}, Block: -1})
	require.NoError(t, c.Eval(ctx, "return 1", nil).Err())
	require.NoError(t, c.Echo(ctx, "x").Err())
	srv.SetError("OOM command not allowed when used memory > 'maxmemory'.")
	require.Error(t, c.Set(ctx, "k", "v", 0).Err())
	srv.SetError("")
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	require.Error(t, c.Get(canceled, "k").Err())

	s := c.Stats()
	counts := map[string]uint64{}
	for _, l := range s.Commands.Latency {
		counts[l.Family] = l.Count
	}
	require.Equal(t, map[string]uint64{
		"read": 3, "write": 5, "script": 1, "blocking": 1, "pipeline": 1, "transaction": 1, "other": 1,
	}, counts)
	require.EqualValues(t, 4, s.Commands.Pipelined, "MULTI and EXEC are none of the caller's")
	failures := map[string]uint64{}
	for _, e := range s.Commands.Errors {
		if e.Count > 0 {
			failures[e.Class] = e.Count
		}
	}
	require.Equal(t, map[string]uint64{"reply": 2, "out_of_memory": 1, "canceled": 1}, failures)
	require.EqualValues(t, 1, s.Dials)
	require.Equal(t, 1, s.Pool.Total)
	require.Equal(t, 1024, s.Pool.MaxTotal)
	require.Equal(t, "standalone", s.Topology)
	require.Equal(t, "closed", s.Breaker.State)
}

func TestErrorsAreClassified(t *testing.T) {
	ctx := t.Context()
	late, cancel := context.WithDeadline(ctx, time.Now())
	defer cancel()
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		err  error
		want stats.ErrorClass
	}{
		{canceled, io.EOF, stats.Canceled},
		{ctx, context.Canceled, stats.Canceled},
		{late, &net.OpError{Op: "read", Err: errors.New("i/o timeout")}, stats.Deadline},
		{ctx, context.DeadlineExceeded, stats.Deadline},
		{ctx, &breaker.OpenError{}, stats.BreakerOpen},
		{ctx, fmt.Errorf("x: %w", ErrNotConfigured), stats.Closed},
		{ctx, ErrClosed, stats.Closed},
		{ctx, redis.ErrPoolTimeout, stats.PoolTimeout},
		{ctx, &net.OpError{Op: "dial", Err: errors.New("refused")}, stats.Dial},
		{ctx, &net.DNSError{Err: "no such host"}, stats.Dial},
		{ctx, &net.OpError{Op: "read", Err: errTimeout{}}, stats.Timeout},
		{ctx, io.EOF, stats.Network},
		{ctx, errors.New("anything"), stats.Network},
		{ctx, reply("WRONGPASS invalid"), stats.Auth},
		{ctx, reply("LOADING"), stats.Unavailable},
		{ctx, reply("ERR max number of clients reached"), stats.Unavailable},
		{ctx, reply("READONLY You can't write"), stats.ReadOnly},
		{ctx, reply("OOM command"), stats.OutOfMemory},
		{ctx, reply("WRONGTYPE"), stats.Reply},
	} {
		class, failed := classify(c.ctx, c.err)
		require.True(t, failed, "%v", c.err)
		require.Equal(t, c.want, class, "%v", c.err)
	}
	_, failed := classify(ctx, redis.Nil)
	require.False(t, failed)
	_, failed = classify(ctx, nil)
	require.False(t, failed)
}

type reply string

func (r reply) Error() string { return string(r) }
func (r reply) RedisError()   {}

type errTimeout struct{}

func (errTimeout) Error() string { return "i/o timeout" }
func (errTimeout) Timeout() bool { return true }

func TestNilContextIsAnError(t *testing.T) {
	c, _ := inMemory(t, Config{})
	var none context.Context
	require.ErrorContains(t, c.Get(none, "k").Err(), "nil context: pass context.Background()")
	_, err := c.Pipelined(none, func(p redis.Pipeliner) error { p.Get(none, "k"); return nil })
	require.ErrorContains(t, err, "nil context")
	require.ErrorContains(t, c.Check(none), "nil context")
}

func TestDrainWaitsForCommandsUnderWayAndRefusesNewOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := inMemory(t, Config{})
		ctx := t.Context()
		popped := make(chan error, 1)
		go func() { popped <- c.BLPop(ctx, 3*time.Second, "list").Err() }()
		synctest.Wait()
		start := time.Now()
		drained := make(chan error, 1)
		go func() { drained <- c.Drain(ctx) }()
		synctest.Wait()
		require.ErrorIs(t, c.Get(ctx, "k").Err(), ErrClosed)
		_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); return nil })
		require.ErrorIs(t, err, ErrClosed)
		require.ErrorIs(t, c.Err(), ErrClosed)
		require.NoError(t, <-drained)
		require.Equal(t, 3*time.Second, time.Since(start))
		require.ErrorIs(t, <-popped, redis.Nil, "the command under way has its answer")
		require.NoError(t, c.Drain(ctx))
		require.NoError(t, c.Close())
	})
}

func TestDrainGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := inMemory(t, Config{})
		popped := make(chan error, 1)
		go func() { popped <- c.BLPop(t.Context(), 0, "list").Err() }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := c.Drain(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "1 commands still under way")
		require.Error(t, <-popped)
	})
}

func TestManyCommandsAndOneDrain(t *testing.T) {
	c, _ := inMemory(t, Config{})
	var commands sync.WaitGroup
	for range 64 {
		commands.Go(func() {
			for {
				if err := c.Set(context.Background(), "k", "v", 0).Err(); err != nil {
					require.ErrorIs(t, err, ErrClosed)
					return
				}
			}
		})
	}
	require.Eventually(t, func() bool { return c.Stats().Commands.Total() > 100 }, 30*time.Second, time.Millisecond)
	require.NoError(t, c.Drain(t.Context()))
	commands.Wait()
}

func TestARoleWithoutEndpointSaysWhyInEveryCall(t *testing.T) {
	reason := fmt.Errorf("%w: set REDISHA_CACHE_URL", ErrNotConfigured)
	c := Closed("cache", reason)
	defer func() { require.NoError(t, c.Close()) }()
	ctx := t.Context()
	require.ErrorIs(t, c.Err(), ErrNotConfigured)
	require.Equal(t, reason, c.Get(ctx, "k").Err())
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); return nil })
	require.Equal(t, reason, err)
	require.Equal(t, reason, c.Check(ctx))
	sub := c.Subscribe(ctx, "channel")
	_, err = sub.Receive(ctx)
	require.ErrorIs(t, err, ErrNotConfigured)
	require.NoError(t, sub.Close())
	require.Equal(t, "cache", c.Role())
	require.False(t, c.Stats().Configured)
}

func TestOfKnowsWhatATypeShows(t *testing.T) {
	own, _ := inMemory(t, Config{})
	c, err := Of(own)
	require.NoError(t, err)
	require.Same(t, own, c)
	require.True(t, c.Own())

	_, err = Of(nil)
	require.ErrorContains(t, err, "nil client")
	for _, none := range []redis.UniversalClient{(*Client)(nil), (*redis.Client)(nil), (*redis.ClusterClient)(nil)} {
		_, err = Of(none)
		require.ErrorContains(t, err, "nil client")
	}
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}})
	defer ring.Close()
	_, err = Of(ring)
	require.ErrorContains(t, err, "redis.ClusterClient")

	sentinel := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "m", SentinelAddrs: []string{"127.0.0.1:1"}})
	defer sentinel.Close()
	c, err = Of(sentinel)
	require.NoError(t, err)
	require.Equal(t, endpoint.Sentinel, c.Topology())

	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}})
	defer cluster.Close()
	c, err = Of(cluster)
	require.NoError(t, err)
	require.Equal(t, endpoint.Cluster, c.Topology())
	_, err = c.Node(t.Context(), "k")
	require.ErrorContains(t, err, "node of a key: ")

	srv := testserver.New(t)
	plain := srv.Client(t)
	c, err = Of(plain)
	require.NoError(t, err)
	require.False(t, c.Own())
	require.Same(t, plain, c.Unwrap())
	require.NoError(t, c.Check(t.Context()))
	node, err := c.Node(t.Context(), "k")
	require.NoError(t, err)
	require.NoError(t, node.Set(t.Context(), "k", "v", 0).Err())
	visited := 0
	require.NoError(t, c.EachPrimary(t.Context(), func(ctx context.Context, rdb redis.UniversalClient) error {
		visited++
		return rdb.Ping(ctx).Err()
	}))
	require.Equal(t, 1, visited)
	require.NoError(t, c.Close())
	require.NoError(t, plain.Ping(t.Context()).Err(), "Close leaves a foreign client open")
	require.ErrorIs(t, c.Err(), ErrClosed)
	require.False(t, c.Stats().Breaker.Enabled)
	require.True(t, c.Stats().Configured, "it has an endpoint, closed or not")
	require.Zero(t, c.Epoch())
	c.OnEpoch(func(uint64) { t.Error("a foreign client has no epochs") })()
	require.Same(t, c, c.Reader())
	require.NotNil(t, c.Logger())
}

func TestACutReplyIsNotAskedForTwice(t *testing.T) {
	srv := testserver.New(t)
	c := open(t, Config{
		Endpoint: parse(t, "redis://127.0.0.1:6379"),
		Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := srv.Dial(ctx, network, addr)
			return &cutAfter{Conn: nc, command: "incr"}, err
		},
	})
	require.ErrorIs(t, c.Incr(t.Context(), "n").Err(), ErrOutcomeUnknown)
	value, err := srv.Get("n")
	require.NoError(t, err)
	require.Equal(t, "1", value)
}

// cutAfter hangs up once a command has been written and its effect has had time.
type cutAfter struct {
	net.Conn
	command string
	cut     bool
}

func (c *cutAfter) Write(p []byte) (int, error) {
	c.cut = c.cut || strings.Contains(string(p), c.command)
	return c.Conn.Write(p)
}

func (c *cutAfter) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.cut {
		_ = c.Close()
		return 0, io.EOF
	}
	return n, err
}

func TestTheBreakerRefusesOnceTheServerIsDown(t *testing.T) {
	var log strings.Builder
	changes := 0
	c, srv := inMemory(t, Config{
		Role:     "locks",
		Breaker:  breaker.Config{OpenFor: time.Hour, OnStateChange: func(breaker.Change) { changes++ }},
		FailFast: true,
		Logger:   slog.New(slog.NewTextHandler(&log, nil)),
	})
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	srv.Stop()
	require.Eventually(t, func() bool {
		return errors.Is(c.Get(t.Context(), "k").Err(), breaker.ErrOpen)
	}, 30*time.Second, time.Millisecond)
	s := c.Stats()
	require.Equal(t, "open", s.Breaker.State)
	require.Equal(t, 1, changes, "the program's own function is called too")
	require.Contains(t, log.String(), `level=WARN msg="circuit breaker open" role=locks addr=127.0.0.1:6379 writes_only=false err=`)
	require.NotZero(t, s.Breaker.Rejected)
	require.NotZero(t, s.DialErrors)
	require.NotErrorIs(t, c.Check(t.Context()), breaker.ErrOpen, "a check asks the server itself")
	require.NoError(t, srv.Restart())
	require.NoError(t, c.Check(t.Context()))
}

func TestTheBreakerCanBeTurnedOff(t *testing.T) {
	for _, cfg := range []Config{
		{Endpoint: parse(t, "redis://127.0.0.1:6379?breaker=off")},
		{Breaker: breaker.Config{Disabled: true}},
	} {
		c, _ := inMemory(t, cfg)
		require.False(t, c.Stats().Breaker.Enabled)
		require.NoError(t, c.Ping(t.Context()).Err())
	}
}

func TestWhatTheURLSaysGoesBeforeTheProgram(t *testing.T) {
	cfg := Config{
		Role:     "cache",
		Endpoint: parse(t, "redis://127.0.0.1:6379/2?pool_size=7&min_idle_conns=1&pool_timeout=3s&protocol=2&client_name=me&read_timeout=4s"),
		Pool:     Pool{MaxTotal: 9, MaxIdle: 5, MaxWait: time.Second},
	}.withDefaults()
	opt := cfg.options()
	require.Equal(t, 7, opt.PoolSize)
	require.Equal(t, 5, opt.MaxIdleConns)
	require.Equal(t, 1, opt.MinIdleConns)
	require.Equal(t, 3*time.Second, opt.PoolTimeout)
	require.Equal(t, time.Minute, opt.ConnMaxIdleTime)
	require.Equal(t, 4*time.Second, opt.ReadTimeout)
	require.Equal(t, 4*time.Second, opt.WriteTimeout)
	require.Equal(t, 2, opt.Protocol)
	require.Equal(t, 2, opt.DB)
	require.Equal(t, -1, opt.MaxRetries)
	require.Equal(t, "me", cfg.Endpoint.ClientName)
	require.Equal(t, 7, Config{Endpoint: parse(t, "redis://h?pool_size=7")}.withDefaults().Pool.MaxIdle)
}

func TestMistakesInTheConfigurationAreNamed(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Pool: Pool{MaxTotal: -1}}, "Pool.MaxTotal is -1, want at least 1"},
		{Config{Pool: Pool{MinIdle: 101}}, "Pool.MinIdle is 101, want 0 to Pool.MaxTotal (100)"},
		{Config{Pool: Pool{MinIdle: 5, MaxIdle: 4}}, "Pool.MaxIdle is 4, want at least Pool.MinIdle (5)"},
		{Config{Pool: Pool{MaxWait: -1}}, "Pool.MaxWait is -1ns"},
		{Config{Breaker: breaker.Config{FailureRatio: 2}}, "FailureRatio is 2"},
		{Config{Endpoint: parse(t, "rediss://h1?tls_ca=/no/such/file")}, "tls_ca: open /no/such/file: no such file"},
		{Config{Endpoint: parse(t, "rediss://h1?tls_cert=/no/such/file&tls_key=/no/such/key")}, "tls_cert, tls_key: open /no/such/file"},
		{Config{Endpoint: parse(t, "rediss://h1?tls_ca=conn_test.go")}, "conn_test.go holds no PEM certificate"},
	} {
		if c.cfg.Endpoint.Addrs == nil {
			c.cfg.Endpoint = parse(t, "redis://127.0.0.1:6379")
		}
		_, err := New(c.cfg)
		require.ErrorContains(t, err, c.want)
	}
}

func TestAnACLMayForbidAllThatIsNotNeeded(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Users: []string{"reader on >secret ~* -@all +get"}})
	c := open(t, Config{Endpoint: parse(t, "redis://reader:secret@"+srv.Addr()), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, c.Check(t.Context()), "neither HELLO, ROLE, PING nor CLIENT SETNAME are allowed")
	require.ErrorIs(t, c.Get(t.Context(), "k").Err(), redis.Nil)
}

func TestCheckSaysWhatIsWrong(t *testing.T) {
	plain := redistest.New(t, redistest.Config{Password: "right"})
	open_ := redistest.New(t, redistest.Config{})
	secure := redistest.New(t, redistest.Config{TLS: &redistest.TLS{}})
	expired := redistest.New(t, redistest.Config{TLS: &redistest.TLS{Expired: true}})
	named := redistest.New(t, redistest.Config{TLS: &redistest.TLS{Names: []string{"redis.example"}}})
	sentinel := redistest.NewSentinel(t, "mymaster", open_)
	replica := redistest.New(t, redistest.Config{Lines: []string{"replicaof 127.0.0.1 " + fmt.Sprint(open_.Port())}})
	silent := listen(t, func(nc net.Conn) { _, _ = io.Copy(io.Discard, nc) })
	web := listen(t, func(nc net.Conn) {
		_, _ = bufio.NewReader(nc).ReadString('\n')
		_, _ = io.WriteString(nc, "HTTP/1.1 400 Bad Request\r\n\r\n")
	})
	banner := listen(t, func(nc net.Conn) { _, _ = io.WriteString(nc, "SSH-2.0-OpenSSH_9.2\r\n") })
	hangup := listen(t, func(net.Conn) {})
	ca := func(s *redistest.Server) string { return "&tls_ca=" + s.Certs().CAFile }

	for name, c := range map[string]struct{ url, want string }{
		"a wrong password":          {"redis://:wrong@" + plain.Addr(), "authentication failed: check user and password"},
		"a wrong user":              {"redis://nobody:right@" + plain.Addr(), "authentication failed: check user and password"},
		"no password":               {"redis://" + plain.Addr(), "authentication failed: check user and password"},
		"a Sentinel":                {"redis://" + sentinel.Addr(), "this is a Sentinel, not a Redis server: use redis+sentinel://"},
		"a Sentinel and a database": {"redis://" + sentinel.Addr() + "/3", "this is a Sentinel, not a Redis server: use redis+sentinel://"},
		"a replica":                 {"redis://" + replica.Addr(), "this is a replica, which refuses writes: use its primary, 127.0.0.1:" + fmt.Sprint(open_.Port())},
		"a missing database":        {"redis://" + open_.Addr() + "/99", "the server has fewer databases"},
		"nothing there":             {"redis://" + closedAddr, "does the server run"},
		"no such socket":            {"unix:///no/such/socket", "does the server run"},
		"no such host":              {"redis://no-such-host.invalid", "is the host name right?"},
		"silence":                   {"redis://" + silent + "?read_timeout=100ms", "nothing answers there"},
		"silence, in TLS":           {"rediss://" + silent + "?dial_timeout=100ms", "nothing answers in TLS there"},
		"a web server":              {"redis://" + web, "the answer is not Redis'"},
		"a hang-up":                 {"redis://" + hangup, "the server hung up"},
		"plain where TLS is":        {"redis://" + secure.Addr(), "does the port want TLS (rediss://)?"},
		"TLS where SSH is":          {"rediss://" + banner, "the server does not speak TLS there"},
		"TLS where plain is":        {"rediss://" + open_.Addr() + "?dial_timeout=100ms", "does the port speak TLS (else redis://)?"},
		"an unknown CA":             {"rediss://" + secure.Addr() + "?tls_ca=" + secure.Certs().OtherCAFile, "name it with tls_ca"},
		"another name":              {"rediss://" + named.Addr() + "?x" + ca(named), "set tls_server_name"},
		"an expired certificate":    {"rediss://" + expired.Addr() + "?x" + ca(expired), "the server's certificate has expired"},
	} {
		t.Run(name, func(t *testing.T) {
			url := strings.Replace(strings.Replace(c.url, "?x&", "?", 1), "?x", "", 1)
			rdb := open(t, Config{Endpoint: parse(t, url)})
			start := time.Now()
			err := rdb.Check(t.Context())
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "wrong@")
			require.NotContains(t, err.Error(), "right@")
			require.Less(t, time.Since(start), 30*time.Second)
			t.Log(err)
		})
	}

	rdb := open(t, Config{Endpoint: parse(t, "rediss://"+named.Addr()+"?tls_server_name=redis.example"+ca(named))})
	require.NoError(t, rdb.Check(t.Context()))
	rdb = open(t, Config{Endpoint: parse(t, "rediss://"+named.Addr()+"?skip_verify=true")})
	require.NoError(t, rdb.Check(t.Context()))
	rdb = open(t, Config{Endpoint: parse(t, "rediss://"+secure.Addr()), TLS: secure.Certs().ClientConfig()})
	require.NoError(t, rdb.Check(t.Context()))
}

// listen serves connections by handle, and closes them when it returns.
func listen(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { defer nc.Close(); handle(nc) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return l.Addr().String()
}

// closedAddr is an address where nobody listens: the system gives its port to
// nobody, as it may do with one that was free a moment ago.
const closedAddr = "127.0.0.1:1"

func TestClientsUseSocketsUsersAndClientCertificates(t *testing.T) {
	srv := redistest.New(t, redistest.Config{
		UnixSocket: true,
		Users:      []string{"app on >pa:ss/w@rd ~* +@all"},
	})
	c := open(t, Config{Endpoint: parse(t, "unix://app:pa%3Ass%2Fw%40rd@"+srv.Socket()+"?db=2")})
	require.NoError(t, c.Check(t.Context()))
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	keys, err := srv.Client(t).Do(t.Context(), "dbsize").Int()
	require.NoError(t, err)
	require.Zero(t, keys, "it wrote to database 2")

	c = open(t, Config{
		Endpoint:    parse(t, "redis://"+srv.Addr()),
		Credentials: func(context.Context) (string, string, error) { return "app", "pa:ss/w@rd", nil },
	})
	who, err := c.Do(t.Context(), "acl", "whoami").Text()
	require.NoError(t, err)
	require.Equal(t, "app", who)

	mutual := redistest.New(t, redistest.Config{TLS: &redistest.TLS{RequireClientCert: true}})
	certs := mutual.Certs()
	c = open(t, Config{Endpoint: parse(t, "rediss://"+mutual.Addr()+"?tls_ca="+certs.CAFile+"&tls_cert="+certs.ClientCertFile+"&tls_key="+certs.ClientKeyFile)})
	require.NoError(t, c.Check(t.Context()))
	c = open(t, Config{Endpoint: parse(t, "rediss://"+mutual.Addr()+"?tls_ca="+certs.CAFile)})
	require.Error(t, c.Check(t.Context()))
}

func TestACallersDeadlineEndsCheck(t *testing.T) {
	addr := listen(t, func(nc net.Conn) { _, _ = io.Copy(io.Discard, nc) })
	c := open(t, Config{Endpoint: parse(t, "redis://"+addr+"?read_timeout=60s")})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	require.Error(t, c.Check(ctx))
	require.Less(t, time.Since(start), 20*time.Second, "not the read timeout of a minute")
}

func TestTheHookAllocatesNothing(t *testing.T) {
	c, _ := inMemory(t, Config{})
	ctx := t.Context()
	cmd := redis.NewStringCmd(ctx, "get", "k")
	process := hook{c}.ProcessHook(func(context.Context, redis.Cmder) error { return nil })
	require.Zero(t, testing.AllocsPerRun(1000, func() { _ = process(ctx, cmd) }))
}

func BenchmarkHook(b *testing.B) {
	c := Closed("cache", nil)
	defer c.Close()
	ctx := b.Context()
	cmd := redis.NewStringCmd(ctx, "get", "k")
	process := hook{c}.ProcessHook(func(context.Context, redis.Cmder) error { return nil })
	for b.Loop() {
		_ = process(ctx, cmd)
	}
}
