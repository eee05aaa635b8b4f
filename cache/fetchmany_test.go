package cache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

// A rowSource is a database that returns the rows it has of what it is asked for, and
// keeps what that was.
type rowSource[V any] struct {
	rows map[string]V
	err  error
	hold chan struct{} // nil: it does not wait

	mu    sync.Mutex
	calls [][]string
}

func (s *rowSource[V]) load(ctx context.Context, missing []string) (map[string]V, error) {
	s.mu.Lock()
	sorted := slices.Sorted(slices.Values(missing))
	s.calls = append(s.calls, sorted)
	s.mu.Unlock()
	if s.hold != nil {
		select {
		case <-s.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	found := make(map[string]V)
	for _, key := range missing {
		if row, ok := s.rows[key]; ok {
			found[key] = row
		}
	}
	return found, s.err
}

func (s *rowSource[V]) asked() [][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

type fetchedMany[V any] struct {
	values map[string]V
	err    error
}

func goFetchMany[V any](ctx context.Context, v *View[string, V], load func(context.Context, []string) (map[string]V, error), keys ...string) <-chan fetchedMany[V] {
	done := make(chan fetchedMany[V], 1)
	go func() {
		values, err := v.FetchMany(ctx, keys, load)
		done <- fetchedMany[V]{values, err}
	}()
	return done
}

func TestFetchManyLoadsWhatIsMissingTogether(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		v := NewView[string, user](c, "v", ViewConfig{})
		src := &rowSource[user]{rows: map[string]user{"a": {ID: 1}, "b": {ID: 2, Tags: []string{"x"}}, "unasked": {ID: 9}}}
		ctx := t.Context()
		require.NoError(t, v.Set(ctx, "there", user{ID: 3}))
		require.NoError(t, rdb.Set(ctx, v.prefix+"junk", "\xc1\x7f", time.Minute).Err())
		src.rows["junk"] = user{ID: 4}
		_, err := v.Fetch(ctx, "absent", func(context.Context, string) (user, error) { return user{}, ErrNotFound })
		require.Equal(t, ErrNotFound, err)
		values, err := v.FetchMany(ctx, nil, src.load)
		require.NoError(t, err)
		require.Empty(t, values)
		require.NotNil(t, values)

		keys := []string{"a", "there", "none", "b", "absent", "a", "junk", "b"}
		want := map[string]user{"a": {ID: 1}, "b": {ID: 2, Tags: []string{"x"}}, "there": {ID: 3}, "junk": {ID: 4}}
		for range 2 { // the second time all is there
			values, err = v.FetchMany(ctx, keys, src.load)
			require.NoError(t, err)
			require.Equal(t, want, values)
		}
		require.Equal(t, [][]string{{"a", "b", "junk", "none"}}, src.asked())
		_, err = v.Get(ctx, "none")
		require.Equal(t, ErrNotFound, err)
		ttl := rdb.PTTL(ctx, v.prefix+"none").Val()
		require.Positive(t, ttl)
		require.LessOrEqual(t, ttl, defaultAbsentTTL)
		require.EqualValues(t, 4, c.Stats().LeasesTaken-1)
	})
}

func TestManyMoreKeysThanFitIntoAPipeline(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		v := NewView[int, int](newClient(t, rdb, Config{}), "v", ViewConfig{})
		var keys []int
		for key := range maxPipeline + 100 {
			keys = append(keys, key)
		}
		calls := 0
		load := func(_ context.Context, missing []int) (map[int]int, error) {
			if calls++; calls == 1 && len(missing) != maxPipeline {
				t.Errorf("%d keys", len(missing))
			}
			values := make(map[int]int)
			for _, key := range missing {
				values[key] = -key
			}
			return values, nil
		}
		for range 2 {
			values, err := v.FetchMany(t.Context(), keys, load)
			require.NoError(t, err)
			require.Len(t, values, len(keys))
			for key, value := range values {
				require.Equal(t, -key, value)
			}
		}
		require.Equal(t, 2, calls)
	})
}

