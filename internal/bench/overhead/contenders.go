package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
)

// keyPrefix is that of the view, so that all contenders use the same keys.
const keyPrefix = "redisha:cache:overhead:"

// readTimeout is that of the view. The default of 250ms costs the same, and a
// busy machine may exceed it.
const readTimeout = 3 * time.Second

// A client does a contender's operations. It gets the name that a view knows,
// and the key in Redis, made beforehand.
type client struct {
	get   func(ctx context.Context, name, key string) ([]byte, error)
	set   func(ctx context.Context, name, key string, value []byte) error
	close func() error
}

// opener opens the client of a contender.
type opener func() (client, error)

func bare(server *redistest.Server) opener {
	return func() (client, error) {
		// Not server.Options: they differ from the defaults.
		return commands(redis.NewClient(&redis.Options{Addr: server.Addr()})), nil
	}
}

func connection(server *redistest.Server) opener {
	return func() (client, error) {
		c, err := connect(server)
		if err != nil {
			return client{}, err
		}
		return commands(c), nil
	}
}

func cacheView(server *redistest.Server) opener {
	return func() (client, error) {
		rdb, err := connect(server)
		if err != nil {
			return client{}, err
		}
		c, err := cache.New(rdb, cache.Config{ReadTimeout: readTimeout})
		if err != nil {
			return client{}, errors.Join(err, rdb.Close())
		}
		view := cache.NewView[string, []byte](c, "overhead", cache.ViewConfig{
			TTL: ttl, Codec: cache.Raw, Plain: true, MinCompressBytes: -1,
		})
		return client{
			get:   func(ctx context.Context, name, _ string) ([]byte, error) { return view.Get(ctx, name) },
			set:   func(ctx context.Context, name, _ string, value []byte) error { return view.Set(ctx, name, value) },
			close: func() error { return errors.Join(c.Close(), rdb.Close()) },
		}, nil
	}
}

// connect opens a role's connection.
func connect(server *redistest.Server) (*conn.Client, error) {
	ep, err := endpoint.Parse(server.URL())
	if err != nil {
		return nil, err
	}
	return conn.New(conn.Config{Role: "cache", Application: "overhead", Endpoint: ep})
}

// commands is what bare go-redis is asked for.
func commands(rdb redis.UniversalClient) client {
	return client{
		get: func(ctx context.Context, _, key string) ([]byte, error) { return rdb.Get(ctx, key).Bytes() },
		set: func(ctx context.Context, _, key string, value []byte) error {
			return rdb.Set(ctx, key, value, ttl).Err()
		},
		close: rdb.Close,
	}
}

// contender measures op on what open opens.
func (w work) contender(name string, op operation, monitor *redis.Client, open opener) harness.Contender {
	var c client
	return harness.Contender{
		Name: name,
		Setup: func(ctx context.Context) (err error) {
			if c, err = open(); err != nil {
				return err
			}
			return w.check(ctx, c)
		},
		Run: func(ctx context.Context, b *harness.B) error {
			call := func(ctx context.Context, _, n int) error {
				i := n % keyCount
				return c.set(ctx, w.names[i], w.keys[i], w.values[i])
			}
			if op == get {
				call = func(ctx context.Context, _, n int) error {
					i := n % keyCount
					value, err := c.get(ctx, w.names[i], w.keys[i])
					if err == nil && len(value) != len(w.values[i]) {
						return fmt.Errorf("%s has %d bytes, want %d", w.keys[i], len(value), len(w.values[i]))
					}
					return err
				}
			}
			return b.Measure(ctx, harness.Load{Servers: []*redis.Client{monitor}}, call)
		},
		Close: func() error {
			if c.close == nil {
				return nil
			}
			return c.close()
		},
	}
}

// check writes all values and reads them back.
func (w work) check(ctx context.Context, c client) error {
	for i, name := range w.names {
		if err := c.set(ctx, name, w.keys[i], w.values[i]); err != nil {
			return err
		}
		got, err := c.get(ctx, name, w.keys[i])
		if err != nil {
			return err
		}
		if !bytes.Equal(got, w.values[i]) {
			return fmt.Errorf("%s reads %q, want %q", w.keys[i], got, w.values[i])
		}
	}
	return nil
}
