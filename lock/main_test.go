package lock

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

func TestMain(m *testing.M) {
	redis.SetLogger(quiet{})
	redistest.Main(m)
}

// quiet keeps go-redis from telling of each connection that the tests refuse.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// open returns a client that is closed when the test ends. What a test has not
// released then is left.
func open(tb testing.TB, rdb redis.UniversalClient, cfg Config) *Client {
	tb.Helper()
	if cfg.CloseTimeout == 0 {
		cfg.CloseTimeout = -1
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c, err := New(rdb, cfg)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

func acquire(tb testing.TB, c *Client, key string, opts ...Option) *Lease {
	tb.Helper()
	l, err := c.TryAcquire(tb.Context(), key, opts...)
	require.NoError(tb, err)
	return l
}

// total returns the statistics of a client that has used one class.
func total(c *Client) ClassStats { return c.Stats().Classes[0] }

func sweeperOf(c *Client) *sweeper { return &c.store.(single).sweeper }

// leaseKeys returns the keys in Redis, but for the counters of tokens.
func leaseKeys(srv *testserver.Server) []string {
	var keys []string
	for _, key := range srv.Keys() {
		if !strings.HasSuffix(key, "}:f") {
			keys = append(keys, key)
		}
	}
	return keys
}

// ownClient returns a client as redisha.Open makes it, with its breaker.
func ownClient(tb testing.TB, srv *testserver.Server) *conn.Client {
	tb.Helper()
	ep, err := endpoint.Parse("redis://127.0.0.1:6379?pool_size=1024")
	require.NoError(tb, err)
	cn, err := conn.New(conn.Config{Role: "locks", Endpoint: ep, FailFast: true, Dialer: srv.Dial, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = cn.Close() })
	return cn
}

// A network stands between a client and its server and disturbs them.
type network struct {
	dial func(context.Context, string, string) (net.Conn, error)

	mu      sync.Mutex
	replies int  // that still pass, then connections are cut; -1: all
	silent  bool // what is sent arrives nowhere, and nothing comes back
	conns   []net.Conn
}

// throughNetwork returns a client of srv that never repeats, and what lies
// between them. It is for tests in virtual time.
func throughNetwork(tb testing.TB, srv *testserver.Server) (*redis.Client, *network) {
	tb.Helper()
	n := &network{dial: srv.Dial, replies: -1}
	opt := srv.Options()
	opt.Dialer = n.Dial
	opt.MaxRetries, opt.DialerRetries = -1, 1
	rdb := redis.NewClient(opt)
	tb.Cleanup(func() {
		_ = rdb.Close()
		time.Sleep(2 * time.Second) // after failed dials, go-redis looks once a second whether it is closed
	})
	return rdb, n
}

func (n *network) Dial(ctx context.Context, proto, addr string) (net.Conn, error) {
	nc, err := n.dial(ctx, proto, addr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = append(n.conns, nc)
	return &disturbed{Conn: nc, net: n}, nil
}

// cutAfter lets so many replies pass, in reads of the socket, and then cuts the
// connection that the next one comes on, each time; -1 ends that.
func (n *network) cutAfter(replies int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.replies = replies
}

func (n *network) silence(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.silent = on
}

type disturbed struct {
	net.Conn
	net *network
}

func (d *disturbed) Write(p []byte) (int, error) {
	d.net.mu.Lock()
	silent := d.net.silent
	d.net.mu.Unlock()
	if silent {
		return len(p), nil
	}
	return d.Conn.Write(p)
}

func (d *disturbed) Read(p []byte) (int, error) {
	k, err := d.Conn.Read(p) // the server has done it
	if err != nil {
		return k, err
	}
	d.net.mu.Lock()
	defer d.net.mu.Unlock()
	switch {
	case d.net.replies == 0:
		_ = d.Conn.Close()
		return 0, io.EOF
	case d.net.replies > 0:
		d.net.replies--
	}
	return k, nil
}

// A logBook collects what is logged.
type logBook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBook) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

var errTest = errors.New("test")

// within fails the test unless ctx ends with cause before the timeout.
func within(tb testing.TB, ctx context.Context, timeout time.Duration, cause error) {
	tb.Helper()
	select {
	case <-ctx.Done():
		require.ErrorIs(tb, context.Cause(ctx), cause)
	case <-time.After(timeout):
		tb.Fatalf("the context has not ended within %s", timeout)
	}
}
