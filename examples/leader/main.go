// Leader lets two instances of a service elect one of them. An operator then takes
// the lease away from the leader, which steps down, and the other one takes over.
// It uses the server of REDISHA_LOCKS_URL, or else one inside this process.
//
//	go run ./examples/leader
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

const ttl = time.Second // so long nobody leads after a leader has died

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// campaign stands for election until ctx ends. Elected, it calls lead, which must
// return when the context that it is given ends: another may lead then.
func campaign(ctx context.Context, locks *lock.Client, lead func(context.Context, *lock.Lease) error) {
	for {
		err := locks.Do(ctx, "leader", lead, lock.TTL(ttl), lock.Class("election"))
		if ctx.Err() != nil {
			return
		}
		fmt.Fprintln(os.Stderr, "campaign:", err) // lease lost, or no server: let others go first
		select {
		case <-time.After(2 * ttl):
		case <-ctx.Done():
			return
		}
	}
}

func run(ctx context.Context, out io.Writer) error {
	cfg, err := redisha.FromEnv()
	if err != nil {
		return err
	}
	if cfg.Locks.URL == "" {
		server, err := redishatest.Start()
		if err != nil {
			return err
		}
		defer server.Close()
		cfg.Locks.URL = server.URL()
	}
	cfg = redisha.Config{Namespace: "leader", Locks: cfg.Locks}

	ctx, stop := context.WithCancel(ctx)
	elected := make(chan int64)
	var printing sync.Mutex
	say := func(name, event string) {
		printing.Lock()
		defer printing.Unlock()
		fmt.Fprintln(out, name, event)
	}
	var instances sync.WaitGroup
	defer instances.Wait()
	defer stop()
	start := func(name string) (*redisha.Clients, error) {
		clients, err := redisha.Open(ctx, cfg)
		if err != nil {
			return nil, err
		}
		instances.Go(func() {
			defer clients.Close()
			campaign(ctx, clients.Locks, func(ctx context.Context, lease *lock.Lease) error {
				say(name, "leads")
				select {
				case elected <- lease.Token(): // a leader passes it with all that it writes
				case <-ctx.Done():
				}
				<-ctx.Done() // it does its work until then
				say(name, "steps down: "+context.Cause(ctx).Error())
				return nil
			})
		})
		return clients, nil
	}

	if _, err := start("a"); err != nil {
		return err
	}
	token, err := next(ctx, elected)
	if err != nil {
		return err
	}
	b, err := start("b")
	if err != nil {
		return err
	}
	if _, err := b.Locks.Revoke(ctx, "leader", token); err != nil { // as an operator may
		return err
	}
	_, err = next(ctx, elected)
	return err
}

func next(ctx context.Context, elected <-chan int64) (token int64, err error) {
	select {
	case token = <-elected:
		return token, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}