// Flights are the same for Fetch and FetchMany, here and in another process.
func TestFetchesAndFetchManysShareLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		here := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
		there := NewView[string, string](newClient(t, s.Client(t), Config{}), "v", ViewConfig{})
		rows := map[string]string{"b": "many", "c": "many", "d": "many"}
		one := newSource("one")
		many := &rowSource[string]{rows: rows, hold: make(chan struct{})}
		other := &rowSource[string]{rows: rows}

		fetch := goFetch(t.Context(), here, "a", one.load)
		<-one.began
		fetchMany := goFetchMany(t.Context(), here, many.load, "a", "b", "c")
		synctest.Wait()
		joined := goFetch(t.Context(), here, "b", mustNotLoad[string])
		elsewhere := goFetch(t.Context(), there, "c", mustNotLoad[string])
		manyElsewhere := goFetchMany(t.Context(), there, other.load, "c", "b", "d", "a")
		time.Sleep(time.Second)
		require.Equal(t, [][]string{{"b", "c"}}, many.asked())
		require.Equal(t, [][]string{{"d"}}, other.asked(), "the others are being loaded")
		close(one.release)
		require.Equal(t, fetched[string]{"one", nil}, <-fetch)
		close(many.hold)
		all := map[string]string{"a": "one", "b": "many", "c": "many"}
		require.Equal(t, fetchedMany[string]{all, nil}, <-fetchMany)
		require.Equal(t, fetched[string]{"many", nil}, <-joined)
		require.Equal(t, fetched[string]{"many", nil}, <-elsewhere)
		all["d"] = "many"
		require.Equal(t, fetchedMany[string]{all, nil}, <-manyElsewhere)
		require.Len(t, other.asked(), 1)
		require.Len(t, many.asked(), 1)
	})
}

func TestTheErrorOfALoadIsThatOfWhatItLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{ErrorTTL: -1})
		down := errors.New("database is down")
		src := &rowSource[string]{rows: map[string]string{"a": "A"}, err: down}
		values, err := v.FetchMany(t.Context(), []string{"a", "b"}, src.load)
		require.Equal(t, map[string]string{"a": "A"}, values)
		require.EqualError(t, err, `cache: fetch: 1 of 2 keys, first "v:b": database is down`)
		var keys *KeysError[string]
		require.ErrorAs(t, err, &keys)
		require.Equal(t, map[string]error{"b": down}, keys.Errs)
		require.ErrorIs(t, err, down)
		require.Zero(t, rdb.Exists(t.Context(), v.prefix+"b").Val(), "the lease is given back")

		src.err = fmt.Errorf("no rows: %w", ErrNotFound)
		values, err = v.FetchMany(t.Context(), []string{"a", "b"}, src.load)
		require.NoError(t, err)
		require.Equal(t, map[string]string{"a": "A"}, values)
		_, err = v.Get(t.Context(), "b")
		require.Equal(t, ErrNotFound, err)
		require.Equal(t, [][]string{{"a", "b"}, {"b"}}, src.asked())
	})
}

func TestWhatHappensToALoadOfManyIsTheErrorOfEach(t *testing.T) {
	for name, test := range map[string]struct {
		load func(context.Context, []string) (map[string]string, error)
		want string
	}{
		"panic":  {func(context.Context, []string) (map[string]string, error) { panic("oops") }, "the load panicked: oops"},
		"goexit": {func(context.Context, []string) (map[string]string, error) { runtime.Goexit(); return nil, nil }, "the load ended its goroutine"},
		"timeout": {func(ctx context.Context, _ []string) (map[string]string, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, "the load took longer than 10s (ViewConfig.LoadTimeout)"},
		"stuck": {func(context.Context, []string) (map[string]string, error) { time.Sleep(time.Minute); return nil, nil },
			"the load took longer than 10s (ViewConfig.LoadTimeout)"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, rdb := newServer(t)
				c := newClient(t, rdb, Config{})
				v := NewView[string, string](c, "v", ViewConfig{ErrorTTL: -1})
				start := time.Now()
				values, err := v.FetchMany(t.Context(), []string{"a", "b"}, test.load)
				require.Empty(t, values)
				var keys *KeysError[string]
				require.ErrorAs(t, err, &keys)
				require.Len(t, keys.Errs, 2)
				for _, err := range keys.Errs {
					require.ErrorContains(t, err, test.want)
				}
				require.LessOrEqual(t, time.Since(start), 11*time.Second)
				require.Zero(t, rdb.DBSize(t.Context()).Val())
				got, err := v.Fetch(t.Context(), "a", func(context.Context, string) (string, error) { return "A", nil })
				require.NoError(t, err)
				require.Equal(t, "A", got)
				time.Sleep(time.Minute)
			})
		})
	}
}

