package pubsub_test

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/pubsub"
	"github.com/redisha/redisha/internal/testserver"
)

func TestAPeerThatNeverAnswersIsNoticedWithinTwoPings(t *testing.T) {
	for _, after := range []time.Duration{0, 300 * time.Millisecond, 999 * time.Millisecond, time.Second, 90 * time.Minute} {
		t.Run(after.String(), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.add("a")
				time.Sleep(after)
				synctest.Wait()
				require.Zero(t, w.gapCount())
				w.hang()
				hung := time.Now()
				time.Sleep(2 * pingTime)
				synctest.Wait()
				require.Equal(t, 1, w.gapCount())
				at, err := w.lastGap()
				require.EqualError(t, err, "no answer to PING within 1s")
				require.LessOrEqual(t, at.Sub(hung), 2*pingTime)
				require.Zero(t, w.Stats().Live)
				require.Equal(t, err, w.Stats().LastError)

				time.Sleep(time.Hour)
				require.Equal(t, 1, w.gapCount(), "one interruption")
				w.heal()
				time.Sleep(2*pingTime + time.Second)
				require.Equal(t, []string{"+a", "gap", "+a"}, w.history())
				w.publish("a", "again")
				require.Equal(t, []string{"again"}, w.messages("a"))
				require.Equal(t, 1, w.open(), "what was given up is closed")
			})
		})
	}
}

func TestAPeerThatHangsBeforeItConfirmsIsNoticedWithinTwoPings(t *testing.T) {
	t.Run("at the handshake", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			w.hang()
			start := time.Now()
			w.add("a")
			time.Sleep(2 * pingTime)
			synctest.Wait()
			at, _ := w.lastGap()
			require.LessOrEqual(t, at.Sub(start), 2*pingTime)
		})
	})
	for _, command := range []string{"PING", "SUBSCRIBE"} {
		t.Run("at "+command, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.answer(func(_ *server.Peer, cmd string, _ ...string) bool { return cmd == command })
				start := time.Now()
				w.add("a")
				time.Sleep(2 * pingTime)
				synctest.Wait()
				at, err := w.lastGap()
				require.LessOrEqual(t, at.Sub(start), 2*pingTime)
				require.ErrorContains(t, err, "no answer to "+command)
			})
		})
	}
	t.Run("at a further SUBSCRIBE", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			w.add("a")
			time.Sleep(pingTime / 2)
			w.hang()
			w.add("b")
			start := time.Now()
			time.Sleep(pingTime)
			synctest.Wait()
			at, err := w.lastGap()
			require.Equal(t, pingTime, at.Sub(start))
			require.EqualError(t, err, "no answer to SUBSCRIBE within 1s")
		})
	})
}

func TestMessagesAreSignsOfLife(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.add("a")
		pings := w.count("PING")
		for range 100 {
			time.Sleep(pingTime - time.Millisecond)
			w.publish("a", "x")
		}
		require.Equal(t, pings, w.count("PING"), "no silence, no PING")

		w.answer(func(_ *server.Peer, cmd string, _ ...string) bool { return cmd == "PING" })
		time.Sleep(pingTime)
		synctest.Wait()
		require.Equal(t, pings+1, w.count("PING"))
		for range 100 {
			w.publish("a", "x")
			time.Sleep(pingTime - time.Millisecond)
		}
		require.Zero(t, w.gapCount())
		require.Len(t, w.messages("a"), 200)
		time.Sleep(2 * pingTime)
		synctest.Wait()
		require.Equal(t, 1, w.gapCount(), "now there is nothing else")
	})
}

func TestAUserWithoutPingIsServed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer(func(p *server.Peer, cmd string, _ ...string) bool {
			if cmd != "PING" && cmd != "UNSUBSCRIBE" {
				return false
			}
			p.WriteError("NOPERM this user has no permissions to run the command")
			return true
		})
		w.add("a", "b")
		time.Sleep(time.Minute)
		w.remove("b")
		w.publish("b", "not wanted")
		w.publish("a", "x")
		require.Equal(t, 1, w.dialled())
		require.Zero(t, w.gapCount())
		require.Empty(t, w.messages("b"))
		w.add("b")
		w.publish("b", "y")
		require.Equal(t, []string{"y"}, w.messages("b"))
	})
}

func TestACutConnectionComesBackAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.add("a")
		time.Sleep(time.Minute)
		synctest.Wait()
		start := time.Now()
		w.cut()
		synctest.Wait()
		require.Equal(t, []string{"+a", "gap", "+a"}, w.history())
		require.Zero(t, time.Since(start))
		_, err := w.lastGap()
		require.EqualError(t, err, "EOF")
		require.Equal(t, 2, w.dialled(), "go-redis has not dialled by itself")
	})
}

// The link has read the end, and closed go-redis' subscription, before run
// writes to it: that is not the client's end.
func TestWritingToALostConnectionIsNotTheLastGap(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var s *pubsub.Subscription
		s, err := pubsub.New(pubsub.Config{
			Open: func(ctx context.Context) *redis.PubSub { return w.rdb.Subscribe(ctx) },
			Message: func(_, payload string) {
				w.cut()
				s.Add(payload)
				time.Sleep(time.Millisecond) // the link reads the end
			},
			Gap: func(err error) { require.NotErrorIs(t, err, redis.ErrClosed) },
		})
		require.NoError(t, err)
		s.Add("a")
		for i := range 50 {
			time.Sleep(2 * time.Second)
			require.Equal(t, i+1, s.Stats().Live)
			w.publish("a", fmt.Sprint(i))
		}
		require.NoError(t, s.Close())
	})
}

// go-redis may have connected again by itself where it could not write.
func TestWhatCannotBeWrittenIsRepeatedOnANewConnection(t *testing.T) {
	for _, command := range []string{"ping", "subscribe", "unsubscribe"} {
		t.Run(command, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.add("a")
				text := command + "\r\n"
				w.unwritable.Store(&text)
				w.add("b")
				w.remove("a")
				time.Sleep(time.Minute)
				require.Nil(t, w.unwritable.Load())
				require.Equal(t, []string{"b"}, w.srv.PubSubChannels("*"))
				require.Equal(t, []string{"b"}, w.liveChannels())
				require.Equal(t, 1, w.open())
				_, err := w.lastGap()
				require.ErrorContains(t, err, "broken pipe")

				text = "ping\r\n" // the first one
				w.unwritable.Store(&text)
				w.Renew()
				time.Sleep(time.Minute)
				require.Nil(t, w.unwritable.Load())
				require.Equal(t, []string{"b"}, w.liveChannels())
				require.Equal(t, 1, w.open())
			})
		})
	}
}

func TestAnOutageIsOneGapAndFewDials(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.srv.Stop()
		w.add("a")
		require.Equal(t, 1, w.gapCount(), "also if there was no connection before")
		for i := range 100 {
			w.add(fmt.Sprint(i))
			require.Less(t, w.dialled(), 5, "Add does not cut the pause")
		}
		time.Sleep(time.Hour)
		require.Equal(t, 1, w.gapCount())
		require.Less(t, w.dialled(), 3600*4/3+10)
		require.Greater(t, w.dialled(), 3600)
		require.NoError(t, w.srv.Restart())
		time.Sleep(time.Second)
		require.Equal(t, 101, w.Stats().Live)
	})
}

// Some proxies hang up on SUBSCRIBE.
func TestAServerThatCutsWhoSubscribesIsNotDialledWithoutPause(t *testing.T) {
	for name, before := range map[string]bool{"before it confirms": true, "after it has confirmed": false} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.answer(func(p *server.Peer, cmd string, args ...string) bool {
					if cmd != "SUBSCRIBE" {
						return false
					}
					if !before {
						p.WritePushLen(3)
						p.WriteBulk("subscribe")
						p.WriteBulk(args[0])
						p.WriteInt(1)
						p.Flush()
					}
					p.Close()
					return true
				})
				w.add("a")
				time.Sleep(time.Minute)
				require.Less(t, w.dialled(), 60*4/3+10)
				require.Greater(t, w.dialled(), 60)
			})
		})
	}
}

