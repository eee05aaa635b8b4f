package metrics

import (
	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/stats"
)

// results is what a result backend counts.
var results = newTable(nil,
	counters("redisha_results_stored_total",
		"Records stored, by the state of their task.",
		by("state"), func(s *result.Stats) []sample {
			var all []sample
			for _, n := range s.Stored {
				all = append(all, count(n.Count, n.State))
			}
			return all
		}),
	counter("redisha_results_refused_total",
		"Records not stored because a final one, or a later one, was there.",
		func(s *result.Stats) uint64 { return s.Refused }),
	counter("redisha_results_too_large_total",
		"Records not stored because they exceed Config.MaxValueBytes.",
		func(s *result.Stats) uint64 { return s.TooLarge }),
	counter("redisha_results_unannounced_total",
		"Records stored whose wake-up the server refused: waiters find them up to five seconds later.",
		func(s *result.Stats) uint64 { return s.Unannounced }),
	gauge("redisha_results_waiters",
		"Calls of Wait that wait now.",
		func(s *result.Stats) int64 { return s.Waiters }),
	histogram("redisha_results_wait_duration_seconds",
		"Seconds that waits took which ended with a final state.",
		func(s *result.Stats) stats.HistogramSnapshot { return s.Waits }),
	counter("redisha_results_healed_waits_total",
		"Waits whose final state was found by a periodic read: a wake-up was lost, or there is no subscription.",
		func(s *result.Stats) uint64 { return s.Healed }),
	gauge("redisha_results_subscriptions",
		"Tasks to whose wake-ups the process is subscribed.",
		func(s *result.Stats) int64 { return s.Subscriptions }),
	counter("redisha_results_subscription_gaps_total",
		"Times that the subscription's connection broke or was refused.",
		func(s *result.Stats) uint64 { return s.Gaps }),
)
