package redistest_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestPlainServerAnswers(t *testing.T) {
	s := redistest.New(t, redistest.Config{})
	rdb := s.Client(t)
	require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
	require.Equal(t, s.Version(), rdb.InfoMap(t.Context(), "server").Val()["Server"]["redis_version"])
	require.Equal(t, "", rdb.ConfigGet(t.Context(), "save").Val()["save"])
	opts, err := redis.ParseURL(s.URL())
	require.NoError(t, err)
	require.Equal(t, s.Addr(), opts.Addr)
	require.Empty(t, s.Socket())
	require.Nil(t, s.Certs())
	require.Contains(t, s.Log(), "Ready to accept connections")
}

func TestServerAsksForItsPassword(t *testing.T) {
	s := redistest.New(t, redistest.Config{
		Password: `p"w\d`,
		Users:    []string{"alice on >secret ~cache:* +@all"},
	})
	require.NoError(t, s.Client(t).Ping(t.Context()).Err())
	opts, err := redis.ParseURL(s.URL())
	require.NoError(t, err)
	require.Equal(t, `p"w\d`, opts.Password)

	connect := func(user, password string) *redis.Client {
		rdb := redis.NewClient(&redis.Options{Addr: s.Addr(), Username: user, Password: password})
		t.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	require.ErrorContains(t, connect("", "").Ping(t.Context()).Err(), "NOAUTH")
	require.ErrorContains(t, connect("", "wrong").Ping(t.Context()).Err(), "WRONGPASS")
	alice := connect("alice", "secret")
	require.NoError(t, alice.Set(t.Context(), "cache:k", "v", 0).Err())
	require.ErrorContains(t, alice.Set(t.Context(), "k", "v", 0).Err(), "NOPERM")
}

func TestServerSpeaksTLS(t *testing.T) {
	s := redistest.New(t, redistest.Config{TLS: &redistest.TLS{RequireClientCert: true}})
	require.NoError(t, s.Client(t).Ping(t.Context()).Err())
	require.True(t, strings.HasPrefix(s.URL(), "rediss://"))

	ping := func(change func(*tls.Config)) error {
		opts := s.Options()
		opts.MaxRetries, opts.DialerRetries = -1, 1
		change(opts.TLSConfig)
		rdb := redis.NewClient(opts)
		defer func() { _ = rdb.Close() }()
		return rdb.Ping(t.Context()).Err()
	}
	require.NoError(t, ping(func(c *tls.Config) { c.ServerName = "localhost" }))
	require.ErrorContains(t, ping(func(c *tls.Config) { c.Certificates = nil }), "certificate required")
	var wrongName x509.HostnameError
	require.ErrorAs(t, ping(func(c *tls.Config) { c.ServerName = "redis.example" }), &wrongName)
	other, err := os.ReadFile(s.Certs().OtherCAFile)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(other))
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, ping(func(c *tls.Config) { c.RootCAs = pool }), &unknown)

	// The files are what a user's configuration would name.
	pair, err := tls.LoadX509KeyPair(s.Certs().ClientCertFile, s.Certs().ClientKeyFile)
	require.NoError(t, err)
	ca, err := os.ReadFile(s.Certs().CAFile)
	require.NoError(t, err)
	require.True(t, pool.AppendCertsFromPEM(ca))
	require.NoError(t, ping(func(c *tls.Config) { c.RootCAs, c.Certificates = pool, []tls.Certificate{pair} }))
}

func TestExpiredCertificateIsRefused(t *testing.T) {
	s := redistest.New(t, redistest.Config{TLS: &redistest.TLS{Names: []string{"127.0.0.1"}, Expired: true}})
	opts := s.Options()
	opts.MaxRetries, opts.DialerRetries = -1, 1
	rdb := redis.NewClient(opts)
	defer func() { _ = rdb.Close() }()
	var invalid x509.CertificateInvalidError
	require.ErrorAs(t, rdb.Ping(t.Context()).Err(), &invalid)
	require.Equal(t, x509.Expired, invalid.Reason)
}

