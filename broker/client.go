package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
)

// A Client publishes tasks and serves workers. It is safe for concurrent use.
type Client struct {
	conn     *conn.Client
	once     bool // conn sends nothing twice by itself
	cfg      Config
	log      *slog.Logger
	compress *compress.Codec
	counts   counts

	queues    sync.Map  // name → *queue
	calls     sync.Pool // of *call
	defaults  defaultConfirm
	waitSlice time.Duration
	told      atomic.Int64 // when a failure that nobody hears of was logged last

	life    context.Context // ends when Close stops waiting
	end     context.CancelCauseFunc
	closing chan struct{} // closed when Close begins

	mu      sync.Mutex // guards closed against started.Add
	closed  bool
	started sync.WaitGroup // lanes that send, and runs of workers

	closeOnce sync.Once
	closeErr  error
}

// New returns a client of the queues in rdb: one that redisha opened, or any
// go-redis client but a Ring. It does no I/O.
func New(rdb redis.UniversalClient, cfg Config) (*Client, error) {
	c, err := conn.Of(rdb)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	codec, err := compress.New(cfg.Compress)
	if err != nil {
		return nil, fmt.Errorf("broker: Compress: %w", err)
	}
	b := &Client{conn: c, once: sendsOnce(c), cfg: cfg, log: cmp.Or(cfg.Logger, c.Logger()), compress: codec, closing: make(chan struct{})}
	b.waitSlice = min(waitSlice, max(readTimeout(rdb)/3, time.Millisecond))
	b.life, b.end = context.WithCancelCause(context.Background())
	return b, nil
}

// sendsOnce reports whether no call is sent again behind its caller's back: one
// of redisha's own clients, or a go-redis client without retries.
func sendsOnce(c *conn.Client) bool {
	client, plain := c.Unwrap().(*redis.Client)
	return c.Own() || plain && client.Options().MaxRetries == 0 // as go-redis keeps -1
}

// readTimeout is how long a go-redis client waits for a reply.
func readTimeout(rdb redis.UniversalClient) time.Duration {
	if own, ok := rdb.(*conn.Client); ok {
		rdb = own.Unwrap()
	}
	limit := time.Duration(0)
	switch rdb := rdb.(type) {
	case *redis.Client:
		limit = rdb.Options().ReadTimeout
	case *redis.ClusterClient:
		limit = rdb.Options().ReadTimeout
	}
	if limit <= 0 { // none, or not known
		limit = 3 * time.Second
	}
	return limit
}

// Check connects and asks what is there; its errors say what to do.
func (c *Client) Check(ctx context.Context) error {
	if err := c.usable(ctx); err != nil {
		return fmt.Errorf("broker: check: %w", err)
	}
	if err := c.conn.Check(ctx); err != nil {
		return fmt.Errorf("broker: check: %w", err)
	}
	return nil
}

// Close refuses new publishes with [ErrClosed], lets workers drain as at the end
// of their contexts, and waits for both for at most Config.CloseTimeout: when four
// fifths of it are over, publishes that still wait fail and the contexts of
// handlers end, so that their tasks can be given back. It does not close the
// Redis client. It is safe to call twice.
func (c *Client) Close() error {
	if c == nil {
		return nil
	}
	c.closeOnce.Do(func() {
		c.mu.Lock()
		c.closed = true
		c.mu.Unlock()
		close(c.closing)
		ended := make(chan struct{})
		go func() { // ends with what it waits for, which c.end urges
			c.started.Wait()
			close(ended)
		}()
		// The last fifth is for those who are told to stop.
		urge := time.AfterFunc(c.cfg.CloseTimeout/5*4, func() { c.end(ErrClosed) })
		defer urge.Stop()
		timer := time.NewTimer(c.cfg.CloseTimeout)
		defer timer.Stop()
		select {
		case <-ended:
		case <-timer.C:
			c.closeErr = fmt.Errorf("broker: close: publishes or handlers still run after %s (Config.CloseTimeout)", c.cfg.CloseTimeout)
		}
		c.end(ErrClosed)
	})
	return c.closeErr
}

// begin lets Close wait for what the caller starts; done must follow if it is true.
func (c *Client) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.started.Add(1)
	return true
}

// usable refuses what no call can be made with.
func (c *Client) usable(ctx context.Context) error {
	switch {
	case c == nil:
		return errors.New("nil client: pass one made by New")
	case ctx == nil:
		return errNilContext
	}
	select {
	case <-c.closing:
		return ErrClosed
	default:
		return nil
	}
}

// A queue is what a client knows of a queue.
type queue struct {
	name       string
	partitions []*partition
	lanes      sync.Map      // Confirm → []*lane, one for each partition
	next       atomic.Uint32 // goes round the partitions
}

