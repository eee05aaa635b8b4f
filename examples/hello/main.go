package main

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
)

// A task is defined once, for those who publish it and those who run it.
var greet = broker.NewResultTask[string, string]("greet", broker.TaskConfig{})

func main() {
	ctx := context.Background()
	cfg, err := redisha.FromEnv(redisha.Cache, redisha.Broker, redisha.Results, redisha.Locks)
	check(err)
	clients, err := redisha.Open(ctx, cfg)
	check(err)
	defer clients.Close()

	names := cache.NewView[int, string](clients.Cache, "name", cache.ViewConfig{TTL: time.Minute})
	name, err := names.Fetch(ctx, 42, loadName) // one load, however many callers and processes
	check(err)

	worker, err := broker.NewWorker(clients.Broker, broker.WorkerConfig{Results: clients.Results})
	check(err)
	greet.Handle(worker, func(_ context.Context, name string) (string, error) { return "Hello, " + name + "!", nil })
	go worker.Run(ctx) // until ctx ends, or Close
	id, err := greet.Publish(ctx, clients.Broker, name)
	check(err)
	greeting, err := greet.Wait(ctx, clients.Results, id)
	check(err)

	check(clients.Locks.Do(ctx, "printer", func(_ context.Context, lease *lock.Lease) error {
		_, err := fmt.Println(greeting) // nobody else prints now; lease.Token() proves it to a resource
		return err
	}))
}

func loadName(context.Context, int) (string, error) { return "Grace", nil } // from your database

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
