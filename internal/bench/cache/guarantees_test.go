package main

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

// report is what a run of one turn takes down.
func report(t *testing.T, run func(ctx context.Context, b *bench, m *harness.B) error) string {
	server := redistest.Shared(t)
	monitor := server.Client(t)
	var stdout, stderr bytes.Buffer
	topic := harness.Topic{Name: "test", Beside: []harness.Quantity{staleReads, loads}, Run: func(ctx context.Context, s *harness.Suite) error {
		b := &bench{Suite: s, server: server, monitor: monitor}
		return s.Compare(ctx, harness.Comparison{Work: "work", Cold: true, Whole: true, Contenders: []harness.Contender{
			{Name: "one", Run: func(ctx context.Context, m *harness.B) error { return run(ctx, b, m) }},
		}})
	}}
	require.Zero(t, harness.Run(t.Context(), topic, []string{"-quick"}, &stdout, &stderr), stderr.String())
	return stdout.String()
}

func TestStaleReadsAreSeen(t *testing.T) {
	never := func(string, *source) (rowCache, error) {
		return rowCache{
			fetch:  func(context.Context, int) (int64, error) { pause(1e6); return 0, nil },
			delete: func(context.Context, int) error { return nil },
			close:  func() error { return nil },
		}, nil
	}
	require.NotRegexp(t, `\| 0 +\| 0 +\|\n`, report(t, func(ctx context.Context, b *bench, m *harness.B) error {
		return b.underWrites(ctx, never, m)
	}), "a cache that never forgets")

	uncached := func(_ string, s *source) (rowCache, error) {
		return rowCache{
			fetch:  s.load,
			delete: func(context.Context, int) error { return nil },
			close:  func() error { return nil },
		}, nil
	}
	require.Regexp(t, `\| 0 +\| 2,500 \|\n`, report(t, func(ctx context.Context, b *bench, m *harness.B) error {
		return b.underWrites(ctx, uncached, m)
	}), "no cache")
}

func TestLoadsAreCounted(t *testing.T) {
	uncached := func(_ string, load func(context.Context, int) (int, error)) (fetcher, error) {
		return fetcher{fetch: load, close: func() error { return nil }}, nil
	}
	require.Contains(t, report(t, func(ctx context.Context, b *bench, m *harness.B) error {
		return b.stampede(ctx, 3, uncached, m)
	}), "| 1,536 |\n")
}

func TestAQuickRunHoldsTheGuarantees(t *testing.T) {
	redistest.Require(t)
	var stdout, stderr bytes.Buffer
	code := harness.Run(t.Context(), topic, []string{"-quick", "-only", staleWork + "|" + coldWork}, &stdout, &stderr)
	require.Zero(t, code, stderr.String())
	require.NotContains(t, stdout.String(), "| **missed**")
	require.Regexp(t, `redisha +\| stale reads +\| 0 `, stdout.String())
	require.Regexp(t, `redisha +\| loads +\| 100 `, stdout.String())
}

// A contender that reads something else, or too little, is an error of the run.
func TestAQuickRunReadsNearAndMany(t *testing.T) {
	redistest.Require(t)
	var stdout, stderr bytes.Buffer
	code := harness.Run(t.Context(), topic, []string{"-quick", "-only", "hit in|struct|compress|by one call"}, &stdout, &stderr)
	require.Zero(t, code, stderr.String())
	for _, name := range []string{redisCache, clientSide, onePipe, oursOne, oursNodes, stdlib, ours} {
		require.Contains(t, stdout.String(), "| "+name+" ")
	}
}
