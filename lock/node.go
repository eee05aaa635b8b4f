package lock

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/batch"
	"github.com/redisha/redisha/internal/conn"
)

// A node is one endpoint that keeps leases: that of a client, or one node of
// its quorum.
type node struct {
	client  *Client
	conn    *conn.Client
	locker  *redislock.Client
	batch   *batch.Batcher // for attempts and releases
	sweeper sweeper
	standby standby
	watch   watch
	fallen  func() // is called when the server has become a replica; may be nil
}

func newNode(c *Client, cn *conn.Client) *node {
	s := &node{client: c, conn: cn, locker: redislock.New(cn), batch: batch.New(cn)}
	s.sweeper.init(s)
	s.standby.init(s)
	s.watch.init(s)
	return s
}

// A grant is a lease that a server has given.
type grant struct {
	answer
	held  *redislock.Lock
	swept bool // what the attempt may have left is being given up: its token is used up
}

// obtain makes one attempt. With r.entry, it takes a place in the queue if the
// lease is another's: the error is then ErrNotAcquired, and the answer tells
// more. What an attempt may leave whose outcome is unknown, is given up in the
// background.
func (s *node) obtain(ctx context.Context, r *request) (grant, error) {
	r.hold(s.client.label, time.Now().UnixMilli())
	var g grant
	var odd error
	clock := s.reading()
	held, err := redislock.New(s.obtaining(r, &g.answer, &odd)).
		ObtainMulti(ctx, r.keys.leases, r.ttl, &redislock.Options{Token: r.token, Metadata: r.value[tokenLen:]})
	switch {
	case odd != nil:
		s.sweeper.add(r, unsettled)
		g.swept = true
		return g, odd
	case errors.Is(err, redislock.ErrNotObtained):
		clock.server = g.clock.server
		g.clock = clock
		return g, ErrNotAcquired
	case err != nil:
		if g.swept = !s.neverSent(err); g.swept {
			s.sweeper.add(r, unsettled)
		}
		s.sees(err)
		return g, s.explain(err, r.keys)
	}
	if err := s.watch.late(); err != nil {
		s.sweeper.add(r, settled)
		g.swept = true
		return g, err
	}
	held.Client = s.locker
	g.held = held
	return g, nil
}

// release gives a lease back and hands the lock over. The error is redislock's
// ErrLockNotHeld if the lease is gone.
func (s *node) release(ctx context.Context, held *redislock.Lock, r *request) error {
	leaving := *held
	f := s.fuse(&releaseScript, true, nil, r.keys.words, r.word)
	f.hands = r.keys.all
	leaving.Client = redislock.New(f)
	return leaving.Release(ctx)
}

// errGone is the outcome of a renewal that the server has refused: the key is
// not there, or another's.
var errGone = errors.New("the lease is gone")

// renew renews leases in one pipeline, and in a second one those whose server did
// not know the script. It returns an error for each: errUnsafe where the endpoint
// takes no locks any more.
func (s *node) renew(ctx context.Context, leases []renewal) []error {
	if s.watch.barred.Load() {
		return slices.Repeat([]error{errUnsafe}, len(leases))
	}
	pipe := s.conn.Pipeline()
	errs := s.refresh(ctx, leases, pipe, pipe)
	var again []renewal
	var places []int
	for i, err := range errs {
		if noScript(err) {
			again, places = append(again, leases[i]), append(places, i)
		}
	}
	if len(again) > 0 {
		pipe := s.conn.Pipeline()
		for i, err := range s.refresh(ctx, again, pipe, bySource{pipe}) {
			errs[places[i]] = err
		}
	}
	if slices.ContainsFunc(errs, s.sees) {
		return slices.Repeat([]error{errUnsafe}, len(leases))
	}
	return errs
}

// A renewal is one lease to be renewed.
type renewal struct {
	held *redislock.Lock
	ttl  time.Duration
}

// refresh queues redislock's refresh of each lease on the pipeline, by way of
// via, sends it, and reads the answers.
func (s *node) refresh(ctx context.Context, leases []renewal, pipe redis.Pipeliner, via redis.Scripter) []error {
	locker := redislock.New(via)
	for _, l := range leases {
		refresh := *l.held
		refresh.Client = locker
		_ = refresh.Refresh(ctx, l.ttl, nil) // only queues
	}
	cmds := conn.Exec(ctx, pipe)
	errs := make([]error, len(leases))
	for i := range leases {
		cmd := cmds[i].(*redis.Cmd) //nolint:forcetypeassert // what redislock queues
		switch err := cmd.Err(); {
		case errors.Is(err, redis.Nil):
			errs[i] = errGone
		case err == nil && cmd.Val() == nil:
			errs[i] = errNoAnswer
		default:
			errs[i] = err
		}
	}
	return errs
}

// explain adds to an error of an acquisition what to do, where the error does
// not say it.
func (s *node) explain(err error, k keys) error {
	switch {
	case err == nil:
		return nil
	case redis.HasErrorPrefix(err, "WRONGTYPE"):
		return fmt.Errorf("%s, %s or %s holds something else than a lock, delete it: %w", quote(k.leases[0]), quote(k.fences[0]), quote(k.queues[0]), err)
	case redis.HasErrorPrefix(err, "OOM"):
		return fmt.Errorf("the server is full and takes no more leases, raise its maxmemory or give locks a server of their own: %w", err)
	case isReplicas(err):
		return fmt.Errorf("%w: %w", ErrReplicaEndpoint, err)
	case errors.Is(err, conn.ErrSentinel):
		return fmt.Errorf("%w: %w", ErrSentinelEndpoint, err)
	case redis.IsPermissionError(err), redis.HasErrorPrefix(err, "The user executing the script"):
		return fmt.Errorf("%w: the user needs the commands %s on the keys %s:lock:*, and the channels %[3]s:lock:*", err, neededCommands, s.client.cfg.Namespace)
	}
	return err
}

// close ends the work in the background, or leaves it to itself when ctx is done.
func (s *node) close(ctx context.Context) error {
	return errors.Join(s.watch.chore.stop(ctx), s.sweeper.chore.stop(ctx), s.standby.chore.stop(ctx), s.batch.Close(ctx))
}

func (s *node) stats() NodeStats {
	found, refused := s.watch.state()
	return NodeStats{Addr: addrOf(s.conn), Endpoint: found.String(), Refused: refused, Conn: s.conn.Stats()}
}
