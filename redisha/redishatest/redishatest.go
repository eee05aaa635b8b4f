// Package redishatest is a Redis server inside the process, for tests of
// applications that use redisha and for programs that show something without
// one. It is miniredis with some of what that lacks.
//
//	func TestSignUp(t *testing.T) {
//		clients := redishatest.New(t).Open(t)
//		…
//	}
//
// A server from [New] is reached through memory, so that all of it works inside
// a testing/synctest bubble: TTLs, delays, leases and timeouts then follow the
// bubble's clock, and an hour passes in milliseconds, or, beside a worker that
// waits for tasks, in seconds. Make the server inside the bubble.
//
// [NewSentinels] makes a whole deployment: a primary, two replicas, and three
// Sentinels. Both kinds of servers can be made to fail: see the methods of
// [Server].
//
// The servers know no persistence and no eviction, and not every command; what
// depends on those needs a real one.
package redishatest

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/testserver"
	"github.com/redisha/redisha/redisha"
)

// A Server is an in-memory Redis server. Its methods are safe for concurrent use.
type Server struct {
	srv     *testserver.Server
	url     redisha.URL
	changed func() // called after it was stopped or restarted; may be nil
}

// New starts a server that is closed when the test ends. It listens on no port.
func New(tb testing.TB) *Server {
	tb.Helper()
	return &Server{srv: testserver.New(tb), url: "redis://127.0.0.1:6379"}
}

// Start starts a server that listens on a free port of 127.0.0.1, for programs
// that are no tests. Close ends it.
func Start() (*Server, error) {
	srv, err := testserver.Start()
	if err != nil {
		return nil, fmt.Errorf("redishatest: %w", err)
	}
	addr, err := srv.Listen()
	if err != nil {
		srv.Close()
		return nil, fmt.Errorf("redishatest: %w", err)
	}
	return &Server{srv: srv, url: redisha.URL("redis://" + addr)}, nil
}

// Close ends the server and its connections. Calling it again is safe.
func (s *Server) Close() { s.srv.Close() }

// URL is where the server listens. One from [New] listens nowhere: use
// [Server.Config] there.
func (s *Server) URL() redisha.URL { return s.url }

// Config configures all four roles on the server, each in a database of its
// own, and reaches it through memory.
func (s *Server) Config() redisha.Config {
	return config(func(db int) redisha.Endpoint {
		return redisha.Endpoint{URL: redisha.URL(fmt.Sprintf("%s/%d", s.url, db)), Dialer: s.srv.Dial}
	})
}

// config configures the roles on databases 0 to 3.
func config(at func(db int) redisha.Endpoint) redisha.Config {
	of := func(db int) redisha.Endpoint {
		ep := at(db)
		// More than a test has goroutines: go-redis shares the timers of those
		// who wait for a connection, which breaks in a second bubble.
		ep.Pool.MaxTotal = 4096
		return ep
	}
	return redisha.Config{
		Application: "test",
		Logger:      slog.New(slog.DiscardHandler),
		Cache:       redisha.CacheConfig{Endpoint: of(0)},
		Broker:      redisha.BrokerConfig{Endpoint: of(1)},
		Results:     redisha.ResultsConfig{Endpoint: of(2)},
		Locks:       redisha.LocksConfig{Endpoint: of(3)},
	}
}

// Open opens all four roles on the server and closes them when the test ends.
func (s *Server) Open(tb testing.TB) *redisha.Clients {
	tb.Helper()
	return open(tb, s.Config())
}

func open(tb testing.TB, cfg redisha.Config) *redisha.Clients {
	tb.Helper()
	clients, err := redisha.Open(context.Background(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := clients.Close(); err != nil {
			tb.Error(err)
		}
	})
	return clients
}

// Client returns a plain client of database db, to look at what was stored. It
// is closed when the test ends.
func (s *Server) Client(tb testing.TB, db int) *redis.Client {
	tb.Helper()
	opt := s.srv.Options()
	opt.DB = db
	rdb := redis.NewClient(opt)
	tb.Cleanup(func() { _ = rdb.Close() })
	return rdb
}
