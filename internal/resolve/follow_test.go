package resolve

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// settled returns a resolver that has found primaryA and is subscribed.
func (s *scene) settled(change ...func(*SentinelConfig)) Resolver {
	s.t.Helper()
	r := s.open(change...)
	await(s.t, r, time.Second, at(primaryA))
	time.Sleep(400 * time.Millisecond)
	return r
}

func TestOneSentinelThatKnowsIsEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		r := s.settled()
		tell(primaryB, 2, s.sentinels[2])
		await(t, r, 1300*time.Millisecond, at(primaryB))
		time.Sleep(time.Minute) // the two others still tell the old one
		require.Equal(t, State{Primary: primaryB, Epoch: 2}, *r.State())
		require.Zero(t, r.Stats().Disagreements)
	})
}

func TestAHungSentinelDelaysNoSwitch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		r := s.settled()
		s.sentinels[0].Hang(true)
		for epoch := uint64(2); epoch < 12; epoch++ {
			primary := []string{primaryA, primaryB}[(epoch+1)%2]
			s.sentinels[1].Switch(group, primary, epoch)
			took := await(t, r, time.Second, func(st *State) bool { return st.Primary == primary && st.Epoch == epoch })
			require.LessOrEqual(t, took, 60*time.Millisecond)
			time.Sleep(700 * time.Millisecond)
		}
	})
}

func TestThereAndBackIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		r := s.settled()
		tell(primaryA, 3, s.sentinels...) // epoch 2 was elsewhere, which nobody saw
		await(t, r, 1300*time.Millisecond, func(st *State) bool { return st.Epoch == 2 })
		require.Equal(t, primaryA, r.State().Primary)
		require.EqualValues(t, 1, r.Stats().Switches)
		require.False(t, r.Stats().LastSwitch.IsZero())
	})
}

func TestAnAnnouncementIsNotItselfTheTruth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		r := s.settled()
		s.sentinels[0].Announce(group, primaryA, primaryB)
		time.Sleep(10 * time.Second)
		require.Equal(t, State{Primary: primaryA, Epoch: 1}, *r.State())
		require.EqualValues(t, 1, r.Stats().Announcements)
	})
}

func TestAnnouncementsOfOthersAreNotHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		r := s.settled()
		polls := r.Stats().Polls
		s.sentinels[0].Announce(group+"2", primaryA, primaryB)
		s.sentinels[0].Publish("+promoted-slave", "slave 10.0.0.2:6379 10.0.0.2 6379 @ other 10.0.0.1 6379")
		s.sentinels[0].Publish("+promoted-slave", "slave")
		s.sentinels[0].Publish("+switch-master", "")
		time.Sleep(100 * time.Millisecond)
		require.Equal(t, polls, r.Stats().Polls)
		require.Zero(t, r.Stats().Announcements)
	})
}

func TestThePromotionIsHeardBeforeTheSwitch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		r := s.settled()
		tell(primaryB, 2, s.sentinels[0])
		s.sentinels[0].Publish("+promoted-slave", "slave 10.0.0.2:6379 10.0.0.2 6379 @ mymaster 10.0.0.1 6379")
		require.LessOrEqual(t, await(t, r, time.Second, at(primaryB)), 50*time.Millisecond)
	})
}

func TestOldNewsAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		tell(primaryB, 7, s.sentinels...)
		r := s.open()
		await(t, r, time.Second, at(primaryB))
		tell(primaryA, 6, s.sentinels[0], s.sentinels[1])
		time.Sleep(time.Minute)
		require.Equal(t, State{Primary: primaryB, Epoch: 1}, *r.State())
		require.EqualValues(t, 7, r.Stats().ConfigEpoch)
	})
}

func TestAResetIsBelievedAfterTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		tell(primaryB, 7, s.sentinels...)
		r := s.open()
		await(t, r, time.Second, at(primaryB))
		tell(primaryA, 0, s.sentinels...)
		took := await(t, r, time.Minute, at(primaryA))
		require.GreaterOrEqual(t, took, 10*time.Second)
		require.LessOrEqual(t, took, 12*time.Second)
		require.EqualValues(t, 2, r.State().Epoch)
		synctest.Wait() // the statistics follow the state
		require.Zero(t, r.Stats().ConfigEpoch)
	})
}

func TestAResetIsNotBelievedWhileOneKnowsBetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		tell(primaryB, 7, s.sentinels...)
		r := s.open()
		await(t, r, time.Second, at(primaryB))
		tell(primaryA, 0, s.sentinels[:2]...)
		for range 10 { // the one that knows is there for two seconds of each eight
			s.sentinels[2].Stop()
			time.Sleep(6 * time.Second)
			s.sentinels[2].Restart()
			time.Sleep(2 * time.Second)
		}
		require.Equal(t, primaryB, r.State().Primary)
	})
}

