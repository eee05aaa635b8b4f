package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// unset leaves the environment without configuration.
func unset(t *testing.T) {
	for _, name := range []string{
		"REDIS_URL", "CACHE_DEFAULT", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CELERY_ONCE_REDIS_URL",
		"REDISHA_CACHE_URL", "REDISHA_BROKER_URL", "REDISHA_RESULTS_URL", "REDISHA_LOCKS_URL",
	} {
		t.Setenv(name, "")
	}
}

func TestTheQuickstartNeedsNoServer(t *testing.T) {
	unset(t)
	var out strings.Builder
	require.NoError(t, run(t.Context(), nil, &out))
	require.Contains(t, out.String(), "100 callers fetched one cold key, the database was asked 1 time(s)")
	require.Contains(t, out.String(), "1000 tasks published, run by 16 slots of one worker, and 1000 results awaited")
	require.Contains(t, out.String(), "2 contenders took 20 turns on one lock, never both at once")
	require.Equal(t, 4, strings.Count(out.String(), "(embedded server)"))
}

func TestTheQuickstartUsesTheServersOfTheEnvironment(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Password: "s3cret"})
	unset(t)
	t.Setenv("REDIS_URL", srv.URL())
	var out strings.Builder
	require.NoError(t, run(t.Context(), nil, &out))
	require.Equal(t, 4, strings.Count(out.String(), "(from the environment)"))
	require.Contains(t, out.String(), srv.Addr())
	require.NotContains(t, out.String(), "s3cret")
	keys, err := srv.Client(t).Keys(t.Context(), "quickstart:*").Result()
	require.NoError(t, err)
	require.NotEmpty(t, keys)
}

func TestTheQuickstartServesMetricsMeanwhile(t *testing.T) {
	unset(t)
	var out syncBuffer
	ended := make(chan error, 1)
	ctx, interrupt := context.WithCancel(t.Context())
	go func() { ended <- run(ctx, []string{"-metrics", "127.0.0.1:0", "-for", "1h"}, &out) }()
	address := regexp.MustCompile(`http://\S+`)
	require.Eventually(t, func() bool { return strings.Contains(out.String(), "locks: 2 contenders") }, time.Minute, time.Millisecond)
	resp, err := http.Get(address.FindString(out.String()))
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), "redisha_")
	http.DefaultClient.CloseIdleConnections()
	interrupt()
	require.NoError(t, <-ended)
}

func TestMistakesAreReported(t *testing.T) {
	unset(t)
	t.Setenv("REDISHA_CACHE_URL", "redis://a,b")
	require.ErrorContains(t, run(t.Context(), nil, io.Discard), "REDISHA_CACHE_URL")
	require.Error(t, run(t.Context(), []string{"-nonsense"}, io.Discard))
	require.ErrorContains(t, run(t.Context(), []string{"surplus"}, io.Discard), `unexpected argument "surplus"`)
	t.Setenv("REDISHA_CACHE_URL", "")
	require.ErrorContains(t, run(t.Context(), []string{"-metrics", "notaport"}, io.Discard), "-metrics notaport: ")
}

// syncBuffer is a buffer for two goroutines.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