// Who gives up ends neither the load nor what others get of it.
func TestALoadOfManyOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
		require.NoError(t, v.Set(t.Context(), "there", "T"))
		src := &rowSource[string]{rows: map[string]string{"a": "A", "b": "B"}, hold: make(chan struct{})}
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		first := goFetchMany(ctx, v, src.load, "a", "b", "there")
		synctest.Wait()
		second := goFetchMany(t.Context(), v, src.load, "a", "b")
		synctest.Wait()
		start := time.Now()
		cancel(gone)
		got := <-first
		require.Zero(t, time.Since(start))
		require.Equal(t, map[string]string{"there": "T"}, got.values)
		var keys *KeysError[string]
		require.ErrorAs(t, got.err, &keys)
		require.Equal(t, map[string]error{"a": gone, "b": gone}, keys.Errs)
		close(src.hold)
		require.Equal(t, fetchedMany[string]{map[string]string{"a": "A", "b": "B"}, nil}, <-second)
		require.Len(t, src.asked(), 1)
	})
}

func TestALoadOfManyThatADeleteOvertookIsNotStored(t *testing.T) {
	for _, elsewhere := range []bool{true, false} {
		t.Run(fmt.Sprint("elsewhere ", elsewhere), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, rdb := newServer(t)
				c := newClient(t, rdb, Config{})
				v := NewView[string, string](c, "v", ViewConfig{})
				writer := v
				if elsewhere {
					writer = NewView[string, string](newClient(t, s.Client(t), Config{}), "v", ViewConfig{})
				}
				src := &rowSource[string]{rows: map[string]string{"a": "old", "b": "old"}, hold: make(chan struct{})}
				newer := &rowSource[string]{rows: map[string]string{"a": "new", "b": "new"}}
				first := goFetchMany(t.Context(), v, src.load, "a", "b")
				synctest.Wait()
				require.NoError(t, writer.Delete(t.Context(), "a"))
				later := goFetchMany(t.Context(), v, newer.load, "a", "b")
				synctest.Wait()
				close(src.hold)
				require.Equal(t, fetchedMany[string]{map[string]string{"a": "old", "b": "old"}, nil}, <-first, "it came before")
				require.Equal(t, fetchedMany[string]{map[string]string{"a": "new", "b": "old"}, nil}, <-later)
				require.Equal(t, [][]string{{"a"}}, newer.asked())
				require.EqualValues(t, 1, c.Stats().FillsRefused)
			})
		})
	}
}

