package batch

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/lanes"
	"github.com/redisha/redisha/internal/redistest"
)

func TestLanesOnClusterAreThoseOfANode(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1, Proxied: true})
	b := batcher(t, own(t, conn.Config{Breaker: off}, cluster.URL()))
	byNode := make(map[*redistest.Server][]string)
	for i := range 60 {
		key := fmt.Sprint("k", i)
		node, err := cluster.PrimaryOf(t.Context(), key)
		require.NoError(t, err)
		byNode[node] = append(byNode[node], key)
		require.NoError(t, b.Do(t.Context(), key, words("set", key, key))[0].Err())
	}
	require.Len(t, byNode, 3)
	require.Len(t, b.servers.All(), 3)
	stopped, other := cluster.Nodes[0], cluster.Nodes[1]

	t.Run("a pipeline is one round trip", func(t *testing.T) {
		q, _ := b.servers.Of(t.Context(), byNode[other][0])
		q.mu.Lock()
		var taken []lanes.Ticket
		for q.lanes.Free() {
			taken = append(taken, q.lanes.Board(time.Now()))
		}
		q.mu.Unlock()
		var callers sync.WaitGroup
		for _, key := range byNode[other] {
			callers.Go(func() {
				cmds := b.Do(t.Context(), key, words("get", key), words("get", key))
				require.Equal(t, []any{key, key}, []any{cmds[0].Val(), cmds[1].Val()})
			})
		}
		require.Eventually(t, func() bool {
			q.mu.Lock()
			defer q.mu.Unlock()
			if q.waiting[plain].n < len(byNode[other]) {
				return false
			}
			for i, ticket := range taken { // however long it took
				q.lanes.Leave(ticket)
				taken[i] = q.lanes.Board(time.Now())
			}
			return true
		}, time.Minute, time.Millisecond)
		before := cluster.Proxy(other).Stats()
		for _, ticket := range taken {
			q.landed(ticket, false)
		}
		callers.Wait()
		requests := cluster.Proxy(other).Stats().Requests - before.Requests
		require.Less(t, requests, int64(len(byNode[other])/2), "of %d callers", len(byNode[other]))
	})

	t.Run("a node that does not answer holds up its own keys alone", func(t *testing.T) {
		cluster.Proxy(stopped).BlackHole(true)
		var patient, callers sync.WaitGroup
		for _, key := range byNode[stopped] {
			patient.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				require.Equal(t, key, b.Do(ctx, key, words("get", key))[0].Val())
			})
		}
		for _, key := range byNode[other] {
			callers.Go(func() {
				for range 50 {
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					require.Equal(t, key, b.Do(ctx, key, words("get", key))[0].Val())
					cancel()
				}
			})
		}
		callers.Wait()
		cluster.Proxy(stopped).BlackHole(false)
		patient.Wait()
	})

	t.Run("each request gets its own replies", func(t *testing.T) {
		seed := seed(t)
		players := newPlayers(t, b.cn, seed, 48)
		var all sync.WaitGroup
		for _, p := range players {
			all.Go(func() {
				for range 30 {
					if err := p.play(t.Context(), b); err != nil {
						t.Errorf("player %d: %v", p.id, err)
						return
					}
				}
			})
		}
		all.Wait()
		for _, p := range players {
			require.NoError(t, p.check(b.cn), "player %d", p.id)
			require.Zero(t, p.notSent+p.unknown+p.failed)
		}
	})
}

// A Cluster client that redisha did not make would send others' commands twice.
func TestRequestsOfAForeignClusterClientTravelAlone(t *testing.T) {
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}, MaxRedirects: -1})
	defer rdb.Close()
	rec := &redistest.Recorder{}
	rdb.AddHook(rec)
	cn, err := conn.Of(rdb)
	require.NoError(t, err)
	b := batcher(t, cn)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var callers sync.WaitGroup
	for range 20 {
		callers.Go(func() { require.Error(t, b.Do(ctx, "k", words("get", "k"), words("get", "k"))[0].Err()) })
	}
	callers.Wait()
	require.Len(t, rec.Shipments(), 20)
}
