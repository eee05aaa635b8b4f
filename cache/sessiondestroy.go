package cache

import (
	"context"
	_ "embed"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

const (
	// minTombstone is how late the commit of a request can be that read its session in
	// the last moment of its life, or before the session was evicted.
	minTombstone = time.Hour

	// replicaWait is below the 0.4 s after which a connection without reply counts as
	// that of a server which hangs.
	replicaWait = 250 * time.Millisecond
)

// DeleteCtx destroys a session, whether it is there or not. If it returns nil, no
// FindCtx that starts from then on finds the session, and no CommitCtx stores it, in
// any process.
//
// Where the primary has replicas, it waits for one to have the tombstone, for 250 ms at most
// (https://redis.io/docs/latest/commands/wait/). If none says so, which [Stats] counts, a failover
// may bring the session back: until this process has destroyed it once more, which it
// does when it learns of the new primary.
//
// After an error the session may still be there for other processes. This one does not
// find it, and destroys it as soon as Redis can be reached; of 10,000 keys and more that
// wait for that it may forget it.
func (s *SessionStore) DeleteCtx(ctx context.Context, token string) error {
	if err := s.ready(ctx, "delete"); err != nil {
		return err
	}
	if !isToken(token) {
		return nil
	}
	key, epoch := s.prefix+token, s.c.rdb.Epoch()
	ttl, confirmed, err := s.destroy(ctx, key)
	if err != nil {
		if !isFinal(err) {
			s.c.owed.addAlone(key, time.Now().Add(minTombstone).UnixMilli())
		}
		return s.undone(ctx, "delete", err)
	}
	s.c.owed.ended(epoch, ending{until: time.Now().UnixMilli() + ttl}, key)
	s.c.stats.sessionDestroys.Inc()
	if !confirmed {
		s.c.stats.sessionDestroysUnconfirmed.Inc()
		s.c.warn(ctx, &s.c.warnedDestroy, "a session is destroyed, and no replica has said that it knows", s.prefix+"*", errUnconfirmed)
	}
	return nil
}

var (
	//go:embed destroy.lua
	destroyLua    string
	destroyScript = newScript(destroyLua)
)

var errUnconfirmed = errors.New("a failover may bring it back for a moment")

// destroy returns for how long the tombstone stands, in ms, and whether a replica has it,
// if there is any.
func (s *SessionStore) destroy(ctx context.Context, key string) (ttl int64, confirmed bool, err error) {
	ttl, confirmed, err = s.bury(ctx, key)
	if _, isCluster := s.c.rdb.Unwrap().(*redis.ClusterClient); err == nil || !isCluster || isFinal(err) || conn.Ended(ctx) != nil {
		return ttl, confirmed, err
	}
	// The client of one node has neither followed a redirection nor tried again.
	if ttl, err = s.c.run(ctx, destroyScript, key, millis(minTombstone)).Int64(); err != nil {
		return 0, false, err
	}
	_, confirmed, err = s.bury(ctx, key)
	return ttl, confirmed && err == nil, nil
}

// bury does so on the primary of the key, on one connection, as WAIT wants it.
func (s *SessionStore) bury(ctx context.Context, key string) (ttl int64, confirmed bool, err error) {
	node, err := s.c.rdb.Node(ctx, key)
	if err != nil {
		return 0, false, err
	}
	role := redis.NewSliceCmd(ctx, "role")
	if ttl, err = buryWith(ctx, node, key, role); err != nil {
		return 0, false, err
	}
	known := s.c.rdb.Replicas()
	connected := replicasIn(role, known)
	if connected == 0 {
		return ttl, known == 0, nil // those that are known are not connected
	}
	wait := redis.NewIntCmd(ctx, "wait", 1, replicaWait.Milliseconds())
	if _, err := buryWith(ctx, node, key, wait); err != nil {
		return ttl, false, nil // the first time it was there
	}
	return ttl, wait.Val() > 0, nil
}

// buryWith runs the script, and then another command on the same connection.
func buryWith(ctx context.Context, node redis.UniversalClient, key string, then redis.Cmder) (ttl int64, err error) {
	for _, words := range [][]any{{"evalsha", destroyScript.Hash()}, {"eval", destroyScript.text}} {
		script := redis.NewCmd(ctx, append(words, 1, key, millis(minTombstone))...)
		pipe := node.Pipeline()
		_ = pipe.BatchProcess(ctx, script, then)
		conn.Exec(ctx, pipe)
		if !isUnknown(script) {
			return script.Int64()
		}
		then.SetErr(nil)
	}
	return 0, errors.New("the server forgets its script at once")
}

// replicasIn is the number of replicas in a primary's reply to ROLE, or otherwise if it
// does not say.
func replicasIn(role *redis.SliceCmd, otherwise int) int {
	if reply := role.Val(); len(reply) == 3 {
		if replicas, ok := reply[2].([]any); ok {
			return len(replicas)
		}
	}
	return otherwise
}
