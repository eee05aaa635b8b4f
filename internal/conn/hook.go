package conn

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/stats"
)

var errNilContext = errors.New("nil context: pass context.Background() or the request's")

// hook is the outermost hook of a client: it refuses commands of a closed
// client, lets Drain wait for those under way, and counts. The handshake of
// a new connection runs through it once more, nested in the command that needs
// the connection, and passes untouched.
type hook struct{ c *Client }

func (h hook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		h.c.dials.Inc()
		nc, err := next(ctx, network, addr)
		if err != nil {
			h.c.undialed.Inc()
		}
		return nc, err
	}
}

func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		kind := kindOf(cmd)
		if kind == handshakeKind {
			return next(ctx, cmd)
		}
		if err := h.enter(ctx); err != nil {
			cmd.SetErr(err)
			return err
		}
		defer h.c.gate.leave()
		start := time.Now()
		err := next(ctx, cmd)
		h.c.commands.Observe(kind.family(cmd), time.Since(start))
		h.count(ctx, err)
		return err
	}
}

func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if len(cmds) == 0 || kindOf(cmds[0]) == handshakeKind {
			return next(ctx, cmds)
		}
		if err := h.enter(ctx); err != nil {
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
			return err
		}
		defer h.c.gate.leave()
		family, n := stats.Pipeline, len(cmds)
		if cmds[0].Name() == "multi" {
			family, n = stats.Transaction, n-2 // without MULTI and EXEC
		}
		start := time.Now()
		err := next(ctx, cmds)
		h.c.commands.Observe(family, time.Since(start))
		h.c.commands.Pipelined(n)
		for _, cmd := range cmds {
			h.count(ctx, cmd.Err())
		}
		return err
	}
}

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
