package conn

import (
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/resolve"
	"github.com/redisha/redisha/internal/stats"
)

// Stats is what a client did and holds. Counts run since it was made.
type Stats struct {
	Role       string // as in cache.Config, "" for a client that redisha did not make
	Configured bool   // false for a role without endpoint, which never connects
	Topology   string // standalone, sentinel, …
	Pool       PoolStats
	Commands   stats.CommandsSnapshot // empty for a client that redisha did not make
	Dials      uint64                 // connections begun
	// DialErrors counts the connections that could not be made. What fails
	// after the dial, such as the password, is in Commands.
	DialErrors uint64
	Breaker    BreakerStats

	Repeats        uint64 // attempts after the first, of commands whose first one failed
	OutcomeUnknown uint64 // commands that ended with ErrOutcomeUnknown
	Waits          uint64 // commands that waited for a primary to be found
	Primary        PrimaryStats
	Replicas       ReplicaStats
}

// PrimaryStats describes the search for the primary. Only Switches counts on
// Cluster; all is zero where there is one server.
type PrimaryStats struct {
	Followed bool   // it is looked for: by Sentinels, or among replicas
	Addr     string // where it is believed to be; "" if unknown
	Switches uint64 // changes of primary, on Cluster of any
	Down     bool   // no usable one is known at present

	Outages    uint64        // times without a usable primary that are over
	OutageTime time.Duration // how long those were, together
	LastOutage time.Duration

	Resolver resolve.Stats
}

// ReplicaStats describes the reading from replicas.
type ReplicaStats struct {
	Enabled   bool
	Pool      PoolStats
	Known     int    // replicas that are up; 0 on Cluster, where go-redis knows
	Fallbacks uint64 // reads and pipelines that went to the primary since no replica answered
}

// PoolStats describes the pool of connections.
type PoolStats struct {
	MaxTotal int // connections at most; 0 if unknown
	Total    int // connections open
	Idle     int // those of them that wait for a command
	Waiting  int // commands that wait for a connection

	Hits     uint64        // commands that found an idle connection
	Misses   uint64        // commands that had to dial
	Timeouts uint64        // commands that waited MaxWait in vain
	Waits    uint64        // commands that waited for a connection and got one
	Waited   time.Duration // how long those did, together
	Stale    uint64        // connections found dead, too old or too long idle when a command was to take them
	Cleaned  uint64        // connections closed since they were idle for IdleTimeout
}

// BreakerStats describes the circuit breaker.
type BreakerStats struct {
	Enabled    bool
	State      string // closed, half-open or open; "" if not enabled
	WriteState string // the same for commands that store new data
	Trips      uint64 // changes of State from closed to open
	WriteTrips uint64 // changes of WriteState from closed to open
	Failures   uint64 // commands and pipelines that count against the server
	Rejected   uint64 // commands and pipelines refused while it was open
}

// Stats returns what the client did and holds.
func (c *Client) Stats() Stats {
	s := Stats{
		Role:       c.role,
		Configured: c.reason == nil,
		Topology:   string(c.topology),
		Commands:   c.commands.Snapshot(),
		Dials:      c.dials.Load(),
		DialErrors: c.undialed.Load(),
	}
	if c.breakers != nil {
		s.Breaker = c.breakers.stats()
	}
	s.Repeats, s.OutcomeUnknown, s.Waits = c.repeats.Load(), c.unknown.Load(), c.waits.Load()
	s.Pool = c.pool()
	s.Primary.Switches = c.epochs.n.Load()
	if f := c.follower; f != nil {
		s.Primary.Followed, s.Primary.Addr = true, f.resolver.State().Primary
		s.Primary.Down = f.barrier.down.Load() != nil
		s.Primary.Outages, s.Primary.OutageTime = f.barrier.outages.Load(), time.Duration(f.barrier.time.Load())
		s.Primary.LastOutage = time.Duration(f.barrier.last.Load())
		s.Primary.Resolver = f.resolver.Stats()
		s.Replicas.Known = len(f.resolver.State().Replicas)
	}
	if r := c.reader; r != nil {
		s.Replicas.Enabled, s.Replicas.Pool, s.Replicas.Fallbacks = true, r.own.pool(), r.fallbacks.Load()
	}
	return s
}

// pool returns the pool's statistics, without the connections that were closed
// here and that go-redis has not missed yet.
func (c *Client) pool() PoolStats {
	s := PoolStats{MaxTotal: c.maxTotal, Cleaned: c.registry.cleaned.Load()}
	if rdb, ok := c.UniversalClient.(*redis.Client); ok && !c.own {
		s.MaxTotal = rdb.Options().PoolSize
	}
	p := c.PoolStats()
	ghosts := max(int(c.registry.ghosts.Load()), 0)
	s.Total, s.Idle, s.Waiting = max(int(p.TotalConns)-ghosts, 0), max(int(p.IdleConns)-ghosts, 0), int(p.PendingRequests)
	s.Hits, s.Misses, s.Timeouts = uint64(p.Hits), uint64(p.Misses), uint64(p.Timeouts)
	s.Waits, s.Waited = uint64(p.WaitCount), time.Duration(p.WaitDurationNs)
	s.Stale = uint64(p.StaleConns)
	return s
}
