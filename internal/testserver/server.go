// Package testserver is miniredis with what it lacks, for tests and for the
// embedded server of the examples: no process, no port unless asked for, and
// time that moves by itself.
//
// [New] in a test, [Start] elsewhere. A client reaches the server through
// memory by [Server.Dial], so that everything works in a [testing/synctest]
// bubble, where TTLs, blocking reads and WAIT follow the bubble's clock;
// outside of one they follow the wall clock. In a bubble, start the server
// inside it, and do not Listen.
//
// # Added to miniredis 2.40
//
//   - ROLE and INFO server, replication, memory, persistence and cluster
//   - WAIT with [Server.SetReplicas], which waits as Redis does
//   - CLIENT ID, UNBLOCK, SETINFO, NO-EVICT and NO-TOUCH
//   - HELLO without arguments, with SETNAME, with the connection's own ID, and
//     refused with NOAUTH before AUTH
//   - COMMAND INFO, which tells what is there
//   - XINFO CONSUMERS with idle
//   - a blocked command ends when its connection is closed, and is refused in a
//     script
//   - an error in a script reads as that of Redis, so that one of redis.call
//     keeps its code (WRONGTYPE, OOM, ...)
//   - replicas by [Server.StartReplica], which share the data and may lag
//   - faults: [Server.SetError], [Server.SetLatency], [Server.CutReplies], ...
//
// # What still differs from Redis
//
// Missing: CONFIG, ACL (users have passwords and no rules), CLIENT KILL, LIST
// and TRACKING, SSUBSCRIBE and SPUBLISH, WAITAOF, BLMPOP, BITFIELD, SORT,
// FUNCTION, RESET, SENTINEL, XACKDEL, XGROUP SETID; persistence and eviction.
// Commands of the first list are refused within MULTI, except CLIENT SETNAME and
// GETNAME. A replica has the scripts of its primary.
//
// In scripts: cjson is there, struct, bit and cmsgpack are not; tostring of a
// number above 1e14 is exact, where Redis rounds to 14 digits; a fraction as an
// argument is written with fewer digits; unpack takes some 5,000 values, Redis
// 8,000; error{err = "CODE ..."} loses its message; within EXEC errors read as
// those of miniredis; no script is ever too slow.
//
// XINFO CONSUMERS' idle does not tell databases apart; XINFO GROUPS' lag is the
// length; XINFO STREAM tells length and last ID alone; XACK does not count an
// entry that XDEL has removed; XAUTOCLAIM leaves such entries pending; XCLAIM
// and XAUTOCLAIM count a delivery also with JUSTID; XPENDING's count of a
// NOACK read is too high. So every script is tested on a real server as well.
package testserver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
)

// addr stands for the server as long as it does not listen. It is an IP
// literal, since a name would be looked up, which leaves a synctest bubble.
const addr = "127.0.0.1:6379"

// A Server is an in-memory Redis. Methods of the embedded Miniredis read and
// change its data directly (Get, Set, Keys, TTL, FastForward, ...); do not call
// its Start methods, Server and ClockTTL: see SetPreHook here. All methods are
// safe for concurrent use.
type Server struct {
	*store
	owner bool           // of the store; false for a replica
	front *server.Server // serves the connections
	home  string         // the address that Dial stands for

	done    chan struct{}  // closed by Close
	running sync.WaitGroup // accept loops, watchers of lost connections, late replies

	// Guarded by mu of the store.
	runID     string
	closed    bool
	down      bool // between Stop and Restart
	listeners []net.Listener
	conns     map[*servedConn]struct{}
	hook      server.Hook
	faults    faults
	upstream  string   // address of its primary; empty if it is one
	frozen    bool     // serves the snapshot
	replicas  []string // addresses

	replicasChanged chan struct{} // closed and replaced by SetReplicas
}

// Start starts a server which listens on nothing. Close ends it.
func Start() (*Server, error) {
	d, err := newStore()
	if err != nil {
		return nil, fmt.Errorf("testserver: start: %w", err)
	}
	s := newServer(d, addr)
	s.owner = true
	return s, nil
}

func newServer(d *store, home string) *Server {
	s := &Server{
		store: d,
		front: server.NewServerConn(),
		home:  home,
		runID: newRunID(),
		done:  make(chan struct{}),
		conns: make(map[*servedConn]struct{}),

		replicasChanged: make(chan struct{}),
	}
	s.front.SetPreHook(s.dispatch)
	return s
}

