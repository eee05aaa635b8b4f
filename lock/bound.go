package lock

import (
	"context"
	"sync"
	"time"
)

// boundShare is for how long releases share the context that ends them.
const boundShare = 250 * time.Millisecond

// A bounder bounds releases by releaseTimeout, or up to boundShare less: those of
// one moment share their context, and with it its timer.
type bounder struct {
	mu     sync.Mutex
	shared context.Context
	cancel context.CancelFunc // never called: it ends by itself
	until  time.Time          // when another is to be made
}

// bound returns a context that has the values of ctx, and ends in time.
func (b *bounder) bound(ctx context.Context) context.Context {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !now.Before(b.until) {
		b.shared, b.cancel = context.WithTimeout(context.Background(), releaseTimeout)
		b.until = now.Add(boundShare)
	}
	return bound{b.shared, ctx}
}

type bound struct {
	context.Context
	values context.Context
}

func (c bound) Value(key any) any {
	if v := c.Context.Value(key); v != nil {
		return v
	}
	return c.values.Value(key)
}
