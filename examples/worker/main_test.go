package main

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// A page is written by several handlers.
type page struct {
	mu   sync.Mutex
	text strings.Builder
}

func (p *page) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func (p *page) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

func TestTheWorkerSendsRetriesAndSetsAside(t *testing.T) {
	for _, name := range []string{"REDIS_URL", "CELERY_BROKER_URL", "REDISHA_BROKER_URL"} {
		t.Setenv(name, "")
	}
	var out page
	ctx, interrupt := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, &out) }()
	for _, want := range []string{`sent: "Notes" to ada@example.com, attempt 1`, `sent: "Moth" to grace@example.com, attempt 2`, `set aside: "?" to nobody`} {
		require.Eventually(t, func() bool { return strings.Contains(out.String(), want) }, time.Minute, time.Millisecond, want)
	}
	interrupt()
	require.NoError(t, <-ended)
}
