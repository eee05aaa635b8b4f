package lock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
)

// A step is one request of a client, at which something happens to it.
type step struct {
	waits bool // for another's release; else the lock is free
	cut   bool // the reply is lost; else the context is cancelled
	own   bool // the client is one as redisha.Open makes it; else one of go-redis that repeats nothing
	nth   int
}

func (s step) String() string {
	pick := func(yes bool, a, b string) string {
		if yes {
			return a
		}
		return b
	}
	return fmt.Sprintf("%s, %s at request %d, %s", pick(s.waits, "waiting", "free"), pick(s.cut, "reply lost", "cancelled"), s.nth, pick(s.own, "own", "go-redis"))
}

// maxSteps is more than an acquisition without contention takes. One that waits
// is long in the queue then.
const maxSteps = 10

// At each of the requests that an acquisition sends its context is cancelled, or
// the reply is lost. Who waits behind it gets the lock long before a TTL, and
// nothing stays.
func TestAnAcquisitionThatFailsAtAnyStepLeavesTheLockToOthers(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rdb := srv.Client(t)
	steps := &stepper{srv: srv, rdb: rdb, other: open(t, rdb, Config{TTL: time.Minute})}
	failed := make(chan error, 1000)
	var reached sync.Map // steps at which something happened
	var all sync.WaitGroup
	for i := range 8 {
		for nth := range maxSteps {
			s := step{waits: i&1 != 0, cut: i&2 != 0, own: i&4 != 0, nth: nth + 1}
			all.Go(func() {
				happened, err := steps.take(t.Context(), s)
				if err != nil {
					failed <- fmt.Errorf("%s: %w", s, err)
				}
				if happened {
					reached.Store(s, true)
				}
			})
		}
	}
	all.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	n := 0
	reached.Range(func(any, any) bool { n++; return true })
	require.GreaterOrEqual(t, n, 8*3, "these steps there are: dial, attempt, release")
	require.Eventually(t, func() bool {
		left := rdb.Keys(t.Context(), "*").Val()
		left = slices.DeleteFunc(left, func(key string) bool { return strings.HasSuffix(key, "}:f") })
		return len(left) == 0
	}, 20*time.Second, 10*time.Millisecond, "long before a TTL")
}

// happens waits until something is so, and reports false if it does not come.
func happens(so func() bool) bool {
	for start := time.Now(); !so(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			return false
		}
	}
	return true
}

type stepper struct {
	srv   *redistest.Server
	rdb   *redis.Client
	other *Client
}

// take lets a client of its own acquire a lock of its own, and reports whether it
// came to the step.
func (s *stepper) take(ctx context.Context, at step) (happened bool, err error) {
	const limit = 20 * time.Second // to be reached by nothing but a TTL
	proxy, err := redistest.StartProxy(s.srv.Addr())
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, proxy.Close()) }()
	rdb, err := stepClient(s.srv, proxy, at.own)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, rdb.Close()) }()
	c, err := New(rdb, Config{TTL: time.Minute, CloseTimeout: limit, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()

	key := at.String()
	var held *Lease
	if at.waits {
		if held, err = s.other.TryAcquire(ctx, key); err != nil {
			return false, err
		}
	}
	limited, stop := context.WithTimeout(ctx, limit)
	defer stop()
	cancellable, cancel := context.WithCancel(limited)
	defer cancel()
	var mu sync.Mutex
	left, hit := at.nth, false
	proxy.CutAfter(func([]byte) bool {
		mu.Lock()
		defer mu.Unlock()
		if left--; left != 0 {
			return false
		}
		hit = true
		if !at.cut {
			cancel()
		}
		return at.cut
	})
	acquire := func(ctx context.Context, c *Client) error {
		l, err := c.Acquire(ctx, key)
		if err != nil {
			return err
		}
		return l.Release(ctx)
	}
	first, behind := make(chan error, 1), make(chan error, 1)
	go func() { first <- acquire(cancellable, c) }()
	if at.waits {
		if !happens(func() bool { // it stands in the queue, or its step is reached
			mu.Lock()
			defer mu.Unlock()
			_, placed := inLine(c, key)
			return placed > 0 || hit
		}) {
			return false, errors.New("it does not come into the queue")
		}
	}
	go func() { behind <- acquire(limited, s.other) }()
	if at.waits {
		if !happens(func() bool { _, placed := inLine(s.other, key); return placed > 0 }) {
			return false, errors.New("who waits behind it does not come into the queue")
		}
		if err := held.Release(ctx); err != nil {
			return false, err
		}
	}
	if err := <-behind; err != nil {
		return false, fmt.Errorf("who waits behind it: %w", err)
	}
	err = <-first
	mu.Lock()
	defer mu.Unlock()
	switch {
	case err == nil || hit:
		return hit, nil
	case errors.Is(err, context.DeadlineExceeded):
		return false, fmt.Errorf("it waited for too long: %w", err)
	}
	return false, fmt.Errorf("nothing happened to it, and yet: %w", err)
}

func stepClient(srv *redistest.Server, proxy *redistest.Proxy, own bool) (redis.UniversalClient, error) {
	if !own {
		opt := srv.Options()
		opt.Addr, opt.MaxRetries = proxy.Addr(), -1
		return redis.NewClient(opt), nil
	}
	ep, err := endpoint.Parse("redis://" + proxy.Addr())
	if err != nil {
		return nil, err
	}
	return conn.New(conn.Config{Role: "locks", Endpoint: ep, Logger: slog.New(slog.DiscardHandler)})
}
