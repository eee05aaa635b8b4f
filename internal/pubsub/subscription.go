// Package pubsub holds subscriptions that notice a dead peer, come back by
// themselves, and tell their owner about each gap.
//
// go-redis connects a subscription again by itself, but its health check only
// writes: a stopped server that accepts and never answers goes unnoticed, and
// what was lost meanwhile is told to nobody. A [Subscription] uses one
// redis.PubSub for each connection. It requires an answer to every command and,
// after a silence, to a PING; without one it gives the connection up and makes
// another. [Channels] are made of subscriptions, one for each server that has
// some of the channels, and follow failovers and a Cluster's slots by themselves.
//
// # What is promised
//
// Every message published on a channel after Subscribed was called for it, and
// before the connection broke, is delivered once and in order. Messages
// published between a Gap and the next Subscribed are lost, as with any
// subscription of Redis: the owner reads then.
//
// A server that is gone or hangs is noticed within twice Config.Ping. A server
// that answers PING and has lost its place is not: one that is cut off from the
// rest of its cluster, or an old primary. For that there is [Subscription.Renew],
// which Channels call; on Cluster they compare with the topology every 2s.
package pubsub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/stats"
)

// Config configures a [Subscription]. Open is required.
//
// The functions Message, Subscribed, Refused and Gap may be nil. They are
// called one at a time and in order, and nothing else is done meanwhile: they must
// not block. They may call Add, Remove, Renew and Stats, but not Close. One that
// was about to be called when a channel was removed may come just after Remove.
type Config struct {
	// Open returns a fresh subscription without channels, for example
	// rdb.Subscribe(ctx). It must not connect.
	Open func(ctx context.Context) *redis.PubSub

	// Message gets each message. For a channel that was removed and added again
	// there may be some before Subscribed.
	Message func(channel, payload string)

	// Subscribed is called when the server has confirmed a channel: after Add,
	// and again after each Gap. What was published before is not delivered:
	// read now.
	Subscribed func(channel string)

	// Refused is called when the server refuses a channel and accepts others:
	// the ACL does not allow it. It is tried again every 30s.
	Refused func(channel string, err error)

	// Gap is called when the connection is lost, could not be made, was
	// renewed, or when the server refuses all channels: from then on no channel
	// is subscribed, until Subscribed is called for it. It is called once for
	// each interruption, which ends with the next Subscribed. After a refusal of
	// all nothing is tried for 30s, channels added meanwhile included. If err is
	// redis.ErrClosed, the Redis client was closed: Gap is then called in any
	// case, and nothing is tried until the next Add.
	Gap func(err error)

	// Ping is the silence after which a PING is sent; the answer, like that to
	// any command, must come within the same time. Connecting may take twice as
	// long, but not at the first attempt after a connection was lost. Defaults to
	// 1s. A server whose round trip takes more than a quarter of it needs more.
	Ping time.Duration

	// CloseTimeout is how long Close waits. Defaults to 5s.
	CloseTimeout time.Duration

	// displaced, if set, makes the channels sharded ones. It is called when the
	// server does not serve a channel, or no longer, and has to remove it.
	displaced func(channel string, err error)

	// straight lets the link that has read a message call Message itself, where
	// nothing else is called: it wakes nobody in between. Meanwhile it reads nothing,
	// so that what the server has sent is lost if the connection is given up then.
	straight bool
}

func (c Config) withDefaults() Config {
	c.Ping = cmp.Or(c.Ping, time.Second)
	c.CloseTimeout = cmp.Or(c.CloseTimeout, 5*time.Second)
	return c
}

func (c Config) validate() error {
	switch {
	case c.Open == nil:
		return errors.New("Config.Open is nil, want a function such as rdb.Subscribe")
	case c.Ping < 0:
		return fmt.Errorf("Config.Ping is %s, want more than 0, or 0 for 1s", c.Ping)
	case c.CloseTimeout < 0:
		return fmt.Errorf("Config.CloseTimeout is %s, want more than 0, or 0 for 5s", c.CloseTimeout)
	}
	return nil
}

// A Subscription is a changing set of channels on one connection at a time.
// While it has channels, and for five seconds after that, two goroutines serve
// it: run decides and writes, a link reads. It is safe for concurrent use.
type Subscription struct {
	cfg    Config
	ctx    context.Context // ends by Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	wake   chan struct{} // holds one: run has to look at what follows
	slots  chan struct{} // one for each link

	mu        sync.Mutex
	channels  map[string]bool     // those wanted; true if live: subscribed, and the owner knows
	changed   map[string]struct{} // those that the session has to look at
	live      int                 // number of live channels
	renew     bool                // make a new connection
	running   bool                // run runs, and will look at channels before it ends
	closed    bool
	cut       bool // Gap was called, and Subscribed not since
	connected bool
	refused   int
	lastErr   error
	lastGap   time.Time

	connects, gaps, messages stats.Counter

	closeOnce sync.Once
	closeErr  error
}

// maxLinks bounds the connections that are being made, should go-redis' dials
// outlast their contexts: one in use and three given up.
const maxLinks = 4

// New returns a subscription without channels. It connects once there are some.
func New(cfg Config) (*Subscription, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("pubsub: %w", err)
	}
	return newSubscription(cfg), nil
}

// newSubscription returns a subscription whose cfg has its defaults.
func newSubscription(cfg Config) *Subscription {
	s := &Subscription{
		cfg:      cfg,
		wake:     make(chan struct{}, 1),
		slots:    make(chan struct{}, maxLinks),
		channels: make(map[string]bool),
		changed:  make(map[string]struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Add subscribes to channels; those that are there already stay as they are. It
// returns at once: Subscribed tells when messages come. After Close it does
// nothing.
func (s *Subscription) Add(channels ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for _, channel := range channels {
		if _, there := s.channels[channel]; !there {
			s.channels[channel] = false
			s.changed[channel] = struct{}{}
		}
	}
	if len(s.channels) > 0 && !s.running {
		s.running = true
		s.tasks.Go(s.run)
	}
	s.signal()
}

// Remove unsubscribes from channels; those that are not there do no harm. It
// returns at once.
func (s *Subscription) Remove(channels ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, channel := range channels {
		if live, there := s.channels[channel]; there {
			delete(s.channels, channel)
			s.changed[channel] = struct{}{}
			if live {
				s.live--
			}
		}
	}
	s.signal()
}

// Renew makes a new connection now, without a pause: the primary has changed.
// It returns at once. Without a connection and without channels there is
// nothing to do.
func (s *Subscription) Renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renew = true
	s.signal()
}

// active reports whether there are channels, or were a moment ago.
func (s *Subscription) active() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

// signal makes run look at what has changed.
func (s *Subscription) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Close ends the connection, and returns once all goroutines have ended. No
// function of Config is called after that.
//
// A go-redis dial that ignores its context, or a handshake with a server that
// hangs, may outlast Config.CloseTimeout. Close then returns an error, and what
// is left ends with the dial; no further function is called but one that runs
// already. It is safe to call twice.
func (s *Subscription) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.cancel()
		s.closeErr = ended(&s.tasks, s.cfg.CloseTimeout)
	})
	return s.closeErr
}

// ended waits for tasks, which have been told to end.
func ended(tasks *sync.WaitGroup, timeout time.Duration) error {
	done := make(chan struct{})
	go func() { // ends with the tasks
		defer close(done)
		tasks.Wait()
	}()
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	select {
	case <-done:
		return nil
	case <-limit.C:
		return fmt.Errorf("the subscription has not ended within CloseTimeout (%s)", timeout)
	}
}
