package lock_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/testserver"
	"github.com/redisha/redisha/lock"
)

// client returns a client of a server in memory, and what closes both.
func client() (*lock.Client, func()) {
	srv, err := testserver.Start()
	if err != nil {
		log.Fatal(err)
	}
	rdb := redis.NewClient(srv.Options())
	locks, err := lock.New(rdb, lock.Config{})
	if err != nil {
		log.Fatal(err)
	}
	return locks, func() {
		if err := errors.Join(locks.Close(), rdb.Close()); err != nil {
			log.Fatal(err)
		}
		srv.Close()
	}
}

func ExampleClient_Do() {
	locks, end := client()
	defer end()

	var last int64
	for range 2 {
		err := locks.Do(context.Background(), "report", func(ctx context.Context, l *lock.Lease) error {
			fmt.Println("token grows:", l.Token() > last) // pass it with each write
			last = l.Token()
			return ctx.Err() // ends when the lease is lost
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// token grows: true
	// token grows: true
}

func ExampleClient_TryAcquire() {
	locks, end := client()
	defer end()
	ctx := context.Background()

	lease, err := locks.TryAcquire(ctx, "report", lock.TTL(time.Minute))
	if err != nil {
		log.Fatal(err)
	}
	_, err = locks.TryAcquire(ctx, "report")
	switch {
	case errors.Is(err, lock.ErrNotAcquired):
		fmt.Println("another instance writes the report")
	case err != nil:
		log.Fatal(err)
	}
	fmt.Println("released:", lease.Release(ctx) == nil)
	// Output:
	// another instance writes the report
	// released: true
}

func ExampleClient_Acquire() {
	locks, end := client()
	defer end()
	ctx := context.Background()

	first, err := locks.Acquire(ctx, "report")
	if err != nil {
		log.Fatal(err)
	}
	_, err = locks.Acquire(ctx, "report", lock.MaxWait(20*time.Millisecond))
	fmt.Println(err)

	time.AfterFunc(20*time.Millisecond, func() { _ = first.Release(ctx) })
	second, err := locks.Acquire(ctx, "report")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the first one has ended:", context.Cause(first.Context()))
	fmt.Println("released:", second.Release(ctx) == nil)
	// Output:
	// lock: acquire "report": not acquired: another holds the lock, for 20ms (MaxWait)
	// the first one has ended: context canceled
	// released: true
}
