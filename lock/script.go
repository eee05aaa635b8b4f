package lock

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

var (
	//go:embed fence.lua
	fenceLua string
	//go:embed discard.lua
	discardLua string

	fenceScript = redis.NewScript(fenceLua)
)

// fenceLife is how long a fencing counter outlives the last lease. After that,
// tokens grow by the server's clock alone.
const fenceLife = 30 * 24 * time.Hour

// noKey is PTTL's answer for a key that is not there.
const noKey = -2

// An attempt is what redislock obtains one lease through. Behind redislock's
// script it sends, in the same round trip, the one that draws the fencing token.
type attempt struct {
	redis.Scripter // for what redislock does not use
	rdb            redis.UniversalClient
	keys           keys
	value          string // what the lease will hold

	// The outcome.
	token int64         // -1 if the lease is another's
	left  time.Duration // of the other's lease; negative if unknown
	err   error
}

func (a *attempt) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	pipe := a.rdb.Pipeline()
	obtain := pipe.EvalSha(ctx, sha, keys, args...)
	fence := fenceScript.EvalSha(ctx, pipe, a.fenceKeys(), a.fenceArgs()...)
	conn.Exec(ctx, pipe)
	if noScript(fence.Err()) && !noScript(obtain.Err()) {
		fence = fenceScript.Eval(ctx, a.rdb, a.fenceKeys(), a.fenceArgs()...)
	}
	a.read(fence)
	return obtain
}

// Eval is what redislock calls after NOSCRIPT.
func (a *attempt) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	pipe := a.rdb.Pipeline()
	obtain := pipe.Eval(ctx, script, keys, args...)
	fence := fenceScript.Eval(ctx, pipe, a.fenceKeys(), a.fenceArgs()...)
	conn.Exec(ctx, pipe)
	a.read(fence)
	return obtain
}

func (a *attempt) fenceKeys() []string { return []string{a.keys.lease, a.keys.fence} }
func (a *attempt) fenceArgs() []any    { return []any{a.value, fenceLife.Milliseconds()} }

func (a *attempt) read(fence *redis.Cmd) {
	reply, err := fence.Int64Slice()
	if err == nil && len(reply) != 2 {
		err = fmt.Errorf("fence.lua returned %d numbers, want 2", len(reply))
	}
	if err != nil {
		a.token, a.left, a.err = 0, -1, err
		return
	}
	a.token, a.left, a.err = reply[0], time.Duration(reply[1])*time.Millisecond, nil
	if reply[1] == noKey {
		a.left = 0
	}
}

func noScript(err error) bool { return redis.HasErrorPrefix(err, "NOSCRIPT") }

// bySource is what redislock queues a script through where the server may not
// know it yet: it refuses the short form, so that the whole script is sent.
type bySource struct{ redis.Pipeliner }

func (p bySource) EvalSha(ctx context.Context, _ string, _ []string, _ ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	cmd.SetErr(redis.ErrNoScript)
	return cmd
}
