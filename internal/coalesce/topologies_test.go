package coalesce

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/lanes"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

func TestLanesOnClusterAreThoseOfANode(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1, Proxied: true})
	r := reader(t, own(t, conn.Config{Breaker: off, FailFast: true}, cluster.URL()), Config{Timeout: 20 * time.Second})
	rdb := cluster.Client(t)
	byNode := make(map[*redistest.Server][]string)
	var keys []string
	for i := range 300 {
		key := fmt.Sprint("k", i)
		node, err := cluster.PrimaryOf(t.Context(), key)
		require.NoError(t, err)
		keys, byNode[node] = append(keys, key), append(byNode[node], key)
		require.NoError(t, rdb.Set(t.Context(), key, "value of "+key, 0).Err())
	}
	require.NoError(t, rdb.Del(t.Context(), "k0").Err())
	require.NoError(t, rdb.LPush(t.Context(), "k0", "no string").Err())
	require.Len(t, byNode, 3)
	value := func(key string) string {
		if key == "k0" {
			return ""
		}
		return "value of " + key
	}
	for _, key := range keys { // connections, and all queues
		holds(t, r, key, value(key))
	}
	require.Len(t, r.servers.All(), 3)

	t.Run("a batch is one round trip", func(t *testing.T) {
		other := cluster.Nodes[1]
		q := r.queue(t.Context(), byNode[other][0])
		q.mu.Lock()
		var taken []lanes.Ticket
		for q.lanes.Free() {
			taken = append(taken, q.lanes.Board(time.Now()))
		}
		q.mu.Unlock()
		var callers sync.WaitGroup
		for _, key := range byNode[other] {
			callers.Go(func() { holds(t, r, key, value(key)) })
		}
		require.Eventually(t, func() bool {
			q.mu.Lock()
			defer q.mu.Unlock()
			if len(q.waiting) == 0 || q.waiting[0].readers < len(byNode[other]) {
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

	t.Run("a key that moves on and on is asked for once more", func(t *testing.T) {
		cn := own(t, conn.Config{Breaker: off, FailFast: true}, cluster.URL())
		cn.AddHook(mover{})
		r := reader(t, cn, Config{Timeout: 20 * time.Second})
		holds(t, r, keys[1], value(keys[1])) // the topology is known
		results := r.GetMany(t.Context(), keys)
		for i := range results {
			require.NoError(t, results[i].Err)
			require.Equal(t, value(keys[i]), string(results[i].Bytes()))
			results[i].Release()
		}
		require.NotZero(t, r.Stats().Batches)
	})

	t.Run("a node that does not answer holds up its own keys alone", func(t *testing.T) {
		stopped := cluster.Nodes[0]
		cluster.Proxy(stopped).BlackHole(true)
		defer cluster.Proxy(stopped).BlackHole(false)
		short := New(r.cn, Config{Timeout: 500 * time.Millisecond})
		results := short.GetMany(t.Context(), keys)
		for i, key := range keys {
			if node, err := cluster.PrimaryOf(t.Context(), key); err == nil && node != stopped {
				require.NoError(t, results[i].Err, key)
				require.Equal(t, value(key), string(results[i].Bytes()))
			} else {
				require.Error(t, results[i].Err)
				require.Nil(t, results[i].Bytes())
			}
			results[i].Release()
		}
		var callers sync.WaitGroup
		for _, key := range byNode[cluster.Nodes[2]] {
			callers.Go(func() {
				for range 20 {
					holds(t, r, key, value(key))
				}
			})
		}
		callers.Wait()
		cluster.Proxy(stopped).BlackHole(false)
		require.NoError(t, short.Close(t.Context()))
	})
}

// A mover is a hook by which each batch has been redirected in vain.
type mover struct{ answerer }

func (mover) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (mover) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if _, ok := ctx.(*flightContext); !ok {
			return next(ctx, cmds)
		}
		for i, cmd := range cmds {
			cmd.SetErr(replyError([]string{"MOVED", "ASK"}[i%2] + " 1 127.0.0.1:1"))
		}
		return cmds[0].Err()
	}
}

// Where reads may go to replicas, batches do.
func TestBatchesAreReadFromReplicas(t *testing.T) {
	primary := redistest.New(t, redistest.Config{})
	replica := redistest.NewReplica(t, primary, redistest.Config{})
	cn := own(t, conn.Config{FailFast: true}, fmt.Sprintf("redis+replica://%s,%s?read_from=replica_preferred", primary.Addr(), replica.Addr()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	rdb := primary.Client(t)
	for i := range 20 {
		require.NoError(t, rdb.Set(ctx, fmt.Sprint("k", i), fmt.Sprint(i), 0).Err())
	}
	require.Eventually(t, func() bool {
		n, err := replica.Client(t).DBSize(ctx).Result()
		return err == nil && n == 20 && cn.Check(ctx) == nil && cn.Stats().Replicas.Known > 0
	}, time.Minute, 10*time.Millisecond)
	r := reader(t, cn, Config{Replicas: true, Timeout: 20 * time.Second})
	keys := make([]string, 20)
	for i := range keys {
		keys[i] = fmt.Sprint("k", i)
	}
	read := func() {
		for i, res := range r.GetMany(ctx, keys) {
			require.NoError(t, res.Err)
			require.Equal(t, fmt.Sprint(i), string(res.Bytes()))
			res.Release()
		}
		holds(t, r, "k7", "7")
	}
	read()
	require.Contains(t, replica.Client(t).Info(ctx, "commandstats").Val(), "cmdstat_mget")
	require.NotContains(t, rdb.Info(ctx, "commandstats").Val(), "cmdstat_mget")
	replica.Kill()
	read() // by the primary
	require.Contains(t, rdb.Info(ctx, "commandstats").Val(), "cmdstat_mget")
}

// Envoy answers an MGET key by key, with an error for each that it cannot read.
func TestAnErrorInTheMiddleIsThatOfItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := []*testserver.Server{testserver.New(t), testserver.New(t)}
		envoy := testserver.NewEnvoy(t, testserver.EnvoyUnknown, servers[0].Dial, servers[1].Dial)
		cn := own(t, conn.Config{Dialer: envoy.Dial, FailFast: true}, "redis://127.0.0.1:6379?proxy=envoy&pool_size=1024")
		r := reader(t, cn, Config{})
		keys := make([]string, 20)
		where := make([]int, len(keys))
		for i := range keys {
			keys[i] = fmt.Sprint("k", i)
			require.NoError(t, cn.Set(t.Context(), keys[i], keys[i], 0).Err())
			if servers[1].Exists(keys[i]) {
				where[i] = 1
			}
		}
		require.Contains(t, where, 0)
		require.Contains(t, where, 1)
		servers[1].SetError("NOPERM not today", "GET")
		read := func(wrong string) {
			for i, res := range r.GetMany(t.Context(), keys) {
				switch {
				case where[i] == 0:
					require.NoError(t, res.Err)
					require.Equal(t, keys[i], string(res.Bytes()))
				case wrong == "":
					require.NoError(t, res.Err)
					require.Nil(t, res.Bytes())
				default:
					require.EqualError(t, res.Err, wrong)
				}
				res.Release()
			}
		}
		read("NOPERM not today")
		servers[1].SetError("WRONGTYPE not a string", "GET")
		read("")
		require.Equal(t, uint64(2), r.Stats().Batches)
	})
}

// A client of which nothing is known may lead anywhere.
func TestAnUnknownClientsBatchesArePipelines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		rec := &redistest.Recorder{}
		rdb.AddHook(rec)
		cn, err := conn.Of(struct{ redis.UniversalClient }{rdb})
		require.NoError(t, err)
		r := reader(t, cn, Config{})
		require.NoError(t, srv.Set("k", "v"))
		results := r.GetMany(t.Context(), []string{"k", "none", "k"})
		for i, want := range []string{"v", "", "v"} {
			require.NoError(t, results[i].Err)
			require.Equal(t, want, string(results[i].Bytes()))
			results[i].Release()
		}
		require.Len(t, rec.Shipments(), 1)
		require.Equal(t, [][]any{{"get", "k"}, {"get", "none"}}, rec.Shipments()[0].Commands)
	})
}

// A read that finds a lane free costs what go-redis' own does, and the context
// that bounds it.
func TestAReadAloneAllocatesNoMoreThanGet(t *testing.T) {
	srv := testserver.New(t)
	rdb := srv.Client(t)
	rdb.AddHook(answerer{})
	cn, err := conn.Of(rdb)
	require.NoError(t, err)
	key, ctx := strings.Repeat("k", 20), t.Context()
	bare := testing.AllocsPerRun(1000, func() { _ = cn.Get(ctx, key) })
	for timeout, more := range map[time.Duration]float64{0: 0, time.Minute: 1} {
		r := reader(t, cn, Config{Timeout: timeout})
		read := testing.AllocsPerRun(1000, func() {
			v, err := r.Get(ctx, key)
			if err != nil {
				t.Error(err)
			}
			v.Release()
		})
		require.LessOrEqual(t, read, bare+more)
	}
}

// An answerer is a hook that answers each command with nothing.
type answerer struct{}

func (answerer) DialHook(next redis.DialHook) redis.DialHook { return next }

func (answerer) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(context.Context, redis.Cmder) error { return nil }
}

func (answerer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
