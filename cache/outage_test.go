package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

func TestWithoutRedisOnlyFetchWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		var book logBook
		c := newClient(t, rdb, Config{Logger: book.logger()})
		v := NewView[string, user](c, "user", ViewConfig{})
		require.NoError(t, v.Set(t.Context(), "k", user{ID: 1}))
		s.Stop()
		for use, err := range useAll(t.Context(), v) {
			if use == "fetch" {
				require.NoError(t, err)
				continue
			}
			require.ErrorContains(t, err, "cache: "+use+` "user:k": `)
			require.NotErrorIs(t, err, ErrMiss)
			require.NotErrorIs(t, err, ErrNotFound)
			var refusedDial *net.OpError
			require.ErrorAs(t, err, &refusedDial, "the cause is wrapped")
		}
		require.ErrorContains(t, v.Delete(t.Context(), "a", "b", "c"), `cache: delete: 3 of 3 keys, first "user:a": `)
		require.ErrorContains(t, c.Check(t.Context()), "cache: check: ")
		st := c.Stats()
		require.EqualValues(t, 1, st.Fallbacks)
		require.EqualValues(t, 1, st.Loads)
		require.Zero(t, st.Deletes)
		require.EqualValues(t, 11, st.Errors, "Get, Lookup, Set, Add, Replace, Expire, Fetch's read, and four keys")
		require.Zero(t, st.FallbacksRunning)
		require.Equal(t, 1, strings.Count(book.String(), `level=WARN msg="cache not usable, loading without it" key=redisha:cache:user:k`))

		require.EqualValues(t, 4, st.DeletesOwed)

		require.NoError(t, s.Restart())
		time.Sleep(maxPayPause)
		require.Zero(t, c.Stats().DeletesOwed)
		_, err := v.Get(t.Context(), "k")
		require.Equal(t, ErrMiss, err, "the Delete was repeated")
	})
}

// While a load past Redis runs, those who come later gather for the next one:
// there is never more than one, and nobody gets what was loaded before it came.
func TestWithoutRedisOneLoadRunsForAKeyAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, int64](c, "v", ViewConfig{})
		s.Stop()
		var running, loads atomic.Int64
		load := func(context.Context, string) (int64, error) {
			if running.Add(1) > 1 {
				t.Error("two loads at once")
			}
			defer running.Add(-1)
			n := loads.Add(1)
			time.Sleep(time.Second)
			return n, nil
		}
		first := goFetch(t.Context(), v, "k", load)
		synctest.Wait()
		var later []<-chan fetched[int64]
		for range 100 {
			later = append(later, goFetch(t.Context(), v, "k", load))
			time.Sleep(time.Millisecond)
		}
		require.Equal(t, fetched[int64]{1, nil}, <-first)
		for _, call := range later {
			require.Equal(t, fetched[int64]{2, nil}, <-call)
		}
		require.EqualValues(t, 2, loads.Load())
		require.EqualValues(t, 2, c.Stats().Fallbacks)
	})
}

func TestWithoutRedisTheLoadsOfManyKeysAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{MaxFallbacks: 3})
		v := NewView[string, string](c, "v", ViewConfig{LoadTimeout: 10 * time.Second})
		s.Stop()
		var running, most atomic.Int64
		load := func(context.Context, string) (string, error) {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			time.Sleep(6 * time.Second)
			return "value", nil
		}
		var calls []<-chan fetched[string]
		for i := range 8 {
			calls = append(calls, goFetch(t.Context(), v, fmt.Sprint(i), load))
		}
		synctest.Wait()
		require.EqualValues(t, 3, c.Stats().FallbacksRunning)
		served, errs := 0, []string(nil)
		for _, call := range calls {
			if got := <-call; got.err != nil {
				require.ErrorContains(t, got.err, "3 loads without the cache run already (Config.MaxFallbacks), because of: ")
				var down *net.OpError
				require.ErrorAs(t, got.err, &down)
				errs = append(errs, got.err.Error())
			} else {
				served++
			}
		}
		require.Equal(t, 6, served, "two rounds begin within the load timeout")
		require.Len(t, errs, 2)
		require.EqualValues(t, 3, most.Load())
		require.EqualValues(t, 2, c.Stats().FallbacksRefused)
		require.Zero(t, c.Stats().FallbacksRunning)
	})
}

