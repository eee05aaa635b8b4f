package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

// tagged is a view whose entries may have tags.
var tagged = ViewConfig{Tags: true}

// loadTagged loads key with the tags "all" and its own name.
func loadTagged(value string) func(context.Context, string) (Entry[string], error) {
	return func(_ context.Context, key string) (Entry[string], error) {
		return Entry[string]{Value: value, Tags: []string{"all", key}}, nil
	}
}

func TestInvalidateTagsEndsWhatHasOneOfThem(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", tagged)
		there := NewView[string, string](newClient(t, rdb, Config{}), "v", tagged)
		other := NewView[string, string](c, "other", tagged)
		fill := func() {
			require.NoError(t, v.Set(t.Context(), "a", "A", Tags("all"), Tags("x", "a")))
			_, err := v.FetchEntry(t.Context(), "b", loadTagged("B"))
			require.NoError(t, err)
			require.NoError(t, v.SetMany(t.Context(), map[string]string{"c": "C", "d": "D"}, Tags("c")))
			require.NoError(t, v.Set(t.Context(), "untagged", "U"))
			require.NoError(t, other.Set(t.Context(), "a", "other", Tags("all", "a", "b", "c")))
			added, err := v.Add(t.Context(), "e", "E", Tags("e"))
			require.NoError(t, err)
			require.True(t, added)
			_, err = v.FetchEntry(t.Context(), "gone", func(context.Context, string) (Entry[string], error) {
				return Entry[string]{Tags: []string{"all"}, TTL: time.Hour}, ErrNotFound
			})
			require.Equal(t, ErrNotFound, err)
		}
		keys := []string{"a", "b", "c", "d", "untagged", "e", "gone"}
		has := func() (found string) {
			for n := range 2 { // a second time by what has been learnt of the tags
				for i, res := range there.GetMany(t.Context(), keys) {
					value, err := v.Get(t.Context(), keys[i])
					require.Equal(t, res, Result[string]{value, err}, keys[i])
					require.True(t, err == nil || err == ErrMiss || err == ErrNotFound, "%v", err)
					if n == 0 && err == ErrNotFound {
						found += "-"
					}
					if n == 0 {
						found += value
					}
				}
			}
			return found
		}
		for _, test := range []struct {
			end  func() error
			left string
		}{
			{func() error { return nil }, "ABCDUE-"},
			{func() error { return v.InvalidateTags(t.Context()) }, "ABCDUE-"},
			{func() error { return v.InvalidateTags(t.Context(), "unknown") }, "ABCDUE-"},
			{func() error { return v.InvalidateTags(t.Context(), "x") }, "BCDUE-"},
			{func() error { return v.InvalidateTags(t.Context(), "all") }, "CDUE"},
			{func() error { return v.InvalidateTags(t.Context(), "c", "e") }, "ABU-"},
			{func() error { return v.Clear(t.Context()) }, ""},
		} {
			fill()
			require.Equal(t, "ABCDUE-", has())
			require.NoError(t, test.end())
			require.Equal(t, test.left, has())
			got, err := other.Get(t.Context(), "a")
			require.NoError(t, err)
			require.Equal(t, "other", got)
			require.NoError(t, v.Clear(t.Context()))
		}
		require.EqualValues(t, 5, c.Stats().TagsInvalidated)
		require.EqualValues(t, 8, c.Stats().Clears)
	})
}

func TestFetchManyHeedsClear(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		v := NewView[int, int](newClient(t, rdb, Config{}), "v", tagged)
		var loaded atomic.Int64
		load := func(_ context.Context, keys []int) (map[int]int, error) {
			loaded.Add(int64(len(keys)))
			values := make(map[int]int)
			for _, key := range keys {
				values[key] = key
			}
			return values, nil
		}
		keys := []int{1, 2, 3, 4, 5}
		for round := range int64(3) {
			for range 2 {
				values, err := v.FetchMany(t.Context(), keys, load)
				require.NoError(t, err)
				require.Len(t, values, 5)
				require.Equal(t, 5*(round+1), loaded.Load())
			}
			require.NoError(t, v.Clear(t.Context()))
			time.Sleep(time.Millisecond)
		}
	})
}

