package cache

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

// aging is a view whose values are fresh for a minute at most and stale for an hour.
var aging = ViewConfig{TTL: time.Minute, StaleFor: time.Hour}

func TestAStaleValueIsReturnedAtOnceAndRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", aging)
		require.NoError(t, v.Set(t.Context(), "k", "old"))
		ttl := rdb.PTTL(t.Context(), "redisha:cache:v:k").Val()
		require.Greater(t, ttl, time.Hour+54*time.Second-time.Second)
		require.LessOrEqual(t, ttl, time.Hour+time.Minute)
		time.Sleep(time.Minute)

		_, err := v.Get(t.Context(), "k")
		require.Equal(t, ErrMiss, err)
		src := newSource("new")
		for range 20 { // of which the first begins the refresh
			start := time.Now()
			got, err := v.Fetch(t.Context(), "k", src.load)
			require.NoError(t, err)
			require.Equal(t, "old", got)
			require.Zero(t, time.Since(start))
			synctest.Wait()
		}
		require.EqualValues(t, 1, src.loads.Load())
		close(src.release)
		synctest.Wait()
		got, err := v.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "new", got)
		s := c.Stats()
		require.EqualValues(t, 1, s.Refreshes)
		require.EqualValues(t, 21, s.Stale)
		require.Zero(t, s.LeasesTaken)
		require.Greater(t, rdb.PTTL(t.Context(), "redisha:cache:v:k").Val(), time.Hour+50*time.Second)
	})
}

func TestAValueGoesWhenItsStaleTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", aging)
		require.NoError(t, v.Set(t.Context(), "k", "old"))
		time.Sleep(time.Hour + time.Minute)
		got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "new", nil })
		require.NoError(t, err)
		require.Equal(t, "new", got)
	})
}

// One process refreshes, the others serve the old value meanwhile.
func TestOneOfManyProcessesRefreshes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		var loads atomic.Int64
		var wg sync.WaitGroup
		first := NewView[int, string](newClient(t, s.Client(t), Config{}), "v", aging)
		for key := range 5 {
			require.NoError(t, first.Set(t.Context(), key, "old"))
		}
		time.Sleep(time.Minute)
		for range 8 {
			rdb := s.Client(t)
			v := NewView[int, string](newClient(t, rdb, Config{}), "v", aging)
			for key := range 5 {
				for range 4 {
					wg.Go(func() {
						got, err := v.Fetch(t.Context(), key, func(context.Context, int) (string, error) {
							loads.Add(1)
							time.Sleep(time.Second)
							return "new", nil
						})
						if err != nil || got != "old" {
							t.Errorf("got %q, %v", got, err)
						}
					})
				}
			}
		}
		wg.Wait()
		time.Sleep(2 * time.Second)
		require.EqualValues(t, 5, loads.Load())
		for key := range 5 {
			got, err := first.Get(t.Context(), key)
			require.NoError(t, err)
			require.Equal(t, "new", got)
		}
	})
}

func TestAStaleValueServesWhileTheSourceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", aging)
		other := NewView[string, string](newClient(t, s.Client(t), Config{}), "v", aging)
		require.NoError(t, v.Set(t.Context(), "k", "old"))
		time.Sleep(time.Minute)
		var loads atomic.Int64
		load := func(context.Context, string) (string, error) { loads.Add(1); return "", errors.New("database is down") }
		for second := range 61 {
			for _, v := range []*View[string, string]{v, other} {
				got, err := v.Fetch(t.Context(), "k", load)
				require.NoError(t, err)
				require.Equal(t, "old", got)
				synctest.Wait()
			}
			require.EqualValues(t, 1+second/30, loads.Load(), "a load in 30 s, over all processes")
			time.Sleep(time.Second)
		}
		require.EqualValues(t, 3, c.Stats().LoadErrors, "all by who asks first")
	})
}

func TestAStaleValueGoesIfTheSourceHasNothingInItsPlace(t *testing.T) {
	for name, test := range map[string]struct {
		cfg  ViewConfig
		load func(context.Context, string) (string, error)
		want int // keys that are left
	}{
		"an absence, cached":     {ViewConfig{TTL: time.Minute, StaleFor: time.Hour}, func(context.Context, string) (string, error) { return "", ErrNotFound }, 1},
		"an absence, not cached": {ViewConfig{TTL: time.Minute, StaleFor: time.Hour, AbsentTTL: -1}, func(context.Context, string) (string, error) { return "", ErrNotFound }, 0},
		"a value too large":      {ViewConfig{TTL: time.Minute, StaleFor: time.Hour, MaxValueBytes: 5}, func(context.Context, string) (string, error) { return "too large", nil }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, rdb := newServer(t)
				v := NewView[string, string](newClient(t, rdb, Config{}), "v", test.cfg)
				require.NoError(t, v.Set(t.Context(), "k", "old"))
				time.Sleep(time.Minute)
				got, err := v.Fetch(t.Context(), "k", test.load)
				require.NoError(t, err)
				require.Equal(t, "old", got)
				synctest.Wait()
				require.Len(t, s.Keys(), test.want)
			})
		})
	}
}

