package cache

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"

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
// Cluster one per node: all of them in one script would have to be in one slot, and
// all in one pipeline would wait for a node that hangs before others are sent a script
// that they do not know.
func (c *Client) runMany(ctx context.Context, script *script, keys []string, args func(i int) []any) []*redis.Cmd {
	cmds := make([]*redis.Cmd, len(keys))
	if len(keys) == 1 {
		cmds[0] = script.Run(ctx, c.rdb, keys, args(0)...)
		return cmds
	}
	nodes := make(map[string][]int)
	for i, key := range keys {
		node := c.primary.Node(ctx, key)
		nodes[node] = append(nodes[node], i)
	}
	if len(nodes) == 1 {
		for _, indexes := range nodes {
			c.runOn(ctx, script, keys, indexes, args, cmds)
		}
		return cmds
	}
	var all sync.WaitGroup
	for _, indexes := range nodes {
		all.Go(func() {
			defer func() {
				if cause := recover(); cause != nil {
					c.log.ErrorContext(ctx, "panic in a hook of the client", "panic", cause, "stack", string(debug.Stack()))
					for _, i := range indexes {
						cmds[i] = redis.NewCmdResult(nil, fmt.Errorf("panic in a hook of the client: %v", cause))
					}
				}
			}()
			c.runOn(ctx, script, keys, indexes, args, cmds)
		})
	}
	all.Wait()
	return cmds
}

// runOn runs script on the keys with these indexes, in one pipeline.
func (c *Client) runOn(ctx context.Context, script *script, keys []string, indexes []int, args func(i int) []any, cmds []*redis.Cmd) {
	pipe := c.rdb.Pipeline()
	for _, i := range indexes {
		cmds[i] = script.EvalSha(ctx, pipe, keys[i:i+1:i+1], args(i)...)
	}
	conn.Exec(ctx, pipe)
	for _, i := range indexes {
		if isUnknown(cmds[i]) {
			cmds[i] = script.Eval(ctx, pipe, keys[i:i+1:i+1], args(i)...)
		}
	}
	if pipe.Len() > 0 {
		conn.Exec(ctx, pipe)
	}
}