// A load of many, too, is made again for the keys that an invalidation met.
func TestALoadOfManyDuringAClearIsMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		v := NewView[int, int64](newClient(t, rdb, Config{}), "v", tagged)
		there := NewView[int, int64](newClient(t, s.Client(t), Config{}), "v", tagged)
		var loads atomic.Int64
		values, err := v.FetchMany(t.Context(), []int{1, 2, 3}, func(_ context.Context, keys []int) (map[int]int64, error) {
			n := loads.Add(1)
			values := make(map[int]int64)
			for _, key := range keys {
				values[key] = n
			}
			time.Sleep(time.Second)
			if n == 1 {
				require.NoError(t, there.Clear(t.Context()))
				time.Sleep(time.Second)
			}
			return values, nil
		})
		require.NoError(t, err)
		require.Len(t, values, 3)
		for key, n := range values {
			require.Greater(t, n, int64(1), "key %d", key)
			got, err := there.Get(t.Context(), key)
			require.NoError(t, err)
			require.Equal(t, n, got)
		}
	})
}

func TestClearWithoutTagsDeletesInBatches(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, plain := range []bool{false, true} {
			c := newClient(t, rdb, Config{})
			v := NewView[int, string](c, "v", ViewConfig{Plain: plain})
			values := make(map[int]string)
			for i := range inSlowLua(t, 150, 2500) {
				values[i] = "x"
			}
			require.NoError(t, v.SetMany(t.Context(), values))
			other := NewView[int, string](c, "v-2", ViewConfig{Plain: plain})
			newer := NewView[int, string](c, "v", ViewConfig{Plain: plain, Version: "2"})
			require.NoError(t, other.Set(t.Context(), 1, "x"))
			require.NoError(t, newer.Set(t.Context(), 1, "x"))
			require.NoError(t, v.DeleteFor(t.Context(), time.Hour, 9999))
			require.NoError(t, v.Clear(t.Context()))
			require.EqualValues(t, 3, rdb.DBSize(t.Context()).Val(), "the others' values, and a hold")
			for _, v := range []*View[int, string]{other, newer} {
				_, err := v.Get(t.Context(), 1)
				require.NoError(t, err)
			}
			require.NoError(t, rdb.FlushDB(t.Context()).Err())
		}
	})
}

func TestAReadOfATaggedEntryIsOneRoundTripOnceItsTagsAreKnown(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, string](c, "v", tagged)
	require.NoError(t, v.Set(t.Context(), "k", "x", Tags("a", "b")))
	require.NoError(t, v.Set(t.Context(), "untagged", "x"))
	read := func(key string, trips uint64) {
		t.Helper()
		before := c.primary.Stats()
		_, err := v.Get(t.Context(), key)
		require.NoError(t, err)
		after := c.primary.Stats()
		require.Equal(t, trips, after.Batches-before.Batches+after.Alone-before.Alone)
	}
	read("untagged", 1)
	read("k", 2)
	read("k", 1)
	require.NoError(t, v.Set(t.Context(), "k", "x", Tags("b", "c")))
	read("k", 2)
	read("k", 1)
	require.EqualValues(t, 2, c.Stats().GenerationReads)
	off := NewView[string, string](c, "off", ViewConfig{})
	require.NoError(t, off.Set(t.Context(), "k", "x"))
	before := c.primary.Stats()
	_, err := off.Get(t.Context(), "k")
	require.NoError(t, err)
	require.EqualValues(t, 1, c.primary.Stats().Alone-before.Alone, "a view without tags asks for nothing else")
}

// Whatever happens to the key of a generation, what names it is a miss.
func TestAMissingGenerationEndsWhatNamesIt(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", tagged)
		for _, key := range []string{v.generationKey, v.tagKey(hashTag("t"))} {
			for name, harm := range map[string]func() error{
				"evicted":  func() error { return rdb.Del(t.Context(), key).Err() },
				"replaced": func() error { return rdb.Set(t.Context(), key, "junk", time.Hour).Err() },
				"zero":     func() error { return rdb.Set(t.Context(), key, "0", time.Hour).Err() },
			} {
				require.NoError(t, rdb.FlushDB(t.Context()).Err())
				require.NoError(t, v.Set(t.Context(), "k", "old", Tags("t")))
				require.NoError(t, harm())
				_, err := v.Get(t.Context(), "k")
				require.Equal(t, ErrMiss, err, name)
				if name != "evicted" {
					require.ErrorContains(t, v.Set(t.Context(), "k", "new", Tags("t")), "want a number: delete it")
					continue
				}
				time.Sleep(time.Millisecond) // the clock goes on
				require.NoError(t, v.Set(t.Context(), "other", "new", Tags("t")))
				_, err = v.Get(t.Context(), "k")
				require.Equal(t, ErrMiss, err, "a new generation does not bring it back")
				_, err = v.Get(t.Context(), "other")
				require.NoError(t, err)
			}
		}
	})
}

