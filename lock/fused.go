package lock

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// A fusion is a script of ours with one of redislock's in front, which it calls
// as base(KEYS, ARGV): one script costs a server less than two. Redislock's text
// comes from redislock itself.
type fusion struct {
	rest  string
	whole atomic.Pointer[whole]
}

type whole struct{ text, hash string }

func (f *fusion) with(base string) *whole {
	if w := f.whole.Load(); w != nil {
		return w
	}
	text := "local function base(KEYS, ARGV)\n" + base + "\nend\n" + f.rest
	w := &whole{text, redis.NewScript(text).Hash()}
	f.whole.Store(w)
	return w
}

// A fused is what redislock sends its script through.
type fused struct {
	redis.Scripter // for what redislock does not use
	*fusion
	send func(context.Context, ...any) *redis.Cmd
	keys []string
	args []any
	held func(*redis.Cmd) bool // whether redislock's part has worked
}

// EvalSha behaves as if the server did not know redislock's script, until we do.
func (f *fused) EvalSha(ctx context.Context, _ string, _ []string, _ ...any) *redis.Cmd {
	if w := f.whole.Load(); w != nil {
		return f.run(ctx, w)
	}
	return redis.NewCmdResult(nil, redis.ErrNoScript)
}

func (f *fused) Eval(ctx context.Context, base string, _ []string, _ ...any) *redis.Cmd {
	return f.run(ctx, f.with(base))
}

// run sends the whole and answers as redislock's script would.
func (f *fused) run(ctx context.Context, w *whole) *redis.Cmd {
	reply := f.send(ctx, evalSha(w.hash, f.keys, f.args)...)
	if noScript(reply.Err()) {
		reply = f.send(ctx, eval(w.text, f.keys, f.args)...)
	}
	switch {
	case reply.Err() != nil:
		return reply
	case reply.Val() == nil: // a hook has swallowed it
		return redis.NewCmdResult(nil, errNoAnswer)
	case !f.held(reply):
		return redis.NewCmdResult(nil, redis.Nil)
	}
	return redis.NewCmdResult("OK", nil)
}

var errNoAnswer = errors.New("no answer")
