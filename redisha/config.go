package redisha

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/lock"
)

// A Config says where the roles are and how they shall work. The zero Config
// has every role closed. It holds passwords inside its URLs, which are hidden
// wherever it is printed or logged; only inside an unexported field of a struct
// that is itself printed, fmt reaches past that: do not print such a struct.
type Config struct {
	// Namespace begins the keys of all roles. Defaults to "redisha". A URL's
	// parameter namespace goes before it.
	Namespace string

	// Application is the last part of the connections' names, which CLIENT LIST
	// shows as redisha:<role>:<application>. Defaults to the program's file name.
	Application string

	// Logger receives what the clients notice. Defaults to slog.Default().
	Logger *slog.Logger

	// Lazy leaves connecting to the first use: Open then succeeds with servers
	// that are down, and Health tells.
	Lazy bool

	// CloseTimeout bounds each of the three steps of Close. Defaults to 5s.
	CloseTimeout time.Duration

	Cache   CacheConfig
	Caches  map[string]CacheConfig // further caches, by name; see NamedCache
	Broker  BrokerConfig
	Results ResultsConfig
	Locks   LocksConfig

	closed map[Role]error // why FromEnv left a role closed
}

// CacheConfig configures a cache. Of Config, Open sets Namespace, Name and
// Logger where they are empty.
type CacheConfig struct {
	Endpoint
	Config cache.Config
}

// BrokerConfig configures the broker. Of Config, Open sets Namespace and Logger
// where they are empty.
type BrokerConfig struct {
	Endpoint
	Config broker.Config
}

// ResultsConfig configures the result backend. Of Config, Open sets Namespace
// and Logger where they are empty.
type ResultsConfig struct {
	Endpoint
	Config result.Config
}

// LocksConfig configures the locks. Of Config, Open sets Namespace and Logger
// where they are empty. Its URL may name several servers, a quorum: see the
// package comment.
type LocksConfig struct {
	Endpoint
	Config lock.Config
}

// An Endpoint says where a role's Redis is and how to connect. The zero
// Endpoint closes the role: its calls return [ErrNotConfigured]. What the URL's
// parameters say goes before the fields, since the URL is the operator's.
type Endpoint struct {
	URL URL

	// TLS replaces what the URL's scheme and tls_* parameters say. Open clones it.
	TLS *tls.Config

	// SentinelTLS is TLS for the connections to Sentinels.
	SentinelTLS *tls.Config

	// Credentials, if set, is asked for user and password at each new
	// connection, and replaces those of the URL. It may be called by several
	// goroutines at once.
	Credentials func(context.Context) (user, password string, err error)

	// SentinelCredentials is the same for connections to Sentinels.
	SentinelCredentials func(context.Context) (user, password string, err error)

	// MapAddr, if set, translates the host:port that a Sentinel or a Cluster node
	// announces into the one to dial, for servers behind a NAT.
	MapAddr func(addr string) string

	// Dialer makes the network connections, TLS excepted: through a tunnel, or
	// to a server inside a test. Defaults to a net.Dialer with keep-alive.
	Dialer func(ctx context.Context, network, addr string) (net.Conn, error)

	// Pool bounds the role's connections.
	Pool Pool

	// Breaker configures the circuit breaker of the connections.
	Breaker breaker.Config

	from func() origin // what FromEnv found; a function, since fmt prints no further
}

// found returns what FromEnv found, if the URL is still the one of then.
func (e Endpoint) found() (origin, bool) {
	if e.from == nil || e.from().url != e.URL {
		return origin{}, false
	}
	return e.from(), true
}

// origin remembers what FromEnv found: the URL completed by other variables.
type origin struct {
	variable  string
	url       URL
	endpoints []endpoint.Endpoint
	shared    bool // not the role's own variable: parameters may be meant for other roles

	reread func() ([]endpoint.Endpoint, error) // nil where no file is involved
}