func TestAViewWithoutTagsRefusesThem(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, string](c, "v", ViewConfig{})
	require.EqualError(t, v.Set(t.Context(), "k", "x", Tags("a")), `cache: set "v:k": tags are given, and the view has none: set ViewConfig.Tags`)
	require.EqualError(t, v.SetMany(t.Context(), map[string]string{"k": "x"}, Tags("a")), `cache: set: tags are given, and the view has none: set ViewConfig.Tags`)
	require.EqualError(t, v.InvalidateTags(t.Context(), "a"), `cache: invalidate tags of view "v": it has none: set ViewConfig.Tags`)
	_, err := v.FetchEntry(t.Context(), "k", loadTagged("x"))
	require.EqualError(t, err, `cache: fetch "v:k": tags are given, and the view has none: set ViewConfig.Tags`)
	many := make([]string, maxTags+1)
	require.ErrorContains(t, NewView[string, string](c, "w", tagged).Set(t.Context(), "k", "x", Tags(many...)), "256 tags are given, want at most 255")
	require.NoError(t, NewView[string, string](c, "w", tagged).Set(t.Context(), "k", "x", Tags(many[1:]...)))
	_, err = NewView[string, string](c, "v", ViewConfig{Tags: true, Plain: true}).Get(t.Context(), "k")
	require.ErrorContains(t, err, "Tags and Plain are set")

	// Views of one name that do not agree miss each other's values.
	with := NewView[string, string](c, "v", tagged)
	require.NoError(t, with.Set(t.Context(), "k", "x"))
	_, err = v.Get(t.Context(), "k")
	require.Equal(t, ErrMiss, err)
	require.NoError(t, v.Set(t.Context(), "k", "x"))
	_, err = with.Get(t.Context(), "k")
	require.Equal(t, ErrMiss, err)
	require.Zero(t, c.Stats().DecodeErrors)
}

// A load that could have read the old row is made again, once, and then not stored.
func TestALoadDuringAnInvalidationIsMadeAgain(t *testing.T) {
	for name, end := range map[string]func(context.Context, *View[string, string]) error{
		"tag":  func(ctx context.Context, v *View[string, string]) error { return v.InvalidateTags(ctx, "all") },
		"view": func(ctx context.Context, v *View[string, string]) error { return v.Clear(ctx) },
	} {
		for _, stale := range []bool{false, true} {
			for _, times := range []int64{1, 2} {
				t.Run(fmt.Sprint(name, " stale ", stale, " ", times), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						s, rdb := newServer(t)
						c := newClient(t, rdb, Config{})
						cfg := ViewConfig{Tags: true, TTL: time.Minute, StaleFor: time.Hour, SoftLoadTimeout: time.Minute}
						v := NewView[string, string](c, "v", cfg)
						there := NewView[string, string](newClient(t, s.Client(t), Config{}), "v", cfg)
						if stale {
							require.NoError(t, v.Set(t.Context(), "k", "old", Tags("other")))
							time.Sleep(time.Minute)
						}
						var loads atomic.Int64
						e, err := v.FetchEntry(t.Context(), "k", func(context.Context, string) (Entry[string], error) {
							n := loads.Add(1)
							time.Sleep(time.Second)
							if n <= times {
								require.NoError(t, end(t.Context(), there))
							}
							time.Sleep(time.Second)
							return Entry[string]{Value: fmt.Sprint("load ", n), Tags: []string{"all"}}, nil
						})
						require.NoError(t, err)
						require.EqualValues(t, 2, loads.Load())
						require.Equal(t, "load 2", e.Value)
						require.EqualValues(t, times, c.Stats().LoadsOutdated)
						got, err := there.Get(t.Context(), "k")
						if times == 1 {
							require.NoError(t, err)
							require.Equal(t, "load 2", got)
						} else {
							require.Equal(t, ErrMiss, err)
							require.NotContains(t, s.Keys(), "redisha:cache:v:k", "the lease is given back")
						}
					})
				})
			}
		}
	}
}

