package cache

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
)

// An expired value serves until the next Fetch has refreshed it, in views of all kinds.
func TestExpireKeepsTheValueUntilItIsRefreshed(t *testing.T) {
	long := strings.Repeat("long ", 200)
	for name, cfg := range map[string]ViewConfig{"header": {}, "plain": {Plain: true}, "raw": {Plain: true, Codec: Raw}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, rdb := newServer(t)
				c := newClient(t, rdb, Config{})
				v := NewView[string, string](c, "v", cfg)
				there := NewView[string, string](newClient(t, s.Client(t), Config{}), "v", cfg)
				for _, old := range []string{"", "old", "\xc1", long} {
					if name == "header" {
						old = strings.ToValidUTF8(old, "")
					}
					require.NoError(t, v.Set(t.Context(), "k", old, TTL(time.Hour)))
					require.NoError(t, v.Expire(t.Context(), "k", "missing"))
					require.NoError(t, v.Expire(t.Context(), "k"), "twice is harmless")
					require.Greater(t, rdb.PTTL(t.Context(), v.prefix+"k").Val(), 53*time.Minute)
					_, err := v.Get(t.Context(), "k")
					require.Equal(t, ErrMiss, err)
					for _, reader := range []*View[string, string]{there, v} {
						e, err := reader.Lookup(t.Context(), "k")
						require.NoError(t, err)
						require.Equal(t, decodedAs(cfg, old), e.Value)
						require.True(t, e.Stale)
						require.Equal(t, FromRedis, e.Source)
					}
					got, err := there.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "new", nil })
					require.NoError(t, err)
					require.Equal(t, decodedAs(cfg, old), got)
					synctest.Wait()
					got, err = v.Get(t.Context(), "k")
					require.NoError(t, err)
					require.Equal(t, "new", got)
				}
				require.EqualValues(t, 8, c.Stats().Expires)
			})
		})
	}
}

// decodedAs is what a view makes of value: JSON replaces what is no UTF-8.
func decodedAs(cfg ViewConfig, value string) string {
	if cfg.Codec == nil {
		return strings.ToValidUTF8(value, "\uFFFD")
	}
	return value
}

func TestExpireByWhatStandsInTheKey(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx, c := t.Context(), newClient(t, rdb, Config{})
		headed := NewView[string, string](c, "v", ViewConfig{Codec: Raw})
		plain := NewView[string, string](c, "v", ViewConfig{Codec: Raw, Plain: true, TTL: time.Minute})
		key := headed.prefix + "k"
		expired := fullHeader
		expired.softExpiry, expired.refreshUntil, expired.refreshToken = 1, 0, token{}
		given := header{flags: flagPlain, softExpiry: 1}
		frame := "\xc1\x10\x00\x00\x00\x00\x00\x01\xc1"
		for _, test := range []struct {
			name       string
			held       []byte
			view, want string // "" : gone
			n          uint64
		}{
			{"a lease", newLease(), "both", "", 0},
			{"an absence", appendEntry(nil, entry{kind: kindAbsence}), "both", "", 0},
			{"an error", appendEntry(nil, entry{kind: kindError, body: []byte("down")}), "both", "", 0},
			{"a tombstone", []byte("\xc1\x14"), "both", "\xc1\x14", 0},
			{"what nobody knows", []byte("\xc1\x7fx"), "both", "\xc1\x7fx", 0},
			{"half a value", []byte("\xc1\x11\x00"), "both", "\xc1\x11\x00", 0},
			{"a value", appendEntry(nil, entry{kind: kindValue, header: fullHeader, body: []byte("b")}), "both", string(appendEntry(nil, entry{kind: kindValue, header: expired, body: []byte("b")})), 1},
			{"plain, and the view is not", []byte("plain"), "headed", "plain", 0},
			{"plain", []byte("plain"), "plain", string(appendEntry(nil, entry{kind: kindValue, header: given, body: []byte("plain")})), 1},
			{"plain and empty", []byte{}, "plain", string(appendEntry(nil, entry{kind: kindValue, header: given})), 1},
			{"a frame", []byte(frame), "plain", string(appendEntry(nil, entry{kind: kindValue, header: given, body: []byte(frame)})), 1},
		} {
			for name, v := range map[string]*View[string, string]{"headed": headed, "plain": plain} {
				if test.view != "both" && test.view != name {
					continue
				}
				require.NoError(t, rdb.Set(ctx, key, test.held, time.Hour).Err())
				before := c.Stats().Expires
				require.NoError(t, v.Expire(ctx, "k"), test.name)
				require.Equal(t, test.n, c.Stats().Expires-before, test.name)
				require.Equal(t, test.want, rdb.Get(ctx, key).Val(), test.name)
				if test.want != "" {
					require.Greater(t, rdb.PTTL(ctx, key).Val(), 50*time.Minute, "%s: the TTL stays", test.name)
				}
			}
		}
		require.NoError(t, rdb.Set(ctx, key, "foreign", 0).Err())
		require.NoError(t, plain.Expire(ctx, "k"))
		stored(t, rdb, key, time.Minute) // what had no TTL gets one

		require.NoError(t, rdb.Del(ctx, key).Err())
		require.NoError(t, rdb.LPush(ctx, key, "x").Err())
		require.ErrorContains(t, headed.Expire(ctx, "k"), `cache: expire "v:k": WRONGTYPE`)
		require.ErrorContains(t, headed.Expire(ctx, "k", "l"), `cache: expire: 1 of 2 keys, first "v:k": WRONGTYPE`)
		require.NoError(t, headed.Expire(ctx))
	})
}

func TestALoadThatExpireOvertookIsNotStored(t *testing.T) {
	for _, elsewhere := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, rdb := newServer(t)
			c := newClient(t, rdb, Config{})
			v := NewView[string, string](c, "v", ViewConfig{})
			writer := v
			if elsewhere {
				writer = NewView[string, string](newClient(t, s.Client(t), Config{}), "v", ViewConfig{})
			}
			src := newSource("too old")
			first := goFetch(t.Context(), v, "k", src.load)
			<-src.began
			require.NoError(t, writer.Expire(t.Context(), "k"))
			later := goFetch(t.Context(), v, "k", func(context.Context, string) (string, error) { return "new", nil })
			synctest.Wait()
			close(src.release)
			require.Equal(t, fetched[string]{"too old", nil}, <-first, "it came before")
			require.Equal(t, fetched[string]{"new", nil}, <-later)
			require.EqualValues(t, 1, c.Stats().FillsRefused)
		})
	}
}
