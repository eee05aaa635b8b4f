package redistest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// askWithin bounds one conversation with a server, which may be stopped.
const askWithin = time.Second

// settledWithin bounds a wait whose context has no deadline.
const settledWithin = 60 * time.Second

// with runs f with a client of the server on a connection of its own, as the
// default user.
func (s *Server) with(ctx context.Context, f func(context.Context, *redis.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	opts := s.Options()
	// Dialled here, since go-redis logs each dial that fails.
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr())
	if err != nil {
		return err
	}
	if opts.TLSConfig != nil {
		opts.TLSConfig.InsecureSkipVerify = true // it may be wrong on purpose
		conn = tls.Client(conn, opts.TLSConfig)
	}
	dialled := false
	opts.Dialer = func(context.Context, string, string) (net.Conn, error) {
		if dialled {
			return nil, errors.New("the connection broke")
		}
		dialled = true
		return conn, nil
	}
	opts.Protocol = 2
	opts.DisableIdentity = true
	opts.MaxRetries = -1
	opts.DialerRetries = 1
	opts.PoolSize = 1
	opts.PipelinePoolSize = -1
	opts.ReadTimeout, opts.WriteTimeout = askWithin, askWithin
	rdb := redis.NewClient(opts)
	err = f(ctx, rdb)
	_ = rdb.Close()
	_ = conn.Close() // if it was never used
	if err != nil {
		return fmt.Errorf("%s: %w", s.Addr(), err)
	}
	return nil
}

// do sends one command.
func (s *Server) do(ctx context.Context, args ...any) (reply any, err error) {
	err = s.with(ctx, func(ctx context.Context, rdb *redis.Client) error {
		reply, err = rdb.Do(ctx, args...).Result()
		return err
	})
	return reply, err
}

// info returns a section of INFO's reply.
func (s *Server) info(ctx context.Context, section string) (string, error) {
	reply, err := s.do(ctx, "INFO", section)
	text, _ := reply.(string)
	return text, err
}

// await calls problem until it returns nil, each 20 ms until ctx is done, for
// settledWithin at most if that has no deadline. Its error is the last problem.
func await(ctx context.Context, problem func(context.Context) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, settledWithin)
		defer cancel()
	}
	deadline, _ := ctx.Deadline()
	begin := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := problem(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil && time.Now().Before(deadline) {
			last = err // and not that ctx is done, of which sockets know first
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s (%w): %w", time.Since(begin).Round(time.Millisecond), context.Cause(ctx), last)
		case <-tick.C:
		}
	}
}

// forEach calls f for all servers at the same time and joins the errors.
func forEach(servers []*Server, f func(i int, s *Server) error) error {
	errs := make([]error, len(servers))
	var running sync.WaitGroup
	for i, s := range servers {
		running.Go(func() { errs[i] = f(i, s) })
	}
	running.Wait()
	return errors.Join(errs...)
}

// flat reads a reply of names and values, one after the other.
func flat(reply any) map[string]string {
	values, _ := reply.([]any)
	fields := make(map[string]string, len(values)/2)
	for i := 0; i+1 < len(values); i += 2 {
		fields[fmt.Sprint(values[i])] = fmt.Sprint(values[i+1])
	}
	return fields
}

// replication says what is wrong with a server's replication: it must be a
// primary with so many replicas that are up to date, or if replicas is negative
// a replica of the primary on that port whose link is up.
func (s *Server) replication(ctx context.Context, replicas, primaryPort int) error {
	info, err := s.info(ctx, "replication")
	if err != nil {
		return err
	}
	if replicas < 0 {
		role, port, link := infoField(info, "role"), infoField(info, "master_port"), infoField(info, "master_link_status")
		if role != "slave" || port != fmt.Sprint(primaryPort) || link != "up" {
			return fmt.Errorf("%s says role %s, primary's port %q, link %q: want a replica of port %d with its link up", s.Addr(), role, port, link, primaryPort)
		}
		return nil
	}
	online := strings.Count(info, ",state=online,")
	if role := infoField(info, "role"); role != "master" || online != replicas {
		return fmt.Errorf("%s says role %s with %d replicas online: want a primary with %d", s.Addr(), role, online, replicas)
	}
	return nil
}
