package lock

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
)

const (
	// minNodes and maxNodes bound a quorum. Two nodes survive less than one, and
	// what is asked of dozens is slower than what it protects.
	minNodes = 3
	maxNodes = 31

	// A node may take a twentieth of the TTL to answer, within these bounds: a lease
	// that waits for the slowest of its nodes, twice, keeps nine tenths of its TTL.
	nodeTimeoutLeast = 10 * time.Millisecond
	nodeTimeoutMost  = 200 * time.Millisecond

	// sweepMost is how long a delete is tried at a node that does not answer. What it
	// was asked may still be in its buffers, and is done when it goes on.
	sweepMost = 10 * time.Minute

	// assembleMost is how long the nodes may take to say who they are, before the
	// first lease; once a majority has, the others get assembleGrace.
	assembleMost  = 5 * time.Second
	assembleGrace = 200 * time.Millisecond

	// A proposed token is ahead of the fastest clock by tokenLead, so that a
	// question which takes a little longer than the last one is still answered by
	// the same token everywhere. Clocks that are ahead by more than maxLead are
	// not followed.
	tokenLead = 10 * time.Millisecond
	maxLead   = time.Hour

	maxQuorumTTL = 24 * time.Hour
)

// nodeTimeout is how long a node may take to answer for a lease.
func nodeTimeout(ttl time.Duration) time.Duration {
	return min(max(ttl/20, nodeTimeoutLeast), nodeTimeoutMost)
}

// A quorum is the store of several independent servers: a lease is one that a
// majority of them has given (Redlock). It differs from what is published under
// that name in that leases have fencing tokens, that a node which may have
// forgotten leases takes no part, and that nothing waits for a node which does
// not answer.
// https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/
type quorum struct {
	client  *Client
	members []*member
	need    int           // a majority
	longest time.Duration // TTL
	start   time.Time     // of clock
	bell    *bell
	ready   atomic.Bool // a majority has said who it is, and nothing is wrong with any other

	mu   sync.Mutex
	roll *roll // the nodes are being asked who they are; nil: they are not
}

// NewQuorum returns a client that keeps each lease in a majority of independent
// servers, so that locks outlive the loss of a minority of them: one of three, two
// of five. It does no I/O; the clients stay the caller's. There are 3 to 31 nodes,
// an odd number, each a primary of its own: never Sentinel, Cluster, or a proxy,
// and no two on one server. What is wrong with a node is an error that names it,
// at [Client.Check] or at the first acquisition; a node that cannot be reached is
// none, as long as a majority can.
//
// What [Client] promises holds with these differences:
//
//   - Config.TTL is the longest TTL; the option TTL cannot exceed it. A server that
//     was started within the last Config.TTL takes no part in new leases, since it
//     may have forgotten some: so the servers need no persistence, and if all of
//     them were started just now there are no leases for that long. All clients of
//     the same nodes should have the same Config.TTL.
//   - Nobody else has the lock while the lease lasts, as long as no majority of the
//     servers has lost its data within the TTL.
//   - Tokens grow as long as there is a counter left of those that the last lease
//     has set, on each majority. Without these they grow by the servers' clocks, if
//     they are not set back, but for the first 10 ms after the last lease, and for as
//     long as the clocks differ: tokens are up to 10 ms ahead of the fastest clock.
//     [Client.Inspect] tells, for a lock that is free, the greatest that any node knows.
//   - A server has a twentieth of the TTL, 10 ms at least and 200 ms at most, to
//     answer: put the nodes near to each other, in different zones, not continents.
//   - Waiters are served in no order. They try again from time to time, and are woken
//     by messages when a lease is given back. A wait outlives an outage of the
//     majority of up to a minute.
//
// A go-redis client that redisha did not open should have ContextTimeoutEnabled,
// and MaxRetries -1: else a server that hangs, and comes back, is noticed late. A
// hook is added to each client, which counts connections.
func NewQuorum(nodes []redis.UniversalClient, cfg Config) (*Client, error) {
	c, err := newQuorum(nodes, cfg.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("lock: new quorum: %w", err)
	}
	return c, nil
}

