package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func TestProgressIsShownUntilTheResultIsThere(t *testing.T) {
	for _, name := range []string{"REDIS_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "REDISHA_BROKER_URL", "REDISHA_RESULTS_URL"} {
		t.Setenv(name, "")
	}
	var out strings.Builder
	require.NoError(t, run(t.Context(), &out))
	require.Regexp(t, `progress: "\d+ of 1000 rows"\n`, out.String())
	require.True(t, strings.HasSuffix(out.String(), "\n1000 rows imported\n"), out.String())
}
