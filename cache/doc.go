// Package cache keeps values of a slower source in Redis, by cache-aside: a
// [View] returns what Redis has and otherwise loads it, once for all callers.
//
//	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{TTL: 10 * time.Minute})
//	user, err := users.Fetch(ctx, 42, loadUser)
//
// # What it promises
//
// One load: callers that miss the same key at the same time share one load. In
// a process they join one flight; between processes a load lease, which stands
// in the key itself, lets one of them load while the others wait for its value.
// A lease lives for ViewConfig.LoadTimeout and a second; it may be evicted or
// lost in a failover, which costs another load and nothing else.
//
// No value from before a Delete: once Delete or Set has returned nil, no Get
// and no Fetch that starts later, in any process, returns what was loaded
// before. A Delete takes the lease away, so that a load which was under way
// cannot store its value any more. The limit is the one of Redis' asynchronous
// replication: a failover may lose a Delete that was acknowledged. The process that
// made it repeats it when it learns of the new primary, if it was one of the last
// 10,000 and of the last ten seconds; it also repeats a Delete that failed, until
// that has succeeded, and uses nothing old meanwhile. [View.DeleteFor] is for sources
// that are late themselves.
//
// Old values rather than none, where a view asks for them: during
// ViewConfig.StaleFor after its TTL a value is returned at once, and one caller in
// all processes refreshes it. A source that fails is asked again 30 s later, and
// without an old value the error of one load serves all for a moment.
//
// A source that stays reachable without Redis: if Redis does not answer in
// time, Fetch goes to the loader, with one load per key and a bounded number
// of them at once, and what it has loaded serves the process for two seconds. Get,
// Set and Delete return the error otherwise, which is neither [ErrMiss] nor
// [ErrNotFound].
//
// The same for tags: once [View.InvalidateTags] or [View.Clear] has returned nil,
// nobody who comes later gets what was loaded before, whatever is being loaded
// meanwhile. What a failover may have lost of them is repeated as Deletes are; what
// has failed is not.
//
// Nothing that is wrong is returned: bytes that are unknown, cut off, too long
// or do not decode are a miss and are counted in [Stats].
//
// # How it reads
//
// While few reads are under way, each is a GET of its own. Beyond that, those of
// all views wait for each other and travel together: one MGET for hundreds of
// callers, on a Cluster a pipeline per node, so that throughput grows with the
// number of callers. What is no string counts as missing.
//
// # Request scope
//
// [Client.Scope], or [Client.Middleware] for HTTP, makes the views keep what one
// request has found, decoded, so that its layers ask Redis once for each key.
//
// # Local copies
//
// With ViewConfig.LocalEntries the process keeps copies of what it has read, until
// the server tells that a key has changed (CLIENT TRACKING), by whomever, or until
// they are ViewConfig.LocalMaxAge old. Writes of the process are seen by it at once,
// those of others within the time of a message; whenever one may have been missed,
// all copies are given up. A process that is cut off together with a primary that
// is none any more may read old copies until they have that age. So may a loader that
// reads such a view, and what it returns is stored, for others too, as if it were new.
//
// # Limits, sessions, maps, hashes
//
// [Limiter], [SessionStore], [Map] and [Hash] keep in the same Redis what cannot be loaded
// again. They are no caches, and want a server that does not evict.
//
// # What is stored
//
// Of views, one string per key, <namespace>:cache:<view>:<key>, always with a TTL: the
// value with a header (or, in a plain view, exactly what the codec made), a
// cached absence, a load lease, or the error of a load. Values that are long enough are deflated by
// package compress.
package cache
