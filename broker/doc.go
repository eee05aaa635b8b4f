// Package broker runs tasks in the background: one process publishes a task, a
// worker in another one handles it, at least once, from queues in Redis.
//
//	var sendMail = broker.NewTask[Mail]("mail.send", broker.TaskConfig{Queue: "mail"})
//
//	id, err := sendMail.Publish(ctx, client, Mail{To: "ada@example.com"})
//
//	sendMail.Handle(worker, func(ctx context.Context, m Mail) error { ... })
//	err := worker.Run(ctx)
//
// [Inspector] shows and changes by hand what is in queues.
//
// # What it promises
//
//   - At least once: a task whose Publish returned nil is handled until its
//     handler returns nil, or ends as a dead letter, which stays until someone
//     removes it. Nothing is trimmed. A task runs a second time if its worker
//     dies or loses its lease before the task is acknowledged, so handlers must
//     bear it; a graceful stop causes no such repetition.
//   - Published once: a publish whose reply is lost is sent again under the same
//     sequence number, and Redis applies a number once. A task published again
//     under the same ID (see [ID]) within a day is not a second task.
//   - A worker that dies burns no attempt: its tasks are visible again once its
//     lease, 15 seconds by default, has run out. A task that was handed over five
//     times without an end is taken for what kills the workers and becomes a
//     dead letter.
//   - A delayed task never starts early by the clock of the Redis server.
//   - A task that no handler knows stays in its queue.
//
// # What it does not
//
//   - No order: tasks of one queue may overtake each other, but those of a higher
//     priority are taken first.
//   - Not exactly once: no queue can make the effects of a handler single.
//   - It cannot keep what Redis loses. Replication is asynchronous: a failover may
//     lose what the promoted replica had not confirmed (see [Confirm]).
//
// # In Redis
//
// A queue consists of partitions, one unless Redis is a Cluster. Each has its
// keys in one slot, <namespace>:queue:{<queue>:<partition>.<k>}:<what>:
//
//	s:r, s:0, s:1, s:2    streams of ready and running tasks: released ones, then by priority; group w
//	z, zh                 sorted set and hash of delayed tasks and retries
//	dl, dlh               sorted set and hash of dead letters
//	pd, pdz               hash and sorted set that make publishing single
//	id:<id>               string with a TTL: the mark of an ID that was given
//	u:<key>               string with a TTL: which task holds a unique key
//	k:<key>, kq:<key>     set and list: tasks of a concurrency key that may run, and those that wait
//	kz                    sorted set of the keys with tasks that wait
//	hb:<consumer>         string with a TTL: a worker's heartbeat
//	mt                    string with a TTL: which worker does the maintenance
//	st                    hash of counters
//
// and <namespace>:queue:{<queue>}:meta says how many partitions there are.
package broker
