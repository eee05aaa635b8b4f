// Package lock gives out leases: locks that expire unless they are renewed,
// that say when they are lost, and that carry a fencing token.
//
// A [Client] keeps its leases in one Redis server, on a Cluster in the primary that
// a key belongs to, or in a majority of several independent servers ([NewQuorum]).
// [Client.Do] runs a function under a lease; [Client.TryAcquire] and
// [Client.Acquire] hand out the [Lease] itself. Obtaining, renewing and releasing
// are those of github.com/bsm/redislock, with an own random token for each
// acquisition.
//
// # What a lease promises
//
//   - Nobody else holds the key until the lease's context has ended, as long as
//     the server keeps its data and both machines' clocks run at the same speed
//     to within 1 %. The context ends before the key does, whether Redis can be
//     reached or not. On a machine that was suspended it ends within a second of
//     the resumption.
//   - Its fencing token is greater than that of each lease on the key before it,
//     as long as the server keeps the counter, or else its clock has not been
//     set back by more than the time since the last lease.
//   - After Release, after an attempt that failed, and after one whose outcome
//     is unknown, the key does not stay: it is deleted, at the latest by its TTL.
//   - Who waits for one key is served in the order of the queue: a release hands
//     the lock over, and nobody comes in between. Who waits in a process that is
//     gone is passed over at once, unless somebody else listens to its channel
//     (PSUBSCRIBE); each waiter of one that is stopped, after two seconds. After
//     a holder that died without releasing, a newcomer may be first.
//
// # What it does not promise
//
// No lease stops a holder that is paused between a look at the context and a
// write: only the resource can, by refusing a token smaller than the greatest
// that it has seen (Kleppmann, "How to do distributed locking", 2016); [SetFenced]
// does so for values in Redis, and shows the statement for SQL. A server that loses
// data loses leases: a failover may hand one lock to two holders until the next
// renewal of the first, which is why endpoints of Sentinel are refused; and so may
// a server that evicts keys when its memory is full, which is why it should have
// maxmemory-policy noeviction. The endpoint is looked at before the first lease,
// on new connections and every ten seconds in use; see [Config] and the errors.
//
// Leases are not reentrant: whoever asks for a key that is held, be it the holder
// itself, is another who wants it. TryAcquire inside of Do on the same key returns
// [ErrNotAcquired], and Acquire or Do waits for itself, until its context ends.
// Hand the [Lease] to what is called instead.
//
// Waiting for several keys ([Also]), through a proxy, on a quorum, and where the
// ACL forbids PUBLISH or SUBSCRIBE is polling, 5 to 250 ms apart, in no order.
//
// # Keys
//
//	<namespace>:lock:{<key>}       string  the holder; its TTL is the lease's
//	<namespace>:lock:{<key>}:f     string  the last fencing token; 30 days
//	<namespace>:lock:{<key>}:q     list    who waits; a minute
//	<namespace>:lock:{<tag>}=<key>         the same for keys with a hash tag, as
//	                                       account{42}; then }f= and }q=
//	<namespace>:lock:p:<process>   channel for messages to a process; on Cluster
//	                                       <namespace>:lock:{<key>}:p:<process>
//	<namespace>:lock:{<key>}:free  channel of a quorum
//
// Keys should be few: each leaves a counter for 30 days. Times and IDs of requests
// do not belong there.
package lock
