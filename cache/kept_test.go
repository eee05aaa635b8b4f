package cache

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// In an outage the source gets a load for each key and two seconds.
func TestWhatIsLoadedInAnOutageServesForTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, user](c, "v", ViewConfig{})
		raw := NewView[string, []byte](c, "raw", ViewConfig{Codec: Raw})
		s.Stop()
		want := user{ID: 1, Tags: []string{"a"}}
		_, err := v.Fetch(t.Context(), "k", func(context.Context, string) (user, error) { return want, nil })
		require.NoError(t, err)
		_, err = v.Fetch(t.Context(), "absent", func(context.Context, string) (user, error) { return user{}, ErrNotFound })
		require.Equal(t, ErrNotFound, err)
		_, err = raw.Fetch(t.Context(), "k", func(context.Context, string) ([]byte, error) { return []byte("raw"), nil })
		require.NoError(t, err)
		time.Sleep(keepFor - 1)
		got, err := v.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, want, got)
		got.Tags[0] = "changed"
		got, err = v.Fetch(t.Context(), "k", noLoad[string, user](t))
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.NoError(t, v.GetInto(t.Context(), "k", &got))
		require.Equal(t, want, got)
		_, err = v.Fetch(t.Context(), "absent", noLoad[string, user](t))
		require.Equal(t, ErrNotFound, err)
		many := v.GetMany(t.Context(), []string{"k", "absent", "other"})
		require.Equal(t, []Result[user]{{Value: want}, {Err: ErrNotFound}}, many[:2])
		require.ErrorContains(t, many[2].Err, `cache: get "v:other": `)
		b, err := raw.Get(t.Context(), "k")
		require.NoError(t, err)
		b[0] = 'X'
		b, err = raw.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "raw", string(b))
		require.EqualValues(t, 8, c.Stats().OutageHits)

		time.Sleep(1 * time.Nanosecond)
		_, err = v.Get(t.Context(), "k")
		require.Error(t, err)
		loaded := false
		_, err = v.Fetch(t.Context(), "k", func(context.Context, string) (user, error) { loaded = true; return want, nil })
		require.NoError(t, err)
		require.True(t, loaded)
	})
}

func TestWhatCannotBeStoredIsNotKeptEither(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{MaxValueBytes: 10, AbsentTTL: -1})
		brief := NewView[string, string](c, "brief", ViewConfig{TTL: time.Second})
		s.Stop()
		for _, load := range []func(context.Context, string) (string, error){
			func(context.Context, string) (string, error) { return "", ErrNotFound },
			func(context.Context, string) (string, error) { return "", errInjected },
			func(context.Context, string) (string, error) { return strings.Repeat("x", 11), nil },
		} {
			_, _ = v.Fetch(t.Context(), "k", load)
			_, err := v.Get(t.Context(), "k")
			require.Error(t, err)
			require.NotErrorIs(t, err, ErrNotFound)
		}
		_, err := brief.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "", nil })
		require.NoError(t, err)
		time.Sleep(time.Second)
		_, err = brief.Get(t.Context(), "k")
		require.Error(t, err, "no longer than its TTL")
		require.Zero(t, c.Stats().OutageHits)
	})
}

func TestNothingIsKeptAcrossAnOwnWriteOrARecovery(t *testing.T) {
	for name, do := range map[string]func(ctx context.Context, v *View[string, string]) error{
		"Delete":    func(ctx context.Context, v *View[string, string]) error { return v.Delete(ctx, "other", "k") },
		"DeleteFor": func(ctx context.Context, v *View[string, string]) error { return v.DeleteFor(ctx, time.Second, "k") },
		"Set":       func(ctx context.Context, v *View[string, string]) error { return v.Set(ctx, "k", "") },
		"SetMany": func(ctx context.Context, v *View[string, string]) error {
			return v.SetMany(ctx, map[string]string{"k": ""})
		},
		"Add": func(ctx context.Context, v *View[string, string]) error { _, err := v.Add(ctx, "k", ""); return err },
		"Replace": func(ctx context.Context, v *View[string, string]) error {
			_, err := v.Replace(ctx, "k", "")
			return err
		},
		"": nil, // Redis answers in between
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, rdb := newServer(t)
				v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
				s.Stop()
				change := func() {
					if do != nil {
						require.Error(t, do(t.Context(), v))
						return
					}
					require.NoError(t, s.Restart())
					_, err := v.Get(t.Context(), "another key")
					require.Equal(t, ErrMiss, err)
					s.Stop()
				}
				_, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "old", nil })
				require.NoError(t, err)
				change()
				_, err = v.Get(t.Context(), "k")
				require.Error(t, err)

				src := newSource("old") // and while it is loaded
				call := goFetch(t.Context(), v, "k", src.load)
				<-src.began
				change()
				close(src.release)
				require.Equal(t, fetched[string]{"old", nil}, <-call, "it came before")
				_, err = v.Get(t.Context(), "k")
				require.Error(t, err)
				got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "new", nil })
				require.NoError(t, err)
				require.Equal(t, "new", got)
				got, err = v.Get(t.Context(), "k")
				require.NoError(t, err)
				require.Equal(t, "new", got)
			})
		})
	}
}