// New starts a server which is closed when the test ends.
func New(tb testing.TB) *Server {
	tb.Helper()
	s, err := Start()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// Client returns a client of the server, with Options, which is closed when
// the test ends.
func (s *Server) Client(tb testing.TB) *redis.Client {
	tb.Helper()
	rdb := redis.NewClient(s.Options())
	tb.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// Options returns options for a client that reaches the server through Dial.
// The pool is larger than any test needs: go-redis shares the timers of callers
// who wait for a connection between all clients, which breaks in a second
// synctest bubble. The caller owns the result.
func (s *Server) Options() *redis.Options {
	return &redis.Options{
		Addr:                  s.Addr(),
		Dialer:                s.Dial,
		PoolSize:              1024,
		ContextTimeoutEnabled: true,
	}
}

// Dial connects through memory, whatever the address; it fits the Dialer of
// [redis.Options]. It fails after Stop and Close.
func (s *Server) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	near, far := newPipe()
	if !s.serve(far) {
		return nil, refused(network, address)
	}
	return near, nil
}

// Listen also serves a free TCP port of 127.0.0.1 and returns its address,
// which Addr returns from then on. From then on the server's clock moves by the
// millisecond and with commands alone, as the methods of Miniredis will notice:
// each move costs miniredis a look at every key, which would make some thousand
// keys slow.
func (s *Server) Listen() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("testserver: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = l.Close()
		return "", errors.New("testserver: listen: the server is closed")
	}
	s.coarse.Store(true)
	s.listeners = append(s.listeners, l)
	s.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // Close
			}
			if !s.serve(conn) {
				_ = conn.Close()
			}
		}
	})
	return l.Addr().String(), nil
}

// Addr returns the address that the server listens on, or before Listen
// 127.0.0.1:6379, where nobody listens; that of a replica is what it was given.
func (s *Server) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.listeners) == 0 {
		return s.home
	}
	return s.listeners[0].Addr().String()
}

// Stop cuts all connections and refuses new ones until Restart, like a server
// that is down. Its data stays, and its clock goes on.
func (s *Server) Stop() {
	s.mu.Lock()
	s.down = true
	s.wakeUp(true)
	s.mu.Unlock()
	s.CutConnections()
}

// CutConnections cuts all connections; new ones are taken.
func (s *Server) CutConnections() {
	s.mu.Lock()
	conns := s.conns
	s.conns = make(map[*servedConn]struct{})
	s.mu.Unlock()
	for c := range conns {
		c.cut() // the server's own Close follows when it notices
	}
}

// Restart takes connections again after Stop. The run ID changes. It fails
// after Close.
func (s *Server) Restart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("testserver: restart: the server is closed")
	}
	s.down = false
	s.runID = newRunID()
	return nil
}

func newRunID() string {
	id := make([]byte, 20)
	_, _ = rand.Read(id) // never fails
	return hex.EncodeToString(id)
}

// Close ends the server, its connections and its listeners, and waits for its
// goroutines. It may be called twice. Close replicas before their primary.
func (s *Server) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	s.wakeUp(true)
	close(s.done)
	for _, l := range s.listeners {
		_ = l.Close()
	}
	s.mu.Unlock()
	if s.owner {
		s.CtxCancel() // ends blocked commands
	}
	s.front.Close()
	if s.owner {
		s.Miniredis.Close()
	}
	s.running.Wait()
}

// SetPreHook lets h see every command before it runs, those that scripts call
// included; h returns true if it has answered. Nil removes it.
func (s *Server) SetPreHook(h server.Hook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = h
}

// SetReplicas sets how many replicas ROLE and INFO tell and WAIT counts on: 0
// at the start. It wakes who waits.
func (s *Server) SetReplicas(n int) {
	replicas := make([]string, max(n, 0))
	for i := range replicas {
		replicas[i] = fmt.Sprintf("127.0.0.1:%d", 6380+i)
	}
	s.SetReplicaAddrs(replicas...)
}

// SetReplicaAddrs is SetReplicas with their addresses.
func (s *Server) SetReplicaAddrs(addrs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replicas = addrs
	close(s.replicasChanged)
	s.replicasChanged = make(chan struct{})
}

// Down reports whether the server is stopped or closed.
func (s *Server) Down() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down || s.closed
}
