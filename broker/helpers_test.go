package broker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// each runs test on both servers, with a client whose log the test may read.
func each(t *testing.T, test func(t *testing.T, c *Client, logs *logs)) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c, l := newTestClient(t, rdb, Config{})
		test(t, c, l)
	})
}

func newTestClient(t testing.TB, rdb redis.UniversalClient, cfg Config) (*Client, *logs) {
	t.Helper()
	l := &logs{}
	cfg.Logger = slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c, err := New(rdb, cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, c.Close())
		if t.Failed() {
			t.Logf("log:\n%s", l)
		}
	})
	return c, l
}

// logs keeps what is logged.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) count(s string) int { return bytes.Count([]byte(l.String()), []byte(s)) }

// startWorker runs a worker until stop, or the end of the test. A test that waits
// for the end of a lease sets a short one: with it, a slow machine may lose it.
func startWorker(t testing.TB, c *Client, cfg WorkerConfig, handle func(w *Worker)) (stop func() error) {
	t.Helper()
	w, err := NewWorker(c, cfg)
	require.NoError(t, err)
	handle(w)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

func publish[A any](t testing.TB, task *Task[A], c *Client, arg A, opts ...PublishOption) string {
	t.Helper()
	id, err := task.Publish(context.Background(), c, arg, opts...)
	require.NoError(t, err)
	return id
}

func queueInfo(t testing.TB, c *Client, queue string) QueueInfo {
	t.Helper()
	info, err := c.Queue(context.Background(), queue)
	require.NoError(t, err)
	return info
}

// settled waits until a queue has these counts.
func awaitQueue(t testing.TB, c *Client, queue string, want QueueInfo) {
	t.Helper()
	var got QueueInfo
	require.Eventually(t, func() bool {
		got = queueInfo(t, c, queue)
		return got == want
	}, time.Minute, 5*time.Millisecond, "the queue does not come to %+v, last %+v", want, &got)
}

// awaitCount waits for a counter: it is raised a moment after others can see what
// it counts.
func awaitCount(t testing.TB, want uint64, count func() uint64) {
	t.Helper()
	require.Eventually(t, func() bool { return count() == want }, 20*time.Second, time.Millisecond, "the count does not come to %d, last %d", want, count())
}

func receive[V any](t testing.TB, ch <-chan V) V {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(time.Minute):
		require.FailNow(t, "nothing came")
		panic("unreachable")
	}
}

var nilContext context.Context

var errTest = errors.New("on purpose")

// at once is a backoff without pause.
func atOnce(int, error) time.Duration { return 0 }

// A network is what a client's connections go through: it can be cut.
type network struct {
	dial func(ctx context.Context, network, addr string) (net.Conn, error)

	mu       sync.Mutex
	down     bool
	conns    map[net.Conn]bool
	dropNext int    // replies to drop, together with their connections
	dropWith string // drop the next reply that contains this
}

// throughNetwork returns a client of the same server with connections of its own.
func throughNetwork(t testing.TB, rdb redis.UniversalClient) (*redis.Client, *network) {
	opt := *rdb.(*redis.Client).Options()
	n := &network{dial: opt.Dialer, conns: make(map[net.Conn]bool)}
	opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		return n.connect(ctx, network, addr)
	}
	opt.MaxRetries = -1
	opt.DialerRetries = 1
	opt.PoolSize = 100
	opt.PushNotificationProcessor = nil
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	client := redis.NewClient(&opt)
	t.Cleanup(func() { _ = client.Close() })
	return client, n
}

func (n *network) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("network is down")}
	}
	nc, err := n.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := &cuttable{Conn: nc, n: n}
	n.conns[c] = true
	return c, nil
}

// cut closes all connections and refuses new ones until mend.
func (n *network) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = true
	for c := range n.conns {
		_ = c.(*cuttable).Conn.Close()
	}
	clear(n.conns)
}

func (n *network) mend() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = false
}

// drop lets the next k replies get lost, with their connections.
func (n *network) drop(k int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dropNext = k
}

// dropReplyWith lets the next reply that contains s get lost, with its connection.
func (n *network) dropReplyWith(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dropWith = s
}

type cuttable struct {
	net.Conn
	n *network
}

func (c *cuttable) Read(p []byte) (int, error) {
	k, err := c.Conn.Read(p)
	c.n.mu.Lock()
	drop := err == nil && c.n.dropNext > 0
	if drop {
		c.n.dropNext--
	} else if err == nil && c.n.dropWith != "" && bytes.Contains(p[:k], []byte(c.n.dropWith)) {
		drop, c.n.dropWith = true, ""
	}
	c.n.mu.Unlock()
	if drop {
		_ = c.Conn.Close()
		return 0, net.ErrClosed
	}
	return k, err
}

func (c *cuttable) Close() error {
	c.n.mu.Lock()
	delete(c.n.conns, c)
	c.n.mu.Unlock()
	return c.Conn.Close()
}
