package lock

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
)

const (
	// watchEvery is the pause between two probes of an endpoint in use.
	watchEvery = 10 * time.Second

	// watchDials is how often an endpoint in use is looked at for new connections,
	// which may lead to another server.
	watchDials = time.Second

	// watchAgain is the pause before the second probe of what may be another server
	// than before: Sentinels that have just promoted one are not seen there for up
	// to a second.
	watchAgain = 2 * time.Second

	// calmFor is how long an endpoint that was refused must have been found well
	// before it takes locks again. Sentinels that lose their connections to a
	// primary, and then promote another, leave it as if nobody watched it.
	calmFor = time.Minute
)

// refuses says why an endpoint is not taken, or returns nil.
func (c Config) refuses(d discovery) error {
	var err error
	switch d.finding {
	case foundSentinel:
		err = ErrSentinelEndpoint
	case foundReplica:
		err = ErrReplicaEndpoint
	case foundManaged:
		if !c.AllowFailoverManaged {
			err = ErrFailoverManaged
		}
	case foundReplicas, foundUnprobed, foundEvicting:
		if c.Strict {
			err = ErrUnsafeEndpoint
		}
	}
	if err != nil && d.detail != "" {
		err = fmt.Errorf("%w (%s)", err, d.detail)
	}
	return err
}

// warnings are of what is taken all the same.
var warnings = [findings]string{
	foundReplicas: "locks on a primary with replicas: if one is promoted, a lock can have two holders; check fencing tokens wherever it matters, " +
		"or give locks a server of their own, or a quorum of independent primaries",
	foundUnprobed: "locks on an endpoint that does not tell what it is: if it fails over, a lock can have two holders; " +
		"allow the user ROLE, PUBSUB|NUMSUB and INFO (on Cluster CLUSTER|SHARDS and INFO)",
	foundEvicting: "locks on a server that evicts keys when its memory is full: an evicted lease hands its lock to a second holder; " +
		"set maxmemory-policy noeviction there, or give locks a server of their own",
	foundManaged: "locks on a primary that Sentinels watch, as AllowFailoverManaged says: a failover can hand one lock to two holders; " +
		"check fencing tokens wherever it matters",
}

// refusesUnseen says why New does not take a client, as far as that shows without
// asking the server, or returns nil.
func (c Config) refusesUnseen(cn *conn.Client) error {
	ep := cn.Endpoint()
	switch {
	case followsSentinel(cn):
		return ErrSentinelEndpoint
	case c.Strict && ep.Topology == endpoint.Replicated:
		return fmt.Errorf("%w (the endpoint names replicas)", ErrUnsafeEndpoint)
	case c.Strict && ep.Proxy != "":
		return fmt.Errorf("%w (nobody can tell what is behind a proxy)", ErrUnsafeEndpoint)
	}
	return nil
}

// followsSentinel reports whether the client finds its server by Sentinel.
func followsSentinel(cn *conn.Client) bool {
	if cn.Topology() == endpoint.Sentinel {
		return true
	}
	switch rdb := innermost(cn).(type) {
	case interface{ Options() *redis.Options }:
		return rdb.Options().Addr == "FailoverClient" // which go-redis calls it
	case interface{ Options() *redis.ClusterOptions }:
		// NewFailoverClusterClient leaves no other trace than the function
		// that it makes up the slots with.
		slots := runtime.FuncForPC(reflect.ValueOf(rdb.Options().ClusterSlots).Pointer())
		return slots != nil && strings.Contains(slots.Name(), "NewFailoverClusterClient")
	}
	return false
}

// innermost returns what is in a type that a program has wrapped around a client
// by embedding one, however often.
func innermost(rdb redis.UniversalClient) redis.UniversalClient {
	for range 16 {
		v := reflect.ValueOf(rdb)
		for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct {
			return rdb
		}
		next := embedded(v)
		if next == nil {
			return rdb
		}
		rdb = next
	}
	return rdb
}

