package lock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// Nodes refuse, hang, are slow, cut off, and restarted with nothing, a majority of
// them too but for the last; clients lose what they are told, and give up at any
// time; and the nodes' clocks are minutes apart. No two hold a lock at a time,
// tokens grow, and nothing is left.
func TestNoTwoHoldAQuorumsLockWhateverFails(t *testing.T) {
	seed := seedOf(t)
	rounds := 3
	switch {
	case testing.Short():
		rounds = 2
	case os.Getenv("REDISHA_TEST_SOAK") == "1":
		rounds = 300
	}
	for i := range rounds {
		s := seed + uint64(i)
		t.Run(fmt.Sprint("REDISHA_TEST_SEED=", s), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newTrial(t, s).run() })
		})
	}
}

// A trial is a quorum in memory, clients of it, and what disturbs them.
type trial struct {
	t       *testing.T
	seed    uint64
	ttl     time.Duration // the longest
	lossy   bool          // leases are deleted as well: of what is left, tokens grow
	panel   *panel
	plants  []*plant
	parties []*player
	clients []*Client // theirs

	working, disturbing   context.Context
	stopWork, stopFaults  context.CancelFunc
	workers, disturbances sync.WaitGroup

	mu       sync.Mutex
	held     map[string][]*Lease
	greatest map[string]int64
	log      []string
	outcomes map[string]int
}

// trialKeys are few, so that all contend.
var trialKeys = []string{"a", "b"}

// A plant is a server with a clock of its own, which tells since when it runs.
type plant struct {
	*testserver.Server
	admin *redis.Client
	ahead time.Duration // of the bubble's clock

	mu     sync.Mutex
	random *rand.Rand
	lives  int
	born   time.Time
	lost   time.Time // when it lost its data last
}

// A player is a client with networks of its own.
type player struct {
	*trial
	client   *Client
	networks []*network
	nodes    []redis.UniversalClient
}

func newTrial(t *testing.T, seed uint64) *trial {
	random := rand.New(rand.NewPCG(seed, 0))
	s := &trial{
		t: t, seed: seed, panel: &panel{}, held: map[string][]*Lease{}, greatest: map[string]int64{}, outcomes: map[string]int{},
		ttl:   []time.Duration{time.Second, 10 * time.Second}[random.IntN(2)],
		lossy: random.IntN(4) == 0,
	}
	s.working, s.stopWork = context.WithCancel(t.Context())
	s.disturbing, s.stopFaults = context.WithCancel(t.Context())
	for i := range 3 + 2*random.IntN(2) {
		srv := testserver.New(t)
		p := &plant{
			Server: srv, admin: srv.Client(t), random: rand.New(rand.NewPCG(seed, uint64(1000+i))),
			born: time.Now(), ahead: between(random, -10*time.Minute, 10*time.Minute),
		}
		srv.SetPreHook(p.answer)
		s.plants, s.panel.servers = append(s.plants, p), append(s.panel.servers, srv)
	}
	time.Sleep(seasoning(s.ttl))
	for range 3 {
		s.parties = append(s.parties, s.newPlayer())
	}
	return s
}

// answer tells the time, and the uptime, as the plant's own clock has it. Requests
// take a while to arrive, so that those of several clients do so in different orders.
func (p *plant) answer(c *server.Peer, cmd string, args ...string) bool {
	switch {
	case cmd == "EVALSHA":
		time.Sleep(p.way())
	case cmd == "TIME":
		now := time.Now().Add(p.ahead)
		c.WriteLen(2)
		c.WriteBulk(fmt.Sprint(now.Unix()))
		c.WriteBulk(fmt.Sprint(now.Nanosecond() / 1000))
		return true
	case cmd == "INFO" && len(args) > 0 && args[0] == "server":
		p.mu.Lock()
		text := fmt.Sprintf("redis_mode:standalone\r\nrun_id:%p-%d\r\nuptime_in_seconds:%d\r\n", p, p.lives, int(time.Since(p.born).Seconds()))
		p.mu.Unlock()
		c.WriteBulk(text)
		return true
	}
	return false
}

