package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
)

const (
	// prefix is that of the view, so that all contenders read the same keys.
	viewName = "bench"
	prefix   = "redisha:cache:" + viewName + ":"

	keyCount    = 10_000
	ttl         = time.Hour
	readTimeout = 3 * time.Second
	poolSize    = 100
)

// The contenders.
const (
	ours       = "redisha"
	plain      = "go-redis"
	pipelining = "auto-pipelining"
	duplex     = "auto-pipelining (FullDuplex)"
	rueidises  = "rueidis"
	rueidis20  = "rueidis (flush delay 20 µs)"
)

// A client reads as a contender does. It gets the name that a view knows, and
// the key in Redis, made beforehand.
type client struct {
	get   func(ctx context.Context, name, key string) ([]byte, error)
	close func() error
}

// A side is a contender: how its client for a server is opened.
type side struct {
	name string
	open func(addr string) (client, error)
}

var (
	sides = []side{
		{plain, openPlain},
		{pipelining, openPipelining(nil)},
		{rueidises, openRueidis(0)},
		{rueidis20, openRueidis(20 * time.Microsecond)},
		{ours, openView},
	}

	// slowSides are those over a network.
	slowSides = append(sides[:len(sides):len(sides)], side{duplex, openPipelining(fullDuplex())})
)

func fullDuplex() *redis.AutoPipelineOptions {
	o := redis.DefaultBlockingAutoPipelineOptions()
	o.FullDuplex = true
	return o
}

// goRedis opens a client with go-redis' defaults, but for its pool.
func goRedis(addr string) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: addr, PoolSize: poolSize})
}

func openPlain(addr string) (client, error) {
	rdb := goRedis(addr)
	return client{
		get:   func(ctx context.Context, _, key string) ([]byte, error) { return rdb.Get(ctx, key).Bytes() },
		close: rdb.Close,
	}, nil
}

func openPipelining(o *redis.AutoPipelineOptions) func(addr string) (client, error) {
	return func(addr string) (client, error) {
		rdb := goRedis(addr)
		ap, err := rdb.AutoPipelineWithOptions(o)
		if err != nil {
			return client{}, errors.Join(err, rdb.Close())
		}
		return client{
			get:   func(ctx context.Context, _, key string) ([]byte, error) { return ap.Get(ctx, key).Bytes() },
			close: func() error { return errors.Join(ap.Close(), rdb.Close()) },
		}, nil
	}
}

func openRueidis(flushDelay time.Duration) func(addr string) (client, error) {
	return func(addr string) (client, error) {
		c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, MaxFlushDelay: flushDelay})
		if err != nil {
			return client{}, err
		}
		return client{
			get: func(ctx context.Context, _, key string) ([]byte, error) {
				return c.Do(ctx, c.B().Get().Key(key).Build()).AsBytes()
			},
			close: func() error { c.Close(); return nil },
		}, nil
	}
}

func openView(addr string) (client, error) {
	c, disconnect, err := openCache("redis://" + addr)
	if err != nil {
		return client{}, err
	}
	view := cache.NewView[string, []byte](c, viewName, cache.ViewConfig{TTL: ttl, Codec: cache.Raw, Plain: true, MinCompressBytes: -1})
	return client{
		get:   func(ctx context.Context, name, _ string) ([]byte, error) { return view.Get(ctx, name) },
		close: disconnect,
	}, nil
}

// openCache opens a client as redisha.Open does for a cache. What it returns
// closes it.
func openCache(url string) (c *cache.Client, disconnect func() error, err error) {
	ep, err := endpoint.Parse(url)
	if err != nil {
		return nil, nil, err
	}
	quiet := slog.New(slog.DiscardHandler)
	rdb, err := conn.New(conn.Config{Role: "cache", Application: "bench", Endpoint: ep, Logger: quiet})
	if err != nil {
		return nil, nil, err
	}
	if c, err = cache.New(rdb, cache.Config{ReadTimeout: readTimeout, Logger: quiet}); err != nil {
		return nil, nil, errors.Join(err, rdb.Close())
	}
	return c, func() error { return errors.Join(c.Close(), rdb.Close()) }, nil
}
