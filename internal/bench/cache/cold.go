package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	rediscache "github.com/go-redis/cache/v9"
	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/bench/harness"
)

const (
	coldKeys    = 1000
	coldClients = 8
	coldCallers = 64 // of each client
	coldWork    = "1,000 cold keys, 8 clients, 64 callers each"
)

// cold measures how often keys are loaded that all ask for at once.
func (b *bench) cold(ctx context.Context) error {
	if !b.Wants(coldWork) {
		return nil
	}
	b.Setting("cold keys: all callers of all clients ask for the same keys in the same order, each once; a load takes a millisecond. go-redis/cache: `Once`, which is for one process.")
	keys := coldKeys
	if b.Quick {
		keys /= 10
	}
	return b.Compare(ctx, harness.Comparison{
		Work: coldWork, Quantity: loads, Whole: true, Cold: true,
		Targets: []harness.Target{
			{Contender: ours, Limit: harness.AtMost(float64(keys), harness.Worst)},
			{Contender: ours, Limit: harness.AtLeast(float64(keys), harness.Worst)},
		},
		Contenders: []harness.Contender{
			{Name: redisCache, Run: func(ctx context.Context, m *harness.B) error { return b.stampede(ctx, keys, openOnce, m) }},
			{Name: ours, Run: func(ctx context.Context, m *harness.B) error { return b.stampede(ctx, keys, openFetch, m) }},
		},
	})
}

// A fetcher is one process' cache, which calls load for what it lacks.
type fetcher struct {
	fetch func(ctx context.Context, key int) (int, error)
	close func() error
}

func openFetch(addr string, load func(context.Context, int) (int, error)) (fetcher, error) {
	c, disconnect, err := openCache("redis://" + addr)
	if err != nil {
		return fetcher{}, err
	}
	view := cache.NewView[int, int](c, "cold", cache.ViewConfig{TTL: ttl})
	return fetcher{
		fetch: func(ctx context.Context, key int) (int, error) { return view.Fetch(ctx, key, load) },
		close: disconnect,
	}, nil
}

func openOnce(addr string, load func(context.Context, int) (int, error)) (fetcher, error) {
	rdb := goRedis(addr)
	c := rediscache.New(&rediscache.Options{Redis: rdb})
	return fetcher{
		fetch: func(ctx context.Context, key int) (value int, err error) {
			err = c.Once(&rediscache.Item{
				Ctx: ctx, Key: "cold:" + strconv.Itoa(key), Value: &value, TTL: ttl,
				Do: func(*rediscache.Item) (any, error) { return load(ctx, key) },
			})
			return value, err
		},
		close: rdb.Close,
	}, nil
}

func (b *bench) stampede(ctx context.Context, keys int, open func(addr string, load func(context.Context, int) (int, error)) (fetcher, error), m *harness.B) (err error) {
	if err := b.monitor.FlushAll(ctx).Err(); err != nil {
		return err
	}
	var loaded atomic.Int64
	load := func(_ context.Context, key int) (int, error) {
		loaded.Add(1)
		time.Sleep(time.Millisecond)
		return key + 1, nil
	}
	var clients []fetcher
	for range coldClients {
		c, err := open(b.server.Addr(), load)
		if err != nil {
			return err
		}
		clients = append(clients, c)
		defer func() { err = errors.Join(err, c.close()) }()
	}
	const callers = coldClients * coldCallers
	err = m.Measure(ctx, harness.Load{Callers: callers, Count: callers * keys, Servers: []*redis.Client{b.monitor}},
		func(ctx context.Context, caller, n int) error {
			value, err := clients[caller%coldClients].fetch(ctx, n)
			if err == nil && value != n+1 {
				return fmt.Errorf("key %d has %d, want %d", n, value, n+1)
			}
			return err
		})
	m.Record(loads, float64(loaded.Load()))
	return err
}
