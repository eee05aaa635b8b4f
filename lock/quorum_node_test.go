package lock

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// What is wrong with a node is an error that names it, before anybody has a lease.
func TestAMisconfiguredNodeIsAnErrorThatNamesIt(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(p *panel)
		is   error
		want string
	}{
		"the same server twice": {
			do:   func(p *panel) { p.networks[4].dial = p.servers[1].Dial },
			is:   errSameServer,
			want: "node",
		},
		"a replica": {
			do:   func(p *panel) { p.servers[2].SetUpstream("10.9.9.9:6379") },
			is:   ErrReplicaEndpoint,
			want: "node 3 (10.0.0.3:6379): locks refuse a replica",
		},
		"a Sentinel": {
			do:   func(p *panel) { p.servers[0].SetPreHook(answerArray("ROLE", "sentinel")) },
			is:   ErrSentinelEndpoint,
			want: "node 1 (10.0.0.1:6379): locks refuse a Sentinel endpoint",
		},
		"a node of a Cluster": {
			do:   func(p *panel) { p.servers[0].SetPreHook(answerInfo("redis_mode:cluster\r\nrun_id:x\r\n")) },
			is:   errCluster,
			want: "node 1 (10.0.0.1:6379): a quorum wants independent servers",
		},
		"one of Valkey's": {
			do:   func(p *panel) { p.servers[0].SetPreHook(answerInfo("server_mode:cluster\r\nrun_id:x\r\n")) },
			is:   errCluster,
			want: "node 1 (10.0.0.1:6379): a quorum wants independent servers",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPanel(t, 5, 30*time.Second)
				c.do(p)
				q := p.open(t, Config{})
				for range 2 {
					_, err := q.TryAcquire(t.Context(), "k")
					require.ErrorIs(t, err, c.is)
					require.ErrorContains(t, err, `lock: acquire "k": `+c.want)
					err = q.Check(t.Context())
					require.ErrorIs(t, err, c.is)
					require.ErrorContains(t, err, "lock: check: "+c.want)
				}
				require.Empty(t, p.left())
			})
		})
	}
}

// answerArray lets a server answer a command by an array of one string.
func answerArray(command, text string) server.Hook {
	return func(c *server.Peer, cmd string, _ ...string) bool {
		if cmd != command {
			return false
		}
		c.WriteLen(1)
		c.WriteBulk(text)
		return true
	}
}

func answerInfo(text string) server.Hook {
	return func(c *server.Peer, cmd string, args ...string) bool {
		if cmd != "INFO" || len(args) == 0 || args[0] != "server" {
			return false
		}
		c.WriteBulk(text)
		return true
	}
}

// Once there were leases, the locks survive a node that becomes something else.
func TestANodeThatIsMisconfiguredLaterOnlyTakesNoPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		var book logBook
		c := p.open(t, Config{Logger: book.logger()})
		held := acquire(t, c, "held")
		p.servers[1].SetUpstream("10.9.9.9:6379")
		synctest.Wait()
		p.networks[2].dial = p.servers[0].Dial // somebody has changed a name
		for _, srv := range p.servers {
			srv.CutConnections()
		}
		reconnect(t, c)
		time.Sleep(11 * time.Second) // the watch has seen the replica
		_, err := c.TryAcquire(t.Context(), "k")
		require.ErrorContains(t, err, "no majority: 2 of 3 nodes cannot be counted on: node 2 (10.0.0.2:6379): ")
		require.ErrorContains(t, err, "; node 3 (10.0.0.3:6379): two addresses lead to the same server, whose vote counts once")
		require.ErrorContains(t, err, "(this is also node 1 (10.0.0.1:6379))")
		require.Contains(t, book.String(), `level=ERROR msg="a node of the lock quorum takes no part" node="node 3 (10.0.0.3:6379)"`)
		require.Equal(t, "unfit", c.Stats().Nodes[2].Absent)
		within(t, held.Context(), 30*time.Second, ErrLost)

		synctest.Wait()
		p.networks[2].dial = p.servers[2].Dial
		p.servers[0].CutConnections()
		reconnect(t, c)
		time.Sleep(2 * sweepAgain) // what was found in vain is deleted again
		l := acquire(t, c, "k")
		require.Empty(t, c.Stats().Nodes[2].Absent)
		require.NoError(t, l.Release(t.Context()))
		require.ErrorIs(t, held.Release(t.Context()), ErrLost)
	})
}

