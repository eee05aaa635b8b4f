// Progress starts a task that takes a while and shows how far it is until its
// result is there. It uses the servers of the environment, or else one inside this
// process.
//
//	go run ./examples/progress
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

var importRows = broker.NewResultTask[int, string]("rows.import", broker.TaskConfig{Queue: "imports"})

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	cfg, err := redisha.FromEnv()
	if err != nil {
		return err
	}
	if cfg.Broker.URL == "" || cfg.Results.URL == "" {
		server, err := redishatest.Start()
		if err != nil {
			return err
		}
		defer server.Close()
		cfg = server.Config()
	}
	clients, err := redisha.Open(ctx, redisha.Config{Namespace: cfg.Namespace, Application: "progress", Broker: cfg.Broker, Results: cfg.Results})
	if err != nil {
		return err
	}
	defer clients.Close()

	// The worker, mostly another process.
	worker, err := broker.NewWorker(clients.Broker, broker.WorkerConfig{Results: clients.Results})
	if err != nil {
		return err
	}
	importRows.Handle(worker, work)
	working, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- worker.Run(working) }()

	id, err := importRows.Publish(ctx, clients.Broker, 1000)
	if err != nil {
		return err
	}
	shown, done := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watch(shown, out, clients.Results, id)
	}()
	answer, err := importRows.Wait(ctx, clients.Results, id) // woken by a message, not by polling
	done()
	<-watched
	stop()
	if err != nil {
		return err
	}
	fmt.Fprintln(out, answer)
	return <-ended
}

// work reports after each row: what is stored is one record each 100 ms.
func work(ctx context.Context, rows int) (string, error) {
	for n := range rows {
		time.Sleep(time.Millisecond)
		if err := broker.FromContext(ctx).Progress(ctx, fmt.Sprintf("%d of %d rows", n+1, rows)); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d rows imported", rows), nil
}

// watch shows what a page in a browser would ask for.
func watch(ctx context.Context, out io.Writer, results *result.Client, id string) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if r, err := results.Get(ctx, id); err == nil && r.State == result.Progress {
			fmt.Fprintf(out, "%s: %s\n", r.State, r.Progress)
		}
	}
}
