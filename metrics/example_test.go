package metrics_test

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/metrics"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

func ExampleNewCollector() {
	redis, err := redishatest.Start() // a server in memory
	if err != nil {
		log.Fatal(err)
	}
	defer redis.Close()

	ctx := context.Background()
	cfg := redisha.Config{Cache: redisha.CacheConfig{Endpoint: redisha.Endpoint{URL: redis.URL()}}}
	cfg.Cache.Config.ReadTimeout = 5 * time.Second
	clients, err := redisha.Open(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer clients.Close()

	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics.NewCollector(clients))
	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	defer server.Close()

	users := cache.NewView[int64, string](clients.Cache, "user", cache.ViewConfig{TTL: time.Minute})
	load := func(context.Context, int64) (string, error) { return "Grace", nil }
	for range 10 {
		if _, err := users.Fetch(ctx, 42, load); err != nil {
			log.Fatal(err)
		}
	}

	response, err := http.Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "redisha_cache_reads_total") {
			fmt.Println(lines.Text())
		}
	}
	// Output:
	// redisha_cache_reads_total{outcome="absence",role="cache"} 0
	// redisha_cache_reads_total{outcome="hit",role="cache"} 9
	// redisha_cache_reads_total{outcome="miss",role="cache"} 1
	// redisha_cache_reads_total{outcome="stale",role="cache"} 0
}
