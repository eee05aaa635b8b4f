package cache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redisha/redisha/internal/endpoint"
)

// owed are the deletes that Redis still has to carry out: those that failed, and,
// once there is another primary, those of the last seconds, which it may not have
// got, the ends of tags and views included. They are repeated until they succeed.
// Until then this process does not believe what Redis has under their keys, or in
// their views.
//
// They are bounded. Of a view that has more, no key is believed until all of it
// has been cleared.
type owed struct {
	c *Client
	n atomic.Int64 // keys and views; 0 spares the reads the lock

	mu      sync.Mutex
	last    uint64 // number of the last debt
	keys    map[string]debt
	views   map[string]viewDebt // by prefix
	raises  map[string]int      // how many of keys are generations, by the prefix of their view
	done    recentDeletes
	paying  bool
	wake    chan struct{} // of the goroutine that pays: try now
	stopped func()        // no more epochs
}

// A debt is a delete that is owed.
type debt struct {
	number uint64 // tells it from a later one of the same key
	ending
}

// An ending is how what a key held came to its end.
type ending struct {
	until int64      // end of the hold, Unix time in ms; 0: none
	view  *endedView // if its key is a generation, which was raised; or the prefix of a view that was cleared
}

// An endedView is what it takes to end what a view has, once more.
type endedView struct {
	prefix string
	ttl    int64                       // of its generations, ms; 0: it has none
	clear  func(context.Context) error // all of it
}

// A viewDebt is a view that has to be cleared.
type viewDebt struct {
	number uint64
	clear  func(context.Context) error
}

const (
	maxOwed     = 10_000 // keys
	minPayPause = 50 * time.Millisecond
	maxPayPause = time.Second
)

func newOwed(c *Client) *owed {
	o := &owed{c: c, keys: make(map[string]debt), views: make(map[string]viewDebt), raises: make(map[string]int), wake: make(chan struct{}, 1), stopped: func() {}}
	if c.rdb.Own() && c.rdb.Topology() != endpoint.Standalone {
		o.done.most = maxOwed
		o.stopped = c.rdb.OnEpoch(func(uint64) { o.repeatRecent() })
	}
	return o
}

// check returns an error if Redis must not be asked for key, of the view with that
// prefix. To be called before the read: what is owed now may be paid when the reply
// is there, which then is from before.
func (o *owed) check(prefix, key string) error {
	if o.n.Load() == 0 {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.views[prefix]; ok {
		return errViewOwed
	}
	if o.raises[prefix] > 0 {
		return errTagsOwed
	}
	if _, ok := o.keys[key]; ok {
		return errOwed
	}
	return nil
}

var (
	errOwed     = errors.New("a Delete of the key, which has failed or may have been lost in a failover, is still being repeated")
	errViewOwed = fmt.Errorf("the view is still being cleared, since more than %d Deletes have failed, or a failover may have lost a Clear", maxOwed)
	errTagsOwed = errors.New("an InvalidateTags or Clear of the view, which a failover may have lost, is still being repeated")
)

// add says that the delete of key has failed, with a hold that ends at until. clear
// clears the view with that prefix, if there are too many.
func (o *owed) add(key string, until int64, prefix string, clear func(context.Context) error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.keys[key]; !ok && len(o.keys) >= maxOwed {
		if _, ok := o.views[prefix]; !ok {
			o.c.log.Warn("too many deletes have failed: the view is not used until it is cleared", "key", prefix+"*")
		}
		o.putView(prefix, clear)
	} else {
		o.put(key, ending{until: until})
	}
	o.start(false)
}

// addAlone is add for a key of no view. It is forgotten where there are too many: its
// caller has the error.
func (o *owed) addAlone(key string, until int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.keys[key]; ok || len(o.keys) < maxOwed {
		o.put(key, ending{until: until})
		o.start(false)
	}
}

// put notes a debt. The lock is held.
func (o *owed) put(key string, e ending) {
	if e.view != nil && e.view.ttl == 0 {
		o.putView(e.view.prefix, e.view.clear)
		return
	}
	old, ok := o.keys[key]
	if !ok {
		o.n.Add(1)
		if e.view != nil {
			o.raises[e.view.prefix]++
		}
	}
	o.last++
	e.until = max(e.until, old.until)
	o.keys[key] = debt{o.last, e}
}

// putView notes that a view has to be cleared, once more if it is being cleared. The
// lock is held.
func (o *owed) putView(prefix string, clear func(context.Context) error) {
	if _, ok := o.views[prefix]; !ok {
		o.n.Add(1)
	}
	o.last++
	o.views[prefix] = viewDebt{o.last, clear}
}

// paid removes the debt of key. The lock is held.
func (o *owed) paid(key string) {
	if view := o.keys[key].view; view != nil {
		if o.raises[view.prefix]--; o.raises[view.prefix] == 0 {
			delete(o.raises, view.prefix)
		}
	}
	delete(o.keys, key)
	o.n.Add(-1)
}

// start sees to it that what is owed is paid, at once if now. The lock is held.
func (o *owed) start(now bool) {
	if !o.paying {
		if o.paying = o.c.running.begin(); o.paying {
			go o.pay()
		}
	}
	if now {
		select {
		case o.wake <- struct{}{}:
		default:
		}
	}
}

// mark is to be passed to settle: what is owed later is not settled.
func (o *owed) mark() uint64 {
	if o.n.Load() == 0 {
		return 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last
}

// settle says that key has been given a new value since mark.
func (o *owed) settle(key string, mark uint64) {
	if mark == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if d, ok := o.keys[key]; ok && d.number <= mark {
		o.paid(key)
	}
}

// ended notes that what keys had, the command for which was sent in that epoch, has
// ended: a failover may lose it.
func (o *owed) ended(epoch uint64, e ending, keys ...string) {
	if o.done.most == 0 || len(keys) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, key := range keys {
		o.note(epoch, key, e)
	}
}

// note is ended for one key. The lock is held.
func (o *owed) note(epoch uint64, key string, e ending) {
	if o.done.most == 0 {
		return
	}
	o.done.add(key, e, time.Now())
	if o.c.rdb.Epoch() != epoch && len(o.keys) < 2*maxOwed { // repeatRecent came before it
		o.put(key, e)
		o.start(true)
	}
}

// repeatRecent is called when there is another primary, before roles go on.
func (o *owed) repeatRecent() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done.since(time.Now().Add(-recentDeletesFor), o.put)
	if len(o.keys)+len(o.views) > 0 {
		o.start(true)
	}
}

// pay carries out what is owed, until nothing is. Client.Close ends it.
func (o *owed) pay() {
	defer o.c.running.done()
	for pause := minPayPause; ; pause = min(2*pause, maxPayPause) {
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-timer.C:
		case <-o.wake:
			timer.Stop()
		case <-o.c.ctx.Done():
			timer.Stop()
			o.c.log.Warn("closed with deletes that have failed: old values stay until they expire", "keys", o.n.Load())
			return
		}
		if o.round() {
			return
		}
	}
}

