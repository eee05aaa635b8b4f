package redistest

import (
	"context"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"
)

// A Recorder is a hook that keeps what a client sends, but for handshakes.
type Recorder struct {
	Before func(ctx context.Context, cmds []redis.Cmder) // is called with what is about to be sent; may be nil

	mu   sync.Mutex
	sent []Shipment
}

// A Shipment is one command or pipeline.
type Shipment struct {
	Ctx      context.Context
	Commands [][]any // the words of each
}

// Shipments returns what was sent, in its order.
func (r *Recorder) Shipments() []Shipment {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.sent)
}

func (r *Recorder) note(ctx context.Context, cmds []redis.Cmder) {
	s := Shipment{Ctx: ctx}
	for _, cmd := range cmds {
		if name := cmd.Name(); name == "hello" || name == "client" {
			return
		}
		s.Commands = append(s.Commands, cmd.Args())
	}
	r.mu.Lock()
	r.sent = append(r.sent, s)
	r.mu.Unlock()
	if r.Before != nil {
		r.Before(ctx, cmds)
	}
}

func (r *Recorder) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *Recorder) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		r.note(ctx, []redis.Cmder{cmd})
		return next(ctx, cmd)
	}
}

func (r *Recorder) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		r.note(ctx, cmds)
		return next(ctx, cmds)
	}
}
