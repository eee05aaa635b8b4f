package redishatest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/redisha/redisha/internal/testserver"
	"github.com/redisha/redisha/redisha"
)

// Where the deployment is. Its addresses are in a network for documentation
// (RFC 5737) and lead nowhere but there.
const (
	masterName = "mymaster"
	locksAddr  = "192.0.2.31:6379"
)

var (
	nodeAddrs     = []string{"192.0.2.1:6379", "192.0.2.2:6379", "192.0.2.3:6379"}
	sentinelAddrs = []string{"192.0.2.21:26379", "192.0.2.22:26379", "192.0.2.23:26379"}
)

// Sentinels is a deployment in memory: three Sentinels that watch a primary and
// two replicas, and one server more for locks, which refuse Sentinels. Like the
// server of [New] it works in a testing/synctest bubble. Its methods are safe
// for concurrent use.
//
// Nothing happens by itself: a primary that is stopped stays the primary until
// the test calls Failover. Then the Sentinels announce the new one at once; real
// ones take down-after-milliseconds and one or two seconds for their election. The
// clients follow a moment later: what waits for a primary (all roles but caches, which
// fail at once) needs no more, and a bubble's synctest.Wait lets it pass.
//
// The three servers share their data, so that a replica has each write at once,
// unless SetLag stops that.
type Sentinels struct {
	net       *testserver.Net
	sentinels []*testserver.Sentinel
	nodes     []*Server
	locks     *Server

	mu      sync.Mutex
	primary int    // index in nodes
	epoch   uint64 // config-epoch
	lagging bool
	stopped int // so many of the sentinels, the first ones
}

// NewSentinels starts a deployment that ends with the test. It listens on no port.
func NewSentinels(tb testing.TB) *Sentinels {
	tb.Helper()
	s, err := StartSentinels()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// StartSentinels is NewSentinels for programs that are no tests. Close ends it.
// It listens on no port either: use [Sentinels.Config].
func StartSentinels() (*Sentinels, error) {
	first, err := testserver.Start()
	if err != nil {
		return nil, fmt.Errorf("redishatest: %w", err)
	}
	locks, err := testserver.Start()
	if err != nil {
		first.Close()
		return nil, fmt.Errorf("redishatest: %w", err)
	}
	s := &Sentinels{net: testserver.NewNet(), epoch: 1}
	s.locks = &Server{srv: locks, url: redisha.URL("redis://" + locksAddr)}
	s.net.Add(locksAddr, locks.Dial)
	for i, addr := range nodeAddrs {
		srv := first
		if i > 0 {
			srv = first.StartReplica(addr)
		}
		srv.SetUpstream(upstream(i, 0))
		s.nodes = append(s.nodes, &Server{srv: srv, url: redisha.URL("redis://" + addr), changed: s.refresh})
		s.net.Add(addr, srv.Dial)
	}
	for _, addr := range sentinelAddrs {
		sentinel := testserver.StartSentinel()
		s.sentinels = append(s.sentinels, sentinel)
		s.net.Add(addr, sentinel.Dial)
	}
	s.refresh()
	return s, nil
}

// Close ends all servers and their connections. Calling it again is safe.
func (s *Sentinels) Close() {
	for _, sentinel := range s.sentinels {
		sentinel.Close()
	}
	for _, n := range slices.Backward(s.nodes) { // the first one has the data
		n.Close()
	}
	s.locks.Close()
}

// upstream is what node i replicates from when the primary is another one.
func upstream(i, primary int) string {
	if i == primary {
		return ""
	}
	return nodeAddrs[primary]
}

// Config configures cache, broker and results by their Sentinels, each in a
// database of its own, and locks on a server apart, all reached through memory.
func (s *Sentinels) Config() redisha.Config {
	cfg := config(func(db int) redisha.Endpoint {
		url := fmt.Sprintf("redis+sentinel://%s/%s/%d", strings.Join(sentinelAddrs, ","), masterName, db)
		return redisha.Endpoint{URL: redisha.URL(url), Dialer: s.net.Dial}
	})
	cfg.Locks.URL = s.locks.url
	return cfg
}

// Open opens all four roles and closes them when the test ends.
func (s *Sentinels) Open(tb testing.TB) *redisha.Clients {
	tb.Helper()
	return open(tb, s.Config())
}

// Primary is the server that takes the writes at present. Stop kills it.
func (s *Sentinels) Primary() *Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[s.primary]
}