// Who comes after an InvalidateTags does not get what a load of before has brought,
// also if that cannot be stored.
func TestWhoComesAfterAnInvalidationDoesNotGetWhatWasLoadedBefore(t *testing.T) {
	for name, kind := range map[string]string{"stored": "", "too large": "large", "an absence": "absent"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, rdb := newServer(t)
				cfg := ViewConfig{Tags: true, MaxValueBytes: 20, AbsentTTL: -1}
				v := NewView[string, string](newClient(t, rdb, Config{}), "v", cfg)
				there := NewView[string, string](newClient(t, s.Client(t), Config{}), "v", cfg)
				var rows atomic.Int64
				load := func(_ context.Context, key string) (Entry[string], error) {
					row := rows.Load()
					time.Sleep(time.Second)
					e := Entry[string]{Value: fmt.Sprint("row ", row), Tags: []string{"all"}}
					switch {
					case kind == "large":
						e.Value += strings.Repeat(" ", 20)
					case kind == "absent" && row == 0:
						return e, ErrNotFound
					}
					return e, nil
				}
				go func() { _, _ = v.FetchEntry(t.Context(), "k", load) }()
				synctest.Wait()
				rows.Add(1)
				require.NoError(t, there.InvalidateTags(t.Context(), "all"))
				e, err := v.FetchEntry(t.Context(), "k", load)
				require.NoError(t, err)
				require.Equal(t, "row 1", strings.TrimSpace(e.Value))
				time.Sleep(time.Minute)
			})
		})
	}
}

// Where the generations cannot be read after a load, nobody knows what it is worth to
// those who came late.
func TestWhoComesAfterAnInvalidationDoesNotGetWhatCouldNotBeStamped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		require.NoError(t, generationScript.Load(t.Context(), rdb).Err())
		v := NewView[string, int64](newClient(t, rdb, Config{}), "v", tagged)
		there := NewView[string, int64](newClient(t, s.Client(t), Config{}), "v", tagged)
		var rows atomic.Int64
		load := func(context.Context, string) (int64, error) {
			row := rows.Load()
			time.Sleep(time.Second)
			return row, nil
		}
		first := goFetch(t.Context(), v, "k", load)
		synctest.Wait()
		rows.Add(1)
		require.NoError(t, there.Clear(t.Context()))
		s.SetPreHook(func(p *server.Peer, cmd string, args ...string) bool {
			if strings.EqualFold(cmd, "evalsha") && args[0] == generationScript.Hash() {
				p.WriteError("NOPERM no permissions to access a key")
				return true
			}
			return false
		})
		later := goFetch(t.Context(), v, "k", load)
		require.Equal(t, fetched[int64]{0, nil}, <-first, "it came before")
		require.Equal(t, fetched[int64]{1, nil}, <-later)
		synctest.Wait()
		require.NotContains(t, s.Keys(), "redisha:cache:v:k", "the lease is given back")
	})
}

// The same where the second load cannot be begun, though the lease is still held.
func TestWhoComesAfterAnInvalidationDoesNotGetWhatCouldNotBeLoadedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		v := NewView[string, int64](newClient(t, rdb, Config{}), "v", tagged)
		there := NewView[string, int64](newClient(t, s.Client(t), Config{}), "v", tagged)
		for _, script := range []*script{acquireScript, generationScript, releaseScript, raiseScript} {
			require.NoError(t, script.Load(t.Context(), rdb).Err())
		}
		var rows, acquires atomic.Int64
		load := func(context.Context, string) (int64, error) {
			row := rows.Load()
			time.Sleep(time.Second)
			return row, nil
		}
		s.SetPreHook(func(p *server.Peer, cmd string, args ...string) bool {
			if strings.EqualFold(cmd, "evalsha") && args[0] == acquireScript.Hash() && acquires.Add(1) == 2 {
				p.WriteError("ERR not now")
				return true
			}
			return false
		})
		first := goFetch(t.Context(), v, "k", load)
		time.Sleep(100 * time.Millisecond)
		rows.Add(1)
		require.NoError(t, there.Clear(t.Context()))
		later := goFetch(t.Context(), v, "k", load)
		require.Equal(t, fetched[int64]{0, nil}, <-first, "it came before")
		require.Equal(t, fetched[int64]{1, nil}, <-later)
		require.EqualValues(t, 3, acquires.Load())
	})
}

