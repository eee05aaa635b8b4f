package testserver

import (
	"cmp"
	"context"
	"net"
	"sync"
	"testing"

	"github.com/alicebob/miniredis/v2/server"
)

// A Sentinel is a fake Redis Sentinel in memory. It knows what it was told by
// [Sentinel.Monitor] and finds out nothing by itself, so that a test decides
// which Sentinel hears of a failover, and when. All methods are safe for
// concurrent use.
type Sentinel struct {
	srv *server.Server

	mu       sync.Mutex
	id       string
	masters  map[string]Monitored
	user     string
	password string
	refused  map[string]string // "SENTINEL MASTER" → error
	hook     func(args []string)
	down     bool
	hung     chan struct{} // closed when it answers again; nil while it does
	peers    map[*server.Peer]*sentinelPeer
	closed   bool

	connsMu sync.Mutex // apart: srv closes connections while it holds its own lock
	conns   map[net.Conn]struct{}
}

// sentinelPeer is what a Sentinel knows of a connection.
type sentinelPeer struct {
	authenticated bool
	channels      map[string]bool
}

// Monitored is what a [Sentinel] knows of one group of a primary and its
// replicas.
type Monitored struct {
	Name     string // of the group: "mymaster"
	Primary  string // host:port
	Epoch    uint64 // config-epoch
	Flags    string // of the primary; "master" if empty
	Quorum   int    // 0 for 2
	Replicas []MonitoredReplica
	Others   []OtherSentinel
}

// MonitoredReplica is what a [Sentinel] knows of a replica.
type MonitoredReplica struct {
	Addr     string // host:port
	Flags    string // "slave" if empty; "s_down,slave" for one that is down
	LinkDown bool   // it has lost its primary
}

// OtherSentinel is what a [Sentinel] knows of another one.
type OtherSentinel struct {
	Addr  string // host:port
	ID    string // as [Sentinel.ID]
	Flags string // "sentinel" if empty
}

// StartSentinel starts a Sentinel that monitors nothing yet. Close ends it.
func StartSentinel() *Sentinel {
	s := &Sentinel{
		srv:     server.NewServerConn(),
		id:      newRunID(),
		masters: make(map[string]Monitored),
		refused: make(map[string]string),
		conns:   make(map[net.Conn]struct{}),
		peers:   make(map[*server.Peer]*sentinelPeer),
	}
	s.srv.SetPreHook(s.dispatch)
	return s
}

// NewSentinel starts a Sentinel that n reaches at address, and which is closed
// when the test ends.
func NewSentinel(tb testing.TB, n *Net, address string) *Sentinel {
	tb.Helper()
	s := StartSentinel()
	tb.Cleanup(s.Close)
	n.Add(address, s.Dial)
	return s
}

// Dial connects through memory, whatever the address. It fails after Stop and
// Close.
func (s *Sentinel) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.down {
		return nil, refused(network, address)
	}
	near, far := newPipe()
	c := &sentinelConn{Conn: far, sentinel: s}
	s.connsMu.Lock()
	s.conns[c] = struct{}{}
	s.connsMu.Unlock()
	s.srv.ServeConn(c)
	return near, nil
}

// sentinelConn leaves the Sentinel's list when it is closed.
type sentinelConn struct {
	net.Conn
	sentinel *Sentinel
}

func (c *sentinelConn) Close() error {
	c.sentinel.connsMu.Lock()
	delete(c.sentinel.conns, c)
	c.sentinel.connsMu.Unlock()
	return c.Conn.Close()
}

// ID is the Sentinel's own run ID, as SENTINEL MYID tells it.
func (s *Sentinel) ID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}

// Monitor tells the Sentinel what it knows from now on of the group m.Name. It
// announces nothing, see [Sentinel.Announce].
func (s *Sentinel) Monitor(m Monitored) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.Flags = cmp.Or(m.Flags, "master")
	m.Quorum = cmp.Or(m.Quorum, 2)
	s.masters[m.Name] = m
}

