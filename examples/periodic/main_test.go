package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// on runs the example on the given server, "" for one of its own.
func on(t *testing.T, url string) string {
	t.Helper()
	for _, name := range []string{"REDIS_URL", "CELERY_BROKER_URL"} {
		t.Setenv(name, "")
	}
	t.Setenv("REDISHA_BROKER_URL", url)
	var out strings.Builder // guarded by the log
	require.NoError(t, run(t.Context(), &out))
	return out.String()
}

func TestEachTickRunsOnceWithoutAServer(t *testing.T) {
	require.Equal(t, "beat 1\nbeat 2\nbeat 3\n", on(t, ""))
}

func TestEachTickRunsOnceOnAServer(t *testing.T) {
	require.Equal(t, "beat 1\nbeat 2\nbeat 3\n", on(t, redistest.New(t, redistest.Config{}).URL()))
}
