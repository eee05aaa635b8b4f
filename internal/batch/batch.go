// Package batch sends the commands of many callers in shared pipelines.
//
// go-redis takes a connection for each command or pipeline. Where dozens of
// goroutines send small pipelines at the same time, as those that take and
// release locks do, most of the time goes into system calls and wake-ups, which a
// shared pipeline needs once.
//
// A [Batcher] lets a request through, on its caller's goroutine, while few are
// under way. The others wait, and travel together in the next pipeline that a
// lane is free for.
package batch

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/lanes"
)

// ErrNotSent is the error of commands that were never sent: their caller's
// context ended, or the Batcher was closed, while they waited for their turn. The
// error that wraps it has the cause. That of a caller who left later wraps
// [conn.ErrOutcomeUnknown] instead: its commands may have been executed, or may
// be yet.
var ErrNotSent = errors.New("not sent")

// A Batcher sends the requests of one role. It is safe for concurrent use.
type Batcher struct {
	cn      *conn.Client
	alone   bool // no request shares its pipeline
	servers *lanes.Servers[*queue]

	life [kinds]context.Context // of flights
	end  context.CancelCauseFunc
}

// A kind of requests shares pipelines.
type kind uint8

const (
	plain  kind = iota
	bypass      // past the circuit breaker
	kinds
)

// New returns a Batcher for cn, which stays the caller's. It does no I/O and
// starts nothing. [Batcher.Close] ends it.
//
// Requests for a Cluster whose client redisha did not make are not put together:
// such a client sends a whole pipeline once more where the server asked to repeat
// its first command.
func New(cn *conn.Client) *Batcher {
	b := &Batcher{cn: cn}
	b.life[plain], b.end = context.WithCancelCause(context.Background())
	b.life[bypass] = breaker.Bypass(b.life[plain])
	cluster, ok := cn.UniversalClient.(*redis.ClusterClient)
	b.alone = ok && !cn.Own()
	b.servers = lanes.NewServers(cluster, func(string) *queue { return newQueue(b) })
	return b
}

// Do sends cmds, the words of a command each, one behind the other in one
// pipeline, and returns them in the same order when each has its reply or error.
// Between them, commands of other callers neither come nor travel. On Cluster all
// must be for the slot of key; elsewhere key means nothing.
//
// When ctx ends, Do returns at once if the request waits or shares its pipeline;
// if it has a pipeline of its own, as go-redis does: at ctx's deadline, or by the
// client's read timeout. Its commands then have an error that wraps the cause of
// ctx, and either [ErrNotSent] or [conn.ErrOutcomeUnknown]. What a shared pipeline
// waits or is repeated for ends when all its callers have left, so that a caller
// without deadline waits as long as the client lets it (a minute).
//
// The words belong to the Batcher, also after Do has returned: those that a
// caller left behind may be being written. Commands that block, that concern the
// connection (MULTI, SUBSCRIBE, CLIENT REPLY, …), and on Cluster those for several
// slots or without key are not for a Batcher.
func (b *Batcher) Do(ctx context.Context, key string, cmds ...[]any) []*redis.Cmd {
	return b.do(ctx, plain, key, cmds)
}

// DoBypass is Do past the circuit breaker, as breaker.Bypass has it.
func (b *Batcher) DoBypass(ctx context.Context, key string, cmds ...[]any) []*redis.Cmd {
	return b.do(ctx, bypass, key, cmds)
}

func (b *Batcher) do(ctx context.Context, k kind, key string, words [][]any) []*redis.Cmd {
	if len(words) == 0 {
		return nil
	}
	if err := b.refusal(ctx, words); err != nil {
		return failed(len(words), err)
	}
	cmds := make([]*redis.Cmd, len(words))
	for i := range words {
		cmds[i] = redis.NewCmd(ctx, words[i]...)
	}
	bytes, ok := size(words)
	if !ok || bytes > maxBytes || len(words) > maxCommands || b.alone {
		b.send(ctx, k, cmds)
		return cmds
	}
	q, ok := b.servers.Of(ctx, key)
	if !ok {
		b.send(ctx, k, cmds)
		return cmds
	}
	t := q.enter()
	if !t.Admitted {
		r := newRequest(ctx, k, cmds, bytes)
		if t = q.wait(ctx, r); !t.Admitted {
			return r.results(cmds)
		}
	}
	well := false
	defer func() { q.landed(t, well) }()
	b.send(ctx, k, cmds)
	err := cmds[0].Err()
	well = err == nil || err == redis.Nil //nolint:errorlint // go-redis returns it bare
	return cmds
}

// refusal says why a request cannot be sent at all.
func (b *Batcher) refusal(ctx context.Context, words [][]any) error {
	if ctx == nil {
		return errors.New("nil context: pass context.Background() or the request's")
	}
	if b.servers.Closed() {
		return notSent(conn.ErrClosed)
	}
	if err := conn.Ended(ctx); err != nil {
		return notSent(err)
	}
	for i := range words {
		if len(words[i]) == 0 {
			return fmt.Errorf("command %d of %d has no words", i+1, len(words))
		}
	}
	return nil
}

func notSent(cause error) error { return fmt.Errorf("%w: %w", ErrNotSent, cause) }

func failed(n int, err error) []*redis.Cmd {
	cmds := make([]*redis.Cmd, n)
	for i := range cmds {
		cmds[i] = redis.NewCmdResult(nil, err)
	}
	return cmds
}

// send is how a request travels alone.
func (b *Batcher) send(ctx context.Context, k kind, cmds []*redis.Cmd) {
	if k == bypass {
		ctx = breaker.Bypass(ctx)
	}
	if len(cmds) == 1 {
		_ = b.cn.Process(ctx, cmds[0])
		return
	}
	all := make([]redis.Cmder, len(cmds))
	for i, cmd := range cmds {
		all[i] = cmd
	}
	pipe := b.cn.Pipeline()
	_ = pipe.BatchProcess(ctx, all...)
	conn.Exec(ctx, pipe)
}

// Close refuses new requests and waits for the others. When ctx ends first, those
// that wait get [ErrNotSent], the others lose their context, and Close returns an
// error: a pipeline whose reply is awaited may then be under way until the
// client's read timeout. Calling it again is safe.
func (b *Batcher) Close(ctx context.Context) error {
	defer b.end(conn.ErrClosed)
	if err := b.servers.Close(ctx); err != nil {
		return fmt.Errorf("requests still under way: %w", err)
	}
	return nil
}
