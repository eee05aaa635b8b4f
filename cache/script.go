package cache

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

// A script changes one key.
type script struct {
	*redis.Script
	text string
}

// newScript returns one that may be sent again without harm.
func newScript(text string) *script { return &script{conn.RepeatableScript(text), text} }

// onceScript returns one that is not sent again where its reply was lost.
func onceScript(text string) *script { return &script{redis.NewScript(text), text} }

// run runs script on key. Where many run at the same time, as the steps of a
// FetchMany, they travel together.
func (c *Client) run(ctx context.Context, script *script, key string, args ...any) *redis.Cmd {
	cmd := c.scripts.Do(ctx, key, append([]any{"evalsha", script.Hash(), 1, key}, args...))[0]
	if isUnknown(cmd) {
		cmd = c.scripts.Do(ctx, key, append([]any{"eval", script.text, 1, key}, args...))[0]
	}
	return cmd
}

// isUnknown reports whether the server does not know a script yet.
func isUnknown(cmd *redis.Cmd) bool { return redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") }

// runMany runs script on each of keys with args of its own, in one pipeline, on
// Cluster one per node: all of them in one script would have to be in one slot.
func (c *Client) runMany(ctx context.Context, script *script, keys []string, args func(i int) []any) []*redis.Cmd {
	cmds := make([]*redis.Cmd, len(keys))
	if len(keys) == 1 {
		cmds[0] = script.Run(ctx, c.rdb, keys, args(0)...)
		return cmds
	}
	pipe := c.rdb.Pipeline()
	for i := range keys {
		cmds[i] = script.EvalSha(ctx, pipe, keys[i:i+1:i+1], args(i)...)
	}
	conn.Exec(ctx, pipe)
	for i := range keys {
		if isUnknown(cmds[i]) {
			cmds[i] = script.Eval(ctx, pipe, keys[i:i+1:i+1], args(i)...)
		}
	}
	if pipe.Len() > 0 {
		conn.Exec(ctx, pipe)
	}
	return cmds
}
