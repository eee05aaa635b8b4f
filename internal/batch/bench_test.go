package batch

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
)

// The scripts are what a lock sends: one that takes a key and one that counts,
// then one that gives the key back.
const (
	takeLua = `if redis.call("SET", KEYS[1], ARGV[1], "NX", "PX", ARGV[2]) then return 1 end return 0`
	nextLua = `if redis.call("GET", KEYS[1]) == ARGV[1] then return {redis.call("INCR", KEYS[2]), -2} end return {-1, 0}`
	giveLua = `if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end return 0`
	wakeLua = `if redis.call("EXISTS", KEYS[1]) == 1 then return 0 end return redis.call("LLEN", KEYS[2])`
)

type scripts struct{ take, next, give, wake string }

func loadScripts(tb testing.TB, rdb redis.UniversalClient) scripts {
	tb.Helper()
	load := func(text string) string {
		sha, err := rdb.ScriptLoad(tb.Context(), text).Result()
		require.NoError(tb, err)
		return sha
	}
	return scripts{load(takeLua), load(nextLua), load(giveLua), load(wakeLua)}
}

type sender func(ctx context.Context, key string, cmds ...[]any) []*redis.Cmd

// pipelines is what a role does without a Batcher.
func pipelines(cn *conn.Client) sender {
	return func(ctx context.Context, _ string, words ...[]any) []*redis.Cmd {
		pipe := cn.Pipeline()
		cmds := make([]*redis.Cmd, len(words))
		for i := range words {
			cmds[i] = redis.NewCmd(ctx, words[i]...)
			_ = pipe.Process(ctx, cmds[i])
		}
		conn.Exec(ctx, pipe)
		return cmds
	}
}

func BenchmarkLocks(b *testing.B) {
	for _, delay := range []time.Duration{0, time.Millisecond} {
		srv := redistest.Shared(b)
		addr := srv.Addr()
		if delay > 0 {
			proxy := redistest.NewProxy(b, addr)
			proxy.Delay(delay / 2)
			addr = proxy.Addr()
		}
		for _, goroutines := range []int{1, 2, 4, 8, 32, 256} {
			for _, how := range []string{"plain", "batch"} {
				b.Run(fmt.Sprintf("rtt=%s/goroutines=%d/%s", delay, goroutines, how), func(b *testing.B) {
					cn := own(b, conn.Config{}, "redis://"+addr+"?pool_size=300")
					s := loadScripts(b, cn)
					obtain, release := pipelines(cn), pipelines(cn)
					var batcher *Batcher
					if how == "batch" {
						batcher = New(cn)
						obtain, release = batcher.Do, batcher.DoBypass
						defer func() { require.NoError(b, batcher.Close(context.Background())) }()
					}
					ctx := context.Background()
					cycle := func(key, counter, token string) {
						check(b, obtain(ctx, key, []any{"evalsha", s.take, 1, key, token, 30000}, []any{"evalsha", s.next, 2, key, counter, token}))
						check(b, release(ctx, key, []any{"evalsha", s.give, 1, key, token}, []any{"evalsha", s.wake, 2, key, counter + "l"}))
					}
					var warm sync.WaitGroup
					for i := range goroutines {
						warm.Go(func() { cycle("w"+strconv.Itoa(i), "{w}"+strconv.Itoa(i), "t") })
					}
					warm.Wait()
					b.ReportAllocs()
					b.ResetTimer()
					var all sync.WaitGroup
					for i := range goroutines {
						all.Go(func() {
							key := "k" + strconv.Itoa(i)
							counter := key + "c"
							for n := i; n < b.N; n += goroutines {
								cycle(key, counter, "token")
							}
						})
					}
					all.Wait()
					b.StopTimer()
				})
			}
		}
	}
}

func check(b *testing.B, cmds []*redis.Cmd) {
	for _, cmd := range cmds {
		if cmd.Err() != nil {
			b.Error(cmd.Err())
		}
	}
}
