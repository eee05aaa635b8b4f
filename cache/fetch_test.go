package cache

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

// fetched is what a Fetch in the background came to.
type fetched[V any] struct {
	value V
	err   error
}

// goFetch fetches in the background.
func goFetch[V any](ctx context.Context, v *View[string, V], key string, load func(context.Context, string) (V, error)) <-chan fetched[V] {
	ch := make(chan fetched[V], 1)
	go func() {
		value, err := v.Fetch(ctx, key, load)
		ch <- fetched[V]{value, err}
	}()
	return ch
}

func TestAStampedeOnAColdKeyIsOneLoad(t *testing.T) {
	stampede := func(t *testing.T, rdb redis.UniversalClient, callers int) {
		c := newClient(t, rdb, Config{})
		users := NewView[string, user](c, "user", ViewConfig{})
		src := newSource(user{ID: 42})
		var wg sync.WaitGroup
		fetch := func(callers int) {
			for range callers {
				wg.Go(func() {
					got, err := users.Fetch(t.Context(), "k", src.load)
					if err != nil || got.ID != 42 {
						t.Errorf("got %v, %v", got, err)
					}
				})
			}
		}
		first := uint64(callers / 2)
		fetch(callers / 2)
		require.Eventually(t, func() bool { return c.Stats().Joined == first-1 }, time.Minute, time.Millisecond, "all but one join")
		go close(src.release)
		fetch(callers / 2) // as the flight ends
		wg.Wait()
		require.EqualValues(t, 1, src.loads.Load())
		s := c.Stats()
		require.EqualValues(t, 1, s.Loads)
		require.EqualValues(t, 1, s.LoadTime.Count)
		require.Zero(t, s.Fallbacks)
		got, err := users.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, user{ID: 42}, got)
	}
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) { stampede(t, rdb, 100) })
	t.Run("10,000 callers", func(t *testing.T) {
		_, rdb := newServer(t)
		stampede(t, rdb, 10_000)
	})
}

// Between processes the lease does what the flight does within one.
func TestAStampedeOfManyProcessesIsOneLoadAKey(t *testing.T) {
	const clients, keys, callers = 8, 20, 16
	stampede := func(t *testing.T, opt func() *redis.Options) {
		var loads [keys]atomic.Int64
		var wg sync.WaitGroup
		for range clients {
			v := NewView[int, string](newClient(t, open(t, opt()), Config{}), "v", ViewConfig{})
			for key := range keys {
				for range callers {
					wg.Go(func() {
						got, err := v.Fetch(t.Context(), key, func(context.Context, int) (string, error) {
							loads[key].Add(1)
							time.Sleep(5 * time.Millisecond)
							return fmt.Sprint("value ", key), nil
						})
						if err != nil || got != fmt.Sprint("value ", key) {
							t.Errorf("got %q, %v", got, err)
						}
					})
				}
			}
		}
		wg.Wait()
		for key := range keys {
			require.EqualValues(t, 1, loads[key].Load(), "key %d", key)
		}
	}
	t.Run("miniredis", func(t *testing.T) { stampede(t, testserver.New(t).Options) })
	t.Run("redis", func(t *testing.T) { stampede(t, redistest.Shared(t).Options) })
}

func TestACallerWhoGivesUpReturnsAtOnceAndCancelsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		src := newSource("value")
		type ctxKey struct{}
		var seen any
		load := func(ctx context.Context, key string) (string, error) {
			seen = ctx.Value(ctxKey{})
			return src.load(ctx, key)
		}
		first, cancelFirst := context.WithCancel(context.WithValue(t.Context(), ctxKey{}, "trace"))
		starter := goFetch(first, v, "k", load)
		<-src.began
		patient := goFetch(t.Context(), v, "k", noLoad[string, string](t))
		hurried, cancelHurried := context.WithTimeout(t.Context(), time.Second)
		defer cancelHurried()
		late := goFetch(hurried, v, "k", noLoad[string, string](t))
		synctest.Wait()

		start := time.Now()
		cancelFirst()
		got := <-starter
		require.ErrorIs(t, got.err, context.Canceled)
		require.Zero(t, time.Since(start))
		got = <-late
		require.ErrorIs(t, got.err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(start))

		close(src.release)
		require.Equal(t, fetched[string]{"value", nil}, <-patient)
		require.EqualValues(t, 1, src.loads.Load())
		require.Equal(t, "trace", seen, "the load has the values of the context that began it")
		require.EqualValues(t, 2, c.Stats().Joined)
	})
}

func TestALoadGoesOnWithoutAnyCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
		src := newSource("value")
		ctx, cancel := context.WithCancel(t.Context())
		only := goFetch(ctx, v, "k", src.load)
		<-src.began
		cancel()
		require.ErrorIs(t, (<-only).err, context.Canceled)
		close(src.release)
		synctest.Wait()
		got, err := v.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "value", got)
	})
}

func TestEachCallerOwnsItsValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[string, user](newClient(t, rdb, Config{}), "v", ViewConfig{})
		src := newSource(user{Tags: []string{"a", "b"}})
		var calls []<-chan fetched[user]
		for range 10 {
			calls = append(calls, goFetch(t.Context(), v, "k", src.load))
		}
		<-src.began
		synctest.Wait()
		close(src.release)
		for i, call := range calls {
			got := <-call
			require.NoError(t, got.err)
			require.Equal(t, []string{"a", "b"}, got.value.Tags)
			got.value.Tags[0] = fmt.Sprint("changed by ", i)
		}
		stored, err := v.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, []string{"a", "b"}, stored.Tags)
	})
}

func TestAPanicOfALoadIsAnErrorForAllItsCallers(t *testing.T) {
	boom := errors.New("boom")
	for name, test := range map[string]struct {
		load func(context.Context, string) (string, error)
		want string
		is   error
	}{
		"panic":  {func(context.Context, string) (string, error) { panic("boom") }, `cache: fetch "v:k": the load panicked: boom`, nil},
		"error":  {func(context.Context, string) (string, error) { panic(boom) }, `cache: fetch "v:k": the load panicked: boom`, boom},
		"index":  {func(_ context.Context, key string) (string, error) { return key[len(key):][:1], nil }, `cache: fetch "v:k": the load panicked: runtime error: slice bounds out of range [:1] with length 0`, nil},
		"Goexit": {func(context.Context, string) (string, error) { runtime.Goexit(); return "", nil }, `cache: fetch "v:k": the load ended its goroutine (runtime.Goexit)`, errGoexit},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, rdb := newServer(t)
				var book logBook
				c := newClient(t, rdb, Config{Logger: book.logger()})
				v := NewView[string, string](c, "v", ViewConfig{ErrorTTL: -1})
				release := make(chan struct{})
				load := func(ctx context.Context, key string) (string, error) {
					<-release
					return test.load(ctx, key)
				}
				var calls []<-chan fetched[string]
				for range 3 {
					calls = append(calls, goFetch(t.Context(), v, "k", load))
				}
				synctest.Wait()
				close(release)
				for _, call := range calls {
					got := <-call
					require.EqualError(t, got.err, test.want)
					if test.is != nil {
						require.ErrorIs(t, got.err, test.is)
					}
				}
				if name != "Goexit" {
					require.Equal(t, 1, strings.Count(book.String(), "load panicked"))
					require.Contains(t, book.String(), "fetch_test.go", "the stack is in the log")
				}
				require.EqualValues(t, 1, c.Stats().LoadErrors)
				require.Zero(t, rdb.DBSize(t.Context()).Val(), "the lease is given back")
			})
		})
	}
}

// A stubborn value panics when it is encoded, which is done on the load's
// goroutine, and when it is decoded.
type stubborn struct{ Decodes bool }

func (s stubborn) MarshalBinary() ([]byte, error) {
	if !s.Decodes {
		panic("will not encode")
	}
	return []byte("x"), nil
}

func (*stubborn) UnmarshalBinary([]byte) error { panic("will not decode") }

func TestAPanicOfACodecInAFlightIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[string, stubborn](newClient(t, rdb, Config{}), "v", ViewConfig{Codec: Binary})
		_, err := v.Fetch(t.Context(), "k", func(context.Context, string) (stubborn, error) { return stubborn{}, nil })
		require.EqualError(t, err, `cache: fetch "v:k": the load panicked: will not encode`)

		// While the flight waits for another's lease, a value appears.
		require.NoError(t, rdb.Set(t.Context(), "redisha:cache:v:k", newLease(), time.Minute).Err())
		call := goFetch(t.Context(), v, "k", mustNotLoad[stubborn])
		synctest.Wait()
		require.NoError(t, v.Set(t.Context(), "k", stubborn{Decodes: true}))
		require.EqualError(t, (<-call).err, `cache: fetch "v:k": the load panicked: will not decode`)
	})
}

// mustNotLoad is a loader whose error shows in what a Fetch returns.
func mustNotLoad[V any](context.Context, string) (v V, err error) {
	return v, errors.New("must not load")
}

