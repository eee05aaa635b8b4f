package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/children"
)

// An order says what a child does: it wants all keys at once, tells when it has
// asked for them, and holds what it gets until it is killed.
type order struct {
	Side string
	Addr string
	TTL  time.Duration
	Keys []string
	Hold bool // nobody has them: it tells when it holds them all
}

// ready is what a child says when it has done what it was told. What else it says
// is why it could not.
const ready = "ready"

func (o order) obey(say func(line string)) error {
	redis.SetLogger(quiet{})
	err := o.want(func() { say(ready) })
	say(strings.ReplaceAll(err.Error(), "\n", "; "))
	return err
}

// quiet keeps go-redis from telling of dials that fail: an error tells it.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// want returns only if something is wrong.
func (o order) want(tell func()) error {
	s, err := sideNamed(o.Side)
	if err != nil {
		return err
	}
	l, err := s.open(settings{addr: o.Addr, ttl: o.TTL})
	if err != nil {
		return err
	}
	ctx := context.Background()
	if h, err := l.try(ctx, fmt.Sprintf("child-%d", os.Getpid())); err != nil { // connects
		return err
	} else if err := h.Release(ctx); err != nil {
		return err
	}
	var running sync.WaitGroup
	errs := make([]error, len(o.Keys))
	for i, key := range o.Keys {
		running.Go(func() { _, errs[i] = l.acquire(ctx, key) })
	}
	if !o.Hold {
		tell()
	}
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if o.Hold {
		tell()
	}
	select {}
}

// startChild starts a child and waits until it is ready.
func startChild(ctx context.Context, o order) (*children.Process, error) {
	heard := make(chan struct{})
	said := ""
	p, err := children.Start(o, func(line string) {
		if said == "" {
			said = line
			close(heard)
		}
	})
	if err != nil {
		return nil, err
	}
	if err = p.Await(ctx, heard); err == nil && said == ready {
		return p, nil
	}
	p.Kill()
	return nil, errors.Join(fmt.Errorf("a child that was to want %v of %s says %q", o.Keys, o.Side, said), err)
}
