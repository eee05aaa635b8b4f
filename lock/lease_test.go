package lock

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
)

// The cases of redislock's own test-suite are told again here, for leases.

func TestALeaseIsHeldUntilItIsReleased(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{TTL: time.Hour, Holder: "tester"})
		l := acquire(t, c, "report")
		require.Equal(t, "report", l.Key())
		require.NoError(t, l.Context().Err())

		value, err := rdb.Get(ctx, "redisha:lock:{report}").Result()
		require.NoError(t, err)
		_, h, err := parseValue(value)
		require.NoError(t, err)
		require.Equal(t, "tester", h.Name)
		require.WithinDuration(t, time.Now(), time.UnixMilli(h.Since), time.Minute)
		ttl, err := rdb.PTTL(ctx, "redisha:lock:{report}").Result()
		require.NoError(t, err)
		require.InDelta(t, time.Hour, ttl, float64(time.Minute))
		last, err := rdb.Get(ctx, "redisha:lock:{report}:f").Int64()
		require.NoError(t, err)
		require.Equal(t, l.Token(), last)

		_, err = c.TryAcquire(ctx, "report")
		require.ErrorIs(t, err, ErrNotAcquired)
		require.EqualError(t, err, `lock: acquire "report": not acquired: another holds the lock`)

		require.NoError(t, l.Release(ctx))
		require.ErrorIs(t, context.Cause(l.Context()), context.Canceled)
		require.Zero(t, rdb.Exists(ctx, "redisha:lock:{report}").Val())
		require.NoError(t, l.Release(ctx), "again")

		again := acquire(t, c, "report")
		require.Greater(t, again.Token(), l.Token())
		require.NoError(t, l.Release(ctx), "does not touch the next lease")
		require.NoError(t, again.Context().Err())
		require.NoError(t, again.Release(ctx))
	})
}

func TestOptionsChangeOneLease(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := open(t, rdb, Config{TTL: time.Hour})
		l := acquire(t, c, "k", nil, TTL(time.Minute+time.Microsecond))
		ttl, err := rdb.PTTL(t.Context(), "redisha:lock:{k}").Result()
		require.NoError(t, err)
		require.InDelta(t, time.Minute, ttl, float64(10*time.Second))
		require.NoError(t, l.Release(t.Context()))
	})
}

func TestAnyKeyCanBeLocked(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := open(t, rdb, Config{})
		var leases []*Lease
		for _, key := range []string{"{", "}", "{}", "%", "%7D", "\x00\xff", strings.Repeat("é", MaxKeyBytes/2)} {
			leases = append(leases, acquire(t, c, key))
		}
		for _, l := range leases {
			require.NoError(t, l.Release(t.Context()))
		}
	})
}

func TestOneOfManyAtOnceAcquires(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := open(t, rdb, Config{})
		var won atomic.Int32
		errs := make(chan error, 100)
		var wg sync.WaitGroup
		for range cap(errs) {
			wg.Go(func() {
				_, err := c.TryAcquire(t.Context(), "k")
				if err == nil {
					won.Add(1)
				} else if !errors.Is(err, ErrNotAcquired) {
					errs <- err
				}
			})
		}
		wg.Wait()
		require.Empty(t, errs)
		require.EqualValues(t, 1, won.Load())
	})
}

func TestAcquireWaitsForTheOthersRelease(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c, other := open(t, rdb, Config{}), open(t, rdb, Config{})
		first := acquire(t, other, "k")
		time.AfterFunc(30*time.Millisecond, func() { _ = first.Release(context.Background()) })
		l, err := c.Acquire(t.Context(), "k")
		require.NoError(t, err)
		require.Error(t, first.Context().Err())
		require.Greater(t, l.Token(), first.Token())
		require.NoError(t, l.Release(t.Context()))
	})
}

func TestAcquireWaitsForTheOthersEnd(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		require.NoError(t, rdb.Set(t.Context(), "redisha:lock:{k}", "a dead holder", 100*time.Millisecond).Err())
		l, err := open(t, rdb, Config{}).Acquire(t.Context(), "k")
		require.NoError(t, err)
		require.NoError(t, l.Release(t.Context()))
	})
}

