package pubsub

import "time"

// Stats is what a subscription did and holds. Counts run since it was made.
type Stats struct {
	// Channels is the number of channels that are wanted.
	Channels int

	// Live is the number of those which the server has confirmed.
	Live int

	// Refused is the number of those which the server has refused on the
	// current connection; they are tried again every 30s.
	Refused int

	// Connected reports whether there is a connection.
	Connected bool

	// Connects counts the connections that were made.
	Connects uint64

	// Gaps counts the interruptions.
	Gaps uint64

	// Messages counts the messages delivered.
	Messages uint64

	// LastGap is when the last interruption began, zero if there was none.
	LastGap time.Time

	// LastError is the last reason for an interruption, or for a refusal; nil
	// if there was none.
	LastError error
}

// Stats returns what the subscription did and holds.
func (s *Subscription) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Channels:  len(s.channels),
		Live:      s.live,
		Refused:   s.refused,
		Connected: s.connected,
		Connects:  s.connects.Load(),
		Gaps:      s.gaps.Load(),
		Messages:  s.messages.Load(),
		LastGap:   s.lastGap,
		LastError: s.lastErr,
	}
}
