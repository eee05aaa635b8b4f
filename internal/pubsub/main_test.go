package pubsub_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/pubsub"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// An owner notes what a subscription tells it.
type owner struct {
	*pubsub.Subscription

	mu      sync.Mutex
	live    map[string]bool
	confirm map[string]int // times that each channel was confirmed
	got     map[string][]string
	gaps    []error
	gapAt   []time.Time
	refused []string
	log     []string // of everything, in order
}

// own returns the owner of a subscription that ends with the test.
func own(tb testing.TB, cfg pubsub.Config) *owner {
	tb.Helper()
	o := &owner{live: make(map[string]bool), confirm: make(map[string]int), got: make(map[string][]string)}
	cfg.Message = func(channel, payload string) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.got[channel] = append(o.got[channel], payload)
		o.note("%s=%s", channel, payload)
	}
	cfg.Subscribed = func(channel string) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.live[channel] = true
		o.confirm[channel]++
		o.note("+%s", channel)
	}
	cfg.Refused = func(channel string, _ error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.refused = append(o.refused, channel)
		o.note("-%s", channel)
	}
	cfg.Gap = func(err error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		clear(o.live)
		o.gaps, o.gapAt = append(o.gaps, err), append(o.gapAt, time.Now())
		o.note("gap")
	}
	s, err := pubsub.New(cfg)
	require.NoError(tb, err)
	o.Subscription = s
	tb.Cleanup(func() { require.NoError(tb, s.Close()) })
	return o
}

// note keeps the end of what happened. The caller holds mu.
func (o *owner) note(format string, args ...any) {
	if len(o.log) == 10_000 {
		o.log = o.log[5_000:]
	}
	o.log = append(o.log, fmt.Sprintf(format, args...))
}

// read calls f with the owner's notes.
func (o *owner) read(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

func (o *owner) history() (log []string) {
	o.read(func() { log = slices.Clone(o.log) })
	return log
}

func (o *owner) messages(channel string) (got []string) {
	o.read(func() { got = slices.Clone(o.got[channel]) })
	return got
}

func (o *owner) gapCount() (n int) {
	o.read(func() { n = len(o.gaps) })
	return n
}

func (o *owner) lastGap() (at time.Time, err error) {
	o.read(func() {
		if n := len(o.gaps); n > 0 {
			at, err = o.gapAt[n-1], o.gaps[n-1]
		}
	})
	return at, err
}

func (o *owner) liveChannels() (channels []string) {
	o.read(func() { channels = slices.Sorted(maps.Keys(o.live)) })
	return channels
}

// remove removes channels, which are not live for the owner from then on.
func (o *owner) remove(channels ...string) {
	o.Remove(channels...)
	o.read(func() {
		for _, channel := range channels {
			delete(o.live, channel)
		}
	})
}

// A world is an in-memory server behind a network with faults, in virtual time.
type world struct {
	*owner
	*network
	t   *testing.T
	rdb *redis.Client

	mu       sync.Mutex
	commands map[string]int // that the server got
	hook     server.Hook
	args     [][]string // of SUBSCRIBE
}

// A network leads to a server, and has faults.
type network struct {
	srv *testserver.Server

	mu    sync.Mutex
	hung  bool
	conns map[*faultyConn]struct{}
	dials int

	unwritable atomic.Pointer[string] // the next write that has it fails
}

func newNetwork(tb testing.TB) *network {
	return &network{srv: testserver.New(tb), conns: make(map[*faultyConn]struct{})}
}

const pingTime = time.Second

// inWorld runs test in virtual time.
func inWorld(t *testing.T, test func(*testing.T, *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		test(t, w)
		require.NoError(t, w.Close())
		require.Zero(t, w.Stats().Live)
	})
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, network: newNetwork(t), commands: make(map[string]int)}
	opt := w.srv.Options()
	opt.MaxRetries, opt.DialerRetries, opt.PoolSize = -1, 1, 64
	opt.Dialer = w.dial
	w.rdb = redis.NewClient(opt)
	t.Cleanup(func() { _ = w.rdb.Close() })
	w.srv.SetPreHook(func(p *server.Peer, cmd string, args ...string) bool {
		w.mu.Lock()
		w.commands[cmd]++
		if cmd == "SUBSCRIBE" {
			w.args = append(w.args, args)
		}
		hook := w.hook
		w.mu.Unlock()
		return hook != nil && hook(p, cmd, args...)
	})
	w.owner = own(t, pubsub.Config{Open: func(ctx context.Context) *redis.PubSub { return w.rdb.Subscribe(ctx) }})
	return w
}

// answer lets h see the commands first.
func (w *world) answer(h server.Hook) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hook = h
}

// refuse lets the server refuse SUBSCRIBE to channels that are forbidden.
func (w *world) refuse(forbidden func(channel string) bool) {
	w.answer(func(p *server.Peer, cmd string, args ...string) bool {
		if cmd != "SUBSCRIBE" || !slices.ContainsFunc(args, forbidden) {
			return false
		}
		p.WriteError("NOPERM No permissions to access a channel")
		return true
	})
}

func (w *world) count(command string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.commands[command]
}

// publish publishes past the network and waits until it has been delivered.
func (w *world) publish(channel, payload string) {
	w.srv.Publish(channel, payload)
	synctest.Wait()
}

// add adds channels and waits for what comes of it at once.
func (w *world) add(channels ...string) {
	w.Add(channels...)
	synctest.Wait()
}

// peer adds a channel and returns the server's end of the connection.
func (w *world) peer(channel string) (peer *server.Peer) {
	w.answer(func(p *server.Peer, cmd string, _ ...string) bool {
		if cmd == "SUBSCRIBE" {
			peer = p
		}
		return false
	})
	w.add(channel)
	w.answer(nil)
	return peer
}

func (n *network) dialled() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

// dial connects to the server; while the network hangs, to nobody.
func (n *network) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err // by go-redis itself, see once
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dials++
	nc, err := n.srv.Dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := &faultyConn{Conn: nc, network: n, dead: n.hung}
	n.conns[c] = struct{}{}
	return c, nil
}

// hang lets all connections, and those made from now on, take bytes for ever and
// deliver none, as those to a stopped server.
func (n *network) hang() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hung = true
	for c := range n.conns {
		c.dead = true
	}
}

// cut ends all connections.
func (n *network) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		c.cut.Store(true)
		_ = c.Conn.Close()
	}
}

// heal lets new connections work.
func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hung = false
}

func (n *network) open() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.conns)
}

// anyDead reports whether a connection hangs.
func (n *network) anyDead() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if c.dead {
			return true
		}
	}
	return false
}

type faultyConn struct {
	net.Conn
	network *network
	dead    bool
	cut     atomic.Bool
}

func (c *faultyConn) isDead() bool {
	c.network.mu.Lock()
	defer c.network.mu.Unlock()
	return c.dead
}

func (c *faultyConn) Write(p []byte) (int, error) {
	if c.isDead() {
		return len(p), nil
	}
	if text := c.network.unwritable.Load(); text != nil && strings.Contains(string(p), *text) &&
		c.network.unwritable.CompareAndSwap(text, nil) {
		return 0, syscall.EPIPE
	}
	return c.Conn.Write(p)
}

func (c *faultyConn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil && c.cut.Load() {
			return 0, io.EOF
		}
		if err != nil || !c.isDead() {
			return n, err
		}
	}
}

func (c *faultyConn) Close() error {
	c.network.mu.Lock()
	delete(c.network.conns, c)
	c.network.mu.Unlock()
	return c.Conn.Close()
}
