package lock

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

// ErrFenced says that a resource refused a write, since a holder with a greater
// fencing token has written there: the lease is not the writer's any more, and the
// writer should stop.
var ErrFenced = errors.New("fenced off: a later holder of the lock has written")

var (
	//go:embed lua/fenced.lua
	fencedLua string

	// One token stores the same once more.
	fencedScript = conn.RepeatableScript(fencedLua)
)

// SetFenced stores a value at key, as SET does, unless a holder with a greater
// fencing token has stored one there: then it changes nothing and returns
// [ErrFenced]. The token is that of the lease under which the value was made
// ([Lease.Token]); a lease may write any number of times. This is what stops a
// holder that was paused for longer than its lease, and wakes up to write.
//
// rdb is where the value belongs, which need not be where the lock is. GET reads
// the value; everybody who writes it must use SetFenced, under leases on one and
// the same lock, since tokens of different locks cannot be compared. The value is
// of any type that go-redis stores. It expires after ttl, cut to milliseconds; 0
// is never.
//
// The greatest token is a string at
//
//	<key>:fence          if key has a hash tag, such as user{42}
//	<key>:fence{<key>}   else
//
// which is in key's slot of a Cluster, and begins like key, for ACLs. It lives
// for 30 days after the last write, or for ttl if that is longer; while it does,
// deleting the value does not let older holders write. A key with braces that are
// no hash tag is refused.
//
// After an error of the network it is unknown whether the value was stored; the
// same call may be repeated.
//
// # Other resources
//
// Whatever can compare and write in one step can refuse late writers. A row of an
// SQL database does with a column fence BIGINT NOT NULL DEFAULT 0:
//
//	UPDATE account SET balance = $1, fence = $2 WHERE id = $3 AND fence <= $2
//
//	INSERT INTO account (id, balance, fence) VALUES ($3, $1, $2)
//	ON CONFLICT (id) DO UPDATE SET balance = excluded.balance, fence = excluded.fence
//	WHERE account.fence <= excluded.fence
//
// If no row was affected, the write was refused (or, of UPDATE, there is no such
// row). In a transaction this statement comes first: it locks the row, so that no
// later holder passes before the rest is committed. MySQL counts rows that have
// the same values already as not affected, unless the connection says
// clientFoundRows=true.
func SetFenced(ctx context.Context, rdb redis.Scripter, key string, value any, token int64, ttl time.Duration) error {
	fence, err := fenceOf(key)
	switch {
	case ctx == nil:
		err = errNilContext
	case rdb == nil:
		err = errors.New("nil client: pass that of the server where the value belongs")
	case err != nil:
	case token <= 0:
		err = fmt.Errorf("token is %d, want that of a lease: see Lease.Token", token)
	case ttl < 0 || ttl > 0 && ttl < time.Millisecond:
		err = fmt.Errorf("ttl is %s, want at least 1ms, or 0 for a value that does not expire", ttl)
	}
	if err != nil {
		return failed("set", key, err)
	}
	reply, err := fencedScript.Run(ctx, rdb, []string{key, fence},
		value, strconv.FormatInt(token, 10), ttl.Milliseconds(), max(fenceLife, ttl).Milliseconds()).Result()
	if err != nil {
		return failed("set", key, explainFenced(ctx, err, key, fence))
	}
	if last, refused := reply.(string); refused {
		return failed("set", key, fencedOff(token, last, fence))
	}
	return nil
}

// explainFenced adds to an error what to do, where the error does not say it.
func explainFenced(ctx context.Context, err error, key, fence string) error {
	if cause := ended(ctx); cause != nil {
		return cause
	}
	switch {
	case redis.HasErrorPrefix(err, "WRONGTYPE"):
		return fmt.Errorf("%s holds something else than a token, delete it: %w", quote(fence), err)
	case redis.IsPermissionError(err), redis.HasErrorPrefix(err, "The user executing the script"):
		return fmt.Errorf("%w: the user needs the commands EVAL EVALSHA GET SET on the keys %s and %s", err, quote(key), quote(fence))
	}
	return err
}

// fencedOff says why a write with token was refused where last was stored.
func fencedOff(token int64, last, fence string) error {
	if n, err := strconv.ParseInt(last, 10, 64); err != nil || n <= token {
		return fmt.Errorf("%s holds %s, which is no token: delete it", quote(fence), quote(last))
	}
	return fmt.Errorf("%w: token %d is less than %s, which %s holds", ErrFenced, token, last, quote(fence))
}

// fenceOf names the key where the greatest token is that has written to key. It
// has the same slot.
func fenceOf(key string) (string, error) {
	const suffix = ":fence"
	switch _, tagged := hashTag(key); {
	case key == "":
		return "", errors.New("the key is empty: name what is written")
	case tagged:
		return key + suffix, nil
	case strings.ContainsAny(key, "{}"):
		return "", errors.New("the key has braces and no hash tag: write the part that says its slot in braces, such as user{42}, or leave them out")
	}
	return key + suffix + "{" + key + "}", nil
}
