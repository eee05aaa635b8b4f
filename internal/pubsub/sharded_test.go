package pubsub_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/pubsub"
)

func TestChannelsAreSubscribedWhereTheirSlotIs(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		require.Zero(t, c.Stats().Connections)
		channels := tagged(100)
		start := time.Now()
		c.add(channels...)
		require.Zero(t, time.Since(start))
		for i := range c.nodes {
			require.Equal(t, c.of(i, channels), c.on(i))
		}
		c.delivered(channels...)
		stats := c.Stats()
		require.Equal(t, pubsub.Stats{Channels: 100, Live: 100, Connections: 3, Connects: 3, Messages: 100}, stats)
		require.Equal(t, 100, c.counted(-1, "SSUBSCRIBE"), "each once")
		require.Empty(t, c.lostChannels())

		c.add(channels...)
		c.Remove(channels[:50]...)
		synctest.Wait()
		require.Equal(t, 100, c.counted(-1, "SSUBSCRIBE"))
		require.Equal(t, 50, c.counted(-1, "SUNSUBSCRIBE"))
		for _, channel := range channels[:50] {
			require.Zero(t, c.publish(channel, "x"))
		}
		c.delivered(channels[50:]...)
	})
}

// other returns another node with slots.
func other(node int) int { return (node + 1) % 3 }

func TestAChannelFollowsItsSlotAndTheOthersStay(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := tagged(30)
		c.add(channels...)
		for i, channel := range channels[:5] {
			for range 4 { // to nodes with channels, to one without, and back
				start, to := time.Now(), (c.owner(channel)+1)%4
				c.migrate(to, slotOf(channel))
				synctest.Wait()
				require.Zero(t, time.Since(start))
				require.Len(t, c.liveChannels(), 30)
				require.Contains(t, c.on(to), channel)
				c.delivered(channels...)
				time.Sleep(time.Minute)
			}
			require.Len(t, c.lostChannels(), 4*(i+1))
			require.Subset(t, channels[:i+1], c.lostChannels())
		}
		require.EqualValues(t, 20, c.Stats().Moves)
		for range 3 { // what was long ago does not slow it down
			c.migrate((c.owner(channels[0])+1)%4, slotOf(channels[0]))
			time.Sleep(100 * time.Millisecond)
			require.Len(t, c.liveChannels(), 30)
		}
		require.Zero(t, c.Stats().Gaps)
		require.ErrorContains(t, c.reasons()[0], "the node does not serve the channel's slot any more")
	})
}

// The nodes learn of a migration one after the other.
func TestANodeThatDoesNotServeAChannelIsNotAskedWithoutPause(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := tagged(30)
		c.add(channels...)
		channel := channels[0]
		from, to := c.owner(channel), other(c.owner(channel))
		for i := range c.nodes {
			if i != from {
				c.isolate(i)
			}
		}
		c.migrate(to, slotOf(channel)) // the new owner says that it is the old one's
		synctest.Wait()
		before, topologies := c.counted(-1, "SSUBSCRIBE"), c.counted(-1, "CLUSTER")
		time.Sleep(time.Minute)
		require.Len(t, c.liveChannels(), 29)
		require.Less(t, c.counted(-1, "SSUBSCRIBE")-before, 60*4/3+10)
		require.Greater(t, c.counted(-1, "SSUBSCRIBE")-before, 30)
		require.Less(t, c.counted(-1, "CLUSTER")-topologies, 2*60*4/3+10)
		require.Equal(t, []string{channel}, c.lostChannels(), "told once")
		c.delivered(channels[1:]...)

		c.join()
		time.Sleep(2500 * time.Millisecond)
		require.Len(t, c.liveChannels(), 30)
		c.delivered(channels...)
		require.Equal(t, []string{channel}, c.lostChannels())
	})
}

func TestALargeMigrationIsFollowed(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := tagged(300)
		c.add(channels...)
		topologies := c.counted(-1, "CLUSTER")
		start := time.Now()
		for _, channel := range channels { // one slot after the other
			c.migrate(3, slotOf(channel))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(1100 * time.Millisecond)
		require.Equal(t, c.liveChannels(), c.on(3))
		require.Len(t, c.liveChannels(), 300)
		require.Less(t, c.counted(-1, "CLUSTER")-topologies, int(time.Since(start)/(35*time.Millisecond)))
		c.delivered(channels...)
		require.Len(t, c.lostChannels(), 300)
		time.Sleep(10 * time.Second)
		require.Equal(t, 1, c.Stats().Connections)
	})
}

