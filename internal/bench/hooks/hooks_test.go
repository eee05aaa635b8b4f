package main

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// Both sides must do the same, and the hooks must really be asked.
func TestHooksAreAskedAndNothingIsSent(t *testing.T) {
	hooked, bare, err := clients()
	require.NoError(t, err)
	defer func() { require.NoError(t, hooked.Close()) }()
	defer func() { require.NoError(t, bare.Close()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // who sends waits for a server
	defer cancel()
	for _, rdb := range []redis.UniversalClient{hooked, bare} {
		require.NoError(t, rdb.Process(ctx, redis.NewStringCmd(ctx, "get", "key")))
		pipe := rdb.Pipeline()
		for range 10 {
			pipe.Get(ctx, "key")
		}
		_, err := pipe.Exec(ctx)
		require.NoError(t, err)
	}
	stats := hooked.Stats()
	require.Equal(t, uint64(2), stats.Commands.Total(), "a command and a pipeline")
	require.Equal(t, uint64(10), stats.Commands.Pipelined)
	require.True(t, stats.Breaker.Enabled)
	require.Zero(t, stats.Dials)
}

func TestMeasureTellsHooksFromNone(t *testing.T) {
	hooked, bare, err := clients()
	require.NoError(t, err)
	defer func() { require.NoError(t, hooked.Close()) }()
	defer func() { require.NoError(t, bare.Close()) }()
	for _, callers := range []int{1, 8} {
		with, base, err := measure(single, callers, hooked, bare)
		require.NoError(t, err)
		require.Positive(t, base)
		require.Greater(t, with, base)
	}
}
