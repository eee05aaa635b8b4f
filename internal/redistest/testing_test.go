package redistest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// A verdict is a test that records how it ended.
type verdict struct {
	testing.TB
	failed, skipped bool
	message         string
}

func (v *verdict) Helper() {}

func (v *verdict) Fatalf(format string, args ...any) {
	v.failed, v.message = true, fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (v *verdict) Skip(args ...any) {
	v.skipped, v.message = true, fmt.Sprint(args...)
	runtime.Goexit()
}

func (v *verdict) Skipf(format string, args ...any) { v.Skip(fmt.Sprintf(format, args...)) }

// judge runs a test that may end early.
func judge(t *testing.T, test func(testing.TB)) *verdict {
	v := &verdict{TB: t}
	var running sync.WaitGroup
	running.Go(func() { test(v) })
	running.Wait()
	return v
}

func TestMissingServerSkipsOrFails(t *testing.T) {
	if testing.Short() {
		v := judge(t, redistest.Require)
		require.True(t, v.skipped)
		require.Contains(t, v.message, "-short")
		return
	}
	t.Setenv("REDISHA_TEST_REDIS_SERVER", "")
	t.Setenv("PATH", t.TempDir())
	t.Setenv("REDISHA_TEST_REQUIRE", "")
	v := judge(t, redistest.Require)
	require.True(t, v.skipped)
	require.Contains(t, v.message, "REDISHA_TEST_REDIS_SERVER")
	t.Setenv("REDISHA_TEST_REQUIRE", "1")
	v = judge(t, redistest.Require)
	require.True(t, v.failed)
	require.Contains(t, v.message, "no redis-server on PATH")

	t.Setenv("REDISHA_TEST_REQUIRE", "")
	t.Setenv("REDISHA_TEST_REDIS_SERVER", "/no/such/redis-server")
	v = judge(t, redistest.Require)
	require.True(t, v.failed, "a wrong variable is a mistake, not a lack")
	require.Contains(t, v.message, "/no/such/redis-server")
	_, err := redistest.Start(t.Context(), redistest.Config{})
	require.ErrorContains(t, err, "/no/such/redis-server")
}

func TestServerTooOldSkipsEvenWhenRequired(t *testing.T) {
	redistest.Require(t)
	t.Setenv("REDISHA_TEST_REQUIRE", "1")
	require.False(t, judge(t, func(tb testing.TB) { redistest.RequireVersion(tb, "6.2.1") }).skipped)
	v := judge(t, func(tb testing.TB) { redistest.RequireVersion(tb, "99.1") })
	require.True(t, v.skipped)
	require.Contains(t, v.message, "this test needs 99.1")
}

func TestSharedServerIsEmptyAndOneForAll(t *testing.T) {
	redistest.Require(t)
	var addr string
	t.Run("first", func(t *testing.T) {
		s := redistest.Shared(t)
		addr = s.Addr()
		rdb := s.Client(t)
		require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
		sha := rdb.ScriptLoad(t.Context(), "return 1").Val()
		require.Same(t, s, redistest.Shared(t)) // as it is
		t.Run("subtest", func(t *testing.T) {
			require.Same(t, s, redistest.Shared(t))
			require.Equal(t, "v", rdb.Get(t.Context(), "k").Val())
		})
		require.Equal(t, []bool{true}, rdb.ScriptExists(t.Context(), sha).Val())
	})
	t.Run("second", func(t *testing.T) {
		s := redistest.Shared(t)
		require.Equal(t, addr, s.Addr())
		rdb := s.Client(t)
		require.Zero(t, rdb.DBSize(t.Context()).Val())
	})
}

func TestSharedServerBelongsToOneTestAtATime(t *testing.T) {
	redistest.Require(t)
	var using sync.Mutex
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			rdb := redistest.Shared(t).Client(t)
			require.True(t, using.TryLock(), "another test has the server")
			defer using.Unlock()
			require.NoError(t, rdb.Set(t.Context(), "k", i, 0).Err())
			require.EqualValues(t, 1, rdb.DBSize(t.Context()).Val())
		})
	}
}

func TestProgramIsFoundByNameOnPath(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "redis-server")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700))
	t.Setenv("PATH", dir)
	t.Setenv("REDISHA_TEST_REDIS_SERVER", "")
	got, err := redistest.Program()
	require.NoError(t, err)
	require.Equal(t, program, got)
}