// queue returns the queue of that name and creates it if it is new.
func (c *Client) queue(ctx context.Context, name string) (*queue, error) {
	if q, ok := c.queues.Load(name); ok {
		return q.(*queue), nil
	}
	m, err := c.metadata(ctx, name)
	if errors.Is(err, redis.Nil) {
		m, err = c.create(ctx, name)
	}
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", metadataKey(c.cfg.Namespace, name), explain(err))
	}
	q := &queue{name: name, partitions: c.partitions(name, m.Partitions)}
	actual, _ := c.queues.LoadOrStore(name, q)
	return actual.(*queue), nil
}

// lanesOf returns the lanes of a level.
func (c *Client) lanesOf(q *queue, level Confirm) []*lane {
	if lanes, ok := q.lanes.Load(level); ok {
		return lanes.([]*lane)
	}
	lanes := make([]*lane, len(q.partitions))
	for i, p := range q.partitions {
		lanes[i] = newLane(c, p, level)
	}
	actual, _ := q.lanes.LoadOrStore(level, lanes)
	return actual.([]*lane)
}

func (c *Client) partitions(queue string, n int) []*partition {
	ps := make([]*partition, n)
	for i := range ps {
		ps[i] = newPartition(c.cfg.Namespace, queue, i, n)
	}
	return ps
}

// metadata reads a queue's metadata. The error is redis.Nil if there is none.
func (c *Client) metadata(ctx context.Context, name string) (metadata, error) {
	s, err := c.conn.Get(ctx, metadataKey(c.cfg.Namespace, name)).Result()
	if err != nil {
		return metadata{}, err
	}
	return decodeMetadata(s)
}

// create writes a queue's metadata, unless another client was first.
func (c *Client) create(ctx context.Context, name string) (metadata, error) {
	n, err := c.wantedPartitions(ctx)
	if err != nil {
		return metadata{}, err
	}
	m := metadata{Version: 1, Partitions: n, Created: time.Now().UnixMilli()}
	created, err := c.write(ctx, metadataKey(c.cfg.Namespace, name), encodeMetadata(m))
	if err != nil {
		return metadata{}, err
	}
	if created {
		return m, nil
	}
	if m, err = c.metadata(ctx, name); errors.Is(err, redis.Nil) {
		err = errors.New("it was deleted as soon as it was written")
	}
	return m, err
}

// write sets a key that is not there, and gives replicas a moment to have it, where
// publishes wait for them. On one server any confirmed task confirms what was written
// before it; on a Cluster the metadata may be another server's than the tasks. What a
// failover loses all the same, restore writes again.
func (c *Client) write(ctx context.Context, key, value string) (created bool, err error) {
	if c.conn.Topology() != endpoint.Cluster {
		return c.conn.SetNX(ctx, key, value, 0).Result()
	}
	level, err := c.confirm(ctx, c.cfg.Confirm)
	if err != nil {
		return false, err
	}
	if level < 1 {
		return c.conn.SetNX(ctx, key, value, 0).Result()
	}
	node, err := c.conn.Node(ctx, key)
	if err != nil {
		return false, err
	}
	pipe := node.Pipeline()
	set := pipe.SetNX(ctx, key, value, 0)
	_ = pipe.Process(ctx, level.wait(ctx, c.waitSlice))
	conn.Exec(ctx, pipe)
	if created, err = set.Result(); moved(err) {
		c.reload(ctx)
	}
	return created, err
}

// restore writes a queue's metadata again after Redis lost data, with the number
// of partitions that it had. Should another client have made another number of
// it meanwhile, that one holds from now on for publishers.
func (c *Client) restore(ctx context.Context, name string, partitions int) error {
	m := metadata{Version: 1, Partitions: partitions, Created: time.Now().UnixMilli()}
	created, err := c.conn.SetNX(ctx, metadataKey(c.cfg.Namespace, name), encodeMetadata(m), 0).Result()
	if err != nil || created {
		return err
	}
	if m, err = c.metadata(ctx, name); err != nil {
		return err
	}
	if m.Partitions != partitions {
		c.queues.Delete(name)
		return fmt.Errorf("the queue was made anew with %d partitions, and this process knows %d: restart its workers", m.Partitions, partitions)
	}
	return nil
}

func (c *Client) wantedPartitions(ctx context.Context) (int, error) {
	if c.cfg.Partitions > 0 {
		return c.cfg.Partitions, nil
	}
	if c.conn.Topology() != endpoint.Cluster {
		return 1, nil
	}
	var primaries atomic.Int64
	err := c.conn.EachPrimary(ctx, func(context.Context, redis.UniversalClient) error {
		primaries.Add(1)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("count the primaries: %w", err)
	}
	return min(4*int(max(primaries.Load(), 1)), maxPartitions), nil
}

// pick chooses the lane of a task: by what places it, or else one after the other,
// passing over those that fail.
func (q *queue) pick(lanes []*lane, placed string) *lane {
	if placed != "" {
		return lanes[jumpHash(hashID(placed), len(lanes))]
	}
	if len(lanes) == 1 {
		return lanes[0]
	}
	first, now := int(q.next.Add(1)), time.Now()
	for i := range lanes {
		if l := lanes[(first+i)%len(lanes)]; !l.avoided(now) {
			return l
		}
	}
	return lanes[first%len(lanes)]
}
