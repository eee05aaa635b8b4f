// Command overhead shows what a role's GET and SET cost over bare go-redis.
//
//	go run ./overhead
//
// One caller, one server, values of 100 B and 1 KiB. The second bare go-redis
// client does exactly what the first does: how far its ratio is from 1 is the
// noise of the run.
package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

const (
	keyCount = 1000
	ttl      = time.Hour

	rounds = 150
	slice  = 100 * time.Millisecond

	// The budget: 5 % of the time that bare go-redis takes.
	budget = 1.05
)

func main() { harness.Main(topic) }

var topic = harness.Topic{
	Name:   "overhead",
	About:  "what a role's GET and SET cost over bare go-redis",
	Beside: []harness.Quantity{harness.P50, harness.P99, harness.ClientCPU, harness.ServerCPU, harness.Allocs, harness.AllocBytes},
	Run:    compare,
}

func compare(ctx context.Context, s *harness.Suite) error {
	server, monitor, err := s.Monitored(ctx, redistest.Config{})
	if err != nil {
		return err
	}
	describe(s)
	for _, size := range []int{100, 1024} {
		for _, op := range []operation{get, set} {
			if err := s.Compare(ctx, comparison(server, monitor, op, size)); err != nil {
				return err
			}
		}
	}
	return nil
}

func describe(s *harness.Suite) {
	s.Setting("One caller; %d keys, random values, TTL %s; each contender has a client of its own on the same server.", keyCount, ttl)
	s.Setting("go-redis: `redis.NewClient` with its defaults; the second one is the first again, so that its ratio is the noise.")
	s.Setting("connection: the role's client with its defaults: breaker, statistics, no repeats, contexts that bound reads.")
	s.Setting("cache view: `Get` and `Set` of `View[string, []byte]` on such a connection, codec Raw, Plain, no compression, ReadTimeout %s, else the defaults.", readTimeout)
}

func comparison(server *redistest.Server, monitor *redis.Client, op operation, size int) harness.Comparison {
	w := newWork(size)
	c := harness.Comparison{
		Work:     fmt.Sprintf("%s %d B", op, size),
		Baseline: "go-redis",
		Rounds:   rounds,
		Slice:    slice,
		Contenders: []harness.Contender{
			w.contender("go-redis", op, monitor, bare(server)),
			w.contender("go-redis again", op, monitor, bare(server)),
			w.contender("connection", op, monitor, connection(server)),
			w.contender("cache view", op, monitor, cacheView(server)),
		},
	}
	for _, name := range []string{"connection", "cache view"} {
		c.Targets = append(c.Targets, harness.Target{Contender: name, Limit: harness.AtMost(budget, harness.Ratio)})
	}
	return c
}

// An operation is what is measured.
type operation string

const (
	get operation = "GET"
	set operation = "SET"
)

// work is what all contenders of a comparison work on.
type work struct {
	names  []string // as users of a view name them
	keys   []string // as they are called in Redis
	values [][]byte
}

func newWork(size int) work {
	var w work
	random := rand.NewChaCha8([32]byte{})
	for i := range keyCount {
		name := strconv.Itoa(i)
		value := make([]byte, size)
		_, _ = random.Read(value) // never fails
		value[0] &= 0x7f          // a plain view frames what begins with 0xC1
		w.names = append(w.names, name)
		w.keys = append(w.keys, keyPrefix+name)
		w.values = append(w.values, value)
	}
	return w
}
