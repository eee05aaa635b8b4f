package main

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha/redishatest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// on runs the example on the given server, "" for one of its own.
func on(t *testing.T, url string) string {
	t.Helper()
	for _, name := range []string{"REDIS_URL", "CELERY_BROKER_URL", "CELERY_ONCE_REDIS_URL", "REDISHA_BROKER_URL"} {
		t.Setenv(name, "")
	}
	t.Setenv("REDISHA_LOCKS_URL", url)
	var out strings.Builder // guarded by the lock
	require.NoError(t, run(t.Context(), &out))
	return out.String()
}

const eachTickOnce = `^tick 1: process \d writes the report\ntick 2: process \d writes the report\ntick 3: process \d writes the report\n$`

func TestAJobRunsOnceAtEachTickWithoutAServer(t *testing.T) {
	require.Regexp(t, eachTickOnce, on(t, ""))
}

func TestAJobRunsOnceAtEachTickOnAServer(t *testing.T) {
	require.Regexp(t, eachTickOnce, on(t, redistest.New(t, redistest.Config{}).URL()))
}

func TestAJobThatFailsIsLeftToTheNext(t *testing.T) {
	locks := redishatest.New(t).Open(t).Locks
	var s schedule
	runs := 0
	job := func(context.Context) error {
		if runs++; runs == 1 {
			return context.DeadlineExceeded
		}
		return nil
	}
	require.ErrorIs(t, once(t.Context(), locks, &s, 1, job), context.DeadlineExceeded)
	require.NoError(t, once(t.Context(), locks, &s, 1, job))
	require.NoError(t, once(t.Context(), locks, &s, 1, job))
	require.Equal(t, 2, runs)
	require.ErrorIs(t, s.done(2, 1), lock.ErrFenced, "of one that was paused")
}
