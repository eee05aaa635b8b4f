package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
)

// What each operation does while Redis is down, in each way of being so, and
// afterwards. The connection itself would wait for 20 s.
func TestWhenRedisIsDown(t *testing.T) {
	server := redistest.New(t, redistest.Config{Persist: true, Lines: []string{"key-load-delay 100", "appendfsync no"}})
	proxy := redistest.NewProxy(t, server.Addr())
	admin := server.Client(t)
	loaded := make(chan error, 1)
	for _, trouble := range []struct {
		name       string
		begin, end func() error
		reads      bool // are answered
		deletes    bool // are carried out
	}{
		{name: "full",
			begin: func() error { return admin.ConfigSet(t.Context(), "maxmemory", "1").Err() },
			end:   func() error { return admin.ConfigSet(t.Context(), "maxmemory", "0").Err() },
			reads: true, deletes: true},
		{name: "stopped", begin: server.Pause, end: server.Continue},
		{name: "unplugged: a black hole",
			begin: func() error { proxy.BlackHole(true); return nil },
			end:   func() error { proxy.BlackHole(false); proxy.Cut(); return nil }},
		{name: "killed",
			begin: func() error { server.Kill(); return nil },
			end:   func() error { return server.Restart(t.Context()) }},
		{name: "loading",
			begin: func() error {
				err := admin.Eval(t.Context(), `for i = 1, 50000 do redis.call("SET", "x" .. i, i) end return 1`, nil).Err()
				server.Kill()
				go func() { loaded <- server.Restart(context.Background()) }()
				return err
			},
			end: func() error { return <-loaded }},
	} {
		t.Run(trouble.name, func(t *testing.T) {
			ep, err := endpoint.Parse("redis://" + proxy.Addr() + "?read_timeout=20s&dial_timeout=20s")
			require.NoError(t, err)
			cn, err := conn.New(conn.Config{Role: "cache", Endpoint: ep, FailFast: true, Breaker: breaker.Config{MinCalls: 8}, Logger: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, cn.Close()) })
			c, err := New(cn, Config{Logger: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, c.Close()) })
			v := NewView[string, string](c, trouble.name[:4], ViewConfig{})
			near := NewView[string, string](c, "near-"+trouble.name[:4], patient)
			require.Eventually(t, func() bool { // a busy machine is slow, too
				return v.SetMany(t.Context(), map[string]string{"there": "old", "doomed": "old"}) == nil && near.Set(t.Context(), "k", "old") == nil
			}, time.Minute, 10*time.Millisecond)
			localFor(t, near, "k")
			require.NoError(t, trouble.begin())

			loads := 0
			one := func(context.Context, string) (string, error) { loads++; return "loaded", nil }
			many := func(_ context.Context, missing []string) (map[string]string, error) {
				values := make(map[string]string)
				for _, key := range missing {
					values[key] = "loaded"
				}
				return values, nil
			}
			soon := func(what string, f func(ctx context.Context)) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				start := time.Now()
				f(ctx)
				require.Less(t, time.Since(start), 15*time.Second, what) // and not read_timeout
			}
			get := func(ctx context.Context) error {
				got, err := v.Get(ctx, "there")
				if trouble.reads {
					require.NoError(t, err)
					require.Equal(t, "old", got)
					return nil
				}
				require.Error(t, err)
				require.NotErrorIs(t, err, ErrMiss)
				require.NotErrorIs(t, err, ErrNotFound)
				return err
			}
			fetch := func(ctx context.Context, key string) {
				got, err := v.Fetch(context.WithoutCancel(ctx), key, one)
				require.NoError(t, err)
				require.Equal(t, "loaded", got)
			}
			fetchMany := func(ctx context.Context, keys ...string) {
				values, err := v.FetchMany(context.WithoutCancel(ctx), keys, many)
				require.NoError(t, err)
				require.Len(t, values, len(keys))
			}
			getMany := func(ctx context.Context) {
				res := v.GetMany(ctx, []string{"there", "doomed"})[0]
				if trouble.reads {
					require.Equal(t, Result[string]{Value: "old"}, res)
					return
				}
				require.Error(t, res.Err)
				require.NotErrorIs(t, res.Err, ErrMiss)
			}
			set := func(ctx context.Context) {
				require.Error(t, v.Set(ctx, "set", "new"))
				require.Error(t, v.SetMany(ctx, map[string]string{"set": "new", "too": "new"}))
			}
			remove := func(ctx context.Context, keys ...string) {
				err := v.Delete(ctx, keys...)
				if trouble.deletes {
					require.NoError(t, err)
					return
				}
				require.Error(t, err)
				require.Positive(t, c.Stats().DeletesOwed)
			}
			soon("Get", func(ctx context.Context) { _ = get(ctx) })
			soon("GetMany", getMany)
			soon("Fetch", func(ctx context.Context) { fetch(ctx, "one") })
			soon("FetchMany", func(ctx context.Context) { fetchMany(ctx, "two", "three") })
			soon("Set", set)
			soon("Delete", func(ctx context.Context) { remove(ctx, "doomed") })
			require.EqualValues(t, 1, loads)

			if !trouble.reads { // the breaker opens, and then all of this costs no time
				var open *breaker.OpenError
				require.Eventually(t, func() bool { return errors.As(get(t.Context()), &open) }, time.Minute, time.Millisecond)
				refused := 0
				for i := range 20 {
					if errors.As(get(t.Context()), &open) {
						refused++
					}
					fetch(t.Context(), fmt.Sprint("more ", i))
					fetchMany(t.Context(), fmt.Sprint("even more ", i), "and more")
				}
				require.Greater(t, refused, 10)
				soon("Set", set)
				soon("Delete", func(ctx context.Context) { remove(ctx, "doomed", "too") })
			}

			if trouble.reads { // and so the server tells of what changes
				localFor(t, near, "k")
			} else { // it closes in time
				require.Eventually(t, func() bool {
					_, err := near.Get(t.Context(), "k")
					return err != nil && !errors.Is(err, ErrMiss)
				}, 30*time.Second, 10*time.Millisecond)
			}
			require.NoError(t, trouble.end())
			require.Eventually(t, func() bool {
				return c.Stats().DeletesOwed == 0 && v.Set(t.Context(), "set", "new") == nil
			}, time.Minute, 10*time.Millisecond)
			require.Eventually(t, func() bool {
				_, err := v.Get(t.Context(), "doomed")
				require.False(t, err == nil, "what was deleted is back")
				return err == ErrMiss
			}, time.Minute, 10*time.Millisecond)
			require.Zero(t, c.Stats().FallbacksRunning)
		})
	}
}
