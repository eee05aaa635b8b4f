package metrics

import (
	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/internal/stats"
)

// queues is what a broker and its workers count.
var queues = newTable(nil,
	counter("redisha_broker_published_total",
		"Tasks published.",
		func(s *broker.Stats) uint64 { return s.Published }),
	counter("redisha_broker_duplicates_total",
		"Publishes under a given ID, or with a unique key, that was there already.",
		func(s *broker.Stats) uint64 { return s.Duplicates }),
	counter("redisha_broker_unconfirmed_total",
		"Publishes whose outcome or confirmation is not known. They are in redisha_broker_errors_total too.",
		func(s *broker.Stats) uint64 { return s.Unconfirmed }),
	counter("redisha_broker_degraded_total",
		"Publishes that returned without their confirmation, because of Config.DegradeAfter.",
		func(s *broker.Stats) uint64 { return s.Degraded }),
	counters("redisha_broker_ticks_total",
		"Ticks of periodic tasks, published (by this process or another one before it) or missed.",
		by("outcome"), func(s *broker.Stats) []sample {
			return []sample{count(s.Ticks, "published"), count(s.MissedTicks, "missed")}
		}),
	histogram("redisha_broker_publish_duration_seconds",
		"Seconds that publishes took, failed ones included.",
		func(s *broker.Stats) stats.HistogramSnapshot { return s.PublishTime }),
	counter("redisha_broker_batches_total",
		"Round trips that published.",
		func(s *broker.Stats) uint64 { return s.Batches }),
	counter("redisha_broker_resent_batches_total",
		"Batches of publishes that were sent again, their answer being lost.",
		func(s *broker.Stats) uint64 { return s.Resent }),
	counter("redisha_broker_lost_batches_total",
		"Batches of publishes that Redis had answered and has no record of any more, as after a failover; at most so many held tasks that were not done.",
		func(s *broker.Stats) uint64 { return s.LostBatches }),

	counter("redisha_broker_started_total",
		"Handlers started.",
		func(s *broker.Stats) uint64 { return s.Started }),
	gauge("redisha_broker_running_handlers",
		"Handlers that run now.",
		func(s *broker.Stats) int64 { return s.Running }),
	counters("redisha_broker_deliveries_total",
		"Deliveries that ended: succeeded, to be retried, set aside as dead letters, given back (released), cancelled, or too late to be started (expired). Dead ones include tasks never started: undecodable or poison.",
		by("outcome"), func(s *broker.Stats) []sample {
			return []sample{
				count(s.Succeeded, "succeeded"), count(s.Retried, "retried"),
				count(s.Dead, "dead"), count(s.Released, "released"),
				count(s.Cancelled, "cancelled"), count(s.Expired, "expired"),
			}
		}),
	counter("redisha_broker_panics_total",
		"Handlers that panicked. Their deliveries end as retried or dead.",
		func(s *broker.Stats) uint64 { return s.Panics }),
	histogram("redisha_broker_wait_duration_seconds",
		"Seconds that tasks were ready before they were started.",
		func(s *broker.Stats) stats.HistogramSnapshot { return s.WaitTime }),
	histogram("redisha_broker_run_duration_seconds",
		"Seconds that handlers took.",
		func(s *broker.Stats) stats.HistogramSnapshot { return s.RunTime }),

	counter("redisha_broker_late_verdicts_total",
		"Verdicts that came too late: the task had been given to another worker, or Redis had lost it.",
		func(s *broker.Stats) uint64 { return s.Lost }),
	counter("redisha_broker_leases_lost_total",
		"Times that a worker could not renew a lease.",
		func(s *broker.Stats) uint64 { return s.LeasesLost }),
	counter("redisha_broker_recovered_tasks_total",
		"Tasks whose delivery a worker found only when it looked, the reply that brought them being lost.",
		func(s *broker.Stats) uint64 { return s.Recovered }),
	counter("redisha_broker_reaped_tasks_total",
		"Tasks taken from dead workers by this process.",
		func(s *broker.Stats) uint64 { return s.Reaped }),
	counter("redisha_broker_due_tasks_total",
		"Delayed tasks made ready by this process.",
		func(s *broker.Stats) uint64 { return s.Due }),
	counters("redisha_broker_errors_total",
		"Failures, by operation: publishes of a task, and calls that fetch tasks, store verdicts (settle) or do the maintenance (maintain).",
		by("operation"), func(s *broker.Stats) []sample {
			return []sample{
				count(s.PublishErrors, "publish"), count(s.FetchErrors, "fetch"),
				count(s.SettleErrors, "settle"), count(s.MaintainErrors, "maintain"),
			}
		}),
)