func TestServerServesAUnixSocket(t *testing.T) {
	s := redistest.New(t, redistest.Config{UnixSocket: true, Lines: []string{"databases 3"}})
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: s.Socket()})
	defer func() { _ = rdb.Close() }()
	require.Equal(t, "3", rdb.ConfigGet(t.Context(), "databases").Val()["databases"])
}

func TestRestartKeepsPortAndPersistedData(t *testing.T) {
	for _, persist := range []bool{true, false} {
		s := redistest.New(t, redistest.Config{Persist: persist})
		rdb := s.Client(t)
		require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
		addr := s.Addr()
		s.Kill()
		s.Kill()
		require.False(t, listens(addr))
		require.NotEmpty(t, s.Log())
		require.EqualError(t, s.Pause(), "redistest: pause: the server does not run")
		require.NoError(t, s.Restart(t.Context()))
		require.NoError(t, s.Restart(t.Context())) // kills it first
		require.Equal(t, addr, s.Addr())
		require.Equal(t, persist, rdb.Exists(t.Context(), "k").Val() == 1)
	}
}

func TestPausedServerKeepsConnectionsAndAnswersLater(t *testing.T) {
	s := redistest.New(t, redistest.Config{})
	opts := s.Options()
	opts.MaxRetries = -1
	opts.ReadTimeout = -1
	rdb := redis.NewClient(opts)
	defer func() { _ = rdb.Close() }()
	require.NoError(t, rdb.Ping(t.Context()).Err())
	require.NoError(t, s.Pause())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.Error(t, rdb.Ping(ctx).Err())
	require.NoError(t, s.Continue())
	require.NoError(t, rdb.Ping(t.Context()).Err())

	require.NoError(t, s.Pause())
	require.NoError(t, s.Stop()) // a stopped process ends too
	require.False(t, listens(s.Addr()))
}

func TestStopLeavesNothing(t *testing.T) {
	redistest.Require(t)
	t.Setenv("TMPDIR", t.TempDir())
	s, err := redistest.Start(t.Context(), redistest.Config{TLS: &redistest.TLS{}, Persist: true})
	require.NoError(t, err)
	require.Len(t, directories(t), 1)
	require.NoError(t, s.Stop())
	require.NoError(t, s.Stop())
	require.False(t, listens(s.Addr()))
	require.Empty(t, directories(t))
	require.ErrorContains(t, s.Restart(t.Context()), "stopped for good")
}

func TestServersStartInParallel(t *testing.T) {
	redistest.Require(t)
	const n = 8
	servers := make([]*redistest.Server, n)
	errs := make([]error, n)
	var starting sync.WaitGroup
	for i := range n {
		starting.Go(func() { servers[i], errs[i] = redistest.Start(t.Context(), redistest.Config{}) })
	}
	starting.Wait()
	addrs := make(map[string]bool)
	for i := range n {
		require.NoError(t, errs[i])
		addrs[servers[i].Addr()] = true
		require.NoError(t, servers[i].Stop())
	}
	require.Len(t, addrs, n)
}

func TestStartTellsWhatIsWrong(t *testing.T) {
	redistest.Require(t)
	t.Setenv("TMPDIR", t.TempDir())
	for name, test := range map[string]struct {
		cfg  redistest.Config
		want string
	}{
		"unknown directive": {redistest.Config{Lines: []string{"no-such-directive 1"}}, "no-such-directive"},
		"bad user":          {redistest.Config{Users: []string{"alice +@nosuch"}}, "redis-server ended"},
		"default user off":  {redistest.Config{Users: []string{"default off"}}, "the default user must be let in"},
	} {
		_, err := redistest.Start(t.Context(), test.cfg)
		require.ErrorContains(t, err, "redistest: start: ", name)
		require.ErrorContains(t, err, test.want, name)
	}
	require.Empty(t, directories(t))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := redistest.Start(ctx, redistest.Config{})
	require.ErrorIs(t, err, context.Canceled)
	//lint:ignore SA1012 the error for it is under test
	_, err = redistest.Start(nil, redistest.Config{}) //nolint:staticcheck // the error for it is under test
	require.EqualError(t, err, "redistest: start: nil context: pass context.Background() or the test's")
}

