package lock

import (
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/stats"
)

// Stats is what a client did and holds. Counts run since it was made.
type Stats struct {
	Conn conn.Stats // the connection's

	Acquired    uint64 // leases handed out
	NotAcquired uint64 // calls that ended since another held the key
	Failed      uint64 // calls that ended with another error

	Released      uint64 // leases given back while they were held
	ReleaseFailed uint64 // releases of which it is unknown whether they arrived
	Lost          []LossCount

	Renewed     uint64 // renewals of one lease that succeeded
	RenewFailed uint64 // renewals of one lease that got no answer, or an error

	Held    int64 // leases held now
	Waiting int64 // calls of Acquire and Do that wait now

	Wait stats.HistogramSnapshot // from the call to the lease, of Acquire and Do
	Hold stats.HistogramSnapshot // from the lease to its release or loss
}

// A LossCount counts the leases that were lost by one cause. All causes are
// listed, also those that are still at zero:
//
//	expired  not renewed in time
//	refused  the key was deleted, or another's
//	clock    the machine's clock jumped, as after it was suspended
type LossCount struct {
	Cause string
	Count uint64
}

// A lossCause says why a lease was lost.
type lossCause uint8

const (
	expired lossCause = iota
	refused
	clockJump
	lossCauses
)

var lossNames = [lossCauses]string{"expired", "refused", "clock"}

// lossReasons are for people.
var lossReasons = [lossCauses]string{
	"it was not renewed in time",
	"its key was deleted, or another holds it",
	"the machine's clock jumped",
}

type counters struct {
	acquired, notAcquired, failed stats.Counter
	released, releaseFailed       stats.Counter
	lost                          [lossCauses]stats.Counter
	renewed, renewFailed          stats.Counter
	waiting                       stats.Gauge
	wait, hold                    stats.Histogram
}

// Stats returns what the client did and holds.
func (c *Client) Stats() Stats {
	n := &c.counts
	s := Stats{
		Conn:          c.conn.Stats(),
		Acquired:      n.acquired.Load(),
		NotAcquired:   n.notAcquired.Load(),
		Failed:        n.failed.Load(),
		Released:      n.released.Load(),
		ReleaseFailed: n.releaseFailed.Load(),
		Lost:          make([]LossCount, lossCauses),
		Renewed:       n.renewed.Load(),
		RenewFailed:   n.renewFailed.Load(),
		Held:          int64(c.renewer.len()),
		Waiting:       n.waiting.Load(),
		Wait:          n.wait.Snapshot(),
		Hold:          n.hold.Snapshot(),
	}
	for cause := range lossCauses {
		s.Lost[cause] = LossCount{Cause: lossNames[cause], Count: n.lost[cause].Load()}
	}
	return s
}
