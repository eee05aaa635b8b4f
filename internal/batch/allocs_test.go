package batch

import (
	"context"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
)

// answerer is a hook that answers everything itself.
type answerer struct{ redistest.Recorder }

func (*answerer) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(context.Context, redis.Cmder) error { return nil }
}

func (*answerer) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(context.Context, []redis.Cmder) error { return nil }
}

func TestALoneRequestAllocatesNoMoreThanWithoutABatcher(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	rdb.AddHook(&answerer{})
	cn, err := conn.Of(rdb)
	require.NoError(t, err)
	b := batcher(t, cn)
	ctx := t.Context()
	words := [][]any{words("evalsha", "0123", 1, "key", "token"), words("evalsha", "4567", 2, "key", "counter", "token")}
	for n, without := range map[int]func(){
		1: func() { _ = cn.Do(ctx, words[0]...) },
		2: func() {
			pipe := cn.Pipeline()
			pipe.Do(ctx, words[0]...)
			pipe.Do(ctx, words[1]...)
			conn.Exec(ctx, pipe)
		},
	} {
		alone := testing.AllocsPerRun(1000, without)
		with := testing.AllocsPerRun(1000, func() { b.Do(ctx, "key", words[:n]...) })
		require.LessOrEqual(t, with, alone+1, "%d commands: the slice that is returned", n)
	}
}
