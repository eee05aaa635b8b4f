package lock

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

func TestCloseEndsTheContextsAndWaitsForTheHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{TTL: 3 * time.Second, CloseTimeout: 10 * time.Second})
		l := acquire(t, c, "k")
		go func() {
			<-l.Context().Done()
			time.Sleep(7 * time.Second) // the holder finishes its work, for longer than the TTL
			if err := l.Release(context.Background()); err != nil {
				t.Error(err)
			}
		}()
		start := time.Now()
		require.NoError(t, c.Close())
		require.Equal(t, 7*time.Second, time.Since(start))
		require.ErrorIs(t, context.Cause(l.Context()), ErrClosed)
		require.EqualError(t, context.Cause(l.Context()), `lock: "k": redis: client is closed`)
		require.Empty(t, leaseKeys(srv))
		require.NoError(t, c.Close(), "again")
		require.Equal(t, 7*time.Second, time.Since(start))
	})
}

func TestCloseLeavesALeaseThatIsNotReleasedToItsTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{TTL: 30 * time.Second, CloseTimeout: 5 * time.Second})
		l, late := acquire(t, c, "k"), acquire(t, c, "late")
		start := time.Now()
		err := c.Close()
		require.ErrorContains(t, err, "lock: close: 2 leases were not released within 5s (CloseTimeout), their TTL will end them: the first is ")
		require.Equal(t, err, c.Close())
		require.Equal(t, 5*time.Second, time.Since(start))
		require.ErrorIs(t, context.Cause(l.Context()), ErrClosed)

		time.Sleep(24 * time.Second)
		require.True(t, srv.Exists("redisha:lock:{k}"), "its holder may still be at work")
		require.NoError(t, late.Release(t.Context()), "better late than never")
		time.Sleep(time.Second)
		require.Empty(t, leaseKeys(srv))
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
	})
}

func TestCloseCanBeToldNotToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, testserver.New(t).Client(t), Config{CloseTimeout: -1})
		l := acquire(t, c, "k")
		start := time.Now()
		require.Error(t, c.Close())
		require.Zero(t, time.Since(start))
		require.ErrorIs(t, context.Cause(l.Context()), ErrClosed)
	})
}

func TestCallsAfterCloseGetErrClosed(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{})
		l := acquire(t, c, "k")
		require.NoError(t, l.Release(ctx))
		require.NoError(t, c.Close())
		require.NoError(t, rdb.Ping(ctx).Err(), "the connection is not the lock's to close")

		_, err := c.TryAcquire(ctx, "k")
		require.ErrorIs(t, err, ErrClosed)
		require.EqualError(t, err, `lock: acquire "k": redis: client is closed`)
		_, err = c.Acquire(ctx, "k")
		require.ErrorIs(t, err, ErrClosed)
		require.ErrorIs(t, c.Do(ctx, "k", func(context.Context, *Lease) error { return nil }), ErrClosed)
		require.ErrorIs(t, c.Check(ctx), ErrClosed)
		require.NoError(t, l.Release(ctx), "it was released before")
		require.EqualValues(t, 1, total(c).Acquired)
	})
}

func TestCloseEndsTheWaitOfWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		acquire(t, open(t, rdb, Config{}), "k")
		c := open(t, rdb, Config{CloseTimeout: time.Minute})
		ended := make(chan error, 1)
		go func() {
			_, err := c.Acquire(t.Context(), "k")
			ended <- err
		}()
		time.Sleep(time.Second)
		require.EqualValues(t, 1, total(c).Waiting)
		start := time.Now()
		require.NoError(t, c.Close())
		require.Zero(t, time.Since(start))
		require.EqualError(t, <-ended, `lock: acquire "k": redis: client is closed`)
		require.Zero(t, total(c).Waiting)
	})
}

func TestALeaseThatArrivesDuringCloseIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		c := open(t, rdb, Config{CloseTimeout: time.Minute})
		require.NoError(t, acquire(t, c, "k").Release(t.Context())) // loads the scripts
		rdb.AddHook(slow{time.Second})
		ended := make(chan error, 1)
		go func() {
			_, err := c.TryAcquire(t.Context(), "k")
			ended <- err
		}()
		time.Sleep(time.Millisecond)
		require.NoError(t, c.Close())
		require.ErrorIs(t, <-ended, ErrClosed)
		require.Empty(t, leaseKeys(srv))
		require.Zero(t, total(c).Held)
	})
}

// Close must not take longer than it says where the server hangs.
func TestCloseIsBoundedWhileTheServerIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb, n := throughNetwork(t, srv)
		c := open(t, rdb, Config{TTL: 3 * time.Second, CloseTimeout: 100 * time.Millisecond})
		l := acquire(t, c, "k", TTL(time.Hour))
		short := acquire(t, c, "short")
		n.silence(true)
		time.Sleep(1100 * time.Millisecond) // a renewal is under way
		start := time.Now()
		require.ErrorContains(t, c.Close(), "2 leases were not released")
		require.Equal(t, 100*time.Millisecond, time.Since(start))
		require.Error(t, errors.Join(l.Release(t.Context())))
		require.Error(t, short.Release(t.Context()))
	})
}
