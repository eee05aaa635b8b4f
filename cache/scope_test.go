package cache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/redisha/redisha/internal/testserver"
)

func TestAScopeIsASnapshotOfWhatTheRequestHasRead(t *testing.T) {
	srv, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, user](c, "user", ViewConfig{})
	require.NoError(t, v.Set(t.Context(), "a", user{ID: 1}))

	ctx := c.Scope(t.Context())
	for range 3 {
		got, err := v.Get(ctx, "a")
		require.NoError(t, err)
		require.Equal(t, user{ID: 1}, got)
	}
	require.EqualValues(t, 1, c.Stats().Hits)
	require.EqualValues(t, 2, c.Stats().ScopeHits)

	// Others' writes are not seen, in no way of reading.
	require.NoError(t, v.Set(t.Context(), "a", user{ID: 2}))
	got, err := v.Get(ctx, "a")
	require.NoError(t, err)
	require.Equal(t, user{ID: 1}, got)
	got, err = v.Fetch(ctx, "a", noLoad[string, user](t))
	require.NoError(t, err)
	require.Equal(t, user{ID: 1}, got)
	require.Equal(t, user{ID: 1}, v.GetMany(ctx, []string{"a"})[0].Value)
	require.NoError(t, v.GetInto(ctx, "a", &got))
	require.Equal(t, user{ID: 1}, got)
	srv.FlushAll()
	_, err = v.Get(ctx, "a")
	require.NoError(t, err)

	// Another scope, also within the first, is empty.
	_, err = v.Get(c.Scope(ctx), "a")
	require.ErrorIs(t, err, ErrMiss)
	// A miss is not kept: it may have been loaded meanwhile.
	ctx = c.Scope(t.Context())
	_, err = v.Get(ctx, "b")
	require.ErrorIs(t, err, ErrMiss)
	require.NoError(t, v.Set(t.Context(), "b", user{ID: 3}))
	_, err = v.Get(ctx, "b")
	require.NoError(t, err)
}

func TestAScopeHasTheRequestsOwnWrites(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[int, user](c, "user", ViewConfig{})
	twin := NewView[string, user](c, "user", ViewConfig{}) // the same keys
	ctx := c.Scope(t.Context())
	reads := func() uint64 { s := c.Stats(); return s.Hits + s.Absences + s.Misses }

	require.NoError(t, v.Set(ctx, 1, user{ID: 1}))
	require.NoError(t, v.SetMany(ctx, map[int]user{2: {ID: 2}, 3: {ID: 3}}))
	added, err := v.Add(ctx, 4, user{ID: 4})
	require.NoError(t, err)
	require.True(t, added)
	for i, r := range v.GetMany(ctx, []int{1, 2, 3, 4}) {
		require.NoError(t, r.Err)
		require.Equal(t, user{ID: int64(i + 1)}, r.Value)
	}
	require.Zero(t, reads())

	// What was not stored is not there.
	added, err = v.Add(ctx, 4, user{ID: 5})
	require.NoError(t, err)
	require.False(t, added)
	got, err := v.Get(ctx, 4)
	require.NoError(t, err)
	require.Equal(t, user{ID: 4}, got)
	require.EqualValues(t, 1, reads())

	// What another view of the name deletes is gone too.
	require.NoError(t, twin.Delete(ctx, "1"))
	_, err = v.Get(ctx, 1)
	require.ErrorIs(t, err, ErrMiss)
	require.NoError(t, v.Delete(ctx, 2, 3))
	_, err = v.Get(ctx, 2)
	require.ErrorIs(t, err, ErrMiss)
}

// A write of which nobody knows whether it has happened leaves nothing.
func TestAScopeForgetsWhatAFailedWriteMayHaveChanged(t *testing.T) {
	srv, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, user](c, "user", ViewConfig{})
	ctx := c.Scope(t.Context())
	require.NoError(t, v.Set(ctx, "a", user{ID: 1}))
	require.NoError(t, v.Set(ctx, "b", user{ID: 1}))
	srv.SetError("ERR full")
	require.Error(t, v.Set(ctx, "a", user{ID: 2}))
	require.Error(t, v.Delete(ctx, "b"))
	srv.SetError("")
	got, err := v.Get(ctx, "a")
	require.NoError(t, err)
	require.Equal(t, user{ID: 1}, got)
	_, _ = v.Get(ctx, "b") // the Delete is being repeated
	require.Zero(t, c.Stats().ScopeHits)
}

