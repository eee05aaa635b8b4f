package lanes

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// A Queue has what waits for one server.
type Queue interface {
	// Close refuses what comes from now on. The channel is closed when nothing
	// waits or is under way.
	Close() (quiet <-chan struct{})

	// Reject refuses what waits.
	Reject()
}

// Servers have a queue for each node of a Cluster, from when it is first needed, or
// for the one server. They are safe for concurrent use.
type Servers[Q Queue] struct {
	cluster *redis.ClusterClient // nil elsewhere
	queue   func(addr string) Q
	single  Q
	nodes   atomic.Pointer[map[string]Q] // of a Cluster, by address; copied to be changed
	adding  sync.Mutex
	closed  atomic.Bool
}

// NewServers returns those of cluster, or if that is nil, the one server. Queues are
// made by queue, which is told the address of their node, or "".
func NewServers[Q Queue](cluster *redis.ClusterClient, queue func(addr string) Q) *Servers[Q] {
	s := &Servers[Q]{cluster: cluster, queue: queue}
	if cluster == nil {
		s.single = queue("")
	} else {
		s.nodes.Store(&map[string]Q{})
	}
	return s
}

// Of returns where what is for key waits. It reports false if there is no telling, as
// before the topology of a Cluster is known.
func (s *Servers[Q]) Of(ctx context.Context, key string) (q Q, ok bool) {
	if s.cluster == nil {
		return s.single, true
	}
	node, err := s.cluster.MasterForKey(ctx, key)
	if err != nil {
		return q, false
	}
	addr := node.Options().Addr
	if q, ok = (*s.nodes.Load())[addr]; ok {
		return q, true
	}
	return s.add(addr)
}

// add makes the queue of a node. It stays when the node goes: there are not so many
// addresses.
func (s *Servers[Q]) add(addr string) (q Q, ok bool) {
	s.adding.Lock()
	defer s.adding.Unlock()
	nodes := maps.Clone(*s.nodes.Load())
	if q, ok = nodes[addr]; ok || s.closed.Load() {
		return q, ok
	}
	q = s.queue(addr)
	nodes[addr] = q
	s.nodes.Store(&nodes)
	return q, true
}

// All returns the queues that there are, and after Close will be.
func (s *Servers[Q]) All() []Q {
	if s.cluster == nil {
		return []Q{s.single}
	}
	s.adding.Lock()
	defer s.adding.Unlock()
	return slices.Collect(maps.Values(*s.nodes.Load()))
}

// Closed reports whether Close was called.
func (s *Servers[Q]) Closed() bool { return s.closed.Load() }

// Close closes the queues and waits until they are quiet. When ctx ends first, they
// reject what waits, and Close returns the cause.
func (s *Servers[Q]) Close(ctx context.Context) error {
	s.closed.Store(true)
	queues := s.All()
	quiet := make([]<-chan struct{}, len(queues))
	for i, q := range queues {
		quiet[i] = q.Close()
	}
	for _, quiet := range quiet {
		select {
		case <-quiet: // first, since ctx may be over as well
			continue
		default:
		}
		select {
		case <-quiet:
		case <-ctx.Done():
			for _, q := range queues {
				q.Reject()
			}
			return context.Cause(ctx)
		}
	}
	return nil
}
