package cache

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
)

// Scope returns a context with a request scope: the views of c keep in it what
// they find, decoded, and find it there again, without asking Redis. It is a
// snapshot for one request: what others write or delete meanwhile, and what
// expires, is not seen. What is written by a call with this context is, and what
// such a call deletes is gone.
//
// The scope may be used by all goroutines of the request. It grows with what they
// read, and ends with the context. A context that has one already gets another,
// which is empty: so something is read anew. The loader of a Fetch has none, since
// what it loads is for others too.
//
// Values are shared by all who find them in a scope: do not change them, or set
// ViewConfig.Clone. A nil context stays one, which calls then refuse.
func (c *Client) Scope(ctx context.Context) context.Context {
	if ctx == nil {
		return nil
	}
	return context.WithValue(ctx, scopeKey{c}, new(scope))
}

// Middleware gives each request that next serves a scope; see [Client.Scope].
func (c *Client) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(c.Scope(r.Context())))
	})
}

// unscoped returns ctx without the scope of c.
func (c *Client) unscoped(ctx context.Context) context.Context {
	if s, _ := ctx.Value(scopeKey{c}).(*scope); s == nil {
		return ctx
	}
	return context.WithValue(ctx, scopeKey{c}, (*scope)(nil))
}

type scopeKey struct{ c *Client }

// A scope has a snapshot for each view that was used with it. There are few: the
// list is walked, and copied to be changed.
type scope struct {
	adding    sync.Mutex
	snapshots atomic.Pointer[[]scoped]
}

type scoped struct {
	space    *keyspace
	snapshot interface {
		forget(text string)
		clear()
	}
}

func (s *scope) list() []scoped {
	if list := s.snapshots.Load(); list != nil {
		return *list
	}
	return nil
}

// snapshot returns what the scope of ctx has of v, or nil if there is no scope.
func (v *View[K, V]) snapshot(ctx context.Context) *snapshot[K, V] {
	s, _ := ctx.Value(scopeKey{v.c}).(*scope)
	if s == nil {
		return nil
	}
	if found := v.among(s.list()); found != nil {
		return found
	}
	s.adding.Lock()
	defer s.adding.Unlock()
	list := s.list()
	found := v.among(list)
	if found == nil {
		found = &snapshot[K, V]{scope: s, values: make(map[K]*kept[V])}
		list = append(list[:len(list):len(list)], scoped{v.space, found})
		s.snapshots.Store(&list)
	}
	return found
}

func (v *View[K, V]) among(list []scoped) *snapshot[K, V] {
	for i := range list {
		if list[i].space == v.space {
			if found, ok := list[i].snapshot.(*snapshot[K, V]); ok {
				return found
			}
		}
	}
	return nil
}

// A snapshot is what one request has seen of a view.
type snapshot[K Key, V any] struct {
	scope *scope

	mu      sync.Mutex
	values  map[K]*kept[V]
	written map[K]uint64 // how often the request has, by key; nil: never
	clears  uint64
}

// A kept value stands in a local tier. It does not change.
type kept[V any] struct {
	value  V
	absent bool   // there is none, which is known
	stored uint64 // Unix time in ms; 0: unknown
	until  int64  // in an L1, by Client.clock
	tags   []tag  // in an L1: those whose ends end it
	news   uint64 // what of their ends was known before it was read
}

// find returns what the request has seen of key. If that is nothing, what is read
// may be added as long as there are no more changes.
func (s *snapshot[K, V]) find(key K) (k *kept[V], changes uint64) {
	s.mu.Lock()
	if k = s.values[key]; k == nil {
		changes = s.changes(key)
	}
	s.mu.Unlock()
	return k, changes
}

// changes is how often key has changed. It only grows.
func (s *snapshot[K, V]) changes(key K) uint64 { return s.clears + s.written[key] }

// add adds what was read, unless the request has written the key since: it may be
// older than that.
func (s *snapshot[K, V]) add(key K, k *kept[V], changes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changes(key) == changes {
		s.values[key] = k
	}
}

// change removes key, and returns how often it has changed.
func (s *snapshot[K, V]) change(key K) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.written == nil {
		s.written = make(map[K]uint64)
	}
	s.written[key]++
	delete(s.values, key)
	return s.changes(key)
}

// clear removes all keys.
func (s *snapshot[K, V]) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clears++
	clear(s.values)
}

// forget removes the key of that text, which a view of another type has written.
func (s *snapshot[K, V]) forget(text string) {
	if key, ok := parseKey[K](text); ok {
		s.change(key)
	}
}
