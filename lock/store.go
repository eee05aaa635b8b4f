package lock

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

// A store keeps leases: one server, or a quorum of them.
type store interface {
	// err says why the store can never serve, or is nil.
	err() error

	// check connects and asks what is there.
	check(ctx context.Context) error

	// admit lets an acquisition with the given TTL pass if the endpoints take
	// locks. Without a deadline of ctx, it waits for the TTL at the most.
	admit(ctx context.Context, ttl time.Duration) error

	// obtain makes one attempt, and takes r.entry's place in the queue if the
	// lease is another's (ErrNotAcquired). It returns what each server has
	// granted. What a failed attempt may have left it gives up in the background.
	obtain(ctx context.Context, r *request) ([]*redislock.Lock, answer, error)

	// renew renews leases. It returns an error for each: errGone if the lease
	// cannot be held any longer.
	renew(ctx context.Context, leases []*Lease) []error

	// release gives a lease back. The error is redislock.ErrLockNotHeld if the
	// lease was gone.
	release(ctx context.Context, l *Lease) error

	// giveUp gives up in the background what may be left of a request.
	giveUp(r *request, o outcome)

	// inspect and revoke are those of Client.
	inspect(ctx context.Context, k keys) (Info, error)
	revoke(ctx context.Context, k keys, token int64) (bool, error)

	nodes() []NodeStats

	// close ends the work in the background, which is given up when ctx is done.
	close(ctx context.Context) error
}

// single is the store of one server.
type single struct{ *node }

func (s single) err() error { return s.conn.Err() }

func (s single) admit(ctx context.Context, ttl time.Duration) error {
	if _, bounded := ctx.Deadline(); bounded || s.watch.clear.Load() {
		return s.outage(s.node.admit(ctx), false)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, ttl, fmt.Errorf("no answer within the TTL (%s)", ttl))
	defer cancel()
	return s.outage(s.node.admit(ctx), false)
}

// outage marks an error that will pass when the server is back. With swept, the
// token of the attempt is used up.
func (s single) outage(err error, swept bool) error {
	for _, lasting := range []error{
		nil, ErrNotAcquired, ErrClosed, conn.ErrClosed, conn.ErrNotConfigured,
		ErrSentinelEndpoint, ErrReplicaEndpoint, ErrFailoverManaged, ErrUnsafeEndpoint,
	} {
		if errors.Is(err, lasting) {
			return err
		}
	}
	if isReply(err) && !passes(err) {
		return err
	}
	return &outageError{text: err.Error(), causes: []error{err}, swept: swept}
}

// passes reports whether an error reply says that the server will serve soon.
func passes(err error) bool {
	return redis.IsLoadingError(err) || redis.IsMasterDownError(err) || redis.IsClusterDownError(err) || redis.IsMaxClientsError(err) ||
		redis.IsTryAgainError(err) || redis.IsNoReplicasError(err) || redis.HasErrorPrefix(err, "BUSY ")
}

func (s single) obtain(ctx context.Context, r *request) ([]*redislock.Lock, answer, error) {
	g, err := s.node.obtain(ctx, r)
	if err != nil {
		return nil, g.answer, s.outage(err, g.swept)
	}
	return []*redislock.Lock{g.held}, g.answer, nil
}

func (s single) renew(ctx context.Context, leases []*Lease) []error {
	renewals := make([]renewal, len(leases))
	for i, l := range leases {
		renewals[i] = renewal{held: l.grant(0), ttl: l.ttl}
	}
	return s.node.renew(ctx, renewals)
}

func (s single) release(ctx context.Context, l *Lease) error {
	return s.node.release(ctx, l.grant(0), l.request)
}

func (s single) giveUp(r *request, o outcome) { s.sweeper.add(r, o) }

func (s single) nodes() []NodeStats { return []NodeStats{s.stats()} }
