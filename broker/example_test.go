package broker_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/testserver"
)

// connect returns a client of an embedded server.
func connect() (rdb *redis.Client, closeAll func()) {
	server, err := testserver.Start()
	if err != nil {
		panic(err)
	}
	rdb = redis.NewClient(server.Options())
	return rdb, func() {
		_ = rdb.Close()
		server.Close()
	}
}

type Mail struct{ To, Subject string }

// Tasks are package-level variables which publishers and workers share.
var sendMail = broker.NewTask[Mail]("mail.send", broker.TaskConfig{Queue: "mail", MaxAttempts: 5})

func Example() {
	rdb, closeAll := connect()
	defer closeAll()
	client, err := broker.New(rdb, broker.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()

	// In one process:
	worker, err := broker.NewWorker(client, broker.WorkerConfig{Concurrency: 4})
	if err != nil {
		fmt.Println(err)
		return
	}
	sent := make(chan string)
	sendMail.Handle(worker, func(ctx context.Context, m Mail) error {
		sent <- fmt.Sprintf("%q to %s, attempt %d", m.Subject, m.To, broker.FromContext(ctx).Attempt)
		return nil
	})
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error)
	go func() { stopped <- worker.Run(ctx) }()

	// In another one:
	_, err = sendMail.Publish(ctx, client, Mail{To: "ada@example.com", Subject: "Notes"})
	fmt.Println(<-sent, err)

	stop()
	fmt.Println(<-stopped)
	// Output:
	// "Notes" to ada@example.com, attempt 1 <nil>
	// <nil>
}

// The error that a handler returns decides what becomes of the task.
func ExampleTask_Handle() {
	rdb, closeAll := connect()
	defer closeAll()
	client, _ := broker.New(rdb, broker.Config{})
	defer client.Close()
	worker, _ := broker.NewWorker(client, broker.WorkerConfig{})

	errBusy, errNoSuchUser := errors.New("busy"), errors.New("no such user")
	calls := make(chan string, 3)
	greet := broker.NewTask[string]("greet", broker.TaskConfig{})
	greet.Handle(worker, func(ctx context.Context, user string) error {
		attempt := broker.FromContext(ctx).Attempt
		calls <- fmt.Sprint(user, " ", attempt)
		switch {
		case user == "nobody":
			return broker.Reject(errNoSuchUser) // a dead letter: trying again would not help
		case attempt == 1:
			return broker.RetryAfter(time.Millisecond, errBusy)
		}
		return nil // done
	})
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error)
	go func() { stopped <- worker.Run(ctx) }()

	_, _ = greet.Publish(ctx, client, "ada")
	fmt.Println(<-calls)
	fmt.Println(<-calls)
	_, _ = greet.Publish(ctx, client, "nobody")
	fmt.Println(<-calls)
	stop()
	<-stopped

	letters, _ := client.DeadLetters(context.Background(), "default", 10)
	for _, l := range letters {
		fmt.Println(l.Task, string(l.Payload), l.Reason, l.Error)
	}
	// Output:
	// ada 1
	// ada 2
	// nobody 1
	// greet "nobody" rejected broker: reject: no such user
}

// A task with a result, which its publisher waits for.
func ExampleResultTask() {
	rdb, closeAll := connect()
	defer closeAll()
	client, _ := broker.New(rdb, broker.Config{})
	defer client.Close()
	results, _ := result.New(rdb, result.Config{})
	defer results.Close()

	double := broker.NewResultTask[int, int]("double", broker.TaskConfig{})
	worker, _ := broker.NewWorker(client, broker.WorkerConfig{Results: results})
	double.Handle(worker, func(_ context.Context, n int) (int, error) { return 2 * n, nil })
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error)
	go func() { stopped <- worker.Run(ctx) }()

	id, _ := double.Publish(ctx, client, 21)
	n, err := double.Wait(ctx, results, id)
	fmt.Println(n, err)
	stop()
	<-stopped
	// Output: 42 <nil>
}

// A given ID makes a publish repeatable: one order, one task.
func ExampleID() {
	rdb, closeAll := connect()
	defer closeAll()
	client, _ := broker.New(rdb, broker.Config{})
	defer client.Close()

	ctx := context.Background()
	ship := broker.NewTask[int]("ship", broker.TaskConfig{})
	for range 3 {
		fmt.Println(ship.Publish(ctx, client, 42, broker.ID("order:42")))
	}
	info, _ := client.Queue(ctx, "default")
	fmt.Printf("%+v\n", info)
	// Output:
	// order:42 <nil>
	// order:42 <nil>
	// order:42 <nil>
	// {Ready:1 InFlight:0 Delayed:0 Parked:0 Dead:0 Paused:false}
}

