package conn

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// A replicationRole is what a server says of itself.
// https://redis.io/docs/latest/commands/role/
type replicationRole string

const (
	master  replicationRole = "master"
	replica replicationRole = "slave" // "replica" in the reply to HELLO
)

// onConnect names a new connection and asks the server for its role, in one
// round trip. A server that is not what is wanted is not talked to. One whose ACL
// forbids to name the connection serves all the same; go-redis' own ClientName
// would fail.
func (c Config) onConnect(want replicationRole) func(context.Context, *redis.Conn) error {
	return func(ctx context.Context, cn *redis.Conn) error {
		ctx = context.WithValue(ctx, connectingKey{}, connectingKey{})
		pipe := cn.Pipeline()
		pipe.ClientSetName(ctx, c.Endpoint.ClientName)
		if want == "" { // go-redis knows by CLUSTER SLOTS
			if _, err := pipe.Exec(ctx); err != nil && !isReply(err) {
				return err
			}
			return nil
		}
		role := pipe.Do(ctx, "role")
		if _, err := pipe.Exec(ctx); err != nil && !isReply(err) {
			return err
		}
		reply, err := role.Slice()
		switch {
		case err == nil:
			return wrongRole(reply, want)
		case !isReply(err):
			return err
		case redis.IsPermissionError(err):
			return wrongHello(ctx, cn, want)
		}
		return nil // it does not know ROLE, as miniredis
	}
}

func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// wrongRole compares the reply to ROLE with what is wanted.
func wrongRole(reply []any, want replicationRole) error {
	if len(reply) == 0 {
		return nil
	}
	var err error
	switch word, _ := reply[0].(string); {
	case word == "sentinel":
		err = ErrSentinel
	case word == string(replica) && want == master:
		err = replicaOf(reply)
	case word == string(master) && want == replica:
		err = errNoReplica
	default:
		return nil
	}
	return &unsentError{err: err, connect: true}
}

func replicaOf(reply []any) error {
	if len(reply) >= 3 {
		return fmt.Errorf("%w: use its primary, %v:%v", ErrReplica, reply[1], reply[2])
	}
	return fmt.Errorf("%w: use its primary", ErrReplica)
}

// wrongHello asks HELLO for the role, where ROLE is forbidden.
// https://redis.io/docs/latest/commands/hello/
func wrongHello(ctx context.Context, cn *redis.Conn, want replicationRole) error {
	reply, err := cn.Do(ctx, "hello").Result()
	if err != nil {
		if isReply(err) {
			return nil
		}
		return err
	}
	role := strings.Replace(helloField(reply, "role"), "replica", string(replica), 1)
	return wrongRole([]any{role}, want)
}

// helloField returns a field of HELLO's reply, a map or, in RESP2, a list.
func helloField(reply any, name string) string {
	value := ""
	switch reply := reply.(type) {
	case map[any]any:
		value, _ = reply[name].(string)
	case []any:
		for i := 0; i+1 < len(reply); i += 2 {
			if reply[i] == name {
				value, _ = reply[i+1].(string)
			}
		}
	}
	return value
}
