package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
)

// opened returns a client of url as redisha.Open makes it for a cache.
func opened(t *testing.T, url string) *conn.Client {
	t.Helper()
	ep, err := endpoint.Parse(url)
	require.NoError(t, err)
	cn, err := conn.New(conn.Config{Role: "cache", Endpoint: ep, FailFast: true, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cn.Close()) })
	return cn
}

// localFor waits until a view keeps key, and returns a function that waits until a
// read of it has another outcome. The max age is an hour: only news help.
func localFor(t *testing.T, v *View[string, string], key string) {
	t.Helper()
	require.Eventually(t, func() bool {
		before := v.c.Stats().LocalHits
		_, _ = v.Get(t.Context(), key)
		return v.c.Stats().LocalHits > before
	}, time.Minute, time.Millisecond)
}

func becomes(t *testing.T, v *View[string, string], key, want string) {
	t.Helper()
	require.Eventuallyf(t, func() bool {
		got, err := v.Get(t.Context(), key)
		return err == nil && got == want || want == "" && errors.Is(err, ErrMiss)
	}, time.Minute, time.Millisecond, "%q does not become %q", key, want)
}

var patient = ViewConfig{LocalEntries: 1000, LocalMaxAge: time.Hour, Plain: true, Codec: Raw}

func TestAServerTellsOfWhatOthersChange(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rdb := srv.Client(t)
	v := NewView[string, string](newClient(t, opened(t, srv.URL()), Config{}), "v", patient)
	w := NewView[string, string](v.c, "w", patient) // added while the connection stands
	ctx := t.Context()
	for _, v := range []*View[string, string]{v, w} {
		key := v.prefix + "k"
		set := func(value string) {
			t.Helper()
			require.NoError(t, rdb.Set(ctx, key, value, time.Hour).Err())
			becomes(t, v, "k", value)
			localFor(t, v, "k")
		}
		set("first")
		set("second")
		require.NoError(t, rdb.Del(ctx, key).Err())
		becomes(t, v, "k", "")
		set("third")
		require.NoError(t, rdb.PExpire(ctx, key, 5*time.Millisecond).Err())
		becomes(t, v, "k", "")
		set("fourth")
		require.NoError(t, rdb.FlushAll(ctx).Err())
		becomes(t, v, "k", "")
		set("fifth")
	}
	require.Positive(t, v.c.Stats().LocalFlushes.Flushed)

	// While the connection is gone nothing is kept, and what changes then is seen.
	for i := range 3 {
		for _, line := range strings.Split(rdb.ClientList(ctx).Val(), "\n") {
			if strings.Contains(line, "cmd=client|tracking") || strings.Contains(line, "flags=t") || strings.Contains(line, "flags=B") {
				var id int64
				_, _ = fmt.Sscanf(line, "id=%d", &id)
				require.NoError(t, rdb.ClientKillByFilter(ctx, "ID", fmt.Sprint(id)).Err())
			}
		}
		value := fmt.Sprint("after kill ", i)
		require.NoError(t, rdb.Set(ctx, v.prefix+"k", value, time.Hour).Err())
		becomes(t, v, "k", value)
		localFor(t, v, "k")
	}
	require.Positive(t, v.c.Stats().LocalFlushes.Connection)
}

// A writer and a reader in turn: the reader sees each version, whatever it kept.
func TestALocalCopyDoesNotOutliveNewsOfAnyOrder(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rdb := srv.Client(t)
	v := NewView[string, string](newClient(t, opened(t, srv.URL()), Config{}), "v", patient)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // reads all the time, so that reads and news cross
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = v.Get(t.Context(), "k")
			}
		}
	}()
	for i := range 300 {
		value := fmt.Sprint(i)
		require.NoError(t, rdb.Set(t.Context(), v.prefix+"k", value, time.Hour).Err())
		becomes(t, v, "k", value)
	}
	close(stop)
	<-done
	require.Positive(t, v.c.Stats().LocalHits)
}

func TestAFailoverEmptiesLocalCopies(t *testing.T) {
	s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
	cn := opened(t, s.URL())
	v := NewView[string, string](newClient(t, cn, Config{}), "v", patient)
	require.NoError(t, v.Set(t.Context(), "k", "old"))
	localFor(t, v, "k")
	epoch := cn.Epoch()
	primary, err := s.Failover(t.Context())
	require.NoError(t, err)
	rdb := primary.Client(t)
	require.Eventually(t, func() bool { // it may be a replica for a moment yet
		return rdb.Set(t.Context(), v.prefix+"k", "new", time.Hour).Err() == nil
	}, time.Minute, 10*time.Millisecond)
	becomes(t, v, "k", "new")
	require.Greater(t, cn.Epoch(), epoch)
	require.Positive(t, v.c.Stats().LocalFlushes.Failover)
	localFor(t, v, "k")
	require.NoError(t, rdb.Set(t.Context(), v.prefix+"k", "newer", time.Hour).Err())
	becomes(t, v, "k", "newer")
}