func TestAResetToTheSameAddressIsNoSwitch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		tell(primaryA, 7, s.sentinels...)
		r := s.open()
		await(t, r, time.Second, at(primaryA))
		tell(primaryA, 1, s.sentinels...)
		time.Sleep(30 * time.Second)
		require.EqualValues(t, 1, r.State().Epoch)
		require.EqualValues(t, 1, r.Stats().ConfigEpoch)
	})
}

func TestVotesDecideWithinAnEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 4)
		r := s.settled()
		tell(primaryB, 1, s.sentinels[0], s.sentinels[1])
		time.Sleep(time.Minute)
		require.Equal(t, primaryA, r.State().Primary, "a tie keeps what is")
		require.EqualValues(t, 1, r.Stats().Disagreements)
		require.Equal(t, 1, s.log.count("Sentinels name different primaries"))
		require.Equal(t, 1, s.log.count(fmt.Sprintf(" %s=%s@1 %s=%[2]s@1]", s.addrs[2], primaryA, s.addrs[3])), "who says what: %v", s.log.lines())

		tell(primaryB, 1, s.sentinels[2])
		await(t, r, 1300*time.Millisecond, at(primaryB))
		tell(primaryB, 1, s.sentinels[3])
		time.Sleep(2 * time.Second)
		tell(primaryA, 1, s.sentinels[3])
		time.Sleep(2 * time.Second)
		require.EqualValues(t, 2, r.Stats().Disagreements)
		require.EqualValues(t, 2, r.State().Epoch)
	})
}

func TestAMinorityThatComesBackFirstIsHeldOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		r := s.settled()
		tell(primaryB, 1, s.sentinels[0])
		time.Sleep(2 * time.Second)
		for _, sentinel := range s.sentinels {
			sentinel.Cut()
		}
		for i, delay := range []time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond} {
			s.net.Add(s.addrs[i], func(ctx context.Context, network, addr string) (net.Conn, error) {
				time.Sleep(delay)
				return s.sentinels[i].Dial(ctx, network, addr)
			})
		}
		time.Sleep(time.Minute)
		require.EqualValues(t, 1, r.State().Epoch)
	})
}

func TestTheMajorityDecidesWhereEpochsAreRefused(t *testing.T) {
	for _, refusal := range []string{"NOPERM this user has no permissions", "ERR unknown subcommand 'MASTER'"} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, 3)
			for _, sentinel := range s.sentinels {
				sentinel.Refuse("SENTINEL MASTER", refusal)
			}
			r := s.settled()
			tell(primaryB, 2, s.sentinels[0])
			time.Sleep(time.Minute)
			require.Equal(t, primaryA, r.State().Primary)
			tell(primaryB, 2, s.sentinels[1])
			await(t, r, 1300*time.Millisecond, at(primaryB))
			require.EqualValues(t, 2, r.State().Epoch)

			s.sentinels[0].Stop() // 1 : 1 keeps what is
			time.Sleep(time.Minute)
			require.Equal(t, primaryB, r.State().Primary)
			s.sentinels[1].Stop() // 1 of those that answer
			await(t, r, 2*time.Second, at(primaryA))
			require.Zero(t, r.Stats().ConfigEpoch)
		})
	}
}

func TestAnEpochThatIsToldLaterIsNoSwitch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		s.sentinels[0].Refuse("SENTINEL MASTER", "NOPERM no")
		r := s.settled()
		s.sentinels[0].Refuse("SENTINEL MASTER", "")
		time.Sleep(2 * time.Second)
		require.EqualValues(t, 1, r.Stats().ConfigEpoch)
		require.EqualValues(t, 1, r.State().Epoch)
		s.sentinels[0].Refuse("SENTINEL MASTER", "NOPERM no")
		time.Sleep(2 * time.Second)
		require.EqualValues(t, 1, r.Stats().ConfigEpoch)
		require.EqualValues(t, 1, r.State().Epoch)
	})
}

