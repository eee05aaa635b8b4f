// Package lock gives out leases: locks that expire unless they are renewed,
// that say when they are lost, and that carry a fencing token.
//
// A [Client] keeps its leases in one Redis server, or on a Cluster in the
// primary that a key belongs to. [Client.Do] runs a function under a lease;
// [Client.TryAcquire] and [Client.Acquire] hand out the [Lease] itself. Obtaining,
// renewing and releasing are those of github.com/bsm/redislock, with an own
// random token for each acquisition.
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
//
// # What it does not promise
//
// No lease stops a holder that is paused between a look at the context and a
// write: only the resource can, by refusing a token smaller than the greatest
// that it has seen (Kleppmann, "How to do distributed locking", 2016). A server
// that loses data loses leases: a failover may hand one lock to two holders
// until the next renewal of the first, which is why Sentinel endpoints are
// refused. Waiters are served in no particular order.
//
// # Keys
//
//	<namespace>:lock:{<key>}    string  the holder; its TTL is the lease's
//	<namespace>:lock:{<key>}:f  string  the last fencing token; 30 days
package lock