// Pool bounds the connections of one role to one server. Zero fields have the
// defaults that operators of Java pools know.
type Pool struct {
	// MaxTotal is how many connections there may be. Defaults to 100. Parameter pool_size.
	MaxTotal int

	// MaxIdle is how many of them may stay open unused. Defaults to 100, or
	// MaxTotal if that is less. Parameter max_idle_conns.
	MaxIdle int

	// MinIdle is how many are kept open unused. Defaults to 0. Parameter min_idle_conns.
	MinIdle int

	// MaxWait is how long a command waits for a connection when all are in use.
	// Defaults to 2s. Parameter pool_timeout.
	MaxWait time.Duration

	// IdleTimeout is how long a connection may stay unused: it is not used again
	// then, and closed within 20s, but for MinIdle. Defaults to 60s; negative
	// means no limit. Parameter conn_max_idle_time.
	IdleTimeout time.Duration

	// MaxLifetime is how old a connection may get before it is closed instead of
	// used again. Zero or negative means no limit. Parameter conn_max_lifetime.
	MaxLifetime time.Duration
}

// roles lists the four roles and the named caches, in a fixed order.
func (c Config) roles() []Role {
	roles := []Role{Cache}
	for _, name := range slices.Sorted(maps.Keys(c.Caches)) {
		roles = append(roles, NamedCache(name))
	}
	return append(roles, Broker, Results, Locks)
}

func (c Config) of(r Role) Endpoint {
	switch r {
	case Cache:
		return c.Cache.Endpoint
	case Broker:
		return c.Broker.Endpoint
	case Results:
		return c.Results.Endpoint
	case Locks:
		return c.Locks.Endpoint
	}
	name, _ := r.cacheName()
	return c.Caches[name].Endpoint
}

func (c *Config) set(r Role, ep Endpoint) {
	switch r {
	case Cache:
		c.Cache.Endpoint = ep
	case Broker:
		c.Broker.Endpoint = ep
	case Results:
		c.Results.Endpoint = ep
	case Locks:
		c.Locks.Endpoint = ep
	default:
		if c.Caches == nil {
			c.Caches = map[string]CacheConfig{}
		}
		name, _ := r.cacheName()
		c.Caches[name] = CacheConfig{Endpoint: ep}
	}
}

func (c Config) withDefaults() Config {
	if c.Namespace == "" {
		c.Namespace = "redisha"
	}
	if c.Application == "" {
		c.Application = program()
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.CloseTimeout == 0 {
		c.CloseTimeout = 5 * time.Second
	}
	return c
}

// program is the program's file name, as far as a connection's name may hold it.
func program() string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, filepath.Base(os.Args[0]))
}

func (c Config) validate() error {
	var errs []error
	for _, r := range c.Application {
		if r <= ' ' || r > '~' {
			errs = append(errs, fmt.Errorf("Config.Application is %q, want printable ASCII without spaces: CLIENT SETNAME takes nothing else", c.Application))
			break
		}
	}
	if !validNamespace(c.Namespace) {
		errs = append(errs, fmt.Errorf("Config.Namespace is %q, want %s", c.Namespace, namespaceRule))
	}
	if c.CloseTimeout < 0 {
		errs = append(errs, fmt.Errorf("Config.CloseTimeout is %s, want more than 0, or 0 for 5s", c.CloseTimeout))
	}
	for name := range c.Caches {
		if err := validateName(name); err != nil {
			errs = append(errs, fmt.Errorf("Config.Caches: %w", err))
		}
	}
	return errors.Join(errs...)
}

// LogValue shows each configured role's URL, without passwords.
func (c Config) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("namespace", c.Namespace), slog.String("application", c.Application)}
	for _, r := range c.roles() {
		if ep := c.of(r); ep.URL != "" {
			attrs = append(attrs, slog.Any(string(r), ep.URL))
		}
	}
	return slog.GroupValue(attrs...)
}