// A server that hangs after the load costs one step of the lease, not go-redis' own
// timeouts.
func TestAnOutageAfterALoadIsWaitedForOnce(t *testing.T) {
	for name, cfg := range map[string]ViewConfig{"tags": tagged, "no tags": {}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testserver.New(t)
				c := newClient(t, newOwn(t, s), Config{ReadTimeout: 100 * time.Millisecond})
				v := NewView[string, string](c, "v", cfg)
				var loaded time.Time
				got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) {
					s.Hang(true)
					loaded = time.Now()
					return "value", nil
				})
				require.NoError(t, err)
				require.Equal(t, "value", got)
				require.LessOrEqual(t, time.Since(loaded), minLeaseSlack)
				s.Hang(false)
				time.Sleep(time.Minute)
				synctest.Wait()
				require.NotContains(t, s.Keys(), v.prefix+"k")
			})
		})
	}
}

func TestAddAndReplaceHeedGenerations(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", tagged)
		for name, end := range map[string]func() error{
			"view": func() error { return v.Clear(t.Context()) },
			"tag":  func() error { return v.InvalidateTags(t.Context(), "t") },
		} {
			require.NoError(t, v.Set(t.Context(), "k", "old", Tags("t")))
			added, err := v.Add(t.Context(), "k", "no")
			require.NoError(t, err)
			require.False(t, added, name)
			replaced, err := v.Replace(t.Context(), "k", "newer", Tags("t"))
			require.NoError(t, err)
			require.True(t, replaced, name)
			require.NoError(t, end())
			replaced, err = v.Replace(t.Context(), "k", "no")
			require.NoError(t, err)
			require.False(t, replaced, name)
			added, err = v.Add(t.Context(), "k", "new")
			require.NoError(t, err)
			require.True(t, added, name)
			got, err := v.Get(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, "new", got)
		}
	})
}

func TestRaiseIsAlwaysGreaterAndKeepsTheLongerTTL(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		raise := func(ttl time.Duration) uint64 {
			require.NoError(t, raiseScript.Run(t.Context(), rdb, []string{"g"}, ttl.Milliseconds()).Err())
			n, err := strconv.ParseUint(rdb.Get(t.Context(), "g").Val(), 10, 64)
			require.NoError(t, err)
			return n
		}
		first := raise(time.Hour)
		require.InDelta(t, time.Now().UnixMicro(), int64(first), float64(time.Minute.Microseconds()))
		last := first
		for range 50 {
			n := raise(time.Minute)
			require.Greater(t, n, last)
			last = n
		}
		require.Greater(t, rdb.PTTL(t.Context(), "g").Val(), 59*time.Minute)
		raise(2 * time.Hour)
		require.Greater(t, rdb.PTTL(t.Context(), "g").Val(), 119*time.Minute)
		ahead := uint64(1 << 52)
		require.NoError(t, rdb.Set(t.Context(), "g", ahead, time.Hour).Err())
		require.Equal(t, ahead+1, raise(time.Hour), "another server's clock was ahead")
		require.NoError(t, rdb.Set(t.Context(), "g", "junk", time.Hour).Err())
		require.Greater(t, raise(time.Hour), last)
	})
}

func TestAGenerationIsMadeInThePastAndKeptAlive(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		read := func(made any, ttl time.Duration) uint64 {
			text, err := generationScript.Run(t.Context(), rdb, []string{"g"}, made, ttl.Milliseconds()).Text()
			require.NoError(t, err)
			n, err := strconv.ParseUint(text, 10, 64)
			require.NoError(t, err)
			return n
		}
		n := read("", time.Hour)
		require.InDelta(t, time.Now().Add(-2*time.Second).UnixMicro(), int64(n), float64(time.Minute.Microseconds()))
		require.Greater(t, rdb.PTTL(t.Context(), "g").Val(), 119*time.Minute)
		require.Equal(t, n, read("", 110*time.Minute))
		require.LessOrEqual(t, rdb.PTTL(t.Context(), "g").Val(), 2*time.Hour, "it lives long enough")
		require.Equal(t, n, read("7", 150*time.Minute))
		require.Greater(t, rdb.PTTL(t.Context(), "g").Val(), 299*time.Minute)
		require.NoError(t, rdb.Del(t.Context(), "g").Err())
		require.EqualValues(t, 1_700_000_000_000_001, read("1700000000000001", time.Hour))
	})
}

func TestHashesOfTagsStay(t *testing.T) {
	// FNV-1a, 64 bits: the test vectors of its authors.
	require.Equal(t, uint64(0xcbf29ce484222325), hashTag(""))
	require.Equal(t, uint64(0xaf63dc4c8601ec8c), hashTag("a"))
	require.Equal(t, uint64(0x85944171f73967e8), hashTag("foobar"))
}

