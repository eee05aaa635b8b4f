package tracking

import "time"

// Stats is what a Tracker did and holds. Counts run since it was made.
type Stats struct {
	// Connections is the number of servers that tell of changes now.
	Connections int

	// Refused is the number of servers that do not let themselves be tracked.
	Refused int

	// Connects counts the connections that were made.
	Connects uint64

	// Gaps counts the ends of epochs.
	Gaps uint64

	// Keys counts the keys that servers have told of.
	Keys uint64

	// LastGap is when the last epoch ended, zero if none has.
	LastGap time.Time

	// LastError is the last reason for a gap, for a refusal, or for not being
	// connected; nil if there was none.
	LastError error
}

// Stats returns what the Tracker did and holds.
func (t *Tracker) Stats() Stats {
	s := Stats{Connects: t.connects.Load(), Gaps: t.gaps.Load(), Keys: t.keys.Load()}
	t.each(func(n *node) {
		switch stands := n.stands.Load(); {
		case stands > 0:
			s.Connections++
		case stands == refusing:
			s.Refused++
		}
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	s.LastGap, s.LastError = t.lastGap, t.lastErr
	return s
}
