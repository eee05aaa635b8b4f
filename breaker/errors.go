package breaker

import (
	"errors"
	"fmt"
	"time"
)

// ErrOpen is what errors.Is finds in the error of a command that an open
// breaker refused: it was not sent. The error is an [*OpenError].
var ErrOpen = errors.New("breaker: open")

// OpenError says which breaker refused a command, why, and until when.
//
// It does not unwrap to Cause: that error is of an earlier command, and go-redis
// would take it for this one's and repeat it.
type OpenError struct {
	Role, Node string

	// WritesOnly is set if the server refused writes and still answers reads.
	WritesOnly bool

	// Cause is the last failure that was counted.
	Cause error

	// RetryAt is when to try again: when the next probe may pass, or, while one
	// is under way, a tenth of Config.OpenFor from now. Many callers may be told
	// the same instant, and one of them will be the probe.
	RetryAt time.Time
}

func (e *OpenError) Error() string {
	what := "is open"
	if e.WritesOnly {
		what = "is open for writes"
	}
	return fmt.Sprintf("breaker: %s %s %s until %s, last failure: %v",
		e.Role, e.Node, what, e.RetryAt.Format("15:04:05.000"), e.Cause)
}

// Is reports whether target is [ErrOpen].
func (e *OpenError) Is(target error) bool { return target == ErrOpen }

func nilContext(op string) error {
	return fmt.Errorf("breaker: %s: nil context: pass context.Background() or the request's", op)
}
