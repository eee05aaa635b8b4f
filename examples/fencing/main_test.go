package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

const want = `a has the lock, and counts: stock is 10; a is about to write 11
a is paused, by a garbage collection or a hypervisor
b has the lock, since a's lease has ended
b writes 9
a goes on, and is refused: fenced off: a later holder of the lock has written
stock is 9
a learns of it when it releases its lease: true
`

// on runs the example with the locks of the given server, "" for one of its own.
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

func TestThePausedHolderIsRefusedWithoutAServer(t *testing.T) { require.Equal(t, want, on(t, "")) }

func TestThePausedHolderIsRefusedOnAServer(t *testing.T) {
	require.Equal(t, want, on(t, redistest.New(t, redistest.Config{}).URL()))
}
