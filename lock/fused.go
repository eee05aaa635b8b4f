package lock

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
)

// A fusion is a script of ours with one of redislock's in front, which it calls
// as base(KEYS, ARGV): one script costs a server less than two. Redislock's text
// comes from redislock itself. What is in front of both is for the most frequent
// case, and does there what they would do.
type fusion struct {
	front string
	rest  string
	whole atomic.Pointer[whole]
}

type whole struct {
	text string
	hash any // a string, as a word of a command
}

var evalsha any = "evalsha"

func (f *fusion) with(base string) *whole {
	if w := f.whole.Load(); w != nil {
		return w
	}
	text := f.front + "local function base(KEYS, ARGV)\n" + base + "\nend\n" + f.rest
	w := &whole{text, redis.NewScript(text).Hash()}
	f.whole.Store(w)
	return w
}

// A fused is what redislock sends its script through.
type fused struct {
	redis.Scripter // for what redislock does not use
	*fusion
	node   *node
	bypass bool                  // the breaker
	held   func(*redis.Cmd) bool // whether redislock's part has worked, of which a reply of nil says the contrary
	hands  []string              // the keys of what a release may have handed over
	words  []any                 // of the command; the first two are set when it is sent
}

// fuse returns a script with its keys and arguments. What held returns is what
// redislock is told.
func (s *node) fuse(f *fusion, bypass bool, held func(*redis.Cmd) bool, keys []any, args ...any) *fused {
	words := make([]any, 0, 3+len(keys)+len(args))
	words = append(append(words, nil, nil, len(keys)), keys...)
	return &fused{fusion: f, node: s, bypass: bypass, held: held, words: append(words, args...)}
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
	reply := f.send(ctx, evalsha, w.hash)
	if err := reply.Err(); err != nil && noScript(err) {
		f.words = slices.Clone(f.words) // the batch may keep what was sent
		reply = f.send(ctx, "eval", w.text)
	}
	switch {
	case reply.Err() != nil:
		return reply
	case reply.Val() == nil: // a hook has swallowed it
		return redis.NewCmdResult(nil, errNoAnswer)
	case f.held != nil && !f.held(reply):
		return refusedResult
	}
	if life, handed := reply.Val().(int64); handed && f.hands != nil {
		f.node.standby.add(f.hands, life)
	}
	return worked
}

// Redislock only reads what it gets.
var worked, refusedResult = redis.NewCmdResult("OK", nil), redis.NewCmdResult(nil, redis.Nil)

func (f *fused) send(ctx context.Context, command, script any) *redis.Cmd {
	f.words[0], f.words[1] = command, script
	key, _ := f.words[3].(string)
	switch {
	case !f.bypass:
		return f.node.batch.Do(ctx, key, f.words)[0]
	case f.node.client.running.Err() == nil:
		return f.node.batch.DoBypass(ctx, key, f.words)[0]
	}
	return f.node.conn.Do(breaker.Bypass(ctx), f.words...) // after Close: a late release is better than none
}

var errNoAnswer = errors.New("no answer")