func TestANodeThatDiesCostsItsOwnChannelsAlone(t *testing.T) {
	for name, fault := range map[string]func(n *node){
		"killed": func(n *node) { n.srv.Stop() },
		"hung":   func(n *node) { n.hang() },
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, c *cluster) {
				channels := tagged(60)
				c.add(channels...)
				time.Sleep(time.Minute)
				dead := c.of(1, channels)
				fault(c.nodes[1])
				time.Sleep(2 * pingTime)
				synctest.Wait()
				require.ElementsMatch(t, dead, c.lostChannels())
				require.Len(t, c.reasons(), 1)
				require.EqualValues(t, 1, c.Stats().Gaps)
				c.delivered(append(c.of(0, channels), c.of(2, channels)...)...)

				time.Sleep(10 * time.Second)
				c.takeOver(1, 3)
				taken := time.Now()
				for len(c.liveChannels()) < 60 {
					time.Sleep(10 * time.Millisecond)
				}
				t.Logf("live %s after another node had the slots", time.Since(taken))
				require.Less(t, time.Since(taken), time.Minute, "go-redis itself asks nodes by chance, and one that hangs for seconds each time")
				require.True(t, !c.cn.Own() || time.Since(taken) < 3*time.Second)
				require.Equal(t, dead, c.on(3))
				c.delivered(channels...)
				require.ElementsMatch(t, dead, c.lostChannels(), "once each")

				c.nodes[1].heal()
				require.NoError(t, c.nodes[1].srv.Restart())
				c.join()
				time.Sleep(time.Minute)
				c.delivered(channels...)
				require.Zero(t, c.nodes[1].open()-c.poolOf(1), "no subscription is left")
				require.ElementsMatch(t, dead, c.lostChannels())
			})
		})
	}
}

// poolOf returns how many connections to a node have no subscription.
func (c *cluster) poolOf(node int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[node].open() - len(c.nodes[node].subs)
}

func TestTheSuccessorOfANodeIsFoundAtOnce(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := tagged(30)
		c.add(channels...)
		time.Sleep(500 * time.Millisecond)
		c.takeOver(1, 3)
		c.nodes[1].srv.Stop()
		time.Sleep(100 * time.Millisecond)
		if !c.cn.Own() {
			time.Sleep(900 * time.Millisecond) // go-redis dials the old one five times
		}
		c.delivered(channels...)
		require.ElementsMatch(t, c.of(3, channels), c.lostChannels())
	})
}

func TestANodeThatComesBackServesItsChannels(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := tagged(30)
		c.add(channels...)
		for range 3 {
			c.nodes[1].srv.Stop()
			time.Sleep(time.Minute)
			require.Len(t, c.liveChannels(), 30-len(c.of(1, channels)))
			require.NoError(t, c.nodes[1].srv.Restart())
			time.Sleep(1500 * time.Millisecond)
			require.Len(t, c.liveChannels(), 30)
			c.delivered(channels...)
		}
		require.Len(t, c.reasons(), 3)
	})
}

// It answers PING, and does not know that its slots are another's.
func TestANodeThatIsCutOffFromItsClusterIsLeft(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := tagged(30)
		c.add(channels...)
		time.Sleep(time.Minute)
		own := c.of(1, channels)
		c.answers(1, func(p *server.Peer, cmd string, _ ...string) bool { // who can reach it asks it in vain
			if cmd == "CLUSTER" {
				p.WriteError("ERR not now")
				return true
			}
			return false
		})
		c.takeOver(1, 2)
		time.Sleep(15 * time.Second)
		require.Len(t, c.liveChannels(), 30)
		require.Empty(t, c.on(1))
		lost := c.lostChannels()
		slices.Sort(lost) // twice, if the client comes back to it before it knows better
		require.ElementsMatch(t, own, slices.Compact(lost))
		if !c.cn.Own() { // else its connections are closed
			require.EqualError(t, c.reasons()[0], "another node of the Cluster serves the channel now")
		}
		c.delivered(channels...)
	})
}

