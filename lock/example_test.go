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
	locks, err := lock.New(rdb, lock.Config{Holder: "billing"})
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

// The keys have one hash tag, so that they are in one slot of a Cluster.
func ExampleAlso() {
	locks, end := client()
	defer end()
	ctx := context.Background()

	move := func(ctx context.Context, l *lock.Lease) error {
		_, err := locks.TryAcquire(ctx, "{shop}:account:2")
		fmt.Println("the other account is locked, too:", errors.Is(err, lock.ErrNotAcquired))
		return nil
	}
	if err := locks.Do(ctx, "{shop}:account:1", move, lock.Also("{shop}:account:2")); err != nil {
		log.Fatal(err)
	}
	// Output: the other account is locked, too: true
}

func ExampleClass() {
	locks, end := client()
	defer end()
	ctx := context.Background()

	for _, user := range []string{"ada", "grace"} {
		err := locks.Do(ctx, "signup:"+user, func(context.Context, *lock.Lease) error { return nil }, lock.Class("signup"))
		if err != nil {
			log.Fatal(err)
		}
	}
	for _, class := range locks.Stats().Classes {
		fmt.Println(class.Class, class.Acquired)
	}
	// Output:
	// default 0
	// signup 2
}

func ExampleClient_Inspect() {
	locks, end := client()
	defer end()
	ctx := context.Background()

	lease, err := locks.TryAcquire(ctx, "report")
	if err != nil {
		log.Fatal(err)
	}
	info, err := locks.Inspect(ctx, "report")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.State, "by", info.Holder)
	fmt.Println("the holder's token:", info.Token == lease.Token())
	_ = lease.Release(ctx)
	info, err = locks.Inspect(ctx, "report")
	fmt.Println(info.State, err)
	// Output:
	// held by billing
	// the holder's token: true
	// free <nil>
}

// An operator takes a lock from a holder that hangs.
func ExampleClient_Revoke() {
	locks, end := client()
	defer end()
	ctx := context.Background()

	lease, err := locks.TryAcquire(ctx, "report", lock.TTL(lock.MinTTL))
	if err != nil {
		log.Fatal(err)
	}
	info, err := locks.Inspect(ctx, "report")
	if err != nil {
		log.Fatal(err)
	}
	revoked, err := locks.Revoke(ctx, "report", info.Token)
	fmt.Println("revoked:", revoked, err)

	<-lease.Context().Done() // its next renewal is refused
	fmt.Println("lost:", errors.Is(context.Cause(lease.Context()), lock.ErrLost))
	// Output:
	// revoked: true <nil>
	// lost: true
}

// The older lease ends before its holder has written, who does not notice.
func ExampleSetFenced() {
	locks, end := client()
	defer end()
	ctx := context.Background()
	srv, err := testserver.Start()
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Close()
	store := redis.NewClient(srv.Options()) // where the value is; the locks may be elsewhere
	defer store.Close()

	var tokens []int64
	for range 2 {
		lease, err := locks.Acquire(ctx, "stock")
		if err != nil {
			log.Fatal(err)
		}
		tokens = append(tokens, lease.Token())
		_ = lease.Release(ctx)
	}
	older, newer := tokens[0], tokens[1]

	fmt.Println(lock.SetFenced(ctx, store, "stock", 9, newer, time.Hour))
	err = lock.SetFenced(ctx, store, "stock", 11, older, time.Hour)
	fmt.Println("fenced off:", errors.Is(err, lock.ErrFenced))
	fmt.Println("stock:", store.Get(ctx, "stock").Val())
	// Output:
	// <nil>
	// fenced off: true
	// stock: 9
}

// quorum returns five servers in memory, which have run for long enough to be
// trusted, their clients, and what closes all.
func quorum(ttl time.Duration) (servers []*testserver.Server, nodes []redis.UniversalClient, end func()) {
	for range 5 {
		srv, err := testserver.Start()
		if err != nil {
			log.Fatal(err)
		}
		opt := srv.Options()
		opt.MaxRetries, opt.ContextTimeoutEnabled = -1, true // as redisha.Open does
		servers, nodes = append(servers, srv), append(nodes, redis.NewClient(opt))
	}
	time.Sleep(ttl + 2500*time.Millisecond)
	return servers, nodes, func() {
		for i, rdb := range nodes {
			_ = rdb.Close()
			servers[i].Close()
		}
	}
}

// Locks that outlive the loss of any two of five servers.
func ExampleNewQuorum() {
	servers, nodes, end := quorum(2 * time.Second)
	defer end()
	locks, err := lock.NewQuorum(nodes, lock.Config{TTL: 2 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	defer locks.Close()

	servers[3].Close()
	write := func(context.Context, *lock.Lease) error {
		fmt.Println("a server is gone, and the report is written")
		return nil
	}
	if err := locks.Do(context.Background(), "report", write); err != nil {
		log.Fatal(err)
	}
	// Output: a server is gone, and the report is written
}