func TestWithoutItsGenerationAViewIsNotRead(t *testing.T) {
	s, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v := NewView[string, string](c, "v", tagged)
	require.NoError(t, v.Set(t.Context(), "k", "x", Tags("a")))
	s.SetPreHook(func(p *server.Peer, cmd string, args ...string) bool {
		for _, arg := range args {
			if strings.Contains(arg, generationMark) {
				p.WriteError("NOPERM no permissions to access a key")
				return true
			}
		}
		return false
	})
	_, err := v.Get(t.Context(), "k")
	require.ErrorContains(t, err, "NOPERM")
	require.ErrorContains(t, v.GetMany(t.Context(), []string{"k"})[0].Err, "NOPERM")
	require.ErrorContains(t, v.Set(t.Context(), "k", "y"), `cache: set "v:k": read generations: NOPERM`)
	require.ErrorContains(t, v.SetMany(t.Context(), map[string]string{"k": "y"}), `cache: set: read generations: NOPERM`)
	_, err = v.Add(t.Context(), "k", "y")
	require.ErrorContains(t, err, "NOPERM")
	require.ErrorContains(t, v.InvalidateTags(t.Context(), "a"), "NOPERM")
	require.ErrorContains(t, v.Clear(t.Context()), `cache: clear view "v": NOPERM`)
	got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "loaded", nil })
	require.NoError(t, err)
	require.Equal(t, "loaded", got)
	s.SetPreHook(nil)
	got, err = v.Get(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, "x", got)
}