// A delayed task waits in Redis, not in a worker.
func ExampleAfter() {
	rdb, closeAll := connect()
	defer closeAll()
	client, _ := broker.New(rdb, broker.Config{})
	defer client.Close()

	ctx := context.Background()
	remind := broker.NewTask[string]("remind", broker.TaskConfig{})
	_, err := remind.Publish(ctx, client, "tea", broker.After(3*time.Minute), broker.Header("traceparent", "00-…"))
	info, _ := client.Queue(ctx, "default")
	fmt.Printf("%+v %v\n", info, err)
	// Output: {Ready:0 InFlight:0 Delayed:1 Parked:0 Dead:0 Paused:false} <nil>
}

// A request that may be repeated, and must not have two tasks at the same time.
func ExampleUnique() {
	rdb, closeAll := connect()
	defer closeAll()
	client, err := broker.New(rdb, broker.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	for range 2 {
		_, err := sendMail.Publish(context.Background(), client, Mail{To: "ada@example.com"}, broker.ID("order:7"), broker.Unique("mail:ada"))
		fmt.Println(err) // the same ID: the same task
	}
	_, err = sendMail.Publish(context.Background(), client, Mail{To: "ada@example.com"}, broker.Unique("mail:ada"))
	var duplicate *broker.DuplicateError
	if errors.As(err, &duplicate) {
		fmt.Println("waits or runs:", duplicate.ID)
	}
	// Output:
	// <nil>
	// <nil>
	// waits or runs: order:7
}

func ExampleTask_PublishMany() {
	rdb, closeAll := connect()
	defer closeAll()
	client, err := broker.New(rdb, broker.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	mails := []Mail{{To: "ada@example.com"}, {To: "grace@example.com"}}
	published, err := sendMail.PublishMany(context.Background(), client, mails, broker.ID("newsletter:7"))
	fmt.Println(err)
	for i, p := range published {
		fmt.Println(mails[i].To, p.ID, p.Err)
	}
	// Output:
	// <nil>
	// ada@example.com newsletter:7:0 <nil>
	// grace@example.com newsletter:7:1 <nil>
}

// Each process may have a scheduler: a tick is one task all the same.
func ExampleScheduler() {
	rdb, closeAll := connect()
	defer closeAll()
	client, err := broker.New(rdb, broker.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	scheduler, err := broker.NewScheduler(client, broker.SchedulerConfig{Location: time.UTC})
	if err != nil {
		fmt.Println(err)
		return
	}
	sendMail.Schedule(scheduler, "weekly report", "30 8 * * MON", Mail{To: "ada@example.com", Subject: "Last week"})
	sendMail.Schedule(scheduler, "ping", "@every 5m", Mail{To: "ops@example.com"}, broker.Unique("ping"), broker.ExpireAfter(time.Minute))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond) // until the program ends
	defer cancel()
	fmt.Println(scheduler.Run(ctx))
	// Output: <nil>
}

// A middleware that logs each attempt and hands the trace on.
func ExampleMiddleware() {
	rdb, closeAll := connect()
	defer closeAll()
	client, _ := broker.New(rdb, broker.Config{})
	defer client.Close()

	type traceKey struct{}
	logged := func(next broker.Handler) broker.Handler {
		return func(ctx context.Context, d *broker.Delivery) error {
			ctx = context.WithValue(ctx, traceKey{}, d.Header("traceparent"))
			err := next(ctx, d)
			fmt.Println("logged:", d.Task, d.Attempt, err)
			return err
		}
	}
	worker, _ := broker.NewWorker(client, broker.WorkerConfig{Middleware: []broker.Middleware{logged}})
	greet := broker.NewTask[string]("greet", broker.TaskConfig{})
	done := make(chan struct{})
	greet.Handle(worker, func(ctx context.Context, name string) error {
		fmt.Println("Hello,", name, ctx.Value(traceKey{}))
		if broker.FromContext(ctx).Unfinished == 0 {
			close(done)
		}
		return nil
	})
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error)
	go func() { stopped <- worker.Run(ctx) }()

	greet.Publish(ctx, client, "Ada", broker.Header("traceparent", "00-4bf9-01"))
	<-done
	stop()
	<-stopped
	// Output:
	// Hello, Ada 00-4bf9-01
	// logged: greet 1 <nil>
}
