package breaker

import (
	"fmt"
	"sync/atomic"
)

// State is the state of a breaker.
type State int32

const (
	StateClosed   State = iota // commands pass
	StateHalfOpen              // one command at a time passes, as the probe
	StateOpen                  // commands are refused
)

func (s State) String() string {
	switch s {
	case StateClosed:
		return "closed"
	case StateHalfOpen:
		return "half-open"
	case StateOpen:
		return "open"
	}
	return fmt.Sprintf("State(%d)", int32(s))
}

// State returns the state of the breaker; always StateClosed if it is disabled.
// An open breaker becomes half-open when Config.OpenFor is over, whether or not
// a command comes.
func (h *Hook) State() State { return h.all.Load().State() }

// WriteState is the state of the circuit for commands that store new data,
// which opens when the server answers OOM, READONLY, NOREPLICAS or MISCONF.
func (h *Hook) WriteState() State { return h.writes.Load().State() }

// Counts are totals since the hook was made; a pipeline counts as one. Reading
// them costs a few atomic loads, and they may be a moment apart.
type Counts struct {
	Requests      uint64 // the server was asked: the sum of the next four
	Successes     uint64 // any reply that is none of the others
	Failures      uint64
	WriteFailures uint64 // replies OOM, READONLY, NOREPLICAS, MISCONF
	Neutral       uint64 // say nothing about the server

	PoolTimeouts uint64 // of Neutral: no connection was free in time
	Rejected     uint64 // refused with ErrOpen, and not in Requests
	Bypassed     uint64 // of Requests: passed an open breaker by Bypass
	DialFailures uint64
	Trips        uint64 // moves from StateClosed to StateOpen: not probes that fail
	WriteTrips   uint64 // the same of WriteState
}

// tally is where Counts are kept.
type tally struct {
	outcomes                                            [failed + 1]atomic.Uint64
	rejected, bypassed, dialFailures, trips, writeTrips atomic.Uint64
}

// Counts returns the totals.
func (h *Hook) Counts() Counts {
	t := &h.tally
	c := Counts{
		Successes:     t.outcomes[alive].Load(),
		Failures:      t.outcomes[failed].Load(),
		WriteFailures: t.outcomes[writeRefused].Load(),
		PoolTimeouts:  t.outcomes[poolTimeout].Load(),
		Rejected:      t.rejected.Load(),
		Bypassed:      t.bypassed.Load(),
		DialFailures:  t.dialFailures.Load(),
		Trips:         t.trips.Load(),
		WriteTrips:    t.writeTrips.Load(),
	}
	c.Neutral = t.outcomes[neutral].Load() + c.PoolTimeouts
	c.Requests = c.Successes + c.Failures + c.WriteFailures + c.Neutral
	return c
}