func newQuorum(nodes []redis.UniversalClient, cfg Config) (*Client, error) {
	if n := len(nodes); n < minNodes || n > maxNodes || n%2 == 0 {
		return nil, fmt.Errorf("want an odd number of nodes from %d to %d, got %d", minNodes, maxNodes, n)
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.TTL > maxQuorumTTL {
		return nil, fmt.Errorf("TTL is %s, want at most %s: servers that were started later than that ago take no part", cfg.TTL, maxQuorumTTL)
	}
	conns := make([]*conn.Client, len(nodes))
	for i, rdb := range nodes {
		cn, err := conn.Of(rdb)
		if err == nil {
			err = cfg.refusesNode(cn)
		}
		if err == nil && slices.ContainsFunc(conns[:i], func(o *conn.Client) bool { return same(o.Unwrap(), rdb) || o == cn }) {
			err = errSameServer
		}
		if err != nil {
			return nil, fmt.Errorf("node %d: %w", i+1, err)
		}
		conns[i] = cn
	}
	c := newClient(cfg, conns[0].Logger())
	q := &quorum{client: c, need: len(nodes)/2 + 1, longest: cfg.TTL.Truncate(time.Millisecond), start: time.Now()}
	for i, cn := range conns {
		q.members = append(q.members, newMember(q, cn, i))
	}
	var err error
	if q.bell, err = newBell(q); err != nil {
		return nil, err
	}
	c.store, c.bell, c.longest = q, q.bell, q.longest
	return c, nil
}

// same reports whether two clients are one. Types that cannot be compared are not.
func same(a, b redis.UniversalClient) bool {
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	return va.Comparable() && vb.Comparable() && va.Equal(vb)
}

// refusesNode says why a client cannot be a node, as far as that shows without
// asking the server, or returns nil.
func (c Config) refusesNode(cn *conn.Client) error {
	if err := c.refusesUnseen(cn); err != nil {
		return err
	}
	switch ep := cn.Endpoint(); {
	case ep.Topology == endpoint.Cluster:
		return errCluster
	case ep.Topology != endpoint.Standalone:
		return fmt.Errorf("want one server, got a %s endpoint", ep.Topology)
	case ep.Proxy != "":
		return fmt.Errorf("want one server, got a proxy (%s), behind which there may be several or the same", ep.Proxy)
	}
	if _, ok := innermost(cn).(*redis.ClusterClient); ok {
		return errCluster
	}
	return nil
}

// clock counts from the beginning, monotonically.
func (q *quorum) clock() time.Duration { return time.Since(q.start) }

// propose returns the token that the nodes are asked to draw: one that is ahead of
// all their clocks, so that they draw the same, and one round of questions will
// do. 0 if their clocks are unknown.
func (q *quorum) propose(at time.Duration) int64 {
	leads := make([]int64, 0, maxNodes)
	for _, m := range q.members {
		if lead := m.lead.Load(); lead != 0 {
			leads = append(leads, lead)
		}
	}
	if len(leads) == 0 {
		return 0
	}
	slices.Sort(leads)
	most := leads[(len(leads)-1)/2] + maxLead.Microseconds()
	for i := len(leads) - 1; ; i-- {
		if leads[i] <= most {
			return leads[i] + (at + tokenLead).Microseconds()
		}
	}
}

// err says why the store can never serve: too many of its clients were closed, or
// never configured.
func (q *quorum) err() error {
	var first error
	left := len(q.members)
	for _, m := range q.members {
		if err := m.conn.Err(); err != nil {
			left--
			if first == nil {
				first = err
			}
		}
	}
	if left >= q.need {
		return nil
	}
	return first
}

// misconfigured reports whether err is one that somebody has to mend, and not one
// that passes.
func misconfigured(err error) bool {
	for _, kind := range []error{ErrSentinelEndpoint, ErrReplicaEndpoint, ErrFailoverManaged, ErrUnsafeEndpoint, errSameServer, errCluster} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// A roll is a call of all nodes that somebody waits for.
type roll struct {
	done chan struct{}
	err  error // set before done is closed
}

// admit lets an acquisition pass once a majority has said who it is. After that
// each node is looked after for itself: one that is found to be none only takes
// no part, so that the locks survive it.
func (q *quorum) admit(ctx context.Context, _ time.Duration) error {
	if q.ready.Load() {
		return nil
	}
	q.mu.Lock()
	r := q.roll
	if r == nil {
		r = &roll{done: make(chan struct{})}
		q.roll = r
		q.client.stay()
		go q.call(r)
	}
	q.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-q.client.closing.Done():
		return ErrClosed
	}
}

func (q *quorum) call(r *roll) {
	defer q.client.leave()
	ctx, cancel := context.WithTimeout(context.Background(), assembleMost) // not client.running, which bypasses the breaker
	defer cancel()
	defer context.AfterFunc(q.client.closing, cancel)()
	r.err = q.assemble(ctx, (*member).fit)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.roll = nil
	close(r.done)
}

// assemble asks all nodes who they are. It returns an error if there is something
// wrong with one, or if too many do not answer; it waits for all, or a little
// after a majority has answered.
func (q *quorum) assemble(ctx context.Context, ask func(*member, context.Context) error) error {
	type reply struct {
		member int
		err    error
	}
	replies := make(chan reply, len(q.members))
	for i, m := range q.members {
		q.client.stay()
		go func() {
			defer q.client.leave()
			begun := q.clock()
			err := m.begin()
			if err == nil {
				err = ask(m, ctx)
				m.end(begun, err)
			}
			replies <- reply{i, err}
		}()
	}
	errs := make([]error, len(q.members))
	for i := range errs {
		errs[i] = errMissing
	}
	good := 0
	timer := time.NewTimer(assembleMost)
	defer timer.Stop()
	for range q.members {
		select {
		case r := <-replies:
			errs[r.member] = r.err
			if r.err == nil {
				if good++; good == q.need {
					timer.Reset(assembleGrace)
				}
			}
			continue
		case <-timer.C:
		case <-ctx.Done():
		}
		break // those that are missing must do without
	}
	for i, err := range errs {
		if misconfigured(err) {
			return fmt.Errorf("%s: %w", q.members[i].name, err)
		}
	}
	if good < q.need {
		return q.outage(errs)
	}
	for i, err := range errs {
		if err != nil {
			q.client.log.Warn("a node of the lock quorum cannot take part", "node", q.members[i].name, "err", err)
		}
	}
	q.ready.Store(true)
	return nil
}

// check asks all nodes anew. A minority that does not answer is a warning. What was
// begun goes on when ctx ends: that says nothing of the nodes.
func (q *quorum) check(ctx context.Context) error {
	err := q.assemble(ctx, func(m *member, ctx context.Context) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), assembleMost)
		defer cancel()
		if err := m.node.check(ctx); err != nil {
			return err
		}
		return m.identify(ctx)
	})
	if ended := ended(ctx); err != nil && ended != nil {
		return fmt.Errorf("%w: %w", err, ended)
	}
	return err
}

