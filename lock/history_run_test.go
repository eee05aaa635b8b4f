//go:build unix

package lock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
)

// Whatever is done to clients, their connections, their processes and their
// clocks, and to a server that keeps its data: no two hold a lock at a time.
func TestNoTwoHoldAtOnceWhateverFailsWhileTheServerKeepsItsData(t *testing.T) {
	newScene(t, setting{keeps: true, nodes: 1}).run(100, 4*time.Second)
}

// Where the server loses leases, their holders notice it, and tokens still grow.
func TestLossesAreNoticedAndTokensGrowWhenTheServerLosesItsData(t *testing.T) {
	newScene(t, setting{nodes: 1}).run(100, 4*time.Second)
}

// The same for a quorum, a minority of whose servers at a time is killed and
// comes back with nothing, is stopped, and is cut off.
func TestNoTwoHoldAtOnceWhateverFailsInAMinorityOfAQuorum(t *testing.T) {
	newScene(t, setting{keeps: true, nodes: 3}).run(20, 4*time.Second)
}

// quorumTTL is the TTL in a quorum, whose servers take no part for as long after
// they were started.
const quorumTTL = 3 * time.Second

// A setting says what a scene is about.
type setting struct {
	// keeps is that no lease is lost: a server keeps its data over a restart, or
	// the others of a quorum do, and nobody deletes what is not his. Else there
	// are restarts of servers without persistence, FLUSHALL, and deleted leases.
	keeps bool

	nodes int // 1, or those of a quorum
}

func (s setting) quorum() bool { return s.nodes > 1 }

// crowd returns how many clients there are, each a process' worth of one, and how
// many goroutines contend in each. A quorum costs five times as much.
func (s setting) crowd() (parties, workers int) {
	if s.quorum() {
		return 4, 3
	}
	return 8, 25
}

// A scene is a server, clients of it, and what disturbs them.
type scene struct {
	setting
	t        *testing.T
	seed     uint64
	servers  []*redistest.Server
	admins   []*redis.Client // of each server
	h        *history
	resource *resource
	parties  []*party
	children []*child
	keys     []string

	working    context.Context // of workers
	stopWork   context.CancelFunc
	disturbing context.Context // of faults
	stopFaults context.CancelFunc
	running    sync.WaitGroup // workers
	faulting   sync.WaitGroup

	acquired atomic.Int64
	mu       sync.Mutex
	outcomes map[string]int
	faults   map[string]int
	log      []string // of faults
	strange  []string // errors that no fault explains
}

// newScene starts what takes part.
func newScene(t *testing.T, set setting) *scene {
	redistest.Require(t)
	seed := seedOf(t)
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		var left error
		require.Eventually(t, func() bool { left = goleak.Find(before); return left == nil }, 30*time.Second, 100*time.Millisecond, "goroutines are left: %v", left)
	})
	s := &scene{setting: set, t: t, seed: seed, resource: newResource(), outcomes: map[string]int{}, faults: map[string]int{}}
	for range s.nodes {
		srv := redistest.New(t, redistest.Config{Persist: s.keeps && !s.quorum()})
		opt := srv.Options()
		opt.ReadTimeout = 30 * time.Second // CLIENT PAUSE holds it up as well
		admin := redis.NewClient(opt)
		t.Cleanup(func() { _ = admin.Close() })
		s.servers, s.admins = append(s.servers, srv), append(s.admins, admin)
	}
	s.awaitFirst()
	s.h = newHistory()
	s.working, s.stopWork = context.WithCancel(context.Background())
	s.disturbing, s.stopFaults = context.WithCancel(context.Background())
	t.Cleanup(func() { // where the test ends early
		s.stopFaults()
		s.stopWork()
		s.heal()
		s.faulting.Wait()
		s.running.Wait()
	})
	for i := range 8 {
		s.keys = append(s.keys, fmt.Sprintf("hot-%d", i))
	}
	parties, _ := s.crowd()
	for i := range parties {
		s.parties = append(s.parties, s.newParty(i))
	}
	for i := range 2 {
		s.children = append(s.children, s.newChild(i))
	}
	return s
}

