// Package result keeps what tasks returned, and lets others wait for it.
//
// Whoever runs a task stores its [Record] as the task goes through its states;
// whoever published it reads the record with [Client.Get] or [Client.GetMany],
// or waits for the final state with [Client.Wait], [Client.WaitAny] or
// [Client.WaitAll]. A waiter is woken by a message as soon as that state is
// stored; all waiters of a client share one subscription.
//
// # What it promises, and what it does not
//
//   - A final state is never overwritten, and a state of an older attempt never
//     replaces that of a newer one: one script compares and sets.
//   - Wake-ups may be lost (a connection breaks, a failover), results are not
//     lost with them: a waiter reads again when its subscription is back, and
//     every five seconds.
//   - A record is kept for its TTL, a day by default. After that, and before the
//     first state is stored, Get says [Pending]: an unknown, a waiting and an
//     expired task cannot be told apart.
//   - A record that a failover lost is lost: replication is asynchronous.
//
// A record is a string at <namespace>:result:<id> with a PX; its wake-ups go to
// the channel of the same name, on Cluster a sharded one (SPUBLISH).
package result
