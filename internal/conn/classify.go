package conn

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/stats"
)

// classify says in which class err counts, and whether it is a failure at all.
// The caller's context goes first: its deadline surfaces as an i/o timeout.
func classify(ctx context.Context, err error) (stats.ErrorClass, bool) {
	switch {
	case err == nil, errors.Is(err, redis.Nil):
		return 0, false
	case errors.Is(err, context.Canceled), errors.Is(ctx.Err(), context.Canceled):
		return stats.Canceled, true
	case errors.Is(err, context.DeadlineExceeded), ctx.Err() != nil:
		return stats.Deadline, true
	case errors.Is(err, breaker.ErrOpen):
		return stats.BreakerOpen, true
	case errors.Is(err, ErrClosed), errors.Is(err, ErrNotConfigured):
		return stats.Closed, true
	case errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted):
		return stats.PoolTimeout, true
	}
	var reply redis.Error
	if errors.As(err, &reply) {
		return classOfReply(reply.Error()), true
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return stats.Dial, true
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return stats.Dial, true
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return stats.Timeout, true
	}
	if errors.Is(err, io.EOF) || op != nil {
		return stats.Network, true
	}
	return stats.Network, true
}

// replyClasses gives the class of an error reply by its first word.
var replyClasses = map[string]stats.ErrorClass{
	"NOAUTH": stats.Auth, "WRONGPASS": stats.Auth, "NOPERM": stats.Auth,
	"LOADING": stats.Unavailable, "MASTERDOWN": stats.Unavailable, "CLUSTERDOWN": stats.Unavailable,
	"TRYAGAIN": stats.Unavailable, "BUSY": stats.Unavailable,
	"READONLY": stats.ReadOnly, "NOREPLICAS": stats.ReadOnly, "MISCONF": stats.ReadOnly,
	"OOM": stats.OutOfMemory,
}

func classOfReply(msg string) stats.ErrorClass {
	word, _, _ := strings.Cut(msg, " ")
	if class, ok := replyClasses[word]; ok {
		return class
	}
	if strings.HasPrefix(msg, "ERR max number of clients") {
		return stats.Unavailable
	}
	return stats.Reply
}
