package conn

import (
	"context"
	"net"

	"github.com/redis/go-redis/v9"
)

// watched is the hook of a Tx: what the server refuses in it is final, since the
// WATCH is over with the first attempt.
type watched struct{}

func (watched) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (watched) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (watched) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if !transaction(cmds) {
			return err
		}
		for _, cmd := range cmds {
			if outcomeOf(cmd.Err()) == refused {
				cmd.SetErr(&finalError{cmd.Err()})
			}
		}
		if outcomeOf(err) == refused {
			err = &finalError{err}
		}
		return err
	}
}
