package lock

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/testserver"
)

// nothingLeft waits until the second delete and requires that the lock is free.
func nothingLeft(t *testing.T, srv *testserver.Server, c *Client) {
	t.Helper()
	time.Sleep(2*sweepAgain + 2*releaseTimeout) // a delete may hang first
	require.Empty(t, leaseKeys(srv))
	require.Zero(t, total(c).Held)
	start := time.Now()
	require.NoError(t, c.Close())
	require.Zero(t, time.Since(start), "nothing is pending either")
}

func toSweep(c *Client) int {
	sweeperOf(c).mu.Lock()
	defer sweeperOf(c).mu.Unlock()
	return len(sweeperOf(c).left)
}

// The context ends when a command arrives at the server for the nth time.
func TestACancelledAcquisitionLeavesNothing(t *testing.T) {
	for _, at := range []struct {
		command string
		nth     int
	}{
		{"HELLO", 1}, {"ROLE", 1},
		{"EVALSHA", 1},
		{"SET", 1}, {"TIME", 1}, {"SET", 2}, // within it
	} {
		for _, warm := range []bool{false, true} {
			t.Run(at.command+"/"+map[bool]string{false: "cold", true: "warm"}[warm], func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					srv := testserver.New(t)
					opt := srv.Options()
					opt.MaxRetries = -1
					rdb := redis.NewClient(opt)
					defer rdb.Close()
					c := open(t, rdb, Config{CloseTimeout: time.Minute})
					if warm {
						require.NoError(t, acquire(t, c, "k").Release(t.Context()))
					}
					ctx, cancel := context.WithCancelCause(t.Context())
					left := at.nth
					srv.SetPreHook(func(_ *server.Peer, cmd string, _ ...string) bool {
						if cmd == at.command {
							if left--; left == 0 {
								cancel(errTest)
							}
						}
						return false
					})
					l, err := c.TryAcquire(ctx, "k")
					if warm && (at.command == "HELLO" || at.command == "ROLE") {
						require.NoError(t, err, "these are not sent again")
						require.NoError(t, l.Release(ctx))
						cancel(nil)
					} else {
						require.ErrorIs(t, err, errTest)
						require.EqualError(t, err, `lock: acquire "k": test`)
					}
					nothingLeft(t, srv, c)
				})
			})
		}
	}
}

// A deadline ends the reading of the answer, in any of the connection's reads.
func TestADeadlineDuringAnAcquisitionLeavesNothing(t *testing.T) {
	for _, limit := range []time.Duration{0, time.Millisecond, 50 * time.Millisecond, 150 * time.Millisecond, 250 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			srv := testserver.New(t)
			rdb, n := throughNetwork(t, srv)
			c := open(t, rdb, Config{CloseTimeout: time.Minute})
			require.NoError(t, acquire(t, c, "k").Release(t.Context()))
			rdb.AddHook(slow{100 * time.Millisecond}) // the answer has come, and lies there
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			_, err := c.TryAcquire(ctx, "k")
			if limit < 100*time.Millisecond {
				require.EqualError(t, err, `lock: acquire "k": context deadline exceeded`)
			} else {
				require.NoError(t, err)
				return
			}
			n.silence(true)
			ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			_, err = c.Acquire(ctx, "k")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			n.silence(false)
			nothingLeft(t, srv, c)
		})
	}
}

// Connections are cut at each of the answers that an acquisition reads.
func TestAnAcquisitionWhoseAnswerIsCutLeavesNothing(t *testing.T) {
	cut := 0
	for replies := range 8 {
		synctest.Test(t, func(t *testing.T) {
			srv := testserver.New(t)
			rdb, n := throughNetwork(t, srv)
			c := open(t, rdb, Config{CloseTimeout: time.Minute})
			n.cutAfter(replies)
			l, err := c.TryAcquire(t.Context(), "k")
			n.cutAfter(-1)
			if err == nil {
				require.NoError(t, l.Release(t.Context()))
			} else {
				cut++
				require.NotErrorIs(t, err, ErrNotAcquired)
			}
			nothingLeft(t, srv, c)
		})
	}
	require.GreaterOrEqual(t, cut, 3)
}

