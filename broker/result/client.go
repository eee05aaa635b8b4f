package result

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/conn"
)

// Config configures a [Client]. The zero Config is ready to use.
type Config struct {
	// Namespace is the first part of every key and channel. Defaults to
	// "redisha". It must not hold spaces, control characters or braces.
	Namespace string

	// TTL is how long a record is kept after it was last stored, unless the
	// record says otherwise. Defaults to 24h; at least 1ms: no record is kept
	// for ever.
	TTL time.Duration

	// MaxValueBytes bounds Record.Value and Record.Progress, before
	// compression. Defaults to 1 MiB; at most 256 MiB.
	MaxValueBytes int

	// Compress says which values are compressed.
	Compress compress.Config

	// Codec encodes and decodes typed values. Defaults to [JSON].
	Codec Codec

	// Logger is where the client logs. Defaults to the connection's.
	Logger *slog.Logger

	// CloseTimeout is how long Close waits for what the client has started.
	// Defaults to 5s.
	CloseTimeout time.Duration
}

const maxMaxValueBytes = 256 << 20 // half of what a Redis string can hold

func (c Config) withDefaults() Config {
	c.Namespace = cmp.Or(c.Namespace, "redisha")
	c.TTL = cmp.Or(c.TTL, 24*time.Hour)
	c.MaxValueBytes = cmp.Or(c.MaxValueBytes, 1<<20)
	c.CloseTimeout = cmp.Or(c.CloseTimeout, 5*time.Second)
	if c.Codec == nil {
		c.Codec = JSON
	}
	return c
}

func (c Config) validate() error {
	switch {
	case strings.ContainsFunc(c.Namespace, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '{' || r == '}' }):
		return fmt.Errorf("Config.Namespace is %q, want no spaces, control characters or braces", c.Namespace)
	case c.TTL < time.Millisecond:
		return fmt.Errorf("Config.TTL is %s, want at least 1ms, or 0 for 24h", c.TTL)
	case c.MaxValueBytes < 0 || c.MaxValueBytes > maxMaxValueBytes:
		return fmt.Errorf("Config.MaxValueBytes is %d, want 1 to %d, or 0 for 1 MiB", c.MaxValueBytes, maxMaxValueBytes)
	case c.CloseTimeout < 0:
		return fmt.Errorf("Config.CloseTimeout is %s, want more than 0, or 0 for 5s", c.CloseTimeout)
	}
	return nil
}

// A Client stores, reads and awaits results. It is safe for concurrent use.
type Client struct {
	conn     *conn.Client
	cfg      Config
	log      *slog.Logger
	compress *compress.Codec
	counts   counts
	hub      *hub
	publish  string        // the command that wakes waiters
	done     chan struct{} // closed by Close

	closeOnce sync.Once
	closeErr  error
}

// New returns a client that keeps its records in rdb: one that redisha opened,
// or any go-redis client. It does no I/O.
func New(rdb redis.UniversalClient, cfg Config) (*Client, error) {
	c, err := conn.Of(rdb)
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	codec, err := compress.New(cfg.Compress)
	if err != nil {
		return nil, fmt.Errorf("result: Config.Compress: %w", err)
	}
	r := &Client{conn: c, cfg: cfg, log: cmp.Or(cfg.Logger, c.Logger()), compress: codec, publish: publishCommand(c), done: make(chan struct{})}
	if r.hub, err = newHub(c, r.log, cfg.CloseTimeout); err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	return r, nil
}

// Check connects and asks what is there; its errors say what to do.
func (c *Client) Check(ctx context.Context) error {
	if err := c.usable(ctx); err != nil {
		return fmt.Errorf("result: check: %w", err)
	}
	if err := c.conn.Check(ctx); err != nil {
		return fmt.Errorf("result: check: %w", err)
	}
	return nil
}

// Close ends all waits with [ErrClosed], and the subscription. It waits for
// that for at most Config.CloseTimeout, and does not close the Redis client. It
// is safe to call twice.
func (c *Client) Close() error {
	c.closeOnce.Do(func() {
		close(c.done)
		if err := c.hub.close(); err != nil {
			c.closeErr = fmt.Errorf("result: close: %w", err)
		}
	})
	return c.closeErr
}

var errNilContext = errors.New("nil context: pass context.Background() or the request's")

// usable refuses what no call can be made with.
func (c *Client) usable(ctx context.Context) error {
	if ctx == nil {
		return errNilContext
	}
	select {
	case <-c.done:
		return ErrClosed
	default:
		return nil
	}
}

// begin is usable for a call that concerns one record.
func (c *Client) begin(ctx context.Context, id string) error {
	if err := c.usable(ctx); err != nil {
		return err
	}
	return ValidateID(id)
}
