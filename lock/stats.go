package lock

import (
	"slices"
	"strings"
	"sync"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/stats"
)

// Stats is what a client did and holds. Counts run since it was made.
type Stats struct {
	Nodes   []NodeStats  // the server, or those of the quorum in the order given
	Classes []ClassStats // sorted by name

	Renewed     uint64 // renewals of one lease that succeeded
	RenewFailed uint64 // renewals of one lease that got no answer, or an error

	HandOver stats.HistogramSnapshot // from one holder's release to the next one's lease, by the server's clock
}

// NodeStats is what a client has to do with one server.
type NodeStats struct {
	Addr string // host:port, or several with a comma in between; "" if the client does not tell

	// Endpoint is what was found there last, the gravest of it:
	//
	//	unknown           it was not asked yet
	//	safe              nothing that fails over
	//	replicas          a primary with replicas, or a Cluster with some
	//	unprobed          it did not tell: forbidden, a proxy, or not Redis
	//	evicting          it evicts keys when its memory is full
	//	failover_managed  a primary that Sentinels watch
	//	replica           a replica
	//	sentinel          a Sentinel
	//
	// Refused tells that no leases are handed out there for that, now or less than
	// a minute ago.
	Endpoint string
	Refused  bool

	// Absent says why a node of a quorum takes no part in new leases at present, if
	// it does not: "silent", it does not answer; "young", it was started within the
	// longest TTL; "unfit", it is not what a quorum wants.
	Absent string

	Conn conn.Stats // the connection's
}

// ClassStats counts the leases of one class: see [Class].
type ClassStats struct {
	Class string

	Acquired    uint64 // leases handed out
	NotAcquired uint64 // calls that ended since another held the key
	Failed      uint64 // calls that ended with another error

	Released      uint64 // leases given back while they were held
	ReleaseFailed uint64 // releases of which it is unknown whether they arrived
	Lost          []LossCount

	Held    int64 // leases held now
	Waiting int64 // calls of Acquire and Do that wait now

	Wait stats.HistogramSnapshot // from the call to the lease, of Acquire and Do
	Hold stats.HistogramSnapshot // from the lease to its release or loss
}

// A LossCount counts the leases that were lost by one cause. All causes are
// listed, also those that are still at zero:
//
//	expired   not renewed in time
//	refused   the key was deleted, or another's
//	clock     the machine's clock jumped, as after it was suspended
//	endpoint  the endpoint was found to take no locks any more
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
	unsafe
	lossCauses
)

var lossNames = [lossCauses]string{"expired", "refused", "clock", "endpoint"}

// lossReasons are for people.
var lossReasons = [lossCauses]string{
	"it was not renewed in time",
	"its key was deleted, or another holds it",
	"the machine's clock jumped",
	"the endpoint takes no locks any more",
}

const (
	maxClasses = 64
	otherClass = "other"
)

type counters struct {
	renewed, renewFailed stats.Counter
	handOver             stats.Histogram

	mu      sync.RWMutex
	classes map[string]*classCounts
}

type classCounts struct {
	acquired, notAcquired, failed stats.Counter
	released, releaseFailed       stats.Counter
	lost                          [lossCauses]stats.Counter
	held, waiting                 stats.Gauge
	wait, hold                    stats.Histogram
}

// class returns the counts of a class, or those of the rest.
func (n *counters) class(name string) *classCounts {
	n.mu.RLock()
	c := n.classes[name]
	n.mu.RUnlock()
	if c != nil {
		return c
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.classes) >= maxClasses {
		name = otherClass
	}
	if c = n.classes[name]; c == nil {
		c = new(classCounts)
		n.classes[name] = c
	}
	return c
}

// Stats returns what the client did and holds.
func (c *Client) Stats() Stats {
	if !c.made() {
		return Stats{}
	}
	n := &c.counts
	s := Stats{
		Nodes:       c.store.nodes(),
		Renewed:     n.renewed.Load(),
		RenewFailed: n.renewFailed.Load(),
		HandOver:    n.handOver.Snapshot(),
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	for name, counts := range n.classes {
		s.Classes = append(s.Classes, counts.stats(name))
	}
	slices.SortFunc(s.Classes, func(a, b ClassStats) int { return strings.Compare(a.Class, b.Class) })
	return s
}

func (n *classCounts) stats(class string) ClassStats {
	s := ClassStats{
		Class:         class,
		Acquired:      n.acquired.Load(),
		NotAcquired:   n.notAcquired.Load(),
		Failed:        n.failed.Load(),
		Released:      n.released.Load(),
		ReleaseFailed: n.releaseFailed.Load(),
		Lost:          make([]LossCount, lossCauses),
		Held:          n.held.Load(),
		Waiting:       n.waiting.Load(),
		Wait:          n.wait.Snapshot(),
		Hold:          n.hold.Snapshot(),
	}
	for cause := range lossCauses {
		s.Lost[cause] = LossCount{Cause: lossNames[cause], Count: n.lost[cause].Load()}
	}
	return s
}
