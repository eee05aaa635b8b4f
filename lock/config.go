package lock

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// MinTTL is the shortest lease.
	MinTTL = 100 * time.Millisecond

	// MaxKeyBytes is the longest key.
	MaxKeyBytes = 1024

	// MaxKeys is how many keys one lease may have: see [Also].
	MaxKeys = 1000

	// maxNameBytes is the longest namespace and the longest name of a holder.
	maxNameBytes = 128
)

// Config configures a [Client]. The zero Config is ready to use.
type Config struct {
	// Namespace begins the names of all keys in Redis. Defaults to "redisha".
	Namespace string

	// Holder names this process to those who look at a lock, beside its host and
	// process ID. Defaults to the name of the program.
	Holder string

	// TTL is how long a lease outlives its last renewal: the longest time that
	// a key stays locked after its holder has died. Leases are renewed each
	// third of it. Defaults to 30s; at least MinTTL. The option TTL goes before it.
	TTL time.Duration

	// Class names what the locks are for in the statistics, where their keys must
	// not appear: there would be too many. 1 to 64 letters, digits and "_.-".
	// Defaults to "default". The option Class goes before it. Past 64 classes, the
	// rest counts as "other".
	Class string

	// CloseTimeout is how long Close waits for the holders of leases. Defaults
	// to 5s; negative: it does not wait.
	CloseTimeout time.Duration

	// AllowFailoverManaged takes a primary that Sentinels watch, addressed
	// directly, which is otherwise refused with ErrFailoverManaged. A failover
	// there can hand one lock to two holders, since replication is asynchronous
	// and the old primary goes on answering for a while: set it only where every
	// write under a lease is checked by the fencing token. A warning is logged.
	// Endpoints and clients that follow Sentinels are refused all the same.
	AllowFailoverManaged bool

	// Strict refuses, with ErrUnsafeEndpoint, what is otherwise taken with a
	// warning: a primary with replicas and a Cluster with replicas, where a
	// promotion can hand one lock to two holders; a server with a maxmemory and
	// another maxmemory-policy than noeviction, which can do so when it is full;
	// and an endpoint that does not tell what it is, since the ACL forbids to ask
	// or a proxy does not know.
	// It does not go together with AllowFailoverManaged.
	Strict bool

	// Logger defaults to that of the client that New is given.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	c.Namespace = cmp.Or(c.Namespace, "redisha")
	c.Holder = cmp.Or(c.Holder, filepath.Base(os.Args[0]))
	c.TTL = cmp.Or(c.TTL, 30*time.Second)
	c.Class = cmp.Or(c.Class, "default")
	c.CloseTimeout = max(cmp.Or(c.CloseTimeout, 5*time.Second), 0)
	return c
}

func (c Config) validate() error {
	switch {
	case strings.ContainsAny(c.Namespace, "{}"):
		return fmt.Errorf("want a Namespace without braces, which tell Cluster where a key belongs, got %q", c.Namespace)
	case len(c.Namespace) > maxNameBytes:
		return fmt.Errorf("want a Namespace of at most %d bytes, got %d", maxNameBytes, len(c.Namespace))
	case len(c.Holder) > maxNameBytes:
		return fmt.Errorf("want a Holder of at most %d bytes, got %d", maxNameBytes, len(c.Holder))
	case c.Strict && c.AllowFailoverManaged:
		return errors.New("want Strict or AllowFailoverManaged, got both: the one refuses all servers that may fail over, the other takes them")
	}
	if err := validClass(c.Class); err != nil {
		return err
	}
	return validTTL(c.TTL)
}

func validClass(class string) error {
	for _, r := range class {
		if !strings.ContainsRune(classRunes, r) {
			return fmt.Errorf("Class is %q, want letters, digits, and _ . - alone", class)
		}
	}
	if len(class) == 0 || len(class) > maxClassBytes {
		return fmt.Errorf("Class has %d bytes, want 1 to %d", len(class), maxClassBytes)
	}
	return nil
}

const (
	classRunes    = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
	maxClassBytes = 64
)

func validTTL(ttl time.Duration) error {
	if ttl < MinTTL {
		return fmt.Errorf("TTL is %s, want at least %s", ttl, MinTTL)
	}
	return nil
}

// An Option changes one acquisition.
type Option func(*options)

type options struct {
	ttl     time.Duration
	maxWait time.Duration
	class   string
	also    []string
}

// TTL is Config.TTL for this lease. At least MinTTL; fractions of a millisecond
// are cut off.
func TTL(d time.Duration) Option { return func(o *options) { o.ttl = d } }

// MaxWait bounds how long Acquire and Do wait for the lease, and not the lease
// itself, as a deadline of the context would. After it they return
// [ErrNotAcquired]. 0, the default, leaves it to the context. TryAcquire does
// not wait.
func MaxWait(d time.Duration) Option { return func(o *options) { o.maxWait = d } }

// Class is Config.Class for this lease.
func Class(name string) Option { return func(o *options) { o.class = name } }

// Also locks further keys together with the first, all or none of them, under
// one lease with one fencing token, which is greater than the last of each. On
// Cluster the keys must be in one slot: they have the same hash tag, such as
// "account{42}" and "orders{42}". At most MaxKeys in all. Waiting for several keys is polling: who waits
// for one of them in its queue goes before.
func Also(keys ...string) Option { return func(o *options) { o.also = append(o.also, keys...) } }

func (c Config) options(opts []Option) (options, error) {
	o := options{ttl: c.TTL, class: c.Class}
	for _, opt := range opts {
		if opt != nil {
			opt(&o)
		}
	}
	if o.maxWait < 0 {
		return o, fmt.Errorf("MaxWait is %s, want more than 0, or 0 to leave it to the context", o.maxWait)
	}
	if err := validClass(o.class); err != nil {
		return o, err
	}
	o.ttl = o.ttl.Truncate(time.Millisecond) // what Redis counts in
	return o, validTTL(o.ttl)
}