// Without Redis there is one call for all keys, which takes one place and whose
// result serves for a moment.
func TestFetchManyInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{MaxFallbacks: 1})
		v := NewView[string, string](c, "v", ViewConfig{})
		s.Stop()
		src := &rowSource[string]{rows: map[string]string{"a": "A", "b": "B", "c": "C"}, hold: make(chan struct{})}
		first := goFetchMany(t.Context(), v, src.load, "a", "b", "none")
		synctest.Wait()
		require.Equal(t, [][]string{{"a", "b", "none"}}, src.asked())
		require.EqualValues(t, 1, c.Stats().FallbacksRunning)
		require.EqualValues(t, 1, c.Stats().Fallbacks)
		second := goFetchMany(t.Context(), v, src.load, "c")
		time.Sleep(9 * time.Second)
		require.Len(t, src.asked(), 1, "the only place is taken")
		close(src.hold)
		require.Equal(t, fetchedMany[string]{map[string]string{"a": "A", "b": "B"}, nil}, <-first)
		require.Equal(t, fetchedMany[string]{map[string]string{"c": "C"}, nil}, <-second)
		values, err := v.FetchMany(t.Context(), []string{"a", "b", "none"}, mustNotLoadMany)
		require.NoError(t, err)
		require.Equal(t, map[string]string{"a": "A", "b": "B"}, values, "kept")
		require.Zero(t, c.Stats().FallbacksRunning)

		src.hold = make(chan struct{})
		stuck := goFetchMany(t.Context(), v, src.load, "x", "y")
		synctest.Wait()
		_, err = v.FetchMany(t.Context(), []string{"z"}, mustNotLoadMany)
		require.ErrorContains(t, err, "1 loads without the cache run already (Config.MaxFallbacks), because of: ")
		require.EqualValues(t, 1, c.Stats().FallbacksRefused)
		require.Error(t, (<-stuck).err)
	})
}

func mustNotLoadMany(context.Context, []string) (map[string]string, error) {
	return nil, errors.New("must not load")
}

// Two FetchManys without Redis, whose keys overlap, do not wait for each other in a
// circle.
func TestOutagesOfManyDoNotLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		v := NewView[int, int](newClient(t, rdb, Config{}), "v", ViewConfig{})
		s.Stop()
		var wg sync.WaitGroup
		var keys []int
		for key := range 50 {
			keys = append(keys, key)
		}
		var running [50]atomic.Int32
		load := func(_ context.Context, missing []int) (map[int]int, error) {
			values := make(map[int]int)
			for _, key := range missing {
				if running[key].Add(1) > 1 {
					t.Error("loaded twice at once")
				}
				defer running[key].Add(-1)
				values[key] = key
			}
			time.Sleep(100 * time.Millisecond)
			return values, nil
		}
		start := time.Now()
		for i := range 8 {
			wg.Go(func() {
				mine := slices.Clone(keys[i : i+40])
				if i%2 == 0 {
					slices.Reverse(mine)
				}
				values, err := v.FetchMany(t.Context(), mine, load)
				if err != nil || len(values) != len(mine) {
					t.Errorf("%d values, %v", len(values), err)
				}
			})
		}
		wg.Wait()
		require.Less(t, time.Since(start), 5*time.Second)
	})
}

// A server may refuse the leases of some keys.
func TestWhatHasNoLeaseIsLoadedByACallOfItsOwn(t *testing.T) {
	s, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, string](c, "v", ViewConfig{})
	s.SetPreHook(func(p *server.Peer, cmd string, args ...string) bool {
		if cmd == "SET" && args[0] == "redisha:cache:v:bad" {
			p.WriteError("NOPERM not this one")
			return true
		}
		return false
	})
	src := &rowSource[string]{rows: map[string]string{"good": "G", "bad": "B", "fine": "F"}}
	values, err := v.FetchMany(t.Context(), []string{"good", "bad", "fine"}, src.load)
	require.NoError(t, err)
	require.Equal(t, src.rows, values)
	require.ElementsMatch(t, [][]string{{"bad"}, {"fine", "good"}}, src.asked())
	require.Equal(t, []Result[string]{{Value: "G"}, {Err: ErrMiss}, {Value: "F"}}, v.GetMany(t.Context(), []string{"good", "bad", "fine"}))
}

