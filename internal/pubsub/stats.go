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

	// Connections is the number of connections: one at most, but on Cluster one
	// for each node that has some of the channels.
	Connections int

	// Connects counts the connections that were made.
	Connects uint64

	// Gaps counts the interruptions.
	Gaps uint64

	// Moves counts how often a channel that was live had to be subscribed to anew
	// because of its slot in the Cluster.
	Moves uint64

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
	stats := Stats{
		Channels:  len(s.channels),
		Live:      s.live,
		Refused:   s.refused,
		Connects:  s.connects.Load(),
		Gaps:      s.gaps.Load(),
		Messages:  s.messages.Load(),
		LastGap:   s.lastGap,
		LastError: s.lastErr,
	}
	if s.connected {
		stats.Connections = 1
	}
	return stats
}

// add adds those of another subscription.
func (s *Stats) add(o Stats) {
	s.Channels += o.Channels
	s.Live += o.Live
	s.Refused += o.Refused
	s.Connections += o.Connections
	s.Connects += o.Connects
	s.Gaps += o.Gaps
	s.Moves += o.Moves
	s.Messages += o.Messages
	if o.LastError != nil && !o.LastGap.Before(s.LastGap) {
		s.LastGap, s.LastError = o.LastGap, o.LastError
	}
}
