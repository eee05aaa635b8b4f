package conn

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/endpoint"
)

const (
	// reloadEvery is the age at which go-redis asks for the topology again. It
	// does not ask because a connection broke: nodeHook does.
	reloadEvery = 2 * time.Second

	// clusterDialTimeout is the dial timeout on Cluster where the URL has none: a
	// dead node should be given up early, since another takes over.
	clusterDialTimeout = time.Second

	// topologyTimeout bounds the question for the topology to one node, so that a
	// stopped node does not keep go-redis from asking the next.
	topologyTimeout = time.Second

	// While a node does not answer, the topology is asked for all the time:
	// go-redis itself waits 200 ms in between.
	scoutEvery = 100 * time.Millisecond
	scoutFor   = 5 * time.Second // after the last sign of trouble
	avoidFor   = 2 * time.Second // how long a node that does not answer is not asked for the topology
)

// openCluster makes the client of a Cluster, and that of its replicas if reads
// may go there.
func (c *Client) openCluster(cfg Config, dial dialFunc) {
	c.cluster = true
	c.registry.readTimeout = cfg.Endpoint.ReadTimeout
	rdb := c.clusterClient(cfg, c.registry, dial, false)
	c.scout = &scout{cluster: rdb, done: c.closing}
	c.registry.stuck = c.scout.trouble
	rdb.AddHook(hook{c})
	c.UniversalClient = rdb
	if cfg.Endpoint.ReadFrom != "" && cfg.Endpoint.ReadFrom != endpoint.ReadPrimary {
		c.reader = c.readerOf(cfg, dial)
	}
}

// clusterClient makes a go-redis client whose nodes have the hooks of c.
func (c *Client) clusterClient(cfg Config, reg *registry, dial dialFunc, replicas bool) *redis.ClusterClient {
	o := cfg.options()
	rdb := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: cfg.Endpoint.Addrs,
		Dialer: c.counted(func(ctx context.Context, network, addr string) (net.Conn, error) {
			gen := reg.gen.Load()
			to := addr
			if !slices.Contains(cfg.Endpoint.Addrs, addr) {
				to = cfg.mapped(addr)
			}
			nc, err := dial(ctx, network, to)
			if err != nil {
				return nil, err
			}
			return reg.add(nc, addr, gen)
		}),
		OnConnect:                  cfg.onConnect(""),
		ReadOnly:                   replicas,
		Protocol:                   o.Protocol,
		Username:                   o.Username,
		Password:                   o.Password,
		CredentialsProviderContext: o.CredentialsProviderContext,
		MaxRetries:                 o.MaxRetries,
		DialTimeout:                o.DialTimeout,
		DialerRetries:              o.DialerRetries,
		ReadTimeout:                o.ReadTimeout,
		WriteTimeout:               o.WriteTimeout,
		ContextTimeoutEnabled:      o.ContextTimeoutEnabled,
		PoolSize:                   o.PoolSize,
		PoolTimeout:                o.PoolTimeout,
		PipelinePoolSize:           o.PipelinePoolSize,
		MinIdleConns:               o.MinIdleConns,
		MaxIdleConns:               o.MaxIdleConns,
		ConnMaxIdleTime:            o.ConnMaxIdleTime,
		ConnMaxLifetime:            o.ConnMaxLifetime,
		ClusterStateReloadInterval: reloadEvery,
		MaintNotificationsConfig:   o.MaintNotificationsConfig,
	})
	rdb.OnNewNode(func(node *redis.Client) {
		node.AddHook(&nodeHook{c: c, cluster: rdb, addr: node.Options().Addr})
		if c.breakers != nil {
			if h, err := c.breakers.of(node.Options().Addr); err == nil {
				node.AddHook(h)
			}
		}
	})
	return rdb
}

// A nodeHook looks at what goes to one node of a Cluster: the handshakes, what
// broke, and the topology.
type nodeHook struct {
	c       *Client
	cluster *redis.ClusterClient
	addr    string
}

func (h *nodeHook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := next(ctx, network, addr)
		h.look(ctx, err)
		return born(nc, err), nil
	}
}

func (h *nodeHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if (hook{h.c}).handshake(ctx, kindOf(cmd), cmd) {
			return h.c.shaken(ctx, next(ctx, cmd), cmd)
		}
		if slots, ok := cmd.(*redis.ClusterSlotsCmd); ok {
			return h.topology(ctx, slots, next)
		}
		asked(ctx, h.addr)
		err := next(ctx, cmd)
		h.look(ctx, err)
		return err
	}
}

func (h *nodeHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if (hook{h.c}).handshakes(ctx, cmds) {
			return h.c.shaken(ctx, next(ctx, cmds), cmds...)
		}
		asked(ctx, h.addr)
		err := next(ctx, cmds)
		h.look(ctx, err)
		return err
	}
}

// topology lets a node be asked for the topology. No command is lost by its
// failure.
func (h *nodeHook) topology(ctx context.Context, cmd *redis.ClusterSlotsCmd, next redis.ProcessHook) error {
	if known := h.c.primaries.count(); known > 0 { // else there is nobody else to ask, and all the time that the caller has
		if h.c.scout.avoids(h.addr, known) {
			cmd.SetErr(errAvoided)
			return errAvoided
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, topologyTimeout)
		defer cancel()
	}
	err := next(ctx, cmd)
	switch {
	case err == nil:
		h.c.primaries.seen(cmd.Val(), h.c.moved)
	case !isReply(err):
		err = &unsentError{err: err, connect: true}
		cmd.SetErr(err)
	}
	return err
}

