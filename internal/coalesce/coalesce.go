// Package coalesce reads the keys of many callers together.
//
// go-redis takes a connection for each GET. Where dozens of goroutines read at the
// same time, most of the time goes into system calls and wake-ups, which one MGET
// for all of them needs once.
//
// A [Reader] lets a read through, on its caller's goroutine, while no other is under
// way: it then costs what go-redis' own GET does. The others wait until whoever else
// is about to read has come, and travel together as soon as a lane is free.
package coalesce

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/lanes"
	"github.com/redisha/redisha/internal/stats"
)

// Config configures a [Reader]. The zero Config is ready to use.
type Config struct {
	// Timeout bounds each read from the call on, waiting for its turn included.
	// 0 or less: the caller's context and the client's timeouts alone do. On a
	// client that redisha did not make, it needs
	// redis.Options.ContextTimeoutEnabled to bound a read that travels alone.
	Timeout time.Duration

	// Replicas sends reads where the client's Reader does.
	Replicas bool
}

// A Reader reads the keys of one role. It is safe for concurrent use.
type Reader struct {
	cn      *conn.Client
	rdb     redis.UniversalClient // cn, or its Reader
	cluster *redis.ClusterClient  // nil elsewhere
	mget    bool                  // a batch is one MGET; else it is a pipeline
	alone   bool                  // no read shares anything

	limit limit
	sizes sizes
	life  context.Context // of flights
	end   context.CancelCauseFunc

	// Until when MGET is not tried, since the server refuses it; Unix nanoseconds.
	mgetRefused atomic.Int64

	servers *lanes.Servers[*queue]

	batches sync.Pool // of *batch
	counts  counts
}

type counts struct{ alone, batches, keys, shared stats.Counter }

// Stats are counts since [New].
type Stats struct {
	Alone   uint64 // reads of one key that travelled alone
	Batches uint64 // batches that were sent
	Keys    uint64 // keys in them
	Shared  uint64 // reads that shared a key of a batch with an earlier one
}

// New returns a Reader for cn, which stays the caller's. It does no I/O and starts
// nothing. [Reader.Close] ends it.
//
// On one server, or a proxy, a batch is one MGET, on Cluster a pipeline of GETs for
// one node. Reads through a client for a Cluster that redisha did not make are not
// put together: such a client sends a whole pipeline once more where the server
// asked to repeat its first command.
func New(cn *conn.Client, cfg Config) *Reader {
	r := &Reader{cn: cn, rdb: cn, limit: limit{after: cfg.Timeout}}
	if cfg.Replicas {
		r.rdb = cn.Reader()
	}
	r.sizes.seed = maphash.MakeSeed()
	r.life, r.end = context.WithCancelCause(context.Background())
	var cluster, server bool
	r.cluster, cluster = cn.UniversalClient.(*redis.ClusterClient)
	_, server = cn.UniversalClient.(*redis.Client)
	r.alone = cluster && !cn.Own()
	r.mget = !cluster && (cn.Own() || server) // who knows what else does with several keys
	r.servers = lanes.NewServers(r.cluster, func(node string) *queue { return newQueue(r, node) })
	return r
}

// Get returns what is under key: a value without bytes (nil) if that is nothing,
// or no string. The caller calls [Value.Release] when it is done with the bytes.
//
// When ctx ends, or Config.Timeout is over, a read that waits, or shares its
// batch, returns at once, with an error that wraps the cause; one that travels
// alone returns as go-redis does: at the deadline, or by the client's read
// timeout. Values of ctx travel with a read that is alone, and with no other.
//
// Errors are the client's; [conn.ErrClosed] after Close. One that says that the
// server did not answer is that of all who shared a batch.
func (r *Reader) Get(ctx context.Context, key string) (Value, error) {
	if err := r.refusal(ctx); err != nil {
		return Value{}, err
	}
	t := r.limit.begin(ctx)
	q := r.queue(ctx, key)
	if q == nil {
		return r.read(ctx, &t, key, "")
	}
	if r.sizes.isLarge(key) {
		return r.aside(ctx, q, &t, key)
	}
	ticket, s := q.enter(key, &t)
	if s.batch == nil {
		if !ticket.Admitted {
			return Value{}, conn.ErrClosed
		}
		return r.onLane(ctx, q, ticket, &t, key)
	}
	return r.await(ctx, s, &t, key)
}

