// Quickstart runs through the four roles and prints what it did. With nothing
// configured it starts a server inside the process; a role whose variable is set
// (REDISHA_CACHE_URL, REDISHA_BROKER_URL, REDISHA_RESULTS_URL, REDISHA_LOCKS_URL,
// or another that redisha.FromEnv reads) uses that server.
//
//	go run ./examples/quickstart
//	go run ./examples/quickstart -metrics :9100 -for 1m
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/redisha/redisha/metrics"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	addr := flags.String("metrics", "", "serve Prometheus metrics at this `address` meanwhile, such as :9100")
	last := flags.Duration("for", 0, "go round again until this `time` has passed")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: see -help", flags.Arg(0))
	}

	cfg, err := redisha.FromEnv()
	if err != nil {
		return err
	}
	cfg.Namespace = "quickstart"
	cfg.Application = "quickstart"
	// This shows a stampede, not an outage: on a busy machine a hundred callers
	// may wait longer than the 250 ms after which Fetch does without the cache.
	cfg.Cache.Config.ReadTimeout = 5 * time.Second
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	stop, err := fillIn(&cfg, out)
	if err != nil {
		return err
	}
	defer stop()

	clients, err := redisha.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clients.Close()) }()

	if *addr != "" {
		stop, err := serveMetrics(*addr, clients, out)
		if err != nil {
			return err
		}
		defer stop()
	}

	for start := time.Now(); ; {
		for _, step := range []struct {
			name string
			do   func(context.Context, *redisha.Clients) (string, error)
		}{
			{"cache", stampede},
			{"broker and results", tasks},
			{"locks", contenders},
		} {
			began := time.Now()
			report, err := step.do(ctx, clients)
			switch {
			case ctx.Err() != nil:
				return nil // interrupted
			case err != nil:
				return fmt.Errorf("%s: %w", step.name, err)
			}
			fmt.Fprintf(out, "%s: %s\n  took %s\n", step.name, report, time.Since(began).Round(100*time.Microsecond))
		}
		if time.Since(start) >= *last {
			return nil
		}
	}
}

// fillIn lets roles that the environment does not configure use a server inside
// this process, until stop is called.
func fillIn(cfg *redisha.Config, out io.Writer) (stop func(), err error) {
	var embedded *redishatest.Server
	stop = func() {
		if embedded != nil {
			embedded.Close()
		}
	}
	fmt.Fprintln(out, "endpoints")
	for _, role := range []struct {
		name     redisha.Role
		endpoint *redisha.Endpoint
	}{
		{redisha.Cache, &cfg.Cache.Endpoint},
		{redisha.Broker, &cfg.Broker.Endpoint},
		{redisha.Results, &cfg.Results.Endpoint},
		{redisha.Locks, &cfg.Locks.Endpoint},
	} {
		origin := "from the environment"
		if role.endpoint.URL == "" {
			if embedded == nil {
				if embedded, err = redishatest.Start(); err != nil {
					return stop, err
				}
			}
			role.endpoint.URL = embedded.URL()
			origin = "embedded server"
		}
		fmt.Fprintf(out, "  %-8s %s (%s)\n", role.name, role.endpoint.URL, origin)
	}
	return stop, nil
}

// serveMetrics serves the collector until stop is called.
func serveMetrics(addr string, clients *redisha.Clients, out io.Writer) (stop func(), err error) {
	registry := prometheus.NewRegistry()
	if err := registry.Register(metrics.NewCollector(clients)); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("-metrics %s: %w", addr, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // ends with Close
	}()
	fmt.Fprintf(out, "metrics at http://%s/metrics\n", listener.Addr())
	return func() {
		_ = server.Close()
		<-served
	}, nil
}
