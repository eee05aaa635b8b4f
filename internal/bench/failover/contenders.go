package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/pubsub"
	"github.com/redisha/redisha/internal/redistest"
)

// A client is what a contender is asked for.
type client struct {
	set       func(ctx context.Context, key, value string) error                      // may be executed twice
	push      func(ctx context.Context, list, value string) error                     // must not
	subscribe func(ctx context.Context, channel string, deliver func(payload string)) // until ctx is done
	ping      func(ctx context.Context) error
	unknown   func(err error) bool // the error says that the outcome is not known
	log       *timeline            // what the client tells of itself; nil where it does not
	close     func() error
}

// An opener makes a client of what Sentinels at addrs call by name.
type opener func(addrs []string, name string) (client, error)

// openers are the contenders, in their order.
var openers = []struct {
	name string
	open opener
}{
	{"go-redis", openGoRedis},
	{"rueidis", openRueidis},
	{"redisha", openRedisha},
}

func never(error) bool { return false }

func openGoRedis(addrs []string, name string) (client, error) {
	rdb := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: name, SentinelAddrs: addrs})
	c := commands(rdb)
	c.subscribe = func(ctx context.Context, channel string, deliver func(string)) {
		sub := rdb.Subscribe(ctx, channel)
		defer func() { _ = sub.Close() }()
		messages := sub.Channel()
		for {
			select {
			case <-ctx.Done():
				return
			case m, ok := <-messages:
				if !ok {
					return
				}
				deliver(m.Payload)
			}
		}
	}
	return c, nil
}

func commands(rdb redis.UniversalClient) client {
	return client{
		set:  func(ctx context.Context, key, value string) error { return rdb.Set(ctx, key, value, 0).Err() },
		push: func(ctx context.Context, list, value string) error { return rdb.RPush(ctx, list, value).Err() },
		ping: func(ctx context.Context) error { return rdb.Ping(ctx).Err() },

		unknown: never,
		close:   rdb.Close,
	}
}

func openRueidis(addrs []string, name string) (client, error) {
	return openRueidisWith(rueidis.ClientOption{InitAddress: addrs, Sentinel: rueidis.SentinelOption{MasterSet: name}})
}

func openRueidisWith(opt rueidis.ClientOption) (client, error) {
	rdb, err := rueidis.NewClient(opt)
	if err != nil {
		return client{}, err
	}
	return client{
		set: func(ctx context.Context, key, value string) error {
			return rdb.Do(ctx, rdb.B().Set().Key(key).Value(value).Build()).Error()
		},
		push: func(ctx context.Context, list, value string) error {
			return rdb.Do(ctx, rdb.B().Rpush().Key(list).Element(value).Build()).Error()
		},
		ping: func(ctx context.Context) error { return rdb.Do(ctx, rdb.B().Ping().Build()).Error() },
		subscribe: func(ctx context.Context, channel string, deliver func(string)) {
			for ctx.Err() == nil {
				_ = rdb.Receive(ctx, rdb.B().Subscribe().Channel(channel).Build(), func(m rueidis.PubSubMessage) { deliver(m.Message) })
				select {
				case <-ctx.Done():
				case <-time.After(10 * time.Millisecond):
				}
			}
		},
		unknown: never,
		close:   func() error { rdb.Close(); return nil },
	}, nil
}

func openRedisha(addrs []string, name string) (client, error) {
	ep, err := endpoint.Parse(sentinelURL(addrs, name))
	if err != nil {
		return client{}, err
	}
	return openConn(ep)
}

// openConn makes the client of a role that waits and repeats, as broker,
// results and locks do.
func openConn(ep endpoint.Endpoint) (client, error) {
	log := &timeline{}
	rdb, err := conn.New(conn.Config{Role: "broker", Application: "failover", Endpoint: ep, Logger: slog.New(log)})
	if err != nil {
		return client{}, err
	}
	c := commands(rdb)
	c.log = log
	c.unknown = func(err error) bool { return errors.Is(err, conn.ErrOutcomeUnknown) }
	c.subscribe = func(ctx context.Context, channel string, deliver func(string)) {
		sub, err := pubsub.New(pubsub.Config{
			Open:       func(ctx context.Context) *redis.PubSub { return rdb.Subscribe(ctx) },
			Message:    func(_, payload string) { deliver(payload) },
			Gap:        func(err error) { log.note("gap: %v", err) },
			Subscribed: func(string) { log.note("subscribed") },
		})
		if err != nil {
			return // its Config is ours
		}
		stop := rdb.OnEpoch(func(epoch uint64) {
			log.note("epoch %d", epoch)
			sub.Renew()
		})
		sub.Add(channel)
		<-ctx.Done()
		stop()
		if err := sub.Close(); err != nil {
			log.note("subscription: %v", err)
		}
	}
	return c, nil
}

func sentinelURL(addrs []string, name string) string {
	return "redis+sentinel://" + join(addrs) + "/" + name
}

func join(addrs []string) string { return strings.Join(addrs, ",") }

// admin is a client of one server that waits for nothing long.
func admin(s *redistest.Server) *redis.Client {
	opt := s.Options()
	opt.MaxRetries, opt.DialerRetries = -1, 1
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout, opt.PoolTimeout = time.Second, time.Second, time.Second, time.Second
	return redis.NewClient(opt)
}

// do sends one command to one server.
func do(ctx context.Context, s *redistest.Server, args ...any) (any, error) {
	rdb := admin(s)
	defer func() { _ = rdb.Close() }()
	v, err := rdb.Do(ctx, args...).Result()
	if err != nil {
		return nil, fmt.Errorf("%v on %s: %w", args[0], s.Addr(), err)
	}
	return v, nil
}

// silent keeps go-redis from printing each failed dial.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func init() { redis.SetLogger(silent{}) }