// A Result is what one of several keys holds, or why that is unknown.
type Result struct {
	Value
	Err error
}

// GetMany is Get for several keys, whose results it returns in the same order; the
// caller releases each. Equal keys may be read once. What fails for some keys does
// not keep others from theirs. It returns when all have a result.
func (r *Reader) GetMany(ctx context.Context, keys []string) []Result {
	results := make([]Result, len(keys))
	if err := r.refusal(ctx); err != nil {
		for i := range results {
			results[i].Err = err
		}
		return results
	}
	if len(keys) == 1 {
		results[0].Value, results[0].Err = r.Get(ctx, keys[0])
		return results
	}
	t := r.limit.begin(ctx)
	seats := make([]seat, len(keys))
	var apart []int // not in a batch
	for i, key := range keys {
		q := r.queue(ctx, key)
		if q == nil || r.sizes.isLarge(key) {
			apart = append(apart, i)
			continue
		}
		if seats[i] = q.join(key, &t); seats[i].batch == nil {
			results[i].Err = conn.ErrClosed
		}
	}
	var started *queue
	for i := range seats {
		if q := seats[i].queue; q != nil && q != started {
			q.start()
			started = q
		}
	}
	r.pipelined(ctx, &t, keys, apart, results)
	apart = apart[:0]
	for i := range seats {
		if seats[i].batch == nil {
			continue
		}
		switch _, err := seats[i].wait(ctx); {
		case err != nil:
			results[i].Err = err
		default:
			var again bool
			if results[i].Value, again, results[i].Err = seats[i].take(); again {
				apart = append(apart, i)
			}
		}
	}
	r.pipelined(ctx, &t, keys, apart, results)
	return results
}

