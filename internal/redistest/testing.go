package redistest

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
)

// requireVariable is 1 where a missing server must fail tests.
const requireVariable = "REDISHA_TEST_REQUIRE"

// New starts a server that is stopped when the test ends; its log is shown if
// the test failed. The test is skipped under -short and where there is no
// redis-server; under REDISHA_TEST_REQUIRE=1 the latter fails.
func New(tb testing.TB, cfg Config) *Server {
	tb.Helper()
	Require(tb)
	s, err := Start(context.Background(), cfg)
	return own(tb, s, err)
}

// NewSentinel is New for StartSentinel.
func NewSentinel(tb testing.TB, masterName string, primary *Server) *Server {
	tb.Helper()
	Require(tb)
	s, err := StartSentinel(context.Background(), masterName, primary)
	return own(tb, s, err)
}

func own(tb testing.TB, s *Server, err error) *Server {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Stop(); err != nil {
			tb.Error(err)
		}
		if tb.Failed() {
			tb.Logf("log of redis-server %s:\n%s", s.Addr(), s.Log())
		}
	})
	return s
}

// Client returns a client of the server, with Options, which is closed when the
// test ends.
func (s *Server) Client(tb testing.TB) *redis.Client {
	tb.Helper()
	rdb := redis.NewClient(s.Options())
	tb.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// Require skips the test under -short and where there is no redis-server; under
// REDISHA_TEST_REQUIRE=1 the latter fails it.
func Require(tb testing.TB) {
	tb.Helper()
	if testing.Short() {
		tb.Skip("redistest: -short keeps to miniredis")
	}
	if _, err := Program(); errors.Is(err, ErrNoServer) && os.Getenv(requireVariable) != "1" {
		tb.Skipf("redistest: %v", err)
	} else if err != nil {
		tb.Fatalf("redistest: %v", err)
	}
}

// RequireVersion is Require, and skips the test if the server is older than
// version, "7.4" for example, also under REDISHA_TEST_REQUIRE=1. Valkey counts
// its own versions.
func RequireVersion(tb testing.TB, version string) {
	tb.Helper()
	Require(tb)
	have, err := programVersion()
	if err != nil {
		tb.Fatalf("redistest: %v", err)
	}
	if olderThan(have, version) {
		tb.Skipf("redistest: redis-server is %s, this test needs %s", have, version)
	}
}

// shared is the server of Shared: one for a test binary, for one test at a time.
var shared struct {
	use sync.Mutex // held by the test that uses the server

	mu     sync.Mutex
	server *Server
	user   string // name of the test that holds use
}

// Shared returns a plain server, empty, for this test alone until it ends: a
// parallel test waits, while subtests get the same server as it is. All tests of
// the package share the process, which [Main] stops. A test that sets it up
// otherwise, kills it or stops it takes a server of its own by New.
func Shared(tb testing.TB) *Server {
	tb.Helper()
	Require(tb)
	if s := sharedBySubtest(tb.Name()); s != nil {
		return s
	}
	shared.use.Lock()
	tb.Cleanup(func() {
		shared.mu.Lock()
		shared.user = ""
		if tb.Failed() && shared.server != nil {
			tb.Logf("log of the shared redis-server:\n%s", shared.server.Log())
		}
		shared.mu.Unlock()
		shared.use.Unlock()
	})
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.user = tb.Name()
	if shared.server == nil {
		s, err := Start(context.Background(), Config{})
		if err != nil {
			tb.Fatal(err)
		}
		shared.server = s
	}
	rdb := redis.NewClient(shared.server.Options())
	defer func() { _ = rdb.Close() }()
	for _, command := range [][]any{{"FLUSHALL"}, {"SCRIPT", "FLUSH"}} {
		if err := rdb.Do(context.Background(), command...).Err(); err != nil {
			tb.Fatalf("redistest: empty the shared server: %v", err)
		}
	}
	return shared.server
}

// sharedBySubtest returns the server if the test that uses it is this one or
// its parent.
func sharedBySubtest(name string) *Server {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.user != "" && strings.HasPrefix(name+"/", shared.user+"/") {
		return shared.server
	}
	return nil
}

// Main is the body of a package's TestMain: it runs the tests, stops what Shared,
// SharedSentinels and SharedCluster have started, fails if a goroutine is left, and exits.
//
//	func TestMain(m *testing.M) { redistest.Main(m) }
func Main(m *testing.M) { goleak.VerifyTestMain(stopShared{m}) }

// stopShared runs tests and then stops what they shared.
type stopShared struct{ m *testing.M }

func (s stopShared) Run() int {
	code := s.m.Run()
	if err := stopKept(); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		code = max(code, 1)
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server != nil {
		if err := shared.server.Stop(); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			code = max(code, 1)
		}
		shared.server = nil
	}
	// The pool of go-redis that could not dial probes once a second, and sees only then that it was closed.
	for range 5 { // Find looks for 0.4 s
		if goleak.Find() == nil {
			break
		}
	}
	return code
}
