package redisha

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/lock"
)

// Clients holds the client of each role. No field is nil: a role without
// endpoint has a client whose calls return [ErrNotConfigured] and say which
// variable to set. All methods are safe for concurrent use; the fields must not
// be changed.
type Clients struct {
	Cache   *cache.Client
	Caches  map[string]*cache.Client // those of Config.Caches; for others use NamedCache with FromEnv
	Broker  *broker.Client
	Results *result.Client
	Locks   *lock.Client

	log          *slog.Logger
	closeTimeout time.Duration
	conns        map[Role]*conn.Client
	closeOnce    sync.Once
	closeErr     error
}

// Open opens the configured roles. Mistakes in the configuration come back in
// one error, a line each. Unless Config.Lazy is set, Open then connects to each
// role once and checks that it is what the URL says, all at the same time and
// until ctx is done. A cache that cannot be reached is only logged, since an
// outage of a cache must not keep a program from starting; any other role's
// failure is Open's, and nothing stays open.
//
// ctx bounds Open alone, not the life of the clients: end that with Close.
func Open(ctx context.Context, cfg Config) (*Clients, error) {
	if ctx == nil {
		return nil, fmt.Errorf("redisha: open: %w", errNilContext)
	}
	cfg = cfg.withDefaults()
	c := &Clients{
		Caches:       map[string]*cache.Client{},
		log:          cfg.Logger,
		closeTimeout: max(cfg.CloseTimeout, 0),
		conns:        map[Role]*conn.Client{},
	}
	problems := lines{}
	if err := cfg.validate(); err != nil {
		problems.add(err)
		cfg.Namespace, cfg.CloseTimeout = "redisha", 0 // reported once, not by every role
	}
	for _, r := range cfg.roles() {
		if err := c.open(r, cfg); err != nil {
			problems.add(err)
		}
	}
	err := problems.err()
	if err == nil && !cfg.Lazy {
		err = c.connect(ctx, cfg)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// open makes the client of a role.
func (c *Clients) open(r Role, cfg Config) error {
	ep, rdb, err := cfg.client(r)
	if err != nil {
		return err
	}
	c.conns[r] = rdb
	found, _ := cfg.of(r).found()
	s := settings{ep, found.shared, cfg}
	switch r {
	case Broker:
		own := cfg.Broker.Config
		if err = s.apply(r, &own.Namespace, &own.Logger, &own.CloseTimeout, nil, &own.Compress); err == nil {
			c.Broker, err = broker.New(rdb, own)
		}
	case Results:
		own := cfg.Results.Config
		if err = s.apply(r, &own.Namespace, &own.Logger, &own.CloseTimeout, &own.TTL, &own.Compress); err == nil {
			c.Results, err = result.New(rdb, own)
		}
	case Locks:
		own := cfg.Locks.Config
		if err = s.apply(r, &own.Namespace, &own.Logger, &own.CloseTimeout, &own.TTL, nil); err == nil {
			c.Locks, err = lock.New(rdb, own)
		}
	case Cache:
		c.Cache, err = openCache(r, rdb, s, cfg.Cache.Config)
	default:
		name, _ := r.cacheName()
		own := cfg.Caches[name].Config
		own.Name = cmp.Or(own.Name, name)
		c.Caches[name], err = openCache(r, rdb, s, own)
	}
	if err != nil {
		return eachLine("open "+string(r)+": "+cfg.of(r).variable(), err)
	}
	return nil
}

// eachLine begins each of the joined errors with prefix.
func eachLine(prefix string, err error) error {
	errs := lineByLine(err)
	if len(errs) == 1 {
		return fmt.Errorf("%s%w", prefix, err)
	}
	prefixed := make([]error, len(errs))
	for i, err := range errs {
		prefixed[i] = eachLine(prefix, err)
	}
	return errors.Join(prefixed...)
}

func openCache(r Role, rdb *conn.Client, s settings, own cache.Config) (*cache.Client, error) {
	compression := compress.Config{MinSize: own.MinCompressBytes}
	if err := s.apply(r, &own.Namespace, &own.Logger, &own.CloseTimeout, &own.TTL, &compression); err != nil {
		return nil, err
	}
	own.MinCompressBytes = compression.MinSize
	return cache.New(rdb, own)
}

// connect checks every configured role at once.
func (c *Clients) connect(ctx context.Context, cfg Config) error {
	var problems lines
	for r, err := range sorted(c.Health(ctx)) {
		if err == nil {
			continue
		}
		err = fmt.Errorf("open %s: %s%w", r, cfg.of(r).variable(), err)
		if r.isCache() {
			c.log.WarnContext(ctx, "cache cannot be reached, and is not needed to start", "role", string(r), "err", err)
			continue
		}
		problems.add(err)
	}
	return problems.err()
}

// Health connects to each configured role, all at the same time and until ctx
// is done, and returns what it found: nil for a role that answers. It passes
// open breakers. Closed roles are left out; after Close all have [ErrClosed].
func (c *Clients) Health(ctx context.Context) map[Role]error {
	type finding struct {
		role Role
		err  error
	}
	findings := make(chan finding, len(c.conns))
	n := 0
	for r, rdb := range c.conns {
		if errors.Is(rdb.Err(), ErrNotConfigured) {
			continue
		}
		n++
		go func() { findings <- finding{r, c.check(ctx, r)} }()
	}
	health := make(map[Role]error, n)
	for range n {
		f := <-findings
		health[f.role] = f.err
	}
	return health
}

// check asks the role, which may demand more than that its server answers.
func (c *Clients) check(ctx context.Context, r Role) error {
	switch r {
	case Cache:
		return c.Cache.Check(ctx)
	case Broker:
		return c.Broker.Check(ctx)
	case Results:
		return c.Results.Check(ctx)
	case Locks:
		return c.Locks.Check(ctx)
	}
	name, _ := r.cacheName()
	return c.Caches[name].Check(ctx)
}

// Close ends the clients, in the order in which they need each other: first the
// broker, whose running workers finish or give back their tasks; then results,
// locks, whose leases end, and caches, all at once; then the connections, once
// the commands under way have been answered. Each of the three takes at most
// Config.CloseTimeout. Calls on the clients then return [ErrClosed]. Calling
// Close again returns what it returned the first time.
func (c *Clients) Close() error {
	c.closeOnce.Do(func() { c.closeErr = c.close() })
	return c.closeErr
}

func (c *Clients) close() error {
	var (
		mu   sync.Mutex
		errs []error
		wait sync.WaitGroup
	)
	end := func(closeRole func() error) {
		wait.Go(func() {
			if err := closeRole(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("redisha: close: %w", err))
			}
		})
	}
	// A role that could not be made, in an Open that failed, is nil.
	if c.Broker != nil {
		end(c.Broker.Close)
	}
	wait.Wait()
	if c.Results != nil {
		end(c.Results.Close)
	}
	if c.Locks != nil {
		end(c.Locks.Close)
	}
	for _, named := range c.Caches {
		if named != nil {
			end(named.Close)
		}
	}
	if c.Cache != nil {
		end(c.Cache.Close)
	}
	wait.Wait()

	ctx, cancel := context.WithTimeout(context.Background(), c.closeTimeout)
	defer cancel()
	for _, rdb := range c.conns {
		end(func() error { return rdb.Drain(ctx) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// client makes the connection of a role, and returns the endpoint it leads to.
func (c Config) client(r Role) (endpoint.Endpoint, *conn.Client, error) {
	ep := c.of(r)
	if ep.URL == "" {
		reason := c.closed[r]
		if reason == nil {
			reason = r.errNotSet()
		}
		return endpoint.Endpoint{}, conn.Closed(string(r), fmt.Errorf("redisha: %w", reason)), nil
	}
	eps, err := ep.resolve(r)
	if err != nil {
		return endpoint.Endpoint{}, nil, err
	}
	if err = r.refuses(eps); err == nil && len(eps) > 1 {
		err = fmt.Errorf("a quorum of %d servers is understood, but this version cannot open one yet: use one redis:// URL", len(eps))
	}
	if err != nil {
		return endpoint.Endpoint{}, nil, fmt.Errorf("open %s: %s%w", r, ep.variable(), err)
	}
	found, _ := ep.found()
	if err := r.onlyPrimary(&eps[0], found.shared); err != nil {
		return endpoint.Endpoint{}, nil, fmt.Errorf("open %s: %s%w", r, ep.variable(), err)
	}
	data, sentinels := ep.logins(r, eps[0], c.Logger)
	rdb, err := conn.New(conn.Config{
		Role:        string(r),
		Application: c.Application,
		Endpoint:    eps[0],
		FailFast:    r.isCache(),
		MapAddr:     ep.MapAddr,
		TLS:         ep.TLS,
		SentinelTLS: ep.SentinelTLS,
		Credentials: data,

		SentinelCredentials: sentinels,

		Dialer:  ep.Dialer,
		Pool:    conn.Pool(ep.Pool),
		Breaker: ep.Breaker,
		Logger:  c.Logger,
	})
	if err != nil {
		return endpoint.Endpoint{}, nil, eachLine("open "+string(r)+": "+ep.variable(), err)
	}
	return eps[0], rdb, nil
}

// resolve parses the URL, unless FromEnv has done so.
func (e Endpoint) resolve(r Role) ([]endpoint.Endpoint, error) {
	if found, ok := e.found(); ok {
		return found.endpoints, nil
	}
	eps, err := r.parse(string(e.URL))
	if err == nil {
		err = eps[0].Validate()
	}
	if err != nil {
		return nil, inVariable(r.field()+".URL", string(e.URL), err)
	}
	return eps, nil
}

// variable names the variable that the URL came from, for the beginning of an error.
func (e Endpoint) variable() string {
	if found, ok := e.found(); ok {
		return found.variable + ": "
	}
	return ""
}

// sorted iterates over m in the order of its keys.
func sorted[V any](m map[Role]V) func(yield func(Role, V) bool) {
	return func(yield func(Role, V) bool) {
		for _, r := range slices.Sorted(maps.Keys(m)) {
			if !yield(r, m[r]) {
				return
			}
		}
	}
}