// refusal says why a read cannot even begin.
func (r *Reader) refusal(ctx context.Context) error {
	if ctx == nil {
		return errNilContext
	}
	if r.servers.Closed() {
		return conn.ErrClosed
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

var errNilContext = errors.New("nil context: pass context.Background() or the request's")

// await returns what the batch of s brings.
func (r *Reader) await(ctx context.Context, s seat, t *term, key string) (Value, error) {
	granted, err := s.wait(ctx)
	if err != nil {
		return Value{}, err
	}
	if granted.Admitted {
		return r.onLane(ctx, s.queue, granted, t, key)
	}
	v, again, err := s.take()
	if again {
		return r.aside(ctx, s.queue, t, key)
	}
	return v, err
}

// aside reads a key alone, beside the lanes.
func (r *Reader) aside(ctx context.Context, q *queue, t *term, key string) (Value, error) {
	ticket := q.aside()
	if !ticket.Admitted {
		return Value{}, conn.ErrClosed
	}
	return r.onLane(ctx, q, ticket, t, key)
}

func (r *Reader) onLane(ctx context.Context, q *queue, ticket lanes.Ticket, t *term, key string) (v Value, err error) {
	well := false
	defer func() { q.landed(ticket, well) }()
	v, err = r.read(ctx, t, key, q.node)
	well = err == nil
	return v, err
}

// read is go-redis' GET, to a node of a Cluster if that is known.
func (r *Reader) read(ctx context.Context, t *term, key, node string) (Value, error) {
	r.counts.alone.Inc()
	ctx, route := t.context(ctx, node)
	a := answerOf(r.rdb.Get(ctx, key))
	if a.err == nil {
		r.sizes.saw(key, len(a.value))
	}
	v := Value{bytes: a.value}
	if route != nil {
		v.node = route.Node()
	}
	return v, a.err
}

// Node returns the address of the node of a Cluster that a read of key is sent to
// now: that of its client's Options. It is "" where there is no telling, and without
// Cluster.
func (r *Reader) Node(ctx context.Context, key string) string {
	if r.cluster == nil || r.alone {
		return ""
	}
	node, err := r.cluster.MasterForKey(ctx, key)
	if err != nil {
		return ""
	}
	return node.Options().Addr
}

// pipelined reads some of the keys in a pipeline of their own, on Cluster in one for
// each node: the reads of a pipeline of which a command is repeated are repeated too,
// and so those of other nodes would have no more time than one that hangs.
func (r *Reader) pipelined(ctx context.Context, t *term, keys []string, indexes []int, results []Result) {
	if len(indexes) == 0 {
		return
	}
	ctx, _ = t.context(ctx, "")
	if r.cluster == nil || r.alone {
		r.pipeline(ctx, keys, indexes, results)
		return
	}
	nodes := make(map[string][]int)
	for _, index := range indexes {
		node := r.Node(ctx, keys[index])
		nodes[node] = append(nodes[node], index)
	}
	var all sync.WaitGroup
	for _, indexes := range nodes {
		all.Go(func() {
			defer func() {
				if cause := recover(); cause != nil {
					r.cn.Logger().Error("panic in a hook of the client", "panic", cause, "stack", string(debug.Stack()))
					for _, index := range indexes {
						results[index] = Result{Err: fmt.Errorf("panic in a hook of the client: %v", cause)}
					}
				}
			}()
			r.pipeline(ctx, keys, indexes, results)
		})
	}
	all.Wait()
}

func (r *Reader) pipeline(ctx context.Context, keys []string, indexes []int, results []Result) {
	pipe := r.rdb.Pipeline()
	cmds := make([]*redis.StringCmd, len(indexes))
	for i, index := range indexes {
		cmds[i] = pipe.Get(ctx, keys[index])
	}
	conn.Exec(ctx, pipe)
	for i, index := range indexes {
		a := answerOf(cmds[i])
		if a.err == nil {
			r.sizes.saw(keys[index], len(a.value))
		}
		results[index] = Result{Value{bytes: a.value}, a.err}
	}
}

// answerOf is what a GET brought.
func answerOf(cmd *redis.StringCmd) answer {
	b, err := cmd.Bytes()
	switch {
	case err == nil && b == nil:
		return answer{state: present, value: []byte{}}
	case err == nil:
		return answer{state: present, value: b}
	case err == redis.Nil: //nolint:errorlint // go-redis returns it bare
		return answer{state: absent}
	}
	return without(err)
}

// without is the answer of a key that brought an error. What is no string is
// nothing, as it is to MGET, so that a read does not depend on how it travels.
func without(err error) answer {
	if redis.HasErrorPrefix(err, "WRONGTYPE") {
		return answer{state: absent}
	}
	return answer{state: failed, err: err}
}

// queue returns where a read of key waits, or nil if it is not to wait.
func (r *Reader) queue(ctx context.Context, key string) *queue {
	if r.alone {
		return nil
	}
	q, _ := r.servers.Of(ctx, key)
	return q
}

// Stats returns the counts.
func (r *Reader) Stats() Stats {
	return Stats{
		Alone:   r.counts.alone.Load(),
		Batches: r.counts.batches.Load(),
		Keys:    r.counts.keys.Load(),
		Shared:  r.counts.shared.Load(),
	}
}

// Close refuses new reads with [conn.ErrClosed] and waits for the others. When ctx
// ends first, those that wait get ErrClosed, batches lose their context, and Close
// returns an error: one whose reply is awaited may then be under way until the
// client's read timeout. Calling it again is safe. Values stay valid.
func (r *Reader) Close(ctx context.Context) error {
	defer r.end(conn.ErrClosed)
	if err := r.servers.Close(ctx); err != nil {
		return fmt.Errorf("reads still under way: %w", err)
	}
	return nil
}
