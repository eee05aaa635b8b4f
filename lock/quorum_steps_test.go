package lock

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// beside returns a panel of the same servers, behind networks of their own.
func (p *panel) beside() *panel {
	other := &panel{servers: p.servers}
	for _, srv := range p.servers {
		other.networks = append(other.networks, &network{dial: srv.Dial, replies: -1})
	}
	return other
}

// unequal lets the servers draw tokens of their own, so that it takes a second
// round to agree.
func (p *panel) unequal(t *testing.T, key string) {
	t.Helper()
	for i, srv := range p.servers {
		require.NoError(t, srv.Set(leaseKeyOf(key)+":f", fmt.Sprint(time.Now().Add(time.Duration(i+1)*time.Minute).UnixMicro())))
	}
}

// An acquisition is given up at each of its steps: others get the lock long before
// a TTL, and nothing stays.
func TestAQuorumsAcquisitionMayBeCancelledAtAnyStep(t *testing.T) {
	for _, warm := range []bool{false, true} {
		t.Run(fmt.Sprint("warm ", warm), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPanel(t, 3, 30*time.Second)
				d := p.beside().open(t, Config{})
				require.NoError(t, acquire(t, d, "k").Release(t.Context()))
				for _, srv := range p.servers {
					srv.SetLatency(time.Millisecond)
				}
				var c *Client
				begin := func() {
					if c == nil || !warm {
						c = p.open(t, Config{})
						p.each([]int{0, 1, 2}, (*testserver.Server).CutConnections)
						reconnect(t, d)
					}
					if warm {
						require.NoError(t, acquire(t, c, "k").Release(t.Context()))
						time.Sleep(time.Second)
					}
				}
				cancelled := 0
				for after := time.Duration(0); ; after += 250 * time.Microsecond {
					begin()
					p.unequal(t, "k")
					ctx, cancel := context.WithCancel(t.Context())
					timer := time.AfterFunc(after+time.Microsecond, cancel)
					l, err := c.Acquire(ctx, "k")
					if err != nil {
						require.ErrorIs(t, err, context.Canceled)
						cancelled++
					}
					stopped := timer.Stop()
					if err == nil && !stopped {
						cancel()
						require.NoError(t, l.Release(ctx))
					} else if err == nil {
						require.NoError(t, l.Release(t.Context()))
					}
					m, err := d.Acquire(t.Context(), "k", MaxWait(3*time.Second))
					require.NoError(t, err, "cancelled after %s", after)
					if l != nil {
						require.Greater(t, m.Token(), l.Token())
					}
					require.NoError(t, m.Release(t.Context()))
					p.quiet(t, c, d)
					if stopped {
						break
					}
				}
				t.Logf("cancelled %d times", cancelled)
				require.GreaterOrEqual(t, cancelled, 4, "two rounds, at least")
			})
		})
	}
}

// What a minority of the nodes answers is lost, at any step, and nobody notices. Of
// a majority, the caller hears that it is not there, and nothing stays.
func TestAQuorumsRepliesMayBeLostAtAnyStep(t *testing.T) {
	for _, victims := range [][]int{{0}, {2}, {0, 1}, {0, 1, 2}} {
		for _, step := range []string{"acquire", "acquire for a moment", "renew", "release"} {
			t.Run(fmt.Sprint(step, victims), func(t *testing.T) {
				most := 12 // replies, of which the handshakes have most
				if testing.Short() {
					most = 3
				}
				for passing := range most {
					synctest.Test(t, func(t *testing.T) { losesReplies(t, step, victims, passing) })
				}
			})
		}
	}
}

