package cache

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

// Add and Replace agree with Get on what a value is, but for what only shows when
// it is decoded. Neither moves a tombstone.
func TestAddAndReplaceKnowWhatAValueIs(t *testing.T) {
	now := uint64(time.Now().UnixMilli()) //nolint:gosec // it fits
	value := func(h header) string { return string(append(appendHeader(nil, kindValue, h), `"old"`...)) }
	frame, err := compress.New(compress.Config{MinSize: 1})
	require.NoError(t, err)
	for _, test := range []struct {
		name, held    string
		inView, plain bool // whether it is a value there
	}{
		{"value", value(header{loadTime: 7}), true, false},
		{"value that is fresh for an hour", value(header{softExpiry: now + 3_600_000}), true, false},
		{"value that is fresh for long", value(header{softExpiry: 1 << 52}), true, false},
		{"value that was fresh until now", value(header{softExpiry: now}), false, false},
		{"value that was fresh once", value(header{softExpiry: 1}), false, false},
		{"value of a generation", value(header{generation: 1}), false, false},
		{"value of a great generation", value(header{generation: 1 << 63}), false, false},
		{"value with a tag", value(header{tags: []tag{{1, 2}}}), false, false},
		{"value that is being refreshed", value(header{refreshUntil: now, refreshToken: token{1}}), true, false},
		{"value with flags", "\xc1\x11\x01" + value(header{})[3:], false, false},
		{"value that is cut off", value(header{})[:47], false, false},
		{"frame", string(frame.AppendEncode(nil, []byte(`"oooooooooooooooooooooooooooooooooooooooooooooooooooold"`))), false, true},
		{"absence", string(appendHeader(nil, kindAbsence, header{})), false, false},
		{"lease", string(newLease()), false, false},
		{"error marker", "\xc1\x15oops", false, false},
		{"unknown kind", "\xc1\x25", false, false},
		{"cut off mark", "\xc1", false, false},
		{"bare text", `"bare"`, false, true},
		{"tombstone with more", "\xc1\x14more", false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
				for _, plain := range []bool{false, true} {
					c := newClient(t, rdb, Config{})
					v := NewView[string, string](c, "v", ViewConfig{Plain: plain})
					isValue := test.inView
					if plain {
						isValue = test.plain
					}
					hold := func() {
						require.NoError(t, rdb.Set(t.Context(), v.prefix+"k", test.held, time.Hour).Err())
					}
					hold()
					_, err := v.Get(t.Context(), "k")
					require.Equal(t, isValue, err == nil, "Get, plain %t: %v", plain, err)

					added, err := v.Add(t.Context(), "k", "new", TTL(time.Minute))
					require.NoError(t, err)
					require.Equal(t, !isValue, added, "plain %t", plain)
					check(t, rdb, v, added, test.held)

					hold()
					replaced, err := v.Replace(t.Context(), "k", "new", TTL(time.Minute))
					require.NoError(t, err)
					require.Equal(t, isValue, replaced, "plain %t", plain)
					check(t, rdb, v, replaced, test.held)
					require.EqualValues(t, 1, c.Stats().Sets)
					require.EqualValues(t, 2, c.Stats().SetTime.Count)
				}
			})
		})
	}
}

// check looks at what is under "k" after an Add or Replace of "new".
func check(t *testing.T, rdb redis.UniversalClient, v *View[string, string], done bool, held string) {
	t.Helper()
	ttl := rdb.PTTL(t.Context(), v.prefix+"k").Val()
	if !done {
		require.Equal(t, held, rdb.Get(t.Context(), v.prefix+"k").Val())
		require.Greater(t, ttl, time.Minute)
		return
	}
	got, err := v.Get(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, "new", got)
	require.Positive(t, ttl)
	require.LessOrEqual(t, ttl, time.Minute)
}

