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
	"reflect"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
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

	role     string
	topology endpoint.Topology
	ep       func() endpoint.Endpoint // a function, since fmt prints no further: it holds passwords
	own      bool                     // made by New: Close closes the go-redis client
	reason   error
	log      *slog.Logger
	breaker  *breaker.Hook // nil for a foreign client
	commands stats.Commands
	dials    stats.Counter
	undialed stats.Counter

	gate      gate
	closeOnce sync.Once
	closeErr  error
}

// New returns a client for cfg. It does no I/O but reading TLS files; with
// Pool.MinIdle, go-redis begins to dial in the background.
func New(cfg Config) (*Client, error) {
	given := cfg.Endpoint
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	c := &Client{role: cfg.Role, own: true, log: cfg.Logger}
	c.describe(given)
	opt, err := cfg.options()
	if err != nil {
		return nil, err
	}
	if cfg.breakerOn() {
		if c.breaker, err = breaker.New(cfg.Role, opt.Addr, cfg.logged()); err != nil {
			return nil, err
		}
	}
	rdb := redis.NewClient(opt)
	rdb.AddHook(hook{c}) // outermost: it also sees what the breaker refuses
	if c.breaker != nil {
		rdb.AddHook(c.breaker)
	}
	c.UniversalClient = rdb
	return c, nil
}

// Closed returns a client whose every command fails with reason, which should
// wrap [ErrNotConfigured]. It never dials.
func Closed(role string, reason error) *Client {
	c := &Client{role: role, own: true, reason: reason, log: slog.Default()}
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
	c := &Client{UniversalClient: rdb, log: slog.Default()}
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

// Epoch counts the changes of primary that the client has noticed. It is 0
// where there is none to change: for standalone and foreign clients.
func (c *Client) Epoch() uint64 { return 0 }

// OnEpoch calls f after each change of primary, until stop is called. f must
// not block. Where the primary cannot change, f is never called.
func (c *Client) OnEpoch(f func(epoch uint64)) (stop func()) { return func() {} }

// Reader returns where reads go that may be answered by a replica: replicas if
// the endpoint asks for them, else the client itself.
func (c *Client) Reader() redis.UniversalClient { return c }

// Node returns a client of the one server that holds key. What it pipelines
// travels on one connection, so that a WAIT covers the writes before it.
func (c *Client) Node(ctx context.Context, key string) (redis.UniversalClient, error) {
	if cluster, ok := c.UniversalClient.(*redis.ClusterClient); ok {
		node, err := cluster.MasterForKey(ctx, key)
		if err != nil {
			return nil, fmt.Errorf("node of key %q: %w", key, err)
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
	if err := c.gate.wait(ctx); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", c.role, err), c.Close())
	}
	return c.Close()
}

// Close closes the connections at once; commands under way fail. A foreign
// client is only forgotten, never closed. Calling it again is safe.
func (c *Client) Close() error {
	c.gate.close()
	c.closeOnce.Do(func() {
		if !c.own {
			return
		}
		if err := c.UniversalClient.Close(); err != nil && !errors.Is(err, ErrClosed) {
			c.closeErr = fmt.Errorf("close %s: %w", c.role, err)
		}
	})
	return c.closeErr
}
