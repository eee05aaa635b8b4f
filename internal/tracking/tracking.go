// Package tracking tells a local cache what to forget: the server itself says
// which keys were written, deleted, expired or evicted, by whomever.
//
// A [Tracker] holds one connection to each primary, on which it has asked for
// CLIENT TRACKING ON BCAST for some prefixes of keys. It asks the server for its
// role every second and requires the answer within another: one that is gone,
// hangs, or has become a replica is noticed within 2 s, as are slots that have
// moved. A connection that breaks, or a failover that the client has learnt of,
// ends an epoch ([Tracker.Epoch]) at once.
//
// # How to cache what may be cached
//
// Before a value is asked for, ask for the [Prefix.State] of its key. If it is
// [Standing], the value may be kept as long as the epoch that came with it is
// that of the Tracker, unless Invalidate is told of the key meanwhile, that is,
// from before the request on. A value that another node sent than the one
// asked, after MOVED or ASK, may not be kept. A cache therefore remembers the
// epoch in which it began, and is replaced by an empty one when it is another.
//
// # What is promised
//
// Whoever writes a key: either its prefix' Invalidate is told, or the epoch ends,
// within about twice Config.Ping (three times while messages flow in faster than
// they are handled). What a primary does not tell to anybody nobody can promise:
// one that is cut off from the rest and still serves this process has neither the
// writes nor a reason to end the epoch, until the client learns of another primary.
// A failover client that the program made tells nobody what it learns: there the
// epoch ends when the old primary says what it has become, which after a failover
// by hand may take some ten seconds. A key that has outlived its TTL is told of
// when the server removes it, and SWAPDB is not told of at all. A cache bounds the
// age of what it keeps, by the TTL as well.
//
// https://redis.io/docs/latest/develop/reference/client-side-caching/
package tracking

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/stats"
)

// Config configures a [Tracker]. The zero Config is ready to use.
//
// The functions may be nil. They must not block, and may call everything but
// Close. On Cluster they may be called by several goroutines at once.
type Config struct {
	// Gap is called after each end of an epoch. What was cached in it must not be
	// used any more. The cause is [ErrFlushed] if somebody has deleted all keys;
	// else it says what was lost or changed, such as a Cluster's node that begins to
	// tell. If it is redis.ErrClosed, the Redis client was closed, and nothing is
	// tried any more.
	Gap func(cause error)

	// Refused is called when a server does not let itself be tracked: it is too
	// old, a proxy, or the ACL forbids it. It is told once, until a connection
	// stands again. All 30s, and with each change of primary, it is tried again,
	// but not where Redis is known to be behind a proxy.
	Refused func(err error)

	// Ping is the pause between two questions to a server, and the time within
	// which it has to answer. Connecting may take twice as long. Defaults to 1s.
	// A server whose round trip takes more than a quarter of it needs more.
	Ping time.Duration
}

func (c Config) withDefaults() Config {
	c.Ping = cmp.Or(c.Ping, time.Second)
	if c.Gap == nil {
		c.Gap = func(error) {}
	}
	if c.Refused == nil {
		c.Refused = func(error) {}
	}
	return c
}

var (
	// ErrFlushed is the cause of a gap when all keys of a server were deleted.
	ErrFlushed = errors.New("the server was flushed")

	// ErrMoved is wrapped by the cause of a gap when another server has the keys.
	ErrMoved = errors.New("the keys have moved")

	errEpoch  = fmt.Errorf("%w: the primary has changed", ErrMoved)
	errSlots  = fmt.Errorf("%w: slots of the Cluster are elsewhere", ErrMoved)
	errBegins = errors.New("another server tells of changes from now on")
)

// A Tracker tells of changes of keys with certain prefixes. While it has any, one
// goroutine serves each connection; on Cluster there is one more. It is safe for
// concurrent use.
type Tracker struct {
	cn     *conn.Client
	cfg    Config
	ctx    context.Context // ends by Close
	cancel context.CancelFunc
	detach func() // from the changes of primary

	epoch    atomic.Uint64
	prefixes atomic.Pointer[prefixes]
	only     *node                            // nil on Cluster
	nodes    atomic.Pointer[map[string]*node] // of a Cluster, by address; copied to be changed
	look     chan struct{}                    // holds one: the topology may have changed

	mu      sync.Mutex
	closed  bool
	running bool
	told    bool // of a refusal
	lastErr error
	lastGap time.Time
	tasks   sync.WaitGroup

	connects, gaps, keys stats.Counter

	closeOnce sync.Once
	closeErr  error
}

// Open returns a Tracker of cn without prefixes. It connects once there are some.
// Close it before cn.
//
// A connection is dialled and logged in as those of cn are, but passes neither
// its hooks nor its pool.
func Open(cn *conn.Client, cfg Config) (*Tracker, error) {
	if cn == nil {
		return nil, errors.New("tracking: the client is nil, want one made by conn.New or conn.Of")
	}
	if cfg.Ping < 0 {
		return nil, fmt.Errorf("tracking: Config.Ping is %s, want more than 0, or 0 for 1s", cfg.Ping)
	}
	t := &Tracker{cn: cn, cfg: cfg.withDefaults(), look: make(chan struct{}, 1)}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.prefixes.Store(new(prefixes))
	t.nodes.Store(new(map[string]*node))
	if cn.Topology() == endpoint.Cluster {
		t.detach = cn.OnEpoch(func(uint64) {
			t.gap(errEpoch)
			t.lookNow()
			t.each((*node).signal)
		})
		return t, nil
	}
	opt, err := optionsOf(cn)
	t.only = newNode(t, opt)
	t.only.hopeless = err
	t.detach = cn.OnEpoch(func(uint64) { t.only.renew(errEpoch) })
	return t, nil
}