func TestAcquireWaitsNoLongerThanItsContext(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := open(t, rdb, Config{})
		l := acquire(t, c, "k")
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Millisecond)
		defer cancel()
		_, err := c.Acquire(ctx, "k")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		if !errors.Is(err, ErrNotAcquired) {
			require.EqualError(t, err, `lock: acquire "k": context deadline exceeded`, "it ended within an attempt")
		}

		canceled, stop := context.WithCancelCause(t.Context())
		time.AfterFunc(20*time.Millisecond, func() { stop(errTest) })
		_, err = c.Acquire(canceled, "k")
		require.ErrorIs(t, err, errTest)
		require.NoError(t, l.Release(t.Context()))
	})
}

func TestAcquireWaitsNoLongerThanMaxWait(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := open(t, rdb, Config{})
		l := acquire(t, c, "k")
		_, err := c.Acquire(t.Context(), "k", MaxWait(30*time.Millisecond))
		require.ErrorIs(t, err, ErrNotAcquired)
		require.NotErrorIs(t, err, context.DeadlineExceeded, "the caller's context has not ended")
		require.EqualError(t, err, `lock: acquire "k": not acquired: another holds the lock, for 30ms (MaxWait)`)
		require.NoError(t, l.Release(t.Context()))
	})
}

func TestReleaseSaysThatTheLeaseWasLost(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{})
		deleted := acquire(t, c, "deleted")
		require.NoError(t, rdb.Del(ctx, "redisha:lock:{deleted}").Err())
		err := deleted.Release(ctx)
		require.ErrorIs(t, err, ErrLost)
		require.EqualError(t, err, `lock: "deleted": lease lost: its key was deleted, or another holds it`)
		require.Equal(t, err, deleted.Release(ctx), "again")

		stolen := acquire(t, c, "stolen")
		require.NoError(t, rdb.Set(ctx, "redisha:lock:{stolen}", "ABCD", 0).Err())
		require.ErrorIs(t, stolen.Release(ctx), ErrLost)
		require.Equal(t, "ABCD", rdb.Get(ctx, "redisha:lock:{stolen}").Val())
		require.ErrorIs(t, (*Lease)(nil).Release(ctx), ErrLost)
	})
}

func TestReleaseWorksWithAContextThatHasEnded(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx, cancel := context.WithCancelCause(t.Context())
		c := open(t, rdb, Config{})
		l, err := c.TryAcquire(ctx, "k")
		require.NoError(t, err)
		cancel(errTest)
		within(t, l.Context(), time.Minute, errTest)
		require.EqualValues(t, 1, rdb.Exists(t.Context(), "redisha:lock:{k}").Val(), "it is held until its holder lets go")
		require.NoError(t, l.Release(ctx))
		require.Zero(t, rdb.Exists(t.Context(), "redisha:lock:{k}").Val())
	})
}

func TestManyReleasesAtOnceAreOne(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := open(t, rdb, Config{})
		l := acquire(t, c, "k")
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if err := l.Release(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, total(c).Released)
	})
}

func TestALeaseLastsBeyondItsTTLByRenewal(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := open(t, rdb, Config{TTL: 1500 * time.Millisecond})
		l := acquire(t, c, "k")
		require.NoError(t, rdb.ScriptFlush(t.Context()).Err(), "the renewal must send its script")
		require.Eventually(t, func() bool { return c.Stats().Renewed >= 3 }, time.Minute, 10*time.Millisecond)
		require.NoError(t, l.Context().Err())
		_, err := c.TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrNotAcquired)
		require.NoError(t, l.Release(t.Context()))
	})
}