func TestRenewMakesANewConnection(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.Renew()
		synctest.Wait()
		require.Zero(t, w.dialled(), "nothing to renew")
		w.add("a")
		require.Equal(t, 1, w.dialled())
		w.Renew()
		synctest.Wait()
		require.Equal(t, []string{"+a", "gap", "+a"}, w.history())
		_, err := w.lastGap()
		require.EqualError(t, err, "connecting anew, since the primary has changed")
		require.Equal(t, 2, w.dialled())
		require.Equal(t, 1, w.open())

		w.remove("a")
		synctest.Wait()
		w.Renew()
		synctest.Wait()
		require.Zero(t, w.open(), "a connection that only lingers is not made anew")
		require.Equal(t, 1, w.gapCount())
	})
}

func TestWhatWasReadBeforeRenewIsDelivered(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var s *pubsub.Subscription
		var got []string
		s, err := pubsub.New(pubsub.Config{
			Open: func(ctx context.Context) *redis.PubSub { return w.rdb.Subscribe(ctx) },
			Message: func(_, payload string) {
				if got = append(got, payload); payload == "first" {
					w.srv.Publish("a", "second")
					time.Sleep(time.Microsecond) // the link reads it
					s.Renew()
				}
			},
		})
		require.NoError(t, err)
		s.Add("a")
		synctest.Wait()
		for range 30 {
			got = nil
			w.publish("a", "first")
			time.Sleep(time.Second)
			synctest.Wait()
			require.Equal(t, []string{"first", "second"}, got)
		}
		require.NoError(t, s.Close())
	})
}

func TestRenewCutsAPauseAndADial(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.srv.Stop()
		w.add("a")
		time.Sleep(time.Minute + 17*time.Millisecond)
		require.NoError(t, w.srv.Restart())
		start := time.Now()
		w.Renew()
		synctest.Wait()
		require.Equal(t, 1, w.Stats().Live)
		require.Zero(t, time.Since(start))

		w.hang()
		time.Sleep(time.Minute)
		w.heal()
		start = time.Now()
		w.Renew()
		synctest.Wait()
		require.Equal(t, 1, w.Stats().Live)
		require.Zero(t, time.Since(start))
		require.Equal(t, 2, w.gapCount())
	})
}

func TestClosingTheRedisClientIsTheLastGap(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.add("a")
		require.NoError(t, w.rdb.Close())
		time.Sleep(time.Second)
		_, err := w.lastGap()
		require.ErrorIs(t, err, redis.ErrClosed)
		require.False(t, pubsub.Running(w.Subscription))
		require.EqualValues(t, 1, w.Stats().Gaps)
		w.add("b")
		require.False(t, pubsub.Running(w.Subscription))
		require.Equal(t, []string{"+a", "gap", "gap", "gap"}, w.history())
	})
}

func TestCloseEndsEverythingAtOnce(t *testing.T) {
	for name, prepare := range map[string]func(w *world){
		"never used": func(*world) {},
		"live":       func(w *world) { w.add("a") },
		"lingering":  func(w *world) { w.add("a"); w.remove("a"); synctest.Wait() },
		"pausing":    func(w *world) { w.srv.Stop(); w.add("a"); time.Sleep(time.Minute) },
		"refused":    func(w *world) { w.refuse(func(string) bool { return true }); w.add("a") },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				prepare(w)
				start, events := time.Now(), len(w.history())
				require.NoError(t, w.Close())
				require.NoError(t, w.Close())
				require.Zero(t, time.Since(start))
				require.Zero(t, w.open())
				dials, channels := w.dialled(), w.Stats().Channels
				w.add("b")
				require.Equal(t, channels, w.Stats().Channels)
				w.Remove("a")
				w.Renew()
				time.Sleep(time.Minute)
				require.Len(t, w.history(), events, "that was no gap")
				require.Equal(t, dials, w.dialled())
			})
		})
	}
}