// A process that died has left leases: when they end, their keys are loaded together.
func TestLeasesOfADeadProcessAreTakenOverTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
		src := &rowSource[string]{rows: make(map[string]string)}
		var keys []string
		for i := range 100 {
			key := fmt.Sprint(i)
			keys = append(keys, key)
			src.rows[key] = key
			require.NoError(t, rdb.Set(t.Context(), v.prefix+key, newLease(), 5*time.Second).Err())
		}
		require.NoError(t, rdb.Set(t.Context(), v.prefix+"held", tombstone, time.Minute).Err())
		src.rows["held"], src.rows["free"] = "H", "F"
		start := time.Now()
		values, err := v.FetchMany(t.Context(), append(keys, "held", "free"), src.load)
		require.NoError(t, err)
		require.Equal(t, src.rows, values)
		require.InDelta(t, 5, time.Since(start).Seconds(), 0.2)
		calls := src.asked()
		require.ElementsMatch(t, [][]string{{"free"}, {"held"}}, calls[:2], "these are not kept waiting")
		require.Less(t, len(calls), 30)
		loaded := 0
		for _, call := range calls {
			loaded += len(call)
		}
		require.Equal(t, len(src.rows), loaded, "each key once")
		require.Equal(t, tombstone, rdb.Get(t.Context(), v.prefix+"held").Val())
	})
}

func TestFetchManyRefreshesWhatIsStaleInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{TTL: time.Minute, StaleFor: time.Hour})
		require.NoError(t, v.SetMany(t.Context(), map[string]string{"a": "old", "b": "old"}))
		time.Sleep(2 * time.Minute)
		src := &rowSource[string]{rows: map[string]string{"a": "new", "b": "new", "c": "new"}, hold: make(chan struct{})}
		call := goFetchMany(t.Context(), v, src.load, "a", "b", "c")
		synctest.Wait()
		require.ElementsMatch(t, [][]string{{"a", "b"}, {"c"}}, src.asked())
		close(src.hold)
		require.Equal(t, fetchedMany[string]{map[string]string{"a": "old", "b": "old", "c": "new"}, nil}, <-call)
		synctest.Wait()
		values, err := v.FetchMany(t.Context(), []string{"a", "b", "c"}, src.load)
		require.NoError(t, err)
		require.Equal(t, src.rows, values)
		require.Len(t, src.asked(), 2)
	})
}

func TestFetchManyUsesTheScopeOfTheRequest(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, string](c, "v", ViewConfig{})
	src := &rowSource[string]{rows: map[string]string{"a": "A", "b": "B"}}
	ctx := c.Scope(t.Context())
	for range 2 {
		values, err := v.FetchMany(ctx, []string{"a", "b", "none"}, src.load)
		require.NoError(t, err)
		require.Equal(t, src.rows, values)
	}
	require.EqualValues(t, 3, c.Stats().Misses)
	require.EqualValues(t, 3, c.Stats().ScopeHits)
	require.Len(t, src.asked(), 1)
}

// A caller that is gone has no more loads begun for it.
func TestFetchManyBeginsNothingForACallerWhoHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[int, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("gone")
		var calls, asked atomic.Int64
		keys := make([]int, 2*maxPipeline+1)
		for i := range keys {
			keys[i] = i
		}
		values, err := v.FetchMany(ctx, keys, func(_ context.Context, missing []int) (map[int]string, error) {
			calls.Add(1)
			asked.Add(int64(len(missing)))
			cancel(why)
			return nil, nil
		})
		require.ErrorIs(t, err, why)
		require.Empty(t, values)
		synctest.Wait()
		require.EqualValues(t, 1, calls.Load())
		require.EqualValues(t, maxPipeline, asked.Load())
		var failed *KeysError[int]
		require.ErrorAs(t, err, &failed)
		for _, key := range keys[maxPipeline:] {
			require.ErrorIs(t, failed.Errs[key], why)
		}
	})
}

// What has come in time is returned, whatever else has not.
func TestACallerOfManyWhoLeavesTakesWhatIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[int, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
		for range 20 {
			require.NoError(t, v.Delete(t.Context(), 1, 2, 3, 4))
			elsewhere := newLease()
			_, began, err := v.c.acquire(t.Context(), v.prefix+"1", elsewhere, time.Minute, "")
			require.NoError(t, err)
			require.Positive(t, began)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			values, err := v.FetchMany(ctx, []int{1, 2, 3, 4}, func(_ context.Context, missing []int) (map[int]string, error) {
				return map[int]string{2: "two", 3: "three"}, nil
			})
			cancel()
			require.Equal(t, map[int]string{2: "two", 3: "three"}, values)
			var failed *KeysError[int]
			require.ErrorAs(t, err, &failed)
			require.Len(t, failed.Errs, 1)
			require.ErrorIs(t, failed.Errs[1], context.DeadlineExceeded)
		}
	})
}

