// Package resolve finds the primary of an endpoint and follows it: through
// Sentinels ([NewSentinel]), or among a fixed list of servers ([NewReplicated]).
//
// A [Resolver] asks all its servers at the same time, each over a connection of
// its own, so that one that hangs never delays the others. It only says where
// the primary is believed to be: who dials checks by ROLE that it is one, and
// calls Refresh if not.
package resolve

import (
	"slices"
	"time"
)

// A State is what a [Resolver] believes. It is immutable.
type State struct {
	// Primary is the host:port to dial, or "" while none is known. The last
	// known one stays while nobody answers.
	Primary string

	// Epoch is 0 until a first primary is known, then 1, and one more with each
	// change of primary; also if the same address was elected once more.
	Epoch uint64

	// Replicas are the host:port of the replicas that are up and linked, sorted.
	Replicas []string

	// Fallback says that Primary is [SentinelConfig].Fallback, since no Sentinel
	// has answered yet.
	Fallback bool
}

func (s *State) equal(o *State) bool {
	return s.Primary == o.Primary && s.Epoch == o.Epoch && s.Fallback == o.Fallback && slices.Equal(s.Replicas, o.Replicas)
}

// A Resolver finds a primary and follows it until Close. It is safe for
// concurrent use.
type Resolver interface {
	// State returns the present belief. It takes no lock, allocates nothing, and
	// is never nil.
	State() *State

	// Changed returns a channel that is closed at the next change of State. Take
	// the channel first, then the State, then wait. It stays open after Close.
	Changed() <-chan struct{}

	// Refresh asks all servers now: a dial failed, ROLE said replica, READONLY
	// came. It never blocks; calls that come faster than the servers are asked
	// are joined.
	Refresh()

	// Err says why there is no primary, with each address and what it said; nil
	// if there is one.
	Err() error

	// Stats returns counts since the start.
	Stats() Stats

	// Close ends all goroutines and connections and waits for them. The State
	// stays as it is. It may be called twice.
	Close() error
}

// Stats are the counts of a [Resolver]. Its servers are Sentinels, or for
// [NewReplicated] the primary and its replicas.
type Stats struct {
	Configured int // servers that were named by the configuration
	Known      int // servers that are asked, discovered ones included
	Reachable  int // servers whose last answer came in time

	Polls         uint64 // questions asked, one for each server
	PollErrors    uint64 // questions without a usable answer
	Switches      uint64 // changes of primary after the first
	Announcements uint64 // +switch-master messages
	Disagreements uint64 // times at which Sentinels began to name different primaries of the same config-epoch
	TwoPrimaries  uint64 // times at which more than one server began to say that it is the primary

	ConfigEpoch uint64        // the Sentinels' config-epoch of the primary
	LastSwitch  time.Time     // zero if there was none
	SinceAnswer time.Duration // since a server last answered; 0 if none ever did
}

// Timing.
const (
	pollEvery     = time.Second
	refreshEvery  = 50 * time.Millisecond // at most, however often Refresh is called
	askTimeout    = 300 * time.Millisecond
	redialTimeout = time.Second            // dials after the first one: nobody waits for them
	fallbackAfter = time.Second            // no Sentinel has answered until then; at once if all have failed
	hold          = askTimeout             // how long all others may still object
	pongTimeout   = 900 * time.Millisecond // a dead peer is noticed within two seconds
	resetAfter    = 10 * time.Second
	discoverEvery = 10 * time.Second
	forgetAfter   = time.Minute // discovered Sentinels that nobody lists
	maxSentinels  = 16
)
