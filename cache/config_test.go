package cache

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

func TestConfigErrorsNameTheFieldAndWhatItTakes(t *testing.T) {
	_, rdb := newServer(t)
	_, err := New(rdb, Config{Namespace: "my app", Name: "a.b", ReadTimeout: 1<<63 - 1, MaxFallbacks: -1, CloseTimeout: -time.Second})
	require.EqualError(t, err, strings.Join([]string{
		`cache: Namespace is "my app", want letters, digits and _-.:/ only`,
		`cache: Name is "a.b", want letters, digits, _ and - only`,
		`cache: ReadTimeout is 2562047h47m16.854775807s, want at most 1h0m0s, 0 for 250ms, or less than 0 for none`,
		`cache: MaxFallbacks is -1, want at least 1, or 0 for 64`,
		`cache: CloseTimeout is -1s, want more than 0, or 0 for 5s`,
	}, "\n"))
	_, err = New(nil, Config{})
	require.EqualError(t, err, "cache: nil client: pass a go-redis client or one that redisha.Open made")
	_, err = New((*redis.Client)(nil), Config{})
	require.EqualError(t, err, "cache: nil client: pass a go-redis client or one that redisha.Open made")
	ring := redis.NewRing(&redis.RingOptions{})
	t.Cleanup(func() { _ = ring.Close() })
	_, err = New(ring, Config{})
	require.ErrorContains(t, err, "cache: a redis.Ring ")
	_, err = New(rdb, Config{TTL: time.Microsecond})
	require.EqualError(t, err, "cache: TTL is 1µs, want at least 1ms, or 0 for 1h0m0s")
}

// The greatest values that are taken overflow nothing.
func TestTheGreatestSettingsWork(t *testing.T) {
	const longest = 1<<63 - 1
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{ReadTimeout: maxReadTimeout, MaxFallbacks: longest, CloseTimeout: longest, TTL: maxTTL})
	v := NewView[string, string](c, "v", ViewConfig{
		SoftLoadTimeout: longest, ErrorTTL: longest, AbsentTTL: longest, LoadTimeout: maxLoadTimeout,
		MaxValueBytes: maxMaxValue, LocalEntries: longest, LocalMaxAge: longest,
	})
	_, err := v.Get(t.Context(), "k")
	require.Equal(t, ErrMiss, err)
	got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) {
		lease := rdb.PTTL(t.Context(), "redisha:cache:v:k").Val()
		require.InDelta(t, maxLoadTimeout+maxReadTimeout, lease, float64(time.Minute))
		return "loaded", nil
	})
	require.NoError(t, err)
	require.Equal(t, "loaded", got)
	got, err = v.Get(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, "loaded", got)
	require.NoError(t, v.DeleteFor(t.Context(), longest, "k"))
	_, err = v.Get(t.Context(), "k")
	require.Equal(t, ErrMiss, err)
}

func TestAWrongViewIsReportedByEveryUse(t *testing.T) {
	_, rdb := newServer(t)
	v := NewView[string, user](newClient(t, rdb, Config{}), "us er", ViewConfig{
		TTL: 999 * time.Microsecond, AbsentTTL: time.Microsecond, LoadTimeout: -1, Version: "1.0", MaxValueBytes: -1,
		StaleFor: -1, SoftLoadTimeout: -1, ErrorTTL: time.Microsecond,
	})
	want := strings.Join([]string{
		`cache: view "us er": the name is "us er", want letters, digits, _ and - only`,
		`Version is "1.0", want letters, digits, _ and - only`,
		`TTL is 999µs, want at least 1ms, or 0 for the cache's`,
		`AbsentTTL is 1µs, want at least 1ms, 0 for 10s, or less than 0 for none`,
		`ErrorTTL is 1µs, want at least 1ms, 0 for 500ms, or less than 0 for none`,
		`StaleFor is -1ns, want at least 1ms, or 0 for none`,
		`SoftLoadTimeout is -1ns, want more than 0, or 0 for none`,
		`LoadTimeout is -1ns, want 1ms to 24h0m0s, or 0 for 10s`,
		`MaxValueBytes is -1, want 1 to 536870912, or 0 for 1048576`,
	}, "\n")
	for use, err := range useAll(t.Context(), v) {
		require.EqualError(t, err, want, use)
	}
	for use, err := range useAll(t.Context(), NewView[string, user](nil, "user", ViewConfig{})) {
		require.EqualError(t, err, `cache: view "user": nil Client: pass what New returned`, use)
	}
	c := newClient(t, rdb, Config{})
	_, err := NewView[string, user](c, "user", ViewConfig{StaleFor: time.Hour, Plain: true}).Get(t.Context(), "k")
	require.ErrorContains(t, err, "StaleFor is 1h0m0s, and Plain is set")
	_, err = NewView[string, user](c, "user", ViewConfig{TTL: time.Hour, StaleFor: maxTTL}).Get(t.Context(), "k")
	require.ErrorContains(t, err, "TTL and StaleFor are 876001h0m0s together, want at most 876000h0m0s")
}