func losesReplies(t *testing.T, step string, victims []int, passing int) {
	p := newPanel(t, 3, 30*time.Second)
	c, d := p.open(t, Config{}), p.beside().open(t, Config{})
	require.NoError(t, acquire(t, d, "k").Release(t.Context()))
	synctest.Wait()
	p.unequal(t, "k")
	brief := step == "acquire for a moment"
	if brief {
		step = "acquire"
	}
	cut := func(when string, do func()) {
		if when != step {
			do()
			return
		}
		for _, i := range victims {
			p.networks[i].cutAfter(passing)
		}
		do()
		for _, n := range p.networks {
			n.cutAfter(-1)
		}
	}
	minority := len(victims) == 1
	var l *Lease
	var err error
	cut("acquire", func() { l, err = c.TryAcquire(t.Context(), "k") })
	if minority || step != "acquire" {
		require.NoError(t, err)
	} else if err != nil {
		require.ErrorContains(t, err, "no majority")
		require.NotErrorIs(t, err, ErrNotAcquired)
	}
	if err == nil {
		token := l.Token()
		if !brief {
			cut("renew", func() { time.Sleep(15 * time.Second) })
			time.Sleep(30 * time.Second)
			require.NoError(t, l.Context().Err(), "it was renewed in time")
			require.Equal(t, 3, p.has("k"), "healed")
		}
		cut("release", func() { err = l.Release(t.Context()) })
		if minority || step != "release" {
			require.NoError(t, err)
		} else if err != nil {
			require.ErrorContains(t, err, "no majority")
			require.NoError(t, l.Release(t.Context()), "it may be tried again")
		}
		m, err := d.Acquire(t.Context(), "k", MaxWait(3*time.Second))
		require.NoError(t, err)
		require.Greater(t, m.Token(), token)
		require.NoError(t, m.Release(t.Context()))
	} else {
		m, err := d.Acquire(t.Context(), "k", MaxWait(3*time.Second))
		require.NoError(t, err)
		require.NoError(t, m.Release(t.Context()))
	}
	p.quiet(t, c, d)
}

// The token of a lease is in the counters of a majority before anybody sees it: so
// the next one's is greater, whichever nodes answer.
func TestALeaseIsNotHandedOutBeforeAMajorityHasItsToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		time.Sleep(time.Second)
		counters := func(least int64) (n int) {
			for _, srv := range p.servers {
				text, _ := srv.Get(leaseKeyOf("k") + ":f")
				if counter, _ := strconv.ParseInt(text, 10, 64); counter >= least {
					n++
				}
			}
			return n
		}
		p.servers[2].Stop()
		for range 10 {
			p.unequal(t, "k")
			l := acquire(t, c, "k")
			require.Equal(t, 2, counters(l.Token())-1, "and the one that is away has a greater one")
			require.NoError(t, l.Release(t.Context()))
			time.Sleep(time.Second)
		}
		p.unequal(t, "k")
		p.servers[0].SetPreHook(func(peer *server.Peer, cmd string, args ...string) bool {
			if cmd != "EVALSHA" && cmd != "EVAL" || args[0] != raiseScript.Hash() {
				return false
			}
			peer.WriteError("ERR no luck")
			return true
		})
		_, err := c.TryAcquire(t.Context(), "k")
		require.ErrorContains(t, err, "no majority: 2 of 3 nodes cannot be counted on: node 1 (10.0.0.1:6379): fencing token: ERR no luck; node 3")
		require.NoError(t, p.servers[2].Restart())
		p.quiet(t, c)
	})
}