// It may go on for a moment, as long as it has not unsubscribed from the channel.
func TestWhatANodeSendsAfterItWasLeftIsDropped(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := tagged(30)
		c.add(channels...)
		c.answers(1, func(_ *server.Peer, cmd string, _ ...string) bool { return cmd == "SUNSUBSCRIBE" })
		own := c.of(1, channels)
		c.takeOver(1, 2)
		// Not until one is lost: it is, too, when the connection to the old one is.
		for len(c.on(2)) < len(c.of(2, channels)) {
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		require.Len(t, c.liveChannels(), 30)
		if left := c.on(1); len(left) > 0 { // else its connections are closed already
			require.Equal(t, own, left)
		}
		c.sentBy(1, own[0], "from the old one")
		synctest.Wait()
		require.Empty(t, c.messages(own[0]))
		c.delivered(own...)
	})
}

// On two cores at the least.
func TestFunctionsAreCalledOneAtATime(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := tagged(60)
		c.add(channels...)
		for i := range 50 { // the holder requires it
			for _, channel := range channels {
				c.sent(channel, fmt.Sprint(i))
			}
			c.Remove(channels[i])
			c.Add(channels[i])
		}
		synctest.Wait()
		require.Len(t, c.messages(channels[59]), 50)
	})
}

func TestASlotThatNobodyServesDisturbsNoOther(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := tagged(30)
		c.add(channels[1:]...)
		c.migrate(-1, slotOf(channels[0]))
		c.add(channels[0])
		time.Sleep(time.Minute)
		require.Len(t, c.liveChannels(), 29)
		require.Equal(t, []string{channels[0]}, c.lostChannels())
		require.Less(t, c.counted(-1, "SSUBSCRIBE"), 29+60*4/3+10)
		require.Zero(t, c.Stats().Gaps)
		c.migrate(2, slotOf(channels[0]))
		time.Sleep(2500 * time.Millisecond)
		c.delivered(channels...)
	})
}

// refuses lets a node refuse channels.
func (c *cluster) refuses(node int, forbidden func(channel string) bool) {
	c.answers(node, func(p *server.Peer, cmd string, args ...string) bool {
		if cmd != "SSUBSCRIBE" || !forbidden(args[0]) {
			return false
		}
		p.WriteError("NOPERM No permissions to access a channel")
		return true
	})
}

func TestARefusedShardedChannelDoesNotDisturbTheOthers(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := tagged(100)
		refused := c.of(1, channels)[:3]
		c.refuses(1, func(channel string) bool { return slices.Contains(refused, channel) })
		c.add(channels...)
		require.Len(t, c.liveChannels(), 97)
		require.ElementsMatch(t, refused, c.refusedChannels())
		require.Equal(t, 3, c.Stats().Refused)
		require.Empty(t, c.lostChannels())
		require.Equal(t, 100, c.counted(-1, "SSUBSCRIBE"))
		time.Sleep(5 * time.Second)
		require.Equal(t, 100, c.counted(-1, "SSUBSCRIBE"))
		c.migrate(2, slotOf(refused[0])) // which does not refuse it
		time.Sleep(10 * time.Second)
		if c.cn.Own() {
			require.Len(t, c.liveChannels(), 98)
			require.Equal(t, 101, c.counted(-1, "SSUBSCRIBE"))
		}
		c.answers(1, nil)
		time.Sleep(time.Minute) // so often asks go-redis by itself
		require.Len(t, c.liveChannels(), 100)
		require.Zero(t, c.Stats().Refused)
		c.delivered(channels...)
	})
}

func TestANodeThatRefusesAllIsLeftAlone(t *testing.T) {
	for _, n := range []int{1, 3, 300} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			inCluster(t, func(t *testing.T, c *cluster) {
				channels := tagged(n)
				own := c.of(c.owner(channels[0]), channels)
				c.refuses(c.owner(channels[0]), func(string) bool { return true })
				c.add(channels...)
				require.ElementsMatch(t, own, c.refusedChannels())
				require.Empty(t, c.lostChannels())
				require.Len(t, c.liveChannels(), n-len(own))
				before, topologies := c.counted(c.owner(channels[0]), "SSUBSCRIBE"), c.counted(-1, "CLUSTER")
				time.Sleep(20 * time.Second)
				require.Equal(t, before, c.counted(c.owner(channels[0]), "SSUBSCRIBE"), "nothing is tried meanwhile")
				require.LessOrEqual(t, c.counted(-1, "CLUSTER")-topologies, 10, "that is no reason to ask for the topology")
				c.answers(c.owner(channels[0]), nil)
				time.Sleep(30 * time.Second)
				require.Len(t, c.liveChannels(), n)
			})
		})
	}
}

