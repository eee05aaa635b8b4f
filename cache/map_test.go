package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
)

func TestAMapHoldsStateForItsTime(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{Namespace: "ns", Name: "flows"})
		m := NewMap[int, user](c, "login", MapConfig{TTL: time.Hour})
		ctx, key := t.Context(), "ns:map.flows:login:7"
		near := func(want time.Duration) {
			require.InDelta(t, want, rdb.PTTL(ctx, key).Val(), float64(time.Minute))
		}
		ada, grace := user{ID: 1, Name: "Ada"}, user{ID: 2, Name: "Grace"}
		_, err := m.Get(ctx, 7)
		require.Equal(t, ErrMiss, err)
		require.NoError(t, m.Set(ctx, 7, ada))
		require.Equal(t, `{"ID":1,"Name":"Ada"}`, rdb.Get(ctx, key).Val())
		near(time.Hour)
		require.Greater(t, rdb.PTTL(ctx, key).Val(), 59*time.Minute, "the whole TTL")
		got, err := m.Get(ctx, 7)
		require.NoError(t, err)
		require.Equal(t, ada, got)
		require.NoError(t, m.Set(ctx, 7, ada, TTL(2*time.Hour)))
		near(2 * time.Hour)

		added, err := m.Add(ctx, 7, grace)
		require.NoError(t, err)
		require.False(t, added)
		near(2 * time.Hour)
		require.NoError(t, m.Delete(ctx, 7))
		require.NoError(t, m.Delete(ctx, 7))
		added, err = m.Add(ctx, 7, grace, TTL(3*time.Hour))
		require.NoError(t, err)
		require.True(t, added)
		near(3 * time.Hour)

		rename := func(name string) func(user) (user, error) {
			return func(u user) (user, error) { u.Name += name; return u, nil }
		}
		got, err = m.Update(ctx, 7, rename(" H."))
		require.NoError(t, err)
		require.Equal(t, user{ID: 2, Name: "Grace H."}, got)
		near(3 * time.Hour)
		got, err = m.Update(ctx, 7, rename("!"), TTL(4*time.Hour))
		require.NoError(t, err)
		require.Equal(t, user{ID: 2, Name: "Grace H.!"}, got)
		near(4 * time.Hour)
		_, err = m.Update(ctx, 7, func(user) (user, error) { return ada, errInjected })
		require.Equal(t, errInjected, err)
		_, err = m.Update(ctx, 8, rename(""))
		require.Equal(t, ErrMiss, err)

		taken, err := m.Take(ctx, 7)
		require.NoError(t, err)
		require.Equal(t, got, taken)
		_, err = m.Take(ctx, 7)
		require.Equal(t, ErrMiss, err)
		require.Zero(t, rdb.DBSize(ctx).Val())

		// What does not decode, and what is no string.
		require.NoError(t, rdb.Set(ctx, key, "{", time.Hour).Err())
		_, err = m.Get(ctx, 7)
		require.Equal(t, ErrMiss, err)
		_, err = m.Update(ctx, 7, rename(""))
		require.Equal(t, ErrMiss, err)
		for e, err := range m.All(ctx) {
			t.Errorf("%v, %v", e, err)
		}
		_, err = m.Take(ctx, 7)
		require.Equal(t, ErrMiss, err)
		require.EqualValues(t, 4, c.Stats().DecodeErrors)
		require.NoError(t, rdb.LPush(ctx, key, "x").Err())
		_, err = m.Get(ctx, 7)
		require.Equal(t, ErrMiss, err)
		_, err = m.Take(ctx, 7)
		require.ErrorContains(t, err, `cache: map "login": take: WRONGTYPE`)
		added, err = m.Add(ctx, 7, ada)
		require.NoError(t, err)
		require.False(t, added)
		require.NoError(t, m.Set(ctx, 7, ada))
		got, err = m.Get(ctx, 7)
		require.NoError(t, err)
		require.Equal(t, ada, got)
	})
}

