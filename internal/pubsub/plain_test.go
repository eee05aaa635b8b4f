package pubsub_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/pubsub"
)

// inOne runs test in virtual time with the holder of Channels on one server.
func inOne(t *testing.T, test func(*testing.T, *world, *holder)) {
	inWorld(t, func(t *testing.T, w *world) {
		cn, err := conn.Of(w.rdb)
		require.NoError(t, err)
		h := hold(t, cn)
		test(t, w, h)
		require.NoError(t, h.Close())
		require.Zero(t, h.Stats().Live)
		require.Zero(t, w.open())
	})
}

// added adds channels and waits for what comes of it at once.
func (h *holder) added(channels ...string) {
	h.Add(channels...)
	synctest.Wait()
}

func TestChannelsNeedAClientAndTimes(t *testing.T) {
	_, err := pubsub.Open(nil, pubsub.ChannelsConfig{})
	require.EqualError(t, err, "pubsub: the client is nil, want one made by conn.New or conn.Of")
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:0"})
	t.Cleanup(func() { _ = rdb.Close() })
	cn, err := conn.Of(rdb)
	require.NoError(t, err)
	for want, cfg := range map[string]pubsub.ChannelsConfig{
		"pubsub: ChannelsConfig.Ping is -1ns, want more than 0, or 0 for 1s":         {Ping: -1},
		"pubsub: ChannelsConfig.CloseTimeout is -1ns, want more than 0, or 0 for 5s": {CloseTimeout: -1},
	} {
		_, err := pubsub.Open(cn, cfg)
		require.EqualError(t, err, want)
	}
}

func TestChannelsOnOneServerAreToldOfEachInterruption(t *testing.T) {
	inOne(t, func(t *testing.T, w *world, h *holder) {
		h.added("a", "b")
		h.added("a")
		require.Equal(t, []string{"a", "b"}, h.liveChannels())
		require.Equal(t, 1, w.count("SUBSCRIBE"))
		w.publish("a", "1")
		h.Remove("b", "never added")
		synctest.Wait()
		h.forget("b")
		w.publish("b", "not wanted")
		require.Equal(t, pubsub.Stats{Channels: 1, Live: 1, Connections: 1, Connects: 1, Messages: 1}, h.Stats())

		w.cut()
		synctest.Wait()
		require.Equal(t, []string{"a"}, h.lostChannels())
		require.EqualError(t, last(h.reasons()), "EOF")
		require.Equal(t, []string{"a"}, h.liveChannels(), "again")
		w.hang()
		time.Sleep(2 * pingTime)
		synctest.Wait()
		require.Equal(t, []string{"a", "a"}, h.lostChannels())
		require.EqualError(t, last(h.reasons()), "no answer to PING within 1s")
		h.added("c")
		time.Sleep(time.Minute)
		require.Len(t, h.reasons(), 2, "one interruption")
		w.heal()
		time.Sleep(3 * time.Second)
		require.Equal(t, []string{"a", "c"}, h.liveChannels())
		w.publish("a", "2")
		w.publish("c", "3")
		require.Equal(t, []string{"1", "2"}, h.messages("a"))
		require.Equal(t, []string{"3"}, h.messages("c"))
		require.Empty(t, h.messages("b"))
	})
}

func TestARefusalOfAllIsToldForEach(t *testing.T) {
	inOne(t, func(t *testing.T, w *world, h *holder) {
		w.refuse(func(string) bool { return true })
		h.added(numbered(3)...)
		require.ElementsMatch(t, numbered(3), h.refusedChannels())
		require.Empty(t, h.lostChannels())
		w.refuse(forbidden)
		time.Sleep(30 * time.Second)
		require.Len(t, h.liveChannels(), 3)
		h.added("no")
		require.Len(t, h.refusedChannels(), 4)
		require.Len(t, h.liveChannels(), 3)
	})
}

func TestFunctionsMayCallTheChannels(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cn, err := conn.Of(w.rdb)
		require.NoError(t, err)
		var c *pubsub.Channels
		c, err = pubsub.Open(cn, pubsub.ChannelsConfig{
			Message: func(channel, payload string) {
				c.Remove(channel)
				c.Add(payload)
			},
			Subscribed: func(string) { _ = c.Stats() },
		})
		require.NoError(t, err)
		c.Add("a")
		synctest.Wait()
		w.publish("a", "b")
		require.Equal(t, []string{"b"}, w.srv.PubSubChannels("*"))
		w.cut() // nothing but Message and Subscribed is told
		synctest.Wait()
		w.publish("b", "c")
		require.Equal(t, []string{"c"}, w.srv.PubSubChannels("*"))
		require.NoError(t, c.Close())
	})
}

func TestClosingTheRedisClientIsTheLastThingLost(t *testing.T) {
	inOne(t, func(t *testing.T, w *world, h *holder) {
		h.added("a")
		require.NoError(t, w.rdb.Close())
		time.Sleep(time.Minute)
		require.ErrorIs(t, last(h.reasons()), redis.ErrClosed)
		require.Empty(t, h.liveChannels())
		n := len(h.reasons())
		h.added("b")
		require.Len(t, h.reasons(), n+1)
		require.ErrorIs(t, last(h.reasons()), redis.ErrClosed)
	})
}