func (p *plant) way() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.random.IntN(50) == 0 {
		return between(p.random, 0, 40*time.Millisecond)
	}
	return between(p.random, 0, time.Millisecond)
}

func (s *trial) newPlayer() *player {
	p := &player{trial: s}
	for n, srv := range s.panel.servers {
		nw := &network{dial: srv.Dial, replies: -1}
		opt := srv.Options()
		opt.Dialer, opt.Addr = nw.Dial, fmt.Sprintf("10.0.0.%d:6379", n+1)
		opt.MaxRetries, opt.DialerRetries, opt.ContextTimeoutEnabled = -1, 1, true
		opt.MaintNotificationsConfig = noNotices
		rdb := redis.NewClient(opt)
		s.t.Cleanup(func() {
			_ = rdb.Close()
			time.Sleep(2 * time.Second) // as panel.clients does
		})
		p.networks, p.nodes = append(p.networks, nw), append(p.nodes, rdb)
	}
	p.client = p.open()
	return p
}

func (p *player) open() *Client {
	c, err := NewQuorum(p.nodes, Config{TTL: p.ttl, CloseTimeout: -1, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		p.t.Error(err)
		return p.client
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clients = append(p.clients, c)
	return c
}

// run lets the clients work while they are disturbed, and judges what is left.
func (s *trial) run() {
	defer func() {
		for _, c := range s.clients {
			_ = c.Close()
		}
		s.t.Logf("%d nodes, TTL %s, lossy %t: %v", len(s.plants), s.ttl, s.lossy, s.outcomes)
		if s.t.Failed() {
			s.t.Logf("faults:\n%s", strings.Join(s.log, "\n"))
		}
	}()
	for i, p := range s.parties {
		for j := range 2 {
			s.workers.Go(func() { p.work(rand.New(rand.NewPCG(s.seed, uint64(10+10*i+j)))) })
		}
	}
	for i := range 2 {
		s.disturbances.Go(func() { s.disturb(rand.New(rand.NewPCG(s.seed, uint64(100+i)))) })
	}
	for end := time.Now().Add(10*time.Second + s.ttl); time.Now().Before(end) && !s.t.Failed(); time.Sleep(37 * time.Millisecond) {
		s.look()
	}
	s.stopFaults()
	s.disturbances.Wait()
	s.stopWork()
	s.workers.Wait()
	s.panel.quiet(s.t, s.clients...) // long before the longest TTL
	time.Sleep(seasoning(s.ttl))
	for i, c := range s.clients {
		for _, key := range trialKeys {
			l, err := c.Acquire(s.t.Context(), key, MaxWait(10*time.Second)) // the last one's release may be on its way
			require.NoError(s.t, err, "client %d goes on", i+1)
			require.NoError(s.t, l.Release(s.t.Context()))
		}
	}
	for _, srv := range s.panel.servers {
		for _, key := range srv.Keys() {
			require.Positive(s.t, srv.TTL(key), "%s must end some day", key)
		}
	}
}

// look requires that who holds a lock has it on a majority of the servers, those
// included that have lost it since it was given, and take no part.
func (s *trial) look() {
	if s.lossy {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, leases := range s.held {
		for _, l := range leases {
			n := 0
			for _, p := range s.plants {
				value, _ := p.Get(leaseKeyOf(key))
				p.mu.Lock()
				if strings.HasPrefix(value, l.token) || !p.lost.IsZero() && time.Since(p.lost) < l.ttl {
					n++
				}
				p.mu.Unlock()
			}
			if state, _ := l.result(); state == held && n < len(s.plants)/2+1 {
				s.t.Errorf("%s: token %d holds %s, which %d of %d servers have", time.Now(), l.Token(), key, n, len(s.plants))
			}
		}
	}
}

func (s *trial) tell(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outcomes[what]++
}

// granted judges a new lease, which was asked for when the greatest token was last.
func (s *trial) granted(key string, l *Lease, last int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outcomes["acquired"]++
	if l.Token() <= last {
		s.t.Errorf("%s: the token of %s did not grow: %d came after %d", time.Now(), key, l.Token(), last)
	}
	for _, o := range s.held[key] {
		state, _ := o.result()
		if state == held && !s.lossy {
			s.t.Errorf("%s: two hold %s, with tokens %d and %d", time.Now(), key, o.Token(), l.Token())
		}
		if o.Token() == l.Token() {
			s.t.Errorf("%s: two have token %d of %s", time.Now(), l.Token(), key)
		}
	}
	s.held[key] = append(s.held[key], l)
	s.greatest[key] = max(s.greatest[key], l.Token())
}

func (s *trial) leaves(key string, l *Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[key] = slices.DeleteFunc(s.held[key], func(o *Lease) bool { return o == l })
}

func (s *trial) last(key string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.greatest[key]
}

// work acquires locks until the trial ends.
func (p *player) work(random *rand.Rand) {
	for p.working.Err() == nil && !p.t.Failed() {
		p.once(random)
		sleepIn(p.working, between(random, 0, 200*time.Millisecond))
	}
}

func (p *player) once(random *rand.Rand) {
	key := trialKeys[random.IntN(len(trialKeys))]
	ttl := []time.Duration{p.ttl, p.ttl, p.ttl / 2}[random.IntN(3)]
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if random.IntN(3) == 0 {
		most := []time.Duration{3 * time.Millisecond, 300 * time.Millisecond, p.ttl}[random.IntN(3)]
		timer := time.AfterFunc(between(random, time.Microsecond, most), cancel)
		defer timer.Stop()
	}
	c := p.client
	if random.IntN(20) == 0 {
		c = p.open() // which knows nothing of the nodes, nor of their clocks
	}
	last := p.last(key)
	var l *Lease
	var err error
	if random.IntN(3) == 0 {
		l, err = c.TryAcquire(ctx, key, TTL(ttl))
	} else {
		l, err = c.Acquire(ctx, key, TTL(ttl), MaxWait(between(random, time.Millisecond, 2*p.ttl)))
	}
	if err != nil {
		p.failed(err)
		return
	}
	p.granted(key, l, last)
	d := between(random, 0, 5*time.Millisecond)
	switch random.IntN(10) {
	case 0, 1:
		d = between(random, 0, p.ttl/2)
	case 2:
		d = between(random, 0, 3*p.ttl)
	}
	sleepIn(l.Context(), d)
	p.leaves(key, l)
	switch err := l.Release(ctx); {
	case err == nil:
		p.tell("released")
	case errors.Is(err, ErrLost):
		p.tell("lost")
	default:
		p.tell("release failed")
	}
}

func (p *player) failed(err error) {
	var outage *outageError
	switch {
	case errors.Is(err, ErrNotAcquired):
		p.tell("not acquired")
	case errors.Is(err, context.Canceled):
		p.tell("cancelled")
	case errors.As(err, &outage):
		p.tell("outage")
	case errors.Is(err, errMaxWait), strings.Contains(err.Error(), "no answer within"):
		p.tell("no answer")
	case strings.Contains(err.Error(), "too long for a lease"), strings.Contains(err.Error(), "too late for a lease"):
		p.tell("late")
	default:
		p.t.Errorf("%s: what error is this: %v", time.Now(), err)
	}
}

// disturb does one fault after the other.
func (s *trial) disturb(random *rand.Rand) {
	most := []time.Duration{100 * time.Millisecond, time.Second, s.ttl}
	for s.disturbing.Err() == nil {
		p := s.plants[random.IntN(len(s.plants))]
		nw := s.parties[random.IntN(len(s.parties))].networks
		d := between(random, time.Millisecond, most[random.IntN(len(most))])
		begun := time.Now()
		var what string
		switch random.IntN(12) {
		case 0:
			what = "hangs"
			p.Hang(true)
			sleepIn(s.disturbing, d)
			p.Hang(false)
		case 1:
			what = "is slow"
			p.SetLatency(d / 2)
			sleepIn(s.disturbing, d)
			p.SetLatency(0)
		case 2:
			what = "is full"
			p.SetFull(true)
			sleepIn(s.disturbing, d)
			p.SetFull(false)
		case 3:
			what = "is loading"
			p.SetError("LOADING Redis is loading the dataset in memory")
			sleepIn(s.disturbing, d)
			p.SetError("")
		case 4, 5:
			what = s.restart(random, p, d)
		case 6:
			what = "loses replies"
			p.CutReplies(1 + random.IntN(3))
			sleepIn(s.disturbing, d)
			p.CutReplies(0)
		case 7:
			what = "loses connections"
			p.CutConnections()
		case 8:
			what = "forgets scripts"
			_ = p.admin.ScriptFlush(s.disturbing).Err()
		case 9:
			what = "(or several) cannot be reached by one"
			some := s.some(random, nw)
			for _, n := range some {
				n.silence(true)
			}
			sleepIn(s.disturbing, d)
			for _, n := range some {
				n.silence(false)
			}
		case 10:
			what = "(or several) is cut off for one, after a few replies"
			some := s.some(random, nw)
			for _, n := range some {
				n.cutAfter(random.IntN(6))
			}
			sleepIn(s.disturbing, d)
			for _, n := range some {
				n.cutAfter(-1)
			}
		case 11:
			if s.lossy {
				what = "(and all others) loses leases"
				for _, p := range s.plants {
					p.Del(leaseKeyOf(trialKeys[0]))
				}
			}
		}
		if what != "" {
			s.mu.Lock()
			s.log = append(s.log, fmt.Sprintf("%s to %s: %s %s", begun, time.Now(), p.name(s), what))
			s.mu.Unlock()
		}
		sleepIn(s.disturbing, between(random, 0, 300*time.Millisecond))
	}
}

func (p *plant) name(s *trial) string { return fmt.Sprintf("node %d", slices.Index(s.plants, p)+1) }

func (s *trial) some(random *rand.Rand, of []*network) []*network {
	some := slices.Clone(of)
	random.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
	return some[:1+random.IntN(len(some))]
}

// restart lets a server come back, with nothing if that is within what a quorum
// bears: that no majority has lost its data within the longest TTL, and that each
// has a counter of the last lease.
func (s *trial) restart(random *rand.Rand, p *plant, d time.Duration) string {
	if p.Down() {
		return ""
	}
	p.Stop()
	time.Sleep(nodeTimeoutMost + d) // what was under way has ended
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := 0
	for _, o := range s.plants {
		o.mu.Lock()
		if o != p && !o.lost.IsZero() && time.Since(o.lost) < seasoning(s.ttl) {
			lost++
		}
		o.mu.Unlock()
	}
	bears := lost < len(s.plants)/2
	for _, key := range trialKeys {
		counters := 0
		for _, o := range s.plants {
			text, _ := o.Get(leaseKeyOf(key) + ":f")
			var n int64
			_, _ = fmt.Sscan(text, &n)
			if o != p && n >= s.greatest[key] {
				counters++
			}
		}
		bears = bears && counters > len(s.plants)/2
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lives++
	p.born = time.Now()
	what := "was restarted"
	if bears && random.IntN(4) > 0 {
		p.FlushAll()
		p.lost = time.Now()
		what = "has lost its data"
		s.outcomes[what]++
	}
	if err := p.Restart(); err != nil {
		s.t.Error(err)
	}
	return what
}