// useAll calls every method of a view and returns their errors.
func useAll(ctx context.Context, v *View[string, user]) map[string]error {
	errs := make(map[string]error)
	_, errs["get"] = v.Get(ctx, "k")
	_, errs["lookup"] = v.Lookup(ctx, "k")
	errs["expire"] = v.Expire(ctx, "k")
	errs["set"] = v.Set(ctx, "k", user{})
	_, errs["add"] = v.Add(ctx, "k", user{})
	_, errs["replace"] = v.Replace(ctx, "k", user{})
	errs["delete"] = v.Delete(ctx, "k")
	_, errs["fetch"] = v.Fetch(ctx, "k", func(context.Context, string) (user, error) { return user{}, nil })
	return errs
}

func TestDefaultsOfAView(t *testing.T) {
	cfg := ViewConfig{}.withDefaults(Config{})
	require.NoError(t, cfg.validate("name"))
	require.Equal(t, ViewConfig{
		TTL: time.Hour, AbsentTTL: 10 * time.Second, ErrorTTL: 500 * time.Millisecond, LoadTimeout: 10 * time.Second, Codec: JSON, MaxValueBytes: 1 << 20, MinCompressBytes: 256,
		LocalMaxAge: 15 * time.Second,
	}, cfg)
	ofRole := ViewConfig{}.withDefaults(Config{TTL: time.Minute, MinCompressBytes: 99})
	require.Equal(t, time.Minute, ofRole.TTL)
	require.Equal(t, 99, ofRole.MinCompressBytes)
	role := Config{MinCompressBytes: -1}
	require.Equal(t, -1, ViewConfig{}.withDefaults(role).MinCompressBytes)
	require.Equal(t, 1, ViewConfig{MinCompressBytes: 1}.withDefaults(role).MinCompressBytes)
	require.Equal(t, time.Second, ViewConfig{TTL: time.Second}.withDefaults(Config{}).AbsentTTL, "an absence does not outlive a value")
}

func TestKeysSayWhoseTheyAre(t *testing.T) {
	_, rdb := newServer(t)
	for want, v := range map[string]*View[string, user]{
		"redisha:cache:user:k":       NewView[string, user](newClient(t, rdb, Config{}), "user", ViewConfig{}),
		"redisha:cache:user.v2:k":    NewView[string, user](newClient(t, rdb, Config{}), "user", ViewConfig{Version: "v2"}),
		"shop:eu:cache.axes:user:k":  NewView[string, user](newClient(t, rdb, Config{Namespace: "shop:eu", Name: "axes"}), "user", ViewConfig{}),
		"redisha:cache.axes:us-er:k": NewView[string, user](newClient(t, rdb, Config{Name: "axes"}), "us-er", ViewConfig{}),
	} {
		require.NoError(t, v.Set(t.Context(), "k", user{}))
		require.EqualValues(t, 1, rdb.Exists(t.Context(), want).Val(), want)
	}
}
