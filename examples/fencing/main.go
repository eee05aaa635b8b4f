// Fencing shows the one thing that no lock can prevent, and what does: a holder is
// paused until its lease has gone to another, and then writes what it had made
// before. The store refuses that by the fencing token. It uses the locks of
// REDISHA_LOCKS_URL, or else those of a server inside this process.
//
//	go run ./examples/fencing
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/lock"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) (err error) {
	server, err := redishatest.Start()
	if err != nil {
		return err
	}
	defer server.Close()
	opt, err := redis.ParseURL(string(server.URL()))
	if err != nil {
		return err
	}
	store := redis.NewClient(opt) // what the lock protects, which is not where the lock is
	defer store.Close()

	cfg, err := redisha.FromEnv()
	if err != nil {
		return err
	}
	if cfg.Locks.URL == "" {
		cfg.Locks.URL = server.URL()
	}
	cfg = redisha.Config{Namespace: "fencing", Locks: cfg.Locks}
	b, err := redisha.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	var machine pausable
	cfg.Locks.Dialer = machine.dial
	a, err := redisha.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer a.Close()

	old, err := a.Locks.Acquire(ctx, "stock", lock.TTL(500*time.Millisecond))
	if err != nil {
		return err
	}
	if err := lock.SetFenced(ctx, store, "stock", 10, old.Token(), time.Hour); err != nil {
		return err
	}
	fmt.Fprintln(out, "a has the lock, and counts: stock is 10; a is about to write 11")
	resume := machine.pause()
	defer resume()
	fmt.Fprintln(out, "a is paused, by a garbage collection or a hypervisor")

	lease, err := b.Locks.Acquire(ctx, "stock")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "b has the lock, since a's lease has ended")
	if err := lock.SetFenced(ctx, store, "stock", 9, lease.Token(), time.Hour); err != nil {
		return err
	}
	fmt.Fprintln(out, "b writes 9")

	resume()
	err = lock.SetFenced(ctx, store, "stock", 11, old.Token(), time.Hour)
	if !errors.Is(err, lock.ErrFenced) {
		return fmt.Errorf("a was not refused: %v", err)
	}
	fmt.Fprintln(out, "a goes on, and is refused:", lock.ErrFenced)
	stock, err := store.Get(ctx, "stock").Int()
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "stock is", stock)
	fmt.Fprintln(out, "a learns of it when it releases its lease:", errors.Is(old.Release(ctx), lock.ErrLost))
	return lease.Release(ctx)
}

// A pausable machine sends nothing while it is paused: it renews no leases.
type pausable struct{ running sync.RWMutex }

func (m *pausable) pause() (resume func()) {
	m.running.Lock()
	return sync.OnceFunc(m.running.Unlock)
}

func (m *pausable) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	m.running.RLock()
	defer m.running.RUnlock()
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	return pausableConn{c, m}, err
}

type pausableConn struct {
	net.Conn
	machine *pausable
}

func (c pausableConn) Write(p []byte) (int, error) {
	c.machine.running.RLock()
	defer c.machine.running.RUnlock()
	return c.Conn.Write(p)
}
