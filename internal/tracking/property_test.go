package tracking_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/tracking"
)

// Whoever writes, and whatever becomes of the connections: once the cache has
// been told of a write that came after all others, or its epoch has ended since, it
// has nothing that is not on the server.
func TestNothingStaleIsKept(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	proxy := redistest.NewProxy(t, srv.Addr())
	faults := []func(*testing.T, *rand.Rand){
		func(t *testing.T, _ *rand.Rand) { // the reads' connections too
			_ = srv.Client(t).Do(t.Context(), "client", "kill", "type", "normal", "skipme", "yes").Err()
		},
		func(*testing.T, *rand.Rand) { proxy.Cut() },
		func(_ *testing.T, r *rand.Rand) { proxy.CutReplies(1 + r.IntN(5)) },
		func(_ *testing.T, r *rand.Rand) {
			proxy.BlackHole(true)
			time.Sleep(time.Duration(r.IntN(500)) * time.Millisecond)
			proxy.BlackHole(false)
		},
		func(_ *testing.T, r *rand.Rand) { proxy.Delay(time.Duration(r.IntN(30)) * time.Millisecond) },
		func(*testing.T, *rand.Rand) { proxy.Delay(0) },
		func(t *testing.T, _ *rand.Rand) { _ = srv.Client(t).FlushAll(t.Context()).Err() },
		func(t *testing.T, r *rand.Rand) {
			if srv.Pause() == nil {
				time.Sleep(time.Duration(r.IntN(400)) * time.Millisecond)
				require.NoError(t, srv.Continue())
			}
		},
	}
	heal := func() { proxy.CutReplies(0); proxy.Delay(0) }
	property(t, own(t, "redis://"+proxy.Addr()), srv.Client(t), faults, heal, propertyTime())
}

// The same while slots move and primaries change.
func TestNothingStaleIsKeptOnACluster(t *testing.T) {
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{})
	primaries := cluster.Nodes[:3]
	faults := []func(*testing.T, *rand.Rand){
		func(t *testing.T, r *rand.Rand) {
			slot, err := cluster.Slot(t.Context(), fmt.Sprintf("a:%d", r.IntN(propertyKeys)))
			require.NoError(t, err)
			to := primaries[r.IntN(3)] // which does not tell for a moment
			_ = cluster.MigrateSlot(t.Context(), slot, to)
			_ = to.Client(t).Do(t.Context(), "client", "kill", "type", "normal", "skipme", "yes").Err()
		},
		func(t *testing.T, r *rand.Rand) {
			slot, err := cluster.Slot(t.Context(), fmt.Sprintf("a:%d", r.IntN(propertyKeys)))
			require.NoError(t, err)
			_ = cluster.MigrateSlot(t.Context(), slot, primaries[r.IntN(3)])
		},
		func(t *testing.T, r *rand.Rand) {
			_ = primaries[r.IntN(3)].Client(t).Do(t.Context(), "client", "kill", "type", "normal", "skipme", "yes").Err()
		},
		func(t *testing.T, r *rand.Rand) { _ = primaries[r.IntN(3)].Client(t).FlushAll(t.Context()).Err() },
	}
	property(t, own(t, cluster.URL()), cluster.Client(t), faults, func() {}, propertyTime())
}

// The same over a failover, which loses writes.
func TestNothingStaleIsKeptOverAFailover(t *testing.T) {
	s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
	faults := []func(*testing.T, *rand.Rand){func(t *testing.T, r *rand.Rand) {
		old := s.Primary()
		if r.IntN(2) == 0 {
			old.Kill()
		} else {
			require.NoError(t, old.Pause())
		}
		_, err := s.AwaitPrimary(t.Context(), old.Addr())
		require.NoError(t, err)
	}}
	property(t, own(t, s.URL()), own(t, s.URL()), faults, func() {}, 0)
}

const propertyKeys = 20

// propertyTime is how long a property test goes on.
func propertyTime() time.Duration {
	if os.Getenv("REDISHA_TEST_SOAK") == "1" {
		return 5 * time.Minute
	}
	return 4 * time.Second
}

