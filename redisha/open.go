package redisha

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	conns        map[Role][]*conn.Client // one each, but for a quorum of locks
	closeOnce    sync.Once
	closeErr     error
}

// Open opens the configured roles. Mistakes in the configuration come back in
// one error, a line each. Unless Config.Lazy is set, Open then connects to each
// role once and checks that it is what the URL says, all at the same time and
// until ctx is done. A cache that cannot be reached is only logged, since an
// outage of a cache must not keep a program from starting; so is a minority of
// the servers of a lock quorum. Any other role's failure is Open's, and nothing
// stays open.
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
		conns:        map[Role][]*conn.Client{},
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
	ep, nodes, err := cfg.connections(r)
	c.conns[r] = nodes
	if err != nil {
		return err
	}
	rdb := nodes[0]
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
			s.policy(&own)
			c.Locks, err = newLocks(nodes, own)
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
	health := c.Health(ctx)
	for _, r := range cfg.roles() {
		err := health[r]
		if err != nil {
			err = fmt.Errorf("open %s: %s%w", r, cfg.of(r).variable(), err)
		}
		switch {
		case err == nil:
			c.warnOfNodes(ctx, r, health)
		case r.isCache():
			c.log.WarnContext(ctx, "cache cannot be reached, and is not needed to start", "role", string(r), "err", err)
		default:
			problems.add(err)
		}
	}
	return problems.err()
}

// warnOfNodes logs which servers of a quorum are of no use, while the others are
// enough.
func (c *Clients) warnOfNodes(ctx context.Context, r Role, health map[Role]error) {
	for i := range c.conns[r] {
		if err := health[r.node(i)]; err != nil {
			c.log.WarnContext(ctx, "server of the quorum cannot be reached, the others are enough to start", "role", string(r), "node", i+1, "err", err)
		}
	}
}

// Health connects to each configured role, all at the same time and until ctx
// is done, and returns what it found: nil for a role that answers. It passes
// open breakers. Closed roles are left out; after Close all have [ErrClosed].
//
// A quorum of locks answers as long as a majority of its servers does. There is
// an entry for each of these, too: "locks.1", "locks.2" and so on, in the order
// of the URL. So a program's readiness should rest on the roles that it cannot do
// without, and not on every entry: it can do without one server of a quorum, and
// mostly without a cache.
func (c *Clients) Health(ctx context.Context) map[Role]error {
	if c == nil {
		return nil
	}
	type finding struct {
		role Role
		err  error
	}
	findings := make(chan finding)
	n := 0
	ask := func(r Role, check func(context.Context) error) {
		n++
		go func() { findings <- finding{r, check(ctx)} }()
	}
	for r, nodes := range c.conns {
		if len(nodes) > 1 {
			for i, node := range nodes {
				ask(r.node(i), node.Check)
			}
		}
		if !errors.Is(nodes[0].Err(), ErrNotConfigured) {
			ask(r, func(ctx context.Context) error { return c.check(ctx, r) })
		}
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
	if c == nil {
		return nil
	}
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
	for _, nodes := range c.conns {
		for _, rdb := range nodes {
			end(func() error { return rdb.Drain(ctx) })
		}
	}
	wait.Wait()
	return errors.Join(errs...)
}

// connections makes the connection of a role, or one for each server of a
// quorum. It returns with them what their URLs say for the role, and with an
// error those that were made.
func (c Config) connections(r Role) (endpoint.Endpoint, []*conn.Client, error) {
	ep := c.of(r)
	if ep.URL == "" {
		reason := c.closed[r]
		if reason == nil {
			reason = r.errNotSet()
		}
		return endpoint.Endpoint{}, []*conn.Client{conn.Closed(string(r), fmt.Errorf("redisha: %w", reason))}, nil
	}
	eps, err := ep.resolve(r)
	if err != nil {
		return endpoint.Endpoint{}, nil, err
	}
	prefix := fmt.Sprintf("open %s: %s", r, ep.variable())
	if err = r.refuses(eps); err != nil {
		return endpoint.Endpoint{}, nil, eachLine(prefix, err)
	}
	var nodes []*conn.Client
	var problems []error
	for i := range eps {
		node, err := c.connection(r, ep, eps, i)
		if err != nil {
			problems = append(problems, lineByLine(eachLine(part(i, len(eps)), err))...)
			continue
		}
		nodes = append(nodes, node)
	}
	if err := errors.Join(problems...); err != nil {
		return endpoint.Endpoint{}, nodes, eachLine(prefix, err)
	}
	return shared(eps), nodes, nil
}

// connection makes the connection to the endpoint of a role that has the given
// index. What fails on a node of a quorum is not repeated: the other nodes do it.
func (c Config) connection(r Role, ep Endpoint, eps []endpoint.Endpoint, i int) (*conn.Client, error) {
	to, log, quorum := &eps[i], c.Logger, len(eps) > 1
	if quorum {
		log = log.With("node", i+1)
	}
	found, _ := ep.found()
	if err := r.onlyPrimary(to, found.shared); err != nil {
		return nil, err
	}
	data, sentinels := ep.logins(r, *to, log)
	return conn.New(conn.Config{
		Role:        string(r),
		Application: c.Application,
		Endpoint:    *to,
		FailFast:    r.isCache() || quorum,
		MapAddr:     ep.MapAddr,
		TLS:         ep.TLS,
		SentinelTLS: ep.SentinelTLS,
		Credentials: data,

		SentinelCredentials: sentinels,

		Dialer:  ep.Dialer,
		Pool:    conn.Pool(ep.Pool),
		Breaker: ep.Breaker,
		Logger:  log,
	})
}

// resolve parses the URL, unless FromEnv has done so.
func (e Endpoint) resolve(r Role) ([]endpoint.Endpoint, error) {
	if found, ok := e.found(); ok {
		return found.endpoints, nil
	}
	eps, err := r.parse(string(e.URL), true)
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
