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
	for _, name := range []string{"REDIS_URL", "CELERY_BROKER_URL", "CELERY_ONCE_REDIS_URL", "REDISHA_BROKER_URL"} {
		t.Setenv(name, "")
	}
	t.Setenv("REDISHA_LOCKS_URL", url)
	var out strings.Builder
	require.NoError(t, run(t.Context(), &out))
	return out.String()
}

func requireElections(t *testing.T, out string) {
	t.Helper()
	require.Regexp(t, `^a leads\n`, out)
	require.Contains(t, out, "\na steps down: lock: \"leader\": lease lost: its key was deleted, or another holds it\n")
	require.Contains(t, out, "\nb leads\n")
	require.Regexp(t, `\nb steps down: context canceled\n$`, out)
}

func TestTheLeaderStepsDownWithoutAServer(t *testing.T) { requireElections(t, on(t, "")) }

func TestTheLeaderStepsDownOnAServer(t *testing.T) {
	requireElections(t, on(t, redistest.New(t, redistest.Config{}).URL()))
}