func TestTheLastKnownPrimaryServesWithoutSentinels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		r := s.settled()
		s.sentinels[0].Stop()
		s.sentinels[1].Hang(true)
		s.net.Add(s.addrs[2], testserver.BlackHole)
		s.sentinels[2].Cut()
		time.Sleep(20 * time.Minute)
		require.Equal(t, State{Primary: primaryA, Epoch: 1}, *r.State())
		require.NoError(t, r.Err())
		st := r.Stats()
		require.Equal(t, []int{3, 3, 0}, []int{st.Configured, st.Known, st.Reachable})
		require.InDelta(t, 20*time.Minute, st.SinceAnswer, float64(3*time.Second))
		require.Equal(t, 1, s.log.count("no usable answer from the Sentinels"))

		s.sentinels[1].Hang(false)
		time.Sleep(2 * time.Second)
		require.Equal(t, 1, s.log.count("no usable answer from the Sentinels"))
		require.Equal(t, 1, s.log.count("Sentinels answer again"))
		require.Equal(t, 1, r.Stats().Reachable)
		require.Less(t, r.Stats().SinceAnswer, 2*time.Second)
	})
}

func TestARestartedSentinelIsAskedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		r := s.settled()
		s.sentinels[0].Cut()
		time.Sleep(2 * time.Second)
		require.Zero(t, r.Stats().PollErrors)
		require.Zero(t, s.log.count("no usable answer from the Sentinels"))
	})
}

func TestASubscriptionThatComesBackAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		r := s.settled()
		require.Equal(t, 1, s.sentinels[0].Subscribers("+switch-master"))
		s.sentinels[0].Stop()
		time.Sleep(10 * time.Second)
		require.Equal(t, 0, s.sentinels[0].Subscribers("+switch-master"))
		s.sentinels[0].Restart()
		time.Sleep(2100 * time.Millisecond)
		require.Equal(t, 1, s.sentinels[0].Subscribers("+switch-master"))
		s.sentinels[0].Switch(group, primaryB, 2)
		require.LessOrEqual(t, await(t, r, time.Second, at(primaryB)), 50*time.Millisecond)
	})
}

func TestADeadSubscriptionIsNoticedWithinTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := make(chan struct{})
		l := &listener{addr: "10.1.0.1:26379", master: group, access: &access{dial: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() { // reads all and says nothing but what SUBSCRIBE wants to hear
				defer close(lost)
				defer func() { _ = far.Close() }()
				b := make([]byte, 4096)
				_, _ = far.Read(b)
				_, _ = far.Write([]byte("*3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n"))
				for {
					if _, err := far.Read(b); err != nil {
						return
					}
				}
			}()
			return near, nil
		}}}
		start := time.Now()
		var events []event
		err := l.listen(t.Context(), time.Second, func(e event) { events = append(events, e) })
		require.True(t, timedOut(err))
		require.Equal(t, []event{subscribed}, events)
		require.LessOrEqual(t, time.Since(start), 2*time.Second)
		<-lost
	})
}

func TestALivingSubscriptionStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		var dials atomic.Int64
		s.settled(func(c *SentinelConfig) {
			c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				dials.Add(1)
				return s.net.Dial(ctx, network, addr)
			}
		})
		time.Sleep(20 * time.Minute)
		require.EqualValues(t, 2, dials.Load())
		require.Equal(t, 2, s.sentinels[0].Connections())
	})
}

func TestRefreshAsksNowButNotTooOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 2)
		r := s.settled()
		tell(primaryB, 2, s.sentinels...)
		r.Refresh()
		require.LessOrEqual(t, await(t, r, time.Second, at(primaryB)), time.Millisecond)

		time.Sleep(500 * time.Millisecond)
		before := r.Stats().Polls
		for range 1000 {
			r.Refresh()
			time.Sleep(time.Millisecond)
		}
		asked := r.Stats().Polls - before
		require.LessOrEqual(t, asked, uint64(2*21))
		require.GreaterOrEqual(t, asked, uint64(2*19))
	})
}

func TestAddressesAreMapped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		behind := testserver.NewSentinel(t, s.net, "192.0.2.7:30001") // 10.1.0.9:26379 inside
		behind.Monitor(testserver.Monitored{Name: group, Primary: primaryB, Epoch: 2})
		m, _ := s.sentinels[0].Monitored(group)
		m.Others = []testserver.OtherSentinel{{Addr: "10.1.0.9:26379", ID: behind.ID()}}
		m.Replicas = []testserver.MonitoredReplica{{Addr: primaryB}}
		s.sentinels[0].Monitor(m)
		nat := map[string]string{primaryA: "192.0.2.7:30002", primaryB: "192.0.2.7:30003", "10.1.0.9:26379": "192.0.2.7:30001"}
		r := s.open(func(c *SentinelConfig) {
			c.Replicas = true
			c.MapAddr = func(addr string) string { return nat[addr] }
		})
		await(t, r, time.Second, func(st *State) bool {
			return st.Primary == "192.0.2.7:30002" && len(st.Replicas) == 1 && st.Replicas[0] == "192.0.2.7:30003"
		})
		await(t, r, time.Second, at("192.0.2.7:30003")) // what the discovered one says
	})
}