func TestFetchManyOfNoUse(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, string](c, "v", ViewConfig{})
	_, err := v.FetchMany(t.Context(), []string{"a"}, nil)
	require.EqualError(t, err, "cache: fetch: nil load function: pass what reads the source")
	_, err = NewView[string, string](c, "v v", ViewConfig{}).FetchMany(t.Context(), []string{"a"}, mustNotLoadMany)
	require.ErrorContains(t, err, `the name is "v v"`)
	require.NoError(t, c.Close())
	_, err = v.FetchMany(t.Context(), []string{"a"}, mustNotLoadMany)
	require.ErrorIs(t, err, ErrClosed)
}

func TestCloseEndsALoadOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		src := &rowSource[string]{hold: make(chan struct{})}
		call := goFetchMany(t.Context(), v, src.load, "a", "b")
		synctest.Wait()
		require.NoError(t, c.Close())
		require.ErrorIs(t, (<-call).err, ErrClosed)
	})
}

// Whoever asks for cold keys, together or one by one, in whatever process: each is
// loaded once.
func TestColdKeysAreLoadedOnceByFetchAndFetchMany(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for round := range 5 {
		synctest.Test(t, func(t *testing.T) {
			s := testserver.New(t)
			dice := &dice{r: rand.New(rand.NewPCG(seed, uint64(round)))}
			const keys, clients, callers = 40, 4, 10
			var loads [keys]atomic.Int32
			one := func(_ context.Context, key int) (int, error) {
				dice.pause()
				loads[key].Add(1)
				return key, nil
			}
			many := func(ctx context.Context, missing []int) (map[int]int, error) {
				values := make(map[int]int)
				for _, key := range missing {
					values[key], _ = one(ctx, key)
				}
				return values, nil
			}
			var wg sync.WaitGroup
			for range clients {
				rdb := s.Client(t)
				rdb.AddHook(hesitant{dice.pause})
				v := NewView[int, int](newClient(t, rdb, Config{}), "v", ViewConfig{})
				for range callers {
					wg.Go(func() {
						dice.pause()
						if dice.roll(3) == 0 {
							key := dice.roll(keys)
							if got, err := v.Fetch(t.Context(), key, one); err != nil || got != key {
								t.Errorf("Fetch %d: %d, %v", key, got, err)
							}
							return
						}
						mine := make(map[int]int)
						for range dice.roll(keys) {
							key := dice.roll(keys)
							mine[key] = key
						}
						got, err := v.FetchMany(t.Context(), slices.Collect(maps.Keys(mine)), many)
						if err != nil || !maps.Equal(got, mine) {
							t.Errorf("FetchMany of %d: %d, %v", len(mine), len(got), err)
						}
					})
				}
			}
			wg.Wait()
			for key := range loads {
				if n := loads[key].Load(); n > 1 {
					t.Errorf("round %d: key %d was loaded %d times", round, key, n)
				}
			}
		})
	}
}

// What an InvalidateTags or a Clear has ended is loaded anew, together.
func TestFetchManyLoadsWhatWasInvalidated(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{Tags: true})
		src := &rowSource[string]{rows: map[string]string{"a": "A", "b": "B"}}
		for range 2 {
			values, err := v.FetchMany(t.Context(), []string{"a", "b", "none"}, src.load)
			require.NoError(t, err)
			require.Equal(t, src.rows, values)
		}
		time.Sleep(2 * time.Millisecond) // generations are times
		require.NoError(t, v.Clear(t.Context()))
		values, err := v.FetchMany(t.Context(), []string{"a", "b", "none"}, src.load)
		require.NoError(t, err)
		require.Equal(t, src.rows, values)
		require.Equal(t, [][]string{{"a", "b", "none"}, {"a", "b", "none"}}, src.asked())
	})
}
