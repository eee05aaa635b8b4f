package conn

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/stats"
)

// A reader sends reads to replicas, and everything else to the primary. Where
// replicas are only preferred, a read that none of them answers goes to the
// primary as well.
type reader struct {
	redis.UniversalClient
	primary   *Client
	own       *Client // the replicas' connections; nil on Cluster, where go-redis has them
	preferred bool
	fallbacks stats.Counter
}

var errNoReplica = errors.New("no replica is up")

// readerOf makes the client of the replicas that the resolver, or go-redis, knows.
func (c *Client) readerOf(cfg Config, dial dialFunc) *reader {
	r := &reader{primary: c, preferred: cfg.Endpoint.ReadFrom == endpoint.ReadReplicaPreferred}
	own := &Client{
		role: c.role, own: true, log: c.log, dialTimeout: c.dialTimeout, maxRepeats: c.maxRepeats, maxTotal: c.maxTotal,
		registry: newRegistry(cfg.Pool.IdleTimeout, cfg.Pool.MinIdle), closing: make(chan struct{}),
		topology: c.topology, ep: c.ep, counts: c.counts,
	}
	if c.breakers != nil {
		own.breakers = newBreakers(c.role, c.breakers.cfg)
	}
	r.own = own
	if c.cluster {
		own.cluster = true
		rdb := own.clusterClient(cfg, own.registry, dial, true)
		rdb.AddHook(route{r})
		rdb.AddHook(hook{own})
		own.UniversalClient = rdb
	} else {
		opt := cfg.options()
		opt.Addr = "replica"
		opt.OnConnect = cfg.onConnect(replica)
		opt.Dialer = own.counted(func(ctx context.Context, network, _ string) (net.Conn, error) {
			return own.dialReplica(ctx, network, c.follower, dial)
		})
		rdb := redis.NewClient(opt)
		rdb.AddHook(route{r})
		own.UniversalClient = own.hooked(rdb, "replica")
	}
	r.UniversalClient = own.UniversalClient
	return r
}

// dialReplica tries the known replicas in turn, beginning with any of them.
func (c *Client) dialReplica(ctx context.Context, network string, f *follower, dial dialFunc) (net.Conn, error) {
	gen := c.registry.gen.Load()
	replicas := slices.Clone(f.resolver.State().Replicas)
	rand.Shuffle(len(replicas), func(i, j int) { replicas[i], replicas[j] = replicas[j], replicas[i] })
	var last error = &neutralError{errNoReplica}
	for _, addr := range replicas {
		try, cancel := context.WithTimeout(ctx, c.dialTimeout/time.Duration(len(replicas)))
		nc, err := dial(try, network, addr)
		cancel()
		if err == nil {
			return c.registry.add(nc, addr, gen)
		}
		last = err
	}
	return nil, last
}

// keep closes the connections to replicas that are none any more.
func (r *reader) keep(replicas []string) {
	for _, addr := range r.own.registry.addrs() {
		if !slices.Contains(replicas, addr) {
			r.own.registry.retireAddr(addr)
		}
	}
}

// Close closes the connections to the replicas.
func (r *reader) Close() error { return r.own.Close() }

// route is the outermost hook of a reader.
type route struct{ r *reader }

func (h route) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (h route) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if ctx == nil {
			return errNilContext
		}
		if (hook{h.r.own}).handshake(ctx, kindOf(cmd), cmd) {
			return next(ctx, cmd)
		}
		if kindOf(cmd) != readKind {
			return h.r.primary.Process(ctx, cmd)
		}
		if !h.r.absent() {
			err := next(ctx, cmd)
			if !h.r.fallsBack(ctx, err) {
				return err
			}
			cmd.SetErr(nil)
			h.r.fallbacks.Inc()
		} else if !h.r.preferred {
			return errNoReplica
		}
		return h.r.primary.Process(ctx, cmd)
	}
}

func (h route) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		switch {
		case ctx == nil:
			setErrs(cmds, errNilContext)
			return errNilContext
		case (hook{h.r.own}).handshakes(ctx, cmds):
			return next(ctx, cmds)
		}
		reads := !transaction(cmds)
		for _, cmd := range cmds {
			reads = reads && kindOf(cmd) == readKind
		}
		switch {
		case reads && !h.r.absent():
			err := next(ctx, cmds)
			stamp(cmds, err)
			if !slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return h.r.fallsBack(ctx, cmd.Err()) }) {
				return err
			}
			h.r.fallbacks.Inc()
		case reads && !h.r.preferred:
			setErrs(cmds, errNoReplica)
			return errNoReplica
		}
		return h.r.byPrimary(ctx, cmds)
	}
}

// byPrimary sends a pipeline, or a transaction, to the primary.
func (r *reader) byPrimary(ctx context.Context, cmds []redis.Cmder) error {
	pipe, inner := r.primary.Pipeline(), cmds
	if transaction(cmds) {
		pipe, inner = r.primary.TxPipeline(), cmds[1:len(cmds)-1]
	}
	for _, cmd := range inner {
		cmd.SetErr(nil)
		_ = pipe.Process(ctx, cmd)
	}
	_, err := pipe.Exec(ctx)
	stamp(inner, err)
	return err
}

// absent reports whether it is known that there is no replica.
func (r *reader) absent() bool {
	f := r.primary.follower
	return f != nil && len(f.resolver.State().Replicas) == 0
}

// fallsBack reports whether a read that ended with err goes to the primary.
func (r *reader) fallsBack(ctx context.Context, err error) bool {
	return r.preferred && Ended(ctx) == nil && outcomeOf(err) != final
}