func TestALoadEndsAtItsTimeout(t *testing.T) {
	for name, heeds := range map[string]bool{"heeds its context": true, "does not heed its context": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, rdb := newServer(t)
				c := newClient(t, rdb, Config{})
				v := NewView[string, string](c, "v", ViewConfig{LoadTimeout: 3 * time.Second, ErrorTTL: -1})
				start := time.Now()
				_, err := v.Fetch(t.Context(), "k", func(ctx context.Context, _ string) (string, error) {
					if heeds {
						<-ctx.Done()
						return "", fmt.Errorf("query: %w", ctx.Err())
					}
					time.Sleep(10 * time.Second)
					return "too late", nil
				})
				require.EqualError(t, err, `cache: fetch "v:k": the load took longer than 3s (ViewConfig.LoadTimeout): context deadline exceeded`)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.Equal(t, 3*time.Second, time.Since(start))
				require.Zero(t, rdb.DBSize(t.Context()).Val(), "the lease is given back")
				time.Sleep(10 * time.Second)
				require.Zero(t, rdb.DBSize(t.Context()).Val(), "what comes too late is not stored")
				require.EqualValues(t, 1, c.Stats().LoadErrors)
			})
		})
	}
}

func TestAnErrorOfALoadIsNotSharedIfItsTTLIsNegative(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{ErrorTTL: -1})
		down := errors.New("database is down")
		for range 2 {
			_, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "half", down })
			require.ErrorIs(t, err, down)
			require.EqualError(t, err, `cache: fetch "v:k": database is down`)
			require.Zero(t, rdb.DBSize(t.Context()).Val(), "the lease is given back")
		}
		s := c.Stats()
		require.EqualValues(t, 2, s.Loads)
		require.EqualValues(t, 2, s.LoadErrors)
		require.EqualValues(t, 2, s.LeasesTaken)
		_, err := v.Fetch(t.Context(), "k", nil)
		require.EqualError(t, err, `cache: fetch "v:k": nil load function: pass what reads the source`)
	})
}

func TestAnAbsenceIsCachedForItsOwnTime(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, plain := range []bool{false, true} {
			c := newClient(t, rdb, Config{})
			v := NewView[string, string](c, "v", ViewConfig{AbsentTTL: 20 * time.Second, Plain: plain})
			_, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) {
				return "ignored", fmt.Errorf("no such row: %w", ErrNotFound)
			})
			require.Equal(t, ErrNotFound, err)
			_, err = v.Fetch(t.Context(), "k", noLoad[string, string](t))
			require.Equal(t, ErrNotFound, err)
			_, err = v.Get(t.Context(), "k")
			require.Equal(t, ErrNotFound, err)
			require.Greater(t, rdb.PTTL(t.Context(), "redisha:cache:v:k").Val(), 17*time.Second)
			require.LessOrEqual(t, rdb.PTTL(t.Context(), "redisha:cache:v:k").Val(), 20*time.Second)
			s := c.Stats()
			require.EqualValues(t, 2, s.Absences)
			require.EqualValues(t, 1, s.Loads)
			require.Zero(t, s.LoadErrors)

			require.NoError(t, v.Set(t.Context(), "k", "there now"))
			got, err := v.Get(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, "there now", got)
			require.NoError(t, v.Delete(t.Context(), "k"))
		}
	})
}

func TestAbsencesAreNotCachedIfTheirTTLIsNegative(t *testing.T) {
	_, rdb := newServer(t)
	v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{AbsentTTL: -1})
	loads := 0
	for range 2 {
		_, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { loads++; return "", ErrNotFound })
		require.Equal(t, ErrNotFound, err)
		require.Zero(t, rdb.DBSize(t.Context()).Val())
	}
	require.Equal(t, 2, loads)
}

func TestAValueAboveTheLimitIsFetchedAndNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		var book logBook
		c := newClient(t, rdb, Config{Logger: book.logger()})
		v := NewView[string, string](c, "v", ViewConfig{Codec: Raw, MaxValueBytes: 10})
		src := newSource("eleven char")
		var calls []<-chan fetched[string]
		for range 3 {
			calls = append(calls, goFetch(t.Context(), v, "k", src.load))
		}
		<-src.began
		synctest.Wait()
		close(src.release)
		for _, call := range calls {
			require.Equal(t, fetched[string]{"eleven char", nil}, <-call)
		}
		require.EqualValues(t, 1, src.loads.Load())
		require.Zero(t, rdb.DBSize(t.Context()).Val(), "the lease is given back")
		require.EqualValues(t, 1, c.Stats().TooLarge)
		require.Zero(t, c.Stats().FillsRefused)
		require.Contains(t, book.String(), "the value has 11 bytes, want at most 10: raise ViewConfig.MaxValueBytes or store less")

		chans := NewView[string, chan int](c, "chan", ViewConfig{})
		_, err := chans.Fetch(t.Context(), "k", func(context.Context, string) (chan int, error) { return nil, nil })
		require.EqualError(t, err, `cache: fetch "chan:k": encode: json: unsupported type: chan int`)
	})
}

