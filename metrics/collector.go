package metrics

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
)

// NewCollector returns a collector of the statistics of clients. A role that
// has no endpoint is left out; nil clients, or a nil role, report nothing.
//
// A scrape reads counters in memory: it does no I/O, starts no goroutine, and
// works after clients.Close too. The collector is safe for concurrent use. One
// registry takes one of them; for several, see the package comment.
func NewCollector(clients *redisha.Clients) prometheus.Collector {
	if clients == nil {
		clients = &redisha.Clients{}
	}
	return collector{clients}
}

type collector struct{ clients *redisha.Clients }

// Describe implements [prometheus.Collector].
func (collector) Describe(ch chan<- *prometheus.Desc) {
	connection.describe(ch)
	pools.describe(ch)
	cleaned.describe(ch)
	ownConnection.describe(ch)
	circuits.describe(ch)
	switches.describe(ch)
	follower.describe(ch)
	replicas.describe(ch)
	replicaPools.describe(ch)
	replicaCleaned.describe(ch)
	caches.describe(ch)
	queues.describe(ch)
	results.describe(ch)
	locks.describe(ch)
	renewals.describe(ch)
	lockNodes.describe(ch)
	quorumNodes.describe(ch)
}

// Collect implements [prometheus.Collector].
func (c collector) Collect(ch chan<- prometheus.Metric) {
	if r := c.clients.Cache; r != nil {
		collectCache(ch, redisha.Cache, r.Stats())
	}
	for name, r := range c.clients.Caches {
		if r != nil {
			collectCache(ch, redisha.NamedCache(name), r.Stats())
		}
	}
	if r := c.clients.Broker; r != nil {
		collectBroker(ch, r.Stats())
	}
	if r := c.clients.Results; r != nil {
		collectResults(ch, r.Stats())
	}
	if r := c.clients.Locks; r != nil {
		collectLocks(ch, r.Stats())
	}
}

func collectCache(ch chan<- prometheus.Metric, role redisha.Role, s cache.Stats) {
	if collectConn(ch, role, "", &s.Conn) {
		caches.collect(ch, &s, string(role))
	}
}

func collectBroker(ch chan<- prometheus.Metric, s broker.Stats) {
	if collectConn(ch, redisha.Broker, "", &s.Conn) {
		queues.collect(ch, &s)
	}
}

func collectResults(ch chan<- prometheus.Metric, s result.Stats) {
	if collectConn(ch, redisha.Results, "", &s.Conn) {
		results.collect(ch, &s)
	}
}

func collectLocks(ch chan<- prometheus.Metric, s lock.Stats) {
	for i := range s.Nodes {
		node := ""
		if len(s.Nodes) > 1 {
			node = strconv.Itoa(i + 1)
		}
		if !collectConn(ch, redisha.Locks, node, &s.Nodes[i].Conn) {
			return
		}
		lockNodes.collect(ch, &s.Nodes[i], node)
		if node != "" {
			quorumNodes.collect(ch, &s.Nodes[i], node)
		}
	}
	for i := range s.Classes {
		locks.collect(ch, &s.Classes[i], s.Classes[i].Class)
	}
	renewals.collect(ch, &s)
}

// collectConn sends what the connection of a role holds, to the given node of it,
// and reports whether there is one: a role without endpoint has none.
func collectConn(ch chan<- prometheus.Metric, role redisha.Role, node string, s *conn.Stats) bool {
	if !s.Configured {
		return false
	}
	connection.collect(ch, s, string(role), node)
	pools.collect(ch, &s.Pool, string(role), node)
	if s.Role != "" { // redisha made the client; of others it does not know
		ownConnection.collect(ch, s, string(role), node)
		cleaned.collect(ch, &s.Pool, string(role), node)
		collectTopology(ch, role, s)
	}
	if s.Breaker.Enabled {
		circuits.collect(ch, &s.Breaker, string(role), node)
	}
	return true
}

// collectTopology sends what there is where the primary can change, and where
// reads go to replicas. The nodes of a quorum have neither.
func collectTopology(ch chan<- prometheus.Metric, role redisha.Role, s *conn.Stats) {
	if s.Primary.Followed || s.Topology == clusterTopology {
		switches.collect(ch, &s.Primary, string(role))
	}
	if s.Primary.Followed {
		follower.collect(ch, s, string(role))
	}
	if s.Replicas.Enabled {
		replicas.collect(ch, s, string(role))
		replicaPools.collect(ch, &s.Replicas.Pool, string(role))
		replicaCleaned.collect(ch, &s.Replicas.Pool, string(role))
	}
}