var errAvoided error = &unsentError{err: errors.New("another node is asked for the topology, since this one does not answer"), connect: true}

// look asks for the topology again if a connection broke, or if the node is
// known not to answer.
func (h *nodeHook) look(ctx context.Context, err error) {
	if err == nil || isReply(err) || errors.Is(err, errRetired) || Ended(ctx) != nil {
		return
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		h.c.registry.retireIdleAddr(h.addr)
	}
	if isNetwork(err) || errors.Is(err, breaker.ErrOpen) {
		h.c.scout.trouble(h.addr)
	}
}

// A scout asks for the topology as long as there is trouble.
type scout struct {
	cluster *redis.ClusterClient
	done    <-chan struct{} // closed when the client is

	mu      sync.Mutex
	closed  bool
	running bool
	last    time.Time            // of trouble
	nodes   map[string]time.Time // of trouble with each
	tasks   sync.WaitGroup
}

// trouble is told that a node does not answer.
func (s *scout) trouble(addr string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes == nil {
		s.nodes = make(map[string]time.Time)
	}
	s.last = time.Now()
	s.nodes[addr] = s.last
	if !s.running && !s.closed {
		s.running = true
		s.tasks.Go(s.run)
	}
}

// avoids reports whether addr has been in trouble of late, and most nodes have
// not; there are so many primaries.
func (s *scout) avoids(addr string, primaries int) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	troubled := 0
	for _, at := range s.nodes {
		if time.Since(at) < avoidFor {
			troubled++
		}
	}
	return time.Since(s.nodes[addr]) < avoidFor && troubled <= primaries/2
}

func (s *scout) run() {
	ticker := time.NewTicker(scoutEvery)
	defer ticker.Stop()
	for s.goesOn() {
		s.cluster.ReloadState(context.Background())
		select {
		case <-ticker.C:
		case <-s.done:
		}
	}
}

// goesOn reports whether there was trouble of late.
func (s *scout) goesOn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
		s.running = false
	default:
		s.running = time.Since(s.last) < scoutFor
	}
	if !s.running {
		s.nodes = nil
	}
	return s.running
}

// later runs f in a goroutine of the scout's.
func (s *scout) later(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.tasks.Go(f)
	}
}

// close waits for the goroutines, which end as the client does.
func (s *scout) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.tasks.Wait()
}

// calm ends the search: there are new primaries.
func (s *scout) calm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = time.Time{}
}

// primaries remembers which nodes are primaries.
type primaries struct {
	mu    sync.Mutex
	addrs []string // sorted; nil before the first look
}

// count is the number of primaries; 0 before the first look.
func (p *primaries) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.addrs)
}

// seen compares a topology with the last one.
func (p *primaries) seen(slots []redis.ClusterSlot, moved func(gone []string)) {
	var addrs []string
	for _, slot := range slots {
		if len(slot.Nodes) > 0 {
			addrs = append(addrs, slot.Nodes[0].Addr)
		}
	}
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.addrs
	if len(addrs) == 0 || slices.Equal(before, addrs) {
		return
	}
	p.addrs = addrs
	if before == nil {
		return
	}
	var gone []string
	for _, addr := range before {
		if !slices.Contains(addrs, addr) {
			gone = append(gone, addr)
		}
	}
	moved(gone)
}

// moved is told that the set of primaries has changed. Connections to those that
// are none any more are closed: what waits there for a reply shall not wait for
// its timeout.
func (c *Client) moved(gone []string) {
	c.log.Info("cluster: primaries changed", "role", c.role, "gone", gone)
	if c.scout == nil { // of a reader
		c.leave(gone)
		return
	}
	c.scout.calm()
	c.scout.later(func() {
		// go-redis uses the topology a moment after it was seen, and until then
		// may connect to where it led before.
		for i, pause := range []time.Duration{2 * time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond} {
			if c.wait(context.Background(), nil, time.Now().Add(pause)) == ErrClosed { //nolint:errorlint // wait returns it bare
				return
			}
			c.leave(gone)
			if i == 0 {
				c.newEpoch()
			}
		}
	})
}

func (c *Client) leave(addrs []string) {
	for _, addr := range addrs {
		c.registry.retireAddr(addr)
	}
}

// EachNode groups the indexes of keys by the primary that holds them and calls fn
// for each group, all at once, with a client of that primary. It returns one of
// the errors. A command for keys of several slots is refused also where one node
// has them all: fn sends one command for each key, or slot, in a pipeline.
func (c *Client) EachNode(ctx context.Context, keys []string, fn func(ctx context.Context, node redis.UniversalClient, indexes []int) error) error {
	cluster, ok := c.UniversalClient.(*redis.ClusterClient)
	if !ok {
		indexes := make([]int, len(keys))
		for i := range indexes {
			indexes[i] = i
		}
		return fn(ctx, c, indexes)
	}
	groups := make(map[*redis.Client][]int)
	for i, key := range keys {
		node, err := cluster.MasterForKey(ctx, key)
		if err != nil {
			return err
		}
		groups[node] = append(groups[node], i)
	}
	errs := make(chan error, len(groups))
	for node, indexes := range groups {
		go func() { errs <- fn(ctx, node, indexes) }()
	}
	var first error
	for range groups {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}
