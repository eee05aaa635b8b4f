// Package conn turns an endpoint into a client that a role works with.
//
// A [Client] is a go-redis client with a pool of its own, a circuit breaker and
// statistics, which knows what is behind it: the topology, the primary of a
// key, where reads may go, and when the primary has changed. Roles take any
// redis.UniversalClient and ask [Of] for that knowledge; a client that was not
// made here is wrapped and knows less.
package conn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/stats"
)

var (
	// ErrClosed is returned by every call after Close. It is go-redis' own.
	ErrClosed = redis.ErrClosed

	// ErrNotConfigured is returned by every call on a role without endpoint.
	// The error that wraps it says which variable to set.
	ErrNotConfigured = errors.New("role not configured")
)

// A Client is a client of one role. It is safe for concurrent use.
type Client struct {
	redis.UniversalClient

	role        string
	topology    endpoint.Topology
	cluster     bool
	ep          func() endpoint.Endpoint // a function, since fmt prints no further: it holds passwords
	own         bool                     // made by New: Close closes the go-redis client
	reason      error
	log         *slog.Logger
	patient     bool
	maxRepeats  int // negative: no limit
	maxTotal    int
	dialTimeout time.Duration

	breakers  *breakers // nil: off, or a foreign client
	registry  *registry
	follower  *follower // nil where the primary is not looked for
	reader    *reader   // nil: reads go to the primary
	epochs    epochs
	primaries primaries // of a Cluster
	scout     *scout    // of a Cluster

	*counts

	gate      gate
	closing   chan struct{} // closed by Close
	closeOnce sync.Once
	closeErr  error
}

// counts are shared with the client of the replicas: a role's reads count
// wherever they are answered.
type counts struct {
	commands stats.Commands
	dials    stats.Counter
	undialed stats.Counter
	repeats  stats.Counter // attempts after the first
	unknown  stats.Counter // commands with ErrOutcomeUnknown
	waits    stats.Counter // commands that waited for a primary
}