// UNSUBSCRIBE has two answers where its slot goes at the same time. The second
// must not be taken for that to the next command, or not for long.
func TestASlotThatGoesWhileItsChannelIsRemovedDisturbsNoOther(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := c.of(1, tagged(60))
		c.add(channels...)
		gone := channels[0]
		c.answers(1, func(p *server.Peer, cmd string, args ...string) bool {
			if cmd != "SUNSUBSCRIBE" || args[0] != gone {
				return false
			}
			c.slots[slotOf(gone)] = 2
			c.unsubscribe()
			c.mu.Unlock()
			defer c.mu.Lock()
			time.Sleep(time.Millisecond) // the next command is sent
			return false                 // MOVED
		})
		c.Remove(gone)
		synctest.Wait()
		more := c.of(1, tagged(200)[60:])
		c.add(more...)
		time.Sleep(100 * time.Millisecond)
		require.Len(t, c.liveChannels(), len(channels)+len(more), "gone is taken for live by the test alone")
		require.LessOrEqual(t, len(c.lostChannels()), 1)
		c.delivered(channels[1:]...)
		c.delivered(more...)
		require.Zero(t, c.Stats().Gaps)
		c.add(gone)
		time.Sleep(100 * time.Millisecond)
		c.delivered(gone)
		require.Contains(t, c.on(2), gone)
		c.Remove(append(channels, more...)...)
		synctest.Wait()
		require.Empty(t, slices.Concat(c.on(0), c.on(1), c.on(2)))
	})
}

func TestRepliesThatNoClusterSendsAreAnInterruption(t *testing.T) {
	for name, reply := range map[string]string{
		"empty array": "*0\r\n", "short": "*1\r\n$10\r\nssubscribe\r\n", "garbage": "?!\r\n", "error out of turn": "-ERR what\r\n",
		"LOADING": "-LOADING now\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, c *cluster) {
				channels := tagged(30)
				c.add(channels...)
				own := c.of(1, channels)
				c.says(1, reply)
				time.Sleep(time.Second)
				require.ElementsMatch(t, own, c.lostChannels())
				c.delivered(channels...)
			})
		})
	}
	for name, reply := range map[string]string{
		"MOVED out of turn": "-MOVED 1 10.0.0.2:6379\r\n", "another's confirmation": "*3\r\n$10\r\nssubscribe\r\n$1\r\na\r\n:1\r\n",
		"another's end": "*3\r\n$12\r\nsunsubscribe\r\n$1\r\na\r\n:1\r\n", "a plain one's end": "*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, c *cluster) {
				channels := tagged(30)
				c.add(channels...)
				c.says(1, reply)
				time.Sleep(time.Second)
				require.Empty(t, c.lostChannels(), "nothing has happened")
				c.delivered(channels...)
			})
		})
	}
}

func TestAUserWithoutSunsubscribeAndPingIsServed(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		for i := range c.nodes {
			c.answers(i, func(p *server.Peer, cmd string, _ ...string) bool {
				if cmd == "PING" || cmd == "SUNSUBSCRIBE" {
					p.WriteError("NOPERM this user has no permissions to run the command")
					return true
				}
				return false
			})
		}
		channels := tagged(30)
		c.add(channels...)
		time.Sleep(time.Minute)
		c.Remove(channels[:10]...)
		synctest.Wait()
		c.publish(channels[0], "not wanted")
		require.Empty(t, c.messages(channels[0]))
		c.add(channels[:10]...)
		c.delivered(channels...)
		require.Empty(t, c.lostChannels())
	})
}

func TestConnectionsEndAfterTheirLastChannel(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := tagged(60)
		for range 3 {
			c.add(channels...)
			require.Equal(t, 3, c.Stats().Connections)
			c.Remove(c.of(1, channels)...)
			time.Sleep(4900 * time.Millisecond)
			require.Equal(t, 3, c.Stats().Connections)
			time.Sleep(200 * time.Millisecond)
			require.Equal(t, 2, c.Stats().Connections)
			c.delivered(append(c.of(0, channels), c.of(2, channels)...)...)
			c.Remove(channels...)
			time.Sleep(6 * time.Second)
			require.Zero(t, c.Stats().Connections)
		}
		require.Empty(t, c.lostChannels())
		require.EqualValues(t, 9, c.Stats().Connects)
		require.False(t, pubsub.Routing(c.Channels))
	})
}

