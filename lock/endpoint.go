package lock

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
)

// followsSentinel reports whether the client finds its server by Sentinel.
func followsSentinel(cn *conn.Client) bool {
	if cluster, ok := cn.Unwrap().(*redis.ClusterClient); ok {
		// NewFailoverClusterClient leaves no other trace than the function
		// that it makes up the slots with.
		slots := runtime.FuncForPC(reflect.ValueOf(cluster.Options().ClusterSlots).Pointer())
		return slots != nil && strings.Contains(slots.Name(), "NewFailoverClusterClient")
	}
	return cn.Topology() == endpoint.Sentinel
}

// Check connects and asks what is there. It returns [ErrSentinelEndpoint] for a
// Sentinel and [ErrReplicaEndpoint] for a replica; its errors say what to do.
func (c *Client) Check(ctx context.Context) error {
	err := errNilContext
	if ctx != nil {
		err = c.enter()
	}
	if err != nil {
		return fmt.Errorf("lock: check: %w", err)
	}
	defer c.leave()
	if err := c.store.check(ctx); err != nil {
		return fmt.Errorf("lock: check: %w", err)
	}
	return nil
}

func (s *node) check(ctx context.Context) error {
	switch err := s.conn.Check(ctx); {
	case errors.Is(err, conn.ErrSentinel):
		return fmt.Errorf("%w (%w)", ErrSentinelEndpoint, err)
	case errors.Is(err, conn.ErrReplica):
		return fmt.Errorf("%w (%w)", ErrReplicaEndpoint, err)
	case err != nil:
		return err
	}
	s.primary.Store(true)
	return nil
}

// admit lets an acquisition pass if the endpoint takes locks. What was found to
// be a primary is not asked again.
func (s *node) admit(ctx context.Context) error {
	if s.primary.Load() {
		return nil
	}
	if err := s.probe(ctx); err != nil {
		return err
	}
	s.primary.Store(true)
	return nil
}

// probe asks the server for its replication role. Where it may not be asked, it
// is taken for a primary: a replica would refuse to write. Cluster redirects to
// primaries by itself, and a proxy does not know the command.
// https://redis.io/docs/latest/commands/role/
func (s *node) probe(ctx context.Context) error {
	if s.conn.Topology() == endpoint.Cluster || s.conn.Endpoint().Proxy != "" {
		return nil
	}
	reply, err := s.conn.Do(ctx, "role").Slice()
	switch {
	case redis.IsPermissionError(err), unknownRole(err):
		return nil
	case err != nil:
		return err
	case len(reply) == 0:
		return nil
	}
	switch reply[0] {
	case "sentinel":
		return ErrSentinelEndpoint
	case "slave":
		if len(reply) >= 3 {
			return fmt.Errorf("%w (the primary of this one is %v:%v)", ErrReplicaEndpoint, reply[1], reply[2])
		}
		return ErrReplicaEndpoint
	}
	return nil
}

// unknownRole reports whether the server answers without knowing ROLE.
func unknownRole(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	text := strings.ToLower(reply.Error())
	return strings.Contains(text, "unknown command") && strings.Contains(text, "role")
}
