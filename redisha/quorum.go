package redisha

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/lock"
)

// refusesQuorum says why endpoints cannot be a quorum together.
func refusesQuorum(eps []endpoint.Endpoint) error {
	var problems []error
	n := len(eps)
	if n%2 == 0 {
		problems = append(problems, fmt.Errorf("a quorum of %d servers, which survives no more losses than one of %d: add one, or leave one out", n, n-1))
	}
	all := shared(eps)
	for i, ep := range eps {
		problem := func(format string, args ...any) {
			problems = append(problems, fmt.Errorf(part(i, n)+format, args...))
		}
		if ep.Proxy != "" {
			problem("proxy=%s: a quorum must know its servers: write the address of Redis itself", ep.Proxy)
		}
		if ep.Namespace != "" && ep.Namespace != all.Namespace {
			problem("namespace=%s, where another part has %s: all servers have the same keys, write it once", ep.Namespace, all.Namespace)
		}
		if ep.TTL != 0 && ep.TTL != all.TTL {
			problem("ttl=%s, where another part has %s: leases end on all servers at once, write it once", ep.TTL, all.TTL)
		}
		if ep.Strict != "" && ep.Strict != all.Strict {
			problem("strict=%s, where another part has %s: write it once", ep.Strict, all.Strict)
		}
		if ep.AllowFailoverManaged != "" && ep.AllowFailoverManaged != all.AllowFailoverManaged {
			problem("allow_failover_managed=%s, where another part has %s: write it once", ep.AllowFailoverManaged, all.AllowFailoverManaged)
		}
	}
	return errors.Join(problems...)
}

// shared returns the first endpoint with what any of them says for the role as a
// whole, rather than for the connections to one server.
func shared(eps []endpoint.Endpoint) endpoint.Endpoint {
	all := eps[0]
	for _, ep := range eps[1:] {
		all.Namespace = cmp.Or(all.Namespace, ep.Namespace)
		all.TTL = cmp.Or(all.TTL, ep.TTL)
		all.Strict = cmp.Or(all.Strict, ep.Strict)
		all.AllowFailoverManaged = cmp.Or(all.AllowFailoverManaged, ep.AllowFailoverManaged)
		all.Compression = cmp.Or(all.Compression, ep.Compression)
		all.CompressionMinSize = cmp.Or(all.CompressionMinSize, ep.CompressionMinSize)
	}
	return all
}

// part begins an error about the endpoint with the given index, of n; with
// nothing if it is the only one.
func part(i, n int) string {
	if n == 1 {
		return ""
	}
	return fmt.Sprintf("part %d of %d: ", i+1, n)
}

// newLocks makes the client of one server, or of a quorum.
func newLocks(nodes []*conn.Client, cfg lock.Config) (*lock.Client, error) {
	if len(nodes) == 1 {
		return lock.New(nodes[0], cfg)
	}
	clients := make([]redis.UniversalClient, len(nodes))
	for i, node := range nodes {
		clients[i] = node
	}
	return lock.NewQuorum(clients, cfg)
}

// node is the name under which Health shows a server of a quorum.
func (r Role) node(i int) Role { return Role(fmt.Sprintf("%s.%d", r, i+1)) }
