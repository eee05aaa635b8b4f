package cache

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"
)

// Config configures a [Client]. The zero Config is ready to use.
type Config struct {
	// Namespace is the first part of every key, up to the first colon.
	// Defaults to "redisha". It may hold letters, digits and "_-.:/".
	Namespace string

	// Name tells caches of one namespace apart: the keys of a named cache begin
	// with <namespace>:cache.<name>: instead of <namespace>:cache:, and so do those of
	// its maps, hashes, limits and sessions. It may hold
	// letters, digits, "_" and "-". Defaults to none.
	Name string

	// ReadTimeout bounds each read by Get and Fetch, and the scripts by which
	// Fetch takes a load lease: waiting for other reads or a connection, dialling
	// and the reply together. When it is over, Fetch goes to the loader and Get returns an
	// error. Defaults to 250ms; at most 1h; negative: only the caller's context and
	// the client's own timeouts count. On a client that redisha did not make, it
	// needs redis.Options.ContextTimeoutEnabled to bound the reply.
	ReadTimeout time.Duration

	// TTL is how long views without a TTL of their own keep values. Defaults to
	// 1h; at least 1ms.
	TTL time.Duration

	// MinCompressBytes is the length from which views without one of their own
	// compress values. Defaults to 256; negative: they do not, while compressed
	// values are still read.
	MinCompressBytes int

	// MaxFallbacks is how many loads may run at once that do without the cache,
	// mostly because Redis does not answer: it protects the source during an
	// outage. Further ones wait for ViewConfig.LoadTimeout at most. Defaults to
	// 64; must not be negative.
	MaxFallbacks int

	// CloseTimeout is how long Close waits for loads to end. Defaults to 5s;
	// must not be negative.
	CloseTimeout time.Duration

	// Logger takes warnings of trouble that callers do not see, at most one of
	// a kind in ten seconds. Defaults to the logger of the connection, which is
	// slog.Default() if nothing else was said.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	c.Namespace = cmp.Or(c.Namespace, "redisha")
	c.ReadTimeout = cmp.Or(c.ReadTimeout, defaultReadTimeout)
	c.TTL = cmp.Or(c.TTL, defaultTTL)
	c.MaxFallbacks = cmp.Or(c.MaxFallbacks, 64)
	c.CloseTimeout = cmp.Or(c.CloseTimeout, 5*time.Second)
	return c
}

var (
	namespacePattern = regexp.MustCompile(`^[A-Za-z0-9_.:/-]+$`)
	namePattern      = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
)

func (c Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("cache: "+format, args...)) }
	if !namespacePattern.MatchString(c.Namespace) {
		bad("Namespace is %q, want letters, digits and _-.:/ only", c.Namespace)
	}
	if c.Name != "" && !namePattern.MatchString(c.Name) {
		bad("Name is %q, want letters, digits, _ and - only", c.Name)
	}
	if c.ReadTimeout > maxReadTimeout { // leases live longer by it
		bad("ReadTimeout is %s, want at most %s, 0 for %s, or less than 0 for none", c.ReadTimeout, maxReadTimeout, defaultReadTimeout)
	}
	if c.TTL < time.Millisecond {
		bad("TTL is %s, want at least 1ms, or 0 for %s", c.TTL, defaultTTL)
	}
	if c.MaxFallbacks < 0 {
		bad("MaxFallbacks is %d, want at least 1, or 0 for 64", c.MaxFallbacks)
	}
	if c.CloseTimeout < 0 {
		bad("CloseTimeout is %s, want more than 0, or 0 for 5s", c.CloseTimeout)
	}
	return errors.Join(errs...)
}

// root is what all keys of the cache's views begin with.
func (c Config) root() string { return c.rootOf("cache") }

// rootOf is what all keys of that kind begin with.
func (c Config) rootOf(kind string) string {
	if c.Name != "" {
		return c.Namespace + ":" + kind + "." + c.Name + ":"
	}
	return c.Namespace + ":" + kind + ":"
}

