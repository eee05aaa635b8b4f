package lock

import (
	"errors"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

func TestRoleIsReadAsTheServerSaysIt(t *testing.T) {
	replicaOf := discovery{finding: foundReplica, detail: "the primary of this one is 10.0.0.1:6379"}
	for _, test := range []struct {
		reply []any
		want  discovery
	}{
		{[]any{"master", int64(0), []any{}}, discovery{finding: foundSafe}},
		{[]any{"master", int64(0), []any{[]any{"10.0.0.2", "6379", "0"}}}, discovery{finding: foundReplicas, detail: "it has 1 replica"}},
		{[]any{"slave", "10.0.0.1", int64(6379), "connected", int64(1)}, replicaOf},
		{[]any{"slave"}, discovery{finding: foundReplica}},
		{[]any{"sentinel", []any{"main"}}, discovery{finding: foundSentinel}},
		{nil, discovery{finding: foundUnprobed, detail: "ROLE tells nothing", strange: true}},
		{[]any{"master"}, discovery{finding: foundUnprobed, detail: "ROLE tells something else than Redis does", strange: true}},
		{[]any{"master", int64(0), "none"}, discovery{finding: foundUnprobed, detail: "ROLE tells something else than Redis does", strange: true}},
		{[]any{[]any{}, map[any]any{}}, discovery{finding: foundUnprobed, detail: "ROLE tells something else than Redis does", strange: true}},
	} {
		require.Equal(t, test.want, roleOf(test.reply), test.reply)
	}
}

func TestInfoIsReadAsTheServerSaysIt(t *testing.T) {
	for text, want := range map[string]discovery{
		"# Replication\r\nrole:master\r\nconnected_slaves:0\r\n":                       {finding: foundSafe},
		"# Replication\r\nrole:master\r\nconnected_slaves:2\r\nslave0:ip=10.0.0.2\r\n": {finding: foundReplicas, detail: "it has 2 replicas"},
		"# Replication\r\nrole:slave\r\nmaster_host:10.0.0.1\r\nmaster_port:6379\r\n":  {finding: foundReplica, detail: "the primary of this one is 10.0.0.1:6379"},
		"role:slave\nmaster_host:fd00::1\nmaster_port:6379\nconnected_slaves:1":        {finding: foundReplica, detail: "the primary of this one is fd00::1:6379"},
	} {
		d, ok := infoOf(text)
		require.True(t, ok, text)
		require.Equal(t, want, d)
	}
	for _, text := range []string{"", "role", "role:master", "role:master\nconnected_slaves:many", "# Clients\r\nconnected_clients:1\r\n"} {
		_, ok := infoOf(text)
		require.False(t, ok, text)
	}
}

func TestEvictionIsReadAsTheServerSaysIt(t *testing.T) {
	for text, want := range map[string]discovery{
		"# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n":      {finding: foundSafe},
		"# Memory\r\nmaxmemory:100\r\nmaxmemory_policy:noeviction\r\n":     {finding: foundSafe},
		"# Memory\r\nmaxmemory:100\r\nmaxmemory_policy:volatile-x\r\n":     {finding: foundEvicting, detail: "its maxmemory-policy is volatile-x, and its maxmemory 100"},
		"maxmemory_policy:allkeys-lru\nmaxmemory:5":                        {finding: foundEvicting, detail: "its maxmemory-policy is allkeys-lru, and its maxmemory 5"},
		"maxmemory_policy:allkeys-lru":                                     {finding: foundSafe},
		"maxmemory:100":                                                    {finding: foundSafe},
		"":                                                                 {finding: foundSafe},
		"maxmemory:100\r\nmaxmemory_policy:":                               {finding: foundSafe},
		"# Memory\r\nused_memory:1\r\nnothing\r\n:::\r\nmaxmemory\r\n\r\n": {finding: foundSafe},
	} {
		d, err := evictionOf(redis.NewStringResult(text, nil))
		require.NoError(t, err)
		require.Equal(t, want, d, text)
	}
	d, err := evictionOf(redis.NewStringResult("", reply("NOPERM this user has no permissions to run the 'info' command")))
	require.NoError(t, err)
	require.Equal(t, foundUnprobed, d.finding)
	_, err = evictionOf(redis.NewStringResult("", reply("LOADING Redis is loading the dataset in memory")))
	require.ErrorContains(t, err, "LOADING")
}

func TestReplicasOfAClusterAreCountedInBothProtocols(t *testing.T) {
	node := func(role string) []any { return []any{"id", "x", "port", int64(7000), "role", role, "health", "fail"} }
	shard := func(nodes ...any) []any { return []any{"slots", []any{int64(0), int64(9)}, "nodes", nodes} }
	require.Zero(t, replicasIn(nil))
	require.Zero(t, replicasIn([]any{shard(node("master")), shard(node("master"))}))
	require.Equal(t, 3, replicasIn([]any{shard(node("master"), node("replica"), node("replica")), shard(node("replica"), node("master"))}))
	require.Equal(t, 1, replicasIn([]any{map[any]any{"nodes": []any{map[any]any{"role": "master"}, map[any]any{"role": "replica"}}}}))
	require.Zero(t, replicasIn([]any{"odd", int64(1), nil, []any{"nodes"}, []any{"nodes", "none"}, map[any]any{"nodes": int64(3)}, []any{[]any{}, []any{}}}))
}

func TestOnlySomeErrorsAreAnAnswer(t *testing.T) {
	for _, msg := range []string{
		"NOPERM this user has no permissions to run the 'role' command", "ERR unknown command 'role', with args beginning with: ",
		"ERR This instance has cluster support disabled", "invalid request", "unsupported command 'role'",
	} {
		require.True(t, tells(reply(msg)), msg)
	}
	for _, msg := range []string{
		"LOADING Redis is loading the dataset in memory", "BUSY Redis is busy", "MASTERDOWN Link with MASTER is down",
		"NOAUTH Authentication required.", "WRONGPASS invalid username-password pair", "CLUSTERDOWN The cluster is down",
		"ERR max number of clients reached", "no upstream host", "upstream failure", "",
	} {
		require.False(t, tells(reply(msg)), msg)
	}
	require.False(t, tells(errors.New("ERR not a reply")))
	require.False(t, tells(nil))
}

type reply string

func (r reply) Error() string { return string(r) }
func (reply) RedisError()     {}

func TestClientsAreFoundInWhatIsWrappedAroundThem(t *testing.T) {
	rdb := testserver.New(t).Client(t)
	require.Same(t, rdb, innermost(rdb))
	require.Same(t, rdb, innermost(wrapped{rdb}))
	require.Same(t, rdb, innermost(&wrapped{&wrapped{rdb}}))
	require.Same(t, rdb, innermost(&decorated{name: "locks", Client: rdb}))
	nothing := wrapped{}
	require.Equal(t, nothing, innermost(nothing))
	var none redis.UniversalClient
	require.Nil(t, innermost(none))
	circle := &wrapped{}
	circle.UniversalClient = circle
	require.NotNil(t, innermost(circle))
}