func TestAddAndReplaceOfWhatIsNotThere(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		v := NewView[string, []byte](newClient(t, rdb, Config{}), "v", ViewConfig{Codec: Raw, Plain: true})
		replaced, err := v.Replace(t.Context(), "k", []byte("x"))
		require.NoError(t, err)
		require.False(t, replaced)
		require.Zero(t, rdb.DBSize(t.Context()).Val())
		for _, value := range []string{"", "\x00\xff\r\n", "\xc1\x13", string(kilobyte)} {
			require.NoError(t, v.Delete(t.Context(), "k"))
			added, err := v.Add(t.Context(), "k", []byte(value))
			require.NoError(t, err)
			require.True(t, added, "%q", value)
			added, err = v.Add(t.Context(), "k", []byte("other"))
			require.NoError(t, err)
			require.False(t, added, "%q is a value", value)
			got, err := v.Get(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, value, string(got))
			replaced, err = v.Replace(t.Context(), "k", []byte("other"))
			require.NoError(t, err)
			require.True(t, replaced, "%q is a value", value)
		}
		tombstone := string(appendEntry(nil, entry{kind: kindTombstone}))
		require.NoError(t, rdb.Set(t.Context(), v.prefix+"k", tombstone, time.Hour).Err())
		added, err := v.Add(t.Context(), "k", []byte("x"))
		require.NoError(t, err)
		require.False(t, added)
		replaced, err = v.Replace(t.Context(), "k", []byte("x"))
		require.NoError(t, err)
		require.False(t, replaced)
		require.Equal(t, tombstone, rdb.Get(t.Context(), v.prefix+"k").Val())

		require.NoError(t, rdb.Del(t.Context(), v.prefix+"k").Err())
		require.NoError(t, rdb.LPush(t.Context(), v.prefix+"k", "x").Err())
		_, err = v.Add(t.Context(), "k", []byte("x"))
		require.ErrorContains(t, err, `cache: add "v:k": WRONGTYPE`)
		_, err = v.Replace(t.Context(), "k", []byte("x"), TTL(time.Microsecond))
		require.EqualError(t, err, `cache: replace "v:k": TTL is 1µs, want at least 1ms`)
	})
}

func TestOneOfManyAddsWins(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		v := NewView[string, int](newClient(t, rdb, Config{}), "v", ViewConfig{})
		var wg sync.WaitGroup
		var winner, wins atomic.Int64
		for i := range 20 {
			wg.Go(func() {
				added, err := v.Add(t.Context(), "k", i)
				if err != nil {
					t.Error(err)
				}
				if added {
					wins.Add(1)
					winner.Store(int64(i))
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, wins.Load())
		got, err := v.Get(t.Context(), "k")
		require.NoError(t, err)
		require.EqualValues(t, winner.Load(), got)
	})
}

// While a key is loaded, Add puts its value in place of the one that is to come,
// and Replace finds none.
func TestALoadThatAddOvertookIsNotStored(t *testing.T) {
	for _, elsewhere := range []bool{true, false} {
		t.Run(fmt.Sprint("elsewhere ", elsewhere), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, rdb := newServer(t)
				c := newClient(t, rdb, Config{})
				here := NewView[string, int64](c, "v", ViewConfig{})
				writer := here
				if elsewhere {
					writer = NewView[string, int64](newClient(t, s.Client(t), Config{}), "v", ViewConfig{})
				}
				src := newSource(int64(1))
				first := goFetch(t.Context(), here, "k", src.load)
				<-src.began
				replaced, err := writer.Replace(t.Context(), "k", 49)
				require.NoError(t, err)
				require.False(t, replaced)
				added, err := writer.Add(t.Context(), "k", 50)
				require.NoError(t, err)
				require.True(t, added)
				if !elsewhere {
					got, err := here.Fetch(t.Context(), "k", noLoad[string, int64](t))
					require.NoError(t, err)
					require.EqualValues(t, 50, got, "the old load is not waited for")
				}
				close(src.release)
				require.Equal(t, fetched[int64]{1, nil}, <-first)
				got, err := here.Get(t.Context(), "k")
				require.NoError(t, err)
				require.EqualValues(t, 50, got)
				require.EqualValues(t, 1, c.Stats().FillsRefused)
			})
		})
	}
}

func TestAddAndReplaceOnACluster(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1})
	v := NewView[int, int](newClient(t, cluster.Client(t), Config{}), "v", ViewConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for key := range 50 {
		for i, write := range []func(context.Context, int, int, ...SetOption) (bool, error){v.Replace, v.Add, v.Replace, v.Add} {
			done, err := write(ctx, key, i)
			require.NoError(t, err)
			require.Equal(t, i == 1 || i == 2, done)
		}
		got, err := v.Get(ctx, key)
		require.NoError(t, err)
		require.Equal(t, 2, got)
	}
}

func TestAValueIsNoneFromItsSoftExpiryOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
		soon := header{softExpiry: uint64(time.Now().UnixMilli() + 1)} //nolint:gosec // it fits
		require.NoError(t, rdb.Set(t.Context(), v.prefix+"k", append(appendHeader(nil, kindValue, soon), `"old"`...), time.Hour).Err())
		added, err := v.Add(t.Context(), "k", "new")
		require.NoError(t, err)
		require.False(t, added)
		time.Sleep(time.Millisecond)
		replaced, err := v.Replace(t.Context(), "k", "new")
		require.NoError(t, err)
		require.False(t, replaced)
		added, err = v.Add(t.Context(), "k", "new")
		require.NoError(t, err)
		require.True(t, added)
	})
}