func TestNodesThatAreNotUsedAreForgotten(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := tagged(30)
		c.add(channels...)
		c.delivered(channels...)
		require.Equal(t, 3, pubsub.Shards(c.Channels))
		c.takeOver(1, 0)
		c.join()
		time.Sleep(10 * time.Second)
		require.Equal(t, 2, pubsub.Shards(c.Channels))
		c.delivered(channels...)
		require.EqualValues(t, 60, c.Stats().Messages, "what they did is not")
		require.EqualValues(t, 3, c.Stats().Connects)
	})
}

func TestWithoutATopologyChannelsWait(t *testing.T) {
	for name, fault := range map[string]func(n *node){
		"killed": func(n *node) { n.srv.Stop() },
		"hung":   func(n *node) { n.hang() },
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, c *cluster) {
				for _, n := range c.nodes {
					fault(n)
				}
				channels := tagged(30)
				c.add(channels[:20]...)
				time.Sleep(10 * time.Second)
				c.add(channels[20:]...)
				time.Sleep(time.Minute)
				require.ElementsMatch(t, channels, c.lostChannels(), "told once each")
				dials := 0
				for _, n := range c.nodes {
					dials += n.dialled()
					n.heal()
					require.NoError(t, n.srv.Restart())
				}
				require.Less(t, dials, 3*10*70*4/3)
				time.Sleep(3 * time.Second)
				if !c.cn.Own() {
					time.Sleep(20 * time.Second) // go-redis has given up by then
				}
				require.Len(t, c.liveChannels(), 30)
				c.delivered(channels...)
			})
		})
	}
}

func TestClosingTheClientOfAClusterIsTheLastThingLost(t *testing.T) {
	inCluster(t, func(t *testing.T, c *cluster) {
		channels := tagged(30)
		c.add(channels...)
		require.NoError(t, c.cn.Close())
		if rdb, ok := c.cn.Unwrap().(*redis.ClusterClient); ok {
			_ = rdb.Close()
		}
		time.Sleep(time.Second)
		require.Empty(t, c.liveChannels())
		require.ErrorIs(t, last(c.reasons()), redis.ErrClosed)
		told := len(c.reasons())
		time.Sleep(time.Minute)
		require.Len(t, c.reasons(), told)
		dials := c.nodes[0].dialled()
		c.add("ns:lock:{another}:p:abc")
		time.Sleep(time.Second)
		require.ErrorIs(t, last(c.reasons()), redis.ErrClosed)
		require.Contains(t, c.lostChannels(), "ns:lock:{another}:p:abc")
		require.Equal(t, dials, c.nodes[0].dialled())
	})
}

func TestCloseEndsAllConnectionsAtOnce(t *testing.T) {
	channels := tagged(30)
	for name, prepare := range map[string]func(c *cluster){
		"never used": func(*cluster) {},
		"live":       func(c *cluster) { c.add(channels...) },
		"lingering":  func(c *cluster) { c.add(channels...); c.Remove(channels...); synctest.Wait() },
		"node away":  func(c *cluster) { c.add(channels...); c.nodes[1].srv.Stop(); time.Sleep(time.Minute) },
		"refused":    func(c *cluster) { c.refuses(1, func(string) bool { return true }); c.add(channels...) },
		"displaced":  func(c *cluster) { c.add(channels...); c.migrate(2, slotOf(channels[0])) },
		"nowhere": func(c *cluster) {
			for _, n := range c.nodes {
				n.srv.Stop()
			}
			c.add(channels...)
			time.Sleep(time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, c *cluster) {
				prepare(c)
				start := time.Now()
				require.NoError(t, c.Close())
				require.NoError(t, c.Close())
				require.Zero(t, time.Since(start))
				require.Zero(t, c.Stats().Connections)
				var live, errs int
				c.read(func() { live, errs = len(c.live), len(c.errs) })
				c.add("ns:lock:{another}:p:abc")
				c.Remove(channels...)
				c.migrate(3, slotOf(channels[0]))
				time.Sleep(time.Minute)
				require.Len(t, c.liveChannels(), live)
				require.Len(t, c.reasons(), errs, "that is no loss")
				require.Zero(t, c.Stats().Channels)
			})
		})
	}
}

func last(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	return errs[len(errs)-1]
}
