package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// By HSETEX, and by HSET and HPEXPIRE on a server that is older.
func TestTheFieldsOfAHashHaveTheirOwnTTL(t *testing.T) {
	redistest.RequireVersion(t, "8.0")
	for _, older := range []bool{false, true} {
		t.Run(fmt.Sprintf("older %t", older), func(t *testing.T) {
			rdb := redistest.Shared(t).Client(t)
			require.NoError(t, rdb.FlushAll(t.Context()).Err())
			c := newClient(t, rdb, Config{})
			c.lacksHSetEx.Store(older)
			aHashWithTTLs(t, c, rdb)
			require.Equal(t, older, strings.Contains(rdb.Info(t.Context(), "commandstats").Val(), "cmdstat_hpexpire:"))
		})
	}
}

func aHashWithTTLs(t *testing.T, c *Client, rdb redis.UniversalClient) {
	ctx, key := t.Context(), "redisha:hash:devices:7"
	h := NewHash[int, user](c, "devices", MapConfig{TTL: time.Hour})
	ada, grace := user{ID: 1, Name: "Ada"}, user{ID: 2, Name: "Grace"}
	near := func(field string, want time.Duration) {
		ms, err := rdb.HPTTL(ctx, key, field).Result()
		require.NoError(t, err)
		require.InDelta(t, want.Milliseconds(), ms[0], 60_000)
	}
	all, err := h.All(ctx, 7)
	require.NoError(t, err)
	require.Equal(t, map[string]user{}, all)
	_, err = h.Get(ctx, 7, "phone")
	require.Equal(t, ErrMiss, err)
	require.NoError(t, h.Set(ctx, 7, "phone", ada))
	require.NoError(t, h.Set(ctx, 7, "tablet", grace, TTL(2*time.Hour)))
	near("phone", time.Hour)
	near("tablet", 2*time.Hour)
	require.NoError(t, h.Set(ctx, 7, "phone", grace, TTL(3*time.Hour)))
	near("phone", 3*time.Hour)
	near("tablet", 2*time.Hour)
	got, err := h.Get(ctx, 7, "phone")
	require.NoError(t, err)
	require.Equal(t, grace, got)
	require.Equal(t, `{"ID":2,"Name":"Grace"}`, rdb.HGet(ctx, key, "phone").Val())
	require.NoError(t, rdb.HSet(ctx, key, "foreign", "{").Err())
	all, err = h.All(ctx, 7)
	require.NoError(t, err)
	require.Equal(t, map[string]user{"phone": grace, "tablet": grace}, all)
	_, err = h.Get(ctx, 7, "foreign")
	require.Equal(t, ErrMiss, err)
	require.EqualValues(t, 2, c.Stats().DecodeErrors)
	require.NoError(t, h.Delete(ctx, 7))
	require.NoError(t, h.Delete(ctx, 7, "foreign", "tablet", "never there"))
	require.NoError(t, h.Set(ctx, 7, "phone", ada, TTL(20*time.Millisecond)))
	require.Eventually(t, func() bool { return rdb.Exists(ctx, key).Val() == 0 }, time.Minute, time.Millisecond, "the hash goes with its last field")

	require.NoError(t, rdb.Set(ctx, key, "x", 0).Err())
	require.ErrorContains(t, h.Set(ctx, 7, "phone", ada), "WRONGTYPE")
	_, err = h.Get(ctx, 7, "phone")
	require.ErrorContains(t, err, "WRONGTYPE")
	_, err = h.All(ctx, 7)
	require.ErrorContains(t, err, "WRONGTYPE")
	require.ErrorContains(t, h.Delete(ctx, 7, "phone"), "WRONGTYPE")
}

func TestAHashOnMiniredis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		h := NewHash[string, string](newClient(t, rdb, Config{}), "h", MapConfig{Codec: Raw})
		require.NoError(t, h.Set(t.Context(), "k", "f", "value"))
		got, err := h.Get(t.Context(), "k", "f")
		require.NoError(t, err)
		require.Equal(t, "value", got)
		require.Equal(t, time.Hour.Milliseconds(), rdb.HPTTL(t.Context(), h.prefix+"k", "f").Val()[0])
	})
}