func TestSentinelWatchesItsPrimary(t *testing.T) {
	primary := redistest.New(t, redistest.Config{Password: "secret"})
	s := redistest.NewSentinel(t, "mymaster", primary)
	sentinel := redis.NewSentinelClient(&redis.Options{Addr: s.Addr()})
	defer func() { _ = sentinel.Close() }()
	addr, err := sentinel.GetMasterAddrByName(t.Context(), "mymaster").Result()
	require.NoError(t, err)
	require.Equal(t, primary.Addr(), net.JoinHostPort(addr[0], addr[1]))
	require.Equal(t, "sentinel", s.Client(t).InfoMap(t.Context(), "server").Val()["Server"]["redis_mode"])
	require.Eventually(t, func() bool {
		m, err := sentinel.Master(t.Context(), "mymaster").Result()
		return err == nil && m["flags"] == "master" // with its password, neither s_down nor disconnected
	}, 20*time.Second, 10*time.Millisecond)
	_, err = redistest.StartSentinel(t.Context(), "mymaster", nil)
	require.ErrorContains(t, err, "nil primary")
}

// A server must end with the process that started it, however that ends.
func TestServerEndsWithItsProcess(t *testing.T) {
	redistest.Require(t)
	if runtime.GOOS != "linux" {
		t.Skip("the kernel does this on Linux alone")
	}
	for _, how := range []string{"kill", "paused", "panic", "sentinels", "cluster"} {
		t.Run(how, func(t *testing.T) {
			temp := t.TempDir()
			child := startChild(t, how, temp)
			addrs := strings.Fields(child.line)
			require.NotEmpty(t, addrs)
			for _, addr := range addrs {
				require.True(t, listens(addr), child.line)
			}
			if how == "panic" {
				child.end(t)
			} else {
				child.kill(t)
			}
			for _, addr := range addrs {
				require.Eventually(t, func() bool { return !listens(addr) }, 20*time.Second, 5*time.Millisecond)
			}

			// Its directories go when the next server starts.
			t.Setenv("TMPDIR", temp)
			left := directories(t)
			require.Len(t, left, len(addrs))
			old := time.Now().Add(-time.Hour)
			for _, directory := range left {
				require.NoError(t, os.Chtimes(directory, old, old))
			}
			redistest.New(t, redistest.Config{})
			for _, directory := range left {
				require.NotContains(t, directories(t), directory)
			}
		})
	}
}

// Linux ends a child with the thread that started it, which may be long before
// the process ends: a thread ends with a goroutine that is locked to it.
func TestServerOutlivesTheThreadsAroundIt(t *testing.T) {
	redistest.Require(t)
	done := make(chan struct{})
	var ending sync.WaitGroup
	for range 2 {
		ending.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				ended := make(chan struct{})
				go func() {
					runtime.LockOSThread()
					close(ended)
				}()
				<-ended
			}
		})
	}
	defer ending.Wait()
	defer close(done)
	for range 5 {
		s, err := redistest.Start(t.Context(), redistest.Config{})
		require.NoError(t, err)
		require.Never(t, func() bool { return !listens(s.Addr()) }, 50*time.Millisecond, 10*time.Millisecond)
		require.NoError(t, s.Stop())
	}
}

// A directory that is in use stays, however old.
func TestDirectoryInUseStays(t *testing.T) {
	redistest.Require(t)
	t.Setenv("TMPDIR", t.TempDir())
	redistest.New(t, redistest.Config{})
	used := directories(t)
	require.Len(t, used, 1)
	old := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(used[0], old, old))
	redistest.New(t, redistest.Config{})
	require.Subset(t, directories(t), used)
}

func directories(t *testing.T) []string {
	paths, err := filepath.Glob(filepath.Join(os.TempDir(), "redisha-redistest-*"))
	require.NoError(t, err)
	return paths
}

// listens reports whether anybody takes connections at addr.
func listens(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}
