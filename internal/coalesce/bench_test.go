package coalesce

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
)

const benchKeys = 10_000

// BenchmarkGet reads random ones of 10,000 keys from a real server, by plain
// go-redis and by a Reader over a client as a cache has it.
func BenchmarkGet(b *testing.B) {
	poison = false
	defer func() { poison = true }()
	for _, delay := range []time.Duration{0, time.Millisecond} {
		srv := redistest.Shared(b)
		addr := srv.Addr()
		if delay > 0 {
			proxy := redistest.NewProxy(b, addr)
			proxy.Delay(delay / 2)
			addr = proxy.Addr()
		}
		for _, size := range []int{100, 1024} {
			keys := fill(b, srv.Client(b), size)
			for _, callers := range []int{1, 16, 128, 512} {
				b.Run(fmt.Sprintf("rtt=%s/bytes=%d/callers=%d/plain", delay, size, callers), func(b *testing.B) {
					rdb := redis.NewClient(&redis.Options{Addr: addr, PoolSize: 100})
					defer rdb.Close()
					readAll(b, callers, keys, func(ctx context.Context, key string) (int, error) {
						v, err := rdb.Get(ctx, key).Bytes()
						return len(v), err
					})
				})
				b.Run(fmt.Sprintf("rtt=%s/bytes=%d/callers=%d/coalesce", delay, size, callers), func(b *testing.B) {
					r := New(own(b, conn.Config{FailFast: true}, "redis://"+addr), Config{Timeout: 10 * time.Second})
					defer func() { require.NoError(b, r.Close(context.Background())) }()
					readAll(b, callers, keys, func(ctx context.Context, key string) (int, error) {
						v, err := r.Get(ctx, key)
						n := len(v.Bytes())
						v.Release()
						return n, err
					})
					s := r.Stats()
					b.ReportMetric(float64(s.Keys)/float64(max(s.Batches, 1)), "keys/batch")
					b.ReportMetric(float64(single(r).lanes.Count()), "lanes")
				})
			}
		}
	}
}

func fill(b *testing.B, rdb *redis.Client, size int) []string {
	keys := make([]string, benchKeys)
	pipe := rdb.Pipeline()
	for i := range keys {
		keys[i] = fmt.Sprintf("redisha:cache:bench:%d", i)
		pipe.Set(b.Context(), keys[i], strings.Repeat("v", size), 0)
	}
	_, err := pipe.Exec(b.Context())
	require.NoError(b, err)
	return keys
}

func readAll(b *testing.B, callers int, keys []string, read func(ctx context.Context, key string) (int, error)) {
	ctx := context.Background()
	one := func(n uint64) {
		if bytes, err := read(ctx, keys[n*2654435761%benchKeys]); err != nil || bytes == 0 {
			b.Error(bytes, err)
		}
	}
	var warm, all sync.WaitGroup
	for i := range callers {
		warm.Go(func() {
			for range 20 {
				one(uint64(i))
			}
		})
	}
	warm.Wait()
	var next atomic.Uint64
	b.ReportAllocs()
	b.ResetTimer()
	for range callers {
		all.Go(func() {
			for n := next.Add(1); n <= uint64(b.N); n = next.Add(1) {
				one(n)
			}
		})
	}
	all.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
}

// BenchmarkGetMany reads a thousand keys by one call, of one server and of a
// Cluster, beside one server's pipeline of the same.
func BenchmarkGetMany(b *testing.B) {
	poison = false
	defer func() { poison = true }()
	const size = 1024
	srv := redistest.Shared(b)
	keys := fill(b, srv.Client(b), size)[:1000]
	b.Run("pipeline", func(b *testing.B) {
		rdb := srv.Client(b)
		b.ReportAllocs()
		for b.Loop() {
			pipe := rdb.Pipeline()
			for _, key := range keys {
				pipe.Get(b.Context(), key)
			}
			_, err := pipe.Exec(b.Context())
			require.NoError(b, err)
		}
	})
	many := func(b *testing.B, url string) {
		r := New(own(b, conn.Config{FailFast: true}, url), Config{Timeout: 10 * time.Second})
		defer func() { require.NoError(b, r.Close(context.Background())) }()
		b.ReportAllocs()
		for b.Loop() {
			results := r.GetMany(b.Context(), keys)
			for i := range results {
				if results[i].Err != nil || len(results[i].Bytes()) != size {
					b.Fatal(results[i].Err)
				}
				results[i].Release()
			}
		}
	}
	b.Run("one server", func(b *testing.B) { many(b, srv.URL()) })
	b.Run("cluster", func(b *testing.B) {
		cluster := redistest.SharedCluster(b)
		rdb := cluster.Client(b)
		for _, key := range keys {
			require.NoError(b, rdb.Set(b.Context(), key, strings.Repeat("v", size), 0).Err())
		}
		many(b, cluster.URL())
	})
}