func TestAScopeKeepsWhatWasLoadedAndStored(t *testing.T) {
	srv, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, user](c, "user", ViewConfig{})
	ctx := c.Scope(t.Context())
	loads := 0
	load := func(context.Context, string) (user, error) {
		loads++
		if loads%2 == 0 {
			return user{}, ErrNotFound
		}
		return user{ID: int64(loads)}, nil
	}
	for range 3 {
		got, err := v.Fetch(ctx, "a", load)
		require.NoError(t, err)
		require.EqualValues(t, 1, got.ID)
	}
	for range 3 {
		_, err := v.Fetch(ctx, "b", load)
		require.ErrorIs(t, err, ErrNotFound)
	}
	require.Equal(t, 2, loads)
	require.EqualValues(t, 2, c.Stats().Misses, "one for each key")

	// What was loaded without being stored is in no tier.
	srv.SetError("ERR down")
	hits := c.Stats().ScopeHits
	for range 2 {
		_, _ = v.Fetch(ctx, "c", load)
	}
	require.Equal(t, 3, loads)
	require.Equal(t, hits, c.Stats().ScopeHits)
	require.EqualValues(t, 1, c.Stats().OutageHits)
}

// What a loader reads goes into a value for others: it must not be this
// request's old copy.
func TestALoaderHasNoScope(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	prices := NewView[string, int](c, "price", ViewConfig{})
	offers := NewView[string, string](c, "offer", ViewConfig{})
	ctx := c.Scope(t.Context())
	require.NoError(t, prices.Set(ctx, "tea", 3))
	require.NoError(t, prices.Set(t.Context(), "tea", 4))
	offer, err := offers.Fetch(ctx, "tea", func(ctx context.Context, key string) (string, error) {
		price, err := prices.Get(ctx, key)
		return fmt.Sprint(price), err
	})
	require.NoError(t, err)
	require.Equal(t, "4", offer)
}

type basket struct{ Items []string }

func (b *basket) Clone() *basket { return &basket{append([]string(nil), b.Items...)} }

type pair struct{ X, Y *int }

func (p pair) Clone() pair { x, y := *p.X, *p.Y; return pair{&x, &y} }

func TestCloneGivesEachCallerACopy(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	ctx := c.Scope(t.Context())

	baskets := NewView[int, *basket](c, "basket", ViewConfig{Clone: true})
	mine := &basket{[]string{"tea"}}
	require.NoError(t, baskets.Set(ctx, 1, mine))
	for range 3 {
		mine.Items[0] = "changed"
		got, err := baskets.Get(ctx, 1)
		require.NoError(t, err)
		require.Equal(t, []string{"tea"}, got.Items)
		mine = got
	}
	require.NoError(t, baskets.Set(ctx, 2, nil))
	got, err := baskets.Get(ctx, 2)
	require.NoError(t, err)
	require.Nil(t, got)

	bytes := NewView[int, []byte](c, "bytes", ViewConfig{Clone: true, Codec: Raw})
	require.NoError(t, bytes.Set(t.Context(), 1, []byte("abc")))
	for range 3 {
		b, err := bytes.Get(ctx, 1)
		require.NoError(t, err)
		require.Equal(t, "abc", string(b))
		b[0] = 'x'
	}
	x, y := 1, 2
	points := NewView[int, pair](c, "point", ViewConfig{Clone: true})
	require.NoError(t, points.Set(ctx, 1, pair{&x, &y}))
	x = 7
	p, err := points.Get(ctx, 1)
	require.NoError(t, err)
	require.Equal(t, 1, *p.X)

	err = NewView[int, user](c, "user", ViewConfig{Clone: true}).Set(ctx, 1, user{})
	require.ErrorContains(t, err, "cache.user has no method Clone() cache.user")
}

// A caller's buffer is its own, also when a scope has the bytes.
func TestGetIntoSharesNoBytesWithAScope(t *testing.T) {
	type blob []byte
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	ctx := c.Scope(t.Context())
	v := NewView[int, blob](c, "blob", ViewConfig{Codec: Raw})
	require.NoError(t, v.Set(ctx, 1, blob("abc")))
	buf := make(blob, 0, 10)
	for range 3 {
		require.NoError(t, v.GetInto(ctx, 1, &buf))
		require.Equal(t, "abc", string(buf))
		require.Equal(t, 10, cap(buf))
		buf[0] = 'x'
	}
}