// A loader that ignores its timeout keeps its place: what is bounded is what runs.
func TestAStuckLoadKeepsItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{MaxFallbacks: 1})
		v := NewView[string, string](c, "v", ViewConfig{LoadTimeout: time.Second})
		s.Stop()
		_, err := v.Fetch(t.Context(), "a", func(context.Context, string) (string, error) {
			time.Sleep(time.Minute)
			return "", nil
		})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		_, err = v.Fetch(t.Context(), "b", mustNotLoad[string])
		require.ErrorContains(t, err, "1 loads without the cache run already")
		time.Sleep(time.Minute)
		_, err = v.Fetch(t.Context(), "b", func(context.Context, string) (string, error) { return "", nil })
		require.NoError(t, err)
	})
}

// The place is waited for, and the client is closed meanwhile.
func TestCloseEndsWaitingForAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{MaxFallbacks: 1})
		v := NewView[string, string](c, "v", ViewConfig{})
		s.Stop()
		src := newSource("")
		running := goFetch(t.Context(), v, "a", src.load)
		<-src.began
		place := goFetch(t.Context(), v, "b", mustNotLoad[string])
		turn := goFetch(t.Context(), v, "a", mustNotLoad[string])
		synctest.Wait()
		require.NoError(t, c.Close())
		for _, call := range []<-chan fetched[string]{running, place, turn} {
			require.ErrorIs(t, (<-call).err, ErrClosed)
		}
	})
}

func TestARefusalOfRedisIsNoReasonToFailAFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		for _, message := range []string{
			"LOADING Redis is loading the dataset in memory", "OOM command not allowed when used memory > 'maxmemory'.",
			"READONLY You can't write against a read only replica.", "NOPERM this user has no permissions", "MISCONF Redis is configured to save RDB snapshots",
		} {
			s.SetError(message)
			got, err := v.Fetch(t.Context(), message, func(context.Context, string) (string, error) { return message, nil })
			require.NoError(t, err)
			require.Equal(t, message, got)
			_, err = v.Get(t.Context(), "k")
			require.EqualError(t, err, `cache: get "v:k": `+message)
		}
		s.SetError("")
		require.Zero(t, rdb.DBSize(t.Context()).Val())
	})
}

// A full server still answers reads: it is the lease that it refuses.
func TestAServerThatIsFullCostsTheCacheAndNothingElse(t *testing.T) {
	s := redistest.New(t, redistest.Config{Lines: []string{"maxmemory 1", "maxmemory-policy noeviction"}})
	c := newClient(t, s.Client(t), Config{})
	v := NewView[string, string](c, "v", ViewConfig{})
	got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "value", nil })
	require.NoError(t, err)
	require.Equal(t, "value", got)
	require.EqualValues(t, 1, c.Stats().Fallbacks)
	require.ErrorContains(t, v.Set(t.Context(), "k", "value"), "OOM")
	require.NoError(t, v.Delete(t.Context(), "k"))
}

// MGET does not tell what is no string from what is not there: neither does Get.
func TestAKeyOfAnotherTypeIsAMissAndLoadedPast(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
		require.NoError(t, rdb.LPush(t.Context(), "redisha:cache:v:k", "x").Err())
		_, err := v.Get(t.Context(), "k")
		require.Equal(t, ErrMiss, err)
		got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "value", nil })
		require.NoError(t, err)
		require.Equal(t, "value", got)
		require.Equal(t, "list", rdb.Type(t.Context(), "redisha:cache:v:k").Val())
		require.EqualValues(t, 1, v.c.Stats().Fallbacks)
		require.NoError(t, v.Set(t.Context(), "k", "set"))
		got, err = v.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "set", got)
	})
}

