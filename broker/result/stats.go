package result

import (
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/stats"
)

// Stats is what a client did and holds. Counts run since it was made.
type Stats struct {
	// Conn is the connection's.
	Conn conn.Stats

	// Stored counts the records stored, by state. It lists every state.
	Stored []StateCount

	// Refused counts the records that were not stored because a final one, or
	// one with a greater fence or attempt, was there.
	Refused uint64

	// TooLarge counts the records refused for Config.MaxValueBytes.
	TooLarge uint64

	// Unannounced counts the records stored whose wake-up the server refused:
	// waiters find them up to five seconds later.
	Unannounced uint64

	// Waiters is the number of callers in Wait.
	Waiters int64

	// Waits is how long the waits took that ended with a final state.
	Waits stats.HistogramSnapshot

	// Healed counts the waits whose final state was found by a periodic read,
	// not after a message: a wake-up was lost, or there is no subscription.
	Healed uint64

	// Subscriptions is the number of IDs whose subscription the server has
	// confirmed.
	Subscriptions int64

	// Gaps counts the times that the subscription's connection broke or was
	// refused.
	Gaps uint64
}

// A StateCount counts the records stored in one state.
type StateCount struct {
	State string
	Count uint64
}

// allStates is the order of Stats.Stored.
var allStates = [...]State{Pending, Started, Progress, Retry, Success, Failure, Cancelled, Expired, Dead}

type counts struct {
	byState     [len(allStates)]stats.Counter
	refused     stats.Counter
	tooLarge    stats.Counter
	unannounced stats.Counter
	waiters     stats.Gauge
	waits       stats.Histogram
	healed      stats.Counter
}

func (c *counts) stored(s State) {
	for i, state := range allStates {
		if state == s {
			c.byState[i].Inc()
		}
	}
}

// Stats returns what the client did and holds.
func (c *Client) Stats() Stats {
	sub := c.hub.sub.Stats()
	s := Stats{
		Conn:          c.conn.Stats(),
		Refused:       c.counts.refused.Load(),
		TooLarge:      c.counts.tooLarge.Load(),
		Unannounced:   c.counts.unannounced.Load(),
		Waiters:       c.counts.waiters.Load(),
		Waits:         c.counts.waits.Snapshot(),
		Healed:        c.counts.healed.Load(),
		Subscriptions: int64(sub.Live),
		Gaps:          sub.Gaps,
	}
	for i, state := range allStates {
		s.Stored = append(s.Stored, StateCount{State: state.String(), Count: c.counts.byState[i].Load()})
	}
	return s
}
