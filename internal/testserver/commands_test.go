package testserver_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

func TestRoleAndInfoTellTheReplicas(t *testing.T) {
	s := testserver.New(t)
	rdb := s.Client(t)
	s.SetReplicas(2)
	role, err := rdb.Do(t.Context(), "ROLE").Slice()
	require.NoError(t, err)
	require.Equal(t, "master", role[0])
	require.Len(t, role[2], 2)
	info := rdb.InfoMap(t.Context(), "replication", "server", "nosuch").Val()
	require.Equal(t, "master", info["Replication"]["role"])
	require.Equal(t, "2", info["Replication"]["connected_slaves"])
	require.Contains(t, info["Replication"]["slave1"], "state=online")
	require.Len(t, info["Server"]["run_id"], 40)
	require.Len(t, info, 2)
	require.Contains(t, rdb.InfoMap(t.Context()).Val(), "Memory")
}

func TestUptimeFollowsTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := testserver.New(t).Client(t)
		time.Sleep(time.Minute)
		require.Equal(t, "60", rdb.InfoMap(t.Context(), "server").Val()["Server"]["uptime_in_seconds"])
	})
}

func TestHelloTellsTheConnection(t *testing.T) {
	rdb := testserver.New(t).Client(t)
	conn := rdb.Conn()
	defer func() { _ = conn.Close() }()
	other := rdb.Conn()
	defer func() { _ = other.Close() }()
	hello := func(c *redis.Conn, args ...any) map[any]any {
		got, err := c.Do(t.Context(), append([]any{"HELLO"}, args...)...).Result()
		require.NoError(t, err)
		return got.(map[any]any)
	}
	got := hello(conn, 3, "SETNAME", "me")
	require.Equal(t, "standalone", got["mode"])
	require.Equal(t, "master", got["role"])
	require.EqualValues(t, 3, got["proto"])
	require.Equal(t, conn.ClientID(t.Context()).Val(), got["id"])
	require.Equal(t, "me", conn.ClientGetName(t.Context()).Val())
	require.EqualValues(t, 3, hello(conn)["proto"])
	require.NotEqual(t, got["id"], hello(other)["id"])
	require.ErrorContains(t, conn.Do(t.Context(), "HELLO", 4).Err(), "NOPROTO")
	require.ErrorContains(t, conn.Do(t.Context(), "HELLO", 3, "AUTH", "default").Err(), "Syntax error")
}

func TestServerWithAPasswordAsksForIt(t *testing.T) {
	s := testserver.New(t)
	s.RequireUserAuth("alice", "secret")
	connect := func(user, password string) *redis.Client {
		opts := s.Options()
		opts.Username, opts.Password = user, password
		rdb := redis.NewClient(opts)
		t.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	require.ErrorContains(t, connect("", "").Do(t.Context(), "ROLE").Err(), "NOAUTH")
	require.ErrorContains(t, connect("", "").Do(t.Context(), "HELLO", 3).Err(), "NOAUTH HELLO")
	require.ErrorContains(t, connect("alice", "wrong").Ping(t.Context()).Err(), "WRONGPASS")
	require.NoError(t, connect("alice", "secret").Do(t.Context(), "ROLE").Err())
}

func TestClientSubcommands(t *testing.T) {
	rdb := testserver.New(t).Client(t)
	for _, test := range []struct {
		args []any
		want string // of the error; empty: OK
	}{
		{[]any{"SETINFO", "LIB-NAME", "x"}, ""},
		{[]any{"SETINFO", "COLOUR", "x"}, "ERR Unrecognized option 'COLOUR'"},
		{[]any{"SETINFO", "LIB-NAME"}, "ERR wrong number of arguments for 'client|setinfo' command"},
		{[]any{"NO-EVICT", "on"}, ""},
		{[]any{"NO-TOUCH", "off"}, ""},
		{[]any{"NO-TOUCH", "perhaps"}, "ERR syntax error"},
		{[]any{"NO-TOUCH"}, "ERR wrong number of arguments for 'client|no-touch' command"},
		{[]any{"ID", "x"}, "ERR wrong number of arguments for 'client|id' command"},
		{[]any{"SETNAME", "n"}, ""},
		{[]any{"NOSUCH"}, "ERR unknown subcommand 'NOSUCH'. Try CLIENT HELP."},
		{[]any{}, "ERR wrong number of arguments for 'client' command"},
		{[]any{"UNBLOCK"}, "ERR wrong number of arguments for 'client|unblock' command"},
		{[]any{"UNBLOCK", "x"}, "ERR value is not an integer or out of range"},
		{[]any{"UNBLOCK", 1, "WHY"}, "ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR"},
	} {
		err := rdb.Do(t.Context(), append([]any{"CLIENT"}, test.args...)...).Err()
		if test.want == "" {
			require.NoError(t, err, test.args)
		} else {
			require.EqualError(t, err, test.want)
		}
	}
}

func TestCommandInfoTellsWhatIsThere(t *testing.T) {
	for _, protocol := range []int{2, 3} {
		s := testserver.New(t)
		opts := s.Options()
		opts.Protocol = protocol
		rdb := redis.NewClient(opts)
		defer func() { _ = rdb.Close() }()
		names := []any{"GET", "waitaof", "role", "xautoclaim", "lastsave", "client|unblock", "client|kill", "getex"}
		infos, err := rdb.Do(t.Context(), append([]any{"COMMAND", "INFO"}, names...)...).Slice()
		require.NoError(t, err)
		require.Len(t, infos, len(names))
		var there []any
		for i, info := range infos {
			if info != nil {
				there = append(there, names[i])
				require.Len(t, info, 6)
			}
		}
		require.Equal(t, []any{"GET", "role", "xautoclaim", "client|unblock", "getex"}, there)
		require.EqualValues(t, []any{"readonly", "fast"}, infos[0].([]any)[2])
	}
	rdb := testserver.New(t).Client(t)
	require.Contains(t, rdb.Command(t.Context()).Val(), "get")
	require.EqualError(t, rdb.Do(t.Context(), "COMMAND", "DOCS").Err(), "ERR unknown subcommand 'DOCS'. Try COMMAND HELP.")
}

func TestOwnCommandsSpoilATransaction(t *testing.T) {
	rdb := testserver.New(t).Client(t)
	_, err := rdb.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Set(t.Context(), "k", "v", 0)
		p.Do(t.Context(), "ROLE")
		return nil
	})
	require.ErrorContains(t, err, "EXECABORT")
	require.EqualValues(t, 0, rdb.Exists(t.Context(), "k").Val())

	cmds, err := rdb.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Set(t.Context(), "k", "v", 0)
		p.Do(t.Context(), "CLIENT", "GETNAME")
		p.BLPop(t.Context(), 0, "l")
		return nil
	})
	require.ErrorIs(t, err, redis.Nil) // of BLPOP, which does not wait here
	require.NoError(t, cmds[0].Err())
	require.NoError(t, rdb.Do(t.Context(), "ROLE").Err()) // the transaction is over
}

func TestConsumersIdleFollowsTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := testserver.New(t).Client(t)
		require.NoError(t, rdb.XGroupCreateMkStream(t.Context(), "s", "g", "0").Err())
		require.NoError(t, rdb.XGroupCreateConsumer(t.Context(), "s", "g", "created").Err())
		for _, v := range []string{"1", "2"} {
			require.NoError(t, rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: "s", Values: []string{"v", v}}).Err())
		}
		time.Sleep(time.Minute)
		read := &redis.XReadGroupArgs{Group: "g", Consumer: "reader", Streams: []string{"s", ">"}, Count: 1, Block: -1}
		require.NoError(t, rdb.XReadGroup(t.Context(), read).Err())
		time.Sleep(time.Minute)
		require.NoError(t, rdb.Eval(t.Context(), "return redis.call('XREADGROUP', 'GROUP', 'g', 'script', 'STREAMS', 's', '>')", nil).Err())
		time.Sleep(time.Minute)
		require.NoError(t, rdb.XAutoClaim(t.Context(), &redis.XAutoClaimArgs{Stream: "s", Group: "g", Consumer: "claimer", MinIdle: 90 * time.Second, Start: "0"}).Err())
		time.Sleep(time.Second)
		require.Equal(t, []redis.XInfoConsumer{
			{Name: "claimer", Pending: 1, Idle: time.Second},
			{Name: "created", Pending: 0, Idle: 3*time.Minute + time.Second},
			{Name: "reader", Pending: 0, Idle: 2*time.Minute + time.Second},
			{Name: "script", Pending: 1, Idle: time.Minute + time.Second},
		}, rdb.XInfoConsumers(t.Context(), "s", "g").Val())
		require.ErrorContains(t, rdb.XInfoConsumers(t.Context(), "s", "nosuch").Err(), "NOGROUP")
	})
}

func TestScriptsHaveTimeCjsonAndPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		rdb := s.Client(t)
		sub := rdb.Subscribe(t.Context(), "c")
		defer func() { _ = sub.Close() }()
		_, err := sub.Receive(t.Context())
		require.NoError(t, err)
		got, err := rdb.Eval(t.Context(), `
			local time = redis.call("TIME")
			return {time[1], cjson.encode({a = 1}), redis.call("PUBLISH", "c", "m"), redis.call("PUBLISH", "d", "m")}`, nil).Slice()
		require.NoError(t, err)
		require.Equal(t, []any{"946684800", `{"a":1}`, int64(1), int64(0)}, got) // a bubble begins in the year 2000
	})
}