// awaitFirst waits until there are leases at all: a quorum wants its servers to have
// run for a while.
func (s *scene) awaitFirst() {
	c, err := s.newClient(s.universal(s.admins), Config{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(s.t, err)
	s.until(2*time.Minute, func() string {
		l, err := c.TryAcquire(s.t.Context(), "first")
		if err == nil {
			err = l.Release(s.t.Context())
		}
		if err != nil {
			return err.Error()
		}
		return ""
	})
	require.NoError(s.t, c.Close())
}

func (s *scene) random(stream int) *rand.Rand { return rand.New(rand.NewPCG(s.seed, uint64(stream))) }

// run lets clients work while they are disturbed, for d and until they have come
// to so many leases, and judges what they saw.
func (s *scene) run(leases int64, d time.Duration) {
	s.begin()
	for i, by := range []struct {
		faults []fault
		gap    time.Duration
	}{
		{s.serverFaults(), 600 * time.Millisecond},
		{s.clientFaults(), 100 * time.Millisecond},
		{s.clientFaults(), 100 * time.Millisecond},
	} {
		if i == 2 && s.quorum() {
			break // its nodes, and as many proxies, need the machine
		}
		s.faulting.Go(func() { s.disturb(s.random(100_000+i), by.faults, by.gap) })
	}
	s.until(2*time.Minute+time.Duration(leases)*50*time.Millisecond, func() string {
		if s.t.Failed() || s.h.now() >= d && s.acquired.Load() >= leases {
			return ""
		}
		return fmt.Sprintf("%d leases", s.acquired.Load())
	})
	s.end()
}

// begin lets clients work.
func (s *scene) begin() {
	s.watchTimers()
	parties, workers := s.crowd()
	for i, p := range s.parties {
		for j := range workers {
			s.running.Go(func() { p.work(s.random(1000*i + j)) })
		}
		for j := range 2 {
			s.running.Go(func() { p.keep(s.random(1000*i+900+j), fmt.Sprintf("kept-%d", (i+j)%parties)) })
		}
	}
}

// end ends what disturbs, lets clients go on for a while, and judges what they saw.
func (s *scene) end() {
	s.stopFaults()
	s.faulting.Wait()
	s.heal()
	healed := s.h.now()
	s.goesOn()
	goesOn := s.h.now()
	s.stopWork()
	s.running.Wait()
	var ending sync.WaitGroup
	for _, c := range s.children {
		ending.Go(c.end) // under the race detector it takes a second
	}
	ending.Wait()
	for _, p := range s.parties {
		_ = p.get().Close() // says what it leaves to its TTL
	}
	ended := s.h.now()
	s.nothingLeft()
	s.t.Logf("disturbed for %s; all locks had after %s more, all ended after %s, nothing left after %s", healed, goesOn-healed, ended-goesOn, s.h.now()-ended)
	s.judge()
}

// until waits until there is no problem, for so long at most.
func (s *scene) until(limit time.Duration, problem func() string) {
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		text := problem()
		if text == "" {
			return
		}
		if time.Now().After(end) {
			s.tellFaults()
			s.t.Fatalf("after %s: %s", limit, text)
		}
	}
}

// goesOn requires that each lock can be had once nothing is disturbed any more.
func (s *scene) goesOn() {
	healed := s.h.now()
	s.until(time.Minute, func() string {
		s.h.mu.Lock()
		defer s.h.mu.Unlock()
		for _, key := range s.keys {
			if !slices.ContainsFunc(s.h.holdings, func(x *holding) bool { return x.key == key && x.granted > healed }) {
				return "nobody gets " + key + " any more"
			}
		}
		return ""
	})
}

// nothingLeft requires that leases, and places in queues, do not outlive those
// who had them. A place of a process that was killed goes with the next lease.
func (s *scene) nothingLeft() {
	t := s.t
	ctx := t.Context()
	c, err := s.newClient(s.universal(s.admins), Config{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	s.until(time.Minute, func() string {
		for _, key := range s.keys {
			if l, err := c.TryAcquire(ctx, key); err == nil {
				_ = l.Release(ctx)
			}
		}
		var left []string
		for _, admin := range s.admins {
			keys, err := admin.Keys(ctx, "*").Result()
			require.NoError(t, err)
			left = append(left, keys...)
		}
		left = slices.DeleteFunc(left, func(key string) bool { return strings.HasSuffix(key, "}:f") })
		if len(left) == 0 {
			return ""
		}
		return fmt.Sprintf("left in Redis: %q", left)
	})
	require.NoError(t, c.Close())
	for _, admin := range s.admins {
		counters, err := admin.Keys(ctx, "*}:f").Result()
		require.NoError(t, err)
		for _, key := range counters {
			require.Positive(t, admin.PTTL(ctx, key).Val(), "%s must end some day", key)
		}
	}
}

// newClient returns a client of the server, or of the quorum.
func (s setting) newClient(nodes []redis.UniversalClient, cfg Config) (*Client, error) {
	if s.quorum() {
		cfg.TTL = quorumTTL
		return NewQuorum(nodes, cfg)
	}
	return New(nodes[0], cfg)
}

func (s setting) universal(clients []*redis.Client) (all []redis.UniversalClient) {
	for _, rdb := range clients {
		all = append(all, rdb)
	}
	return all
}

func (s *scene) judge() {
	t := s.t
	v := s.h.check()
	var late time.Duration
	for _, l := range s.h.late {
		late = max(late, l.by)
	}
	t.Logf("%d leases in %s; overlaps: %d, and %d of at most %s where timers were late (by %s at most); writes refused by the resource: %d",
		s.acquired.Load(), s.h.now().Round(time.Second), len(v.violations), v.excused, v.longest, late, s.resource.refused)
	t.Logf("outcomes: %s", listed(s.outcomes))
	t.Logf("faults: %s", listed(s.faults))
	if len(v.violations) > 0 {
		s.tellFaults()
	}
	require.Empty(t, strings.Join(v.violations, "\n"))
	s.resource.check(t, s.h)
	require.Empty(t, s.strange)
}

// tellFaults shows what was done, and when.
func (s *scene) tellFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t.Logf("faults:\n%s", strings.Join(s.log, "\n"))
}

func listed(counts map[string]int) string {
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&b, "\n%8d %s", counts[what], what)
	}
	return b.String()
}

