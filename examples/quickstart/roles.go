package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
)

type user struct {
	ID   int64
	Name string
}

// stampede lets 100 callers want a value at once that nobody has cached.
func stampede(ctx context.Context, clients *redisha.Clients) (string, error) {
	const callers = 100
	users := cache.NewView[int64, user](clients.Cache, "user", cache.ViewConfig{TTL: time.Minute})
	if err := users.Delete(ctx, 42); err != nil { // of an earlier run
		return "", err
	}
	var loads atomic.Int64
	load := func(_ context.Context, id int64) (user, error) {
		loads.Add(1)
		time.Sleep(20 * time.Millisecond) // a slow database
		return user{ID: id, Name: "Grace"}, nil
	}
	errs := make([]error, callers)
	var wait sync.WaitGroup
	for i := range callers {
		wait.Go(func() {
			got, err := users.Fetch(ctx, 42, load)
			if err == nil && got.Name != "Grace" {
				err = fmt.Errorf("fetched %+v", got)
			}
			errs[i] = err
		})
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d callers fetched one cold key, the database was asked %d time(s)", callers, loads.Load()), nil
}

type order struct{ Amount int }

type receipt struct{ Total int }

// charge is a task: a definition that publishers and workers share.
var charge = broker.NewResultTask[order, receipt]("charge", broker.TaskConfig{})

// tasks sends 1,000 tasks through a worker and waits for what each returns.
func tasks(ctx context.Context, clients *redisha.Clients) (string, error) {
	const n = 1000
	worker, err := broker.NewWorker(clients.Broker, broker.WorkerConfig{Concurrency: 16, Results: clients.Results})
	if err != nil {
		return "", err
	}
	charge.Handle(worker, func(_ context.Context, o order) (receipt, error) {
		return receipt{Total: o.Amount * 2}, nil
	})
	working, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- worker.Run(working) }()

	errs := make([]error, n)
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() {
			id, err := charge.Publish(ctx, clients.Broker, order{Amount: i})
			if err != nil {
				errs[i] = err
				return
			}
			got, err := charge.Wait(ctx, clients.Results, id)
			if err == nil && got.Total != 2*i {
				err = fmt.Errorf("task %s returned %+v for %d", id, got, i)
			}
			errs[i] = err
		})
	}
	wait.Wait()
	stop()
	if err := errors.Join(append(errs, <-ended)...); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d tasks published, run by 16 slots of one worker, and %d results awaited", n, n), nil
}

// contenders lets two want the same lock; each adds to a sum that the lock guards.
func contenders(ctx context.Context, clients *redisha.Clients) (string, error) {
	const turns = 10
	var inside, sum int // guarded by the lock alone
	var tokens []int64
	contend := func() error {
		for range turns {
			err := clients.Locks.Do(ctx, "report", func(_ context.Context, lease *lock.Lease) error {
				if inside++; inside != 1 {
					return errors.New("two holders at once")
				}
				sum++
				tokens = append(tokens, lease.Token())
				inside--
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
	errs := make([]error, 2)
	var wait sync.WaitGroup
	for i := range errs {
		wait.Go(func() { errs[i] = contend() })
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	for i := 1; i < len(tokens); i++ {
		if tokens[i] <= tokens[i-1] {
			return "", fmt.Errorf("fencing token %d came after %d", tokens[i], tokens[i-1])
		}
	}
	return fmt.Sprintf("2 contenders took %d turns on one lock, never both at once, and the fencing tokens grew from %d to %d", sum, tokens[0], tokens[len(tokens)-1]), nil
}
