package breaker

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// circuit is a gobreaker with what that does not tell: its state without a
// lock, when it will probe, and the last failure.
type circuit struct {
	hook       *Hook
	writesOnly bool
	breaker    *gobreaker.CircuitBreaker[struct{}]
	state      atomic.Int32
	probeAt    atomic.Int64 // since hook.start; set when it opens
	cause      atomic.Pointer[error]
}

// What a circuit is told about a call. gobreaker takes errors, and these cost
// nothing to make.
var (
	errFailed  = errors.New("failed")
	errNeutral = errors.New("neutral")
)

// windowSteps is how many buckets Config.Window is cut into.
const windowSteps = 10

func (h *Hook) newCircuit(writesOnly bool) *circuit {
	c := &circuit{hook: h, writesOnly: writesOnly}
	c.breaker = gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests:   1,
		Interval:      h.cfg.Window,
		BucketPeriod:  h.cfg.Window / windowSteps,
		Timeout:       h.cfg.OpenFor,
		ReadyToTrip:   c.readyToTrip,
		OnStateChange: c.changed,
		// A panic arrives as an error of gobreaker's own: neutral.
		IsExcluded: func(err error) bool { return err != nil && err != errFailed },
	})
	return c
}

// readyToTrip is asked, under gobreaker's lock, after each failure while closed.
func (c *circuit) readyToTrip(counts gobreaker.Counts) bool {
	cfg := &c.hook.cfg
	if !c.writesOnly && cfg.DialFailures > 0 && c.hook.dialsFailed.Load() >= int64(cfg.DialFailures) {
		return true
	}
	// Not counts.Requests, which includes those under way.
	judged := int64(counts.TotalSuccesses) + int64(counts.TotalFailures)
	return judged >= int64(cfg.MinCalls) && float64(counts.TotalFailures) >= cfg.FailureRatio*float64(judged)
}

// changed is called under gobreaker's lock.
func (c *circuit) changed(_ string, from, to gobreaker.State) {
	h := c.hook
	if to == gobreaker.StateOpen {
		// gobreaker goes on strictly after OpenFor: who sleeps until probeAt to
		// the nanosecond, as in virtual time, must not come too early for ever.
		c.probeAt.Store(int64(h.since() + h.cfg.OpenFor + time.Nanosecond))
	}
	c.state.Store(stateOf[to])
	h.notify.Lock()
	defer h.notify.Unlock()
	if c == h.all.Load() || c == h.writes.Load() { // else Reset has replaced it
		h.tell(c, State(stateOf[from]), State(stateOf[to]))
	}
}

var stateOf = [...]int32{
	gobreaker.StateClosed:   int32(StateClosed),
	gobreaker.StateHalfOpen: int32(StateHalfOpen),
	gobreaker.StateOpen:     int32(StateOpen),
}

// tell counts a change of state and passes it on. It is called with notify held.
func (h *Hook) tell(c *circuit, from, to State) {
	if from == to {
		return
	}
	change := Change{Role: h.role, Node: h.node, WritesOnly: c.writesOnly, From: from, To: to}
	if to == StateOpen {
		change.Cause = c.lastFailure()
		switch {
		case from != StateClosed: // a probe has failed: the same outage
		case c.writesOnly:
			h.tally.writeTrips.Add(1)
		default:
			h.tally.trips.Add(1)
		}
	}
	if !c.writesOnly {
		h.dialsFailed.Store(0) // a probe may reuse a connection, and close the breaker without a dial
	}
	if h.cfg.OnStateChange != nil {
		h.cfg.OnStateChange(change)
	}
}

// State is the state without gobreaker's lock.
func (c *circuit) State() State {
	s := State(c.state.Load())
	if s == StateOpen && int64(c.hook.since()) >= c.probeAt.Load() {
		return StateHalfOpen
	}
	return s
}

// call runs f if the circuit admits it, and tells the circuit what f returned:
// nil, errFailed or errNeutral.
func (c *circuit) call(f func() error) (admitted bool) {
	_, err := c.breaker.Execute(func() (struct{}, error) { return struct{}{}, f() })
	return err != gobreaker.ErrOpenState && err != gobreaker.ErrTooManyRequests
}

// fail counts a failure that was no call.
func (c *circuit) fail(cause error) {
	c.call(func() error { return c.note(cause) })
}

// note keeps the cause of a failure. Its argument is a copy, so that only a
// failure allocates.
func (c *circuit) note(cause error) error {
	c.cause.Store(&cause)
	return errFailed
}

// lastFailure is called when there was one: it opened the circuit.
func (c *circuit) lastFailure() error { return *c.cause.Load() }

// refuse returns the error of a call that the circuit did not admit.
func (c *circuit) refuse() error {
	h := c.hook
	h.tally.rejected.Add(1)
	now := h.since()
	retry := time.Duration(c.probeAt.Load())
	if retry <= now { // a probe is under way
		retry = now + max(h.cfg.OpenFor/10, time.Millisecond)
	}
	return &OpenError{
		Role: h.role, Node: h.node, WritesOnly: c.writesOnly,
		Cause: c.lastFailure(), RetryAt: h.start.Add(retry),
	}
}
