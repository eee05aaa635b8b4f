package broker_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/broker/result"
)

// What failed for a reason that is gone runs again.
func ExampleInspector() {
	rdb, closeAll := connect()
	defer closeAll()
	client, _ := broker.New(rdb, broker.Config{})
	defer client.Close()
	results, _ := result.New(rdb, result.Config{})
	defer results.Close()

	ctx := context.Background()
	worker, _ := broker.NewWorker(client, broker.WorkerConfig{Results: results})
	charge := broker.NewResultTask[int, string]("charge", broker.TaskConfig{Queue: "bills", MaxAttempts: 1})
	charge.Handle(worker, func(context.Context, int) (string, error) { return "", errors.New("the bank is closed") })
	working, stop := context.WithCancel(ctx)
	stopped := make(chan error)
	go func() { stopped <- worker.Run(working) }()
	id, _ := charge.Publish(ctx, client, 42)
	_, err := charge.Wait(ctx, results, id)
	fmt.Println(err != nil)
	stop()
	<-stopped

	inspector, _ := broker.NewInspector(client, results)
	for task, err := range inspector.Tasks(ctx, "bills", broker.Dead) {
		fmt.Println(task.Task, string(task.Payload), task.Reason, task.Error, err)
	}
	fmt.Println(inspector.RetryDead(ctx, "bills", broker.DeadFilter{Task: "charge"}))

	again, _ := broker.NewWorker(client, broker.WorkerConfig{Results: results})
	charge.Handle(again, func(_ context.Context, bill int) (string, error) { return fmt.Sprint("bill ", bill, " is paid"), nil })
	working, stop = context.WithCancel(ctx)
	go func() { stopped <- again.Run(working) }()
	fmt.Println(charge.Wait(ctx, results, id))
	stop()
	<-stopped
	// Output:
	// true
	// charge 42 exhausted the bank is closed <nil>
	// 1 <nil>
	// bill 42 is paid <nil>
}

// A handler says how far it is; whoever knows the task's ID can look.
func ExampleDelivery_Progress() {
	rdb, closeAll := connect()
	defer closeAll()
	client, _ := broker.New(rdb, broker.Config{})
	defer client.Close()
	results, _ := result.New(rdb, result.Config{})
	defer results.Close()

	ctx := context.Background()
	worker, _ := broker.NewWorker(client, broker.WorkerConfig{Results: results})
	half, goOn := make(chan bool), make(chan bool)
	count := broker.NewResultTask[int, string]("count", broker.TaskConfig{})
	count.Handle(worker, func(ctx context.Context, n int) (string, error) {
		if err := broker.FromContext(ctx).Progress(ctx, n/2); err != nil {
			return "", err
		}
		half <- true
		<-goOn
		return "done", nil
	})
	working, stop := context.WithCancel(ctx)
	stopped := make(chan error)
	go func() { stopped <- worker.Run(working) }()
	id, _ := count.Publish(ctx, client, 100)
	<-half
	for {
		r, _ := results.Get(ctx, id) // it is stored within a moment
		if r.State == result.Progress {
			fmt.Println(r.State, string(r.Progress))
			break
		}
	}
	goOn <- true
	fmt.Println(count.Wait(ctx, results, id))
	stop()
	<-stopped
	// Output:
	// progress 50
	// done <nil>
}
