// Cron lets four processes with the same schedule run a job once at each tick. It
// uses the server of REDISHA_LOCKS_URL, or else one inside this process.
//
//	go run ./examples/cron
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A schedule remembers the last tick of a job. It stands for a row in a database:
//
//	UPDATE job SET last = $1, fence = $2 WHERE name = 'report' AND fence <= $2
type schedule struct {
	mu    sync.Mutex
	last  int
	fence int64
}

func (s *schedule) due(tick int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return tick > s.last
}

func (s *schedule) done(tick int, token int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if token < s.fence {
		return lock.ErrFenced
	}
	s.last, s.fence = tick, token
	return nil
}

// once runs the job of a tick, unless another process has. The lock alone would not
// do: a process whose clock is late finds it free again when the job is done. One
// whose job fails, or who dies, leaves the tick to the next in the queue.
func once(ctx context.Context, locks *lock.Client, s *schedule, tick int, job func(context.Context) error) error {
	return locks.Do(ctx, "cron:report", func(ctx context.Context, lease *lock.Lease) error {
		if !s.due(tick) {
			return nil
		}
		if err := job(ctx); err != nil { // its context ends when the lease is lost
			return err
		}
		return s.done(tick, lease.Token())
	}, lock.TTL(5*time.Second), lock.Class("cron"))
}

func run(ctx context.Context, out io.Writer) error {
	cfg, err := redisha.FromEnv()
	if err != nil {
		return err
	}
	if cfg.Locks.URL == "" {
		server, err := redishatest.Start()
		if err != nil {
			return err
		}
		defer server.Close()
		cfg.Locks.URL = server.URL()
	}
	cfg = redisha.Config{Namespace: "cron", Locks: cfg.Locks}

	const processes, ticks, every = 4, 3, 200 * time.Millisecond
	var report schedule
	start := time.Now()
	errs := make([]error, processes)
	var running sync.WaitGroup
	for i := range processes {
		running.Go(func() {
			clients, err := redisha.Open(ctx, cfg)
			if err != nil {
				errs[i] = err
				return
			}
			defer clients.Close()
			for tick := 1; tick <= ticks; tick++ {
				time.Sleep(time.Until(start.Add(time.Duration(tick) * every)))
				errs[i] = errors.Join(errs[i], once(ctx, clients.Locks, &report, tick, func(context.Context) error {
					_, err := fmt.Fprintf(out, "tick %d: process %d writes the report\n", tick, i+1)
					return err
				}))
			}
		})
	}
	running.Wait()
	return errors.Join(errs...)
}