func TestMiddlewareGivesEachRequestAScope(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, int](c, "n", ViewConfig{})
	require.NoError(t, v.Set(t.Context(), "a", 1))
	handler := c.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 10 {
			n, err := v.Get(r.Context(), "a")
			if err != nil || n != 1 {
				http.Error(w, fmt.Sprint(n, err), http.StatusInternalServerError)
			}
		}
	}))
	for range 3 {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		require.Equal(t, http.StatusOK, w.Code, w.Body)
	}
	require.EqualValues(t, 3, c.Stats().Hits)
	require.EqualValues(t, 27, c.Stats().ScopeHits)
}

// After a Set or Delete of the request's own has returned, no goroutine of it that
// begins to read then gets something older, whatever was under way.
func TestAScopeNeverShowsWhatTheRequestHasReplaced(t *testing.T) {
	rounds := 16
	if testing.Short() {
		rounds = 6
	}
	seed := newSeed(t)
	for round := range rounds {
		synctest.Test(t, func(t *testing.T) {
			s := testserver.New(t)
			dice := &dice{r: rand.New(rand.NewPCG(seed, uint64(round)))}
			rdb := open(t, s.Options())
			rdb.AddHook(hesitant{dice.pause})
			c := newClient(t, rdb, Config{})
			v := NewView[int, int64](c, "n", ViewConfig{})
			const keys = 2
			db := newDatabase(keys, dice.pause)
			ctx := c.Scope(t.Context())
			var all sync.WaitGroup
			for key := range keys {
				all.Go(func() {
					for range 15 {
						if err := db.write(ctx, v, key, dice.roll(2) == 0); err != nil {
							t.Error(err)
						}
						dice.pause()
					}
				})
			}
			for range 6 {
				all.Go(func() {
					for range 20 {
						if err := db.read(ctx, v, dice.roll(keys), dice.roll(2) == 0); err != nil {
							t.Error(err)
						}
						dice.pause()
					}
				})
			}
			all.Wait()
			if c.Stats().ScopeHits == 0 {
				t.Error("the scope was of no use")
			}
		})
	}
}

// The reply to a Set may be handled after that to a Delete which came behind it.
func TestAScopeKeepsNoWriteThatAnotherOvertook(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, int](c, "n", ViewConfig{})
	ctx := c.Scope(t.Context())
	one := 1
	changes := v.changing(ctx, "a", v.prefix+"a")
	require.NoError(t, v.Delete(ctx, "a"))
	v.changed(ctx, "a", v.prefix+"a", changes, &one)
	_, err := v.Get(ctx, "a")
	require.ErrorIs(t, err, ErrMiss)
	changes = v.changing(ctx, "a", v.prefix+"a")
	v.changed(ctx, "a", v.prefix+"a", changes, &one)
	n, err := v.Get(ctx, "a")
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestAnyKeyIsFoundByItsText(t *testing.T) {
	type name string
	type number int16
	rapid.Check(t, func(t *rapid.T) {
		s, i, u := rapid.String().Draw(t, "s"), rapid.Int64().Draw(t, "i"), rapid.Uint64().Draw(t, "u")
		parsesBack(t, s)
		parsesBack(t, name(s))
		parsesBack(t, i)
		parsesBack(t, number(i))
		parsesBack(t, int8(i))
		parsesBack(t, u)
		parsesBack(t, uint8(u))
	})
	for _, text := range []string{"", "x", "40000", "1.5"} {
		_, ok := parseKey[number](text)
		require.False(t, ok, text)
		_, ok = parseKey[int64](text)
		require.Equal(t, text == "40000", ok, text)
	}
}

func parsesBack[K Key](t require.TestingT, key K) {
	back, ok := parseKey[K](joinKey("prefix:", key)[len("prefix:"):])
	require.True(t, ok)
	require.Equal(t, key, back)
}

func BenchmarkScopeHit(b *testing.B) {
	_, rdb := newServer(b)
	c := newClient(b, rdb, Config{})
	v := NewView[string, user](c, "user", ViewConfig{})
	ctx := c.Scope(b.Context())
	require.NoError(b, v.Set(ctx, "a", user{ID: 1}))
	b.ReportAllocs()
	for b.Loop() {
		if got, err := v.Get(ctx, "a"); err != nil || got.ID != 1 {
			b.Fatal(err)
		}
	}
}
