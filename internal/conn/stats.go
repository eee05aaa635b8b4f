package conn

import (
	"time"

	"github.com/redis/go-redis/v9"

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
	Stale    uint64        // connections closed for their age, idleness or a broken peer
}

// BreakerStats describes the circuit breaker.
type BreakerStats struct {
	Enabled    bool
	State      string // closed, half-open or open; "" if not enabled
	WriteState string // the same for commands that store new data
	Trips      uint64 // changes of State to open
	WriteTrips uint64 // changes of WriteState to open
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
	if c.breaker != nil {
		n := c.breaker.Counts()
		s.Breaker = BreakerStats{
			Enabled: true, State: c.breaker.State().String(), WriteState: c.breaker.WriteState().String(),
			Trips: n.Trips, WriteTrips: n.WriteTrips, Failures: n.Failures, Rejected: n.Rejected,
		}
	}
	if rdb, ok := c.UniversalClient.(*redis.Client); ok {
		s.Pool.MaxTotal = rdb.Options().PoolSize
	}
	p := c.PoolStats()
	s.Pool.Total, s.Pool.Idle, s.Pool.Waiting = int(p.TotalConns), int(p.IdleConns), int(p.PendingRequests)
	s.Pool.Hits, s.Pool.Misses, s.Pool.Timeouts = uint64(p.Hits), uint64(p.Misses), uint64(p.Timeouts)
	s.Pool.Waits, s.Pool.Waited = uint64(p.WaitCount), time.Duration(p.WaitDurationNs)
	s.Pool.Stale = uint64(p.StaleConns)
	return s
}
