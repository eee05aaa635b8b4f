package metrics

import (
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

var update = flag.Bool("update", false, "write testdata anew, to be read before it is committed")

func TestMain(m *testing.M) { redistest.Main(m) }

// open returns clients of all roles and a named cache which have not connected.
func open(tb testing.TB, srv *redishatest.Server) *redisha.Clients {
	tb.Helper()
	cfg := srv.Config()
	cfg.Caches = map[string]redisha.CacheConfig{"sessions": cfg.Cache}
	return openConfig(tb, cfg)
}

func openConfig(tb testing.TB, cfg redisha.Config) *redisha.Clients {
	tb.Helper()
	cfg.Lazy = true
	clients, err := redisha.Open(tb.Context(), cfg)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, clients.Close()) })
	return clients
}

// registryOf returns a registry with a collector of clients. It checks what it
// collects more strictly than others.
func registryOf(tb testing.TB, clients *redisha.Clients) *prometheus.Registry {
	tb.Helper()
	reg := prometheus.NewPedanticRegistry()
	require.NoError(tb, reg.Register(NewCollector(clients)))
	return reg
}

// scrapeText returns what a Prometheus server would get.
func scrapeText(tb testing.TB, from prometheus.Gatherer) string {
	tb.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(from, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	require.Equal(tb, http.StatusOK, w.Code, w.Body.String())
	return w.Body.String()
}

// withoutNode takes the label node away where it is empty, as Prometheus does.
var withoutNode = strings.NewReplacer(`{node=""}`, ``, `{node="",`, `{`, `,node=""`, ``)

// scrape returns the series by name and labels, as redisha_x_total{role="cache"}.
func scrape(tb testing.TB, from prometheus.Gatherer) map[string]float64 {
	tb.Helper()
	series := map[string]float64{}
	for line := range strings.Lines(scrapeText(tb, from)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(strings.TrimSpace(line[at+1:]), 64)
		require.NoError(tb, err, line)
		series[withoutNode.Replace(line[:at])] = value
	}
	return series
}

// requireGolden compares lines with those of a file in testdata.
func requireGolden(tb testing.TB, file string, lines []string) {
	tb.Helper()
	file = "testdata/" + file
	got := strings.Join(lines, "\n") + "\n"
	if *update {
		require.NoError(tb, os.WriteFile(file, []byte(got), 0o644)) //nolint:gosec // no secret
	}
	want, err := os.ReadFile(file)
	require.NoError(tb, err)
	require.Equal(tb, string(want), got, "a dashboard may use the old name; if the change is meant, run the test with -update")
}
