package metrics

import "github.com/redisha/redisha/internal/conn"

// The topologies that have metrics of their own, as conn.Stats names them.
const (
	sentinelTopology = "sentinel"
	clusterTopology  = "cluster"
)

// switches is what a role has whose primary can change: it is followed, or there
// is a Cluster of them.
var switches = newTable(by("role"),
	counter("redisha_primary_switches_total",
		"Changes of primary after the first one was found. On Cluster those of any primary.",
		func(s *conn.PrimaryStats) uint64 { return s.Switches }),
)

// follower is what a role has whose primary is looked for, by Sentinels or among
// replicas.
var follower = newTable(by("role"),
	gauges("redisha_primary_down",
		"1 while no usable primary is known, 0 else.",
		nil, func(s *conn.Stats) []sample { return []sample{truth(s.Primary.Down)} }),
	counter("redisha_primary_outages_total",
		"Times without a usable primary that are over. The search for the first one is none.",
		func(s *conn.Stats) uint64 { return s.Primary.Outages }),
	counters("redisha_primary_outage_seconds_total",
		"Seconds that the outages of redisha_primary_outages_total took, together.",
		nil, func(s *conn.Stats) []sample {
			return []sample{{value: s.Primary.OutageTime.Seconds()}}
		}),
	counter("redisha_primary_waits_total",
		"Times that a command or pipeline waited for a usable primary.",
		func(s *conn.Stats) uint64 { return s.Waits }),
	gauge("redisha_resolver_configured_servers",
		"Servers that the configuration names to ask for the primary: Sentinels, or the primary and its replicas.",
		func(s *conn.Stats) int64 { return int64(s.Primary.Resolver.Configured) }),
	gauges("redisha_resolver_servers",
		"Servers that are asked for the primary, discovered ones included, by whether the last answer came in time.",
		by("state"), func(s *conn.Stats) []sample {
			r := s.Primary.Resolver
			return []sample{level(int64(r.Reachable), "reachable"), level(int64(max(r.Known-r.Reachable, 0)), "unreachable")}
		}),
	gauges("redisha_resolver_answer_age_seconds",
		"Seconds since any of these servers last answered. Missing before the first answer.",
		nil, func(s *conn.Stats) []sample {
			if s.Primary.Resolver.SinceAnswer == 0 {
				return nil
			}
			return []sample{{value: s.Primary.Resolver.SinceAnswer.Seconds()}}
		}),
	counter("redisha_resolver_polls_total",
		"Questions for the primary, one for each server.",
		func(s *conn.Stats) uint64 { return s.Primary.Resolver.Polls }),
	counter("redisha_resolver_poll_errors_total",
		"Questions for the primary without a usable answer.",
		func(s *conn.Stats) uint64 { return s.Primary.Resolver.PollErrors }),
	counter("redisha_resolver_conflicts_total",
		"Times that Sentinels began to name different primaries, or that more than one server began to say that it is the primary.",
		func(s *conn.Stats) uint64 { return s.Primary.Resolver.Disagreements + s.Primary.Resolver.TwoPrimaries }),
	counters("redisha_resolver_announcements_total",
		"Changes of primary that Sentinels announced, once for each Sentinel. Missing without Sentinels.",
		nil, ofSentinels(func(s *conn.Stats) uint64 { return s.Primary.Resolver.Announcements })),
	gauges("redisha_resolver_config_epoch",
		"The Sentinels' config-epoch of the primary. Missing without Sentinels.",
		nil, ofSentinels(func(s *conn.Stats) uint64 { return s.Primary.Resolver.ConfigEpoch })),
)

// ofSentinels reads what there is only with Sentinels.
func ofSentinels(read func(*conn.Stats) uint64) func(*conn.Stats) []sample {
	return func(s *conn.Stats) []sample {
		if s.Topology != sentinelTopology {
			return nil
		}
		return []sample{count(read(s))}
	}
}

// replicas is what a role has that reads from replicas.
var replicas = newTable(by("role"),
	gauges("redisha_replica_servers",
		"Replicas that are up. Missing on Cluster.",
		nil, func(s *conn.Stats) []sample {
			if s.Topology == clusterTopology {
				return nil
			}
			return []sample{level(int64(s.Replicas.Known))}
		}),
	counter("redisha_replica_fallbacks_total",
		"Reads and pipelines that went to the primary since no replica answered.",
		func(s *conn.Stats) uint64 { return s.Replicas.Fallbacks }),
)
