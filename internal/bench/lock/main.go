// Command lock shows how locks compare with those of bsm/redislock,
// go-redsync/redsync and rueidislock: uncontended, handed from holder to holder,
// with waiters and holders that die, over a quorum, and held in great numbers.
//
//	go run ./lock
//	go run ./lock -only hand-over -contender redis -rounds 2
//
// It starts further processes of its own, which wait for locks and are killed.
package main

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/children"
	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

func main() {
	children.Obey(order.obey)
	harness.Main(topic)
}

var topic = harness.Topic{
	Name:  "lock",
	About: "locks beside redislock, redsync and rueidislock",
	Beside: []harness.Quantity{
		harness.P50, harness.P99, waitP99, readsPerLock, mostToLeast, asleep, harness.ClientCPU, harness.ServerCPU, harness.Allocs, commands, cycled, failed,
	},
	Peers: []string{"github.com/bsm/redislock", "github.com/go-redsync/redsync/v4", "github.com/redis/rueidis"},
	Run:   run,

	QuickLimit: 58 * time.Second,
}

func run(ctx context.Context, s *harness.Suite) error {
	b := &bench{Suite: s}
	return harness.InTurn(ctx,
		b.startNodes, // first, since a quorum's nodes must have run for a TTL
		b.startServer,
		b.uncontended,
		b.handOver,
		b.mishaps,
		b.manyLeases,
		b.quorum,
	)
}

// A bench is a run.
type bench struct {
	*harness.Suite
	server  *redistest.Server
	monitor *redis.Client // of the server, which no contender uses

	nodes    []*redistest.Server // of the quorum
	monitors []*redis.Client     // of the nodes
	started  time.Time           // of the nodes
}

// slice is how long a turn takes, of which a quick run has one.
func (b *bench) slice(full time.Duration) time.Duration {
	if b.Quick {
		return full / 3
	}
	return full
}

func (b *bench) startServer(ctx context.Context) (err error) {
	b.describe()
	b.server, b.monitor, err = b.Monitored(ctx, redistest.Config{})
	return err
}

func (b *bench) describe() {
	b.Setting("Each contender has a client of its own on the same server; TTL %s; locks are released by the contender's own way to do so.", ttl)
	b.Setting("redisha: `lock.New` on a role's connection with its defaults; every lease with a fencing token, which the peers do not have.")
	b.Setting("redislock: go-redis with its defaults; it waits by `LinearBackoff(%s)`. No renewal.", pollEvery)
	b.Setting("redsync: go-redis with its defaults; a new `Mutex` for each lock; it waits as it does by default, 50 to 250 ms between tries. No renewal.")
	b.Setting("rueidislock: `KeyMajority` 1, `NoLoopTracking`, `KeyValidity` and `TryNextAfter` %s (a busy machine exceeds the default of 20 ms), else its defaults.", ttl)
}