// faults are what can happen to nodes.
var faults = map[string]struct{ begin, end func(*testserver.Server) }{
	"down": {(*testserver.Server).Stop, func(s *testserver.Server) { _ = s.Restart() }},
	"hanging": {
		func(s *testserver.Server) { s.Hang(true) },
		func(s *testserver.Server) { s.Hang(false) },
	},
	"slow": {
		func(s *testserver.Server) { s.SetLatency(5 * time.Second) },
		func(s *testserver.Server) { s.SetLatency(0) },
	},
	"loading": {
		func(s *testserver.Server) { s.SetLoading(time.Hour) },
		func(s *testserver.Server) { s.SetLoading(0) },
	},
	"full": {
		func(s *testserver.Server) { s.SetFull(true) },
		func(s *testserver.Server) { s.SetFull(false) },
	},
}

func TestAMinorityOfBadNodesCostsNothing(t *testing.T) {
	minorities := [][]int{{1, 3}, {0}, {4}}
	if testing.Short() {
		minorities = minorities[:1]
	}
	for name, fault := range faults {
		for _, bad := range minorities {
			t.Run(fmt.Sprint(name, bad), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPanel(t, 5, 30*time.Second)
					c, d := p.open(t, Config{}), p.open(t, Config{})
					before := acquire(t, c, "before")
					require.NoError(t, acquire(t, d, "x").Release(t.Context()))
					synctest.Wait()
					p.each(bad, fault.begin)
					start := time.Now()
					for range 5 {
						l := acquire(t, c, "k")
						require.NoError(t, l.Release(t.Context()))
						l = acquire(t, d, "k")
						require.NoError(t, l.Release(t.Context()))
					}
					require.Zero(t, time.Since(start), "nobody waits for them")
					l := acquire(t, c, "k")
					for range 5 {
						_, err := d.TryAcquire(t.Context(), "k")
						require.ErrorIs(t, err, ErrNotAcquired)
					}
					require.NoError(t, l.Release(t.Context()))
					during := acquire(t, c, "during")
					time.Sleep(5 * time.Minute)
					require.NoError(t, before.Context().Err())
					require.NoError(t, during.Context().Err())

					p.each(bad, fault.end)
					time.Sleep(time.Minute)
					require.Equal(t, 5, p.has("before"), "healed")
					require.Equal(t, 5, p.has("during"), "healed")
					require.NoError(t, before.Release(t.Context()))
					require.NoError(t, during.Release(t.Context()))
					p.quiet(t, c, d)
				})
			})
		}
	}
}

func TestAMajorityOfBadNodesIsAnErrorThatNamesThem(t *testing.T) {
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPanel(t, 5, 30*time.Second)
				c := p.open(t, Config{})
				require.NoError(t, acquire(t, c, "k").Release(t.Context()))
				held := acquire(t, c, "held")
				begun := time.Now()
				synctest.Wait()
				bad := []int{0, 2, 4}
				p.each(bad, fault.begin)
				for range 10 {
					start := time.Now()
					_, err := c.TryAcquire(t.Context(), "k")
					require.ErrorContains(t, err, `lock: acquire "k": no majority: 3 of 5 nodes cannot be counted on: node 1 (10.0.0.1:6379): `)
					require.ErrorContains(t, err, "; node 3 (10.0.0.3:6379): ")
					require.ErrorContains(t, err, "; node 5 (10.0.0.5:6379): ")
					require.NotErrorIs(t, err, ErrNotAcquired)
					require.NotErrorIs(t, err, context.DeadlineExceeded, "which is the caller's")
					require.LessOrEqual(t, time.Since(start), nodeTimeoutMost)
				}
				if name == "full" { // which renews, and releases
					p.each(bad, fault.end)
					require.NoError(t, held.Release(t.Context()))
					p.quiet(t, c)
					return
				}
				within(t, held.Context(), time.Minute, ErrLost)
				require.Equal(t, deadline(30*time.Second), time.Since(begun))
				require.ErrorIs(t, held.Release(t.Context()), ErrLost)
				require.Equal(t, 30*time.Second, c.cfg.TTL)
				p.each(bad, fault.end)
				reconnect(t, c)
				time.Sleep(seasoning(30 * time.Second)) // those that were down have another run ID
				require.NoError(t, acquire(t, c, "k").Release(t.Context()))
				p.quiet(t, c)
			})
		})
	}
}

