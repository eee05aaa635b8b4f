package cache

import (
	"context"
	"errors"
	"sync"
	"time"
)

// A batchLoader is the loader of the searches that one FetchMany began: it calls the
// program's for all their keys at once. It waits until each search knows whether its
// key has to be loaded, but not for those that wait for somebody else's load. Keys
// that have to be loaded after all are gathered for a moment.
type batchLoader[K Key, V any] struct {
	view *View[K, V]
	load func(context.Context, []K) (map[K]V, error)
	ctx  context.Context // has the values of the caller's, and no end

	mu        sync.Mutex
	undecided int // searches
	due       []*order[K, V]
	gathering bool
}

// gatherFor is how long keys that come late are gathered.
const gatherFor = 5 * time.Millisecond

// An order is a key that has to be loaded.
type order[K Key, V any] struct {
	key   K
	past  bool  // without Redis,
	cause error // because of that
	begun chan struct{}
	done  chan struct{}
	value V // to be read after done
	err   error
}

// A seat is the loader of one of the searches.
type seat[K Key, V any] struct {
	*batchLoader[K, V]
	decided bool // under the mutex
	past    bool
	cause   error
	order   *order[K, V]
}

// seats makes a batchLoader for n searches, and a seat for each.
func (v *View[K, V]) seats(ctx context.Context, n int, load func(context.Context, []K) (map[K]V, error)) []seat[K, V] {
	b := &batchLoader[K, V]{view: v, load: load, ctx: context.WithoutCancel(v.c.unscoped(ctx)), undecided: n}
	seats := make([]seat[K, V], n)
	for i := range seats {
		seats[i].batchLoader = b
	}
	return seats
}

// book has key loaded, and waits until that begins. Other searches may wait for the
// same, so that the time of the load must not run yet.
func (s *seat[K, V]) book(ctx context.Context, key K) {
	o := &order[K, V]{key: key, past: s.past, cause: s.cause, begun: make(chan struct{}), done: make(chan struct{})}
	s.order = o
	s.mu.Lock()
	s.due = append(s.due, o)
	if s.decided && s.undecided == 0 {
		s.gather()
	} else {
		s.decide()
	}
	s.mu.Unlock()
	select {
	case <-o.begun:
	case <-o.done:
	case <-ctx.Done():
	}
}

// load waits for what was booked.
func (s *seat[K, V]) load(ctx context.Context, _ K) (Entry[V], error) {
	select {
	case <-s.order.done:
		return Entry[V]{Value: s.order.value}, s.order.err
	case <-ctx.Done():
		return Entry[V]{}, ctx.Err()
	}
}

// waits is called when the search does not need a load, or not until something has
// happened that may take long.
func (s *seat[K, V]) waits() {
	s.mu.Lock()
	s.decide()
	s.mu.Unlock()
}

// decide is called with the lock held.
func (s *seat[K, V]) decide() {
	if !s.decided {
		s.decided = true
		s.undecided--
	}
	if s.undecided == 0 && !s.gathering {
		s.send()
	}
}

// gather sends what is due in a moment. It is called with the lock held, by a search
// that waits for it.
func (b *batchLoader[K, V]) gather() {
	if b.gathering {
		return
	}
	b.gathering = true
	b.view.c.running.more()
	go func() {
		defer b.view.c.running.done()
		_ = sleep(b.view.c.ctx, gatherFor)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.gathering = false
		b.send()
	}()
}

// send has loaded what is due: what does without Redis by a call of its own, since
// that may have to wait for its place. It is called with the lock held.
func (b *batchLoader[K, V]) send() {
	var leased, past []*order[K, V]
	for _, o := range b.due {
		if o.past {
			past = append(past, o)
		} else {
			leased = append(leased, o)
		}
	}
	b.due = nil
	for _, orders := range [][]*order[K, V]{leased, past} {
		switch {
		case len(orders) == 0:
		case b.view.c.running.begin(): // who calls may be no search, and those that booked be gone
			go b.call(orders)
		default:
			for _, o := range orders {
				o.err = ErrClosed
				close(o.done)
			}
		}
	}
}

// call calls the loader, until LoadTimeout at most. Client.Close ends it and waits
// for it.
func (b *batchLoader[K, V]) call(orders []*order[K, V]) {
	v, first := b.view, orders[0]
	defer v.c.running.done()
	ctx, cancel := context.WithCancelCause(b.ctx)
	defer cancel(nil)
	defer context.AfterFunc(v.c.ctx, func() { cancel(ErrClosed) })()

	var values map[K]V
	err := errGoexit
	defer func() {
		if r := recover(); r != nil {
			err = v.panicked(ctx, joinKey(v.prefix, first.key), r)
		}
		for _, o := range orders {
			value, ok := values[o.key]
			switch {
			case ok:
				o.value = value
			case err == nil || errors.Is(err, ErrNotFound):
				o.err = ErrNotFound
			default:
				o.err = err
			}
			close(o.done)
		}
	}()
	if first.past {
		leave, refused := v.c.fallback(ctx, v.cfg.LoadTimeout, joinKey(v.prefix, first.key), first.cause)
		if refused != nil {
			err = refused
			return
		}
		defer leave()
	}
	ctx, end := context.WithTimeoutCause(ctx, v.cfg.LoadTimeout, v.timedOut)
	defer end()
	keys := make([]K, len(orders))
	for i, o := range orders {
		keys[i] = o.key
		close(o.begun)
	}
	values, err = b.load(ctx, keys)
	if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = context.Cause(ctx) // says whose timeout it was
	}
}
