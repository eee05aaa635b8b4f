// Package breaker is a circuit breaker for go-redis clients: while a server is
// down, its commands fail at once with [ErrOpen] instead of each waiting for a
// timeout.
//
//	hook, err := breaker.New("cache", "10.0.0.1:6379", breaker.Config{})
//	rdb.AddHook(hook)
//
// It opens on what says that the server cannot serve: failed dials, cut
// connections, timeouts, replies such as LOADING or CLUSTERDOWN. It stays closed
// on what says that the server is alive ([redis.Nil], WRONGTYPE, NOPERM, any
// other error reply) and ignores what says nothing about it: MOVED, a caller who
// cancelled or had less time than Config.SlowThreshold, a full connection pool,
// a connection that was closed on this side. A blocking command (BLPOP, XREAD
// with BLOCK, WAIT, …) may wait as long as it likes.
//
// Replies that refuse writes (OOM, READONLY, NOREPLICAS, MISCONF) come from a
// server that still answers reads. They have a circuit of their own, which
// refuses only commands that store new data (SET, HSET, XADD, …).
//
// The state machine is github.com/sony/gobreaker: closed; open for
// Config.OpenFor; then half-open, where one command at a time is let through as
// the probe, whose outcome closes the circuit or opens it again.
//
// # Limits
//
// A [Hook] belongs to one server. On Cluster and Ring add one to each node, as
// in the example of Hook; a hook on the [redis.ClusterClient] itself sees neither
// dials nor nodes. Subscriptions do not pass through hooks, except for their
// dials. HELLO, AUTH, CLIENT, SELECT, READONLY and ROLE, of which a connection's
// handshake is made, are neither counted nor refused, whoever sends them: the
// command that needed the connection is judged instead.
package breaker

import (
	"cmp"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config configures a [Hook]. The zero Config is ready to use. One Config may
// serve many hooks.
type Config struct {
	// Disabled makes a hook that does nothing.
	Disabled bool

	// Window is the time over which outcomes are counted, in ten steps. Defaults
	// to 10s; at least 10ms.
	Window time.Duration

	// MinCalls is how many commands or pipelines must have succeeded or failed
	// within Window before FailureRatio is looked at. Defaults to 20.
	MinCalls int

	// FailureRatio opens the breaker: failed / (succeeded + failed) within
	// Window. Defaults to 0.5; more than 0, at most 1.
	FailureRatio float64

	// DialFailures opens the breaker after so many failed dials in a row.
	// Defaults to 5, which is what go-redis tries for one command; negative
	// leaves it to FailureRatio.
	DialFailures int

	// OpenFor is how long an open breaker refuses commands before it lets one
	// through as a probe. Defaults to 1s.
	OpenFor time.Duration

	// SlowThreshold decides whether a caller's deadline that passed unanswered
	// counts: as a failure if the command had been under way for at least so
	// long, else not at all. Defaults to 100ms, which is far more than a healthy
	// Redis takes and what its documentation suggests for
	// latency-monitor-threshold. Negative: a caller's deadline never counts.
	SlowThreshold time.Duration

	// OnStateChange, if set, is called in order for each change of state, with
	// the breaker locked: it must return quickly, may call State, WriteState and
	// Counts, but neither Reset nor a command of the same client. The move to
	// half-open is seen when the next command comes, not when OpenFor is over.
	OnStateChange func(Change)
}

// Change is a change of state.
type Change struct {
	Role, Node string
	WritesOnly bool // the circuit for refused writes
	From, To   State
	Cause      error // the last failure; nil unless To is StateOpen
}

func (c Config) withDefaults() Config {
	c.Window = cmp.Or(c.Window, 10*time.Second)
	c.MinCalls = cmp.Or(c.MinCalls, 20)
	c.FailureRatio = cmp.Or(c.FailureRatio, 0.5)
	c.DialFailures = cmp.Or(c.DialFailures, 5)
	c.OpenFor = cmp.Or(c.OpenFor, time.Second)
	c.SlowThreshold = cmp.Or(c.SlowThreshold, 100*time.Millisecond)
	return c
}

func (c Config) validate() error {
	switch {
	case c.Window < 10*time.Millisecond:
		return fmt.Errorf("breaker: Window is %s, want at least 10ms", c.Window)
	case c.MinCalls < 0:
		return fmt.Errorf("breaker: MinCalls is %d, want at least 1, or 0 for the default", c.MinCalls)
	case !(c.FailureRatio > 0 && c.FailureRatio <= 1): // NaN too
		return fmt.Errorf("breaker: FailureRatio is %v, want more than 0 and at most 1", c.FailureRatio)
	case c.OpenFor < 0:
		return fmt.Errorf("breaker: OpenFor is %s, want more than 0, or 0 for the default", c.OpenFor)
	}
	return nil
}

// Hook is the breaker of one server, as a [redis.Hook]. It is safe for
// concurrent use, also by several clients of the server, and owns no goroutine,
// timer or connection.
//
// Commands of a [redis.Conn] or [redis.Tx] pass through the hook of their
// client. A pipeline or transaction counts as one call and is judged by all its commands: it failed if
// one of them did. If it is refused, each of its commands has the error.
//
// An error with a method BreakerNeutral() bool that returns true is ignored:
// for a dialer or a connection which knows that the server is not to blame.
type Hook struct {
	role, node string
	cfg        Config
	start      time.Time // instants are kept as durations since

	all    atomic.Pointer[circuit]
	writes atomic.Pointer[circuit]
	notify sync.Mutex // orders OnStateChange and Reset

	writesWatched atomic.Int64 // until when writes are counted; 0: not
	dialing       atomic.Int64 // dials under way
	dialsFailed   atomic.Int64 // in a row

	tally tally
}

// New returns the breaker for the server node (host:port, or a socket's path),
// which serves role; both are for messages only.
func New(role, node string, cfg Config) (*Hook, error) {
	if user, _, ok := strings.Cut(node, "@"); strings.Contains(node, "://") || ok && user != "" && user[0] != '/' {
		return nil, fmt.Errorf("breaker: node of role %q is a URL or holds a user: pass host:port, or a socket's path", role)
	}
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	h := &Hook{role: role, node: node, cfg: cfg, start: time.Now()}
	h.Reset()
	return h, nil
}

// Reset closes the breaker and forgets what it has counted in the window, but
// not its Counts: another server has taken over. What is still under way to
// the old one no longer counts.
func (h *Hook) Reset() {
	h.notify.Lock()
	defer h.notify.Unlock()
	h.dialsFailed.Store(0)
	for _, old := range []*circuit{h.all.Swap(h.newCircuit(false)), h.writes.Swap(h.newCircuit(true))} {
		if old != nil {
			h.tell(old, State(old.state.Load()), StateClosed)
		}
	}
}

// since is the time since the hook was made.
func (h *Hook) since() time.Duration { return time.Since(h.start) }
