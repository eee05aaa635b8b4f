package cache

import (
	"context"
	"math"
	"sync"
	"time"
)

// A flight is the search for the value of one key, which callers share. It
// takes steps: it asks Redis, it begins a load. A result rests on one of them,
// and only callers that arrived before that step was taken may have it: one
// that arrived later may have done so after a Delete of which the step knew
// nothing. Such a caller starts over.
type flight[V any] struct {
	done  chan struct{}
	res   result[V] // to be read after done
	began time.Time

	refreshes bool // a stale value, which callers need not wait for

	steps int // under the table's lock
}

type result[V any] struct {
	step   int      // on which it rests
	entry  Entry[V] // for the caller that began the flight
	body   []byte   // for the others: what the codec made of the value
	err    error
	stored bool // Redis has the value, or the absence
}

// anyStep is the step of a result that every caller may have.
const anyStep = math.MaxInt

// A table holds the flights of a view.
type table[K comparable, V any] struct {
	mu   sync.Mutex
	open map[K]*flight[V]    // those that callers may join
	past map[K]chan struct{} // the loads past Redis; closed when they end
}

func newTable[K comparable, V any]() *table[K, V] {
	return &table[K, V]{open: make(map[K]*flight[V]), past: make(map[K]chan struct{})}
}

// join returns the open flight of key, or a new one, and how many steps it had
// taken. The caller runs a new one.
func (t *table[K, V]) join(key K, refreshes bool) (f *flight[V], steps int, isNew bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f = t.open[key]; f != nil {
		return f, f.steps, false
	}
	f = &flight[V]{done: make(chan struct{}), began: time.Now(), refreshes: refreshes}
	t.open[key] = f
	return f, 0, true
}

// peek returns the open flight of key, or nil, and how many steps it had taken.
func (t *table[K, V]) peek(key K) (f *flight[V], steps int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f = t.open[key]; f != nil {
		steps = f.steps
	}
	return f, steps
}

// isYoung reports whether there is a flight that began less than age ago, and
// whose end is the only way to a value.
func (t *table[K, V]) isYoung(key K, age time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.open[key]
	return f != nil && !f.refreshes && time.Since(f.began) < age
}

// step takes the next step of f and returns its number.
func (t *table[K, V]) step(f *flight[V]) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.steps++
	return f.steps
}

// close lets no more callers join f.
func (t *table[K, V]) close(key K, f *flight[V]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open[key] == f {
		delete(t.open, key)
	}
}

// forgetAll lets no more callers join any flight.
func (t *table[K, V]) forgetAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.open)
}

// forget lets no more callers join the flight of key, whichever it is.
func (t *table[K, V]) forget(key K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, key)
}

// enter waits until no other load past Redis runs for key, and calls waits before;
// leave must follow if it returns nil. While a flight waits here, callers gather in
// it.
func (t *table[K, V]) enter(ctx context.Context, key K, waits func()) error {
	for {
		t.mu.Lock()
		other := t.past[key]
		if other == nil {
			t.past[key] = make(chan struct{})
			t.mu.Unlock()
			return nil
		}
		t.mu.Unlock()
		waits()
		select {
		case <-other:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (t *table[K, V]) leave(key K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.past[key])
	delete(t.past, key)
}
