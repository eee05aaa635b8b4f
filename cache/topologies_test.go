package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
)

// connectTo returns a client as redisha makes them, which is patient: a loaded
// machine is no outage.
func connectTo(t *testing.T, url string) *conn.Client {
	ep, err := endpoint.Parse(url)
	require.NoError(t, err)
	cn, err := conn.New(conn.Config{Role: "cache", Endpoint: ep, FailFast: true, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cn.Close()) })
	require.Eventually(t, func() bool { return cn.Check(t.Context()) == nil }, time.Minute, 10*time.Millisecond)
	return cn
}

// The main operations do the same everywhere.
func TestOnEachTopology(t *testing.T) {
	for name, start := range map[string]func(t *testing.T) (url string){
		"standalone": func(t *testing.T) string { return redistest.Shared(t).URL() },
		"Sentinel": func(t *testing.T) string {
			return redistest.NewSentinels(t, redistest.SentinelsConfig{Replicas: 1, DownAfter: 10 * time.Second}).URL() + "?read_from=replica_preferred"
		},
		"replicated": func(t *testing.T) string {
			primary := redistest.New(t, redistest.Config{})
			replica := redistest.NewReplica(t, primary, redistest.Config{})
			return fmt.Sprintf("redis+replica://%s,%s?read_from=replica_preferred", primary.Addr(), replica.Addr())
		},
		"Cluster": func(t *testing.T) string {
			return redistest.NewCluster(t, redistest.ClusterConfig{NodeTimeout: 10 * time.Second}).URL() + "?read_from=replica_preferred"
		},
	} {
		t.Run(name, func(t *testing.T) {
			url := start(t)
			one, other := newClient(t, connectTo(t, url), Config{}), newClient(t, connectTo(t, url), Config{})
			mainOperations(t, one, other)
			stateOperations(t, one, other)
		})
	}
}