// A server that is too old is told by the error, and nothing is stored without TTL.
func TestAServerWithoutTTLsOfFieldsIsToldByItsError(t *testing.T) {
	for name, rdb := range map[string]func(t *testing.T) redis.UniversalClient{
		"miniredis": func(t *testing.T) redis.UniversalClient {
			s, rdb := newServer(t) // it has no HPEXPIRE
			s.SetError("ERR unknown command 'HSETEX', with args beginning with: 'k' ", "HSETEX")
			return rdb
		},
		"redis": func(t *testing.T) redis.UniversalClient {
			s := redistest.Shared(t)
			if s.AtLeast("7.4") {
				t.Skipf("redis-server is %s, which has TTLs of fields", s.Version())
			}
			return s.Client(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			rdb := rdb(t)
			c := newClient(t, rdb, Config{})
			h := NewHash[string, string](c, "h", MapConfig{})
			for range 2 {
				err := h.Set(t.Context(), "secret", "f", "value")
				require.EqualError(t, err, `cache: hash "h": set: the server does not know TTLs of the fields of a hash (HPEXPIRE): use Redis 7.4 or Valkey 9.0 or later`)
				require.ErrorIs(t, err, errors.ErrUnsupported)
				var old *VersionError
				require.ErrorAs(t, err, &old)
				require.Equal(t, "Redis 7.4 or Valkey 9.0", old.Needs)
			}
			require.Zero(t, rdb.DBSize(t.Context()).Val())
			n, err := c.run(t.Context(), hashSetScript, h.prefix+"k", "f", "v", 1000).Int()
			require.NoError(t, err)
			require.Zero(t, n)
			require.NoError(t, rdb.HSet(t.Context(), h.prefix+"k", "f", `"by hand"`).Err())
			got, err := h.Get(t.Context(), "k", "f")
			require.NoError(t, err)
			require.Equal(t, "by hand", got)
		})
	}
}

func TestAHashRefusesWhatMakesNoSense(t *testing.T) {
	s, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	uses := func(h *Hash[string, string], ctx context.Context, key, field string) []error {
		_, get := h.Get(ctx, key, field)
		return []error{get, h.Set(ctx, key, field, ""), h.Delete(ctx, key, field)}
	}
	h := NewHash[string, string](c, "h", MapConfig{MaxValueBytes: 10})
	for _, long := range []string{"", strings.Repeat("k", 8193)} {
		for i, err := range uses(h, t.Context(), long, "f") {
			require.EqualError(t, err, fmt.Sprintf(`cache: hash "h": %s: the key has %d bytes, want 1 to 8192`, []string{"get", "set", "delete"}[i], len(long)))
		}
		for i, err := range uses(h, t.Context(), "k", long) {
			require.EqualError(t, err, fmt.Sprintf(`cache: hash "h": %s: the field has %d bytes, want 1 to 8192`, []string{"get", "set", "delete"}[i], len(long)))
		}
	}
	require.ErrorContains(t, h.Set(t.Context(), "k", "f", "too long!"), "the value has 11 bytes, want at most 10")
	require.ErrorContains(t, h.Set(t.Context(), "k", "f", "", TTL(time.Microsecond)), "TTL is 1µs, want 1ms to ")
	for _, err := range uses(NewHash[string, string](nil, "", MapConfig{}), t.Context(), "k", "f") {
		require.EqualError(t, err, "cache: hash \"\": nil Client: pass what New returned\nthe name is \"\", want letters, digits, _ and - only")
	}
	for _, err := range uses(h, nil, "k", "f") {
		require.ErrorContains(t, err, "nil context")
	}
	s.SetError("NOPERM no")
	_, err := h.All(t.Context(), "k")
	require.EqualError(t, err, `cache: hash "h": all: NOPERM no`)
	for i, err := range uses(h, t.Context(), "k", "f") {
		require.EqualError(t, err, fmt.Sprintf(`cache: hash "h": %s: NOPERM no`, []string{"get", "set", "delete"}[i]))
	}
	require.EqualValues(t, 4, c.Stats().Errors)
	require.NoError(t, c.Close())
	for _, err := range uses(h, t.Context(), "k", "f") {
		require.ErrorIs(t, err, ErrClosed)
	}
}
