package breaker_test

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/sony/gobreaker/v2"

	"github.com/redisha/redisha/breaker"
)

// What the hook adds to a command that takes no time.

func BenchmarkCommand(b *testing.B) {
	process := instant(b)
	ctx, cmd := b.Context(), redis.NewStringCmd(b.Context(), "get", "key")
	b.ReportAllocs()
	for b.Loop() {
		_ = process(ctx, cmd)
	}
}

// BenchmarkGobreaker is what of that is gobreaker's.
func BenchmarkGobreaker(b *testing.B) {
	cb := gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{Interval: 10 * time.Second, BucketPeriod: time.Second})
	b.ReportAllocs()
	for b.Loop() {
		_, _ = cb.Execute(func() (struct{}, error) { return struct{}{}, nil })
	}
}

func BenchmarkCommandWithDeadline(b *testing.B) {
	process := instant(b)
	ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
	defer cancel()
	cmd := redis.NewStringCmd(ctx, "get", "key")
	b.ReportAllocs()
	for b.Loop() {
		_ = process(ctx, cmd)
	}
}

func BenchmarkCommand512(b *testing.B) {
	process := instant(b)
	b.ReportAllocs()
	b.SetParallelism(max(1, 512/runtime.GOMAXPROCS(0)))
	b.RunParallel(func(pb *testing.PB) {
		ctx, cmd := b.Context(), redis.NewStringCmd(b.Context(), "get", "key")
		for pb.Next() {
			_ = process(ctx, cmd)
		}
	})
}

func BenchmarkPipelineOf100(b *testing.B) {
	pipeline := newHook(b, breaker.Config{}).ProcessPipelineHook(func(context.Context, []redis.Cmder) error { return nil })
	ctx := b.Context()
	cmds := make([]redis.Cmder, 100)
	for i := range cmds {
		cmds[i] = redis.NewStringCmd(ctx, "get", "key")
	}
	b.ReportAllocs()
	for b.Loop() {
		_ = pipeline(ctx, cmds)
	}
}

func instant(tb testing.TB) redis.ProcessHook {
	return newHook(tb, breaker.Config{}).ProcessHook(func(context.Context, redis.Cmder) error { return nil })
}