func embedded(v reflect.Value) redis.UniversalClient {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.Anonymous || !f.IsExported() {
			continue
		}
		if kind := v.Field(i).Kind(); (kind == reflect.Interface || kind == reflect.Pointer) && v.Field(i).IsNil() {
			continue
		}
		if rdb, ok := v.Field(i).Interface().(redis.UniversalClient); ok {
			return rdb
		}
	}
	return nil
}

// addrOf is where a client leads, as far as it tells.
func addrOf(cn *conn.Client) string {
	if cn.Own() {
		return strings.Join(cn.Endpoint().Addrs, ",")
	}
	switch rdb := innermost(cn).(type) {
	case interface{ Options() *redis.Options }:
		return rdb.Options().Addr
	case interface{ Options() *redis.ClusterOptions }:
		return strings.Join(rdb.Options().Addrs, ",")
	}
	return ""
}

// Check connects and asks what is there. Its errors say what to do; they are
// [ErrSentinelEndpoint], [ErrReplicaEndpoint], [ErrFailoverManaged] and
// [ErrUnsafeEndpoint] for endpoints that are not taken.
func (c *Client) Check(ctx context.Context) error {
	err := errNilContext
	if ctx != nil {
		err = c.enter()
	}
	if err != nil {
		return fmt.Errorf("lock: check: %w", err)
	}
	defer c.leave()
	if err := c.store.check(ctx); err != nil {
		return fmt.Errorf("lock: check: %w", err)
	}
	return nil
}

// check is Check for one node.
func (s *node) check(ctx context.Context) error {
	w := &s.watch
	begun, dials := time.Now(), w.dialled()
	d, ok := discovery{}, false
	if err := s.hidesCluster(ctx); err != nil {
		return err
	}
	if err := s.conn.Check(ctx); err != nil {
		if d, ok = misplaced(err); !ok {
			return err
		}
	} else if d, err = s.ask(ctx, s.conn); err != nil {
		return err
	}
	w.note(begun, dials, d)
	return w.verdict()
}

// admit lets an acquisition pass if the endpoint takes locks. It asks, and waits
// for the answer, before the first one; and when nobody has used the endpoint for
// a while, so that it was not watched. Otherwise it costs nothing: the watch asks
// by itself, and nobody waits for it. A lease that is handed out meanwhile is not
// safer for a question: what it would tell can change right after the answer.
func (s *node) admit(ctx context.Context) error {
	w := &s.watch
	if !w.used.Load() {
		w.used.Store(true)
	}
	if w.clear.Load() {
		return nil
	}
	return w.await(ctx)
}

// sees takes note of an error by which the server has become a replica, and
// reports whether it is one. Where the primary is looked for, others than that may
// be met on the way.
func (s *node) sees(err error) bool {
	if t := s.conn.Topology(); err == nil || t == endpoint.Cluster || t == endpoint.Replicated || !isReplicas(err) {
		return false
	}
	s.watch.note(time.Now(), s.watch.dialled(), discovery{finding: foundReplica, detail: err.Error()})
	return true
}

// isReplicas reports whether err is that of a replica: its own, or that of a
// connection which found one.
func isReplicas(err error) bool {
	var reply redis.Error
	return errors.Is(err, conn.ErrReplica) ||
		errors.As(err, &reply) && (strings.HasPrefix(reply.Error(), "READONLY ") || strings.Contains(reply.Error(), "-READONLY "))
}

// errUnsafe is the outcome of a renewal that was not sent: the endpoint takes no
// locks any more, and leases there shall end.
var errUnsafe = errors.New("the endpoint takes no locks any more")