// mainOperations uses them on keys of all nodes, from two processes.
func mainOperations(t *testing.T, one, other *Client) {
	ctx := t.Context()
	v := NewView[int, string](one, "v", ViewConfig{})
	w := NewView[int, string](other, "v", ViewConfig{})
	const n = 60
	keys, values := make([]int, n), make(map[int]string)
	for i := range n {
		keys[i] = i
		if i%2 == 0 {
			values[i] = fmt.Sprint("set ", i)
		}
	}
	all := make(map[int]string)
	calls := 0
	load := func(_ context.Context, missing []int) (map[int]string, error) {
		calls++
		loaded := make(map[int]string)
		for _, key := range missing {
			if key%10 != 9 {
				loaded[key] = fmt.Sprint("loaded ", key)
			}
		}
		return loaded, nil
	}
	for i := range n {
		switch {
		case i%2 == 0:
			all[i] = values[i]
		case i%10 != 9:
			all[i] = fmt.Sprint("loaded ", i)
		}
	}

	require.NoError(t, v.SetMany(ctx, values))
	for i, res := range v.GetMany(ctx, keys) { // from the primary, as its own
		if i%2 == 0 {
			require.Equal(t, Result[string]{Value: values[i]}, res)
		} else {
			require.Equal(t, ErrMiss, res.Err)
		}
	}
	for range 2 {
		got, err := v.FetchMany(ctx, keys, load)
		require.NoError(t, err)
		require.Equal(t, all, got)
	}
	require.Equal(t, 1, calls)
	got, err := w.FetchMany(ctx, keys, load) // also where a replica does not have it yet: leases are on the primary
	require.NoError(t, err)
	require.Equal(t, all, got)
	require.Equal(t, 1, calls)
	for key := range 10 {
		got, err := w.Fetch(ctx, key, func(context.Context, int) (string, error) { return "", errInjected })
		if key == 9 {
			require.Equal(t, ErrNotFound, err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, all[key], got)
	}

	// What one deletes is what nobody gets from the primary; the other's replica may
	// be late.
	require.NoError(t, v.Delete(ctx, keys[:40]...))
	require.NoError(t, v.DeleteFor(ctx, time.Minute, keys[40:]...))
	for _, res := range v.GetMany(ctx, keys) {
		require.Equal(t, ErrMiss, res.Err)
	}
	require.Eventually(t, func() bool {
		for _, res := range w.GetMany(ctx, keys) {
			if res.Err != ErrMiss { //nolint:errorlint // it is returned bare
				return false
			}
		}
		return true
	}, time.Minute, 10*time.Millisecond)
	for key := range 3 {
		got, err := w.Fetch(ctx, key, func(context.Context, int) (string, error) { return "new", nil })
		require.NoError(t, err)
		require.Equal(t, "new", got)
		got, err = w.Get(ctx, key)
		require.NoError(t, err)
		require.Equal(t, "new", got)
		_, err = v.Fetch(ctx, 50+key, func(context.Context, int) (string, error) { return "old", nil })
		require.NoError(t, err)
		_, err = v.Get(ctx, 50+key)
		require.Equal(t, ErrMiss, err, "the hold lasts")
		added, err := v.Add(ctx, 50+key, "added")
		require.NoError(t, err)
		require.False(t, added)
		added, err = v.Add(ctx, 10+key, "added")
		require.NoError(t, err)
		require.True(t, added)
		replaced, err := v.Replace(ctx, 10+key, "replaced")
		require.NoError(t, err)
		require.True(t, replaced)
		require.NoError(t, v.Set(ctx, 50+key, "set"))
		results := v.GetMany(ctx, []int{10 + key, 50 + key})
		require.Equal(t, []Result[string]{{Value: "replaced"}, {Value: "set"}}, results)
		require.NoError(t, v.Expire(ctx, 10+key))
		_, err = v.Get(ctx, 10+key)
		require.Equal(t, ErrMiss, err)
	}
	for _, c := range []*Client{one, other} {
		st := c.Stats()
		require.Zero(t, st.Fallbacks)
		require.Zero(t, st.Errors)
		require.Zero(t, st.DeletesOwed)
	}
}

// stateOperations uses what is no cache, on keys of all nodes, from two processes.
func stateOperations(t *testing.T, one, other *Client) {
	ctx := t.Context()
	const n = 30
	cfg := LimiterConfig{Rate: 2, Per: time.Hour}
	limit, sameLimit := NewLimiter[int](one, "l", cfg), NewLimiter[int](other, "l", cfg)
	flows, sameFlows := NewMap[int, string](one, "m", MapConfig{}), NewMap[int, string](other, "m", MapConfig{})
	sessions, sameSessions := NewSessionStore(one, "s"), NewSessionStore(other, "s")
	hashes, sameHashes := NewHash[int, string](one, "h", MapConfig{}), NewHash[int, string](other, "h", MapConfig{})
	values, tokens := make(map[int]string), make(map[string][]byte)
	for i := range n {
		res, err := limit.Allow(ctx, i)
		require.NoError(t, err)
		require.Equal(t, 1, res.Remaining)
		require.False(t, res.Local)
		values[i], tokens[fmt.Sprint(i)] = fmt.Sprint("value ", i), []byte(fmt.Sprint("data ", i))
		require.NoError(t, flows.Set(ctx, i, values[i]))
		require.NoError(t, sessions.CommitCtx(ctx, fmt.Sprint(i), tokens[fmt.Sprint(i)], time.Now().Add(time.Hour)))
		if err := hashes.Set(ctx, i, "field", values[i]); !errors.Is(err, errors.ErrUnsupported) {
			require.NoError(t, err)
			all, err := sameHashes.All(ctx, i)
			require.NoError(t, err)
			require.Equal(t, map[string]string{"field": values[i]}, all)
		}
	}
	got := make(map[int]string)
	for e, err := range sameFlows.All(ctx) {
		require.NoError(t, err)
		got[e.Key] = e.Value
	}
	require.Equal(t, values, got)
	all, err := sameSessions.AllCtx(ctx)
	require.NoError(t, err)
	require.Equal(t, tokens, all)
	for i := range n {
		res, err := sameLimit.AllowN(ctx, i, 2)
		require.NoError(t, err)
		require.Equal(t, 1, res.Remaining)
		require.False(t, res.Allowed)
		require.NoError(t, sameLimit.Reset(ctx, i))
		res, err = limit.Peek(ctx, i)
		require.NoError(t, err)
		require.Equal(t, LimitResult{Allowed: true, Remaining: 2}, res)

		value, err := sameFlows.Update(ctx, i, func(s string) (string, error) { return s + "!", nil })
		require.NoError(t, err)
		taken, err := flows.Take(ctx, i)
		require.NoError(t, err)
		require.Equal(t, value, taken)
		_, err = sameFlows.Take(ctx, i)
		require.Equal(t, ErrMiss, err)

		token := fmt.Sprint(i)
		require.NoError(t, sameSessions.DeleteCtx(ctx, token))
		_, found, err := sessions.FindCtx(ctx, token)
		require.NoError(t, err)
		require.False(t, found)
		require.ErrorIs(t, sessions.CommitCtx(ctx, token, nil, time.Now().Add(time.Hour)), ErrSessionDestroyed)
	}
	require.Less(t, other.Stats().SessionDestroysUnconfirmed, uint64(n), "replicas have at least some")
}

// While slots move, commands are answered by MOVED and ASK, of which nobody sees
// anything; and what fails on a node that is gone fails there alone.
func TestOnAClusterWhoseSlotsMove(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{
		Replicas: -1, NodeTimeout: 10 * time.Minute,
		Data: redistest.Config{Lines: []string{"cluster-require-full-coverage no"}},
	})
	c := newClient(t, connectTo(t, cluster.URL()), Config{ReadTimeout: 20 * time.Second})
	v := NewView[int, string](c, "v", ViewConfig{})
	sessions, limit := NewSessionStore(c, "s"), NewLimiter[string](c, "l", LimiterConfig{Rate: 2, Per: time.Hour})
	ctx := t.Context()
	use := func(version string, moving ...int) {
		keys, values := append([]int{-1, -2, -3}, moving...), make(map[int]string)
		for _, key := range keys {
			values[key] = version
		}
		loads := 0
		got, err := v.FetchMany(ctx, keys, func(_ context.Context, missing []int) (map[int]string, error) {
			loads += len(missing)
			return values, nil
		})
		require.NoError(t, err)
		require.Equal(t, values, got)
		require.Equal(t, len(keys), loads)
		for _, res := range v.GetMany(ctx, keys) {
			require.Equal(t, Result[string]{Value: version}, res)
		}
		require.NoError(t, v.Delete(ctx, keys...))
		for _, key := range moving {
			_, err := v.Get(ctx, key)
			require.Equal(t, ErrMiss, err)
			_, err = v.Fetch(ctx, key, func(context.Context, int) (string, error) { return version, nil })
			require.NoError(t, err)
		}
		require.NoError(t, v.SetMany(ctx, values))
		require.NoError(t, v.DeleteFor(ctx, time.Minute, keys...))
		require.NoError(t, v.SetMany(ctx, values))
		require.NoError(t, v.Delete(ctx, keys...))

		// Keys of one slot, since it is that of what is in braces.
		token := "{" + joinKey(v.prefix, moving[0]) + "}" + version
		require.NoError(t, sessions.CommitCtx(ctx, token, []byte("data"), time.Now().Add(time.Hour)))
		require.NoError(t, sessions.DeleteCtx(ctx, token))
		_, found, err := sessions.FindCtx(ctx, token)
		require.NoError(t, err)
		require.False(t, found)
		require.ErrorIs(t, sessions.CommitCtx(ctx, token, []byte("data"), time.Now().Add(time.Hour)), ErrSessionDestroyed)
		res, err := limit.AllowN(ctx, token, 2)
		require.NoError(t, err)
		require.True(t, res.Allowed && !res.Local)
		res, err = limit.Allow(ctx, token)
		require.NoError(t, err)
		require.False(t, res.Allowed || res.Local)
	}
	use("before", 1)
	slot, err := cluster.Slot(ctx, joinKey(v.prefix, 1))
	require.NoError(t, err)
	from, err := cluster.PrimaryOf(ctx, joinKey(v.prefix, 1))
	require.NoError(t, err)
	to := cluster.Nodes[0]
	if to == from {
		to = cluster.Nodes[1]
	}
	require.NoError(t, cluster.BeginMigration(ctx, slot, to))
	use("ASK", 1)
	require.NoError(t, cluster.MigrateKeys(ctx, slot))
	require.NoError(t, cluster.EndMigration(ctx, slot))
	use("MOVED", 1)
	require.Zero(t, c.Stats().Fallbacks)
	require.Zero(t, c.Stats().Errors)

	// One node goes: its keys are loaded without it, and what is deleted is owed.
	var keys, gone []int
	for key := range 60 {
		node, err := cluster.PrimaryOf(ctx, joinKey(v.prefix, key))
		require.NoError(t, err)
		keys = append(keys, key)
		if node == from {
			gone = append(gone, key)
		}
	}
	from.Kill()
	load := func(_ context.Context, missing []int) (map[int]string, error) {
		values := make(map[int]string)
		for _, key := range missing {
			values[key] = "loaded"
		}
		return values, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	values, err := v.FetchMany(ctx, keys, load)
	require.NoError(t, err)
	require.Len(t, values, len(keys))
	require.Positive(t, c.Stats().Fallbacks)
	for i, res := range v.GetMany(ctx, keys) {
		if slices.Contains(gone, keys[i]) && res.Err != nil { // it is not kept for long
			require.NotErrorIs(t, res.Err, ErrMiss)
			continue
		}
		require.Equal(t, Result[string]{Value: "loaded"}, res)
	}
	var failed *KeysError[int]
	require.ErrorAs(t, v.Delete(ctx, keys...), &failed)
	require.Len(t, failed.Errs, len(gone))
	require.EqualValues(t, len(gone), c.Stats().DeletesOwed)
	require.NoError(t, from.Restart(ctx))
	require.Eventually(t, func() bool { return c.Stats().DeletesOwed == 0 }, time.Minute, 10*time.Millisecond)
}