func TestASoftTimeoutBoundsTheWaitForAFreshValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		cfg := aging
		cfg.SoftLoadTimeout = 100 * time.Millisecond
		v := NewView[string, string](c, "v", cfg)
		fetch := func(load func(context.Context, string) (string, error)) (string, time.Duration) {
			start := time.Now()
			got, err := v.Fetch(t.Context(), "k", load)
			require.NoError(t, err)
			return got, time.Since(start)
		}
		slow := func(took time.Duration, value string, err error) func(context.Context, string) (string, error) {
			return func(context.Context, string) (string, error) { time.Sleep(took); return value, err }
		}
		require.NoError(t, v.Set(t.Context(), "k", "old"))
		time.Sleep(time.Minute)
		got, took := fetch(slow(time.Second, "late", nil))
		require.Equal(t, "old", got)
		require.Equal(t, 100*time.Millisecond, took)
		got, took = fetch(mustNotLoad[string]) // waits for the same load
		require.Equal(t, "old", got)
		require.Equal(t, 100*time.Millisecond, took)
		require.EqualValues(t, 2, c.Stats().SoftTimeouts)
		time.Sleep(time.Second)
		got, _ = fetch(mustNotLoad[string])
		require.Equal(t, "late", got)

		time.Sleep(time.Minute)
		got, took = fetch(slow(50*time.Millisecond, "in time", nil))
		require.Equal(t, "in time", got)
		require.Equal(t, 50*time.Millisecond, took)

		time.Sleep(time.Minute)
		got, took = fetch(slow(50*time.Millisecond, "", errors.New("down")))
		require.Equal(t, "in time", got)
		require.Equal(t, 50*time.Millisecond, took)

		time.Sleep(time.Minute)
		_, err := v.Fetch(t.Context(), "k", slow(50*time.Millisecond, "", ErrNotFound))
		require.Equal(t, ErrNotFound, err)

		require.NoError(t, v.Set(t.Context(), "k", "old"))
		time.Sleep(time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		got, err = v.Fetch(ctx, "k", slow(time.Second, "late", nil))
		require.NoError(t, err)
		require.Equal(t, "old", got, "who gives up has a value")
		time.Sleep(time.Second)
	})
}

func TestRefreshesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[int, string](c, "v", aging)
		for key := range maxRefreshes + 1 {
			require.NoError(t, v.Set(t.Context(), key, "old"))
		}
		time.Sleep(time.Minute)
		for key := range maxRefreshes + 1 {
			got, err := v.Fetch(t.Context(), key, func(context.Context, int) (string, error) { time.Sleep(time.Second); return "new", nil })
			require.NoError(t, err)
			require.Equal(t, "old", got)
		}
		require.EqualValues(t, 1, c.Stats().RefreshesRefused)
		time.Sleep(time.Second)
		synctest.Wait()
		require.EqualValues(t, maxRefreshes, c.Stats().Refreshes)
		require.Empty(t, c.refreshes)
	})
}

// What comes between the beginning of a refresh and its end decides.
func TestARefreshThatWasOvertakenIsNotStored(t *testing.T) {
	for name, test := range map[string]struct {
		write func(context.Context, *View[string, string]) error
		want  string // what Lookup finds
	}{
		"Delete": {func(ctx context.Context, v *View[string, string]) error { return v.Delete(ctx, "k") }, ""},
		"Set":    {func(ctx context.Context, v *View[string, string]) error { return v.Set(ctx, "k", "set") }, "set"},
		"Expire": {func(ctx context.Context, v *View[string, string]) error { return v.Expire(ctx, "k") }, "old"},
	} {
		for _, elsewhere := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s, rdb := newServer(t)
					c := newClient(t, rdb, Config{})
					v := NewView[string, string](c, "v", aging)
					writer := v
					if elsewhere {
						writer = NewView[string, string](newClient(t, s.Client(t), Config{}), "v", aging)
					}
					require.NoError(t, v.Set(t.Context(), "k", "old"))
					time.Sleep(time.Minute)
					src := newSource("too old")
					_, err := v.Fetch(t.Context(), "k", src.load)
					require.NoError(t, err)
					<-src.began
					require.NoError(t, test.write(t.Context(), writer))
					close(src.release)
					synctest.Wait()
					require.EqualValues(t, 1, c.Stats().FillsRefused)
					e, err := v.Lookup(t.Context(), "k")
					require.Equal(t, test.want, e.Value)
					if test.want == "" {
						require.Equal(t, ErrMiss, err)
					}
				})
			})
		}
	}
}

