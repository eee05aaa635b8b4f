package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/lock"
)

// A locker is one process' client of a contender. A held lock that a contender
// renews is renewed until its release.
type locker struct {
	try     func(ctx context.Context, key string) (held, error) // without waiting; errTaken if another holds it
	acquire func(ctx context.Context, key string) (held, error) // waits until ctx ends
	close   func() error
}

// held is a lock that was acquired. It is made of what contenders give, as it
// is, so that none pays for this interface.
type held interface {
	Release(ctx context.Context) error
}

// A watched lock tells its holder when it is lost.
type watched interface {
	Context() context.Context
}

// errTaken says that another holds the lock.
var errTaken = errors.New("another holds the lock")

// A side is a contender: how its locker is opened, and how it names its keys.
type side struct {
	name string
	open func(o settings) (locker, error)
	key  func(key string) string
}

// settings are what all contenders are given.
type settings struct {
	addr string
	ttl  time.Duration
	pool int // 0: the contender's default
}

const (
	ours         = "redisha"
	redislockers = "redislock"
	redsyncers   = "redsync"
	rueidislocks = "rueidislock"
)

var (
	sides = []side{
		{ours, openRedisha, func(key string) string { return "redisha:lock:{" + key + "}" }},
		{redislockers, openRedislock, asItIs},
		{redsyncers, openRedsync, asItIs},
		{rueidislocks, openRueidislock, func(key string) string { return "rueidislock:0:" + key }},
	}
	peers = []string{redislockers, redsyncers, rueidislocks}
)

func asItIs(key string) string { return key }

func sideNamed(name string) (side, error) {
	for _, s := range sides {
		if s.name == name {
			return s, nil
		}
	}
	return side{}, fmt.Errorf("no contender is called %q", name)
}

func openRedisha(o settings) (locker, error) {
	cn, err := connect(o)
	if err != nil {
		return locker{}, err
	}
	c, err := lock.New(cn, lockConfig(o.ttl))
	if err != nil {
		return locker{}, errors.Join(err, cn.Close())
	}
	return redishaLocker(c, cn.Close), nil
}

// connect opens a role's connection, as redisha.Open does for locks.
func connect(o settings) (*conn.Client, error) {
	ep, err := endpoint.Parse("redis://" + o.addr)
	if err != nil {
		return nil, err
	}
	return conn.New(conn.Config{
		Role: "locks", Application: "bench", Endpoint: ep, Pool: conn.Pool{MaxTotal: o.pool}, Logger: slog.New(slog.DiscardHandler),
	})
}

func lockConfig(ttl time.Duration) lock.Config {
	return lock.Config{TTL: ttl, Logger: slog.New(slog.DiscardHandler)}
}

func redishaLocker(c *lock.Client, disconnect func() error) locker {
	result := func(l *lock.Lease, err error) (held, error) {
		switch {
		case err == nil:
			return l, nil
		case errors.Is(err, lock.ErrNotAcquired):
			return nil, errTaken
		}
		return nil, err
	}
	return locker{
		try:     func(ctx context.Context, key string) (held, error) { return result(c.TryAcquire(ctx, key)) },
		acquire: func(ctx context.Context, key string) (held, error) { return result(c.Acquire(ctx, key)) },
		close:   func() error { return errors.Join(c.Close(), disconnect()) },
	}
}

// goRedis opens a client with go-redis' defaults, but for what the settings say.
func goRedis(o settings) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: o.addr, PoolSize: o.pool})
}

// pollEvery is how long redislock waits between two attempts.
const pollEvery = 10 * time.Millisecond

func openRedislock(o settings) (locker, error) {
	rdb := goRedis(o)
	c := redislock.New(rdb)
	obtain := func(ctx context.Context, key string, opt *redislock.Options) (held, error) {
		l, err := c.Obtain(ctx, key, o.ttl, opt)
		switch {
		case err == nil:
			return l, nil
		case errors.Is(err, redislock.ErrNotObtained):
			return nil, errTaken
		}
		return nil, err
	}
	return locker{
		try: func(ctx context.Context, key string) (held, error) { return obtain(ctx, key, nil) },
		acquire: func(ctx context.Context, key string) (held, error) {
			ctx, cancel := context.WithTimeout(ctx, time.Hour) // else it waits for a TTL alone, and cuts its last attempt
			defer cancel()
			poll := &redislock.Options{RetryStrategy: redislock.LinearBackoff(pollEvery)}
			return again(ctx, func() (held, error) { return obtain(ctx, key, poll) })
		},
		close: rdb.Close,
	}, nil
}

// again calls acquire for as long as another holds the lock: contenders give up
// waiting after a while of their own.
func again(ctx context.Context, acquire func() (held, error)) (held, error) {
	for {
		h, err := acquire()
		if !errors.Is(err, errTaken) || ctx.Err() != nil {
			return h, err
		}
	}
}

// A mutex is redsync's, held.
type mutex struct{ *redsync.Mutex }

func (m mutex) Release(ctx context.Context) error {
	_, err := m.UnlockContext(ctx)
	return err
}

func openRedsync(o settings) (locker, error) {
	rdb := goRedis(o)
	return redsyncLocker(redsync.New(goredis.NewPool(rdb)), rdb.Close, redsync.WithExpiry(o.ttl)), nil
}

func redsyncLocker(r *redsync.Redsync, disconnect func() error, opts ...redsync.Option) locker {
	result := func(m *redsync.Mutex, err error) (held, error) {
		var majority *redsync.ErrTaken
		var one *redsync.ErrNodeTaken
		switch {
		case err == nil:
			return mutex{m}, nil
		case errors.Is(err, redsync.ErrFailed), errors.As(err, &majority), errors.As(err, &one):
			return nil, errTaken
		}
		return nil, err
	}
	return locker{
		try: func(ctx context.Context, key string) (held, error) {
			m := r.NewMutex(key, opts...)
			return result(m, m.TryLockContext(ctx))
		},
		acquire: func(ctx context.Context, key string) (held, error) {
			return again(ctx, func() (held, error) {
				m := r.NewMutex(key, opts...)
				return result(m, m.LockContext(ctx))
			})
		},
		close: disconnect,
	}
}

// unlock is what rueidislock gives to its holder.
type unlock context.CancelFunc

func (u unlock) Release(context.Context) error {
	u()
	return nil
}

func openRueidislock(o settings) (locker, error) {
	c, err := rueidislock.NewLocker(rueidislock.LockerOption{
		ClientOption:   rueidis.ClientOption{InitAddress: []string{o.addr}},
		KeyMajority:    1,
		KeyValidity:    o.ttl,
		TryNextAfter:   o.ttl,
		NoLoopTracking: true,
	})
	if err != nil {
		return locker{}, err
	}
	result := func(cancel context.CancelFunc, err error) (held, error) {
		switch {
		case err == nil:
			return unlock(cancel), nil
		case errors.Is(err, rueidislock.ErrNotLocked):
			return nil, errTaken
		}
		return nil, err
	}
	return locker{
		try: func(ctx context.Context, key string) (held, error) {
			_, cancel, err := c.TryWithContext(ctx, key)
			return result(cancel, err)
		},
		acquire: func(ctx context.Context, key string) (held, error) {
			_, cancel, err := c.WithContext(ctx, key)
			return result(cancel, err)
		},
		close: func() error { c.Close(); return nil },
	}, nil
}

// end closes what was opened.
func (l locker) end() error {
	if l.close == nil {
		return nil
	}
	return l.close()
}