// New returns a client for cfg. It does no I/O but reading TLS files; with
// Pool.MinIdle, go-redis begins to dial in the background, and where the primary
// has to be found, the search for it begins.
func New(cfg Config) (*Client, error) {
	given := cfg.Endpoint
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	c := &Client{
		role: cfg.Role, own: true, log: cfg.Logger, patient: !cfg.FailFast,
		maxTotal: cfg.Pool.MaxTotal, dialTimeout: cfg.Endpoint.DialTimeout, maxRepeats: -1,
		registry: newRegistry(cfg.Pool.IdleTimeout, cfg.Pool.MinIdle),
		closing:  make(chan struct{}),
		counts:   new(counts),
	}
	switch retries := cfg.Endpoint.MaxRetries; {
	case retries > 0:
		c.maxRepeats = retries
	case retries < 0:
		c.maxRepeats = 0
	}
	c.describe(given)
	dial, err := cfg.dialer()
	if err != nil {
		return nil, err
	}
	if cfg.breakerOn() {
		c.breakers = newBreakers(cfg.Role, cfg.logged())
		if _, err := c.breakers.of(cfg.Endpoint.Addrs[0]); err != nil { // a mistake in its configuration
			return nil, err
		}
	}
	switch cfg.Endpoint.Topology {
	case endpoint.Cluster:
		c.openCluster(cfg, dial)
	case endpoint.Sentinel, endpoint.Replicated:
		err = c.openFollower(cfg, dial)
	default:
		c.openSingle(cfg, dial)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// openSingle makes the client of one address.
func (c *Client) openSingle(cfg Config, dial dialFunc) {
	opt := cfg.options()
	opt.Dialer = c.counted(func(ctx context.Context, network, addr string) (net.Conn, error) {
		gen := c.registry.gen.Load()
		nc, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return c.registry.add(nc, addr, gen)
	})
	c.UniversalClient = c.hooked(redis.NewClient(opt), opt.Addr)
}

// openFollower makes the client of a primary that has to be found.
func (c *Client) openFollower(cfg Config, dial dialFunc) error {
	r, err := cfg.resolver(dial)
	if err != nil {
		return err
	}
	f := newFollower(c, r, dial)
	c.follower = f
	c.registry.readTimeout, c.registry.stuck = cfg.Endpoint.ReadTimeout, f.suspect
	opt := cfg.options()
	opt.Addr = "primary" // for messages only: the Dialer knows better
	opt.Dialer = c.counted(f.dialPrimary)
	f.options = opt
	c.UniversalClient = c.hooked(redis.NewClient(opt), cfg.Endpoint.Addrs[0])
	if cfg.Endpoint.ReadFrom != "" && cfg.Endpoint.ReadFrom != endpoint.ReadPrimary {
		c.reader = c.readerOf(cfg, dial)
	}
	f.start()
	return nil
}

// hooked adds the hooks of a client for one server, the outermost first.
func (c *Client) hooked(rdb *redis.Client, addr string) *redis.Client {
	rdb.AddHook(hook{c})
	if c.breakers != nil {
		if h, err := c.breakers.of(addr); err == nil {
			rdb.AddHook(h)
		}
	}
	return rdb
}

// counted counts dials and marks their failures: nothing was sent.
func (c *Client) counted(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if err := ctx.Err(); err != nil { // of go-redis' PubSub, when it is closed
			return nil, &unsentError{err: err, connect: true}
		}
		c.dials.Inc()
		nc, err := dial(ctx, network, addr)
		if err != nil {
			c.undialed.Inc()
			return nil, &unsentError{err: err, connect: true}
		}
		return nc, nil
	}
}

// Closed returns a client whose every command fails with reason, which should
// wrap [ErrNotConfigured]. It never dials.
func Closed(role string, reason error) *Client {
	c := &Client{role: role, own: true, reason: reason, log: slog.Default(), registry: newRegistry(0, 0), closing: make(chan struct{}), counts: new(counts)}
	c.describe(endpoint.Endpoint{Topology: endpoint.Standalone})
	rdb := redis.NewClient(&redis.Options{
		Addr:       "127.0.0.1:0",
		MaxRetries: -1,
		Dialer:     refuse(reason),
	})
	rdb.AddHook(hook{c})
	c.UniversalClient = rdb
	return c
}

// Of returns what is known of rdb: rdb itself if New made it, else a wrapper
// with the topology that its type shows, without breaker and command
// statistics. The wrapper's Close does not close rdb.
func Of(rdb redis.UniversalClient) (*Client, error) {
	if v := reflect.ValueOf(rdb); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, errors.New("nil client: pass a go-redis client or one that redisha.Open made")
	}
	var topology endpoint.Topology
	switch rdb := rdb.(type) {
	case *Client:
		return rdb, nil
	case *redis.Ring:
		return nil, errors.New("a redis.Ring spreads keys by its own hashing, which scripts over several keys cannot follow: pass a redis.Client or a redis.ClusterClient")
	case *redis.ClusterClient:
		topology = endpoint.Cluster
	case *redis.Client:
		topology = endpoint.Standalone
		if rdb.Options().Addr == failoverAddr {
			topology = endpoint.Sentinel
		}
	default:
		topology = endpoint.Standalone
	}
	c := &Client{UniversalClient: rdb, log: slog.Default(), registry: newRegistry(0, 0), closing: make(chan struct{}), counts: new(counts)}
	c.cluster = topology == endpoint.Cluster
	c.describe(endpoint.Endpoint{Topology: topology})
	return c, nil
}

func (c *Client) describe(ep endpoint.Endpoint) {
	c.topology, c.ep = ep.Topology, func() endpoint.Endpoint { return ep }
}

// failoverAddr is the address that go-redis gives to the options of a client
// made by NewFailoverClient.
const failoverAddr = "FailoverClient"

// Role names the role in errors, logs and statistics; it is empty for a foreign client.
func (c *Client) Role() string { return c.role }

// Topology says what is behind the client.
func (c *Client) Topology() endpoint.Topology { return c.topology }

// Endpoint is what the client was made from. A foreign client's has its topology alone.
func (c *Client) Endpoint() endpoint.Endpoint { return c.ep() }

// Own reports whether New made the client, so that its connections follow the
// settings and guarantees of this package.
func (c *Client) Own() bool { return c.own }

// Unwrap returns the go-redis client underneath.
func (c *Client) Unwrap() redis.UniversalClient { return c.UniversalClient }

