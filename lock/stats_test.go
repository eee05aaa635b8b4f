package lock

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

func TestStatsCountWhatHappens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		cn := ownClient(t, srv)
		c := open(t, cn, Config{TTL: 30 * time.Second})
		ctx := t.Context()
		require.Equal(t, []LossCount{{Cause: "expired"}, {Cause: "refused"}, {Cause: "clock"}, {Cause: "endpoint"}}, total(c).Lost)
		require.Equal(t, "locks", c.Stats().Nodes[0].Conn.Role)

		a := acquire(t, c, "a")
		acquire(t, c, "b")
		_, err := c.TryAcquire(ctx, "a")
		require.Error(t, err)
		_, err = c.TryAcquire(ctx, "")
		require.Error(t, err)
		time.Sleep(time.Second)
		waited := make(chan *Lease)
		go func() {
			l, err := c.Acquire(ctx, "a")
			if err != nil {
				t.Error(err)
			}
			waited <- l
		}()
		time.Sleep(time.Second)
		s := total(c)
		require.EqualValues(t, 2, s.Held)
		require.EqualValues(t, 1, s.Waiting)
		require.NoError(t, a.Release(ctx))
		l := <-waited
		srv.Del("redisha:lock:{b}")
		time.Sleep(20 * time.Second)
		require.NoError(t, l.Release(context.Background()))

		s = total(c)
		require.EqualValues(t, 3, s.Acquired)
		require.EqualValues(t, 1, s.NotAcquired)
		require.EqualValues(t, 1, s.Failed)
		require.EqualValues(t, 2, s.Released)
		require.Zero(t, s.ReleaseFailed)
		require.Equal(t, []LossCount{{Cause: "expired"}, {Cause: "refused", Count: 1}, {Cause: "clock"}, {Cause: "endpoint"}}, s.Lost)
		require.Positive(t, c.Stats().Renewed)
		require.Zero(t, c.Stats().RenewFailed)
		require.Zero(t, s.Held)
		require.Zero(t, s.Waiting)
		require.EqualValues(t, 1, s.Wait.Count)
		require.InDelta(t, time.Second, s.Wait.Sum, float64(10*time.Millisecond), "it was handed over")
		require.EqualValues(t, 3, s.Hold.Count)
		require.Greater(t, s.Hold.Sum, 30*time.Second)
	})
}