// Monitored returns what the Sentinel knows of a group.
func (s *Sentinel) Monitored(name string) (m Monitored, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok = s.masters[name]
	return m, ok
}

// Forget lets the Sentinel know nothing of a group, like one that was started
// with an empty configuration.
func (s *Sentinel) Forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.masters, name)
}

// Switch is Monitor with a new primary and the config-epoch of its election,
// and the announcement of it.
func (s *Sentinel) Switch(name, primary string, epoch uint64) {
	m, _ := s.Monitored(name)
	from := m.Primary
	m.Name, m.Primary, m.Epoch = name, primary, epoch
	s.Monitor(m)
	s.Announce(name, from, primary)
}

// Announce publishes +switch-master to the subscribers.
func (s *Sentinel) Announce(name, from, to string) {
	fromHost, fromPort := split(from)
	toHost, toPort := split(to)
	s.Publish("+switch-master", name+" "+fromHost+" "+fromPort+" "+toHost+" "+toPort)
}

// Publish sends a message to the subscribers of a channel.
func (s *Sentinel) Publish(channel, message string) {
	s.mu.Lock()
	var subscribers []*server.Peer
	if s.hung == nil {
		for c, p := range s.peers {
			if p.channels[channel] {
				subscribers = append(subscribers, c)
			}
		}
	}
	s.mu.Unlock()
	for _, c := range subscribers {
		c.Block(func(w *server.Writer) {
			w.WritePushLen(3)
			w.WriteBulk("message")
			w.WriteBulk(channel)
			w.WriteBulk(message)
			w.Flush()
		})
	}
}

// Subscribers counts the connections that have subscribed to a channel.
func (s *Sentinel) Subscribers(channel string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n int
	for _, p := range s.peers {
		if p.channels[channel] {
			n++
		}
	}
	return n
}

// Connections counts the open connections.
func (s *Sentinel) Connections() int {
	s.connsMu.Lock()
	defer s.connsMu.Unlock()
	return len(s.conns)
}

// RequireAuth lets new connections authenticate; an empty user is "default",
// and an empty password ends that.
func (s *Sentinel) RequireAuth(user, password string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.user, s.password = cmp.Or(user, "default"), password
}

// Refuse lets a command ("PING", "SENTINEL MASTER") fail with message, such as
// "NOPERM this user has no permissions"; the empty message ends that.
func (s *Sentinel) Refuse(command, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if message == "" {
		delete(s.refused, command)
		return
	}
	s.refused[command] = message
}

// SetHook lets f see every command before it is answered; f may change what the
// Sentinel knows. Nil ends that.
func (s *Sentinel) SetHook(f func(args []string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = f
}

// Cut closes all connections; new ones are taken.
func (s *Sentinel) Cut() {
	s.connsMu.Lock()
	conns := s.conns
	s.conns = make(map[net.Conn]struct{})
	s.connsMu.Unlock()
	for c := range conns {
		_ = c.Close()
	}
}

// Stop cuts all connections and refuses new ones until Restart.
func (s *Sentinel) Stop() {
	s.mu.Lock()
	s.down = true
	s.mu.Unlock()
	s.Cut()
}

// Restart takes connections again after Stop. What the Sentinel knows stays.
func (s *Sentinel) Restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = false
}

// Hang lets the Sentinel take connections and commands and answer nothing, as a
// stopped process does, until it is called with false; then what it was asked
// meanwhile is answered.
func (s *Sentinel) Hang(hang bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case hang && s.hung == nil && !s.closed:
		s.hung = make(chan struct{})
	case !hang && s.hung != nil:
		close(s.hung)
		s.hung = nil
	}
}

// Close ends the Sentinel and its connections and waits for its goroutines. It
// may be called twice.
func (s *Sentinel) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.Hang(false)
	s.Cut()
	s.srv.Close()
}

// split is net.SplitHostPort for addresses that a test made up.
func split(addr string) (host, port string) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr, "0"
	}
	return host, port
}
