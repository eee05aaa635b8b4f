package broker

import (
	"context"
	"time"
)

// A Delivery is one handing-over of a task to a handler. It must not be changed.
type Delivery struct {
	// ID is the task's: generated, or the caller's. It is the same at each
	// delivery, so that effects can be made idempotent by it.
	ID string

	// Task is the task's name, and Queue where it was published.
	Task, Queue string

	// Attempt counts the tries from 1. A worker that died or stopped burned none.
	Attempt int

	// MaxAttempts is the last one.
	MaxAttempts int

	// Unfinished counts how often the task was handed over before, since its
	// last verdict, to a worker that died or lost its lease.
	Unfinished int

	// Enqueued is when the task was published, by the clock of the Redis server.
	Enqueued time.Time

	headers  []header
	progress *reporter // nil where no result is kept
	attempt  *attempt
}

// Header returns the value of a header that the publisher added; "" if there is
// none of that name.
func (d *Delivery) Header(name string) string {
	for _, h := range d.headers {
		if h.name == name {
			return h.value
		}
	}
	return ""
}

// Headers returns all headers, in a map that the caller owns.
func (d *Delivery) Headers() map[string]string {
	m := make(map[string]string, len(d.headers))
	for _, h := range d.headers {
		m[h.name] = h.value
	}
	return m
}

type deliveryKey struct{}

// FromContext returns the delivery that a handler's context belongs to, or nil
// outside of a handler.
func FromContext(ctx context.Context) *Delivery {
	if ctx == nil {
		return nil
	}
	d, _ := ctx.Value(deliveryKey{}).(*Delivery)
	return d
}

func newDelivery(e *envelope, queue string) Delivery {
	return Delivery{
		ID: e.id, Task: e.task, Queue: queue,
		Attempt: int(e.attempt), MaxAttempts: int(e.maxAttempts), Unfinished: int(e.deliveries),
		Enqueued: time.UnixMilli(e.enqueued).UTC(),
		headers:  e.headers,
	}
}