// ViewConfig configures a [View]. The zero ViewConfig is ready to use.
type ViewConfig struct {
	// TTL is how long a value lives. Each one gets up to a tenth less, at
	// random, so that what was stored together does not expire together.
	// Defaults to Config.TTL; at least 1ms.
	TTL time.Duration

	// AbsentTTL is how long an absence lives, from which the same part is taken:
	// the time after which something that was just made is found, if whoever
	// made it does not Delete or Set its key. Defaults to 10s, or TTL if that is
	// shorter; at least 1ms; negative: absences are not cached.
	AbsentTTL time.Duration

	// StaleFor is for how long a value stays when its TTL is over, as a fallback:
	// Fetch returns it at once and has one caller refresh it in the background. If
	// that load fails, the old value serves on, and the next one tries 30 s later;
	// Get, to which it is a miss, does not see it. TTL and StaleFor together are 100
	// years at most. When the TTL is over is judged by the clocks of who stored the
	// value and of who reads it, StaleFor by Redis. Absences have no such time.
	// Defaults to none; must not be negative, nor set for a plain view.
	StaleFor time.Duration

	// SoftLoadTimeout is how long a Fetch that finds a stale value waits for the
	// load of a fresh one, before it returns the stale one. The load goes on.
	// Defaults to not at all; must not be negative.
	SoftLoadTimeout time.Duration

	// ErrorTTL is for how long the error of a load that failed is the error of all
	// Fetches of its key, so that they do not queue, process after process, for a
	// source that fails. Its text stands in Redis, cut to 256 bytes. A value that is
	// stale serves instead, and Get misses. Defaults to 500ms; at least 1ms;
	// negative: the next Fetch loads.
	ErrorTTL time.Duration

	// LoadTimeout is how long a load may take. When it is over, its context
	// ends, its callers get an error that wraps context.DeadlineExceeded, and
	// what it returns later is thrown away. The load lease lives a second longer
	// (or Config.ReadTimeout, if that is more): so long the crash of a process
	// can delay others. Defaults to 10s; at least 1ms.
	LoadTimeout time.Duration

	// Version becomes a part of the keys, so that values of different shape
	// never meet: raise it when V changes. Letters, digits, "_" and "-".
	// Defaults to none.
	Version string

	// Codec turns values into bytes and back. Defaults to [JSON].
	Codec Codec

	// Plain stores exactly the codec's bytes (from MinCompressBytes on, a frame
	// of package compress), so that redis-cli and other languages read them. By
	// default a header goes before them. Absences and load leases, which begin
	// with 0xC1, stand in plain views too: other readers take them for a miss.
	// What was written with another setting of Plain is a miss.
	Plain bool

	// Tags lets entries have tags, by which [View.InvalidateTags] ends all that have
	// one, and makes [View.Clear] a single command. For that each read asks the
	// primary for the view's generation as well, in the same round trip, and for
	// those of the entry's tags: in the same one if it had these tags before, else in
	// a second one. Each write asks for them in a round trip of its own. All views of
	// one name must agree on it: what was written with another setting is a miss. It
	// must not be set for a plain view.
	Tags bool

	// MaxValueBytes is the greatest length of a value, as the codec makes it.
	// Set refuses a longer one; Fetch returns it without storing it. A longer
	// one in Redis is a miss. Defaults to 1 MiB; at most 512 MiB, Redis' limit.
	MaxValueBytes int

	// MinCompressBytes is the length from which values are compressed. Defaults
	// to Config.MinCompressBytes; negative: they are not, while compressed ones
	// are still read.
	MinCompressBytes int

	// LocalEntries is how many values and absences this process keeps of the view,
	// decoded (an L1), so that most reads of what is in frequent use do not ask
	// Redis. It holds them until the server tells that the key has changed, by
	// whomever, expired or was evicted: some milliseconds later in other processes,
	// and at once in this one. Whenever that may have been missed (a connection that
	// broke, a failover) all of them are given up. What a server does not tell at all,
	// being a proxy, or since the user may not CLIENT TRACKING, or since it was cut off
	// and does not know yet that it is no primary any more, is seen when LocalMaxAge
	// is over.
	//
	// What is kept lasts as long as the client: make such a view once. It reads from
	// the primary; a client that reads from replicas cannot have it, nor a Cluster's
	// client that redisha did not make. Redis 6.0 or later. With Tags the server also
	// tells of Clear and InvalidateTags; on a Cluster nothing is kept then unless all
	// its primaries tell, or say that they do not.
	//
	// A loader that reads a view with local copies may get one of LocalMaxAge, and what
	// it makes of that is stored for the whole of its own TTL: let loaders read the
	// source. Defaults to none; must not be negative.
	LocalEntries int

	// LocalMaxAge is the longest time for which a local copy is returned, counted
	// from before it was read: the bound of how old it can be, even if the server
	// tells nothing. Where TTL or, for an absence, AbsentTTL is shorter, that is; of a
	// TTL that a call or a loader has given, the server tells the end. Defaults to 15s;
	// must not be negative. Unused without LocalEntries.
	LocalMaxAge time.Duration

	// Clone lets local copies and request scopes (see [Client.Scope]) keep and give
	// out copies, which callers may change. V is a string, []byte, or has a method
	// Clone() V, which copies all that a caller may change. By default a value is
	// shared by all who find it there: it must not be changed.
	Clone bool
}