func TestCloseDoesNotWaitLongForAHandshakeThatHangs(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hang()
		w.add("a")
		start := time.Now()
		require.NoError(t, w.Close())
		require.LessOrEqual(t, time.Since(start), 2*pingTime)
	})
}

func TestDialsThatIgnoreTheirContextAreBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		release := make(chan struct{})
		opt := w.srv.Options()
		opt.MaxRetries, opt.DialerRetries = -1, 1
		var dials atomic.Int64
		opt.Dialer = func(_ context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			<-release
			return w.dial(context.Background(), network, addr)
		}
		rdb := redis.NewClient(opt)
		defer func() { _ = rdb.Close() }()
		s, err := pubsub.New(pubsub.Config{Open: func(ctx context.Context) *redis.PubSub { return rdb.Subscribe(ctx) }, CloseTimeout: 20 * time.Millisecond})
		require.NoError(t, err)
		s.Add("a")
		time.Sleep(time.Hour)
		require.EqualValues(t, 4, dials.Load())
		err = s.Close()
		require.EqualError(t, err, "the subscription has not ended within CloseTimeout (20ms)")
		require.Equal(t, err, s.Close())
		close(release)
		synctest.Wait()
		require.Zero(t, w.open(), "what was connected at last is closed")
	})
}

func TestRepliesThatNoRedisSendsAreAnInterruption(t *testing.T) {
	for name, reply := range map[string]string{
		"empty array": "*0\r\n", "array of numbers": "*3\r\n:1\r\n:2\r\n:3\r\n", "unknown": "*1\r\n$3\r\nwow\r\n",
		"short": "*1\r\n$9\r\nsubscribe\r\n", "nil": "$-1\r\n", "garbage": "?!\r\n", "number": ":1\r\n", "error out of turn": "-ERR what\r\n",
		"unsubscribed": "*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n",
		"of a Cluster": "*3\r\n$12\r\nsunsubscribe\r\n$1\r\na\r\n:0\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				peer := w.peer("a")
				time.Sleep(time.Minute + time.Millisecond)
				peer.Block(func(wr *server.Writer) { wr.WriteRaw(reply); wr.Flush() })
				synctest.Wait()
				require.Equal(t, []string{"+a", "gap", "+a"}, w.history())
				w.publish("a", "x")
				require.Equal(t, []string{"x"}, w.messages("a"))
			})
		})
	}
}

func TestWhatIsNotASubscriptionIsAnInterruption(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := own(t, pubsub.Config{Open: func(context.Context) *redis.PubSub { return nil }})
		o.Add("a")
		time.Sleep(time.Minute)
		_, err := o.lastGap()
		require.EqualError(t, err, "Config.Open has returned nil")
		require.NoError(t, o.Close())
	})
}

func TestPasswordsAreNotInErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		srv.RequireAuth("right")
		opt := srv.Options()
		var password atomic.Value
		password.Store("wrong-secret")
		opt.CredentialsProvider = func() (string, string) { return "", password.Load().(string) }
		rdb := redis.NewClient(opt)
		defer func() { _ = rdb.Close() }()
		o := own(t, pubsub.Config{Open: func(ctx context.Context) *redis.PubSub { return rdb.Subscribe(ctx) }})
		o.Add("a")
		time.Sleep(time.Minute)
		_, err := o.lastGap()
		require.ErrorContains(t, err, "WRONGPASS")
		require.NotContains(t, fmt.Sprintf("%v %+v", err, o.Stats()), "secret")
		password.Store("right")
		time.Sleep(time.Second)
		require.Equal(t, 1, o.Stats().Live, "it goes on once the password is right")
		require.NoError(t, o.Close())
	})
}
