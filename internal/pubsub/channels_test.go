package pubsub_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/pubsub"
)

func numbered(n int) []string {
	channels := make([]string, n)
	for i := range channels {
		channels[i] = fmt.Sprint("c", i)
	}
	return channels
}

func TestWhatIsMissingOrNegativeIsRefused(t *testing.T) {
	open := func(context.Context) *redis.PubSub { return nil }
	for want, cfg := range map[string]pubsub.Config{
		"pubsub: Config.Open is nil, want a function such as rdb.Subscribe":  {},
		"pubsub: Config.Ping is -1ns, want more than 0, or 0 for 1s":         {Open: open, Ping: -1},
		"pubsub: Config.CloseTimeout is -1ns, want more than 0, or 0 for 5s": {Open: open, CloseTimeout: -1},
	} {
		_, err := pubsub.New(cfg)
		require.EqualError(t, err, want)
	}
}

func TestMessagesFollowTheConfirmationInOrder(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		require.Zero(t, w.dialled())
		start := time.Now()
		w.add("a", "b")
		require.ElementsMatch(t, []string{"+a", "+b"}, w.history())
		require.Equal(t, 1, w.count("SUBSCRIBE"), "one command for both")
		for i := range 100 {
			w.publish("a", fmt.Sprint(i))
		}
		got := w.messages("a")
		require.Len(t, got, 100)
		for i, payload := range got {
			require.Equal(t, fmt.Sprint(i), payload)
		}
		w.publish("c", "of another channel")
		require.Empty(t, w.messages("c"))
		require.Zero(t, time.Since(start))
		require.Equal(t, pubsub.Stats{Channels: 2, Live: 2, Connections: 1, Connects: 1, Messages: 100}, w.Stats())
	})
}

func TestAddingAChannelTwiceIsAddingItOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.Add("a", "a")
		w.add("a")
		w.add("a")
		w.add()
		require.Equal(t, []string{"+a"}, w.history())
		require.Equal(t, 1, w.count("SUBSCRIBE"))
		w.publish("a", "x")
		require.Equal(t, []string{"x"}, w.messages("a"))
		w.remove("a", "a", "never added")
		synctest.Wait()
		require.Equal(t, 1, w.count("UNSUBSCRIBE"))
		w.publish("a", "y")
		require.Equal(t, []string{"x"}, w.messages("a"))
		require.Zero(t, w.srv.PubSubNumSub("a")["a"])
	})
}

func TestThousandsOfChannelsTakeFewCommands(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		channels := numbered(5000)
		for _, channel := range channels {
			w.Add(channel)
		}
		synctest.Wait()
		require.Equal(t, 5000, w.Stats().Live)
		require.LessOrEqual(t, w.count("SUBSCRIBE"), 50, "what gathers goes out at once")
		for _, args := range w.args {
			require.LessOrEqual(t, len(args), 1000)
		}
		w.srv.Stop()
		synctest.Wait()
		require.Zero(t, w.Stats().Live)
		require.NoError(t, w.srv.Restart())
		time.Sleep(2 * time.Second)
		require.Equal(t, 5000, w.Stats().Live, "all come back")
		w.remove(channels...)
		synctest.Wait()
		require.LessOrEqual(t, w.count("UNSUBSCRIBE"), 10)
		require.Empty(t, w.srv.PubSubChannels("*"))
	})
}

// What comes and goes all the time must not keep UNSUBSCRIBE from being sent.
func TestUnsubscribingIsNotStarvedBySubscribing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer(func(_ *server.Peer, cmd string, _ ...string) bool {
			if cmd == "SUBSCRIBE" {
				time.Sleep(5 * time.Millisecond) // so that more gathers meanwhile
			}
			return false
		})
		for i := range 1000 {
			w.Add(fmt.Sprint(i))
			if i > 0 {
				w.remove(fmt.Sprint(i - 1))
			}
			time.Sleep(time.Millisecond)
			require.LessOrEqual(t, len(w.srv.PubSubChannels("*")), 20)
		}
	})
}

