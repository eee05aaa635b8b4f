package main

import (
	"context"
	"errors"
	"net"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
)

// clients returns a role's connection and a bare client, neither of which has a
// server.
func clients() (hooked *conn.Client, bare *redis.Client, err error) {
	ep, err := endpoint.Parse("redis://127.0.0.1:1")
	if err != nil {
		return nil, nil, err
	}
	hooked, err = conn.New(conn.Config{Role: "cache", Application: "hooks", Endpoint: ep, Dialer: nobody})
	if err != nil {
		return nil, nil, err
	}
	hooked.AddHook(answers{})
	bare = redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", Dialer: nobody})
	bare.AddHook(answers{})
	return hooked, bare, nil
}

func nobody(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("a command was to be sent, where the last hook should answer")
}

// answers is a hook that sends nothing.
type answers struct{}

func (answers) DialHook(next redis.DialHook) redis.DialHook { return next }

func (answers) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(context.Context, redis.Cmder) error { return nil }
}

func (answers) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(context.Context, []redis.Cmder) error { return nil }
}