func TestTheScriptOfUpdates(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		run := func(value, was string, ttl any) int {
			n, err := c.run(t.Context(), updateScript, "k", value, shaOf([]byte(was)), ttl).Int()
			require.NoError(t, err)
			return n
		}
		require.Equal(t, 0, run("new", "", ""))
		require.Zero(t, rdb.Exists(t.Context(), "k").Val())
		require.NoError(t, rdb.Set(t.Context(), "k", "old", time.Hour).Err())
		require.Equal(t, 0, run("new", "older", ""))
		require.Equal(t, "old", rdb.Get(t.Context(), "k").Val())
		require.Equal(t, 1, run("new", "old", ""))
		require.Equal(t, "new", stored(t, rdb, "k", time.Hour))
		require.Equal(t, 1, run("newer", "new", time.Minute.Milliseconds()))
		require.Equal(t, "newer", stored(t, rdb, "k", time.Minute))
	})
}

// What may be used once is used once, however many come for it.
func TestOneOfManyTakesOrAdds(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		m := NewMap[string, int](c, "m", MapConfig{})
		var took, added, approved atomic.Int64
		var wg sync.WaitGroup
		require.NoError(t, m.Set(t.Context(), "state", 1))
		require.NoError(t, m.Set(t.Context(), "flow", 0))
		require.NoError(t, m.Set(t.Context(), "count", 0))
		for i := range 30 {
			wg.Go(func() {
				if _, err := m.Take(t.Context(), "state"); err == nil {
					took.Add(1)
				}
				if ok, err := m.Add(t.Context(), "assertion", 1); err == nil && ok {
					added.Add(1)
				}
				if _, err := m.Update(t.Context(), "flow", func(user int) (int, error) {
					if user != 0 {
						return 0, errInjected
					}
					return i + 1, nil
				}); err == nil {
					approved.Add(1)
				}
				if _, err := m.Update(t.Context(), "count", func(n int) (int, error) { return n + 1, nil }); err != nil {
					t.Errorf("Update: %v", err)
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, []int64{1, 1, 1}, []int64{took.Load(), added.Load(), approved.Load()})
		n, err := m.Get(t.Context(), "count")
		require.NoError(t, err)
		require.Equal(t, 30, n)
	})
}

func TestAnUpdateThatNeverSucceedsEnds(t *testing.T) {
	_, rdb := newServer(t)
	m := NewMap[string, int](newClient(t, rdb, Config{}), "m", MapConfig{})
	require.NoError(t, m.Set(t.Context(), "k", 0))
	calls := 0
	_, err := m.Update(t.Context(), "k", func(n int) (int, error) {
		calls++
		require.NoError(t, m.Set(t.Context(), "k", n+1))
		return 0, nil
	})
	require.EqualError(t, err, `cache: map "m": update: others have changed the value 100 times meanwhile: try again`)
	require.Equal(t, 100, calls)
}

func TestTheEntriesOfAMapAreGoneThrough(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		m, other := NewMap[int64, string](c, "m", MapConfig{Codec: Raw}), NewMap[int64, string](c, "m2", MapConfig{Codec: Raw})
		want := make(map[int64]string)
		n := inSlowLua(t, 100, 3*scanPage)
		for i := range int64(n) {
			want[i-50] = fmt.Sprint("value ", i)
			require.NoError(t, m.Set(t.Context(), i-50, want[i-50]))
		}
		require.NoError(t, other.Set(t.Context(), 1, "another map's"))
		require.NoError(t, rdb.Set(t.Context(), m.prefix+"no number", "x", time.Hour).Err())
		got := make(map[int64]string)
		for e, err := range m.All(t.Context()) {
			require.NoError(t, err)
			got[e.Key] = e.Value
		}
		require.Equal(t, want, got)
		seen := 0
		for range m.All(t.Context()) {
			if seen++; seen == 3 {
				break
			}
		}
		require.Equal(t, 3, seen)

		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		seen = 0
		var last error
		for e, err := range m.All(ctx) {
			if last = err; err != nil {
				require.Zero(t, e)
				continue
			}
			seen++
			cancel(errInjected)
		}
		if n > scanPage {
			require.ErrorIs(t, last, errInjected)
			require.Less(t, seen, n)
		}
	})
}

