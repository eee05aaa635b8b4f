package cache

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/batch"
	"github.com/redisha/redisha/internal/coalesce"
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/tracking"
)

// A Client is the cache role: what all views of one cache share. It is safe for
// concurrent use.
type Client struct {
	rdb     *conn.Client
	primary *coalesce.Reader // reads from it
	reads   *coalesce.Reader // primary, or one that reads from the replicas
	recent  *recent          // nil where reads go to the primary anyway
	scripts *batch.Batcher   // steps of leases
	owed    *owed            // deletes to be repeated
	cfg     Config
	root    string // what all keys begin with
	log     *slog.Logger
	stats   counters

	spacesMu sync.Mutex
	spaces   map[string]*keyspace             // by prefix
	tracker  atomic.Pointer[tracking.Tracker] // nil before the first read of a view with an L1
	began    time.Time

	generations atomic.Pointer[tracking.Prefix] // nil before the first read of a view with an L1 and tags

	lacksHSetEx atomic.Bool // a server has said that it does not know HSETEX

	fallbacks chan struct{} // a place for each load past Redis
	keptBytes atomic.Int64  // of what was loaded so, and is kept for a while
	refreshes chan struct{} // a place for each refresh
	running   group         // flights and loads
	ctx       context.Context
	stop      context.CancelCauseFunc // ends ctx, and with it all loads

	warnedLocal, warnedFallback, warnedDead, warnedFill, warnedSize, warnedLimit, warnedDestroy throttle
}

// New returns a client that keeps its values in rdb, which redisha.Open made or
// any go-redis client but a Ring. It does no I/O. The caller closes rdb, after
// the Client.
func New(rdb redis.UniversalClient, cfg Config) (*Client, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	c, err := conn.Of(rdb)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	client := &Client{
		rdb:       c,
		cfg:       cfg,
		root:      cfg.root(),
		log:       cmp.Or(cfg.Logger, c.Logger()),
		spaces:    make(map[string]*keyspace),
		began:     time.Now(),
		fallbacks: make(chan struct{}, cfg.MaxFallbacks),
		refreshes: make(chan struct{}, maxRefreshes),
		running:   group{idle: make(chan struct{})},
	}
	client.scripts = batch.New(c)
	client.primary = coalesce.New(c, coalesce.Config{Timeout: cfg.ReadTimeout})
	client.reads = client.primary
	if c.Reader() != redis.UniversalClient(c) {
		client.reads = coalesce.New(c, coalesce.Config{Timeout: cfg.ReadTimeout, Replicas: true})
		client.recent = newRecent()
	}
	client.ctx, client.stop = context.WithCancelCause(context.Background())
	client.owed = newOwed(client)
	return client, nil
}

// Check asks Redis whether it is there and what is expected; the error says
// what is wrong and what to do.
func (c *Client) Check(ctx context.Context) error {
	if err := c.ready(ctx, "check"); err != nil {
		return err
	}
	if err := c.rdb.Check(ctx); err != nil {
		return fmt.Errorf("cache: check: %w", err)
	}
	return nil
}

// Close ends the loads that run: their callers get [ErrClosed]. Deletes that have
// failed are not repeated any more. It waits for
// them to return, and for the reads under way, for at most Config.CloseTimeout,
// and returns an error if some have not. It does not close the go-redis client.
// Calling it again is safe.
func (c *Client) Close() error {
	idle := c.running.close()
	c.owed.stopped()
	c.stop(ErrClosed)
	err := c.unwatch()
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.CloseTimeout)
	defer cancel()
	select {
	case <-idle:
	case <-ctx.Done():
		err = fmt.Errorf("cache: close: loads still run after %s (Config.CloseTimeout): do they heed their context?", c.cfg.CloseTimeout)
	}
	for _, r := range []interface{ Close(context.Context) error }{c.scripts, c.reads, c.primary} { // twice the same is safe
		if undone := r.Close(ctx); undone != nil && err == nil {
			err = fmt.Errorf("cache: close: after %s (Config.CloseTimeout): %w", c.cfg.CloseTimeout, undone)
		}
	}
	return err
}

// ready says why a call cannot even begin.
func (c *Client) ready(ctx context.Context, op string) error {
	if ctx == nil {
		return nilContext(op)
	}
	if c.running.closed() {
		return fmt.Errorf("cache: %s: %w", op, ErrClosed)
	}
	if err := c.rdb.Err(); err != nil {
		return fmt.Errorf("cache: %s: %w", op, err)
	}
	return nil
}

// read reads key within Config.ReadTimeout. The caller releases the value, whose
// bytes are nil if it is not there.
func (c *Client) read(ctx context.Context, key string) (coalesce.Value, error) {
	if c.recent == nil || c.recent.has(key) {
		return c.primary.Get(ctx, key)
	}
	return c.reads.Get(ctx, key)
}

// poll is read for a flight: from the primary, and what it returns is the
// flight's to keep.
func (c *Client) poll(ctx context.Context, key string) ([]byte, error) {
	v, err := c.primary.Get(ctx, key)
	return own(&v), err
}

// own releases what was read, and returns its bytes, which are the caller's.
func own(v *coalesce.Value) []byte {
	defer v.Release()
	if v.Shared() {
		return bytes.Clone(v.Bytes())
	}
	return v.Bytes()
}

func (c *Client) withReadTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.cfg.ReadTimeout < 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.cfg.ReadTimeout)
}

// patience is for how long a flight is joined without a read.
func (c *Client) patience() time.Duration {
	if c.cfg.ReadTimeout < 0 {
		return defaultReadTimeout
	}
	return c.cfg.ReadTimeout
}

// subject is what errors call a key: its view and what the caller gave.
func (c *Client) subject(key string) string { return key[len(c.root):] }

// unread explains the error of a read that ended after took.
func (c *Client) unread(ctx context.Context, err error, took time.Duration) error {
	if over := conn.Ended(ctx); over != nil {
		return over // it surfaces as an i/o timeout
	}
	c.stats.errors.Inc()
	if limit := c.cfg.ReadTimeout; limit > 0 && took >= limit {
		return fmt.Errorf("no answer within %s (Config.ReadTimeout): %w", limit, err)
	}
	return err
}

// countError counts an operation that failed, unless its caller ended it.
func (c *Client) countError(ctx context.Context) {
	if ctx.Err() == nil {
		c.stats.errors.Inc()
	}
}

// warn logs trouble that the caller does not see.
func (c *Client) warn(ctx context.Context, t *throttle, msg, key string, err error) {
	if t.allow() {
		c.log.WarnContext(ctx, msg, "key", key, "err", err)
	}
}

// millis is ttl in whole milliseconds, rounded down, and never 0: that would
// mean no TTL at all.
func millis(ttl time.Duration) int64 { return max(int64(ttl/time.Millisecond), 1) }

// jitter is ttl in milliseconds less up to a tenth.
func jitter(ttl time.Duration) int64 {
	ms := millis(ttl)
	return ms - rand.Int64N(ms/10+1)
}