// Where clients of go-redis do not heed the deadlines of contexts, their answers are
// not waited for all the same.
func TestAQuorumsAcquisitionIsBoundedWhereItsClientsAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		var nodes []redis.UniversalClient
		for i, rdb := range p.clients(t) {
			opt := p.servers[i].Options()
			opt.Dialer, opt.Addr = p.networks[i].Dial, rdb.(*redis.Client).Options().Addr
			opt.MaxRetries, opt.ReadTimeout, opt.ContextTimeoutEnabled = -1, 5*time.Second, false
			opt.MaintNotificationsConfig = noNotices
			client := redis.NewClient(opt)
			t.Cleanup(func() { _ = client.Close() })
			nodes = append(nodes, client)
		}
		c, err := NewQuorum(nodes, Config{TTL: 30 * time.Second, CloseTimeout: -1, Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		time.Sleep(time.Second)

		p.each([]int{0, 1}, func(s *testserver.Server) { s.Hang(true) })
		start := time.Now()
		_, err = c.TryAcquire(t.Context(), "k")
		require.ErrorContains(t, err, "no majority: 2 of 3 nodes")
		require.Equal(t, nodeTimeoutMost, time.Since(start))
		p.each([]int{0, 1}, func(s *testserver.Server) { s.Hang(false) })
		time.Sleep(10 * time.Second)

		p.servers[2].Stop()
		p.unequal(t, "k")
		p.servers[0].SetPreHook(func(_ *server.Peer, cmd string, args ...string) bool {
			if (cmd == "EVALSHA" || cmd == "EVAL") && args[0] == raiseScript.Hash() {
				time.Sleep(10 * time.Second)
			}
			return false
		})
		start = time.Now()
		_, err = c.TryAcquire(t.Context(), "k")
		require.ErrorContains(t, err, "no majority: ")
		require.Equal(t, 2*nodeTimeoutMost, time.Since(start))
		require.NoError(t, p.servers[2].Restart())
		time.Sleep(20 * time.Second)
		p.quiet(t, c)
	})
}

// A node's first question is on its way for so long that the second one, and the
// release, overtake it.
func TestAQuestionThatArrivesAfterTheReleaseLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		time.Sleep(time.Second)
		var questions atomic.Int32
		p.servers[0].SetPreHook(func(_ *server.Peer, cmd string, args ...string) bool {
			if cmd == "EVALSHA" && args[0] == voteScript.whole.Load().hash && questions.Add(1) == 1 {
				time.Sleep(11500 * time.Millisecond)
			}
			return false
		})
		l := acquire(t, c, "k")
		require.Equal(t, 2, p.has("k"))
		time.Sleep(11 * time.Second)
		require.Equal(t, 3, p.has("k"), "healed")
		require.NoError(t, l.Release(t.Context()))
		time.Sleep(600 * time.Millisecond)
		require.Equal(t, 1, p.has("k"), "it has arrived")
		p.quiet(t, c)
	})
}

// A round that has failed gives no node its vote back.
func TestANodeThatWasHealedDoesNotCountAfterARenewalThatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		l := acquire(t, c, "k")
		time.Sleep(time.Second)
		p.servers[2].Del(leaseKeyOf("k"))
		p.servers[2].SetPreHook(func(_ *server.Peer, cmd string, args ...string) bool {
			if cmd == "EVALSHA" && args[0] == voteScript.whole.Load().hash { // the healing
				p.servers[1].Hang(true)
			}
			return false
		})
		start := time.Now()
		within(t, l.Context(), time.Minute, ErrLost)
		require.Less(t, time.Since(start), 40*time.Second, "of the first renewal")
		require.Equal(t, 3, p.has("k"), "healed")
		p.servers[1].Hang(false)
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		p.quiet(t, c)
	})
}

// A release that begins before a node has answered the question counts what that
// gives, and gives it back.
func TestALateGrantCountsForTheRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		time.Sleep(time.Second)
		p.servers[2].SetLatency(60 * time.Millisecond)
		l := acquire(t, c, "k")
		p.servers[1].Hang(true)
		require.NoError(t, l.Release(t.Context()))
		p.servers[1].Hang(false)
		p.quiet(t, c)
	})
}

// Who tells late that it has lost the lease is given it again at once.
func TestANodeThatAnswersLateIsHealedInTheSameRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		l := acquire(t, c, "k")
		time.Sleep(time.Second)
		p.servers[2].Del(leaseKeyOf("k"))
		p.servers[2].SetLatency(50 * time.Millisecond)
		time.Sleep(11 * time.Second) // the first renewal was after ten
		require.Equal(t, 3, p.has("k"))
		require.NoError(t, l.Release(t.Context()))
		p.quiet(t, c)
	})
}