func TestTagsOnACluster(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1})
	v := NewView[int, int](newClient(t, cluster.Client(t), Config{}), "v", tagged)
	plain := NewView[int, int](newClient(t, cluster.Client(t), Config{}), "plain", ViewConfig{Plain: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	keys := make([]int, 60)
	count := func(v *View[int, int]) (n int) {
		for _, res := range v.GetMany(ctx, keys) {
			if res.Err == nil {
				n++
				continue
			}
			require.Equal(t, ErrMiss, res.Err)
		}
		return n
	}
	for key := range keys {
		keys[key] = key
		e, err := v.FetchEntry(ctx, key, func(context.Context, int) (Entry[int], error) {
			return Entry[int]{Value: key, Tags: []string{fmt.Sprint("mod ", key%3), "all"}}, nil
		})
		require.NoError(t, err)
		require.Equal(t, key, e.Value)
		require.NoError(t, plain.Set(ctx, key, key))
	}
	require.Equal(t, 60, count(v))
	require.NoError(t, v.InvalidateTags(ctx, "mod 1"))
	require.Equal(t, 40, count(v))
	require.NoError(t, v.InvalidateTags(ctx, "mod 1", "mod 2"))
	require.Equal(t, 20, count(v))
	require.NoError(t, v.Clear(ctx))
	require.Zero(t, count(v))
	require.Equal(t, 60, count(plain))
	require.NoError(t, plain.Clear(ctx))
	require.Zero(t, count(plain))
}

// After a Clear or an InvalidateTags has returned, nobody who comes later gets what
// was loaded before it. Several clients, all steps of which take random times.
func TestNothingFromBeforeAnInvalidationIsReturned(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	seed := rand.Uint64()
	if s := os.Getenv("REDISHA_TEST_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("REDISHA_TEST_SEED=%d", seed)
	for round := range rounds {
		synctest.Test(t, func(t *testing.T) {
			s := testserver.New(t)
			dice := &dice{r: rand.New(rand.NewPCG(seed, uint64(round)))}
			const clients, keys, readers, reads, writes = 3, 3, 5, 25, 12
			cfg := ViewConfig{Tags: true}
			if round%2 == 1 {
				cfg = ViewConfig{Tags: true, TTL: 50 * time.Millisecond, StaleFor: 10 * time.Second, SoftLoadTimeout: time.Duration(dice.roll(2)) * 20 * time.Millisecond, ErrorTTL: 5 * time.Millisecond}
			}
			var rows, floors [keys]atomic.Int64 // versions; those of which an invalidation has returned
			var loads, hits atomic.Int64
			load := func(_ context.Context, key int) (Entry[int64], error) {
				loads.Add(1)
				dice.pause()
				version := rows[key].Load()
				dice.pause()
				if round%2 == 1 && dice.roll(10) == 0 {
					return Entry[int64]{}, errInjected
				}
				e := Entry[int64]{Value: version, Tags: []string{fmt.Sprint(key)}}
				if dice.roll(4) == 0 {
					e.Tags = append(e.Tags, fmt.Sprint("version ", version))
				}
				if dice.roll(10) == 0 {
					e.TTL = -1
				}
				return e, nil
			}
			var wg sync.WaitGroup
			for n := range clients {
				rdb := s.Client(t)
				rdb.AddHook(hesitant{dice.pause})
				if n == 0 {
					rdb.AddHook(failing{dice, false})
				}
				c := newClient(t, rdb, Config{})
				v := NewView[int, int64](c, "v", cfg)
				for range readers {
					wg.Go(func() {
						for range reads {
							key := dice.roll(keys)
							floor := floors[key].Load()
							kept := c.Stats().OutageHits
							var got int64
							var err error
							switch dice.roll(5) {
							case 0:
								got, err = v.Get(t.Context(), key)
							case 1:
								res := v.GetMany(t.Context(), []int{(key + 1) % keys, key})[1]
								got, err = res.Value, res.Err
							default:
								var e Entry[int64]
								e, err = v.FetchEntry(t.Context(), key, load)
								got = e.Value
								if err == nil && e.Source == FromRedis {
									hits.Add(1)
								}
							}
							switch {
							case n == 0 && c.Stats().OutageHits > kept: // it may be two seconds old, where reads fail
							case err == nil && got < floor:
								t.Errorf("round %d: key %d: got version %d after version %d was announced", round, key, got, floor)
							case err != nil && err != ErrMiss && !errors.Is(err, errInjected) && !errors.Is(err, ErrLoadFailed):
								t.Errorf("round %d: %v", round, err)
							}
						}
					})
				}
				if n == 0 {
					continue
				}
				wg.Go(func() {
					for range writes {
						key := dice.roll(keys)
						version := rows[key].Add(1)
						dice.pause()
						err := v.InvalidateTags(t.Context(), fmt.Sprint(key))
						if dice.roll(3) == 0 {
							err = v.Clear(t.Context())
						}
						if err != nil {
							t.Errorf("round %d: %v", round, err)
						}
						for { // two writers
							old := floors[key].Load()
							if old >= version || floors[key].CompareAndSwap(old, version) {
								break
							}
						}
						dice.pause()
					}
				})
			}
			wg.Wait()
			require.Positive(t, hits.Load(), "something was cached")
		})
	}
}

// The same in real time against a real server.
func TestAHostileInvalidatorCausesNoStaleRead(t *testing.T) {
	s := redistest.Shared(t)
	pause := func() { time.Sleep(rand.N(500 * time.Microsecond)) }
	const clients, readers = 4, 8
	var rows, floors [clients]atomic.Int64
	var reads, hits atomic.Int64
	stop := time.Now().Add(time.Second)
	var wg sync.WaitGroup
	for n := range clients {
		v := NewView[int, int64](newClient(t, open(t, s.Options()), Config{}), "v", tagged)
		for range readers {
			wg.Go(func() {
				for time.Now().Before(stop) {
					key := rand.IntN(clients)
					floor := floors[key].Load()
					e, err := v.FetchEntry(t.Context(), key, func(_ context.Context, key int) (Entry[int64], error) {
						pause()
						row := rows[key].Load()
						pause()
						return Entry[int64]{Value: row, Tags: []string{fmt.Sprint(key)}}, nil
					})
					if err != nil || e.Value < floor {
						t.Errorf("key %d: got %d, %v after %d was announced", key, e.Value, err, floor)
						return
					}
					reads.Add(1)
					if e.Source == FromRedis {
						hits.Add(1)
					}
				}
			})
		}
		wg.Go(func() {
			for round := 0; time.Now().Before(stop); round++ {
				row := rows[n].Add(1)
				err := v.InvalidateTags(t.Context(), fmt.Sprint(n))
				if round%10 == 0 {
					err = v.Clear(t.Context())
				}
				if err != nil {
					t.Error(err)
					return
				}
				floors[n].Store(row)
				time.Sleep(rand.N(10 * time.Millisecond))
			}
		})
	}
	wg.Wait()
	t.Logf("%d reads, %d of them hits", reads.Load(), hits.Load())
	require.Positive(t, hits.Load())
}