func (s *scene) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outcomes[what]++
}

// watchTimers records by how much timers are late, which leases end by, too.
func (s *scene) watchTimers() {
	const each = 2 * time.Millisecond
	for range 2 {
		var due time.Time
		var timer *time.Timer
		var mu sync.Mutex
		s.running.Add(1)
		mu.Lock()
		due = time.Now().Add(each)
		timer = time.AfterFunc(each, func() {
			mu.Lock()
			defer mu.Unlock()
			now := time.Now()
			if by := now.Sub(due); by > time.Millisecond {
				s.h.mu.Lock()
				s.h.late = append(s.h.late, lateness{now.Sub(s.h.start), by})
				s.h.mu.Unlock()
			}
			if s.working.Err() != nil {
				s.running.Done()
				return
			}
			due = time.Now().Add(each)
			timer.Reset(each)
		})
		mu.Unlock()
	}
}

// A party is a process' worth of a client: connections of its own, which go
// through proxies of its own, and a clock of its own.
type party struct {
	*scene
	name    string
	proxies []*redistest.Proxy // one for each server
	rdbs    []redis.UniversalClient
	shift   atomic.Int64 // of the wall clock

	silent atomic.Bool // its network

	mu     sync.Mutex
	client *Client
}

// newParty makes a party whose client is a plain one of go-redis, one of these
// that never repeats a command, or one as redisha.Open makes it.
func (s *scene) newParty(i int) *party {
	t := s.t
	p := &party{scene: s, name: fmt.Sprintf("party-%d", i)}
	for _, srv := range s.servers {
		proxy := redistest.NewProxy(t, srv.Addr())
		opt := srv.Options()
		opt.Addr, opt.ReadTimeout, opt.PoolSize = proxy.Addr(), time.Second, 64
		var rdb redis.UniversalClient
		switch i % 4 {
		case 0:
			rdb = redis.NewClient(opt)
		case 1:
			opt.MaxRetries = -1
			rdb = redis.NewClient(opt)
		default:
			ep, err := endpoint.Parse("redis://" + proxy.Addr() + "?read_timeout=1s")
			require.NoError(t, err)
			rdb, err = conn.New(conn.Config{Role: "locks", Endpoint: ep, Logger: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
		}
		t.Cleanup(func() { _ = rdb.Close() })
		p.proxies, p.rdbs = append(p.proxies, proxy), append(p.rdbs, rdb)
	}
	p.open()
	t.Cleanup(func() { _ = p.get().Close() })
	return p
}

func (p *party) open() {
	c, err := p.newClient(p.rdbs, Config{Holder: p.name, CloseTimeout: 100 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		p.t.Error(err)
		return
	}
	start := c.clock.start
	c.clock.wall = func(at time.Time) time.Time {
		if at.Equal(start) {
			return at.Round(0)
		}
		return at.Round(0).Add(time.Duration(p.shift.Load()))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shift.Store(0)
	p.client = c
}

func (p *party) get() *Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.client
}

// work acquires locks in all the ways there are, until the scene ends.
func (p *party) work(random *rand.Rand) {
	for p.working.Err() == nil {
		rest := 3 * time.Millisecond
		if err := p.acquireOne(random); err != nil && !errors.Is(err, ErrNotAcquired) {
			rest = 50 * time.Millisecond
		}
		sleepIn(p.working, between(random, 0, rest))
	}
}

func (p *party) acquireOne(random *rand.Rand) error {
	c, key, ttl := p.get(), p.keys[random.IntN(len(p.keys))], p.someTTL(random)
	ctx, cancel := context.WithCancel(p.working)
	defer cancel()
	acquire := func(ctx context.Context, opts ...Option) error {
		return p.hold(random, ctx, key, ttl, "acquire", func() (*Lease, error) { return c.Acquire(ctx, key, append(opts, TTL(ttl))...) })
	}
	switch way := random.IntN(10); way {
	case 0, 1:
		return p.hold(random, ctx, key, ttl, "try to acquire", func() (*Lease, error) { return c.TryAcquire(ctx, key, TTL(ttl)) })
	case 2:
		called := p.h.now()
		err := c.Do(ctx, key, func(_ context.Context, l *Lease) error {
			p.enjoy(random, l, &holding{key: key, ttl: ttl, called: called})
			return nil
		}, TTL(ttl), MaxWait(between(random, time.Millisecond, 2*time.Second)))
		p.tell("do", err)
		return err
	case 3, 4: // cancelled somewhere within an attempt, or while it waits, or while it is held
		after := between(random, 0, []time.Duration{5 * time.Millisecond, 300 * time.Millisecond}[way-3])
		timer := time.AfterFunc(after, cancel)
		defer timer.Stop()
		return acquire(ctx)
	case 5:
		limited, stop := context.WithTimeout(ctx, between(random, 0, 50*time.Millisecond))
		defer stop()
		return acquire(limited)
	default:
		return acquire(ctx, MaxWait(between(random, time.Millisecond, 3*time.Second)))
	}
}

// hold acquires, holds, and mostly releases.
func (p *party) hold(random *rand.Rand, ctx context.Context, key string, ttl time.Duration, what string, acquire func() (*Lease, error)) error {
	x := &holding{key: key, ttl: ttl, called: p.h.now()}
	l, err := acquire()
	p.tell(what, err)
	if err != nil {
		return err
	}
	p.enjoy(random, l, x)
	if errors.Is(context.Cause(l.Context()), ErrClosed) && random.IntN(2) == 0 {
		return nil // left to its TTL
	}
	err = l.Release(ctx)
	p.tell("release", err)
	return err
}

func (p *party) granted(x *holding, l *Lease) {
	x.granted = p.h.now()
	x.client, x.fence, x.seen = p.name, l.Token(), x.granted
	p.h.hold(x)
	p.acquired.Add(1)
}

// enjoy holds a lease, writes to the resource, and looks at the lease's context
// before each time.
func (p *party) enjoy(random *rand.Rand, l *Lease, x *holding) {
	p.granted(x, l)
	d := between(random, 0, 3*time.Millisecond)
	switch n := random.IntN(100); {
	case n == 0 && x.ttl <= time.Second && random.IntN(3) == 0:
		d = x.ttl + between(random, 0, x.ttl/2) // lives on renewals
	case n < 5:
		d = between(random, 0, 50*time.Millisecond)
	}
	for begun := x.granted; ; {
		at := p.h.now()
		if l.Context().Err() != nil {
			break
		}
		p.h.saw(x, at)
		p.resource.write(x.key, x.fence)
		if p.silent.Load() { // as one who hangs in it
			d = max(d, at-begun+x.ttl/2)
		}
		if at-begun >= d {
			return
		}
		sleepIn(l.Context(), min(2*time.Millisecond, d-(at-begun)))
	}
	p.ended(x, context.Cause(l.Context()), "lost: ")
}

// ended notes why a holding ended before its release.
func (p *party) ended(x *holding, cause error, what string) {
	if !errors.Is(cause, ErrLost) {
		return
	}
	why := cause.Error()
	p.count(what + why[strings.LastIndex(why, ": ")+2:])
	if !p.quorum() && strings.HasSuffix(why, lossReasons[refused]) {
		p.h.mu.Lock()
		defer p.h.mu.Unlock()
		x.refused = p.h.now()
	}
}

// keep holds a lock for long, over whatever happens, in turns with a neighbour.
func (p *party) keep(random *rand.Rand, key string) {
	for p.working.Err() == nil {
		x := &holding{key: key, ttl: p.someTTL(random), called: p.h.now()}
		l, err := p.get().Acquire(p.working, key, TTL(x.ttl))
		p.tell("acquire to keep", err)
		if err != nil {
			sleepIn(p.working, between(random, 0, 50*time.Millisecond))
			continue
		}
		p.granted(x, l)
		d := between(random, time.Second, []time.Duration{3 * time.Second, time.Hour}[random.IntN(2)]) // the latter: until it is lost
		for at := x.granted; at-x.granted < d && l.Context().Err() == nil; at = p.h.now() {
			p.h.saw(x, at)
			p.resource.write(x.key, x.fence)
			sleepIn(l.Context(), 2*time.Millisecond)
		}
		p.ended(x, context.Cause(l.Context()), "kept and lost: ")
		p.tell("release of what was kept", l.Release(p.working))
	}
}

// tell counts an outcome, and collects errors that nothing explains.
func (p *party) tell(what string, err error) {
	outcome := "failed"
	var reply redis.Error
	switch {
	case err == nil:
		outcome = "ok"
	case errors.Is(err, ErrNotAcquired):
		outcome = "not acquired"
	case errors.Is(err, ErrLost):
		outcome = "lost"
	case errors.Is(err, ErrClosed):
		outcome = "closed"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		outcome = "cancelled"
	case errors.As(err, &reply) && !redis.IsLoadingError(err):
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.strange) < 20 {
			p.strange = append(p.strange, what+": "+err.Error())
		}
	}
	p.count(what + ": " + outcome)
}

func (s setting) someTTL(random *rand.Rand) time.Duration {
	if s.quorum() {
		return quorumTTL
	}
	return []time.Duration{300 * time.Millisecond, time.Second, time.Second, 3 * time.Second}[random.IntN(4)]
}
