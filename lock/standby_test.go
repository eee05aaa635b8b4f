package lock

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

// stoppedWaiter puts a waiter into the queue of the lock "k" whose process listens
// and does nothing.
func stoppedWaiter(t *testing.T, rdb *redis.Client, n int) {
	t.Helper()
	process := "pstopped" + string(rune('a'+n))
	sub := rdb.Subscribe(t.Context(), "redisha:lock:p:"+processOf(process))
	t.Cleanup(func() { _ = sub.Close() })
	_, err := sub.Receive(t.Context())
	require.NoError(t, err)
	require.NoError(t, rdb.RPush(t.Context(), queueK, entryOf(tokenOf(n), process)).Err())
}

func TestEachStoppedWaiterCostsTheClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		holder, next := open(t, srv.Client(t), Config{TTL: time.Hour}), open(t, srv.Client(t), Config{})
		first := acquire(t, holder, "k")
		for n := range 3 {
			stoppedWaiter(t, rdb, n)
		}
		s := &served{start: time.Now()}
		var wg sync.WaitGroup
		s.queueUp(t, &wg, 0, next)
		s.start = time.Now()
		require.NoError(t, first.Release(t.Context()))
		wg.Wait()
		require.GreaterOrEqual(t, s.at[0], 3*claimTTL)
		require.LessOrEqual(t, s.at[0], 3*claimTTL+50*time.Millisecond)
		time.Sleep(claimTTL + time.Second)
		standby := &holder.store.(single).standby
		standby.mu.Lock()
		defer standby.mu.Unlock()
		require.Empty(t, standby.locks)
	})
}

// Who released may be gone at once. Then those who wait find out themselves.
func TestAStoppedWaiterBehindAReleaserThatIsGoneCostsALook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		holder, next := open(t, srv.Client(t), Config{TTL: time.Hour}), open(t, srv.Client(t), Config{})
		first := acquire(t, holder, "k")
		stoppedWaiter(t, srv.Client(t), 0)
		s := &served{start: time.Now()}
		var wg sync.WaitGroup
		s.queueUp(t, &wg, 0, next)
		s.start = time.Now()
		require.NoError(t, first.Release(t.Context()))
		require.NoError(t, holder.Close())
		wg.Wait()
		require.GreaterOrEqual(t, s.at[0], claimTTL)
		require.LessOrEqual(t, s.at[0], claimTTL+checkMost+50*time.Millisecond)
	})
}

// What a hand-over tells who asked is how long the lease lives.
func TestScriptsTellHowLongALeaseLivesThatTheyHaveHandedOver(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		listen(t, rdb, "p")
		all := []string{"{k}", "{k}:q", "{k}:f"}
		require.EqualValues(t, 0, wakeScript.Run(ctx, rdb, all).Val())
		for _, process := range []string{"pgone", "p"} {
			want := map[string]int64{"pgone": 0, "p": claimTTL.Milliseconds()}[process]
			queue := func(n int) {
				require.NoError(t, rdb.Del(ctx, all[0], all[1]).Err())
				require.NoError(t, rdb.RPush(ctx, all[1], entryOf(tokenOf(n), process)).Err())
			}
			queue(1)
			require.EqualValues(t, want, wakeScript.Run(ctx, rdb, all).Val())
			queue(2)
			require.NoError(t, rdb.Set(ctx, all[0], tokenOf(3), time.Minute).Err())
			require.EqualValues(t, 0, wakeScript.Run(ctx, rdb, all).Val(), "it is held")
			require.Equal(t, []any{int64(1), want}, passScript.Run(ctx, rdb, all, tokenOf(3), "").Val())
			queue(4)
			require.NoError(t, rdb.Set(ctx, all[0], "held", time.Minute).Err())
			released := rdb.Eval(ctx, releaseText(t), all, "held").Val()
			if process == "p" {
				require.EqualValues(t, want, released)
			} else {
				require.Equal(t, "OK", released)
			}
			require.Equal(t, want > 0, rdb.Exists(ctx, all[0]).Val() == 1)
		}
	})
}

func TestAWakeHandsOverEachOfSeveralLocks(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		messages := listen(t, rdb, "p")
		short := strings.Replace(entryOf(tokenOf(2), "p"), lifeOf(5*time.Second), lifeOf(time.Second), 1)
		require.NoError(t, rdb.RPush(ctx, "{k}aq", entryOf(tokenOf(1), "p")).Err())
		require.NoError(t, rdb.RPush(ctx, "{k}bq", short).Err())
		life, err := wakeScript.Run(ctx, rdb, []string{"{k}a", "{k}b", "{k}aq", "{k}bq", "{k}af", "{k}bf"}).Int64()
		require.NoError(t, err)
		require.Equal(t, claimTTL.Milliseconds(), life, "the longer one")
		require.EqualValues(t, 2, rdb.Exists(ctx, "{k}a", "{k}b").Val())
		require.Equal(t, []string{"p y" + tokenOf(1), "p y" + tokenOf(2)}, messages(2))
	})
}

// releaseText is the script that a lease is released with.
func releaseText(t *testing.T) string {
	t.Helper()
	srv := testserver.New(t)
	l := acquire(t, open(t, srv.Client(t), Config{}), "k")
	require.NoError(t, l.Release(t.Context()))
	return releaseScript.whole.Load().text
}

// However many of those who wait are gone, the next one is served at once.
func TestManyWhoAreGoneCostNoLook(t *testing.T) {
	for _, dead := range []int{99, 150, 350} {
		synctest.Test(t, func(t *testing.T) {
			srv := testserver.New(t)
			rdb := srv.Client(t)
			holder, next := open(t, srv.Client(t), Config{TTL: time.Hour}), open(t, srv.Client(t), Config{})
			first := acquire(t, holder, "k")
			for n := range dead {
				require.NoError(t, rdb.RPush(t.Context(), queueK, entryOf(tokenOf(n), "pgone")).Err())
			}
			s := &served{start: time.Now()}
			var wg sync.WaitGroup
			s.queueUp(t, &wg, 0, next)
			s.start = time.Now()
			require.NoError(t, first.Release(t.Context()))
			wg.Wait()
			require.LessOrEqual(t, s.at[0], 15*time.Millisecond, dead)
		})
	}
}

// A hand-over of several locks and a later one of the first of them are looked after.
func TestEachHandOverIsLookedAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		holder := open(t, srv.Client(t), Config{TTL: time.Hour})
		several := acquire(t, holder, "{k}a", Also("{k}b"))
		k := several.keys
		stopped := srv.Client(t).Subscribe(t.Context(), "redisha:lock:p:"+processOf("pstopped"))
		defer stopped.Close()
		_, err := stopped.Receive(t.Context())
		require.NoError(t, err)
		for _, queue := range k.queues {
			_, err := srv.Push(queue, entryOf(tokenOf(1), "pstopped"))
			require.NoError(t, err)
		}
		require.NoError(t, several.Release(t.Context()))
		s := &holder.store.(single).standby
		s.add(keysOf(k.leases[0]).all, 2000)
		s.mu.Lock()
		defer s.mu.Unlock()
		require.Len(t, s.locks, 2)
	})
}