// A server that was started lately may have forgotten leases, also in the view of a
// client that has never seen it before.
func TestANodeThatWasRestartedAbstainsForTheLongestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		l := acquire(t, c, "k")
		synctest.Wait()

		restart := func(i int) {
			p.servers[i].Stop()
			p.servers[i].FlushAll()
			require.NoError(t, p.servers[i].Restart())
			begun := time.Now()
			p.servers[i].SetPreHook(func(peer *server.Peer, cmd string, args ...string) bool {
				uptime := int(time.Since(begun).Seconds())
				return answerInfo(fmt.Sprintf("redis_mode:standalone\r\nrun_id:again%d\r\nuptime_in_seconds:%d\r\n", i, uptime))(peer, cmd, args...)
			})
		}
		restart(0)
		restarted := time.Now()
		restart(1)
		d := p.open(t, Config{})
		reconnect(t, c)
		for _, who := range []*Client{c, d} {
			_, err := who.TryAcquire(t.Context(), "k")
			require.ErrorContains(t, err, "no majority: 2 of 3 nodes cannot be counted on: node 1 (10.0.0.1:6379): it was started 0s ago and may have forgotten leases: it takes part in 30.302s; node 2")
			require.Equal(t, "young", who.Stats().Nodes[0].Absent)
		}
		require.NoError(t, l.Context().Err(), "its holder learns of the loss by the next renewal")
		within(t, l.Context(), 11*time.Second, ErrLost)
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		for {
			time.Sleep(100 * time.Millisecond)
			m, err := d.TryAcquire(t.Context(), "other")
			if err == nil {
				require.NoError(t, m.Release(t.Context()))
				break
			}
			require.ErrorContains(t, err, "may have forgotten leases")
		}
		require.GreaterOrEqual(t, time.Since(restarted), 30*time.Second)
		require.Less(t, time.Since(restarted), seasoning(30*time.Second))
		p.quiet(t, c, d)
	})
}

// The connection on which a restart would be seen is that of the very attempt.
func TestALeaseFromAServerThatHasJustRestartedDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		require.NoError(t, acquire(t, c, "warm").Release(t.Context()))
		for range 20 {
			p.servers[1].Stop()
			require.NoError(t, p.servers[1].Restart()) // with a run ID of its own
			p.servers[2].Hang(true)
			for range 5 {
				time.Sleep(10 * time.Millisecond) // what the last attempt got is given back
				_, err := c.TryAcquire(t.Context(), "k")
				require.Error(t, err)
			}
			p.servers[2].Hang(false)
			time.Sleep(time.Minute)
			require.NoError(t, acquire(t, c, "k").Release(t.Context()), "it is trusted again")
		}
		p.quiet(t, c)
	})
}

// A clock that is set forward makes a server tell too long an uptime.
func TestAServerThatWasSeenBeforeItsStartIsNotOlderThanThat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		p.servers[1].Stop()
		p.servers[2].Stop()
		require.NoError(t, p.servers[2].Restart())
		p.servers[2].SetPreHook(answerInfo("redis_mode:standalone\r\nrun_id:new\r\nuptime_in_seconds:3600\r\n"))
		reconnect(t, c)
		_, err := c.TryAcquire(t.Context(), "k")
		require.ErrorContains(t, err, "node 3 (10.0.0.3:6379): it was started 0s ago")
		require.NoError(t, p.servers[1].Restart())
	})
}

func TestANodeThatDoesNotTellItsUptimeTakesPartWithAWarning(t *testing.T) {
	refuse := func(c *server.Peer, cmd string, _ ...string) bool {
		if cmd == "INFO" {
			c.WriteError("NOPERM this user has no permissions to run the 'info' command")
			return true
		}
		return false
	}
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		for _, srv := range p.servers {
			srv.SetPreHook(refuse)
		}
		var book logBook
		c := p.open(t, Config{Logger: book.logger()})
		for range 3 {
			p.servers[0].CutConnections()
			reconnect(t, c)
			require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		}
		require.Equal(t, 3, strings.Count(book.String(), "does not tell since when it runs"), "once for each node")

		strict := p.open(t, Config{Strict: true})
		_, err := strict.TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrUnsafeEndpoint)
		require.ErrorContains(t, err, "it does not tell since when it runs: allow the user INFO")
	})
}

