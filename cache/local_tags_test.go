package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

// isKept reads a key and reports whether it was found in the L1.
func isKept[V any](t *testing.T, v *View[int, V], key int) bool {
	t.Helper()
	e, err := v.Lookup(t.Context(), key)
	require.NoError(t, err)
	return e.Source == FromLocal
}

func TestOwnInvalidationsEndLocalCopiesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		c := newClient(t, open(t, deaf(s.Options())), Config{})
		v := NewView[int, int](c, "v", ViewConfig{LocalEntries: 100, Tags: true})
		again := NewView[int, int](c, "v", ViewConfig{LocalEntries: 100, Tags: true}) // the same keys
		tracked(t, v, 0)
		for _, end := range []func() error{
			func() error { return v.InvalidateTags(t.Context(), "b", "a") },
			func() error { return v.Clear(t.Context()) },
			func() error { return v.Delete(t.Context(), 1) },
		} {
			require.NoError(t, v.Set(t.Context(), 1, 1, Tags("a")))
			for _, v := range []*View[int, int]{v, again} {
				require.False(t, isKept(t, v, 1))
				require.True(t, isKept(t, v, 1))
			}
			require.NoError(t, end())
			for _, v := range []*View[int, int]{v, again} {
				_, err := v.Get(t.Context(), 1)
				require.ErrorIs(t, err, ErrMiss)
			}
		}
	})
}

// News of a tag end what has it, whether it is kept already or being read, and leave
// the rest; those of the view's generation end all.
func TestNewsOfGenerationsEndWhatNamesThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		c := newClient(t, open(t, deaf(s.Options())), Config{})
		v := NewView[int, int](c, "v", ViewConfig{LocalEntries: 100, Tags: true})
		other := NewView[int, int](c, "v2", ViewConfig{LocalEntries: 100, Tags: true})
		tracked(t, v, 0)
		tracked(t, other, 0)
		news := func(key string) { c.ended(key[len(c.root+generationMark):]) }
		keyOf := func(name string) string { return v.tagKey(hashTag(name)) }
		require.NoError(t, v.Set(t.Context(), 1, 1, Tags("a", "b")))
		require.NoError(t, v.Set(t.Context(), 2, 2, Tags("b")))
		require.NoError(t, v.Set(t.Context(), 3, 3))
		require.NoError(t, other.Set(t.Context(), 3, 3, Tags("a")))
		areKept := func(want ...bool) {
			t.Helper()
			for i, want := range want {
				require.Equal(t, want, isKept(t, v, i+1), "key %d", i+1)
			}
			require.True(t, isKept(t, other, 3))
		}
		isKept(t, other, 3)
		areKept(false, false, false)
		areKept(true, true, true)
		news(keyOf("a"))
		areKept(false, true, true)
		areKept(true, true, true)
		news(keyOf("b"))
		areKept(false, false, true)
		news(keyOf("c"))
		areKept(true, true, true)
		news(v.generationKey)
		areKept(false, false, false)
		areKept(true, true, true)
		news(c.root + generationMark + "unknown:00")
		news(c.root + generationMark)
		areKept(true, true, true)
		news(v.generationKey + ":no number")
		areKept(false, false, false)

		// A read that is crossed by news is not kept.
		for _, key := range []string{keyOf("b"), v.generationKey} {
			areKept(true, true, true)
			var from origin
			v.local.begin(t.Context(), 2, v.prefix+"2", &from)
			require.NotNil(t, from.watch)
			known, err := v.readGenerations(t.Context(), []tag{{hash: hashTag("b")}})
			require.NoError(t, err)
			v.local.evict("2")
			v.local.begin(t.Context(), 2, v.prefix+"2", &from)
			news(key)
			f := found{state: hit, head: header{tags: known.tags}, known: known}
			v.local.put(2, &kept[int]{value: 2}, &f, &from, "")
			areKept(false, false, key != v.generationKey)
		}
	})
}

