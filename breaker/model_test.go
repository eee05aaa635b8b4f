package breaker_test

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/redisha/redisha/breaker"
)

// model says in the plainest way what a breaker with MinCalls 4, DialFailures 3
// and the default rest should do, one call after the other.
type model struct {
	state    breaker.State
	since    time.Time   // of the state
	judged   []judgement // while closed
	dials    int         // failed in a row
	rejected uint64
}

type judgement struct {
	step   int // of a second, since the breaker closed
	failed bool
}

func (m *model) move(to breaker.State) {
	*m = model{state: to, since: time.Now(), rejected: m.rejected}
}

func (m *model) now() breaker.State {
	if m.state == breaker.StateOpen && time.Since(m.since) > time.Second {
		return breaker.StateHalfOpen
	}
	return m.state
}

// call says whether a call with this outcome passes.
func (m *model) call(outcome string) bool {
	if m.now() == breaker.StateHalfOpen && m.state == breaker.StateOpen {
		m.move(breaker.StateHalfOpen)
	}
	switch {
	case m.state == breaker.StateOpen:
		m.rejected++
		return false
	case outcome == "neutral":
	case m.state == breaker.StateHalfOpen && outcome == "success":
		m.move(breaker.StateClosed)
	case m.state == breaker.StateHalfOpen:
		m.move(breaker.StateOpen)
	default:
		step := int(time.Since(m.since) / time.Second)
		m.judged = append(m.judged, judgement{step, outcome == "failure"})
		calls, failures := 0, 0
		for _, j := range m.judged {
			if j.step > step-10 {
				calls++
				if j.failed {
					failures++
				}
			}
		}
		if outcome == "failure" && (calls >= 4 && 2*failures >= calls || m.dials >= 3) {
			m.move(breaker.StateOpen)
		}
	}
	return true
}

func (m *model) dial(ok bool) {
	if ok {
		m.dials = 0
		return
	}
	if m.dials++; m.dials >= 3 && m.state != breaker.StateOpen || m.dials >= 3 && m.now() == breaker.StateHalfOpen {
		rejected := m.rejected
		m.call("failure")
		m.rejected = rejected
	}
}

func TestBreakerBehavesAsItsModel(t *testing.T) {
	type step struct {
		what  string
		pause time.Duration
	}
	steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
		return step{
			rapid.SampledFrom([]string{"success", "failure", "failure", "neutral", "dial", "dial failure", "dial failure", "reset", "pause"}).Draw(rt, "what"),
			time.Duration(rapid.IntRange(0, 2500).Draw(rt, "ms")) * time.Millisecond,
		}
	}), 1, 60)
	answers := map[string]error{"success": redis.Nil, "failure": io.EOF, "neutral": redis.ErrPoolTimeout}

	rapid.Check(t, func(rt *rapid.T) {
		plan := steps.Draw(rt, "steps")
		var wrong error
		synctest.Test(t, func(t *testing.T) {
			h := newHook(t, breaker.Config{MinCalls: 4, DialFailures: 3})
			m := &model{since: time.Now()}
			for i, s := range plan {
				passed, want := true, true
				switch s.what {
				case "pause":
					time.Sleep(s.pause)
				case "reset":
					h.Reset()
					m.move(breaker.StateClosed)
				case "dial":
					require.NoError(t, failDial(h, nil))
					m.dial(true)
				case "dial failure":
					_ = failDial(h, errRefused)
					m.dial(false)
				default:
					passed = !errors.Is(do(t.Context(), h, answers[s.what], "get", "k"), breaker.ErrOpen)
					want = m.call(s.what)
				}
				if passed != want || h.State() != m.now() || h.Counts().Rejected != m.rejected {
					wrong = fmt.Errorf("step %d, %s: passed %t, state %s, rejected %d; want %t, %s, %d", i, s.what,
						passed, h.State(), h.Counts().Rejected, want, m.now(), m.rejected)
					return
				}
			}
		})
		if wrong != nil {
			rt.Fatal(wrong)
		}
	})
}
