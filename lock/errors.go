package lock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/batch"
	"github.com/redisha/redisha/internal/conn"
)

var (
	// ErrNotAcquired says that another holds the key, now or, from Acquire, for
	// as long as the wait was allowed to last.
	ErrNotAcquired = errors.New("not acquired: another holds the lock")

	// ErrLost says that a lease ended before it was released: it was not
	// renewed in time, its key was deleted or taken, or the machine's clock
	// jumped. It is the cause of the end of the lease's context.
	ErrLost = errors.New("lease lost")

	// ErrSentinelEndpoint says that the endpoint is one of Sentinel, which this
	// package always refuses: a client that follows the primary by Sentinel, or
	// a Sentinel itself. After a failover whose replica had not seen the lease, a
	// second holder gets the lock at once, while the first one has it still.
	ErrSentinelEndpoint = errors.New("locks refuse a Sentinel endpoint, since a failover can hand one lock to two holders: " + instead)

	// ErrReplicaEndpoint says that the endpoint is a replica.
	ErrReplicaEndpoint = errors.New("locks refuse a replica, which takes no writes and knows of locks too late: " +
		"set REDISHA_LOCKS_URL to a fixed primary, such as redis://host:6379")

	// ErrFailoverManaged says that Sentinels watch the primary at the endpoint,
	// and may put another in its place; see Config.AllowFailoverManaged.
	ErrFailoverManaged = errors.New("locks refuse a primary that Sentinels watch, since a failover can hand one lock to two holders: " +
		instead + "; or, if fencing tokens are checked wherever it matters, set AllowFailoverManaged (allow_failover_managed=true in the URL)")

	// ErrUnsafeEndpoint says that Config.Strict refuses the endpoint.
	ErrUnsafeEndpoint = errors.New("strict locks refuse a server that may fail over or evict keys, or does not tell whether it may, since one lock can have two holders then: " + instead +
		"; set maxmemory-policy noeviction on it; and allow the user ROLE, PUBSUB|NUMSUB and INFO (on Cluster CLUSTER|SHARDS and INFO); or leave Strict out")

	// ErrClosed is returned by calls after Close, and is the cause of the end of
	// the contexts of the leases that were held then. It is go-redis' own.
	ErrClosed = redis.ErrClosed
)

// instead is where locks are safe.
const instead = "give locks a server of their own that does not fail over, such as redis://host:6379 in REDISHA_LOCKS_URL, " +
	"or a quorum of independent primaries, such as redis://a;redis://b;redis://c"

var errNotMade = errors.New("a Client that was not made: use one that New, NewQuorum or redisha.Open returned (was its error looked at?)")

var errNilContext = errors.New("nil context: pass context.Background() or the request's")

// failed says which operation on which key err belongs to.
func failed(op, key string, err error) error {
	return fmt.Errorf("lock: %s %s: %w", op, quote(key), err)
}

// quote quotes the key, or the beginning of a long one.
func quote(key string) string {
	const most = 64
	if len(key) <= most {
		return fmt.Sprintf("%q", key)
	}
	cut := most
	for cut > most-utf8.UTFMax && !utf8.RuneStart(key[cut]) {
		cut--
	}
	return fmt.Sprintf("%q… (%d bytes)", key[:cut], len(key))
}

const neededCommands = "EVAL EVALSHA GET GETRANGE MGET MSET MSETNX SET PEXPIRE PTTL DEL EXISTS TIME LLEN LPOS LPOP LPUSH RPUSH LREM PUBLISH SUBSCRIBE"

// neverSent reports whether err says that a command was not sent at all. A
// foreign client may have repeated it, and then err is of the last try alone.
func (s *node) neverSent(err error) bool {
	if errors.Is(err, ErrClosed) || errors.Is(err, breaker.ErrOpen) || errors.Is(err, conn.ErrNotConfigured) || errors.Is(err, batch.ErrNotSent) {
		return true
	}
	var op *net.OpError
	return s.conn.Own() && (errors.As(err, &op) && op.Op == "dial" ||
		errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrPoolExhausted))
}

// ended returns why ctx has ended, or nil. A deadline ends the reading from a
// socket a moment before it ends the context.
func ended(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return nil
}
