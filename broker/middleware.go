package broker

import (
	"context"
	"errors"
	"fmt"
)

// A Handler runs the task that was delivered as d. The argument is decoded only by
// the innermost one, the function that was given to Handle.
type Handler func(ctx context.Context, d *Delivery) error

// A Middleware puts something around handlers: it returns one that calls next, as
// a rule once and with d as it got it. What ctx has, the handler's context has too:
// a span, a logger. An error that it returns, or lets pass, is the task's verdict,
// and a panic is contained as one of the handler's. It is called once for each
// kind of task when Run begins.
//
// For a trace, take the parent from d.Header("traceparent"),
// https://www.w3.org/TR/trace-context/.
type Middleware func(next Handler) Handler

var errForeignDelivery = errors.New("broker: a middleware called next with a delivery that is not its own")

// chain is h within the middleware, which is not ours and may panic.
func (w *Worker) chain(h *handler) (chain Handler, err error) {
	at := 0
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("WorkerConfig.Middleware: the one at %d panicked for task %q: %v", at, h.def.name, cause)
		}
	}()
	chain = func(ctx context.Context, d *Delivery) (err error) {
		if d == nil || d.attempt == nil {
			return errForeignDelivery
		}
		a := d.attempt
		a.value, err = h.run(ctx, a.payload, w.cfg.Results)
		return err
	}
	for at = len(w.cfg.Middleware) - 1; at >= 0; at-- {
		if chain = w.cfg.Middleware[at](chain); chain == nil {
			return nil, fmt.Errorf("WorkerConfig.Middleware: the one at %d returned nil for task %q: return a Handler that calls next", at, h.def.name)
		}
	}
	return chain, nil
}
