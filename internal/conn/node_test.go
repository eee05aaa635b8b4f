package conn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestKeysAreGroupedByTheNodeThatHoldsThem(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := open(t, Config{Role: "cache", Endpoint: parse(t, cluster.URL())})
	var keys []string
	for i := range 300 {
		keys = append(keys, fmt.Sprint("k", i))
	}
	var mu sync.Mutex
	seen := map[int]int{}
	nodes := 0
	err := c.EachNode(ctx, keys, func(ctx context.Context, node redis.UniversalClient, indexes []int) error {
		cmds, err := node.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, i := range indexes {
				p.Set(ctx, keys[i], i, 0) // MOVED would be an error: node is a client of one server
			}
			return nil
		})
		mu.Lock()
		defer mu.Unlock()
		nodes++
		for _, i := range indexes {
			seen[i]++
		}
		require.Len(t, cmds, len(indexes))
		return err
	})
	require.NoError(t, err)
	require.Equal(t, 3, nodes)
	require.Len(t, seen, 300)
	for i, n := range seen {
		require.Equal(t, 1, n, i)
	}
	broken := errors.New("broken")
	require.ErrorIs(t, c.EachNode(ctx, keys, func(context.Context, redis.UniversalClient, []int) error { return broken }), broken)
	require.NoError(t, c.EachNode(ctx, nil, func(context.Context, redis.UniversalClient, []int) error { return broken }))

	single, _ := inMemory(t, Config{})
	require.NoError(t, single.EachNode(ctx, keys, func(_ context.Context, node redis.UniversalClient, indexes []int) error {
		require.Same(t, single, node)
		require.Len(t, indexes, 300)
		return nil
	}))
}

func TestAnnouncedAddressesAreTranslated(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	outside := map[string]string{} // as a NAT gives other ports to the nodes
	var seeds []string
	for _, node := range cluster.Nodes {
		outside[node.Addr()] = redistest.NewProxy(t, node.Addr()).Addr()
		seeds = append(seeds, outside[node.Addr()])
	}
	c := open(t, Config{Role: "cache", Endpoint: parse(t, "redis+cluster://"+strings.Join(seeds, ",")), MapAddr: func(addr string) string { return outside[addr] }})
	for i := range 50 {
		require.NoError(t, c.Set(ctx, fmt.Sprint("k", i), i, 0).Err())
	}
	for _, addr := range c.registry.addrs() {
		if !slices.Contains(seeds, addr) { // which are dialled as they are
			require.Contains(t, outside, addr)
		}
	}
}

func TestKeysOfASlotThatMovesAreFoundAndCountedOnce(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := open(t, Config{Role: "broker", Endpoint: parse(t, cluster.URL())})
	slot, err := cluster.Slot(ctx, "{m}")
	require.NoError(t, err)
	from, err := cluster.PrimaryOf(ctx, "{m}")
	require.NoError(t, err)
	to := cluster.Nodes[0]
	if to == from {
		to = cluster.Nodes[1]
	}
	require.NoError(t, c.Incr(ctx, "{m}a").Err())
	require.NoError(t, cluster.BeginMigration(ctx, slot, to))
	require.NoError(t, cluster.MigrateKeys(ctx, slot, "{m}a"))
	require.NoError(t, c.Incr(ctx, "{m}a").Err(), "ASK")
	require.NoError(t, c.Incr(ctx, "{m}new").Err(), "ASK for a key that is not there")
	done := make(chan error, 1)
	go func() { done <- c.MSetNX(ctx, "{m}new", 1, "{m}other", 1).Err() }() // TRYAGAIN, or refused
	time.Sleep(100 * time.Millisecond)
	require.NoError(t, cluster.EndMigration(ctx, slot))
	require.NoError(t, <-done)
	n, err := c.Incr(ctx, "{m}a").Result()
	require.NoError(t, err, "MOVED")
	require.EqualValues(t, 3, n)
}
