package broker

import (
	"errors"
	"time"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/stats"
)

// Stats is what a client and its workers did and do. Counts run since the client
// was made.
type Stats struct {
	// Conn is the connection's.
	Conn conn.Stats

	// Published counts the tasks published.
	Published uint64

	// Duplicates counts the publishes under a given ID, or with a unique key,
	// that was there already.
	Duplicates uint64

	// PublishErrors counts the publishes that failed, Unconfirmed those of
	// them whose outcome or confirmation is not known. Degraded counts those that
	// returned nil without their confirmation, because of Config.DegradeAfter.
	PublishErrors, Unconfirmed, Degraded uint64

	// Ticks counts the ticks of periodic tasks that schedulers published, those
	// included that another one had published before; MissedTicks those that it
	// was too late for.
	Ticks, MissedTicks uint64

	// Batches counts the round trips that published, Resent those of them that
	// were tried again, and LostBatches those that Redis had and has no record
	// of any more: so many at most held tasks that were lost undone. After a
	// loss of all data these are all that there ever were.
	Batches, Resent, LostBatches uint64

	// PublishTime is how long publishes took, those that failed included.
	PublishTime stats.HistogramSnapshot

	// Running is the number of handlers that run now.
	Running int64

	// Started counts the handlers started. Each ends in one of the following.
	Started uint64

	// Succeeded, Retried, and Dead count the verdicts; Released the tasks given
	// back by a stopping worker, for want of a handler, or by [Snooze]. Dead includes tasks
	// that were not started: undecodable ones and poison.
	Succeeded, Retried, Dead, Released uint64

	// Cancelled counts the tasks that ended because they were cancelled, Expired
	// those that were not started in time.
	Cancelled, Expired uint64

	// Panics counts the handlers that panicked; they count as Retried or Dead too.
	Panics uint64

	// WaitTime is how long tasks were ready before they were started, RunTime
	// how long the handlers took.
	WaitTime, RunTime stats.HistogramSnapshot

	// Lost counts the verdicts that came too late: the task had been given to
	// another worker, or Redis had lost it.
	Lost uint64

	// LeasesLost counts the times that a worker could not renew a lease.
	LeasesLost uint64

	// Recovered counts the tasks whose delivery a worker found only when it
	// looked: the reply that brought them was lost.
	Recovered uint64

	// Reaped counts the tasks taken from dead workers, Due the delayed ones
	// that became ready, by the maintenance in this process.
	Reaped, Due uint64

	// FetchErrors and SettleErrors count the failed calls that fetch tasks and
	// that store verdicts, MaintainErrors those of the maintenance.
	FetchErrors, SettleErrors, MaintainErrors uint64
}

type counts struct {
	published, duplicates, publishErrors, unconfirmed stats.Counter
	degraded, ticks, missedTicks                      stats.Counter
	batches, resent, lostBatches                      stats.Counter
	publishTime                                       stats.Histogram
	running                                           stats.Gauge
	started, succeeded, retried, dead, released       stats.Counter
	cancelled, expired                                stats.Counter
	panics, lost, leasesLost, recovered, reaped, due  stats.Counter
	fetchErrors, settleErrors, maintainErrors         stats.Counter
	waitTime, runTime                                 stats.Histogram
}

func (c *counts) observePublish(d time.Duration, err error) {
	c.publishTime.Observe(d)
	if err != nil {
		c.publishFailed(err)
	}
}

func (c *counts) publishFailed(err error) {
	c.publishErrors.Inc()
	if errors.Is(err, ErrUnconfirmed) {
		c.unconfirmed.Inc()
	}
}

// Stats returns what the client and its workers did and do.
func (c *Client) Stats() Stats {
	n := &c.counts
	return Stats{
		Conn:      c.conn.Stats(),
		Published: n.published.Load(), Duplicates: n.duplicates.Load(),
		PublishErrors: n.publishErrors.Load(), Unconfirmed: n.unconfirmed.Load(), Degraded: n.degraded.Load(),
		Ticks: n.ticks.Load(), MissedTicks: n.missedTicks.Load(),
		Batches: n.batches.Load(), Resent: n.resent.Load(), LostBatches: n.lostBatches.Load(),
		PublishTime: n.publishTime.Snapshot(),
		Running:     n.running.Load(), Started: n.started.Load(),
		Succeeded: n.succeeded.Load(), Retried: n.retried.Load(), Dead: n.dead.Load(), Released: n.released.Load(),
		Panics: n.panics.Load(), WaitTime: n.waitTime.Snapshot(), RunTime: n.runTime.Snapshot(),
		Cancelled: n.cancelled.Load(), Expired: n.expired.Load(),
		Lost: n.lost.Load(), LeasesLost: n.leasesLost.Load(), Recovered: n.recovered.Load(),
		Reaped: n.reaped.Load(), Due: n.due.Load(),
		FetchErrors: n.fetchErrors.Load(), SettleErrors: n.settleErrors.Load(), MaintainErrors: n.maintainErrors.Load(),
	}
}
