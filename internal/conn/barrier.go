package conn

import (
	"sync/atomic"
	"time"

	"github.com/redisha/redisha/internal/stats"
)

// A barrier holds commands back, before they take a connection from the pool,
// while no usable primary is known. It opens for all at once.
type barrier struct {
	down    atomic.Pointer[outage] // nil: open
	outages stats.Counter
	time    stats.Counter // ns of outages that are over
	last    atomic.Int64  // length of the last one, ns
}

// An outage is a time without a usable primary.
type outage struct {
	since time.Time
	cause error
	why   atomic.Pointer[error] // what the probe met last
	first bool                  // no primary was known before
	over  chan struct{}         // closed when it ends
}

// shut closes the barrier and reports whether it was open.
func (b *barrier) shut(cause error, first bool) bool {
	return b.down.CompareAndSwap(nil, &outage{since: time.Now(), cause: cause, first: first, over: make(chan struct{})})
}

// shortOutage is not worth counting: the probe only made sure.
const shortOutage = 50 * time.Millisecond

// open ends the outage.
func (b *barrier) open() {
	o := b.down.Swap(nil)
	if o == nil {
		return
	}
	if d := time.Since(o.since); !o.first && d >= shortOutage {
		b.outages.Inc()
		b.time.Add(uint64(d))
		b.last.Store(int64(d))
	}
	close(o.over)
}
