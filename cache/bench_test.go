package cache

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
)

// answer answers GET with a value and everything else with OK, without a
// connection: what is measured is the processor's part.
type answer struct{ value string }

func (a answer) DialHook(next redis.DialHook) redis.DialHook { return next }

func (a answer) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(_ context.Context, cmd redis.Cmder) error {
		if get, ok := cmd.(*redis.StringCmd); ok {
			get.SetVal(a.value)
		}
		return nil
	}
}

func (a answer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

var kilobyte = []byte(strings.Repeat("x7Qz", 256))

// newAnswering returns a client that finds value under every key.
func newAnswering(b *testing.B, value []byte) *redis.Client {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:0"})
	b.Cleanup(func() { _ = rdb.Close() })
	rdb.AddHook(answer{string(value)})
	return rdb
}

func BenchmarkGet(b *testing.B) {
	b.Run("bare", func(b *testing.B) {
		rdb := newAnswering(b, kilobyte)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := rdb.Get(b.Context(), "redisha:cache:v:1234567890").Bytes(); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, cfg := range map[string]Config{"raw": {ReadTimeout: 250 * time.Millisecond}, "raw, no read timeout": {ReadTimeout: -1}} {
		b.Run(name, func(b *testing.B) {
			v := NewView[int64, []byte](newClient(b, newAnswering(b, append(appendHeader(nil, kindValue, header{}), kilobyte...)), cfg), "v", ViewConfig{Codec: Raw})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Get(b.Context(), 1234567890); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("JSON", func(b *testing.B) {
		v := NewView[int64, user](newClient(b, newAnswering(b, append(appendHeader(nil, kindValue, header{}), `{"ID":42,"Name":"Zoë"}`...)), Config{}), "v", ViewConfig{})
		b.ReportAllocs()
		for b.Loop() {
			if _, err := v.Get(b.Context(), 42); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Fetch, raw", func(b *testing.B) {
		v := NewView[int64, []byte](newClient(b, newAnswering(b, append(appendHeader(nil, kindValue, header{}), kilobyte...)), Config{}), "v", ViewConfig{Codec: Raw})
		load := noLoad[int64, []byte](b)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := v.Fetch(b.Context(), 1234567890, load); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkSet(b *testing.B) {
	b.Run("bare", func(b *testing.B) {
		rdb := newAnswering(b, nil)
		b.ReportAllocs()
		for b.Loop() {
			if err := rdb.Set(b.Context(), "redisha:cache:v:1234567890", kilobyte, time.Hour).Err(); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, cfg := range map[string]ViewConfig{"raw, compressing": {Codec: Raw}, "raw": {Codec: Raw, MinCompressBytes: -1}} {
		b.Run(name, func(b *testing.B) {
			v := NewView[int64, []byte](newClient(b, newAnswering(b, nil), Config{}), "v", cfg)
			b.ReportAllocs()
			for b.Loop() {
				if err := v.Set(b.Context(), 1234567890, kilobyte); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMiss is a whole miss on the in-memory server: read, lease, load, fill.
func BenchmarkMiss(b *testing.B) {
	_, rdb := newServer(b)
	v := NewView[int, []byte](newClient(b, rdb, Config{}), "v", ViewConfig{Codec: Raw})
	load := func(context.Context, int) ([]byte, error) { return kilobyte, nil }
	key := 0
	b.ReportAllocs()
	for b.Loop() {
		key++
		_, err := v.Fetch(b.Context(), key, load)
		require.NoError(b, err)
	}
}

// A hit costs little above go-redis' own GET, and nobody makes it cost more
// unnoticed: key, value, deadline, and what go-redis allocates.
func TestAHitAllocatesLittle(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:0"})
	t.Cleanup(func() { _ = rdb.Close() })
	rdb.AddHook(answer{string(append(appendHeader(nil, kindValue, header{}), kilobyte...))})
	v := NewView[int64, []byte](newClient(t, rdb, Config{}), "v", ViewConfig{Codec: Raw})
	load := noLoad[int64, []byte](t)
	bare := testing.AllocsPerRun(100, func() { rdb.Get(t.Context(), "redisha:cache:v:1234567890") })
	hit := testing.AllocsPerRun(100, func() {
		if _, err := v.Fetch(t.Context(), 1234567890, load); err != nil {
			t.Error(err)
		}
	})
	require.LessOrEqual(t, hit, bare+5)
}

// What 1,000 keys cost that are all there, beside a bare pipeline to one node.
func BenchmarkFetchMany(b *testing.B) {
	const n = 1000
	cluster := redistest.NewCluster(b, redistest.ClusterConfig{Replicas: -1, NodeTimeout: 10 * time.Minute})
	ep, err := endpoint.Parse(cluster.URL())
	require.NoError(b, err)
	own, err := conn.New(conn.Config{Role: "cache", Endpoint: ep, FailFast: true})
	require.NoError(b, err)
	defer own.Close()
	single := redistest.New(b, redistest.Config{}).Client(b)
	value := string(kilobyte[:100])
	values, keys := make(map[int]string), make([]int, n)
	for i := range n {
		keys[i], values[i] = i, value
	}
	load := func(context.Context, []int) (map[int]string, error) { return values, nil }
	for name, rdb := range map[string]redis.UniversalClient{"cluster": own, "one node": single} {
		v := NewView[int, string](newClient(b, rdb, Config{}), "v", ViewConfig{Codec: Raw, Plain: true})
		require.NoError(b, v.SetMany(b.Context(), values))
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				got, err := v.FetchMany(b.Context(), keys, load)
				if err != nil || len(got) != n {
					b.Fatal(err)
				}
			}
		})
		b.Run("cold/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, v.Delete(b.Context(), keys...))
				got, err := v.FetchMany(b.Context(), keys, load)
				if err != nil || len(got) != n {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("pipeline", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			pipe := single.Pipeline()
			for i := range n {
				pipe.Get(b.Context(), joinKey("redisha:cache:v:", i))
			}
			cmds, err := pipe.Exec(b.Context())
			if err != nil && err != redis.Nil {
				b.Fatal(err)
			}
			got := make(map[int]string, n)
			for i, cmd := range cmds {
				got[i] = cmd.(*redis.StringCmd).Val()
			}
		}
	})
}
