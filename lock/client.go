package lock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/conn"
)

// A Client acquires leases. It is safe for concurrent use.
type Client struct {
	cfg      Config
	log      *slog.Logger
	holder   holder
	label    label // of the holder
	clock    clock
	counts   counters
	store    store
	line     *line         // nil: waiters poll
	bell     *bell         // wakes those of a quorum; else nil
	longest  time.Duration // TTL that a quorum takes; 0: any
	renewer  renewer
	releases bounder

	closing context.Context // ends when Close begins
	close   context.CancelCauseFunc
	running context.Context // of background commands; ends when Close ends
	stop    context.CancelFunc

	closeOnce sync.Once
	closeErr  error

	mu   sync.Mutex
	busy int           // calls, leases and deletes that Close waits for
	idle chan struct{} // closed when there are none after Close has begun

	settled bool // idle is closed
}

// New returns a client that keeps its leases in rdb, which stays the caller's:
// Close does not close it. It does no I/O. Endpoints of Sentinel are refused
// with [ErrSentinelEndpoint].
//
// What is behind the client is asked before the first lease, and then, while the
// locks are in use, each 10 s and after every new connection: see
// [ErrSentinelEndpoint], [ErrReplicaEndpoint], [ErrFailoverManaged] and
// [Config.Strict] for what is refused. Where that is found while leases are held,
// no new ones are handed out, and those that are held are renewed no more: they
// end with [ErrLost], all at once if the server has become a replica. New leases
// are handed out again when the endpoint was found to be well for a minute.
//
// A go-redis client that repeats commands, as it does by default, can make
// Release say [ErrLost] for a release that worked and whose reply was lost: set
// its MaxRetries to -1, as redisha.Open does.
func New(rdb redis.UniversalClient, cfg Config) (*Client, error) {
	cn, err := conn.Of(rdb)
	if err != nil {
		return nil, fmt.Errorf("lock: new: %w", err)
	}
	cfg = cfg.withDefaults()
	if err := errors.Join(cfg.validate(), cfg.refusesUnseen(cn)); err != nil {
		return nil, fmt.Errorf("lock: new: %w", err)
	}
	c := newClient(cfg, cn.Logger())
	s := newNode(c, cn)
	s.fallen = c.loseAll
	c.store = single{s}
	if c.line, err = newLine(s); err != nil {
		return nil, fmt.Errorf("lock: new: %w", err)
	}
	return c, nil
}

// newClient returns a client that has no store yet.
func newClient(cfg Config, logger *slog.Logger) *Client {
	host, _ := os.Hostname() // only shown
	c := &Client{
		cfg:    cfg,
		log:    cmp.Or(cfg.Logger, logger),
		holder: holder{Name: cfg.Holder, Host: host, PID: os.Getpid()},
		clock:  newClock(),
		idle:   make(chan struct{}),
	}
	c.closing, c.close = context.WithCancelCause(context.Background())
	c.running, c.stop = context.WithCancel(breaker.Bypass(context.Background()))
	c.label = c.holder.label()
	c.counts.classes = make(map[string]*classCounts)
	c.counts.class(cfg.Class) // there from the start
	c.renewer.init(c)
	return c
}

// made reports whether the client is one of New or NewQuorum.
func (c *Client) made() bool { return c != nil && c.store != nil }

// enter admits a call; leave must follow if it returns nil.
func (c *Client) enter() error {
	if !c.made() {
		return errNotMade
	}
	if err := c.store.err(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing.Err() != nil {
		return ErrClosed
	}
	c.busy++
	return nil
}

// stay is enter for what begins inside of a call or a lease.
func (c *Client) stay() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy++
}

func (c *Client) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy--
	c.settle()
}

// settle tells Close once nobody is inside any more. The caller holds mu.
func (c *Client) settle() {
	if c.busy == 0 && c.closing.Err() != nil && !c.settled {
		c.settled = true
		close(c.idle)
	}
}

// Close ends the contexts of all leases with [ErrClosed] as cause, and those of
// who waits, and lets the holders release their leases: it waits for them for
// Config.CloseTimeout. What they have not released then is left to its TTL and
// reported by the error, since its holder may still be at work. Calling it again
// is safe.
func (c *Client) Close() error {
	if !c.made() {
		return fmt.Errorf("lock: close: %w", errNotMade)
	}
	c.closeOnce.Do(func() { c.closeErr = c.shutdown() })
	return c.closeErr
}

func (c *Client) shutdown() error {
	ctx, cancel := context.WithTimeout(context.Background(), max(c.cfg.CloseTimeout, 0))
	defer cancel()

	c.mu.Lock()
	c.close(ErrClosed)
	c.settle()
	c.mu.Unlock()
	for _, l := range c.renewer.leases() {
		l.end(ErrClosed)
	}
	select {
	case <-c.idle:
	case <-ctx.Done():
	}

	c.stop()
	err := cmp.Or(c.renewer.stop(ctx), c.line.close(ctx), c.store.close(ctx))
	left := c.renewer.leases()
	for _, l := range left {
		l.abandon()
	}
	switch {
	case len(left) > 0:
		return fmt.Errorf("lock: close: %d leases were not released within %s (CloseTimeout), their TTL will end them: the first is %s",
			len(left), c.cfg.CloseTimeout, quote(left[0].key()))
	case err != nil:
		return fmt.Errorf("lock: close: commands still under way after %s (CloseTimeout): %w", c.cfg.CloseTimeout, err)
	}
	return nil
}

// A clock tells how far the wall clock has moved against the monotonic one,
// which stands still while a machine is suspended.
type clock struct {
	start time.Time
	wall  func(time.Time) time.Time // replaced by tests
}

func newClock() clock {
	return clock{start: time.Now(), wall: func(t time.Time) time.Time { return t.Round(0) }}
}

// skew is the distance of the two clocks, from that at the start.
func (c clock) skew() time.Duration {
	now := time.Now()
	return c.wall(now).Sub(c.wall(c.start)) - now.Sub(c.start)
}

// jumped reports whether the skew differs from an earlier one by more than most.
func (c clock) jumped(from, most time.Duration) bool {
	for range 2 { // once may be a thread that was stopped between reading one clock and the other
		if (c.skew() - from).Abs() <= most {
			return false
		}
	}
	return true
}