func TestAnAttemptWaitsForAnAnswerNoLongerThanItsTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb, n := throughNetwork(t, srv)
		c := open(t, rdb, Config{CloseTimeout: time.Minute})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		n.silence(true)
		start := time.Now()
		_, err := c.TryAcquire(context.Background(), "k", TTL(time.Second))
		require.ErrorContains(t, err, `lock: acquire "k": no answer within the TTL (1s): `)
		require.NotErrorIs(t, err, ErrNotAcquired)
		require.Equal(t, time.Second, time.Since(start))
		n.silence(false)
		nothingLeft(t, srv, c)
	})
}

func TestAReleaseWhoseAnswerIsCutIsSettledInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb, n := throughNetwork(t, srv)
		c := open(t, rdb, Config{CloseTimeout: time.Minute})
		l := acquire(t, c, "k")
		n.silence(true)
		err := l.Release(t.Context())
		require.ErrorContains(t, err, `lock: release "k": `)
		require.NotErrorIs(t, err, ErrLost)
		require.Error(t, l.Context().Err())
		require.EqualValues(t, 1, total(c).ReleaseFailed)
		n.silence(false)
		require.NoError(t, l.Release(t.Context()), "it may be tried again")
		require.NoError(t, l.Release(t.Context()))

		l = acquire(t, c, "k")
		n.cutAfter(0)
		require.Error(t, l.Release(t.Context()))
		n.cutAfter(-1)
		require.NoError(t, l.Release(t.Context()), "the first one has worked")

		err = c.Do(t.Context(), "k", func(context.Context, *Lease) error {
			n.silence(true)
			return nil
		})
		require.NoError(t, err, "the work was done under the lease")
		n.silence(false)
		nothingLeft(t, srv, c)
	})
}

// What the server still has to do when the first delete arrives is deleted by
// the second.
func TestAnAttemptThatArrivesAfterTheFirstDeleteLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		c := open(t, rdb, Config{CloseTimeout: time.Minute})
		r, err := c.request(t.Context(), "k", nil)
		require.NoError(t, err)
		sweeperOf(c).add(r, unsettled)
		c.leave()
		time.Sleep(time.Millisecond)
		require.NoError(t, srv.Set(r.keys.leases[0], r.token+"{}")) // now it is done
		time.Sleep(sweepAgain - 2*time.Millisecond)
		require.True(t, srv.Exists(r.keys.leases[0]))
		nothingLeft(t, srv, c)
	})
}

func TestWhatCannotBeDeletedIsTriedUntilItsTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb, _ := throughNetwork(t, srv)
		c := open(t, rdb, Config{TTL: 30 * time.Second, CloseTimeout: time.Minute})
		l := acquire(t, c, "k")
		srv.Stop()
		require.Error(t, l.Release(t.Context()))
		time.Sleep(20 * time.Second)
		require.NoError(t, srv.Restart())
		time.Sleep(2*sweepAgain + time.Millisecond)
		require.Empty(t, leaseKeys(srv), "long before its TTL")

		l = acquire(t, c, "k")
		srv.Stop()
		require.Error(t, l.Release(t.Context()))
		time.Sleep(33 * time.Second)
		require.Zero(t, toSweep(c), "the TTL has done it")
		require.NoError(t, srv.Restart())
	})
}

func TestWhatWasNeverSentNeedsNoDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		cn := ownClient(t, srv)
		c := open(t, cn, Config{CloseTimeout: time.Minute})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		srv.Stop()
		_ = cn.Ping(t.Context()) // drops the connection
		opened := false
		for range 20 { // refused connections, then the breaker
			_, err := c.TryAcquire(t.Context(), "k")
			require.Error(t, err)
			opened = opened || errors.Is(err, breaker.ErrOpen)
		}
		require.True(t, opened)
		synctest.Wait()
		require.Zero(t, toSweep(c))
		start := time.Now()
		require.NoError(t, c.Close())
		require.Zero(t, time.Since(start))
		require.NoError(t, srv.Restart())
		require.NoError(t, cn.Close())
		time.Sleep(2 * time.Second)
	})
}

func TestOnlySoMuchIsRememberedForDeletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, testserver.New(t).Client(t), Config{})
		r, err := c.request(t.Context(), "k", nil)
		require.NoError(t, err)
		defer c.leave()
		sweeperOf(c).mu.Lock()
		for range maxSwept {
			sweeperOf(c).left = append(sweeperOf(c).left, &leftover{due: time.Now().Add(time.Hour)})
		}
		sweeperOf(c).mu.Unlock()
		sweeperOf(c).add(r, unsettled)
		require.Equal(t, maxSwept, toSweep(c))
	})
}