// The server goes away while a value is loaded: who waits gets it all the same.
func TestAnOutageDuringALoadLosesNothingButTheStoring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		var book logBook
		c := newClient(t, rdb, Config{Logger: book.logger()})
		v := NewView[string, int64](c, "v", ViewConfig{})
		var loads atomic.Int64
		began, release := make(chan struct{}, 2), make(chan struct{})
		load := func(context.Context, string) (int64, error) {
			n := loads.Add(1)
			began <- struct{}{}
			<-release
			return n, nil
		}
		first := goFetch(t.Context(), v, "k", load)
		<-began
		late := goFetch(t.Context(), v, "k", load) // it may have come after a Delete
		synctest.Wait()
		s.Stop()
		close(release)
		require.Equal(t, fetched[int64]{1, nil}, <-first)
		require.Equal(t, fetched[int64]{2, nil}, <-late)
		require.Contains(t, book.String(), "loaded value not stored")
	})
}

// blackHole takes connections and never answers.
func blackHole(t *testing.T) *redis.Client {
	var drained sync.WaitGroup
	rdb := redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379", MaxRetries: -1, PoolSize: 1024, ContextTimeoutEnabled: true,
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			drained.Go(func() { _, _ = io.Copy(io.Discard, far) })
			return near, nil
		},
	})
	t.Cleanup(func() {
		_ = rdb.Close()
		drained.Wait()
	})
	return rdb
}

func TestAServerThatDoesNotAnswerCostsOneReadTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, blackHole(t), Config{ReadTimeout: 250 * time.Millisecond})
		v := NewView[string, string](c, "v", ViewConfig{})
		start := time.Now()
		got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "value", nil })
		require.NoError(t, err)
		require.Equal(t, "value", got)
		require.Equal(t, 250*time.Millisecond, time.Since(start))

		_, err = v.Get(t.Context(), "l")
		require.ErrorContains(t, err, `cache: get "v:l": no answer within 250ms (Config.ReadTimeout): `)

		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start = time.Now()
		_, err = v.Fetch(ctx, "l", mustNotLoad[string])
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotContains(t, err.Error(), "must not load")
		require.Equal(t, 100*time.Millisecond, time.Since(start), "the caller's deadline goes before ours")
		synctest.Wait()
	})
}

func TestARoleThatIsNotConfiguredFailsInEveryCall(t *testing.T) {
	reason := fmt.Errorf("cache: %w: set REDISHA_CACHE_URL", conn.ErrNotConfigured)
	rdb := conn.Closed("cache", reason)
	t.Cleanup(func() { _ = rdb.Close() })
	c := newClient(t, rdb, Config{})
	v := NewView[string, user](c, "user", ViewConfig{})
	for use, err := range useAll(t.Context(), v) {
		require.ErrorIs(t, err, conn.ErrNotConfigured, use)
		require.ErrorContains(t, err, "set REDISHA_CACHE_URL", use)
	}
	require.ErrorIs(t, c.Check(t.Context()), conn.ErrNotConfigured)
	require.Zero(t, c.Stats().Loads)
}

func TestAClosedGoRedisClientIsNoOutage(t *testing.T) {
	_, rdb := newServer(t)
	v := NewView[string, user](newClient(t, rdb, Config{}), "user", ViewConfig{})
	require.NoError(t, rdb.Close())
	for use, err := range useAll(t.Context(), v) {
		require.ErrorIs(t, err, ErrClosed, use)
	}
}

// The connection is closed between the read and the lease.
func TestAClientThatIsClosedUnderAFlightIsNoOutage(t *testing.T) {
	s, rdb := newServer(t)
	v := NewView[string, user](newClient(t, rdb, Config{}), "user", ViewConfig{})
	s.SetPreHook(func(_ *server.Peer, cmd string, _ ...string) bool {
		if strings.EqualFold(cmd, "GET") {
			go func() { _ = rdb.Close() }()
		}
		return false
	})
	require.Eventually(t, func() bool {
		_, err := v.Fetch(t.Context(), "k", func(context.Context, string) (user, error) { return user{}, errors.New("loaded") })
		return errors.Is(err, ErrClosed)
	}, 10*time.Second, time.Millisecond)
}
