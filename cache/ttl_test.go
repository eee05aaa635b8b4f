package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
)

// expiring requires that no key with one of these prefixes stays for ever.
func expiring(t *testing.T, rdb redis.UniversalClient, prefixes ...string) {
	t.Helper()
	keys, err := rdb.Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	for _, key := range keys {
		if !slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) }) {
			continue
		}
		ttl, err := rdb.PTTL(t.Context(), key).Result()
		require.NoError(t, err)
		require.NotEqual(t, time.Duration(-1), ttl, "%s has no TTL", key)
		require.LessOrEqual(t, ttl, 2*max(minGenerationTTL, time.Hour+10*time.Second), key)
	}
}

// Whatever operation has been at a key, and whatever it has come to.
func TestNoKeyIsWithoutTTL(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		ctx := t.Context()
		names := 0
		for _, cfg := range []ViewConfig{{}, {Tags: true}, {Plain: true}, {StaleFor: time.Minute}, {Tags: true, StaleFor: time.Minute}, {TTL: time.Millisecond, AbsentTTL: time.Millisecond, ErrorTTL: time.Millisecond, StaleFor: time.Hour}} {
			names++
			name := fmt.Sprint("ttl-", names)
			v := NewView[string, string](c, name, cfg)
			lease := newLease()
			before := map[string]func(key string) error{
				"nothing": func(string) error { return nil },
				"value":   func(key string) error { return v.Set(ctx, key, "value") },
				"absence": func(key string) error {
					_, err := v.Fetch(ctx, key, func(context.Context, string) (string, error) { return "", ErrNotFound })
					return quiet(err)
				},
				"error": func(key string) error {
					_, err := v.Fetch(ctx, key, func(context.Context, string) (string, error) { return "", errInjected })
					return quiet(err)
				},
				"lease":     func(key string) error { _, _, err := c.acquire(ctx, v.prefix+key, lease, time.Minute, ""); return err },
				"tombstone": func(key string) error { return v.DeleteFor(ctx, time.Minute, key) },
				"stale":     func(key string) error { return errors.Join(v.Set(ctx, key, "value"), v.Expire(ctx, key)) },
				"refreshed": func(key string) error {
					err := errors.Join(v.Set(ctx, key, "value"), v.Expire(ctx, key))
					held, _ := rdb.Get(ctx, v.prefix+key).Bytes()
					if e, wrong := parseEntry(held); wrong == nil {
						_, refused := c.refresh(ctx, v.prefix+key, lease, &e.header, time.Minute)
						err = errors.Join(err, refused)
					}
					return err
				},
			}
			after := map[string]func(key string) error{
				"Set":       func(key string) error { return v.Set(ctx, key, "value", TTL(time.Millisecond+time.Microsecond)) },
				"SetMany":   func(key string) error { return v.SetMany(ctx, map[string]string{key: "value"}) },
				"Add":       func(key string) error { _, err := v.Add(ctx, key, "value"); return err },
				"Replace":   func(key string) error { _, err := v.Replace(ctx, key, "value"); return err },
				"Delete":    func(key string) error { return v.Delete(ctx, key) },
				"DeleteFor": func(key string) error { return v.DeleteFor(ctx, time.Hour, key) },
				"Expire":    func(key string) error { return v.Expire(ctx, key) },
				"FILL":      func(key string) error { _, err := c.fill(ctx, v.prefix+key, lease, []byte("value"), 1000); return err },
				"RELEASE":   func(key string) error { _, err := c.release(ctx, v.prefix+key, lease, time.Minute); return err },
				"ACQUIRE":   func(key string) error { _, _, err := c.acquire(ctx, v.prefix+key, lease, time.Minute, ""); return err },
				"FetchMany": func(key string) error {
					fleeting, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
					defer cancel()
					_, err := v.FetchMany(fleeting, []string{key, key + "too"}, func(context.Context, []string) (map[string]string, error) {
						return map[string]string{key: "value"}, nil
					})
					return quiet(err)
				},
				"failing": func(key string) error {
					fleeting, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
					defer cancel()
					_, err := v.FetchEntry(fleeting, key, func(context.Context, string) (Entry[string], error) { return Entry[string]{}, errInjected })
					return quiet(err)
				},
			}
			for was, prepare := range before {
				for op, do := range after {
					key := was + op
					require.NoError(t, prepare(key), "%s: %s", name, key)
					require.NoError(t, do(key), "%s: %s", name, key)
				}
			}
			if cfg.Tags {
				require.NoError(t, v.InvalidateTags(ctx, "a", "b"))
				require.NoError(t, v.Set(ctx, "k", "value", Tags("b", "c")))
			}
			expiring(t, rdb, v.prefix, v.generationKey)
			require.NoError(t, v.Clear(ctx))
			expiring(t, rdb, v.prefix, v.generationKey)
		}
	})
}

// quiet is nil for an error that a test has caused.
func quiet(err error) error {
	if err == nil || errors.Is(err, ErrNotFound) || expected(err) {
		return nil
	}
	return err
}
