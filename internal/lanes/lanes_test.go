package lanes

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Whatever comes, leaves and ages, each flight is counted once, in its age.
func TestEachFlightIsCountedOnce(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	l := New(16, func() {})
	type flight struct {
		Ticket
		age int
	}
	var flights []flight
	for range 10_000 {
		switch n := rnd.IntN(10); {
		case n < 4:
			flights = append(flights, flight{Ticket: l.Board(time.Now())})
			require.Equal(t, len(flights) == 1, flights[len(flights)-1].only)
		case n < 5:
			flights = append(flights, flight{l.Aside(), 2})
		case n < 6:
			l.Age()
			for i := range flights {
				flights[i].age++
			}
		case len(flights) > 0:
			i := rnd.IntN(len(flights))
			l.Leave(flights[i].Ticket)
			flights[i] = flights[len(flights)-1]
			flights = flights[:len(flights)-1]
		}
		var want [3]int
		for _, f := range flights {
			want[min(f.age, 2)]++
		}
		require.Equal(t, want, l.UnderWay())
		require.Equal(t, len(flights) == 0, l.Empty())
		require.Equal(t, want[0]+want[1] == 0, l.Idle())
		require.Equal(t, want[0]+want[1] < Min, l.Free())
	}
}

func TestTheRoundTripIsThatOfWhatTravelsAlone(t *testing.T) {
	l := New(8, func() {})
	lone := func() Ticket {
		ticket := l.Board(time.Now())
		l.Leave(ticket)
		return ticket
	}
	first := l.Board(time.Now())
	second := l.Board(time.Now())
	aside := l.Aside()
	l.Took(aside, time.Hour)
	require.Equal(t, Min, l.Count(), "what is aside tells nothing")
	l.AtMost(time.Second)
	require.Equal(t, Min, l.Count(), "what waited tells nothing before another has")
	l.Took(second, 300*time.Microsecond)
	require.Equal(t, 6, l.Count(), "the first one does")
	l.Took(second, time.Second)
	require.Equal(t, 6, l.Count(), "it was not the only one")
	l.AtMost(200 * time.Microsecond)
	require.Equal(t, 4, l.Count(), "the round trip is not longer")
	l.Leave(first)
	l.Leave(second)
	l.Leave(aside)
	l.Took(lone(), 600*time.Microsecond)
	require.Equal(t, 5, l.Count(), "an eighth of the way")
	for range 100 {
		l.Took(lone(), time.Second)
	}
	require.Equal(t, 8, l.Count(), "no more than allowed")
	l.Took(lone(), time.Microsecond)
	require.Equal(t, Min, l.Count(), "and no less than two")
}

func TestOneTickComesWhileSomebodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ticks := 0
		l := New(8, func() { ticks++ })
		for i := range 3 {
			l.Watch()
			l.Watch()
			time.Sleep(10 * OverdueAfter)
			synctest.Wait()
			require.Equal(t, i+1, ticks)
			l.Age()
		}
		l.Watch()
		quiet := l.Close()
		under := l.Board(time.Now())
		l.Settle()
		require.Empty(t, quiet)
		l.Leave(under)
		l.Settle()
		l.Settle()
		<-quiet
		time.Sleep(10 * OverdueAfter)
		require.Equal(t, 3, ticks)
	})
}
