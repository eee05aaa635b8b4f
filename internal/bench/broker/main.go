// Command broker shows how the broker compares with asynq: publishing, draining,
// both at once, picking up a task while idle, what a waiting task costs, tasks of
// killed workers, delayed tasks, and one queue on Redis Cluster.
//
//	go run ./broker
//	go run ./broker -only ^drain -contender redisha -cpuprofile drain.pprof
//
// It starts further processes of its own, which work on tasks and are killed.
package main

import (
	"context"

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
	Name:   "broker",
	About:  "tasks beside asynq",
	Beside: []harness.Quantity{harness.P50, harness.P99, harness.ClientCPU, harness.ServerCPU, harness.Allocs, commands, idleCPU},
	Peers:  []string{"github.com/hibiken/asynq"},
	Run:    run,
}

func run(ctx context.Context, s *harness.Suite) error {
	b := &bench{Suite: s}
	b.describe()
	return harness.InTurn(ctx,
		b.startServer,
		b.publish,
		b.drain,
		b.flow,
		b.idle,
		b.memory,
		b.delays,
		b.killed,
		b.replicated,
		b.cluster,
	)
}

// A bench is a run.
type bench struct {
	*harness.Suite
	server  *redistest.Server
	monitor *redis.Client // of the server, which no contender uses
}

// sizes are those of the tasks; a quick run has the smallest alone.
func (b *bench) sizes() []int {
	if b.Quick {
		return sizes[:1]
	}
	return sizes
}

func (b *bench) startServer(ctx context.Context) (err error) {
	// Queues that are full are loaded from a file: see filled.
	b.server, b.monitor, err = b.Monitored(ctx, redistest.Config{Lines: []string{"enable-debug-command local", "enable-protected-configs local"}})
	return err
}

func (b *bench) describe() {
	b.Setting("Both sides, in turns on the same server, which is emptied by FLUSHALL before each turn: a task whose argument is a struct of a number and a random text, of %d or %d bytes as JSON, "+
		"encoded by the publisher and decoded by the worker; a timeout of %s (asynq's default) and 25 attempts; one middleware that calls the next; a handler that does nothing. Publishers and workers are in this process, each side with a client of its own in each turn.", sizes[0], sizes[1], timeout)
	b.Setting("redisha: `broker.New` on a role's connection, both with their defaults: group commits, leases of 15 s, arguments from 256 B on compressed.")
	b.Setting("asynq: `asynq.NewClient` and `asynq.NewServer` with `ServeMux`, with their defaults, but for a pool of %d connections for %d producers and more, with which it is faster than with its default of 10 × GOMAXPROCS.", asynqPool, asynqPool)
	b.Setting("client CPU and allocs: of this process, with publisher or worker or both, as the row says; server CPU and commands (those within scripts included): of Redis. All through tasks.")
}
