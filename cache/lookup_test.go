package cache

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestALoaderSaysHowLongItsValueIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
		fetch := func(key string, e Entry[string], err error) (Entry[string], error) {
			return v.FetchEntry(t.Context(), key, func(context.Context, string) (Entry[string], error) { return e, err })
		}
		ttl := func(key string) time.Duration { return rdb.PTTL(t.Context(), v.prefix+key).Val() }

		e, err := fetch("default", Entry[string]{Value: "x"}, nil)
		require.NoError(t, err)
		require.Equal(t, Entry[string]{Value: "x", Source: FromLoader}, e)
		require.Greater(t, ttl("default"), 53*time.Minute)

		_, err = fetch("short", Entry[string]{Value: "x", TTL: time.Minute}, nil)
		require.NoError(t, err)
		require.LessOrEqual(t, ttl("short"), time.Minute)
		require.GreaterOrEqual(t, ttl("short"), 54*time.Second)

		_, err = fetch("absent", Entry[string]{TTL: time.Minute}, ErrNotFound)
		require.Equal(t, ErrNotFound, err)
		require.GreaterOrEqual(t, ttl("absent"), 54*time.Second)

		for _, source := range []error{nil, ErrNotFound} {
			_, err = fetch("unkept", Entry[string]{Value: "x", TTL: -1}, source)
			require.Equal(t, source, err)
			require.NotContains(t, s.Keys(), v.prefix+"unkept")
		}
		_, err = fetch("long", Entry[string]{Value: "x", TTL: 1<<63 - 1}, nil)
		require.NoError(t, err)
		require.LessOrEqual(t, ttl("long"), maxTTL)

		down := errors.New("down")
		e, err = fetch("fails", Entry[string]{Value: "half"}, down)
		require.ErrorIs(t, err, down)
		require.Zero(t, e)
		_, err = v.FetchEntry(t.Context(), "k", nil)
		require.EqualError(t, err, `cache: fetch "v:k": nil load function: pass what reads the source`)
		require.ErrorContains(t, v.Set(t.Context(), "k", "x", TTL(maxTTL+1)), "TTL is 876000h0m0.000000001s, want at most 876000h0m0s")
	})
}

func TestLookupTellsWhereAValueIsFromAndHowOldItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{TTL: time.Minute, StaleFor: time.Hour})
		_, err := v.Lookup(t.Context(), "k")
		require.Equal(t, ErrMiss, err)
		require.NoError(t, v.Set(t.Context(), "k", "x"))
		time.Sleep(10 * time.Second)
		e, err := v.Lookup(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, Entry[string]{Value: "x", Source: FromRedis, Age: 10 * time.Second}, e)
		time.Sleep(50 * time.Second)
		want := Entry[string]{Value: "x", Source: FromRedis, Age: time.Minute, Stale: true}
		e, err = v.Lookup(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, want, e)
		e, err = v.FetchEntry(t.Context(), "k", func(context.Context, string) (Entry[string], error) { return Entry[string]{Value: "y"}, nil })
		require.NoError(t, err)
		require.Equal(t, want, e)
		synctest.Wait()
		e, err = v.FetchEntry(t.Context(), "k", func(context.Context, string) (e Entry[string], err error) { return e, errors.New("must not load") })
		require.NoError(t, err)
		require.Equal(t, Entry[string]{Value: "y", Source: FromRedis}, e)

		_, err = v.Fetch(t.Context(), "none", func(context.Context, string) (string, error) { return "", ErrNotFound })
		require.Equal(t, ErrNotFound, err)
		_, err = v.Lookup(t.Context(), "none")
		require.Equal(t, ErrNotFound, err)

		plain := NewView[string, string](c, "plain", ViewConfig{Plain: true})
		require.NoError(t, plain.Set(t.Context(), "k", "x"))
		e, err = plain.Lookup(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, Entry[string]{Value: "x", Source: FromRedis}, e)
	})
}

func TestAClockThatIsBehindMakesNoValueOlder(t *testing.T) {
	now := time.Now()
	h := header{stored: unixMilli(now.Add(time.Hour))}
	require.Zero(t, h.age(now))
	require.Equal(t, "loader redis request unknown", FromLoader.String()+" "+FromRedis.String()+" "+FromRequest.String()+" "+Source(99).String())
}

// A version, or another codec, never meets the values of another one.
func TestAnotherVersionOrCodecIsAMissAndNeverAWrongValue(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	type newer struct{ ID string }
	old := NewView[string, user](c, "v", ViewConfig{})
	require.NoError(t, old.Set(t.Context(), "k", user{ID: 7, Name: "Ada"}))
	_, err := NewView[string, newer](c, "v", ViewConfig{Version: "2"}).Get(t.Context(), "k")
	require.Equal(t, ErrMiss, err)
	require.Zero(t, c.Stats().DecodeErrors)

	same := NewView[string, newer](c, "v", ViewConfig{}) // the version was forgotten
	_, err = same.Get(t.Context(), "k")
	require.Equal(t, ErrMiss, err)
	require.EqualValues(t, 1, c.Stats().DecodeErrors)
	got, err := same.Fetch(t.Context(), "k", func(context.Context, string) (newer, error) { return newer{"7"}, nil })
	require.NoError(t, err)
	require.Equal(t, newer{"7"}, got)
	_, err = old.Get(t.Context(), "k")
	require.Equal(t, ErrMiss, err)

	binary := NewView[string, time.Time](c, "time", ViewConfig{Codec: Binary})
	require.NoError(t, binary.Set(t.Context(), "k", time.Unix(1e9, 0)))
	_, err = NewView[string, time.Time](c, "time", ViewConfig{}).Get(t.Context(), "k")
	require.Equal(t, ErrMiss, err)
}