func TestARefusedRenewalEndsTheLeaseAtOnce(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{TTL: 2 * time.Second})
		var leases []*Lease
		for key, disturb := range map[string]func(key string) error{
			"deleted":    func(key string) error { return rdb.Del(ctx, key).Err() },
			"taken":      func(key string) error { return rdb.Set(ctx, key, newToken(), time.Minute).Err() },
			"other type": func(key string) error { return errors.Join(rdb.Del(ctx, key).Err(), rdb.LPush(ctx, key, 1).Err()) },
		} {
			leases = append(leases, acquire(t, c, key))
			require.NoError(t, disturb("redisha:lock:{"+key+"}"))
		}
		for _, l := range leases {
			within(t, l.Context(), time.Minute, ErrLost)
			require.ErrorIs(t, l.Release(ctx), ErrLost)
		}
		require.Equal(t, LossCount{Cause: "refused", Count: 3}, total(c).Lost[refused])
	})
}

func TestDoRunsUnderALeaseAndReleasesIt(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{})
		free := func() { require.Zero(t, rdb.Exists(ctx, "redisha:lock:{k}").Val()) }

		var token int64
		require.NoError(t, c.Do(ctx, "k", func(ctx context.Context, l *Lease) error {
			token = l.Token()
			require.Equal(t, l.Context(), ctx)
			_, err := c.TryAcquire(ctx, "k")
			require.ErrorIs(t, err, ErrNotAcquired)
			return nil
		}))
		require.Positive(t, token)
		free()

		require.Equal(t, errTest, c.Do(ctx, "k", func(context.Context, *Lease) error { return errTest }))
		free()

		require.PanicsWithValue(t, "boom", func() {
			_ = c.Do(ctx, "k", func(context.Context, *Lease) error { panic("boom") })
		})
		free()

		err := c.Do(ctx, "k", func(context.Context, *Lease) error {
			require.NoError(t, rdb.Del(ctx, "redisha:lock:{k}").Err())
			return errTest
		})
		require.ErrorIs(t, err, ErrLost)
		require.ErrorIs(t, err, errTest)

		l := acquire(t, c, "k")
		err = c.Do(ctx, "k", func(context.Context, *Lease) error { t.Error("called"); return nil }, MaxWait(500*time.Millisecond))
		require.ErrorIs(t, err, ErrNotAcquired)
		require.NoError(t, l.Release(ctx))
	})
}

func TestAKeyOfAnotherTypeIsAnErrorThatSaysSo(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{})
		require.NoError(t, rdb.HSet(ctx, "redisha:lock:{k}", "f", "v").Err())
		_, err := c.TryAcquire(ctx, "k")
		require.ErrorContains(t, err, `lock: acquire "k": "redisha:lock:{k}", "redisha:lock:{k}:f" or "redisha:lock:{k}:q" holds something else than a lock, delete it: WRONGTYPE`)
		require.Equal(t, "hash", rdb.Type(ctx, "redisha:lock:{k}").Val())

		require.NoError(t, rdb.HSet(ctx, "redisha:lock:{f}:f", "f", "v").Err())
		_, err = c.Acquire(ctx, "f", TTL(time.Hour))
		require.ErrorContains(t, err, `lock: acquire "f": "redisha:lock:{f}"`)
		require.Eventually(t, func() bool { return rdb.Exists(ctx, "redisha:lock:{f}").Val() == 0 },
			20*time.Second, time.Millisecond, "a lease without token is given back")
	})
}

// Whoever does not look at the error has one of these.
func TestWhatIsNoLeaseIsALostOne(t *testing.T) {
	for _, l := range []*Lease{nil, {}} {
		require.ErrorIs(t, context.Cause(l.Context()), ErrLost)
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		require.Zero(t, l.Token())
		require.Empty(t, l.Key())
	}
}

func TestAClientThatWasNotMadeIsAnError(t *testing.T) {
	for _, c := range []*Client{nil, {}} {
		calls := map[string]error{"check": c.Check(t.Context()), "close": c.Close()}
		for way, call := range ways {
			calls[way] = call(t.Context(), c, "k")
		}
		_, calls["inspect"] = c.Inspect(t.Context(), "k")
		_, calls["revoke"] = c.Revoke(t.Context(), "k", 1)
		for name, err := range calls {
			require.ErrorIs(t, err, errNotMade, name)
		}
		require.Zero(t, c.Stats())
	}
}