// round tries everything that is owed, and reports whether nothing is any more.
func (o *owed) round() (paid bool) {
	o.mu.Lock()
	var deletes, raises []string
	debts := maps.Clone(o.keys)
	for key, d := range debts {
		if d.view != nil {
			raises = append(raises, key)
		} else {
			deletes = append(deletes, key)
		}
	}
	views := maps.Clone(o.views)
	o.mu.Unlock()
	o.repeat(deletes, debts, deleteScript, func(d debt) int64 { return max(d.until-time.Now().UnixMilli(), 0) })
	o.repeat(raises, debts, raiseScript, func(d debt) int64 { return d.view.ttl })
	cleared := make(map[string]bool)
	for prefix, view := range views {
		cleared[prefix] = view.clear(o.c.ctx) == nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for prefix, view := range views {
		if cleared[prefix] && o.views[prefix].number == view.number {
			delete(o.views, prefix)
			o.n.Add(-1)
		}
	}
	o.paying = o.n.Load() > 0
	return !o.paying
}

// repeat sends what is owed of keys, with an argument of each.
func (o *owed) repeat(keys []string, debts map[string]debt, script *script, arg func(debt) int64) {
	for len(keys) > 0 && o.c.ctx.Err() == nil {
		n := min(len(keys), maxPipeline)
		o.repeatPart(keys[:n], debts, script, arg)
		keys = keys[n:]
	}
}

// repeatPart sends as many as fit into a pipeline.
func (o *owed) repeatPart(keys []string, debts map[string]debt, script *script, arg func(debt) int64) {
	ctx, cancel := context.WithTimeout(o.c.ctx, o.c.leaseSlack())
	defer cancel()
	for _, key := range keys {
		o.c.wrote(key)
		defer o.c.wrote(key)
	}
	epoch := o.c.rdb.Epoch()
	cmds := o.c.runMany(ctx, script, keys, func(i int) []any { return []any{arg(debts[keys[i]])} })
	for _, key := range keys {
		o.c.evict(key)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, key := range keys {
		if cmds[i].Err() != nil {
			continue
		}
		o.c.stats.deletesRepeated.Inc()
		if o.keys[key] == debts[key] {
			o.paid(key)
		}
		o.note(epoch, key, debts[key].ending)
	}
}

// recentDeletesFor is how long a failover may lose what has been acknowledged.
const recentDeletesFor = 10 * time.Second

// recentDeletes are the last deletes, a bounded number of them.
type recentDeletes struct {
	most int
	ring []recentDelete
	next int // where the oldest is, once the ring is full
}

type recentDelete struct {
	key string
	ending
	at time.Time
}

func (r *recentDeletes) add(key string, e ending, at time.Time) {
	d := recentDelete{key, e, at}
	if len(r.ring) < r.most {
		r.ring = append(r.ring, d)
		return
	}
	r.ring[r.next] = d
	r.next = (r.next + 1) % r.most
}

// since calls f with those that are not older than t.
func (r *recentDeletes) since(t time.Time, f func(key string, e ending)) {
	for _, d := range r.ring {
		if !d.at.Before(t) {
			f(d.key, d.ending)
		}
	}
}