// A caller who misses, since the value was deleted, does not get what the refresh of
// the deleted one loads.
func TestWhoComesAfterADeleteDoesNotGetARefreshOfBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", aging)
		there := NewView[string, string](newClient(t, s.Client(t), Config{}), "v", aging)
		require.NoError(t, v.Set(t.Context(), "k", "old"))
		time.Sleep(time.Minute)
		src := newSource("too old")
		_, err := v.Fetch(t.Context(), "k", src.load)
		require.NoError(t, err)
		<-src.began
		require.NoError(t, there.Delete(t.Context(), "k"))
		later := goFetch(t.Context(), v, "k", func(context.Context, string) (string, error) { return "new", nil })
		synctest.Wait()
		close(src.release)
		require.Equal(t, fetched[string]{"new", nil}, <-later)
	})
}

func TestRefreshHasOneWinnerAndKeepsTheTTL(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx, c := t.Context(), newClient(t, rdb, Config{})
		mine, other := newLease(), newLease()
		h := header{softExpiry: 1_700_000_000_000, loadTime: 5, stored: 7}
		old := entry{kind: kindValue, header: h, body: []byte("body \x00\xff")}
		require.NoError(t, rdb.Set(ctx, "k", appendEntry(nil, old), time.Minute).Err())

		won, err := c.refresh(ctx, "k", mine, &h, 10*time.Second)
		require.NoError(t, err)
		require.Positive(t, won)
		e, err := parseEntry([]byte(stored(t, rdb, "k", time.Minute)))
		require.NoError(t, err)
		require.Greater(t, rdb.PTTL(ctx, "k").Val(), 30*time.Second)
		require.Equal(t, token(mine[2:]), e.header.refreshToken)
		require.InDelta(t, time.Now().Add(10*time.Second).UnixMilli(), int64(e.header.refreshUntil), 60_000)
		e.header.refreshToken, e.header.refreshUntil = token{}, 0
		require.Equal(t, old, e, "all else is as it was")

		won, err = c.refresh(ctx, "k", mine, &h, 10*time.Second)
		require.NoError(t, err)
		require.Positive(t, won, "an echo of my own")
		won, err = c.refresh(ctx, "k", other, &h, 10*time.Second)
		require.NoError(t, err)
		require.Zero(t, won, "there is one winner")

		released, err := c.release(ctx, "k", other, 0)
		require.NoError(t, err)
		require.False(t, released)
		filled, err := c.fill(ctx, "k", other, []byte("other"), 1000)
		require.NoError(t, err)
		require.False(t, filled)
		released, err = c.release(ctx, "k", mine, refreshPause)
		require.NoError(t, err)
		require.True(t, released)
		e, err = parseEntry([]byte(stored(t, rdb, "k", time.Minute)))
		require.NoError(t, err)
		require.Zero(t, e.header.refreshToken)
		require.InDelta(t, time.Now().Add(refreshPause).UnixMilli(), int64(e.header.refreshUntil), 60_000)
		won, err = c.refresh(ctx, "k", other, &h, time.Second)
		require.NoError(t, err)
		require.Zero(t, won, "for now nobody")

		require.NoError(t, rdb.Set(ctx, "k", appendEntry(nil, old), time.Minute).Err())
		won, err = c.refresh(ctx, "k", mine, &h, time.Second)
		require.NoError(t, err)
		require.Positive(t, won)
		released, err = c.release(ctx, "k", mine, 0)
		require.NoError(t, err)
		require.True(t, released)
		require.Equal(t, string(appendEntry(nil, old)), stored(t, rdb, "k", time.Minute))

		won, err = c.refresh(ctx, "k", mine, &h, time.Second)
		require.NoError(t, err)
		require.Positive(t, won)
		filled, err = c.fill(ctx, "k", mine, []byte("new"), 1000)
		require.NoError(t, err)
		require.True(t, filled)
		require.Equal(t, "new", stored(t, rdb, "k", time.Second))

		require.NoError(t, rdb.Set(ctx, "k", appendEntry(nil, old), time.Minute).Err())
		won, err = c.refresh(ctx, "k", mine, &h, time.Second)
		require.NoError(t, err)
		require.Positive(t, won)
		released, err = c.release(ctx, "k", mine, -1)
		require.NoError(t, err)
		require.True(t, released)
		require.Zero(t, rdb.Exists(ctx, "k").Val())

		// Something else is there.
		for name, b := range map[string][]byte{
			"nothing": nil, "a lease": newLease(), "plain bytes": []byte("plain"), "half a header": appendEntry(nil, old)[:20],
			"a newer value": appendEntry(nil, entry{kind: kindValue, header: header{softExpiry: 9}}),
		} {
			require.NoError(t, rdb.Del(ctx, "k").Err())
			if b != nil {
				require.NoError(t, rdb.Set(ctx, "k", b, time.Minute).Err())
			}
			won, err = c.refresh(ctx, "k", mine, &h, time.Second)
			require.NoError(t, err)
			require.Zero(t, won, name)
			require.Equal(t, string(b), rdb.Get(ctx, "k").Val(), name)
		}
		require.NoError(t, rdb.LPush(ctx, "list", "x").Err())
		_, err = c.refresh(ctx, "list", mine, &h, time.Second)
		require.ErrorContains(t, err, "WRONGTYPE")
	})
}

