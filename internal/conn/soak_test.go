package conn

import (
	"context"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// TestAHundredFailoversLeaveNothingBehind runs by hand, for about ten minutes.
func TestAHundredFailoversLeaveNothingBehind(t *testing.T) {
	if os.Getenv("REDISHA_TEST_SOAK") != "1" {
		t.Skip("REDISHA_TEST_SOAK=1 runs it")
	}
	s := redistest.NewSentinels(t, redistest.SentinelsConfig{FailoverTimeout: 2 * time.Second})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, s.URL())})
	ctx := t.Context()
	require.NoError(t, c.Check(ctx))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	l := startLoad(t, c, strconv.Itoa)
	l.goesOn(t, 50)
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	kinds := map[string]int{}
	for i := range 100 {
		old := s.Primary()
		settle(t, s)
		kind := []string{"killed", "stopped", "failed over", "restarted", "restarted"}[random.IntN(5)]
		kinds[kind]++
		switch kind {
		case "killed":
			old.Kill()
		case "stopped":
			require.NoError(t, old.Pause())
		case "failed over":
			_, err := s.Failover(ctx)
			require.NoError(t, err)
		case "restarted": // comes back as the primary, and empty
			require.NoError(t, old.Restart(ctx))
		}
		if kind != "restarted" {
			wait, cancel := context.WithTimeout(ctx, time.Minute)
			_, err := s.AwaitPrimary(wait, old.Addr())
			cancel()
			require.NoError(t, err, "%d: %s", i, kind)
		}
		l.goesOn(t, 50)
		switch kind {
		case "killed":
			require.NoError(t, old.Restart(ctx))
		case "stopped":
			require.NoError(t, old.Continue())
		}
	}
	l.stop()
	require.Empty(t, l.others)
	require.Zero(t, l.setErrs.Load())
	time.Sleep(2 * time.Second)
	stats := c.Stats()
	t.Logf("%v; %d sets, %d pushes, %d of unknown outcome, %d switches, %d outages of together %s, goroutines %d then %d, files %d then %d, connections %d",
		kinds, l.sets.Load(), l.pushes.Load(), l.unknown.Load(), stats.Primary.Switches, stats.Primary.Outages, stats.Primary.OutageTime,
		goroutines, runtime.NumGoroutine(), files, openFiles(t), stats.Pool.Total)
	require.LessOrEqual(t, runtime.NumGoroutine(), goroutines)
	require.LessOrEqual(t, openFiles(t), files+4, "a pool of at most four connections may have grown to that")
	require.LessOrEqual(t, stats.Pool.Total, 8)
	require.Equal(t, c.registry.open(), stats.Pool.Total)
}

// settle waits until the fixture is ready for another fault.
func settle(t *testing.T, s *redistest.Sentinels) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, s.Settled(ctx))
}

// openFiles is the number of this process' open files.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc: ", err)
	}
	return len(entries)
}
