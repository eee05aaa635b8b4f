package redishatest_test

import (
	"context"
	"fmt"
	"time"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

func Example() {
	srv, err := redishatest.Start() // in a test: redishatest.New(t)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer srv.Close()
	clients, err := redisha.Open(context.Background(), srv.Config())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer clients.Close()
	lease, err := clients.Locks.TryAcquire(context.Background(), "report")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(lease.Key(), lease.Release(context.Background()))
	// Output: report <nil>
}

// The primary dies while a program stores a result, and a replica takes over.
// In a test, with redishatest.NewSentinels(t) inside synctest.Test, the second
// takes no time.
func ExampleSentinels() {
	deployment, err := redishatest.StartSentinels() // in a test: redishatest.NewSentinels(t)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer deployment.Close()
	clients, err := redisha.Open(context.Background(), deployment.Config()) // in a test: deployment.Open(t)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer clients.Close()

	deployment.Primary().Stop()
	time.AfterFunc(time.Second, func() { _ = deployment.Failover() })

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stored, err := clients.Results.Store(ctx, result.Record{ID: "job-1", State: result.Success})
	fmt.Println(stored, err)
	// Output: true <nil>
}

// With replication that lags, a failover loses what was written last.
func ExampleSentinels_SetLag() {
	deployment, err := redishatest.StartSentinels()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer deployment.Close()
	clients, err := redisha.Open(context.Background(), deployment.Config())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer clients.Close()

	ctx := context.Background()
	store := func(id string) { _, _ = clients.Results.Store(ctx, result.Record{ID: id, State: result.Success}) }
	store("early")
	_ = deployment.SetLag(true)
	store("late")
	_ = deployment.Failover()

	early, _ := clients.Results.Get(ctx, "early")
	late, _ := clients.Results.Get(ctx, "late")
	fmt.Println(early.State, late.State)
	// Output: success pending
}

// The reply to a command is lost after it was executed.
func ExampleServer_CutReplies() {
	srv, err := redishatest.Start()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer srv.Close()
	clients, err := redisha.Open(context.Background(), srv.Config())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer clients.Close()

	srv.CutReplies(1)
	id, err := shout.Publish(context.Background(), clients.Broker, "once")
	fmt.Println(id != "", err) // sent again, and applied once
	// Output: true <nil>
}
