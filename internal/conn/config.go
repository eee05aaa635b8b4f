package conn

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/endpoint"
)

// A Config says what [New] shall make. What the endpoint's URL says goes before
// what its other fields say: the URL is the operator's, the fields are the
// program's.
type Config struct {
	Role        string // "cache", "broker", …; required
	Application string // the last part of the connections' name
	Endpoint    endpoint.Endpoint

	TLS         *tls.Config // instead of the files that the URL names
	SentinelTLS *tls.Config
	Credentials func(context.Context) (user, password string, err error) // asked at each new connection
	Dialer      func(ctx context.Context, network, addr string) (net.Conn, error)
	Pool        Pool
	Breaker     breaker.Config
	Logger      *slog.Logger // nil: slog.Default()

	// MapAddr translates an address that Sentinels or Cluster nodes announce into
	// one to dial. Nil: as it is.
	MapAddr func(addr string) string

	// SentinelCredentials are asked at each new connection to a Sentinel, instead
	// of those of the URL.
	SentinelCredentials func(context.Context) (user, password string, err error)

	// FailFast is for a role that has something better to do than to wait for
	// Redis: a command is repeated once at most, without a pause.
	FailFast bool
}

// A Pool bounds the connections of one role. redisha.Pool documents its fields.
type Pool struct {
	MaxTotal    int
	MaxIdle     int
	MinIdle     int
	MaxWait     time.Duration
	IdleTimeout time.Duration
	MaxLifetime time.Duration
}

// Defaults of the pool and of the timeouts.
const (
	DefaultMaxTotal    = 100
	DefaultMaxIdle     = 100
	DefaultMaxWait     = 2 * time.Second
	DefaultIdleTimeout = time.Minute
	DefaultDialTimeout = 2 * time.Second
	DefaultIOTimeout   = 3 * time.Second
)

func (c Config) withDefaults() Config {
	ep, pool := &c.Endpoint, &c.Pool
	c.Logger = cmp.Or(c.Logger, slog.Default())
	c.Application = cmp.Or(c.Application, "app")
	pool.MaxTotal = cmp.Or(ep.PoolSize, pool.MaxTotal, DefaultMaxTotal)
	pool.MaxIdle = cmp.Or(ep.MaxIdleConns, pool.MaxIdle, min(DefaultMaxIdle, pool.MaxTotal))
	pool.MinIdle = cmp.Or(ep.MinIdleConns, pool.MinIdle)
	pool.MaxWait = cmp.Or(ep.PoolTimeout, pool.MaxWait, DefaultMaxWait)
	pool.IdleTimeout = cmp.Or(ep.ConnMaxIdleTime, pool.IdleTimeout, DefaultIdleTimeout)
	pool.MaxLifetime = cmp.Or(ep.ConnMaxLifetime, pool.MaxLifetime)
	if ep.Topology == endpoint.Cluster {
		ep.DialTimeout = cmp.Or(ep.DialTimeout, clusterDialTimeout)
	}
	ep.DialTimeout = cmp.Or(ep.DialTimeout, DefaultDialTimeout)
	ep.ReadTimeout = cmp.Or(ep.ReadTimeout, DefaultIOTimeout)
	ep.WriteTimeout = cmp.Or(ep.WriteTimeout, ep.ReadTimeout)
	ep.ClientName = cmp.Or(ep.ClientName, "redisha:"+c.Role+":"+c.Application)
	return c
}

func (c Config) breakerOn() bool {
	return c.Endpoint.Breaker != "off" && !c.Breaker.Disabled
}

// logged returns the breaker's configuration with its changes logged.
func (c Config) logged() breaker.Config {
	cfg, next := c.Breaker, c.Breaker.OnStateChange
	cfg.OnStateChange = func(change breaker.Change) {
		level, msg := slog.LevelInfo, "circuit breaker "+change.To.String()
		attrs := []slog.Attr{slog.String("role", change.Role), slog.String("addr", change.Node)}
		switch {
		case change.To == breaker.StateOpen && change.From == breaker.StateClosed:
			level = slog.LevelWarn
			attrs = append(attrs, slog.Bool("writes_only", change.WritesOnly), slog.Any("err", change.Cause))
		case change.To != breaker.StateClosed: // probes, once a second
			level = slog.LevelDebug
		}
		c.Logger.LogAttrs(context.Background(), level, msg, attrs...)
		if next != nil {
			next(change)
		}
	}
	return cfg
}

func (c Config) validate() error {
	p := c.Pool
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if p.MaxTotal < 0 {
		return fmt.Errorf("Pool.MaxTotal is %d, want at least 1, or 0 for %d", p.MaxTotal, DefaultMaxTotal)
	}
	if p.MinIdle < 0 || p.MinIdle > p.MaxTotal {
		bad("Pool.MinIdle is %d, want 0 to Pool.MaxTotal (%d); parameters min_idle_conns and pool_size", p.MinIdle, p.MaxTotal)
	} else if p.MaxIdle < 0 || p.MaxIdle < p.MinIdle {
		bad("Pool.MaxIdle is %d, want at least Pool.MinIdle (%d), or 0 for the smaller of %d and Pool.MaxTotal", p.MaxIdle, p.MinIdle, DefaultMaxIdle)
	}
	if p.MaxWait < 0 {
		bad("Pool.MaxWait is %s, want more than 0, or 0 for %s", p.MaxWait, DefaultMaxWait)
	}
	if c.Endpoint.DB != 0 && c.Endpoint.Proxy != "" {
		bad("proxy=%s has database 0 alone, not %d", c.Endpoint.Proxy, c.Endpoint.DB)
	}
	return errors.Join(errs...)
}

// options translates c to go-redis. Options that would make it do what the
// design forbids (repeat commands, dial five times, look up maintenance
// endpoints, open a second pool for pipelines) are turned off for good.
func (c Config) options() *redis.Options {
	ep := c.Endpoint
	opt := &redis.Options{
		Network:                    ep.Network,
		Addr:                       ep.Addrs[0],
		OnConnect:                  c.onConnect(master),
		Protocol:                   ep.Protocol,
		Username:                   ep.Username,
		Password:                   ep.Password,
		CredentialsProviderContext: c.Credentials,
		DB:                         ep.DB,
		MaxRetries:                 -1, // 0 would mean 3, and a cut INCR would count twice
		DialTimeout:                ep.DialTimeout,
		DialerRetries:              1,
		ReadTimeout:                ep.ReadTimeout,
		WriteTimeout:               ep.WriteTimeout,
		ContextTimeoutEnabled:      true, // else contexts do not bound socket reads
		PoolSize:                   c.Pool.MaxTotal,
		PoolTimeout:                c.Pool.MaxWait,
		PipelinePoolSize:           -1,
		MinIdleConns:               c.Pool.MinIdle,
		MaxIdleConns:               c.Pool.MaxIdle,
		ConnMaxIdleTime:            c.Pool.IdleTimeout,
		ConnMaxLifetime:            c.Pool.MaxLifetime,
		MaintNotificationsConfig:   &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if ep.Proxy != "" { // https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/other_protocols/redis
		opt.Protocol, opt.DisableIdentity, opt.OnConnect = 2, true, nil
	}
	return opt
}
