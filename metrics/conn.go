package metrics

import (
	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/conn"
)

// connection is what every role has: a client with a pool.
var connection = newTable(by("role"),
	gauges("redisha_connection_info",
		"Always 1. The topology that the role's client works with.",
		by("topology"), func(s *conn.Stats) []sample {
			return []sample{level(1, s.Topology)}
		}),
	gauges("redisha_pool_connections",
		"Connections that are open, by what they do: idle ones wait for a command, used ones serve one.",
		by("state"), func(s *conn.Stats) []sample {
			used := max(s.Pool.Total-s.Pool.Idle, 0) // the two are not read at one moment
			return []sample{level(int64(s.Pool.Idle), "idle"), level(int64(used), "used")}
		}),
	gauges("redisha_pool_max_connections",
		"Connections that may be open at most. Missing where it is not known.",
		nil, func(s *conn.Stats) []sample {
			if s.Pool.MaxTotal == 0 {
				return nil
			}
			return []sample{level(int64(s.Pool.MaxTotal))}
		}),
	gauge("redisha_pool_waiting_commands",
		"Commands that wait for a connection, or for one to be made.",
		func(s *conn.Stats) int64 { return int64(s.Pool.Waiting) }),
	counter("redisha_pool_hits_total",
		"Commands that found an idle connection.",
		func(s *conn.Stats) uint64 { return s.Pool.Hits }),
	counter("redisha_pool_misses_total",
		"Commands that found no idle connection and had to dial.",
		func(s *conn.Stats) uint64 { return s.Pool.Misses }),
	counter("redisha_pool_timeouts_total",
		"Commands that failed because no connection became free in time.",
		func(s *conn.Stats) uint64 { return s.Pool.Timeouts }),
	counter("redisha_pool_waits_total",
		"Commands that got a connection after waiting, all being in use.",
		func(s *conn.Stats) uint64 { return s.Pool.Waits }),
	counters("redisha_pool_wait_seconds_total",
		"Seconds that the commands of redisha_pool_waits_total waited, together.",
		nil, func(s *conn.Stats) []sample {
			return []sample{{value: s.Pool.Waited.Seconds()}}
		}),
	counter("redisha_pool_stale_connections_total",
		"Connections closed for their age, for idleness, or because the peer was gone.",
		func(s *conn.Stats) uint64 { return s.Pool.Stale }),
)

// ownConnection is what only clients count that redisha made.
var ownConnection = newTable(by("role"),
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
)

// circuits is the circuit breaker of a role that has one.
var circuits = newTable(by("role"),
	gauges("redisha_breaker_state",
		"1 for the state that a circuit of the breaker is in, 0 for the others. The circuit server is for all commands, writes for those that store new data.",
		by("circuit", "state"), func(s *conn.BreakerStats) []sample {
			var all []sample
			for _, circuit := range []struct{ name, state string }{{"server", s.State}, {"writes", s.WriteState}} {
				for _, state := range []breaker.State{breaker.StateClosed, breaker.StateHalfOpen, breaker.StateOpen} {
					var in int64
					if circuit.state == state.String() {
						in = 1
					}
					all = append(all, level(in, circuit.name, state.String()))
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
