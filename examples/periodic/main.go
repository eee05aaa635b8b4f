// Periodic lets three processes with the same schedules publish periodic tasks, and
// a worker run each tick once. It uses the server of REDISHA_BROKER_URL, or else one
// inside this process.
//
//	go run ./examples/periodic
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

	"github.com/redisha/redisha/broker"
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

var (
	report = broker.NewTask[string]("report", broker.TaskConfig{Queue: "reports"})
	beat   = broker.NewTask[int]("beat", broker.TaskConfig{Queue: "reports"})
)

const (
	processes = 3
	beats     = 3
)

func run(ctx context.Context, out io.Writer) error {
	cfg, err := redisha.FromEnv()
	if err != nil {
		return err
	}
	if cfg.Broker.URL == "" {
		server, err := redishatest.Start()
		if err != nil {
			return err
		}
		defer server.Close()
		cfg.Broker.URL = server.URL()
	}
	cfg = redisha.Config{Namespace: "periodic", Broker: cfg.Broker}
	ctx, done := context.WithCancel(ctx)
	defer done()
	seen := &log{out: out, ids: make(map[string]bool), enough: done}
	errs := make([]error, processes)
	var all sync.WaitGroup
	for i := range processes {
		all.Go(func() { errs[i] = process(ctx, cfg, seen) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// A log shows which ticks were run, in all processes.
type log struct {
	out    io.Writer
	enough func()

	mu  sync.Mutex
	ids map[string]bool
}

func (l *log) ran(id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids[id] {
		return fmt.Errorf("%s came twice", id)
	}
	l.ids[id] = true
	if n := len(l.ids); n <= beats {
		fmt.Fprintln(l.out, "beat", n)
	}
	if len(l.ids) == beats {
		l.enough()
	}
	return nil
}

// process is what each process of a deployment does.
func process(ctx context.Context, cfg redisha.Config, seen *log) error {
	clients, err := redisha.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer clients.Close()

	scheduler, err := broker.NewScheduler(clients.Broker, broker.SchedulerConfig{})
	if err != nil {
		return err
	}
	report.Schedule(scheduler, "weekly", "30 8 * * MON", "sales", broker.Unique("sales"))
	beat.Schedule(scheduler, "beat", "@every 1s", 1)

	worker, err := broker.NewWorker(clients.Broker, broker.WorkerConfig{Queues: []string{"reports"}})
	if err != nil {
		return err
	}
	report.Handle(worker, func(context.Context, string) error { return nil })
	beat.Handle(worker, func(ctx context.Context, _ int) error {
		return seen.ran(broker.FromContext(ctx).ID) // tick:beat:<time>, the same for all processes
	})

	var both sync.WaitGroup
	var errs [2]error
	both.Go(func() { errs[0] = scheduler.Run(ctx) })
	both.Go(func() { errs[1] = worker.Run(ctx) })
	both.Wait()
	return errors.Join(errs[:]...)
}