// Replicas are the other two, up or down. They answer reads.
func (s *Sentinels) Replicas() []*Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Delete(slices.Clone(s.nodes), s.primary, s.primary+1)
}

// Locks is the server of the locks, which no failover concerns.
func (s *Sentinels) Locks() *Server { return s.locks }

// SetLag stops the replication from now on: the replicas serve what they have,
// WAIT counts none of them, and a Failover loses what is written meanwhile, as
// replication that is asynchronous may. False lets them catch up at once.
func (s *Sentinels) SetLag(lagging bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if lagging == s.lagging {
		return nil
	}
	if lagging {
		if err := s.nodes[s.primary].srv.Snapshot(); err != nil {
			return fmt.Errorf("redishatest: %w", err)
		}
	}
	s.lag(lagging)
	s.update()
	return nil
}

func (s *Sentinels) lag(lagging bool) {
	s.lagging = lagging
	for i, n := range s.nodes {
		n.srv.ServeSnapshot(lagging && i != s.primary)
	}
}

// Failover makes the first replica that is up the primary, and the primary, down
// or not, a replica. Their connections are cut, and the Sentinels announce it.
// That takes the majority of the Sentinels, and a replica that is up.
func (s *Sentinels) Failover() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	from, to := s.primary, -1
	for i, n := range s.nodes {
		if i != from && !n.srv.Down() {
			to = i
			break
		}
	}
	running := len(s.sentinels) - s.stopped
	switch {
	case 2*running <= len(s.sentinels):
		return fmt.Errorf("redishatest: failover: %d of %d Sentinels are up, which is no majority: stop fewer of them", running, len(s.sentinels))
	case to < 0:
		return errors.New("redishatest: failover: no replica is up: call Restart on one before")
	}

	old, promoted := s.nodes[from].srv, s.nodes[to].srv
	old.SetUpstream(nodeAddrs[to])
	old.CutConnections()
	s.primary = to
	s.epoch++
	if s.lagging {
		old.Revert()
		s.lag(false)
	}
	for i, n := range s.nodes {
		n.srv.SetUpstream(upstream(i, to))
	}
	promoted.CutConnections()
	s.update()
	for _, sentinel := range s.sentinels[s.stopped:] {
		sentinel.Announce(masterName, nodeAddrs[from], nodeAddrs[to])
	}
	return nil
}

// StopSentinels stops the first n of the three Sentinels: their connections are
// cut, and new ones refused. The others run, those of before again, and know
// what all know.
func (s *Sentinels) StopSentinels(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = min(max(n, 0), len(s.sentinels))
	for i, sentinel := range s.sentinels {
		if i < s.stopped {
			sentinel.Stop()
		} else {
			sentinel.Restart()
		}
	}
}

func (s *Sentinels) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.update()
}

// update tells the Sentinels and the primary what there is. The caller holds mu.
func (s *Sentinels) update() {
	group := testserver.Monitored{Name: masterName, Primary: nodeAddrs[s.primary], Epoch: s.epoch}
	var linked []string
	for i, n := range s.nodes {
		if i == s.primary {
			continue
		}
		replica := testserver.MonitoredReplica{Addr: nodeAddrs[i]}
		if n.srv.Down() {
			replica.Flags = "s_down,slave,disconnected"
		} else if !s.lagging {
			linked = append(linked, nodeAddrs[i])
		}
		group.Replicas = append(group.Replicas, replica)
	}
	for i, n := range s.nodes {
		if i == s.primary {
			n.srv.SetReplicaAddrs(linked...)
		} else {
			n.srv.SetReplicaAddrs()
		}
	}
	for i, sentinel := range s.sentinels {
		group.Others = nil
		for j, other := range s.sentinels {
			if j != i {
				group.Others = append(group.Others, testserver.OtherSentinel{Addr: sentinelAddrs[j], ID: other.ID()})
			}
		}
		sentinel.Monitor(group)
	}
}