// Thousands of calls while a node hangs wait for it neither each for itself, nor
// with a connection each.
func TestCallsDoNotPileUpBeforeAHungNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		var book logBook
		c := p.open(t, Config{Logger: book.logger()})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		synctest.Wait()
		before, conns := runtime.NumGoroutine(), p.servers[2].TotalConnectionCount()
		p.servers[2].Hang(true)
		most, calls := 0, 1500
		if testing.Short() {
			calls = 600
		}
		for i := range calls {
			require.NoError(t, acquire(t, c, fmt.Sprint(i%10)).Release(t.Context()))
			time.Sleep(time.Millisecond)
			most = max(most, runtime.NumGoroutine()-before)
		}
		require.Less(t, most, 600, "those of the first 200 ms, before anybody knows")
		require.Less(t, p.servers[2].TotalConnectionCount()-conns, 600)
		synctest.Wait()
		require.Less(t, runtime.NumGoroutine()-before, 100, "one at a time from then on, and those of the server")
		require.Equal(t, "silent", c.Stats().Nodes[2].Absent)
		require.Equal(t, 1, strings.Count(book.String(), `level=WARN msg="a node of the lock quorum does not answer" node="node 3 (10.0.0.3:6379)"`))
		p.servers[2].Hang(false)
		time.Sleep(time.Second)
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		synctest.Wait()
		require.Contains(t, book.String(), `level=INFO msg="a node of the lock quorum answers again" node="node 3 (10.0.0.3:6379)"`)
		require.Empty(t, c.Stats().Nodes[2].Absent)
		p.quiet(t, c)
	})
}

func TestCheckOfAQuorumIsContentWithAMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		var book logBook
		c := p.open(t, Config{Logger: book.logger(), CloseTimeout: time.Second})
		require.NoError(t, c.Check(t.Context()))
		p.servers[1].Hang(true)
		start := time.Now()
		require.NoError(t, c.Check(t.Context()))
		require.LessOrEqual(t, time.Since(start), assembleGrace)
		require.Contains(t, book.String(), `level=WARN msg="a node of the lock quorum cannot take part" node="node 2 (10.0.0.2:6379)"`)
		p.servers[0].Stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorContains(t, c.Check(ctx), "lock: check: no majority: 2 of 3 nodes cannot be counted on: node 1 (10.0.0.1:6379): ")
		p.servers[1].Hang(false)
		require.NoError(t, p.servers[0].Restart())
		require.NoError(t, c.Close())
		require.ErrorIs(t, c.Check(t.Context()), ErrClosed)
	})
}

func TestCloseOfAQuorumIsBoundedWhileNodesHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 3*time.Second)
		c := p.open(t, Config{TTL: 3 * time.Second, CloseTimeout: 3 * time.Second})
		l := acquire(t, c, "k")
		go func() {
			_, err := c.Acquire(context.Background(), "k")
			if !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		}()
		time.Sleep(time.Second)
		p.servers[0].Hang(true)
		time.Sleep(200 * time.Millisecond)
		start := time.Now()
		released := make(chan error, 1)
		go func() {
			<-l.Context().Done()
			released <- l.Release(context.Background())
		}()
		require.NoError(t, c.Close())
		require.NoError(t, <-released)
		require.Less(t, time.Since(start), 2*time.Second)
		_, err := c.TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrClosed)

		c = p.open(t, Config{TTL: 3 * time.Second, CloseTimeout: 100 * time.Millisecond})
		l = acquire(t, c, "k2")
		start = time.Now()
		require.ErrorContains(t, c.Close(), "1 leases were not released within 100ms")
		require.Equal(t, 100*time.Millisecond, time.Since(start))
		p.servers[0].Hang(false)
		require.NoError(t, l.Release(t.Context()), "better late than never")
		time.Sleep(4 * time.Second)
		require.Empty(t, p.left())
	})
}

// Who gives up asking says nothing of the nodes.
func TestACancelledQuestionDoesNotMakeNodesSilent(t *testing.T) {
	for name, ask := range map[string]func(context.Context, *Client) error{
		"inspect": func(ctx context.Context, c *Client) error { _, err := c.Inspect(ctx, "k"); return err },
		"revoke":  func(ctx context.Context, c *Client) error { _, err := c.Revoke(ctx, "k", 1); return err },
		"check":   func(ctx context.Context, c *Client) error { return c.Check(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPanel(t, 3, 30*time.Second)
				c := p.open(t, Config{})
				require.NoError(t, acquire(t, c, "k").Release(t.Context()))
				time.Sleep(time.Second)
				for _, srv := range p.servers {
					srv.SetLatency(2 * time.Millisecond)
				}
				for _, after := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond} {
					ctx, cancel := context.WithTimeout(t.Context(), after)
					require.ErrorIs(t, ask(ctx, c), context.DeadlineExceeded, "after %s", after)
					cancel()
					time.Sleep(time.Millisecond)
					for _, node := range c.Stats().Nodes {
						require.Empty(t, node.Absent, "after %s", after)
					}
				}
				p.quiet(t, c)
			})
		})
	}
}
