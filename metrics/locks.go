package metrics

import (
	"slices"

	"github.com/redisha/redisha/internal/stats"
	"github.com/redisha/redisha/lock"
)

// locks is what a client of locks counts for each class.
var locks = newTable(by("class"),
	counters("redisha_locks_acquisitions_total",
		"Calls that acquire a lock, by how they ended: with a lease (acquired), with another one holding the key (not_acquired), or with an error (failed).",
		by("outcome"), func(s *lock.ClassStats) []sample {
			return []sample{count(s.Acquired, "acquired"), count(s.NotAcquired, "not_acquired"), count(s.Failed, "failed")}
		}),
	histogram("redisha_locks_wait_duration_seconds",
		"Seconds from the call of Acquire or Do to the lease.",
		func(s *lock.ClassStats) stats.HistogramSnapshot { return s.Wait }),
	gauge("redisha_locks_waiting_calls",
		"Calls of Acquire and Do that wait now.",
		func(s *lock.ClassStats) int64 { return s.Waiting }),
	gauge("redisha_locks_held_leases",
		"Leases held now.",
		func(s *lock.ClassStats) int64 { return s.Held }),
	histogram("redisha_locks_hold_duration_seconds",
		"Seconds from the lease to its release or loss.",
		func(s *lock.ClassStats) stats.HistogramSnapshot { return s.Hold }),
	counters("redisha_locks_releases_total",
		"Releases of leases that were held: released, or failed, of which it is unknown whether they arrived.",
		by("outcome"), func(s *lock.ClassStats) []sample {
			return []sample{count(s.Released, "released"), count(s.ReleaseFailed, "failed")}
		}),
	counters("redisha_locks_lost_total",
		"Leases lost, by cause: not renewed in time (expired), key deleted or another's (refused), a jump of the machine's clock (clock), or an endpoint found to take no locks any more (endpoint).",
		by("cause"), func(s *lock.ClassStats) []sample {
			var all []sample
			for _, n := range s.Lost {
				all = append(all, count(n.Count, n.Cause))
			}
			return all
		}),
)

// renewals is what a client of locks counts for all classes together.
var renewals = newTable(nil,
	counters("redisha_locks_renewals_total",
		"Renewals of one lease: renewed, or failed for want of an answer.",
		by("outcome"), func(s *lock.Stats) []sample {
			return []sample{count(s.Renewed, "renewed"), count(s.RenewFailed, "failed")}
		}),
	histogram("redisha_locks_handover_duration_seconds",
		"Seconds from a holder's release to the lease of who waited for it, by the server's clock.",
		func(s *lock.Stats) stats.HistogramSnapshot { return s.HandOver }),
)

// lockNodes is what a client of locks knows of each of its servers.
var lockNodes = newTable(by("node"),
	gauges("redisha_locks_endpoint_state",
		"1 for what was found at the endpoint, 0 for the others: whether its server may fail over or evict keys, which can hand one lock to two holders.",
		by("state"), func(s *lock.NodeStats) []sample {
			return eachTruth(s.Endpoint, "unknown", "safe", "replicas", "unprobed", "evicting", "failover_managed", "replica", "sentinel")
		}),
	gauges("redisha_locks_endpoint_refused",
		"1 while no leases are handed out for what was found at the endpoint, 0 else.",
		nil, func(s *lock.NodeStats) []sample { return []sample{truth(s.Refused)} }),
)

// quorumNodes is what a quorum of locks knows of each of its servers.
var quorumNodes = newTable(by("node"),
	gauges("redisha_locks_node_absent",
		"1 for the reason why a node of a quorum takes no part in new leases: it does not answer (silent), was started too lately (young), or is not what a quorum wants (unfit). 0 else.",
		by("reason"), func(s *lock.NodeStats) []sample {
			return eachTruth(s.Absent, "silent", "young", "unfit")
		}),
)

// eachTruth has a sample for each of the names, and for what holds if it is not
// among them: 1 for what holds, 0 for the others. "" is nothing.
func eachTruth(holds string, names ...string) []sample {
	if holds != "" && !slices.Contains(names, holds) {
		names = append(names, holds)
	}
	var all []sample
	for _, name := range names {
		all = append(all, truth(name == holds, name))
	}
	return all
}
