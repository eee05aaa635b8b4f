package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
)

func Example() {
	ctx := context.Background()
	srv, err := miniredis.Run()
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Close()

	rdb := redis.NewClient(&redis.Options{Addr: srv.Addr(), MaxRetries: -1})
	defer rdb.Close()
	hook, err := breaker.New("cache", srv.Addr(), breaker.Config{})
	if err != nil {
		log.Fatal(err)
	}
	rdb.AddHook(hook)

	fmt.Println(rdb.Set(ctx, "greeting", "hello", 0).Err(), hook.State())

	srv.Close()
	for {
		err := rdb.Get(ctx, "greeting").Err()
		var open *breaker.OpenError
		if errors.As(err, &open) { // not sent: answer from elsewhere, or wait until open.RetryAt
			fmt.Println(open.Role, hook.State(), errors.Is(err, breaker.ErrOpen))
			break
		}
	}
	// Output:
	// <nil> closed
	// cache open true
}

// On Cluster each node has a breaker of its own.
func ExampleHook_cluster() {
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"10.0.0.1:6379"}})
	defer rdb.Close()
	rdb.OnNewNode(func(node *redis.Client) {
		hook, err := breaker.New("broker", node.NodeAddress(), breaker.Config{})
		if err != nil {
			log.Print(err) // of a wrong Config alone
			return
		}
		node.AddHook(hook)
	})
}
