package resolve

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// introduce lets each of the Sentinels know of all others.
func (s *scene) introduce() {
	for i, sentinel := range s.sentinels {
		m, _ := sentinel.Monitored(group)
		m.Name, m.Others = group, nil
		for j, other := range s.sentinels {
			if i != j {
				m.Others = append(m.Others, testserver.OtherSentinel{Addr: s.addrs[j], ID: other.ID()})
			}
		}
		sentinel.Monitor(m)
	}
}

func TestFurtherSentinelsAreDiscoveredAndFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		s.introduce()
		r := s.settled(func(c *SentinelConfig) { c.Addrs = s.addrs[:1] })
		st := r.Stats()
		require.Equal(t, []int{1, 3, 3}, []int{st.Configured, st.Known, st.Reachable})
		s.sentinels[0].Stop()
		time.Sleep(20 * time.Minute)
		require.Equal(t, 3, r.Stats().Known)
		s.sentinels[2].Switch(group, primaryB, 2)
		require.LessOrEqual(t, await(t, r, time.Second, at(primaryB)), 50*time.Millisecond)
	})
}

func TestASentinelThatJoinsLaterIsDiscovered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		r := s.settled()
		s.add("10.1.0.2:26379")
		s.introduce()
		time.Sleep(12 * time.Second)
		require.Equal(t, 2, r.Stats().Reachable)
	})
}

func TestASentinelWithTwoAddressesIsWatchedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		s.introduce()
		names := []string{"s1.example:26379", "s2.example:26379", "s3.example:26379"}
		for i, name := range names {
			s.net.Add(name, s.sentinels[i].Dial)
		}
		r := s.settled(func(c *SentinelConfig) { c.Addrs = append(names, names[0]) })
		require.Equal(t, 3, r.Stats().Known)
		require.Equal(t, 3, r.Stats().Configured)
		for _, sentinel := range s.sentinels {
			require.Equal(t, 2, sentinel.Connections())
		}
	})
}

func TestATwinIsForgottenOnceItsNameAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 2)
		s.introduce()
		r := s.settled(func(c *SentinelConfig) { c.Addrs = []string{s.addrs[0], "s2.example:26379"} }) // a name that leads nowhere
		require.Equal(t, 3, r.Stats().Known)
		require.Equal(t, 2, r.Stats().Reachable)
		s.net.Add("s2.example:26379", s.sentinels[1].Dial)
		time.Sleep(2 * time.Second)
		require.Equal(t, 2, r.Stats().Known)
		require.Equal(t, 2, r.Stats().Reachable)
		require.Equal(t, 2, s.sentinels[1].Connections())
	})
}

func TestASentinelThatNobodyListsIsForgottenAfterAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		s.introduce()
		r := s.settled(func(c *SentinelConfig) { c.Addrs = s.addrs[:2] })
		require.Equal(t, 3, r.Stats().Known)
		for _, sentinel := range s.sentinels[:2] { // the third one still runs, and lists the others
			m, _ := sentinel.Monitored(group)
			m.Others = nil
			sentinel.Monitor(m)
		}
		time.Sleep(50 * time.Second)
		require.Equal(t, 3, r.Stats().Known)
		time.Sleep(50 * time.Second)
		require.Equal(t, 2, r.Stats().Known, "and the configured ones stay")
		require.Zero(t, s.sentinels[2].Connections())
	})
}

func TestTheLastSentinelIsNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 2)
		s.introduce()
		r := s.settled(func(c *SentinelConfig) { c.Addrs = s.addrs[:1] })
		s.sentinels[0].Stop() // the other one is listed by nobody now
		time.Sleep(20 * time.Minute)
		require.Equal(t, 2, r.Stats().Known)
		require.Equal(t, 1, r.Stats().Reachable)
	})
}

func TestADownSentinelIsKeptWhileItIsListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		s.introduce()
		s.sentinels[2].Stop()
		m, _ := s.sentinels[0].Monitored(group)
		m.Others[1].Flags = "s_down,sentinel"
		m.Others = append(m.Others, testserver.OtherSentinel{Addr: "10.1.0.9:0", ID: "f00"})
		s.sentinels[0].Monitor(m)
		r := s.settled(func(c *SentinelConfig) { c.Addrs = s.addrs[:1] })
		time.Sleep(20 * time.Minute)
		st := r.Stats()
		require.Equal(t, []int{1, 3, 2}, []int{st.Configured, st.Known, st.Reachable})
	})
}

func TestAtMostSixteenSentinelsAreWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		m, _ := s.sentinels[0].Monitored(group)
		for i := range 100 {
			m.Others = append(m.Others, testserver.OtherSentinel{Addr: fmt.Sprintf("10.2.0.%d:26379", i), ID: fmt.Sprintf("id%d", i)})
		}
		s.sentinels[0].Monitor(m)
		r := s.settled()
		require.Equal(t, 16, r.Stats().Known)
		tell(primaryB, 2, s.sentinels...)
		await(t, r, 1300*time.Millisecond, at(primaryB))
	})
}

func TestConfiguredSentinelsAreNotDiscoveredOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		s.introduce()
		var mu sync.Mutex
		dialed := make(map[string]bool)
		names := []string{"s1.example:26379", "s2.example:26379", "s3.example:26379"}
		s.settled(func(c *SentinelConfig) {
			c.Addrs = names
			c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				mu.Lock()
				dialed[addr] = true
				mu.Unlock()
				i := slices.Index(names, addr)
				if i < 0 {
					return s.net.Dial(ctx, network, addr)
				}
				time.Sleep(time.Duration(i) * 50 * time.Millisecond)
				return s.sentinels[i].Dial(ctx, network, addr)
			}
		})
		mu.Lock()
		defer mu.Unlock()
		require.Len(t, dialed, 3)
	})
}

func TestASentinelWithTwoConfiguredNamesHasOneVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		for _, name := range []string{"s1.example:26379", "s1b.example:26379"} {
			s.net.Add(name, s.sentinels[0].Dial)
		}
		r := s.settled(func(c *SentinelConfig) { c.Addrs = append(s.addrs, "s1.example:26379", "s1b.example:26379") })
		require.Equal(t, 5, r.Stats().Known)
		tell(primaryB, 1, s.sentinels[0])
		time.Sleep(time.Minute)
		require.Equal(t, primaryA, r.State().Primary)
	})
}

func TestWhoRefusesAccessIsNotPressed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		s.requireAuth("", "right")
		r := s.open(func(c *SentinelConfig) { c.Password = "wrong" })
		for range 1000 {
			r.Refresh()
			time.Sleep(10 * time.Millisecond)
		}
		require.LessOrEqual(t, r.Stats().Polls, uint64(12))
		require.GreaterOrEqual(t, r.Stats().Polls, uint64(8))
		s.requireAuth("", "wrong")
		await(t, r, 1300*time.Millisecond, at(primaryA))
	})
}

func TestAForgottenSentinelIsNotTakenFromAnOldList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		s.introduce()
		m, _ := s.sentinels[1].Monitored(group)
		m.Others = m.Others[:1] // not the third one
		s.sentinels[1].Monitor(m)
		r := s.settled(func(c *SentinelConfig) { c.Addrs = s.addrs[:2] })
		require.Equal(t, 3, r.Stats().Known)
		s.sentinels[0].Stop()
		s.sentinels[2].Stop()
		time.Sleep(2 * time.Minute)
		require.Equal(t, 2, r.Stats().Known)
	})
}
