// Httpcache serves users over HTTP from a slow source, by cache-aside: each request
// has a scope, so that its layers ask Redis once for a user, and a user whose TTL is
// over is served while one request, of all processes, has it refreshed. It uses the
// cache of the environment, or else one inside this process.
//
//	go run ./examples/httpcache
//	go run ./examples/httpcache -addr :8080   # serves until it is interrupted
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"time"

	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

func main() {
	addr := flag.String("addr", "", "where to serve until interrupted; without, a short tour is shown")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr string, out io.Writer) (err error) {
	cfg, err := redisha.FromEnv()
	if err != nil {
		return err
	}
	if cfg.Cache.URL == "" {
		server, err := redishatest.Start()
		if err != nil {
			return err
		}
		defer server.Close()
		cfg = server.Config()
	}
	clients, err := redisha.Open(ctx, redisha.Config{Namespace: cfg.Namespace, Application: "httpcache", Cache: cfg.Cache})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clients.Close()) }()

	tour := addr == ""
	if tour {
		addr = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	src := new(source)
	server := &http.Server{Handler: newHandler(clients.Cache, src), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		ending, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		err = errors.Join(err, server.Shutdown(ending))
		if end := <-served; !errors.Is(end, http.ErrServerClosed) {
			err = errors.Join(err, end)
		}
	}()
	if tour {
		return show(ctx, "http://"+listener.Addr().String(), clients.Cache, src, out)
	}
	fmt.Fprintf(out, "serving on http://%s/users/1\n", listener.Addr())
	<-ctx.Done()
	return nil
}

// show asks for a user a few times, and tells what that has cost.
func show(ctx context.Context, url string, client *cache.Client, src *source, out io.Writer) error {
	steps := []struct{ method, path, what string }{
		{http.MethodGet, "/users/1", "a miss, which is loaded once"},
		{http.MethodGet, "/users/1", "a hit"},
		{http.MethodPut, "/users/1?name=Grace", "a write, which deletes the key"},
		{http.MethodGet, "/users/1", "a miss, which finds the new name"},
		{http.MethodGet, "/users/404", "an absence, which is cached too"},
		{http.MethodGet, "/users/404", "the absence"},
	}
	for _, s := range steps {
		status, body, err := call(ctx, s.method, url+s.path)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s %s: %d %s (%s)\n", s.method, s.path, status, body, s.what)
	}
	st := client.Stats()
	_, err := fmt.Fprintf(out, "%d loads of the source, %d reads found in a request's scope\n", src.loads.Load(), st.ScopeHits)
	return err
}

func call(ctx context.Context, method, url string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return 0, nil, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, body, err
}

type user struct {
	ID   int    `json:"id"`
	Name string `json:"name"`
}

// newHandler serves the users of src.
func newHandler(client *cache.Client, src *source) http.Handler {
	users := cache.NewView[int, user](client, "user", cache.ViewConfig{
		TTL:      time.Minute,
		StaleFor: time.Hour, // as long an old user serves while the source fails
	})
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /users/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.Atoi(r.PathValue("id"))
		if err != nil {
			http.Error(w, "the ID is no number", http.StatusBadRequest)
			return
		}
		src.rename(id, r.FormValue("name")) // first the source, then the cache
		if err := users.Delete(r.Context(), id); err != nil {
			// The Delete is repeated in the background. Until then other processes may
			// serve the old name: say so, rather than nothing.
			http.Error(w, "renamed; the old name may be seen for a while: "+err.Error(), http.StatusAccepted)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /users/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.Atoi(r.PathValue("id"))
		if err != nil {
			http.Error(w, "the ID is no number", http.StatusBadRequest)
			return
		}
		u, err := users.Fetch(r.Context(), id, src.load)
		switch {
		case errors.Is(err, cache.ErrNotFound):
			http.Error(w, "no such user", http.StatusNotFound)
			return
		case err != nil: // the source's: an outage of Redis is none
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(u)
	})
	// What checks the caller asks for the same user as the handler behind it does, and
	// what it has found is in the request's scope then.
	return client.Middleware(known(users, src, mux))
}

// known counts users that are there, before next serves.
func known(users *cache.View[int, user], src *source, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var id int
		if _, err := fmt.Sscanf(r.URL.Path, "/users/%d", &id); err == nil && r.Method == http.MethodGet {
			if _, err := users.Fetch(r.Context(), id, src.load); err == nil {
				src.known.Add(1)
			}
		}
		next.ServeHTTP(w, r)
	})
}