// A refresh whose holder does not know that it has it does not keep others from the
// key for eleven seconds.
func TestARefreshWhoseReplyWasLostIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		require.NoError(t, refreshScript.Load(t.Context(), rdb).Err())
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", aging)
		there := NewView[string, string](newClient(t, s.Client(t), Config{}), "v", aging)
		require.NoError(t, v.Set(t.Context(), "k", "old"))
		time.Sleep(time.Minute)
		rdb.AddHook(loseReply{script: refreshScript.Hash()})
		got, err := v.Fetch(t.Context(), "k", mustNotLoad[string])
		require.NoError(t, err)
		require.Equal(t, "old", got)
		synctest.Wait()
		got, err = there.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "new", nil })
		require.NoError(t, err)
		require.Equal(t, "old", got)
		synctest.Wait()
		got, err = there.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "new", got)
	})
}

// Whoever has a clock of his own is not kept from refreshing by it for long.
func TestWhoRefreshesIsJudgedByTheServersClock(t *testing.T) {
	h := header{softExpiry: 1, refreshUntil: unixMilli(time.Now().Add(time.Hour))}
	require.False(t, h.isRefreshed(time.Now(), time.Minute), "so far ahead another clock wrote it: the server is asked")
	h.refreshUntil = unixMilli(time.Now().Add(30 * time.Second))
	require.True(t, h.isRefreshed(time.Now(), time.Minute))
	h.refreshUntil = unixMilli(time.Now().Add(-time.Second))
	require.False(t, h.isRefreshed(time.Now(), time.Minute))
}

func TestOthersDoNotQueueForASourceThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		var loads atomic.Int64
		fetches := make(chan error, 8)
		load := func(context.Context, string) (string, error) {
			loads.Add(1)
			time.Sleep(2 * time.Second)
			return "", errors.New("database is down")
		}
		var views []*View[string, string]
		for range 8 {
			v := NewView[string, string](newClient(t, s.Client(t), Config{}), "v", ViewConfig{LoadTimeout: 3 * time.Second})
			views = append(views, v)
			go func() {
				_, err := v.Fetch(t.Context(), "k", load)
				fetches <- err
			}()
		}
		start := time.Now()
		shared := 0
		for range 8 {
			err := <-fetches
			require.ErrorContains(t, err, "database is down")
			if errors.Is(err, ErrLoadFailed) {
				shared++
			}
		}
		require.Equal(t, 7, shared)
		require.EqualValues(t, 1, loads.Load())
		require.Less(t, time.Since(start), 2*time.Second+2*maxPoll, "they did not wait for a load each")

		_, err := views[0].Get(t.Context(), "k")
		require.Equal(t, ErrMiss, err)
		_, err = views[0].Fetch(t.Context(), "k", mustNotLoad[string])
		require.EqualError(t, err, `cache: fetch "v:k": the load has just failed: database is down`)
		time.Sleep(defaultErrorTTL)
		require.Empty(t, s.Keys())
		got, err := views[0].Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "up", nil })
		require.NoError(t, err)
		require.Equal(t, "up", got)
	})
}

func TestAnErrorOfALoadGivesWayToAValueAndToADelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{ErrorTTL: time.Hour})
		for _, write := range []func() error{
			func() error { return v.Set(t.Context(), "k", "value") },
			func() error { _, err := v.Add(t.Context(), "k", "value"); return err },
			func() error { return v.Delete(t.Context(), "k") },
			func() error { return v.Expire(t.Context(), "k") },
		} {
			require.NoError(t, v.Delete(t.Context(), "k"))
			_, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "", errors.New("down") })
			require.ErrorContains(t, err, "down")
			require.NoError(t, write())
			got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "value", nil })
			require.NoError(t, err)
			require.Equal(t, "value", got)
		}
	})
}

// A client that is closed says nothing of the source.
func TestTheEndOfAClientIsNoErrorOfTheSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		src := newSource("value")
		call := goFetch(t.Context(), v, "k", src.load)
		<-src.began
		require.NoError(t, c.Close())
		require.ErrorIs(t, (<-call).err, ErrClosed)
		require.Empty(t, s.Keys())
	})
}