func TestAnnouncedNamesAndIPv6AreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1)
		r := s.settled()
		for i, addr := range []string{"redis-1.example.com:6379", "[2001:db8::1]:6379"} {
			s.sentinels[0].Switch(group, addr, uint64(i+2))
			await(t, r, time.Second, at(addr))
		}
	})
}

func TestReplicasThatAreUpAndLinkedAreListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		r := s.settled(func(c *SentinelConfig) { c.Replicas = true })
		require.Empty(t, r.State().Replicas)
		set := func(replicas ...testserver.MonitoredReplica) {
			for _, sentinel := range s.sentinels {
				m, _ := sentinel.Monitored(group)
				m.Replicas = replicas
				sentinel.Monitor(m)
			}
			time.Sleep(1300 * time.Millisecond)
		}
		set(
			testserver.MonitoredReplica{Addr: "10.0.0.5:6379"},
			testserver.MonitoredReplica{Addr: "10.0.0.3:6379", Flags: "slave"},
			testserver.MonitoredReplica{Addr: "10.0.0.4:6379", LinkDown: true},
			testserver.MonitoredReplica{Addr: "10.0.0.6:6379", Flags: "s_down,slave"},
			testserver.MonitoredReplica{Addr: "10.0.0.7:6379", Flags: "slave,o_down"},
			testserver.MonitoredReplica{Addr: "10.0.0.8:6379", Flags: "slave,disconnected"},
			testserver.MonitoredReplica{Addr: "10.0.0.9:0"},
			testserver.MonitoredReplica{Addr: primaryA},
		)
		require.Equal(t, []string{"10.0.0.3:6379", "10.0.0.5:6379"}, r.State().Replicas)
		require.EqualValues(t, 1, r.State().Epoch)

		set(testserver.MonitoredReplica{Addr: primaryB})
		require.Equal(t, []string{primaryB}, r.State().Replicas)
		s.sentinels[0].Switch(group, primaryB, 2)
		await(t, r, time.Second, at(primaryB))
		require.Empty(t, r.State().Replicas)

		for _, sentinel := range s.sentinels {
			sentinel.Stop()
		}
		before := r.State()
		time.Sleep(time.Minute)
		require.Equal(t, before, r.State())
	})
}

func TestAReplicaThatAMinoritySeesIsNotListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		for i, sentinel := range s.sentinels {
			m, _ := sentinel.Monitored(group)
			m.Replicas = []testserver.MonitoredReplica{{Addr: "10.0.0.3:6379", LinkDown: i > 0}, {Addr: "10.0.0.4:6379", LinkDown: i == 0}}
			sentinel.Monitor(m)
		}
		r := s.settled(func(c *SentinelConfig) { c.Replicas = true })
		require.Equal(t, []string{"10.0.0.4:6379"}, r.State().Replicas)
	})
}

func TestNothingIsToldWithoutNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3)
		r := s.settled(func(c *SentinelConfig) { c.Replicas = true })
		changed := r.Changed()
		select {
		case <-changed:
			require.Fail(t, "a change without one")
		case <-time.After(time.Minute):
		}
		for _, sentinel := range s.sentinels {
			m, _ := sentinel.Monitored(group)
			m.Replicas = []testserver.MonitoredReplica{{Addr: primaryB}}
			sentinel.Monitor(m)
		}
		<-changed
		require.Equal(t, []string{primaryB}, r.State().Replicas)
	})
}

func TestStateIsReadWithoutAllocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newScene(t, 1).settled()
		synctest.Wait() // nobody else allocates
		require.Zero(t, testing.AllocsPerRun(100, func() { _ = r.State() }))
	})
}

func TestCloseEndsEverythingAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 4)
		r := s.settled()
		s.sentinels[0].Hang(true)
		s.net.Add(s.addrs[1], testserver.BlackHole)
		s.sentinels[1].Cut()
		time.Sleep(1100 * time.Millisecond) // asked, and waiting
		start := time.Now()
		require.NoError(t, r.Close())
		require.NoError(t, r.Close())
		require.Zero(t, time.Since(start))
		s.sentinels[0].Hang(false)
		synctest.Wait()
		for _, sentinel := range s.sentinels {
			require.Zero(t, sentinel.Connections())
		}
		r.Refresh()
		tell(primaryB, 2, s.sentinels...)
		time.Sleep(time.Minute)
		require.Equal(t, primaryA, r.State().Primary)
	})
}
