package testserver_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// pair returns a primary and a replica.
func pair(t *testing.T) (primary, replica *testserver.Server) {
	primary = testserver.New(t)
	replica = primary.StartReplica("10.0.0.2:6379")
	t.Cleanup(replica.Close)
	primary.SetReplicaAddrs(replica.Addr())
	return primary, replica
}

func TestAReplicaHasEachWriteAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		primary, replica := pair(t)
		w, r := primary.Client(t), once(t, replica)
		require.NoError(t, w.Set(t.Context(), "k", "v", 0).Err())
		require.Equal(t, "v", r.Get(t.Context(), "k").Val())
		require.EqualValues(t, 1, w.Wait(t.Context(), 1, 0).Val())
		require.ErrorContains(t, r.Set(t.Context(), "k", "w", 0).Err(), "READONLY")
		require.Equal(t, "v", r.EvalRO(t.Context(), "return redis.call('GET', 'k')", nil).Val())
		role, err := r.Do(t.Context(), "ROLE").Slice()
		require.NoError(t, err)
		require.Equal(t, []any{"slave", "127.0.0.1", int64(6379), "connected", int64(0)}, role)
		require.Contains(t, w.Info(t.Context(), "replication").Val(), "slave0:ip=10.0.0.2,port=6379,state=online")

		// They fail apart from each other, and messages reach both.
		sub := r.Subscribe(t.Context(), "c")
		_, err = sub.Receive(t.Context())
		require.NoError(t, err)
		primary.SetError("ERR no luck", "GET")
		require.Equal(t, "v", r.Get(t.Context(), "k").Val())
		require.NoError(t, w.Publish(t.Context(), "c", "m").Err())
		require.Equal(t, "m", (<-sub.Channel()).Payload)
		require.NoError(t, sub.Close())

		primary.Stop()
		replica.SetUpstream("")
		require.NoError(t, r.Set(t.Context(), "k", "w", 0).Err())
		require.NoError(t, primary.Restart())
		primary.SetUpstream(replica.Addr())
		primary.SetError("")
		require.Equal(t, "w", w.Get(t.Context(), "k").Val())
		require.ErrorContains(t, w.Set(t.Context(), "k", "x", 0).Err(), "READONLY")
	})
}

// fill writes something of each type.
func fill(t *testing.T, rdb *redis.Client) {
	t.Helper()
	_, err := rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		ctx := t.Context()
		p.Set(ctx, "string", "\x00\xff bytes", time.Hour)
		p.HSet(ctx, "hash", "f", "1", "g", "2")
		p.RPush(ctx, "list", "a", "b", "a")
		p.SAdd(ctx, "set", "a", "b")
		p.ZAdd(ctx, "zset", redis.Z{Score: 1.5, Member: "a"}, redis.Z{Score: -2, Member: "b"})
		p.PFAdd(ctx, "hll", "a", "b", "c")
		for _, id := range []string{"1-1", "2-1", "3-1", "4-1"} {
			p.XAdd(ctx, &redis.XAddArgs{Stream: "stream", ID: id, Values: []string{"field", "of " + id}})
		}
		p.XGroupCreate(ctx, "stream", "g", "0")
		p.XGroupCreate(ctx, "stream", "h", "$")
		p.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "g", Consumer: "c1", Streams: []string{"stream", ">"}, Count: 2})
		p.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "g", Consumer: "c2", Streams: []string{"stream", ">"}, Count: 1})
		p.XClaim(ctx, &redis.XClaimArgs{Stream: "stream", Group: "g", Consumer: "c2", Messages: []string{"2-1"}})
		p.XGroupCreateConsumer(ctx, "stream", "h", "idler")
		p.Expire(ctx, "stream", time.Hour)
		p.XGroupCreateMkStream(ctx, "empty", "g", "0")
		return nil
	})
	require.NoError(t, err)
}

