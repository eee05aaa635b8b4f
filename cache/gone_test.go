package cache

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// A node of a Cluster that is stopped or killed costs its own keys the cache, and the
// others nothing but the wait for it.
func TestANodeThatIsGoneCostsItsOwnKeysAlone(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{
		Replicas: -1, NodeTimeout: 10 * time.Minute,
		Data: redistest.Config{Lines: []string{"cluster-require-full-coverage no"}},
	})
	for name, end := range map[string]func(node *redistest.Server) func(){
		"stopped": func(node *redistest.Server) func() {
			require.NoError(t, node.Pause())
			return func() { require.NoError(t, node.Continue()) }
		},
		"killed": func(node *redistest.Server) func() {
			node.Kill()
			return func() { require.NoError(t, node.Restart(t.Context())) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			c := newClient(t, connectTo(t, cluster.URL()), Config{ReadTimeout: 500 * time.Millisecond})
			v := NewView[int, string](c, name, ViewConfig{MinCompressBytes: -1})
			there := make(map[int]string)
			var keys, gone []int
			victim, err := cluster.PrimaryOf(ctx, joinKey(v.prefix, 0))
			require.NoError(t, err)
			for key := range 90 {
				node, err := cluster.PrimaryOf(ctx, joinKey(v.prefix, key))
				require.NoError(t, err)
				keys = append(keys, key)
				if node == victim {
					gone = append(gone, key)
				}
				switch {
				case key%3 == 0:
					there[key] = fmt.Sprint("there ", key)
				case key%10 == 1: // such values are read apart from others
					there[key] = strings.Repeat("large", 20_000)
				}
			}
			require.Eventually(t, func() bool { return v.SetMany(ctx, there) == nil }, time.Minute, 10*time.Millisecond)
			for _, res := range v.GetMany(ctx, keys) {
				require.True(t, res.Err == nil || res.Err == ErrMiss, "%v", res.Err)
			}
			deleted := make(map[int]string)
			for key := 100; key < 130; key++ {
				deleted[key] = "deleted"
			}
			require.NoError(t, v.SetMany(ctx, deleted))
			require.NoError(t, c.rdb.EachPrimary(ctx, func(ctx context.Context, node redis.UniversalClient) error {
				return node.ScriptFlush(ctx).Err()
			}))
			back := end(victim)
			defer back()

			// The first Delete of all, whose script no node knows.
			short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			err = v.Delete(short, slices.Collect(maps.Keys(deleted))...)
			cancel()
			var failed *KeysError[int]
			require.ErrorAs(t, err, &failed)
			for key := range deleted {
				node, err := cluster.PrimaryOf(ctx, joinKey(v.prefix, key))
				if err == nil && node != victim {
					require.NoError(t, failed.Errs[key])
					require.Zero(t, node.Client(t).Exists(ctx, joinKey(v.prefix, key)).Val())
				}
			}

			for i, res := range v.GetMany(ctx, keys) {
				value, isThere := there[keys[i]]
				switch {
				case slices.Contains(gone, keys[i]):
					require.Error(t, res.Err)
					require.NotErrorIs(t, res.Err, ErrMiss)
				case isThere:
					require.NoError(t, res.Err)
					require.Equal(t, value, res.Value)
				default:
					require.Equal(t, ErrMiss, res.Err)
				}
			}
			loaded := make(map[int]int)
			calls := make(chan []int, 100)
			start := time.Now()
			values, err := v.FetchMany(ctx, keys, func(_ context.Context, missing []int) (map[int]string, error) {
				calls <- missing
				values := make(map[int]string)
				for _, key := range missing {
					values[key] = "loaded"
				}
				return values, nil
			})
			t.Logf("FetchMany took %s", time.Since(start).Round(time.Millisecond))
			require.NoError(t, err)
			close(calls)
			for missing := range calls {
				for _, key := range missing {
					loaded[key]++
				}
			}
			for _, key := range keys {
				value, isThere := there[key]
				if isThere && !slices.Contains(gone, key) {
					require.Zero(t, loaded[key])
					require.Equal(t, value, values[key])
					continue
				}
				require.Equal(t, 1, loaded[key], "key %d", key)
				require.Equal(t, "loaded", values[key])
			}
			for i, res := range v.GetMany(ctx, keys) { // and the others' are stored
				if !slices.Contains(gone, keys[i]) {
					require.NoError(t, res.Err)
				}
			}
		})
	}
}