// An outageError says that there is no server to ask, or no majority of them. It is
// an error of the servers, and not of the lock.
type outageError struct {
	text   string
	causes []error
	swept  bool // of one server: what the attempt may have left is being given up
}

func (e *outageError) Error() string   { return e.text }
func (e *outageError) Unwrap() []error { return e.causes }

// outage names the nodes that had errors.
func (q *quorum) outage(errs []error) error {
	e := new(outageError)
	var failures []string
	for i, err := range errs {
		if err != nil {
			failures = append(failures, q.members[i].name+": "+err.Error())
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) { // which are not the caller's
				e.causes = append(e.causes, err)
			}
		}
	}
	e.text = fmt.Sprintf("no majority: %d of %d nodes cannot be counted on: %s", len(failures), len(errs), strings.Join(failures, "; "))
	return e
}

func (q *quorum) nodes() []NodeStats {
	stats := make([]NodeStats, len(q.members))
	for i, m := range q.members {
		stats[i] = m.stats()
		stats[i].Absent = m.absence()
	}
	return stats
}

// close waits for nodes that do not answer no longer than for their answers: what
// hangs there ends with the client's read timeout.
func (q *quorum) close(ctx context.Context) error {
	errs := make([]error, len(q.members)+1)
	var all sync.WaitGroup
	all.Go(func() { errs[len(q.members)] = q.bell.close(ctx) })
	for i, m := range q.members {
		all.Go(func() {
			if !m.isSilent(q.clock()) {
				errs[i] = m.node.close(ctx)
				return
			}
			ctx, cancel := context.WithTimeout(ctx, nodeTimeoutMost)
			defer cancel()
			_ = m.node.close(ctx)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
