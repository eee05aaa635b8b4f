package broker

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/redisha/redisha/compress"
)

// Config configures a [Client]. The zero Config is ready to use.
type Config struct {
	// Namespace is the first part of every key. Defaults to "redisha". It must
	// not hold spaces, control characters or braces.
	Namespace string

	// MaxPayloadBytes bounds the encoded argument of a task, before
	// compression. Defaults to 1 MiB; at most 64 MiB.
	MaxPayloadBytes int

	// Compress says which arguments are compressed.
	Compress compress.Config

	// PublishTimeout bounds every publish, also one whose context ends later or
	// never: a longer deadline needs a longer PublishTimeout. Defaults to 15s,
	// which outlasts most failovers; negative means that only the context bounds.
	PublishTimeout time.Duration

	// Confirm says what a publish waits for, unless its TaskConfig does. Defaults
	// to ConfirmDefault: one replica where there are any, else the primary.
	Confirm Confirm

	// ConfirmTimeout is how long a publish that Redis has taken waits for its
	// confirmation; then it returns an [*UnconfirmedError] which says that it is
	// applied. Defaults to 5s; PublishTimeout bounds it as well.
	ConfirmTimeout time.Duration

	// DegradeAfter lets publishes return nil unconfirmed once confirmations have
	// failed for so long, until one succeeds: Stats.Degraded counts them, and the
	// change is logged. Defaults to 0, never.
	DegradeAfter time.Duration

	// Headers returns headers for each task published under ctx, such as
	// traceparent; those of the option [Header] go before. It must be safe for
	// concurrent use. With OpenTelemetry:
	//
	//	func(ctx context.Context) map[string]string {
	//		m := propagation.MapCarrier{}
	//		otel.GetTextMapPropagator().Inject(ctx, m)
	//		return m
	//	}
	Headers func(ctx context.Context) map[string]string

	// Partitions is how many partitions a queue gets when it is first used; it
	// keeps them. Defaults to 1, on Redis Cluster to four for each primary; at
	// most 256.
	Partitions int

	// Logger is where the client and its workers log. Defaults to the
	// connection's.
	Logger *slog.Logger

	// CloseTimeout is how long Close waits for publishes and workers. Defaults
	// to 5s.
	CloseTimeout time.Duration
}

const maxMaxPayloadBytes = 64 << 20

func (c Config) withDefaults() Config {
	c.Namespace = cmp.Or(c.Namespace, "redisha")
	c.MaxPayloadBytes = cmp.Or(c.MaxPayloadBytes, 1<<20)
	c.PublishTimeout = cmp.Or(c.PublishTimeout, 15*time.Second)
	c.ConfirmTimeout = cmp.Or(c.ConfirmTimeout, 5*time.Second)
	c.CloseTimeout = cmp.Or(c.CloseTimeout, 5*time.Second)
	return c
}

func (c Config) validate() error {
	switch {
	case strings.ContainsFunc(c.Namespace, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '{' || r == '}' }):
		return fmt.Errorf("Config.Namespace is %q, want no spaces, control characters or braces", c.Namespace)
	case c.MaxPayloadBytes < 0 || c.MaxPayloadBytes > maxMaxPayloadBytes:
		return fmt.Errorf("Config.MaxPayloadBytes is %d, want 1 to %d, or 0 for 1 MiB", c.MaxPayloadBytes, maxMaxPayloadBytes)
	case c.Partitions < 0 || c.Partitions > maxPartitions:
		return fmt.Errorf("Config.Partitions is %d, want 1 to %d, or 0 for what fits the server", c.Partitions, maxPartitions)
	case c.ConfirmTimeout < 0:
		return fmt.Errorf("Config.ConfirmTimeout is %s, want more than 0, or 0 for 5s", c.ConfirmTimeout)
	case c.DegradeAfter < 0:
		return fmt.Errorf("Config.DegradeAfter is %s, want more than 0, or 0 for never", c.DegradeAfter)
	case c.CloseTimeout < 0:
		return fmt.Errorf("Config.CloseTimeout is %s, want more than 0, or 0 for 5s", c.CloseTimeout)
	}
	return c.Confirm.validate("Config.Confirm")
}
