package result

import (
	"fmt"
	"time"
)

// A State is where a task stands. Its values are stored: those from 16 on are
// final, also such as later versions may add.
type State uint8

// The states.
const (
	Pending  State = 0 // not started, unknown, or expired: there is no record, or one that says so
	Started  State = 1 // an attempt runs
	Progress State = 2 // an attempt runs and has reported progress
	Retry    State = 3 // an attempt failed, and another follows

	Success   State = 16 // done
	Failure   State = 17 // failed, with no attempt left or none wanted
	Cancelled State = 18 // cancelled before its end
	Expired   State = 19 // not started in time
	Dead      State = 20 // set aside as a dead letter
)

const firstFinal = 16 // store.lua knows it too

var stateNames = map[State]string{
	Pending: "pending", Started: "started", Progress: "progress", Retry: "retry",
	Success: "success", Failure: "failure", Cancelled: "cancelled", Expired: "expired", Dead: "dead",
}

// Final reports whether the state is the last one of a task.
func (s State) Final() bool { return s >= firstFinal }

func (s State) String() string {
	if name, ok := stateNames[s]; ok {
		return name
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

func (s State) known() bool {
	_, ok := stateNames[s]
	return ok
}

// A Record says where a task stands and what it returned.
type Record struct {
	// ID names the task: see [ValidateID].
	ID string

	// Task is the name of the task's type, at most 255 bytes.
	Task string

	State State

	// Attempt counts the tries of the task from 1; 0 if none was made. A
	// record of a smaller attempt is refused.
	Attempt int

	// Fence orders those who claim the ID, and goes before Attempt: a record
	// of a smaller fence is refused. 0 where nobody claims.
	Fence uint64

	// When the task was published, its present attempt began, and it came to
	// its final state; zero if not so or not known. Stored in milliseconds.
	Enqueued, Started, Finished time.Time

	// Value is what the task returned, encoded; nil if nothing. A record that
	// was read owns it. Store compresses it and keeps no reference.
	Value []byte

	// Progress is what the task last reported, encoded; nil if nothing.
	Progress []byte

	// Cause is why the last attempt failed; nil if it did not.
	Cause *Cause

	// TTL is how long the record is kept, counted from this Store. 0 means
	// Config.TTL; less than a millisecond is refused. It is not part of what
	// is stored: 0 in a record that was read.
	TTL time.Duration
}