const (
	defaultReadTimeout = 250 * time.Millisecond
	maxReadTimeout     = time.Hour
	defaultTTL         = time.Hour
	defaultAbsentTTL   = 10 * time.Second
	defaultErrorTTL    = 500 * time.Millisecond
	maxTTL             = 100 * 365 * 24 * time.Hour
	defaultLoadTimeout = 10 * time.Second
	maxLoadTimeout     = 24 * time.Hour
	defaultMaxValue    = 1 << 20
	maxMaxValue        = 512 << 20
	defaultMinCompress = 256
	defaultLocalMaxAge = 15 * time.Second
)

func (c ViewConfig) withDefaults(role Config) ViewConfig {
	c.TTL = cmp.Or(c.TTL, role.TTL, defaultTTL)
	c.AbsentTTL = cmp.Or(c.AbsentTTL, min(defaultAbsentTTL, c.TTL))
	c.ErrorTTL = cmp.Or(c.ErrorTTL, defaultErrorTTL)
	c.LoadTimeout = cmp.Or(c.LoadTimeout, defaultLoadTimeout)
	c.LocalMaxAge = cmp.Or(c.LocalMaxAge, defaultLocalMaxAge)
	c.MaxValueBytes = cmp.Or(c.MaxValueBytes, defaultMaxValue)
	c.MinCompressBytes = cmp.Or(c.MinCompressBytes, role.MinCompressBytes, defaultMinCompress)
	if c.Codec == nil {
		c.Codec = JSON
	}
	return c
}

// validate returns all problems in one error, a line each.
func (c ViewConfig) validate(name string) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !namePattern.MatchString(name) {
		bad("the name is %q, want letters, digits, _ and - only", name)
	}
	if c.Version != "" && !namePattern.MatchString(c.Version) {
		bad("Version is %q, want letters, digits, _ and - only", c.Version)
	}
	if c.TTL < time.Millisecond {
		bad("TTL is %s, want at least 1ms, or 0 for the cache's", c.TTL)
	}
	if c.AbsentTTL >= 0 && c.AbsentTTL < time.Millisecond {
		bad("AbsentTTL is %s, want at least 1ms, 0 for %s, or less than 0 for none", c.AbsentTTL, defaultAbsentTTL)
	}
	if c.ErrorTTL >= 0 && c.ErrorTTL < time.Millisecond {
		bad("ErrorTTL is %s, want at least 1ms, 0 for %s, or less than 0 for none", c.ErrorTTL, defaultErrorTTL)
	}
	switch {
	case c.StaleFor < 0 || c.StaleFor > 0 && c.StaleFor < time.Millisecond:
		bad("StaleFor is %s, want at least 1ms, or 0 for none", c.StaleFor)
	case c.StaleFor > 0 && c.Plain:
		bad("StaleFor is %s, and Plain is set: plain values have no header in which to say so; leave one of them out", c.StaleFor)
	case c.TTL > maxTTL || c.StaleFor > maxTTL-c.TTL:
		bad("TTL and StaleFor are %s together, want at most %s", c.TTL+c.StaleFor, maxTTL)
	}
	if c.Tags && c.Plain {
		bad("Tags and Plain are set: plain values have no header in which their tags could stand; leave one of them out")
	}
	if c.SoftLoadTimeout < 0 {
		bad("SoftLoadTimeout is %s, want more than 0, or 0 for none", c.SoftLoadTimeout)
	}
	if c.LoadTimeout < time.Millisecond || c.LoadTimeout > maxLoadTimeout {
		bad("LoadTimeout is %s, want 1ms to %s, or 0 for %s", c.LoadTimeout, maxLoadTimeout, defaultLoadTimeout)
	}
	if c.LocalEntries < 0 {
		bad("LocalEntries is %d, want at least 1, or 0 for none", c.LocalEntries)
	}
	if c.LocalMaxAge < 0 {
		bad("LocalMaxAge is %s, want more than 0, or 0 for %s", c.LocalMaxAge, defaultLocalMaxAge)
	}
	if c.MaxValueBytes < 1 || c.MaxValueBytes > maxMaxValue {
		bad("MaxValueBytes is %d, want 1 to %d, or 0 for %d", c.MaxValueBytes, maxMaxValue, defaultMaxValue)
	}
	return errors.Join(errs...)
}

// A SetOption changes one call that stores a value.
type SetOption struct {
	ttl    time.Duration
	hasTTL bool
	tags   []string
}

// TTL stores the value for d, less up to a tenth, instead of ViewConfig.TTL; in a
// [Map] or [Hash] for all of d, instead of MapConfig.TTL. It must be at least 1ms.
func TTL(d time.Duration) SetOption { return SetOption{ttl: d, hasTTL: true} }