// property lets readers fill a cache by cn, writers write by rdb, and faults come,
// in rounds, at whose ends what is kept is compared with what there is.
func property(t *testing.T, cn *conn.Client, rdb redis.UniversalClient, faults []func(*testing.T, *rand.Rand), heal func(), limit time.Duration) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := open(t, cn, tracking.Config{Ping: 200 * time.Millisecond})
	a := c.add(t, "a:")
	prefixes := []*tracking.Prefix{a}
	key := func(r *rand.Rand) string { return fmt.Sprintf("a:%d", r.IntN(propertyKeys)) }
	var written atomic.Int64
	compared, epochs := 0, c.Epoch()
	rounds := 0
	for start := time.Now(); rounds == 0 || time.Since(start) < limit; rounds++ {
		r := rand.New(rand.NewPCG(seed, uint64(rounds)))
		writing, stopWriting := context.WithCancel(t.Context())
		reading, stopReading := context.WithCancel(t.Context())
		var readers, writers sync.WaitGroup
		for i := range 4 {
			w, r := rand.New(rand.NewPCG(seed+1, uint64(rounds*4+i))), rand.New(rand.NewPCG(seed+2, uint64(rounds*4+i)))
			writers.Go(func() {
				for writing.Err() == nil {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					switch k := key(w); w.IntN(10) {
					case 0:
						_ = rdb.Del(ctx, k).Err()
					case 1:
						_ = rdb.Set(ctx, k, written.Add(1), time.Millisecond).Err()
					default:
						_ = rdb.Set(ctx, k, written.Add(1), 0).Err()
					}
					cancel()
					time.Sleep(time.Duration(w.IntN(2000)) * time.Microsecond)
				}
			})
			readers.Go(func() {
				for reading.Err() == nil {
					ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
					c.get(ctx, a, key(r))
					cancel()
					time.Sleep(time.Duration(r.IntN(300)) * time.Microsecond)
				}
			})
		}
		for range min(len(faults), 1+r.IntN(4)) {
			time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
			faults[r.IntN(len(faults))](t, r)
		}
		if r.IntN(3) == 0 {
			prefixes = append(prefixes, c.add(t, fmt.Sprintf("b%d:", rounds)))
		}
		time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
		stopWriting()
		writers.Wait()
		heal()
		for i := range propertyKeys { // readers go on: what they fetch now stays
			stands(t, a, fmt.Sprintf("a:%d", i))
		}
		time.Sleep(20 * time.Millisecond)
		stopReading()
		readers.Wait()
		compared += compare(t, c, rdb, rounds)
	}
	t.Logf("%d rounds, %d writes, %d epochs, %d values compared, %d keys told", rounds, written.Load(), c.Epoch()-epochs, compared, c.Stats().Keys)
	require.Positive(t, compared)
	for _, p := range prefixes {
		stands(t, p, p.String()+"1")
	}
}

// compare waits for the word of a write after all others, on each node, and then
// compares what the cache has with what there is.
func compare(t *testing.T, c *cache, rdb redis.UniversalClient, round int) (compared int) {
	t.Helper()
	for i := range 50 { // on all nodes of a Cluster
		last := fmt.Sprintf("a:last:%d:%d", round, i)
		c.keys()
		require.Eventually(t, func() bool {
			if rdb.Set(t.Context(), last, strconv.Itoa(round), time.Minute).Err() != nil {
				return false
			}
			for wait := time.Now(); time.Since(wait) < 100*time.Millisecond; time.Sleep(100 * time.Microsecond) {
				for _, key := range c.keys() {
					if key == last {
						return true
					}
				}
			}
			return false
		}, patience, time.Millisecond, "not told of %s", last)
	}
	for i := range propertyKeys {
		key := fmt.Sprintf("a:%d", i)
		kept, ok := c.kept(key)
		if !ok {
			continue
		}
		there, err := rdb.Get(t.Context(), key).Result()
		if err == redis.Nil { //nolint:errorlint // go-redis returns it bare
			eventually(t, func() bool { // it may have expired just now, by this Get
				_, ok := c.kept(key)
				return !ok
			}, "round %d: %s is kept as %s and does not exist", round, key, kept)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, there, kept, "round %d: %s", round, key)
		compared++
	}
	return compared
}