// A reply that is lost leaves open what happened, and nothing is tried twice.
func TestALostReplyOfAMapIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newServer(t)
		c := newClient(t, newOwn(t, s), Config{})
		m := NewMap[string, int](c, "m", MapConfig{})
		require.NoError(t, m.Set(t.Context(), "k", 1))
		s.CutReplies(1, "GETDEL")
		_, err := m.Take(t.Context(), "k")
		require.ErrorContains(t, err, "outcome unknown")
		_, err = m.Take(t.Context(), "k")
		require.Equal(t, ErrMiss, err, "it was taken")
		s.CutReplies(1, "SET")
		added, err := m.Add(t.Context(), "k", 1)
		require.ErrorContains(t, err, "outcome unknown")
		require.False(t, added)
		s.CutReplies(1, "SET")
		require.NoError(t, m.Set(t.Context(), "k", 2), "which may be repeated")
	})
}

func TestAMapRefusesWhatMakesNoSense(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	uses := func(m *Map[string, string], ctx context.Context, key string, opts ...SetOption) []error {
		_, get := m.Get(ctx, key)
		_, take := m.Take(ctx, key)
		_, add := m.Add(ctx, key, "", opts...)
		_, update := m.Update(ctx, key, func(s string) (string, error) { return s, nil }, opts...)
		return []error{get, take, m.Delete(ctx, key), m.Set(ctx, key, "", opts...), add, update}
	}
	all := func(m *Map[string, string], ctx context.Context) error {
		for _, err := range m.All(ctx) {
			return err
		}
		return errors.New("nothing")
	}
	m := NewMap[string, string](c, "m", MapConfig{MaxValueBytes: 10})
	for _, key := range []string{"", strings.Repeat("k", 8193)} {
		for i, err := range uses(m, t.Context(), key) {
			op := []string{"get", "take", "delete", "set", "add", "update"}[i]
			require.EqualError(t, err, fmt.Sprintf(`cache: map "m": %s: the key has %d bytes, want 1 to 8192`, op, len(key)))
		}
	}
	require.EqualError(t, m.Set(t.Context(), "k", "too long"+"!"), `cache: map "m": set: the value has 11 bytes, want at most 10: raise MapConfig.MaxValueBytes or store less`)
	require.EqualError(t, m.Set(t.Context(), "k", "", TTL(0)), `cache: map "m": set: TTL is 0s, want 1ms to 876000h0m0s`)
	require.EqualError(t, m.Set(t.Context(), "k", "", Tags("t")), `cache: map "m": set: tags are given, which views have`)
	require.Zero(t, rdb.DBSize(t.Context()).Val())
	bad := NewMap[string, string](c, "m m", MapConfig{TTL: -1, MaxValueBytes: -1, Codec: Binary})
	for _, err := range append(uses(bad, t.Context(), "k"), all(bad, t.Context())) {
		require.EqualError(t, err, strings.Join([]string{
			`cache: map "m m": TTL is -1ns, want 1ms to 876000h0m0s, or 0 for the cache's`,
			`MaxValueBytes is -1, want 1 to 536870912, or 0 for 1048576`,
			`Codec is Binary, and *string lacks AppendBinary (or MarshalBinary) or UnmarshalBinary: add them, or leave it for JSON`,
			`the name is "m m", want letters, digits, _ and - only`,
		}, "\n"))
	}
	for _, err := range append(uses(m, nil, "k"), all(m, nil)) {
		require.ErrorContains(t, err, "nil context: pass context.Background() or the request's")
	}
	none := NewMap[string, string](nil, "m", MapConfig{})
	for _, err := range append(uses(none, t.Context(), "k"), all(none, t.Context())) {
		require.EqualError(t, err, `cache: map "m": nil Client: pass what New returned`)
	}
	require.EqualError(t, NewMap[string, func()](c, "f", MapConfig{}).Set(t.Context(), "k", nil), `cache: map "f": set: encode: json: unsupported type: func()`)
	require.NoError(t, c.Close())
	for _, err := range append(uses(m, t.Context(), "k"), all(m, t.Context())) {
		require.ErrorIs(t, err, ErrClosed)
	}
}