// Views of one name are one, however many there are in a process.
func TestWhatIsKeptIsDroppedByAWriteThroughAnotherViewOfTheName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v, w := NewView[string, string](c, "v", ViewConfig{}), NewView[string, string](c, "v", ViewConfig{})
		apart := NewView[string, string](c, "v", ViewConfig{Version: "2"})
		s.Stop()
		old := func(context.Context, string) (string, error) { return "old", nil }
		for _, v := range []*View[string, string]{v, apart} {
			_, err := v.Fetch(t.Context(), "k", old)
			require.NoError(t, err)
		}
		got, err := w.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "old", got)
		require.Error(t, w.Delete(t.Context(), "k"))
		_, err = v.Get(t.Context(), "k")
		require.ErrorIs(t, err, errOwed)
		_, err = apart.Get(t.Context(), "k")
		require.NoError(t, err)

		first, second := newSource("old"), newSource("old") // of two views, at a time
		one, other := goFetch(t.Context(), v, "l", first.load), goFetch(t.Context(), w, "l", second.load)
		<-first.began
		<-second.began
		require.Error(t, w.Delete(t.Context(), "l"))
		close(second.release)
		require.Equal(t, fetched[string]{"old", nil}, <-other)
		close(first.release)
		require.Equal(t, fetched[string]{"old", nil}, <-one)
		_, err = v.Get(t.Context(), "l")
		require.ErrorIs(t, err, errOwed)
		require.Empty(t, v.outage.loads)
	})
}

func TestWhatIsKeptIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		o, other := newOutage(c), newOutage(c)
		keep := func(o *outage, key string, n int, ttl time.Duration) bool {
			o.end(key, o.begin(key), make([]byte, n), ttl)
			_, ok := o.recall(key)
			return ok
		}
		require.True(t, keep(other, "k", 10, time.Second))
		kept := 0
		for i := range 100 {
			if keep(o, fmt.Sprint(i), 1<<20, time.Second) {
				kept++
			}
		}
		require.Equal(t, 31, kept)
		require.True(t, keep(o, "0", 1<<20, time.Second), "in place of itself")
		require.False(t, keep(other, "l", 1<<20, time.Second), "the bound is that of all views")
		require.LessOrEqual(t, c.keptBytes.Load(), int64(maxKeptBytes))
		time.Sleep(time.Second)
		require.True(t, keep(o, "new", 1<<20, time.Second), "what has expired makes room")
		require.Len(t, o.kept, 1)
		o.answered("any")
		other.answered("any")
		require.Zero(t, c.keptBytes.Load())
		require.Zero(t, o.n.Load())
		require.Zero(t, other.n.Load())
	})
}

// On a Cluster one node's answer says nothing about the others.
func TestANodesAnswerDropsItsKeyAlone(t *testing.T) {
	_, rdb := newServer(t)
	o := newOutage(newClient(t, rdb, Config{}))
	o.byKey = true
	for _, key := range []string{"a", "b"} {
		o.end(key, o.begin(key), nil, time.Minute)
	}
	o.answered("a")
	_, ok := o.recall("a")
	require.False(t, ok)
	_, ok = o.recall("b")
	require.True(t, ok)
}
