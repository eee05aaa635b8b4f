package tracking

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/redisha/redisha/internal/conn"
)

// optionsOf returns how to connect to what a client of one server connects to.
func optionsOf(client redis.UniversalClient) (*redis.Options, error) {
	if cn, ok := client.(*conn.Client); ok {
		if proxy := cn.Endpoint().Proxy; proxy != "" {
			return nil, refusal(fmt.Errorf("the endpoint is behind a proxy (proxy=%s)", proxy))
		}
		client = cn.Unwrap()
	}
	of, ok := client.(interface{ Options() *redis.Options })
	if !ok {
		return nil, refusal(fmt.Errorf("a client of type %T has no Options by which to connect", client))
	}
	return of.Options(), nil
}

// dial returns a connection on which go-redis has logged in, as opt says, and
// which it leaves alone from then on. It is closed when ctx ends; release must
// follow when it is of no use any more.
func dial(ctx, handshake context.Context, opt *redis.Options) (nc net.Conn, release func(), err error) {
	dialled, err := opt.Dialer(handshake, opt.Network, opt.Addr)
	if err != nil {
		return nil, nil, fmt.Errorf("connect: %w", err)
	}
	own := &closedOnce{Conn: dialled} // go-redis closes it as well
	// Cancelling a context ends no read of go-redis.
	ends := []func(){func() { _ = own.Close() }}
	release = func() {
		for _, end := range ends {
			end()
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = own.Close() })
	ends = append(ends, func() { stop() })
	hasten := context.AfterFunc(handshake, func() { _ = own.Close() })

	rdb := redis.NewClient(once(opt, own))
	login := rdb.Conn() // takes the connection out of the pool
	ends = append(ends, func() { _ = login.Close() }, func() { _ = rdb.Close() })
	err = login.Ping(handshake).Err()
	if !hasten() {
		err = context.Cause(handshake)
	}
	var reply redis.Error
	if err != nil && (!errors.As(err, &reply) || !redis.IsPermissionError(err)) {
		release()
		return nil, nil, fmt.Errorf("log in: %w", withoutArgs(err))
	}
	return own, release, nil
}

// withoutArgs cuts off what a server that does not know a command quotes of it:
// the arguments of AUTH and HELLO are secrets.
func withoutArgs(err error) error {
	if msg, _, quoted := strings.Cut(err.Error(), ", with args beginning with"); quoted {
		return errors.New(msg)
	}
	return err
}

// closedOnce is a connection that may be closed again. conn counts.
type closedOnce struct {
	net.Conn
	once sync.Once
	err  error
}

func (c *closedOnce) Close() error {
	c.once.Do(func() { c.err = c.Conn.Close() })
	return c.err
}

// once returns the options of a client that has nc as its only connection.
func once(opt *redis.Options, nc net.Conn) *redis.Options {
	o := *opt
	var used atomic.Bool
	o.Dialer = func(context.Context, string, string) (net.Conn, error) {
		if used.Swap(true) {
			return nil, errors.New("the connection is lost")
		}
		return nc, nil
	}
	o.MaxRetries, o.DialerRetries = -1, 1
	o.PoolSize, o.PipelinePoolSize, o.MaxActiveConns = 1, -1, 0
	o.MinIdleConns, o.MaxIdleConns, o.MaxConcurrentDials = 0, 0, 1
	o.ConnMaxIdleTime, o.ConnMaxLifetime, o.ConnMaxLifetimeJitter = -1, 0, 0
	o.ContextTimeoutEnabled = true
	o.Limiter, o.AutoPipelineOptions = nil, nil
	o.PushNotificationProcessor, o.ClientSideCache, o.ClientSideCacheConfig = nil, nil, nil
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return &o
}
