// Command failover shows how clients follow a failover: how long they take from
// the moment at which it is announced, and what their callers see of it.
//
//	go run ./failover
//	go run ./failover -only 'killed$' -contender redisha -rounds 2 -story
//
// A full run takes the better part of an hour.
package main

import (
	"context"
	"flag"
	"time"

	"github.com/redisha/redisha/internal/bench/harness"
)

func main() { harness.Main(topic(&stories)) }

var stories bool

func topic(stories *bool) harness.Topic {
	return harness.Topic{
		Name:       "failover",
		About:      "how clients follow a failover",
		Beside:     []harness.Quantity{setRecovery, pushRecovery, subRecovery, untilPromoted, setErrors, pushErrors, twice, lost},
		Peers:      []string{"github.com/redis/rueidis"},
		QuickLimit: 3 * time.Minute,
		Flags: func(flags *flag.FlagSet) {
			flags.BoolVar(stories, "story", false, "tell of each round what happened when, on standard error")
		},
		Run: func(ctx context.Context, s *harness.Suite) error { return run(ctx, s, *stories) },
	}
}

// What is measured.
var (
	recovery      = harness.Quantity{Name: "recovery"} // the slowest of the next three
	setRecovery   = harness.Quantity{Name: "SET again"}
	pushRecovery  = harness.Quantity{Name: "RPUSH again"}
	subRecovery   = harness.Quantity{Name: "message again"}
	setErrors     = harness.Quantity{Name: "SET errors", Unit: harness.Count}
	pushErrors    = harness.Quantity{Name: "RPUSH errors", Unit: harness.Count}
	pushUnknown   = harness.Quantity{Name: "RPUSH unknown, of one connection", Unit: harness.Count}
	pushOthers    = harness.Quantity{Name: "RPUSH errors, but unknown outcome", Unit: harness.Count}
	twice         = harness.Quantity{Name: "executed twice", Unit: harness.Count}
	lost          = harness.Quantity{Name: "acknowledged, lost", Unit: harness.Count}
	poolTimeouts  = harness.Quantity{Name: "pool timeouts", Unit: harness.Count}
	breakerErrors = harness.Quantity{Name: "breaker errors", Unit: harness.Count}
	otherErrors   = harness.Quantity{Name: "other errors", Unit: harness.Count}
	allErrors     = harness.Quantity{Name: "errors", Unit: harness.Count}
	slowest       = harness.Quantity{Name: "slowest command"}
	firstPing     = harness.Quantity{Name: "first ping"}
	openFallback  = harness.Quantity{Name: "first ping with fallback_primary"}
	openFails     = harness.Quantity{Name: "error without it after"}
	untilPromoted = harness.Quantity{Name: "promoted"}
	others        = harness.Quantity{Name: "p99 of others during, to 2 × before or + 1 ms", Unit: harness.Count}
)

func run(ctx context.Context, s *harness.Suite, stories bool) error {
	describe(s)
	b := &bench{Suite: s, stories: stories, kinds: make(map[string]map[string]int)}
	if err := b.sentinels(ctx); err != nil {
		return err
	}
	if err := b.clusters(ctx); err != nil {
		return err
	}
	b.tellErrors()
	return nil
}

func describe(s *harness.Suite) {
	s.Setting("Three Sentinels (down-after 1 s, failover-timeout 2 s), a primary and two replicas. In each round one contender, with a new client, has its primary fail; then the servers are mended and settle.")
	s.Setting("Two writers of SET, two of RPUSH, a command every %s each, every one with a context of %s; a subscriber, to whom each server publishes every 5 ms.", pause, patience)
	s.Setting("recovery: the slowest of all writers and the subscriber, from the first +switch-master that an observer at all three Sentinels hears, to the end of the first command that the new primary has executed, or its first message. Below 0: earlier than announced. %s: not within that time, or no client.", recoverLimit)
	s.Setting("RPUSH adds a value of its own each time, so the list shows what was executed twice. Lost: acknowledged, and not there in the end; replication is asynchronous, and until it is demoted the old primary takes writes.")
	s.Setting("go-redis: `NewFailoverClient`, on Cluster `NewClusterClient`, with their defaults (MaxRetries 3, PoolSize %s); subscriber: `Subscribe`, `Channel`.", "10 × GOMAXPROCS, for 200 callers 100")
	s.Setting("rueidis: `NewClient` with `Sentinel.MasterSet`, on Cluster with the nodes' addresses, else its defaults; subscriber: `Receive`, again 10 ms after it ends.")
	s.Setting("redisha: the connection of the role broker with its defaults (breaker, pool of 100, timeouts of 3 s); subscriber: `internal/pubsub`, renewed at each new epoch.")
}