// look returns what there is.
func look(t *testing.T, rdb *redis.Client) []any {
	t.Helper()
	cmds, err := rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		for _, args := range [][]any{
			{"KEYS", "*"}, {"GET", "string"}, {"PTTL", "string"}, {"HGETALL", "hash"}, {"LRANGE", "list", 0, -1}, {"SMEMBERS", "set"},
			{"ZRANGE", "zset", 0, -1, "WITHSCORES"}, {"PFCOUNT", "hll"}, {"XRANGE", "stream", "-", "+"}, {"PTTL", "stream"}, {"PTTL", "list"},
			{"XPENDING", "stream", "g", "-", "+", 10}, {"XPENDING", "stream", "h", "-", "+", 10}, {"XINFO", "GROUPS", "stream"},
			{"XINFO", "CONSUMERS", "stream", "g"}, {"XINFO", "CONSUMERS", "stream", "h"}, {"XINFO", "GROUPS", "empty"}, {"XLEN", "empty"},
		} {
			p.Do(t.Context(), args...)
		}
		return nil
	})
	require.NoError(t, err)
	values := make([]any, len(cmds))
	for i, cmd := range cmds {
		values[i] = cmd.(*redis.Cmd).Val()
		if list, ok := values[i].([]any); ok && cmd.Name() == "xinfo" { // in any order
			slices.SortFunc(list, func(a, b any) int {
				return strings.Compare(a.(map[any]any)["name"].(string), b.(map[any]any)["name"].(string))
			})
		}
	}
	return values
}

func TestASnapshotIsACopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		primary, replica := pair(t)
		opt := primary.Options()
		opt.DB = 5
		w := redis.NewClient(opt)
		defer func() { _ = w.Close() }()
		opt = replica.Options()
		opt.DB = 5
		r := redis.NewClient(opt)
		defer func() { _ = r.Close() }()
		fill(t, w)
		time.Sleep(time.Minute)
		primary.SetTime(time.Now()) // go-redis pauses before it replaces a connection
		before := look(t, w)
		require.NoError(t, primary.Snapshot())
		replica.ServeSnapshot(true)
		require.Equal(t, before, look(t, r))

		// What changes one of the two leaves the other as it is.
		_, err := w.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			ctx := t.Context()
			p.XDel(ctx, "stream", "1-1", "3-1")
			p.XAck(ctx, "stream", "g", "2-1")
			p.XAdd(ctx, &redis.XAddArgs{Stream: "stream", ID: "9-9", Values: []string{"a", "b"}})
			p.LPush(ctx, "list", "x")
			p.HDel(ctx, "hash", "f")
			p.Del(ctx, "string", "set")
			p.PFAdd(ctx, "hll", "d")
			p.ZAdd(ctx, "zset", redis.Z{Score: 7, Member: "a"})
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, before, look(t, r))
		require.NoError(t, once(t, primary).Set(t.Context(), "other database", 1, 0).Err())
		require.ErrorIs(t, once(t, replica).Get(t.Context(), "other database").Err(), redis.Nil)
		require.ErrorContains(t, r.Do(t.Context(), "SELECT", "x").Err(), "not an integer")

		primary.Revert()
		replica.ServeSnapshot(false)
		require.Equal(t, before, look(t, w))
		require.Equal(t, before, look(t, r))
		require.Zero(t, once(t, primary).DBSize(t.Context()).Val())
		mine := w.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "c1", Streams: []string{"stream", "0"}}).Val()
		require.Equal(t, "1-1", mine[0].Messages[0].ID)

		// A second one replaces the first.
		require.NoError(t, w.Del(t.Context(), "hash").Err())
		require.NoError(t, primary.Snapshot())
		primary.Revert()
		require.Zero(t, w.Exists(t.Context(), "hash").Val())
	})
}

func TestASnapshotWantsAnOpenServer(t *testing.T) {
	primary, _ := pair(t)
	primary.RequireAuth("secret")
	require.ErrorContains(t, primary.Snapshot(), "NOAUTH")
}

func TestAStoppedReplicaIsDown(t *testing.T) {
	_, replica := pair(t)
	require.False(t, replica.Down())
	replica.Stop()
	require.True(t, replica.Down())
	require.NoError(t, replica.Restart())
	replica.Close()
	require.True(t, replica.Down())
}
