package metrics

import (
	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/conn"
)

// perNode are the labels of what each client of a server has. Most roles have
// one, and its node is "", which to Prometheus is as if there was no such label;
// a quorum of locks has one for each of its servers.
var perNode = by("role", "node")

// connection is what every role has: a client with a pool.
var connection = newTable(perNode,
	gauges("redisha_connection_info",
		"Always 1. The topology that the role's client works with.",
		by("topology"), func(s *conn.Stats) []sample {
			return []sample{level(1, s.Topology)}
		}),
)

// Each role has a pool, and another one if it reads from replicas.
var (
	pools        = newPool(perNode, "redisha_pool", "")
	replicaPools = newPool(by("role"), "redisha_replica_pool", " to replicas")
)

// newPool is the table of a pool, whose connections lead where leading says.
func newPool(labels []string, prefix, leading string) table[conn.PoolStats] {
	return newTable(labels,
		gauges(prefix+"_connections",
			"Connections"+leading+" that are open, by what they do: idle ones wait for a command, used ones serve one.",
			by("state"), func(s *conn.PoolStats) []sample {
				used := max(s.Total-s.Idle, 0) // the two are not read at one moment
				return []sample{level(int64(s.Idle), "idle"), level(int64(used), "used")}
			}),
		gauges(prefix+"_max_connections",
			"Connections"+leading+" that may be open at most. Missing where it is not known.",
			nil, func(s *conn.PoolStats) []sample {
				if s.MaxTotal == 0 {
					return nil
				}
				return []sample{level(int64(s.MaxTotal))}
			}),
		gauge(prefix+"_waiting_commands",
			"Commands that wait for a connection"+leading+", or for one to be made.",
			func(s *conn.PoolStats) int64 { return int64(s.Waiting) }),
		counter(prefix+"_hits_total",
			"Commands that found an idle connection"+leading+".",
			func(s *conn.PoolStats) uint64 { return s.Hits }),
		counter(prefix+"_misses_total",
			"Commands that found no idle connection"+leading+" and had to dial.",
			func(s *conn.PoolStats) uint64 { return s.Misses }),
		counter(prefix+"_timeouts_total",
			"Commands that failed because no connection"+leading+" became free in time.",
			func(s *conn.PoolStats) uint64 { return s.Timeouts }),
		counter(prefix+"_waits_total",
			"Commands that got a connection"+leading+" after waiting, all being in use.",
			func(s *conn.PoolStats) uint64 { return s.Waits }),
		counters(prefix+"_wait_seconds_total",
			"Seconds that the commands of "+prefix+"_waits_total waited, together.",
			nil, func(s *conn.PoolStats) []sample {
				return []sample{{value: s.Waited.Seconds()}}
			}),
		counter(prefix+"_stale_connections_total",
			"Connections"+leading+" that a command was to take and that were found closed, too old, or idle for too long.",
			func(s *conn.PoolStats) uint64 { return s.Stale }),
	)
}

// Connections that a cleaner closes exist in clients that redisha made.
var (
	cleaned        = newCleaned(perNode, "redisha_pool", "")
	replicaCleaned = newCleaned(by("role"), "redisha_replica_pool", " to replicas")
)

func newCleaned(labels []string, prefix, leading string) table[conn.PoolStats] {
	return newTable(labels,
		counter(prefix+"_cleaned_connections_total",
			"Connections"+leading+" closed for their idleness before a command was to take them.",
			func(s *conn.PoolStats) uint64 { return s.Cleaned }))
}

// ownConnection is what only clients count that redisha made.
var ownConnection = newTable(perNode,
	counter("redisha_connection_dials_total",
		"Connections begun.",
		func(s *conn.Stats) uint64 { return s.Dials }),
	counter("redisha_connection_dial_errors_total",
		"Connections that could not be made. What fails after the dial, such as the password, is in redisha_command_errors_total.",
		func(s *conn.Stats) uint64 { return s.DialErrors }),
	histograms("redisha_command_duration_seconds",
		"Seconds that commands took, failed ones included. A pipeline or transaction counts once. The time of blocking commands is mostly waiting.",
		by("family"), func(s *conn.Stats) []sample {
			var all []sample
			for _, f := range s.Commands.Latency {
				all = append(all, times(f.HistogramSnapshot, f.Family))
			}
			return all
		}),
	counters("redisha_command_errors_total",
		"Commands that failed, by reason. In pipelines and transactions each command counts.",
		by("class"), func(s *conn.Stats) []sample {
			var all []sample
			for _, e := range s.Commands.Errors {
				all = append(all, count(e.Count, e.Class))
			}
			return all
		}),
	counter("redisha_command_pipelined_total",
		"Commands sent inside pipelines and transactions.",
		func(s *conn.Stats) uint64 { return s.Commands.Pipelined }),
	counter("redisha_command_repeats_total",
		"Attempts after the first one, of commands and pipelines that may be sent again.",
		func(s *conn.Stats) uint64 { return s.Repeats }),
	counter("redisha_command_unknown_outcomes_total",
		"Commands that were sent and got no reply, and must not be sent again: they may have been executed.",
		func(s *conn.Stats) uint64 { return s.OutcomeUnknown }),
)

// circuits is the circuit breaker of a role that has one.
var circuits = newTable(perNode,
	gauges("redisha_breaker_state",
		"1 for the state that a circuit of the breaker is in, 0 for the others. The circuit server is for all commands, writes for those that store new data.",
		by("circuit", "state"), func(s *conn.BreakerStats) []sample {
			var all []sample
			for _, circuit := range []struct{ name, state string }{{"server", s.State}, {"writes", s.WriteState}} {
				for _, state := range []breaker.State{breaker.StateClosed, breaker.StateHalfOpen, breaker.StateOpen} {
					all = append(all, truth(circuit.state == state.String(), circuit.name, state.String()))
				}
			}
			return all
		}),
	counters("redisha_breaker_trips_total",
		"Times that a circuit of the breaker opened.",
		by("circuit"), func(s *conn.BreakerStats) []sample {
			return []sample{count(s.Trips, "server"), count(s.WriteTrips, "writes")}
		}),
	counter("redisha_breaker_failures_total",
		"Commands and pipelines that count against the server.",
		func(s *conn.BreakerStats) uint64 { return s.Failures }),
	counter("redisha_breaker_rejected_total",
		"Commands and pipelines refused without asking the server, while the breaker was open.",
		func(s *conn.BreakerStats) uint64 { return s.Rejected }),
)
