package conn

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// Exec sends a pipeline and returns its commands, each of which has its error.
//
// Pipeliner.Exec alone does not see to that: where go-redis got no connection, as
// with a wrong password, it returns the error and leaves the commands as if they
// had succeeded.
func Exec(ctx context.Context, pipe redis.Pipeliner) []redis.Cmder {
	cmds, err := pipe.Exec(ctx)
	if err == nil {
		return cmds
	}
	for _, cmd := range cmds {
		if cmd.Err() != nil {
			return cmds
		}
	}
	for _, cmd := range cmds {
		cmd.SetErr(err)
	}
	return cmds
}

// Ended returns why ctx is over, or nil. A deadline surfaces on the socket, as an
// i/o timeout, a moment before it ends the context.
func Ended(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return nil
}