func TestLocalCopiesOnCluster(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1})
	rdb := cluster.Client(t)
	v := NewView[string, string](newClient(t, opened(t, cluster.URL()), Config{}), "v", patient)
	ctx := t.Context()
	set := func(rdb redis.UniversalClient, key, value string) {
		t.Helper()
		require.NoError(t, rdb.Set(ctx, v.prefix+key, value, time.Hour).Err())
		becomes(t, v, key, value)
	}
	for i := range 20 {
		key := fmt.Sprint("k", i)
		set(rdb, key, "first")
		localFor(t, v, key)
		set(rdb, key, "second")
	}

	// A key that goes ahead of its slot is read, and not kept until all have moved.
	slot, err := cluster.Slot(ctx, v.prefix+"k0")
	require.NoError(t, err)
	from, err := cluster.PrimaryOf(ctx, v.prefix+"k0")
	require.NoError(t, err)
	to := cluster.Nodes[0]
	if to == from {
		to = cluster.Nodes[1]
	}
	localFor(t, v, "k0")
	require.NoError(t, cluster.BeginMigration(ctx, slot, to))
	require.NoError(t, cluster.MigrateKeys(ctx, slot, v.prefix+"k0"))
	set(rdb, "k0", "third")
	hits := v.c.Stats().LocalHits
	for range 5 {
		got, err := v.Get(ctx, "k0")
		require.NoError(t, err)
		require.Equal(t, "third", got)
	}
	require.Equal(t, hits, v.c.Stats().LocalHits)
	require.NoError(t, cluster.EndMigration(ctx, slot))
	localFor(t, v, "k0")
	set(rdb, "k0", "fourth")
}

func TestALocalTierOnReplicasIsRefused(t *testing.T) {
	cn := opened(t, "redis+replica://127.0.0.1:1,127.0.0.1:2?read_from=replica_preferred")
	_, err := NewView[string, string](newClient(t, cn, Config{}), "v", patient).Get(context.Background(), "k")
	require.ErrorContains(t, err, "the client reads from replicas (read_from)")
}

// A primary that dies, or hangs, is noticed: local copies are returned no more, and
// what changes meanwhile is seen as soon as it is back.
func TestLocalCopiesEndWithTheirServer(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Persist: true, Lines: []string{"appendfsync always"}})
	for _, trouble := range []struct {
		name       string
		begin, end func() error
	}{
		{"stopped", srv.Pause, srv.Continue},
		{"killed", func() error { srv.Kill(); return nil }, func() error { return srv.Restart(t.Context()) }},
	} {
		t.Run(trouble.name, func(t *testing.T) {
			ctx := t.Context()
			c := newClient(t, opened(t, srv.URL()), Config{ReadTimeout: 250 * time.Millisecond})
			v := NewView[string, string](c, trouble.name, patient)
			require.Eventually(t, func() bool { return v.Set(ctx, "k", "old") == nil }, time.Minute, 10*time.Millisecond)
			localFor(t, v, "k")
			require.NoError(t, trouble.begin())
			start := time.Now()
			require.Eventually(t, func() bool {
				_, err := v.Get(ctx, "k")
				return err != nil && !errors.Is(err, ErrMiss)
			}, time.Minute, time.Millisecond)
			t.Logf("noticed after %s", time.Since(start).Round(time.Millisecond))
			hits := c.Stats().LocalHits
			got, err := v.Fetch(ctx, "k", func(context.Context, string) (string, error) { return "loaded", nil })
			require.NoError(t, err)
			require.Equal(t, "loaded", got)
			require.Equal(t, hits, c.Stats().LocalHits)
			require.Positive(t, c.Stats().LocalFlushes.Connection)
			require.NoError(t, trouble.end())
			require.Eventually(t, func() bool { // "old", which others may change now
				got, err := v.Get(ctx, "k")
				return err == nil && got == "old"
			}, time.Minute, time.Millisecond)
			localFor(t, v, "k")
			require.NoError(t, srv.Client(t).Set(ctx, v.prefix+"k", "new", time.Hour).Err())
			becomes(t, v, "k", "new")
		})
	}
}
