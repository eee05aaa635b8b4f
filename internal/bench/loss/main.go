// Command loss shows that the broker loses nothing: publishers and workers under
// load while primaries are killed, workers are killed and stopped, slots move
// between nodes, scripts are forgotten, and replies are dropped. Every task whose
// publish returned nil must have run, or be there, in the end.
//
//	go run ./loss
//	go run ./loss -only Sentinel -rounds 1 -story
//
// It starts further processes of its own, which work on tasks and are killed.
package main

import (
	"context"
	"flag"

	"github.com/redisha/redisha/internal/bench/children"
	"github.com/redisha/redisha/internal/bench/harness"
)

func main() {
	children.Obey(order.obey)
	harness.Main(topic(&stories))
}

var stories bool

func topic(stories *bool) harness.Topic {
	return harness.Topic{
		Name:   "loss",
		About:  "what the broker loses when servers and workers die",
		Beside: []harness.Quantity{confirmed, unconfirmed, failed, duplicates, allowed, ghosts, faults, left, stall, took},
		Flags: func(flags *flag.FlagSet) {
			flags.BoolVar(stories, "story", false, "tell of each round what happened when, on standard error")
		},
		Run: func(ctx context.Context, s *harness.Suite) error {
			return run(ctx, &bench{Suite: s, stories: *stories})
		},
	}
}

// What is measured, of each round.
var (
	lost        = harness.Quantity{Name: "confirmed, lost", Unit: harness.Count}
	confirmed   = harness.Quantity{Name: "confirmed", Unit: harness.Count}
	unconfirmed = harness.Quantity{Name: "ErrUnconfirmed", Unit: harness.Count}
	failed      = harness.Quantity{Name: "other errors", Unit: harness.Count}
	ghosts      = harness.Quantity{Name: "ran after another error", Unit: harness.Count}
	duplicates  = harness.Quantity{Name: "duplicates", Unit: harness.Count}
	allowed     = harness.Quantity{Name: "bound of duplicates", Unit: harness.Count}
	excess      = harness.Quantity{Name: "duplicates beyond the bound", Unit: harness.Count}
	faults      = harness.Quantity{Name: "faults", Unit: harness.Count}
	left        = harness.Quantity{Name: "visible in the end", Unit: harness.Count}
	stall       = harness.Quantity{Name: "longest time without a task"}
	took        = harness.Quantity{Name: "round"}
)

// A bench is a run.
type bench struct {
	*harness.Suite
	stories bool
}

func run(ctx context.Context, b *bench) error {
	b.describe()
	return harness.InTurn(ctx, b.sentinels, b.clusters, b.workers, b.resharding, b.replies)
}

func (b *bench) describe() {
	b.Setting("A task's argument is its number. A round publishes tasks one by one from %d goroutines with %d clients, at %d a second at most (%d where servers are not killed); %d workers, each with a client of its own, concurrency %d and a lease of %s, run a handler that takes note of the number (each %dth takes %s). After the last fault and the last publish the workers drain the queue, and all keys of all primaries are searched for what is still there.",
		publishers, clients, rate, mishapRate, workerCount, concurrency, lease, slowEvery, slowFor)
	b.Setting("confirmed, lost: publish returned nil, the task did not run, and it is not there: neither ready, delayed, parked nor dead. ran after another error: publish returned an error that is not ErrUnconfirmed, and the task ran all the same.")
	b.Setting("duplicates: runs beyond the first of each task. Their bound: for each failover, the tasks in flight (%d slots and up to %d verdicts that are not stored), and the acks that the failover lost (those that the workers were told of, less those that the servers count); "+
		"for each worker that was killed or stopped, its slots and up to %d acks that it had not sent.", workerCount*concurrency, unsettled, unflushed)
}

// never is met if no round of a contender shows any.
func never(contender string, q harness.Quantity) harness.Target {
	return harness.Target{Contender: contender, Quantity: q, Limit: harness.AtMost(0, harness.Worst)}
}

func atLeast(contender string, q harness.Quantity, n int) harness.Target {
	return harness.Target{Contender: contender, Quantity: q, Limit: harness.AtLeast(float64(n), harness.Worst)}
}

// tell writes a line of a round's story.
func (b *bench) tell(format string, args ...any) {
	if b.stories {
		b.Note(format, args...)
	}
}