// Err says why the client can never serve: the reason of [Closed], or
// [ErrClosed] after Close. It is nil for one in use.
func (c *Client) Err() error {
	if c.reason != nil {
		return c.reason
	}
	if c.gate.closed() {
		return ErrClosed
	}
	return nil
}

// Logger is where the client logs; never nil.
func (c *Client) Logger() *slog.Logger { return c.log }

// Epoch counts the changes of primary that the client has noticed; on Cluster,
// of any primary. It is 0 for a single server and for foreign clients.
func (c *Client) Epoch() uint64 { return c.epochs.n.Load() }

// OnEpoch calls f after each change of primary, until stop is called. f must not
// block, and not call stop. Where the primary cannot change, f is never called.
func (c *Client) OnEpoch(f func(epoch uint64)) (stop func()) { return c.epochs.listen(f) }

// Replicas is the number of replicas that the endpoint has as far as is known
// without asking: those that its Sentinels say are up, or else that it names. It
// is 0 for a single server, for a Cluster, and for a foreign client.
func (c *Client) Replicas() int {
	if c.follower == nil {
		return 0
	}
	n := len(c.follower.resolver.State().Replicas)
	if c.topology == endpoint.Replicated {
		n = max(n, len(c.ep().Addrs)-1)
	}
	return n
}

// Reader returns where reads go that may be answered by a replica: replicas if
// the endpoint asks for them, else the client itself.
func (c *Client) Reader() redis.UniversalClient {
	if c.reader != nil {
		return c.reader
	}
	return c
}

// Watch is that of go-redis. A transaction in it is not repeated when the server
// refuses it: it would be without its WATCH then.
func (c *Client) Watch(ctx context.Context, fn func(*redis.Tx) error, keys ...string) error {
	return c.UniversalClient.Watch(ctx, func(tx *redis.Tx) error {
		tx.AddHook(watched{})
		return fn(tx)
	}, keys...)
}

// Node returns a client of the one server that holds key. What it pipelines
// travels on one connection, so that a WAIT covers the writes before it. On
// Cluster its commands are neither repeated nor marked with [ErrOutcomeUnknown],
// as those of EachPrimary, EachNode and Watch.
func (c *Client) Node(ctx context.Context, key string) (redis.UniversalClient, error) {
	if cluster, ok := c.UniversalClient.(*redis.ClusterClient); ok {
		node, err := cluster.MasterForKey(ctx, key)
		if err != nil {
			return nil, fmt.Errorf("node of a key: %w", err) // which may be a secret
		}
		return node, nil
	}
	return c, nil
}

// EachPrimary calls fn for every primary, at once on Cluster, and returns one
// of the errors.
func (c *Client) EachPrimary(ctx context.Context, fn func(context.Context, redis.UniversalClient) error) error {
	if cluster, ok := c.UniversalClient.(*redis.ClusterClient); ok {
		return cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return fn(ctx, node) })
	}
	return fn(ctx, c)
}

// Drain refuses new commands with [ErrClosed], waits for those under way
// until ctx is done, and closes the connections. A foreign client is only
// forgotten, never closed. It is safe to call again and beside Close.
func (c *Client) Drain(ctx context.Context) error {
	c.gate.close()
	err := c.gate.wait(ctx)
	if err == nil && c.reader != nil {
		c.reader.own.gate.close()
		err = c.reader.own.gate.wait(ctx)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", c.role, err), c.Close())
	}
	return c.Close()
}

// Close closes the connections at once; commands under way fail. A foreign
// client is only forgotten, never closed. Calling it again is safe.
func (c *Client) Close() error {
	c.gate.close()
	c.closeOnce.Do(func() {
		close(c.closing)
		if c.own {
			c.closeErr = c.close()
		}
	})
	return c.closeErr
}

func (c *Client) close() error {
	var errs []error
	if c.follower != nil {
		errs = append(errs, c.follower.close())
	}
	if c.reader != nil {
		errs = append(errs, c.reader.Close())
	}
	errs = append(errs, c.UniversalClient.Close())
	if c.scout != nil {
		c.scout.close()
	}
	c.registry.close()
	for i, err := range errs {
		if errors.Is(err, ErrClosed) {
			errs[i] = nil
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close %s: %w", c.role, err)
	}
	return nil
}
