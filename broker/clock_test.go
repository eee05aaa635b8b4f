package broker

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// A slow call says nothing about the server's clock, wherever in it the server was.
func TestASlowCallIsNoJumpOfTheServersClock(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, _ *logs) {
		m, _ := newMaintenance(t, c)
		once := func() {
			t.Helper()
			_, err := m.term(t.Context())
			require.NoError(t, err)
		}
		slow := func(late bool) {
			t.Helper()
			if late { // the server reads its clock at the end of the call
				s.Hang(true)
				time.AfterFunc(2*time.Second, func() { s.Hang(false) })
			} else {
				s.SetLatency(2 * time.Second)
				defer s.SetLatency(0)
			}
			once()
		}
		once()
		for _, late := range []bool{true, false, true, true, false, false} {
			slow(late)
			require.Zero(t, m.quiet)
			if late {
				time.Sleep(time.Second)
				once()
				require.Zero(t, m.quiet)
			}
		}
		for _, jump := range []time.Duration{1100 * time.Millisecond, -1100 * time.Millisecond} {
			m.quiet = time.Time{}
			s.SetTime(time.Now().Add(jump))
			once()
			require.Equal(t, time.Now().Add(10*time.Second), m.quiet, "a lease from now, after a jump of %s", jump)
			m.quiet = time.Time{}
			s.SetTime(time.Time{})
			once()
			require.NotZero(t, m.quiet, "back")
		}
		m.quiet = time.Time{}
		once()
		require.Zero(t, m.quiet)
	})
}