// As without tags, for all that ends entries: own invalidations at once, those of
// others, of which the client is told nothing, within the max age.
func TestNoLocalCopyIsFromBeforeAnOwnInvalidationOrOlderThanItsMaxAge(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	seed := newSeed(t)
	for round := range rounds {
		synctest.Test(t, func(t *testing.T) {
			s := testserver.New(t)
			dice := &dice{r: rand.New(rand.NewPCG(seed, uint64(round)))}
			const keys, maxAge = 4, 300 * time.Millisecond // own invalidations: even keys
			rdb := open(t, deaf(s.Options()))
			rdb.AddHook(hesitant{dice.pause})
			c := newClient(t, rdb, Config{})
			cfg := ViewConfig{Tags: true, LocalEntries: 3 + round%2*100, LocalMaxAge: maxAge}
			v := NewView[int, int64](c, "v", cfg)
			theirs := s.Client(t)
			theirs.AddHook(hesitant{dice.pause})
			other := NewView[int, int64](newClient(t, theirs, Config{}), "v", ViewConfig{Tags: true})
			tracked(t, v, 99)

			var mu sync.Mutex
			var rows [keys]int64
			var history [keys][]time.Time // when the end of each version was certain
			row := func(key int) int64 {
				mu.Lock()
				defer mu.Unlock()
				return rows[key]
			}
			load := func(_ context.Context, key int) (Entry[int64], error) {
				dice.pause()
				version := row(key)
				dice.pause()
				return Entry[int64]{Value: version, Tags: []string{fmt.Sprint(key), fmt.Sprint("version ", version%5)}}, nil
			}
			var all sync.WaitGroup
			for key := range keys {
				all.Go(func() {
					writer := v
					if key%2 == 1 {
						writer = other
					}
					for version := int64(1); version <= 20; version++ {
						mu.Lock()
						rows[key] = version
						mu.Unlock()
						dice.pause()
						var err error
						switch dice.roll(4) {
						case 0:
							err = writer.Clear(t.Context())
						case 1:
							err = writer.Delete(t.Context(), key)
						default:
							err = writer.InvalidateTags(t.Context(), fmt.Sprint(key))
						}
						if err != nil {
							t.Error(err)
						}
						mu.Lock()
						history[key] = append(history[key], time.Now())
						mu.Unlock()
						dice.pause()
					}
				})
			}
			for range 12 {
				all.Go(func() {
					for range 60 {
						key := dice.roll(keys)
						since := time.Now()
						if key%2 == 1 {
							since = since.Add(-maxAge)
						}
						least := int64(0)
						mu.Lock()
						for i, ended := range history[key] {
							if !ended.After(since) {
								least = int64(i + 1)
							}
						}
						mu.Unlock()
						var e Entry[int64]
						var err error
						if dice.roll(2) == 0 {
							e, err = v.FetchEntry(t.Context(), key, load)
						} else {
							e.Value, err = v.Get(t.Context(), key)
						}
						switch {
						case err == nil && e.Value < least:
							t.Errorf("round %d, key %d: got version %d, and %d was announced too long ago", round, key, e.Value, least)
						case err != nil && !errors.Is(err, ErrMiss):
							t.Error(err)
						}
						if dice.roll(3) == 0 {
							dice.pause()
						}
					}
				})
			}
			all.Wait()
			require.Positive(t, c.Stats().LocalHits)
		})
	}
}

var patientTags = ViewConfig{LocalEntries: 1000, LocalMaxAge: time.Hour, Tags: true, Codec: Raw}

func TestAServerTellsOfGenerations(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	showInvalidations(t, srv.Client(t), srv.URL())
}

func TestTheNodesOfAClusterTellOfGenerations(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1})
	showInvalidations(t, cluster.Client(t), cluster.URL())
}

func showInvalidations(t *testing.T, rdb redis.UniversalClient, url string) {
	ctx := t.Context()
	plain := NewView[string, string](newClient(t, opened(t, url), Config{}), "plain", patient) // the first prefix
	v := NewView[string, string](plain.c, "v", patientTags)
	w := NewView[string, string](plain.c, "v2", patientTags)
	other := newClient(t, opened(t, url), Config{})
	_, _ = plain.Get(ctx, "k")
	for _, v := range []*View[string, string]{v, w} {
		o := NewView[string, string](other, v.name, ViewConfig{Tags: true, Codec: Raw})
		for i := range 9 { // keys and tags of all nodes
			key, tag := fmt.Sprint("k", i), fmt.Sprint("t", i)
			set := func() {
				t.Helper()
				require.NoError(t, o.Set(ctx, key, "x", Tags("all", tag)))
				becomes(t, v, key, "x")
				localFor(t, v, key)
			}
			set()
			require.NoError(t, o.InvalidateTags(ctx, tag))
			becomes(t, v, key, "")
			set()
			require.NoError(t, o.InvalidateTags(ctx, "all"))
			becomes(t, v, key, "")
			set()
			require.NoError(t, o.Clear(ctx))
			becomes(t, v, key, "")
			set()
			require.NoError(t, rdb.Del(ctx, v.tagKey(hashTag(tag))).Err())
			becomes(t, v, key, "")
			set()
			require.NoError(t, rdb.PExpire(ctx, v.generationKey, 5*time.Millisecond).Err())
			becomes(t, v, key, "")
			set()
			require.NoError(t, v.InvalidateTags(ctx, tag))
			_, err := v.Get(ctx, key)
			require.ErrorIs(t, err, ErrMiss, "the own process sees it at once")
			set()
			require.NoError(t, v.Clear(ctx))
			_, err = v.Get(ctx, key)
			require.ErrorIs(t, err, ErrMiss, "the own process sees it at once")
		}
	}
	require.Positive(t, plain.c.Stats().LocalHits)
}