func TestAChannelRemovedAndAddedAgainIsConfirmedAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.add("a")
		w.Remove("a")
		w.add("a")
		require.Equal(t, []string{"+a", "+a"}, w.history())
		w.publish("a", "1")
		w.remove("a")
		synctest.Wait()
		w.publish("a", "2")
		w.add("a")
		w.publish("a", "3")
		require.Equal(t, []string{"+a", "+a", "a=1", "+a", "a=3"}, w.history())
		require.Equal(t, 1, w.Stats().Live)
	})
}

// Subscribed may be called for a channel that has been removed and added again
// since: what is published after that is delivered all the same.
func TestWhatFollowsALateConfirmationIsDelivered(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var s *pubsub.Subscription
		other := map[string]string{"a": "b", "b": "a"}
		round, sent, first := 0, 0, ""
		got := make(map[string]bool)
		s, err := pubsub.New(pubsub.Config{
			Open: func(ctx context.Context) *redis.PubSub { return w.rdb.Subscribe(ctx) },
			Subscribed: func(channel string) {
				switch {
				case round == 0:
				case first == "":
					first = channel
					s.Remove(other[channel])
					s.Add(other[channel])
				case channel == other[first] && sent < round: // told to the one that was removed
					sent = round
					w.srv.Publish(channel, fmt.Sprint(round))
					time.Sleep(time.Microsecond) // the link reads it
				}
			},
			Message: func(_, payload string) {
				if payload == "again" { // here, so that nothing is looked at in between
					s.Remove("a", "b")
					s.Add("a", "b")
					return
				}
				got[payload] = true
			},
		})
		require.NoError(t, err)
		s.Add("a", "b", "c")
		synctest.Wait()
		for round = 1; round <= 50; round++ {
			first = ""
			w.srv.Publish("c", "again")
			time.Sleep(time.Millisecond)
			synctest.Wait()
			require.True(t, got[fmt.Sprint(round)], "round %d", round)
		}
		require.NoError(t, s.Close())
	})
}

func TestTheConnectionEndsWhenThereHaveBeenNoChannelsForAWhile(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for range 3 { // one connection for all
			w.add("a")
			w.remove("a")
			time.Sleep(4 * time.Second)
		}
		require.Equal(t, 1, w.dialled())
		require.Equal(t, 1, w.open())
		time.Sleep(time.Second)
		synctest.Wait()
		require.Zero(t, w.open())
		require.Zero(t, w.Stats().Connections)
		require.False(t, pubsub.Running(w.Subscription))
		require.Zero(t, w.gapCount(), "nothing was missed")
		w.add("a")
		require.Equal(t, 2, w.dialled())
		require.Equal(t, 1, w.Stats().Live)
	})
}

func TestFunctionsMayCallTheSubscription(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var s *pubsub.Subscription
		s, err := pubsub.New(pubsub.Config{
			Open: func(ctx context.Context) *redis.PubSub { return w.rdb.Subscribe(ctx) },
			Message: func(_, payload string) {
				s.Remove("a")
				s.Add(payload)
				s.Renew()
			},
			Subscribed: func(channel string) { _ = s.Stats() },
		})
		require.NoError(t, err)
		s.Add("a")
		synctest.Wait()
		w.publish("a", "b")
		require.Equal(t, 1, s.Stats().Live)
		require.Equal(t, []string{"b"}, w.srv.PubSubChannels("*"))
		require.EqualValues(t, 1, s.Stats().Gaps)
		require.NoError(t, s.Close())
	})
}

func TestWithoutFunctionsNothingIsTold(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, err := pubsub.New(pubsub.Config{Open: func(ctx context.Context) *redis.PubSub { return w.rdb.Subscribe(ctx) }})
		require.NoError(t, err)
		w.refuse(func(channel string) bool { return channel == "no" })
		s.Add("a", "no")
		synctest.Wait()
		w.publish("a", "x")
		s.Renew()
		synctest.Wait()
		require.Equal(t, 1, s.Stats().Live)
		require.Equal(t, 1, s.Stats().Refused)
		require.EqualValues(t, 1, s.Stats().Messages)
		require.NoError(t, s.Close())
	})
}
