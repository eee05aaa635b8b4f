package cache

import (
	"context"
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/redisha/redisha/internal/tracking"
)

// A local is the L1 of a view: what this process keeps of it, as GETs have brought
// it. It is valid for one epoch of the watch, in which the servers have told of all
// changes; in another epoch another, empty, instance takes its place.
//
// A read may cross the news that its key has changed. So each key has a mark, which
// changes with such news, and what was read is kept only if the mark is still that
// of before the read. (otter's own loads would do the same, at the price of a second
// kind of flight, whose errors and contexts are those of one of its callers.)
type local[K Key, V any] struct {
	c          *Client
	space      *keyspace
	most       int
	maxAge     time.Duration
	maxAbsence time.Duration // the same for an absence
	seed       maphash.Seed

	tags  *tagNews                       // nil without tags
	now   atomic.Pointer[instance[K, V]] // nil before the first value
	renew sync.Mutex                     // held while the next instance is made
	marks [256]placeMark
}

// An instance holds the values of an epoch.
type instance[K Key, V any] struct {
	epoch  uint64
	values *otter.Cache[K, *kept[V]]
}

// A placeMark is that of all keys which share its place.
type placeMark struct {
	mu sync.Mutex
	n  atomic.Uint64
}

func newLocal[K Key, V any](c *Client, space *keyspace, cfg ViewConfig) *local[K, V] {
	l := &local[K, V]{c: c, space: space, most: cfg.LocalEntries, maxAge: min(cfg.LocalMaxAge, cfg.TTL), seed: maphash.MakeSeed()}
	l.maxAbsence = min(l.maxAge, max(cfg.AbsentTTL, 0))
	if cfg.Tags {
		l.tags = new(tagNews)
	}
	return l
}

// find returns what is kept of key, or nil.
func (l *local[K, V]) find(key K) *kept[V] {
	in, w := l.now.Load(), l.space.watch.Load()
	if in == nil || in.epoch != w.tracker.Epoch() {
		return nil
	}
	if k, ok := in.values.GetIfPresent(key); ok && l.c.clock() < k.until && !l.tags.since(k.news, k.tags) {
		return k
	}
	return nil
}

// An origin is what is known before a read whose value may be kept.
type origin struct {
	watch *watch // nil: it may not
	epoch uint64
	node  string // that is going to be asked, on Cluster
	start int64  // by Client.clock
	mark  uint64

	generations *tracking.Prefix // of a view with tags
	news        uint64           // of tags that were known
}

// begin is called before a read is sent. It may be kept if its server tells of all
// changes from now on, or has said that it never does; if it has tags, so must all
// nodes of a Cluster, since its generations may stand anywhere.
func (l *local[K, V]) begin(ctx context.Context, key K, redisKey string, from *origin) {
	*from = origin{watch: l.c.watched(l.space)}
	if l.tags != nil {
		from.generations = l.c.watchedGenerations()
	}
	if from.watch == nil || l.tags != nil && from.generations == nil {
		from.watch = nil
		return
	}
	from.node = l.c.primary.Node(ctx, redisKey)
	var state tracking.State
	if from.epoch, state = from.watch.prefix.StateAt(from.node); state == tracking.Down {
		from.watch = nil
		return
	}
	if l.tags != nil {
		if _, state = from.generations.Everywhere(); state == tracking.Down {
			from.watch = nil
			return
		}
		from.news = l.tags.n.Load()
	}
	from.start = l.c.clock()
	from.mark = l.mark(key).n.Load()
}

// put keeps what node has sent, unless there has been news of the key since begin, or
// may have been, or of a generation on which it rests.
func (l *local[K, V]) put(key K, k *kept[V], f *found, from *origin, node string) {
	if from.watch == nil || node != from.node {
		return
	}
	if l.tags != nil {
		for _, node := range f.known.nodes {
			if _, state := from.generations.StateAt(node); state == tracking.Down {
				return
			}
		}
	}
	age := l.maxAge
	if k.absent {
		age = l.maxAbsence
	}
	until := from.start + int64(age)
	if softExpiry := f.head.softExpiry; softExpiry != 0 { // by which the value has to be refreshed
		left := time.Until(time.UnixMilli(int64(min(softExpiry, math.MaxInt64)))) //nolint:gosec // it fits
		until = min(until, l.c.clock()+int64(max(left, 0)))
	}
	m := l.mark(key)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.n.Load() != from.mark || from.watch.tracker.Epoch() != from.epoch || l.tags.since(from.news, f.head.tags) {
		return
	}
	if in := l.instance(from.epoch); in != nil {
		k.until, k.tags, k.news = until, f.head.tags, from.news
		in.values.Set(key, k)
	}
}

// instance returns that of an epoch: the next one, if the epoch is new, and nil if
// it is over.
func (l *local[K, V]) instance(epoch uint64) *instance[K, V] {
	if in := l.now.Load(); in != nil && in.epoch == epoch {
		return in
	}
	l.renew.Lock()
	defer l.renew.Unlock()
	in := l.now.Load()
	switch {
	case in != nil && in.epoch == epoch:
		return in
	case in != nil && in.epoch > epoch:
		return nil
	}
	values, err := otter.New(&otter.Options[K, *kept[V]]{
		MaximumSize: l.most,
		Executor:    func(fn func()) { fn() }, // there is nothing that may not run on a caller's goroutine
		Logger:      &otter.NoopLogger{},
	})
	if err != nil { // not with options that validate has let pass
		l.c.warn(context.Background(), &l.c.warnedLocal, "no local copies", l.space.prefix, err)
		return nil
	}
	in = &instance[K, V]{epoch: epoch, values: values}
	l.now.Store(in)
	return in
}

// evict is told that the key of that text has changed.
func (l *local[K, V]) evict(text string) {
	key, ok := parseKey[K](text)
	if !ok {
		return
	}
	m := l.mark(key)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.n.Add(1)
	if in := l.now.Load(); in != nil {
		in.values.Invalidate(key)
	}
}

// tagEnds is told that the generation of a tag has changed.
func (l *local[K, V]) tagEnds(hash uint64) {
	if l.tags != nil {
		l.tags.heard(hash)
	}
}

// clear is told that all keys may have changed.
func (l *local[K, V]) clear() {
	for i := range l.marks {
		m := &l.marks[i]
		m.mu.Lock()
		m.n.Add(1)
		m.mu.Unlock()
	}
	l.now.Store(nil) // what is under way into it is late
}

func (l *local[K, V]) mark(key K) *placeMark {
	return &l.marks[maphash.Comparable(l.seed, key)%uint64(len(l.marks))]
}

// tagNews numbers the news of tags. A place, which is that of many tags, has the
// number of the last of theirs: what has such a tag and was read before is over.
type tagNews struct {
	n    atomic.Uint64
	last [1024]atomic.Uint64
}

// heard is told that the generation of a tag has changed. A read that begins while it
// runs finds the new one in Redis.
func (t *tagNews) heard(hash uint64) {
	n, last := t.n.Add(1), t.place(hash)
	for old := last.Load(); old < n && !last.CompareAndSwap(old, n); old = last.Load() {
	}
}

// since reports whether there has been news of one of tags after the n-th.
func (t *tagNews) since(n uint64, tags []tag) bool {
	for i := range tags {
		if t.place(tags[i].hash).Load() > n {
			return true
		}
	}
	return false
}

func (t *tagNews) place(hash uint64) *atomic.Uint64 { return &t.last[hash%uint64(len(t.last))] }
