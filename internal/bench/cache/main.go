// Command cache shows how the cache compares with plain go-redis, its
// auto-pipelining, rueidis and go-redis/cache: hits from Redis with few and many
// callers, also over a slower network, hits of the local tiers, many keys of a
// Cluster, compression; and what is read while others write, or when all miss.
//
//	go run ./cache
//	go run ./cache -only "^GET 1024 B, 128" -contender redisha -cpuprofile get.pprof
//
// It starts a further process of its own, which delays what passes through it.
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
	Name:  "cache",
	About: "the cache beside go-redis, rueidis and go-redis/cache",
	Beside: []harness.Quantity{
		harness.P50, harness.P99, harness.ClientCPU, harness.ServerCPU, harness.Allocs, left, reads, loads,
	},
	Peers: []string{"github.com/redis/rueidis", "github.com/go-redis/cache/v9"},
	Run:   run,
}

func run(ctx context.Context, s *harness.Suite) error {
	b := &bench{Suite: s}
	return harness.InTurn(ctx,
		b.startServer,
		b.get,
		b.getDelayed,
		b.decoded,
		b.many,
		b.frames,
		b.stale,
		b.cold,
	)
}

// A bench is a run.
type bench struct {
	*harness.Suite
	server  *redistest.Server
	monitor *redis.Client // of the server, which no contender uses
}

func (b *bench) startServer(ctx context.Context) (err error) {
	if b.server, b.monitor, err = b.Monitored(ctx, redistest.Config{}); err != nil {
		return err
	}
	b.Setting("%d keys, in random order; TTL %s; each contender has a client of its own on the same server, and all read the same keys.", keyCount, ttl)
	b.Setting("redisha: `View[string, []byte]` with codec Raw, Plain, no compression, so that all read the same bytes, on a role's connection; ReadTimeout %s, since a busy machine exceeds the default of 250 ms; else the defaults.", readTimeout)
	b.Setting("go-redis: `NewClient` with a pool of %d, as redisha's has by default, else its defaults. Auto-pipelining: `AutoPipeline()` of such a client with its defaults; over the network also with FullDuplex, which is what its documentation recommends there.", poolSize)
	b.Setting("rueidis: `NewClient` with its defaults, and with MaxFlushDelay 20 µs.")
	b.Setting("client CPU and allocs: of this process; server CPU: of Redis. All through reads.")
	return nil
}
