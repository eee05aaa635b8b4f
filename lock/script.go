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
	//go:embed lua/queue.lua
	queueLua string
	//go:embed lua/fence.lua
	fenceLua string
	//go:embed lua/pass.lua
	passLua string
	//go:embed lua/wake.lua
	wakeLua string
	//go:embed lua/wait.lua
	waitLua string
	//go:embed lua/inspect.lua
	inspectLua string
	//go:embed lua/revoke.lua
	revokeLua string

	// A second fence of one token only makes its number greater, a second place
	// in a queue is not taken, and what is free is handed over once.
	fenceScript   = conn.RepeatableScript(queueLua + fenceLua)
	passScript    = conn.RepeatableScript(queueLua + passLua)
	wakeScript    = conn.RepeatableScript(queueLua + wakeLua)
	waitScript    = conn.RepeatableScript(queueLua + waitLua)
	inspectScript = conn.RepeatableScript(inspectLua)
	revokeScript  = redis.NewScript(revokeLua)
)

const (
	// fenceLife is how long a fencing counter outlives the last lease. After
	// that, tokens grow by the server's clock alone.
	fenceLife = 30 * 24 * time.Hour

	// queueLife is how long a queue outlives the last sign of its waiters.
	queueLife = time.Minute

	// claimTTL is how long a lock is set aside for a waiter.
	claimTTL = 2 * time.Second
)

// noKey is PTTL's answer for a key that is not there.
const noKey = -2

// A courier says how the scripts of a queue publish: the end of their arguments.
type courier struct {
	how    string // the command
	prefix string // of channels; "" stands for the lease's key and ":p:"
}

func (c courier) args(before ...any) []any {
	return append(before, c.how, c.prefix, claimTTL.Milliseconds())
}

// An attempt is what redislock obtains one lease through. Behind redislock's
// script it sends, in the same round trip, the one that draws the fencing token
// or takes a place in the queue.
type attempt struct {
	redis.Scripter // for what redislock does not use
	node           *node
	keys           keys
	value          string // what the lease will hold
	entry          string // for the queue; "" for none
	drop           bool   // the entry may be there already

	answer answer
	err    error // of the second script
}

// An answer is what fence.lua tells.
type answer struct {
	token   int64         // -1 if the lease is another's
	now     time.Duration // the server's time, since the epoch; 0 without a token
	left    time.Duration // of the other's lease; negative if unknown
	refused bool          // the scripts may not publish
}

func (a *attempt) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	cmds := a.node.batch.Do(ctx, a.keys.leases[0], evalSha(sha, keys, args), evalSha(fenceScript.Hash(), a.keys.all(), a.args()))
	obtain, fence := cmds[0], cmds[1]
	if noScript(fence.Err()) && !noScript(obtain.Err()) {
		fence = a.node.batch.Do(ctx, a.keys.leases[0], eval(queueLua+fenceLua, a.keys.all(), a.args()))[0]
	}
	a.read(fence)
	return obtain
}

// Eval is what redislock calls after NOSCRIPT.
func (a *attempt) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	cmds := a.node.batch.Do(ctx, a.keys.leases[0], eval(script, keys, args), eval(queueLua+fenceLua, a.keys.all(), a.args()))
	a.read(cmds[1])
	return cmds[0]
}

func (a *attempt) args() []any {
	return a.node.courier.args(a.value, fenceLife.Milliseconds(), a.entry, queueLife.Milliseconds(), a.drop)
}

func (a *attempt) read(fence *redis.Cmd) {
	reply, err := fence.Int64Slice()
	if err == nil && len(reply) != 3 {
		err = fmt.Errorf("fence.lua returned %d numbers, want 3", len(reply))
	}
	a.answer, a.err = answer{left: -1}, err
	switch {
	case err != nil:
	case reply[0] >= 0:
		a.answer = answer{token: reply[0], now: time.Duration(reply[1]) * time.Microsecond}
	default:
		a.answer = answer{token: -1, left: leftOf(reply[1]), refused: reply[2] == 1}
	}
}

// leftOf reads PTTL's answer: 0 without a key, negative if it does not expire.
func leftOf(pttl int64) time.Duration {
	if pttl == noKey {
		return 0
	}
	return time.Duration(pttl) * time.Millisecond
}

// A farewell is what redislock releases a lease through. Behind redislock's
// script it sends the one that hands the lock over.
type farewell struct {
	redis.Scripter // for what redislock does not use
	node           *node
	keys           keys
}

func (f *farewell) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	cmds := f.send(ctx, evalSha(sha, keys, args), evalSha(wakeScript.Hash(), f.keys.handed(), f.node.courier.args()))
	release, wake := cmds[0], cmds[1]
	if noScript(wake.Err()) && !noScript(release.Err()) {
		f.send(ctx, eval(queueLua+wakeLua, f.keys.handed(), f.node.courier.args()))
	}
	return release
}

func (f *farewell) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	return f.send(ctx, eval(script, keys, args), eval(queueLua+wakeLua, f.keys.handed(), f.node.courier.args()))[0]
}

// send sends commands together with those of others; and alone after Close,
// since a late release is better than none.
func (f *farewell) send(ctx context.Context, commands ...[]any) []*redis.Cmd {
	if f.node.client.running.Err() == nil {
		return f.node.batch.DoBypass(ctx, f.keys.leases[0], commands...)
	}
	pipe := f.node.conn.Pipeline()
	cmds := make([]*redis.Cmd, len(commands))
	for i, words := range commands {
		cmds[i] = pipe.Do(ctx, words...)
	}
	conn.Exec(ctx, pipe)
	return cmds
}

func evalSha(sha string, keys []string, args []any) []any { return words("evalsha", sha, keys, args) }
func eval(text string, keys []string, args []any) []any   { return words("eval", text, keys, args) }

func words(command, script string, keys []string, args []any) []any {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, command, script, len(keys))
	for _, key := range keys {
		all = append(all, key)
	}
	return append(all, args...)
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