// Add lets invalidate be told of each key with a prefix that somebody has
// changed, or that has expired or was evicted. It returns at once: the State of
// the prefix tells from when on. A prefix must not be the beginning of another,
// nor be there already; it stays until Close.
//
// Invalidate gets at most 256 keys, which all have the prefix and may repeat. The
// slice is its own during the call, the strings are for good. It must not block:
// while it runs, nothing else is heard of the server.
func (t *Tracker) Add(prefix string, invalidate func(keys []string)) (*Prefix, error) {
	switch {
	case prefix == "":
		return nil, errors.New("tracking: the prefix is empty, which is all keys: want at least one byte")
	case invalidate == nil:
		return nil, fmt.Errorf("tracking: no function for prefix %q", prefix)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, fmt.Errorf("tracking: add %q: %w", prefix, redis.ErrClosed)
	}
	known := t.prefixes.Load()
	p := &Prefix{t: t, text: prefix, invalidate: invalidate, place: int64(len(known.added))}
	more, err := known.with(p)
	if err != nil {
		return nil, fmt.Errorf("tracking: %w", err)
	}
	t.prefixes.Store(more)
	switch {
	case t.running:
		t.each((*node).wake)
	case t.only != nil:
		t.tasks.Go(t.only.run)
	default:
		t.tasks.Go(t.follow)
	}
	t.running = true
	return p, nil
}

// Epoch grows whenever something may have been missed. It costs one atomic load.
func (t *Tracker) Epoch() uint64 { return t.epoch.Load() }

// gap ends an epoch. Whatever stands no longer has been noted as such before.
func (t *Tracker) gap(cause error) {
	t.epoch.Add(1)
	if t.ctx.Err() != nil {
		return
	}
	t.gaps.Inc()
	t.mu.Lock()
	t.lastErr, t.lastGap = cause, time.Now()
	t.mu.Unlock()
	t.cfg.Gap(cause)
}

// refused tells that a server does not let itself be tracked.
func (t *Tracker) refused(err error) {
	t.mu.Lock()
	told := t.told
	t.told, t.lastErr = true, err
	t.mu.Unlock()
	if !told && t.ctx.Err() == nil {
		t.cfg.Refused(err)
	}
}

// failed notes why there is no connection.
func (t *Tracker) failed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lastErr = err
}

// stands notes that a server lets itself be tracked.
func (t *Tracker) stands() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.told = false
}

// each calls f for every node.
func (t *Tracker) each(f func(*node)) {
	if t.only != nil {
		f(t.only)
	}
	for _, n := range *t.nodes.Load() {
		f(n)
	}
}

// closeTimeout bounds Close: a dial of go-redis may ignore its context.
const closeTimeout = 5 * time.Second

// Close ends the connections, and returns once all goroutines have ended. No
// function of Config is called after that, and nothing stands. A dial that
// ignores its context may outlast it: after 5s Close returns an error, and what is
// left ends with the dial. It is safe to call twice.
func (t *Tracker) Close() error {
	t.closeOnce.Do(func() {
		t.detach()
		t.mu.Lock()
		t.closed = true
		t.mu.Unlock()
		t.cancel()
		t.closeErr = t.wait()
		t.each((*node).retire)
		t.epoch.Add(1)
	})
	return t.closeErr
}

func (t *Tracker) wait() error {
	done := make(chan struct{})
	go func() { // ends with the tasks
		defer close(done)
		t.tasks.Wait()
	}()
	limit := time.NewTimer(closeTimeout)
	defer limit.Stop()
	select {
	case <-done:
		return nil
	case <-limit.C:
		return fmt.Errorf("tracking: a connection has not ended within %s", closeTimeout)
	}
}

// prefixes are those of a Tracker. They do not change: there are new ones when one
// is added.
type prefixes struct {
	added  []*Prefix // in the order in which they are sent
	sorted []*Prefix // by their text
}

// with returns the prefixes and p.
func (s *prefixes) with(p *Prefix) (*prefixes, error) {
	i, there := slices.BinarySearchFunc(s.sorted, p.text, (*Prefix).compare)
	if there {
		return nil, fmt.Errorf("prefix %q is there already", p.text)
	}
	// What begins with p follows it; what p begins with is found as a key's prefix is.
	other := s.of(p.text)
	if other == nil && i < len(s.sorted) && s.sorted[i].has(p.text) {
		other = s.sorted[i]
	}
	if other != nil {
		return nil, fmt.Errorf("prefix %q overlaps with %q: neither may begin with the other", p.text, other.text)
	}
	return &prefixes{
		added:  append(slices.Clone(s.added), p),
		sorted: slices.Insert(slices.Clone(s.sorted), i, p),
	}, nil
}

// of returns the prefix that key has, or nil. It is the last one that is not
// behind key, since none begins with another.
func (s *prefixes) of(key string) *Prefix {
	i, there := slices.BinarySearchFunc(s.sorted, key, (*Prefix).compare)
	switch {
	case there:
		return s.sorted[i]
	case i > 0 && s.sorted[i-1].covers(key):
		return s.sorted[i-1]
	}
	return nil
}