// A watch knows what is at an endpoint. As long as the endpoint is in use it asks
// by itself: it has a goroutine while it does so, and a timer in between.
type watch struct {
	node  *node
	chore chore
	every time.Duration
	calm  time.Duration

	clear  atomic.Bool // the endpoint takes locks, and is being watched
	barred atomic.Bool // it took locks and takes none now
	used   atomic.Bool // since the last probe

	mu      sync.Mutex
	round   *round    // the probe that somebody waits for; nil: nobody does
	ended   []*round  // that are over, and of which nobody was told yet
	found   discovery // by the last probe
	noted   time.Time // when that began
	refusal error     // why the endpoint is not taken; nil: it is
	since   time.Time // when it was refused first
	last    time.Time // when it was refused last
	taken   bool      // it was taken before
	due     time.Time // of the next probe
	dials   uint64    // at the last probe
	warned  [findings]bool
}

// A round is a probe that callers wait for.
type round struct {
	done chan struct{}
	err  error // set before done is closed
}

func (w *watch) init(s *node) {
	w.node, w.every, w.calm = s, watchEvery, calmFor
	w.chore.do, w.chore.after = w.run, w.answer
}

// await waits for a probe, unless the endpoint is refused and is being watched.
func (w *watch) await(ctx context.Context) error {
	w.mu.Lock()
	if w.barred.Load() && time.Now().Before(w.due) {
		defer w.mu.Unlock()
		return w.explain()
	}
	r := w.round
	if r == nil {
		r = &round{done: make(chan struct{})}
		w.round = r
		w.chore.plan(time.Now())
	}
	w.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-w.node.client.closing.Done():
		return ErrClosed
	}
}

// run probes if somebody waits for it, if it is time to, or if there are new
// connections. It returns when to look again.
func (w *watch) run() (next time.Time) {
	w.mu.Lock()
	r, now := w.round, time.Now()
	due, dials := !now.Before(w.due), w.dials
	w.mu.Unlock()
	switch {
	case r != nil:
	case !due && w.dialled() == dials:
		return w.next(now)
	case !w.inUse():
		return time.Time{} // until somebody comes
	}
	dials = w.dialled()
	d, err := w.probe()
	if err == nil {
		w.note(now, dials, d)
		err = w.verdict()
	} else {
		w.failed()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if r != nil {
		r.err = err
		w.round, w.ended = nil, append(w.ended, r)
	}
	if again := now.Add(watchAgain); w.taken && (r != nil || !due) && again.Before(w.due) {
		w.due = again
	}
	return time.Time{} // note and failed have planned it
}

// answer tells those who waited for a probe, when the chore is at rest again: who
// closes the client then has nothing to wait for.
func (w *watch) answer() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.ended {
		close(r.done)
	}
	w.ended = nil
}

// probe is under way for as long as the client is.
func (w *watch) probe() (discovery, error) {
	ctx, cancel := context.WithTimeout(context.Background(), probeMost) // not client.running, which bypasses the breaker
	defer cancel()
	defer context.AfterFunc(w.node.client.running, cancel)()
	return w.node.probe(ctx)
}

// inUse reports whether leases are held, somebody waits for one, or one was
// acquired since the last probe. If not, the endpoint is not watched any more, and
// who comes has to ask.
func (w *watch) inUse() bool {
	if w.used.Swap(false) || w.node.client.inUse() {
		return true
	}
	w.clear.Store(false)
	if w.used.Load() || w.node.client.inUse() { // has passed admit in between
		w.mu.Lock()
		defer w.mu.Unlock()
		w.clear.Store(w.refusal == nil)
		return true
	}
	return false
}

func (c *Client) inUse() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.busy > 0
}

// dialled counts the connections made; what it returns differs if there are new
// ones. The pools of a Cluster's client that redisha did not make cannot be asked
// without a question for the topology.
func (w *watch) dialled() uint64 {
	cn := w.node.conn
	switch {
	case cn.Own():
		return cn.Stats().Dials
	case cn.Topology() == endpoint.Cluster:
		return 0
	}
	s := cn.PoolStats()
	if s == nil { // of a type that is not go-redis'
		return 0
	}
	n := uint64(s.Misses)
	if s.PipelineStats != nil { // pipelines have a pool of their own by default
		n += uint64(s.PipelineStats.Misses)
	}
	return n
}

