package pubsub_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/stretchr/testify/require"
)

func forbidden(channel string) bool { return strings.HasPrefix(channel, "no") }

func TestARefusedChannelDoesNotDisturbTheOthers(t *testing.T) {
	for _, n := range []int{1, 2, 10, 3000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.refuse(forbidden)
				w.add(append(numbered(n), "no1", "no2", "no3")...)
				require.Equal(t, n, w.Stats().Live)
				require.Equal(t, 3, w.Stats().Refused)
				require.ElementsMatch(t, []string{"no1", "no2", "no3"}, w.refused)
				require.ErrorContains(t, w.Stats().LastError, "NOPERM")
				require.Less(t, w.count("SUBSCRIBE"), 300)
				w.publish("c0", "x")
				require.Equal(t, []string{"x"}, w.messages("c0"))

				w.add("further")
				require.Equal(t, n+1, w.Stats().Live)
				w.remove("no3")
				synctest.Wait()
				require.Equal(t, 2, w.Stats().Refused)
				w.refuse(func(channel string) bool { return channel == "no1" })
				time.Sleep(30 * time.Second)
				require.Equal(t, n+2, w.Stats().Live, "tried again")
				require.Equal(t, 1, w.Stats().Refused)
				require.Zero(t, w.gapCount())
				require.Equal(t, 1, w.dialled())
			})
		})
	}
}

func TestARefusalIsRetriedEvery30Seconds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.refuse(forbidden)
		w.add("a")
		before := w.count("SUBSCRIBE")
		w.add("no")
		time.Sleep(time.Hour)
		tries := w.count("SUBSCRIBE") - before
		require.Greater(t, tries, 3600/30-1)
		require.Less(t, tries, 3600/20)
	})
}

func TestWhereAllIsRefusedNoConnectionIsHeld(t *testing.T) {
	for _, n := range []int{1, 2, 10, 3000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.refuse(func(string) bool { return true })
				w.add(numbered(n)...)
				_, err := w.lastGap()
				require.EqualError(t, err, "the server refuses the channels: NOPERM No permissions to access a channel")
				require.Empty(t, w.refused, "Gap says it")
				require.Zero(t, w.open())
				subscribes := w.count("SUBSCRIBE")
				require.LessOrEqual(t, subscribes, 11+16)
				for i := range 100 {
					w.add(fmt.Sprint("further", i))
				}
				time.Sleep(20 * time.Second)
				require.Equal(t, subscribes, w.count("SUBSCRIBE"), "nothing is tried meanwhile")
				time.Sleep(time.Hour)
				require.Equal(t, 1, w.gapCount(), "one interruption")
				require.Less(t, w.dialled(), 3600/20)
				require.Greater(t, w.dialled(), 3600/30-1)

				w.answer(nil)
				time.Sleep(30 * time.Second)
				require.Equal(t, n+100, w.Stats().Live)
				require.Zero(t, w.Stats().Refused)
			})
		})
	}
}

func TestThePauseAfterARefusalEndsByRenewAndWithTheLastChannel(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.refuse(func(string) bool { return true })
		w.add("a")
		time.Sleep(time.Second)
		w.Renew()
		synctest.Wait()
		require.Equal(t, 2, w.count("SUBSCRIBE"))
		w.remove("a")
		synctest.Wait()
		w.add("b")
		require.Equal(t, 3, w.count("SUBSCRIBE"), "what is added then is tried at once")
		w.answer(nil)
		w.Renew()
		synctest.Wait()
		require.Equal(t, 1, w.Stats().Live)
	})
}

func TestAServerThatCannotServeNowIsTriedAgainSoon(t *testing.T) {
	for _, reply := range []string{
		"LOADING Redis is loading the dataset in memory", "MASTERDOWN Link with MASTER is down", "CLUSTERDOWN The cluster is down",
		"TRYAGAIN later", "BUSY Redis is busy running a script", "ERR max number of clients reached", "NOAUTH Authentication required.",
		"READONLY You can't write against a read only replica.",
	} {
		t.Run(reply[:8], func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.answer(func(p *server.Peer, cmd string, _ ...string) bool {
					if cmd != "SUBSCRIBE" {
						return false
					}
					p.WriteError(reply)
					return true
				})
				w.add("a")
				time.Sleep(10 * time.Second)
				_, err := w.lastGap()
				require.EqualError(t, err, reply)
				require.Empty(t, w.refused)
				w.answer(nil)
				time.Sleep(time.Second)
				require.Equal(t, 1, w.Stats().Live)
				require.Equal(t, 1, w.gapCount())
			})
		})
	}
}
