package result

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"
)

var (
	// ErrClosed is returned by every call after Close. It is go-redis' own.
	ErrClosed = redis.ErrClosed

	// ErrCorrupt is returned for a record that this version cannot read. The
	// error that wraps it says why.
	ErrCorrupt = errors.New("corrupt record")
)

// A TooLargeError is returned by Encode and Store for a value above
// Config.MaxValueBytes.
// Nothing was stored: store a [Failure] with it as the cause instead, so that
// nobody waits in vain.
type TooLargeError struct {
	Field string // Value or Progress
	Size  int    // bytes, before compression
	Limit int    // Config.MaxValueBytes
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s is %d bytes, want at most %d: return less, or raise result.Config.MaxValueBytes", e.Field, e.Size, e.Limit)
}

// A Cause describes an error across processes.
type Cause struct {
	// Type is the error's Go type, such as *net.OpError; at most 255 bytes.
	Type string

	// Message is what the error said; at most 16 KiB.
	Message string

	// Chain lists the errors that it wraps, outermost first, each as its type,
	// a colon and its message; at most 32 of at most 1 KiB.
	Chain []string
}

const (
	maxTypeBytes    = 255
	maxMessageBytes = 16 << 10
	maxChain        = 32
	maxChainBytes   = 1 << 10
)

// CauseOf describes err and the errors that it wraps, joined ones included. It
// is nil for nil.
func CauseOf(err error) *Cause {
	if err == nil {
		return nil
	}
	// The methods of an error are the program's: those of a nil pointer in it
	// mostly panic. Sprint contains that of Error.
	c := &Cause{Type: fmt.Sprintf("%T", err), Message: fmt.Sprint(err)}
	func() {
		defer func() { _ = recover() }()
		c.addWrapped(err)
	}()
	return c.clipped()
}

// addWrapped goes through the tree below err depth first, as errors.Is does.
func (c *Cause) addWrapped(err error) {
	var below []error
	switch err := err.(type) { //nolint:errorlint // this is the unwrapping
	case interface{ Unwrap() error }:
		below = []error{err.Unwrap()}
	case interface{ Unwrap() []error }:
		below = err.Unwrap()
	}
	for _, err := range below {
		if err == nil || len(c.Chain) == maxChain {
			continue
		}
		c.Chain = append(c.Chain, fmt.Sprintf("%T: %v", err, err))
		c.addWrapped(err)
	}
}

// clipped returns c within its limits: a failure must always be storable. It
// shares no memory that the caller could change.
func (c *Cause) clipped() *Cause {
	if c == nil {
		return nil
	}
	out := &Cause{Type: clip(c.Type, maxTypeBytes), Message: clip(c.Message, maxMessageBytes)}
	for _, s := range c.Chain[:min(len(c.Chain), maxChain)] {
		out.Chain = append(out.Chain, clip(s, maxChainBytes))
	}
	return out
}

// clip cuts s to at most limit bytes, an ellipsis included, between two runes.
func clip(s string, limit int) string {
	const ellipsis = "…"
	if len(s) <= limit {
		return s
	}
	end := limit - len(ellipsis)
	for back := 0; back < utf8.UTFMax && end > 0 && !utf8.RuneStart(s[end]); back++ {
		end--
	}
	return s[:end] + ellipsis
}

// A TaskError says that a task did not succeed. It is what errors.As finds in
// the error of a typed wait.
type TaskError struct {
	ID, Task string
	State    State // final, and not Success
	Attempt  int
	Cause    // empty if none was recorded, as for a cancelled task
}

func (e *TaskError) Error() string {
	var b strings.Builder
	b.WriteString("result: task ")
	if e.Task != "" {
		b.WriteString(e.Task + " ")
	}
	fmt.Fprintf(&b, "%q: %s", e.ID, e.State)
	if e.Attempt > 0 {
		fmt.Fprintf(&b, " at attempt %d", e.Attempt)
	}
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	return b.String()
}

// Err is why the task did not succeed: a [*TaskError] for a final state other
// than [Success], else nil.
func (r Record) Err() error {
	if !r.State.Final() || r.State == Success {
		return nil
	}
	e := &TaskError{ID: r.ID, Task: r.Task, State: r.State, Attempt: r.Attempt}
	if r.Cause != nil {
		e.Cause = *r.Cause
	}
	return e
}