// next is when to look again.
func (w *watch) next(now time.Time) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return earlier(w.due, now.Add(watchDials))
}

// failed plans another probe after one without an answer. Before the first answer
// it is for those who come to ask.
func (w *watch) failed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.taken {
		w.due = time.Now().Add(watchDials)
		w.chore.plan(w.due)
	}
}

// note takes what a probe has found that began at the given time.
func (w *watch) note(begun time.Time, dials uint64, d discovery) {
	c := w.node.client
	w.mu.Lock()
	if begun.Before(w.noted) {
		w.mu.Unlock()
		return
	}
	refusal, now := c.cfg.refuses(d), time.Now()
	before, was := w.found.finding, w.refusal
	w.noted, w.found, w.dials = begun, d, dials
	var ends, begins bool
	switch {
	case refusal != nil:
		begins = w.taken && (was == nil || before != d.finding && before > foundSafe)
		if was == nil {
			w.since = now
		}
		w.last, w.refusal = now, refusal
		w.barred.Store(w.taken)
	case was == nil || !w.taken || now.Sub(w.last) >= w.calm:
		ends = was != nil && w.taken
		w.refusal, w.taken = nil, true
		w.barred.Store(false)
	}
	w.clear.Store(w.refusal == nil)
	warn := w.refusal == nil && warnings[d.finding] != "" && !w.warned[d.finding]
	w.warned[d.finding] = w.warned[d.finding] || warn
	fallen := w.taken && refusal != nil && d.finding == foundReplica
	if w.taken { // else only those who come to ask want to know
		w.due = now.Add(w.every)
		w.chore.plan(earlier(w.due, now.Add(watchDials)))
	}
	w.mu.Unlock()

	log := c.log.With("addr", addrOf(w.node.conn), "found", d.String())
	switch {
	case begins:
		log.Error("the locks' endpoint is refused: no new leases, and those that are held end", "err", refusal)
	case ends:
		log.Info("the locks' endpoint is taken again")
	case warn && d.strange: // most likely an imitation in a test
		log.Info(warnings[d.finding], "detail", d.detail)
	case warn:
		log.Warn(warnings[d.finding], "detail", d.detail)
	}
	if fallen && w.node.fallen != nil {
		w.node.fallen()
	}
	if begins && c.line != nil {
		c.line.rouse()
	}
}

// late is admit for a lease that was obtained: the endpoint may have been found to
// take none while the server was waited for.
func (w *watch) late() error {
	if !w.barred.Load() {
		return nil
	}
	return w.verdict()
}

// verdict says why the endpoint is not taken, or returns nil.
func (w *watch) verdict() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refusal == nil || !w.taken {
		return w.refusal
	}
	return w.explain()
}

// explain adds to a refusal since when it holds. The caller holds mu.
func (w *watch) explain() error {
	const format = time.RFC3339
	if end := w.last.Add(w.calm); w.node.client.cfg.refuses(w.found) == nil {
		return fmt.Errorf("%w (since %s; it is no more, and locks are taken again from %s on if that lasts)",
			w.refusal, w.since.UTC().Format(format), end.UTC().Format(format))
	}
	return fmt.Errorf("%w (since %s)", w.refusal, w.since.UTC().Format(format))
}

// rouse lets all who wait try once more, and learn why they cannot have a lease.
func (l *line) rouse() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.places {
		for _, w := range p.waiters {
			if !w.trying {
				w.signal(call{})
			}
		}
	}
}

// loseAll ends all leases at once.
func (c *Client) loseAll() {
	for _, l := range c.renewer.leases() {
		l.lose(unsafe)
	}
}

// state returns what was found last, and whether the endpoint is refused.
func (w *watch) state() (f finding, refused bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.found.finding, w.refusal != nil
}
