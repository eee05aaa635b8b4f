package pubsub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
)

// ChannelsConfig configures [Channels]. The zero ChannelsConfig tells nothing.
//
// The functions may be nil. They are called one at a time, also where several
// connections serve the channels, and for each channel in order. They must not
// block: meanwhile nothing else is told. They may call Add, Remove and Stats,
// but not Close. One that was about to be called when a channel was removed may
// come just after Remove.
type ChannelsConfig struct {
	// Message gets each message. For a channel that was removed and added again
	// there may be some before Subscribed.
	Message func(channel, payload string)

	// Subscribed is called when the server has confirmed a channel: after Add,
	// and again after each Lost. What was published before is not delivered:
	// read now.
	Subscribed func(channel string)

	// Lost is called when messages of channels do not come any more, and when
	// channels could not be subscribed to; err says why. A channel is told once
	// until its next Subscribed; one that is added during an interruption may not
	// be told. All comes back by itself, unless err is redis.ErrClosed: the Redis
	// client was closed. Lost is then called in any case, and nothing is tried
	// until the next Add. The slice is the callee's.
	Lost func(channels []string, err error)

	// Refused is called when the server refuses a channel: the ACL does not allow
	// it. It is tried again every 30s. Where a server refuses all, those added
	// meanwhile are neither tried nor told before that.
	Refused func(channel string, err error)

	// Ping is the silence after which a PING is sent, as in [Config]. Defaults
	// to 1s.
	Ping time.Duration

	// CloseTimeout is how long Close waits. Defaults to 5s.
	CloseTimeout time.Duration
}

func (c ChannelsConfig) withDefaults() ChannelsConfig {
	c.Ping = cmp.Or(c.Ping, time.Second)
	c.CloseTimeout = cmp.Or(c.CloseTimeout, 5*time.Second)
	if c.Message == nil {
		c.Message = func(string, string) {}
	}
	if c.Subscribed == nil {
		c.Subscribed = func(string) {}
	}
	if c.Lost == nil {
		c.Lost = func([]string, error) {}
	}
	if c.Refused == nil {
		c.Refused = func(string, error) {}
	}
	return c
}

func (c ChannelsConfig) validate() error {
	switch {
	case c.Ping < 0:
		return fmt.Errorf("ChannelsConfig.Ping is %s, want more than 0, or 0 for 1s", c.Ping)
	case c.CloseTimeout < 0:
		return fmt.Errorf("ChannelsConfig.CloseTimeout is %s, want more than 0, or 0 for 5s", c.CloseTimeout)
	}
	return nil
}

// Channels are the channels that a client wants messages of, whatever is behind
// it and whichever server has them now.
//
// Where there is one server, or one primary that has to be found, they are plain
// channels (SUBSCRIBE, PUBLISH) on one connection, which is made anew on each
// epoch. On Cluster they are sharded channels (SSUBSCRIBE, SPUBLISH), on one
// connection to each primary that has some. There a channel follows its slot:
// when it migrates, or another node becomes its primary, the channel is
// subscribed to anew, and Lost and Subscribed are called. A script publishes
// into a channel that has the hash tag of its keys. While their slot migrates, the
// node that it leaves has the channel, but a script may run on the other one
// already: what it publishes then reaches nobody.
// https://redis.io/docs/latest/develop/pubsub/#sharded-pubsub
//
// What package pubsub promises holds for each channel. A connection, and its two
// goroutines, end five seconds after its last channel; on Cluster there is one
// goroutine more while there are channels. It is safe for concurrent use.
type Channels struct {
	cfg    ChannelsConfig
	cn     *conn.Client
	ctx    context.Context // ends by Close
	cancel context.CancelFunc
	detach func()  // from the changes of primary
	only   *shard  // where there is one server
	router *router // on Cluster

	// telling is held while a function of cfg is called. It is taken before mu,
	// and mu before that of a Subscription.
	telling sync.Mutex

	mu     sync.Mutex
	closed bool
	places map[string]*place                // of the channels that are wanted
	shards map[redis.UniversalClient]*shard // by the node's client
	past   Stats                            // of shards that are gone
	tasks  sync.WaitGroup                   // of the router

	closeOnce sync.Once
	closeErr  error
}

// A place says where a channel is.
type place struct {
	shard   *shard // which has it in its subscription; nil: none yet
	live    bool
	refused bool
	lost    bool // the owner knows that no messages come
	bounced bool // its node did not serve it
}

// Open returns Channels of cn, which has none at first. It connects once there
// are some. Close them before cn.
func Open(cn *conn.Client, cfg ChannelsConfig) (*Channels, error) {
	cfg = cfg.withDefaults()
	if cn == nil {
		return nil, errors.New("pubsub: the client is nil, want one made by conn.New or conn.Of")
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("pubsub: %w", err)
	}
	c := &Channels{cfg: cfg, cn: cn, places: make(map[string]*place), shards: make(map[redis.UniversalClient]*shard)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if cn.Topology() == endpoint.Cluster {
		c.router = newRouter(c)
		c.detach = cn.OnEpoch(func(uint64) { c.router.lookNow() })
		return c, nil
	}
	c.only = c.shardOf(cn)
	c.detach = cn.OnEpoch(func(uint64) { c.only.sub.Renew() })
	return c, nil
}

// Add subscribes to channels; those that are there already stay as they are. It
// returns at once: Subscribed tells when messages come. After Close it does
// nothing.
func (c *Channels) Add(channels ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	for _, channel := range channels {
		if c.places[channel] == nil {
			c.places[channel] = &place{shard: c.only}
			if c.router != nil {
				c.router.homeless[channel] = struct{}{}
			}
		}
	}
	if c.router != nil {
		c.router.start()
		return
	}
	c.only.sub.Add(channels...)
}

// Remove unsubscribes from channels; those that are not there do no harm. It
// returns at once.
func (c *Channels) Remove(channels ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, channel := range channels {
		if p := c.places[channel]; p != nil {
			delete(c.places, channel)
			if p.shard != nil {
				p.shard.sub.Remove(channel)
			}
		}
	}
}

// Close ends the connections, and returns once all goroutines have ended. No
// function of ChannelsConfig is called after that. Where that takes longer than
// CloseTimeout it returns an error, as Close of [Subscription] does. It is safe
// to call twice.
func (c *Channels) Close() error {
	c.closeOnce.Do(func() {
		c.detach()
		c.mu.Lock()
		c.closed = true
		clear(c.places) // nothing is told any more
		shards := slices.Collect(maps.Values(c.shards))
		c.mu.Unlock()
		c.cancel()
		errs := make([]error, len(shards)+1)
		var closing sync.WaitGroup
		for i, s := range shards {
			closing.Go(func() { errs[i] = s.sub.Close() })
		}
		errs[len(shards)] = ended(&c.tasks, c.cfg.CloseTimeout)
		closing.Wait()
		c.closeErr = errors.Join(errs...)
	})
	return c.closeErr
}

// Stats returns what the channels did and hold, on all connections.
func (c *Channels) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := c.past
	for _, s := range c.shards {
		sum.add(s.sub.Stats())
	}
	sum.Channels = len(c.places)
	return sum
}