func TestALeaseOfADeadProcessDelaysUntilItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		require.NoError(t, rdb.Set(t.Context(), "redisha:cache:v:k", newLease(), 4*time.Second).Err())
		start := time.Now()
		got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "value", nil })
		require.NoError(t, err)
		require.Equal(t, "value", got)
		require.GreaterOrEqual(t, time.Since(start), 4*time.Second)
		require.Less(t, time.Since(start), 4*time.Second+2*maxPoll)
		require.EqualValues(t, 1, c.Stats().LeaseWaits)
		require.EqualValues(t, 1, c.Stats().LeasesTaken)
		_, err = v.Get(t.Context(), "k")
		require.NoError(t, err, "it is stored")
	})
}

func TestALeaseThatNeverEndsIsNotWaitedForBeyondALoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[string, string](newClient(t, rdb, Config{ReadTimeout: -1}), "v", ViewConfig{LoadTimeout: 2 * time.Second})
		lease := newLease()
		require.NoError(t, rdb.Set(t.Context(), "redisha:cache:v:k", lease, time.Hour).Err())
		start := time.Now()
		got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "value", nil })
		require.NoError(t, err)
		require.Equal(t, "value", got)
		require.InDelta(t, 3*time.Second, time.Since(start), float64(2*maxPoll))
		require.Equal(t, string(lease), rdb.Get(t.Context(), "redisha:cache:v:k").Val(), "the lease stands")
	})
}

func TestAWaiterTakesOverWhenAnothersLoadHasFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		v1 := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{ErrorTTL: -1})
		v2 := NewView[string, string](newClient(t, s.Client(t), Config{}), "v", ViewConfig{ErrorTTL: -1})
		src := newSource("")
		src.err = errors.New("database is down")
		first := goFetch(t.Context(), v1, "k", src.load)
		<-src.began
		second := goFetch(t.Context(), v2, "k", func(context.Context, string) (string, error) { return "value", nil })
		synctest.Wait()
		close(src.release)
		require.ErrorIs(t, (<-first).err, src.err)
		require.Equal(t, fetched[string]{"value", nil}, <-second)
	})
}

func TestATombstoneIsNeitherFilledNorReplaced(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		tombstone := appendEntry(nil, entry{kind: kindTombstone})
		require.NoError(t, rdb.Set(t.Context(), "redisha:cache:v:k", tombstone, time.Minute).Err())
		for i := range 2 {
			got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return fmt.Sprint("value ", i), nil })
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint("value ", i), got)
		}
		require.Equal(t, string(tombstone), rdb.Get(t.Context(), "redisha:cache:v:k").Val())
		require.Zero(t, c.Stats().Fallbacks, "Redis was not the reason")
		require.NoError(t, v.Set(t.Context(), "k", "set"), "Set knows the value and may")
		got, err := v.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "set", got)
	})
}

func TestARunningClientMayBeClosedTwice(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	require.NoError(t, c.Check(t.Context()))
	v := NewView[string, user](c, "user", ViewConfig{})
	require.NoError(t, v.Set(t.Context(), "k", user{}))
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
	for use, err := range useAll(t.Context(), v) {
		require.ErrorIs(t, err, ErrClosed, use)
		require.EqualError(t, err, "cache: "+use+": redis: client is closed")
	}
	require.ErrorIs(t, c.Check(t.Context()), ErrClosed)
	require.NoError(t, rdb.Ping(t.Context()).Err(), "the go-redis client is the caller's")
}

func TestCloseEndsTheLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		src := newSource("value")
		loading := goFetch(t.Context(), v, "k", src.load)
		<-src.began
		require.NoError(t, rdb.Set(t.Context(), "redisha:cache:v:leased", newLease(), time.Minute).Err())
		waiting := goFetch(t.Context(), v, "leased", mustNotLoad[string])
		synctest.Wait()
		start := time.Now()
		require.NoError(t, c.Close())
		require.Zero(t, time.Since(start))
		require.ErrorIs(t, (<-loading).err, ErrClosed)
		require.ErrorIs(t, (<-waiting).err, ErrClosed)
		require.Zero(t, rdb.Exists(t.Context(), "redisha:cache:v:k").Val(), "the lease is given back")
	})
}

func TestCloseSaysWhenALoadDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c, err := New(rdb, Config{CloseTimeout: 2 * time.Second})
		require.NoError(t, err)
		v := NewView[string, string](c, "v", ViewConfig{})
		release := make(chan struct{})
		call := goFetch(t.Context(), v, "k", func(context.Context, string) (string, error) {
			<-release
			return "", nil
		})
		synctest.Wait()
		start := time.Now()
		require.EqualError(t, c.Close(), "cache: close: loads still run after 2s (Config.CloseTimeout): do they heed their context?")
		require.Equal(t, 2*time.Second, time.Since(start))
		require.ErrorIs(t, (<-call).err, ErrClosed, "the caller does not wait for it")
		close(release)
		require.NoError(t, c.Close())
	})
}
