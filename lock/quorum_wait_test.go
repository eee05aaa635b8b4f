package lock

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// Many who come at the same instant must not keep each other from the lock for good.
func TestOfSeveralWhoAskAtOnceOneGetsTheLease(t *testing.T) {
	for _, n := range []int{2, 3, 5, 10} {
		for _, down := range []int{0, 1} {
			t.Run(fmt.Sprintf("%d, %d down", n, down), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPanel(t, 5, 30*time.Second)
					var clients []*Client
					for range n {
						c := p.open(t, Config{})
						require.NoError(t, acquire(t, c, "warm").Release(t.Context()))
						synctest.Wait()
						clients = append(clients, c)
					}
					for i := range down {
						p.servers[i].Stop()
					}
					for i := range p.servers {
						p.servers[i].SetLatency(time.Duration(i+1) * 50 * time.Microsecond)
					}
					rounds, nobody := 15, 0
					for range rounds {
						got := make(chan *Lease, n)
						var wg sync.WaitGroup
						for _, c := range clients {
							wg.Go(func() {
								l, err := c.TryAcquire(t.Context(), "k")
								if err == nil {
									got <- l
								} else if !errors.Is(err, ErrNotAcquired) {
									t.Error(err)
								}
							})
						}
						wg.Wait()
						require.LessOrEqual(t, len(got), 1)
						if len(got) == 0 {
							nobody++
						} else {
							require.NoError(t, (<-got).Release(t.Context()))
						}
						time.Sleep(10 * time.Millisecond)
					}
					require.LessOrEqual(t, nobody, 1)
					for i := range down {
						require.NoError(t, p.servers[i].Restart())
					}
					p.quiet(t, clients...)
				})
			})
		}
	}
}

func TestAQuorumsWaiterIsWokenByTheRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 30*time.Second)
		c, d := p.open(t, Config{}), p.open(t, Config{})
		for _, bad := range [][]int{nil, {0}, {0, 1}} {
			p.each(bad, func(s *testserver.Server) { s.Hang(true) })
			l := acquire(t, c, "k")
			got := make(chan time.Time, 3)
			for range cap(got) {
				go func() {
					m, err := d.Acquire(context.Background(), "k")
					got <- time.Now()
					if err == nil {
						err = m.Release(context.Background())
					}
					if err != nil {
						t.Error(err)
					}
				}()
			}
			time.Sleep(10 * time.Second) // they try 4 times a second by now
			require.EqualValues(t, 3, total(d).Waiting)
			released := time.Now()
			require.NoError(t, l.Release(t.Context()))
			for range cap(got) {
				require.Less(t, (<-got).Sub(released), 5*time.Millisecond)
			}
			time.Sleep(time.Second)
			p.each(bad, func(s *testserver.Server) { s.Hang(false) })
			time.Sleep(time.Second)
		}
		p.quiet(t, c, d)
		time.Sleep(lineLinger)
		synctest.Wait()
		require.Empty(t, d.bell.spots)
	})
}

func TestAQuorumsWaiterWhoIsToldNothingIsServedAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		var book logBook
		c := p.open(t, Config{Logger: book.logger()})
		for _, srv := range p.servers {
			srv.SetPreHook(func(peer *server.Peer, cmd string, _ ...string) bool {
				if cmd == "PUBLISH" || cmd == "SUBSCRIBE" {
					peer.WriteError("NOPERM this user has no permissions")
					return true
				}
				return false
			})
		}
		l := acquire(t, c, "k")
		done := make(chan error, 1)
		go func() {
			m, err := c.Acquire(context.Background(), "k")
			if err == nil {
				err = m.Release(context.Background())
			}
			done <- err
		}()
		time.Sleep(10 * time.Second)
		released := time.Now()
		require.NoError(t, l.Release(t.Context()))
		require.NoError(t, <-done)
		require.LessOrEqual(t, time.Since(released), pollMax)
		require.Equal(t, 1, strings.Count(book.String(), "messages of released locks are refused, waiters poll"))
		p.quiet(t, c)
	})
}

func TestAWaitOutlivesAnOutageOfTheMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c, d := p.open(t, Config{}), p.open(t, Config{})
		l := acquire(t, c, "k")
		wait := func(opts ...Option) <-chan error {
			done := make(chan error, 1)
			go func() {
				m, err := d.Acquire(context.Background(), "k", opts...)
				if err == nil {
					err = m.Release(context.Background())
				}
				done <- err
			}()
			return done
		}
		bad := []int{0, 1}
		served := wait()
		time.Sleep(10 * time.Second)
		p.each(bad, func(s *testserver.Server) { s.Hang(true) })
		time.Sleep(5 * time.Second)
		p.each(bad, func(s *testserver.Server) { s.Hang(false) })
		time.Sleep(time.Second)
		require.NoError(t, l.Release(t.Context()))
		require.NoError(t, <-served)

		l = acquire(t, c, "k")
		given, bounded := wait(), wait(MaxWait(30*time.Second))
		time.Sleep(10 * time.Second)
		start := time.Now()
		p.each(bad, func(s *testserver.Server) { s.Hang(true) })
		err := <-bounded
		require.ErrorIs(t, err, ErrNotAcquired)
		require.ErrorContains(t, err, "for 30s (MaxWait)")
		err = <-given
		require.ErrorContains(t, err, "no majority: 2 of 3 nodes")
		require.InDelta(t, outageMost, time.Since(start), float64(time.Second))
		p.each(bad, func(s *testserver.Server) { s.Hang(false) })
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		p.quiet(t, c, d)
	})
}
