// Worker runs tasks until it is interrupted, then finishes what it has begun. It
// uses the servers of the environment, or else one inside this process, and then
// publishes something to do.
//
//	go run ./examples/worker
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

type Mail struct{ To, Subject string }

// Tasks are package-level variables, which publishers and workers share.
var sendMail = broker.NewTask[Mail]("mail.send", broker.TaskConfig{
	Queue:       "mail",
	MaxAttempts: 5,
	Timeout:     10 * time.Second,
	Backoff:     func(int, error) time.Duration { return 100 * time.Millisecond },
})

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
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
	embedded := cfg.Broker.URL == ""
	if embedded {
		server, err := redishatest.Start()
		if err != nil {
			return err
		}
		defer server.Close()
		cfg = server.Config()
	}
	clients, err := redisha.Open(ctx, redisha.Config{Namespace: cfg.Namespace, Application: "worker", Broker: cfg.Broker})
	if err != nil {
		return err
	}
	defer clients.Close()

	worker, err := broker.NewWorker(clients.Broker, broker.WorkerConfig{Concurrency: 4})
	if err != nil {
		return err
	}
	sendMail.Handle(worker, func(ctx context.Context, m Mail) error { return send(ctx, out, m) })
	if embedded {
		for _, m := range []Mail{{"ada@example.com", "Notes"}, {"grace@example.com", "Moth"}, {"nobody", "?"}} {
			if _, err := sendMail.Publish(ctx, clients.Broker, m); err != nil {
				return err
			}
		}
	}
	fmt.Fprintln(out, "working; interrupt me")
	return worker.Run(ctx) // returns when all that it has begun is finished
}

// send may be called more than once for one mail: the ID of the delivery is the
// same each time, so that a mail server could recognise it.
func send(ctx context.Context, out io.Writer, m Mail) error {
	d := broker.FromContext(ctx)
	switch {
	case m.To == "nobody":
		fmt.Fprintf(out, "set aside: %q to %s\n", m.Subject, m.To)
		return broker.Reject(errors.New("no such address")) // trying again would not help
	case d.Attempt == 1 && m.Subject == "Moth":
		return errors.New("connection refused") // tried again after its backoff
	}
	fmt.Fprintf(out, "sent: %q to %s, attempt %d\n", m.Subject, m.To, d.Attempt)
	return nil
}
