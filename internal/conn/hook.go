package conn

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/stats"
)

var errNilContext = errors.New("nil context: pass context.Background() or the request's")

// hook is the outermost hook of a client: it refuses commands of a closed
// client, lets Drain wait for those under way, counts, holds commands back while
// there is no primary, and repeats what may be repeated. The handshake of a new
// connection runs through it once more, nested in the command that needs the
// connection.
type hook struct{ c *Client }

func (h hook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := next(ctx, network, addr)
		return born(nc, err), nil
	}
}

func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		kind := kindOf(cmd)
		if h.handshake(ctx, kind, cmd) {
			return h.c.shaken(ctx, next(ctx, cmd), cmd)
		}
		if err := h.enter(ctx); err != nil {
			cmd.SetErr(err)
			return err
		}
		defer h.c.gate.leave()
		p := progress{start: time.Now()}
		err := h.c.process(ctx, cmd, next, &p)
		h.c.commands.Observe(kind.family(cmd), time.Since(p.start))
		h.count(ctx, err)
		return err
	}
}

func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if len(cmds) == 0 {
			return next(ctx, cmds)
		}
		if h.handshakes(ctx, cmds) {
			return h.c.shaken(ctx, next(ctx, cmds), cmds...)
		}
		if err := h.enter(ctx); err != nil {
			setErrs(cmds, err)
			return err
		}
		defer h.c.gate.leave()
		family, n := stats.Pipeline, len(cmds)
		if transaction(cmds) {
			family, n = stats.Transaction, n-2 // without MULTI and EXEC
		}
		p := progress{start: time.Now()}
		err := h.c.processPipeline(ctx, cmds, next, &p)
		h.c.commands.Observe(family, time.Since(p.start))
		h.c.commands.Pipelined(n)
		for _, cmd := range cmds {
			h.count(ctx, cmd.Err())
		}
		return err
	}
}

func transaction(cmds []redis.Cmder) bool { return len(cmds) > 1 && cmds[0].Name() == "multi" }

func setErrs(cmds []redis.Cmder, err error) {
	for _, cmd := range cmds {
		cmd.SetErr(err)
	}
}

// handshake reports whether a command is part of connecting. ROLE is, where
// onConnect sends it.
func (h hook) handshake(ctx context.Context, kind kind, cmd redis.Cmder) bool {
	return kind == handshakeKind || kind == readKind && cmd.Name() == "role" && connecting(ctx)
}

// handshakes reports whether all commands are part of connecting.
func (h hook) handshakes(ctx context.Context, cmds []redis.Cmder) bool {
	for _, cmd := range cmds {
		if !h.handshake(ctx, kindOf(cmd), cmd) {
			return false
		}
	}
	return true
}

type connectingKey struct{}

func connecting(ctx context.Context) bool { return ctx != nil && ctx.Value(connectingKey{}) != nil }

// shaken marks a connection's failure during its handshake: the command that
// needs the connection was not sent.
func (c *Client) shaken(ctx context.Context, err error, cmds ...redis.Cmder) error {
	if err == nil {
		return nil
	}
	var reply redis.Error
	if errors.As(err, &reply) {
		return withoutArgs(err, cmds)
	}
	if !isNetwork(err) && !errors.Is(err, errRetired) {
		return err
	}
	if c.follower != nil && Ended(ctx) == nil && !errors.Is(err, errRetired) {
		err = c.follower.failed(ctx, c.follower.resolver.State().Epoch, err)
	}
	err = &unsentError{err: err, connect: true}
	for _, cmd := range cmds {
		if cmd.Err() != nil && !errors.As(cmd.Err(), &reply) {
			cmd.SetErr(err)
		}
	}
	return err
}

// withoutArgs cuts off what a server that does not know a command quotes of it:
// the arguments of AUTH and HELLO are secrets.
func withoutArgs(err error, cmds []redis.Cmder) error {
	cut := func(err error) error {
		if err == nil || !strings.Contains(err.Error(), "with args beginning with") {
			return err
		}
		msg, _, _ := strings.Cut(err.Error(), ", with args beginning with")
		return replyError(msg)
	}
	for _, cmd := range cmds {
		cmd.SetErr(cut(cmd.Err()))
	}
	return cut(err)
}

// A replyError is a server's error reply, as go-redis sees it.
type replyError string

func (e replyError) Error() string { return string(e) }
func (replyError) RedisError()     {}

// enter admits a command; leave must follow if it returns nil.
func (h hook) enter(ctx context.Context) error {
	switch {
	case h.c.reason != nil:
		h.c.commands.Failed(stats.Closed)
		return h.c.reason
	case ctx == nil:
		return errNilContext
	case !h.c.gate.enter():
		h.c.commands.Failed(stats.Closed)
		return ErrClosed
	}
	return nil
}

func (h hook) count(ctx context.Context, err error) {
	if err == nil || err == redis.Nil { //nolint:errorlint // go-redis returns it bare, and this is the hot path
		return
	}
	if class, failed := classify(ctx, err); failed {
		h.c.commands.Failed(class)
	}
}
