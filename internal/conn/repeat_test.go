package conn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
)

// A network puts a proxy before every server that is dialled.
type network struct {
	t       *testing.T
	mu      sync.Mutex
	proxies map[string]*redistest.Proxy
}

func newNetwork(t *testing.T) *network {
	return &network{t: t, proxies: make(map[string]*redistest.Proxy)}
}

func (n *network) proxy(addr string) *redistest.Proxy {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.proxies[addr]
	if p == nil {
		p = redistest.NewProxy(n.t, addr)
		n.proxies[addr] = p
	}
	return p
}

func (n *network) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, n.proxy(addr).Addr())
}

// A topology is one on which a test runs, behind a network of proxies.
type topology struct {
	name    string
	config  Config
	network *network
	server  func(key string) *redistest.Server // the primary of key
}

// topologies runs f on each topology, on real servers.
func topologies(t *testing.T, f func(t *testing.T, on topology)) {
	run := func(name string, start func(t *testing.T) (url string, server func(string) *redistest.Server)) {
		t.Run(name, func(t *testing.T) {
			url, server := start(t)
			n := newNetwork(t)
			f(t, topology{name, Config{Role: "broker", Endpoint: parse(t, url), Dialer: n.dial}, n, server})
		})
	}
	run("standalone", func(t *testing.T) (string, func(string) *redistest.Server) {
		srv := redistest.New(t, redistest.Config{})
		return srv.URL(), func(string) *redistest.Server { return srv }
	})
	run("replicated", func(t *testing.T) (string, func(string) *redistest.Server) {
		primary := redistest.New(t, redistest.Config{})
		replica := redistest.NewReplica(t, primary, redistest.Config{})
		return "redis+replica://" + replica.Addr() + "," + primary.Addr(), func(string) *redistest.Server { return primary }
	})
	run("sentinel", func(t *testing.T) (string, func(string) *redistest.Server) {
		s := redistest.NewSentinels(t, redistest.SentinelsConfig{})
		return s.URL(), func(string) *redistest.Server { return s.Primary() }
	})
	run("cluster", func(t *testing.T) (string, func(string) *redistest.Server) {
		c := redistest.NewCluster(t, redistest.ClusterConfig{})
		return c.URL(), func(key string) *redistest.Server {
			srv, err := c.PrimaryOf(t.Context(), key)
			require.NoError(t, err)
			return srv
		}
	})
}

// calls returns how often the server has executed each command since reset.
func calls(t *testing.T, srv *redistest.Server, name string) int {
	t.Helper()
	info, err := srv.Client(t).Info(t.Context(), "commandstats").Result()
	require.NoError(t, err)
	for line := range strings.Lines(info) {
		if rest, ok := strings.CutPrefix(line, "cmdstat_"+name+":calls="); ok {
			var n int
			_, err := fmt.Sscanf(rest, "%d", &n)
			require.NoError(t, err)
			return n
		}
	}
	return 0
}

var tokenScript = RepeatableScript(`return redis.call('set', KEYS[1], ARGV[1])`)

// families are commands of every kind. Those that are not safe must never be
// executed twice.
var families = []struct {
	name string // as in commandstats
	safe bool
	run  func(ctx context.Context, c redis.UniversalClient) error
}{
	{"get", true, func(ctx context.Context, c redis.UniversalClient) error { return c.Get(ctx, "{k}s").Err() }},
	{"mget", true, func(ctx context.Context, c redis.UniversalClient) error { return c.MGet(ctx, "{k}s", "{k}t").Err() }},
	{"hgetall", true, func(ctx context.Context, c redis.UniversalClient) error { return c.HGetAll(ctx, "{k}h").Err() }},
	{"set", true, func(ctx context.Context, c redis.UniversalClient) error {
		return c.Set(ctx, "{k}s", "v", time.Minute).Err()
	}},
	{"setex", true, func(ctx context.Context, c redis.UniversalClient) error {
		return c.SetEx(ctx, "{k}s", "v", time.Minute).Err()
	}},
	{"mset", true, func(ctx context.Context, c redis.UniversalClient) error {
		return c.MSet(ctx, "{k}s", "v", "{k}t", "w").Err()
	}},
	{"set", false, func(ctx context.Context, c redis.UniversalClient) error {
		return c.SetArgs(ctx, "{k}new", "v", redis.SetArgs{Mode: "NX"}).Err()
	}},
	{"set", false, func(ctx context.Context, c redis.UniversalClient) error {
		return c.SetArgs(ctx, "{k}s", "v", redis.SetArgs{Get: true}).Err()
	}},
	{"del", true, func(ctx context.Context, c redis.UniversalClient) error { return c.Del(ctx, "{k}x").Err() }},
	{"unlink", true, func(ctx context.Context, c redis.UniversalClient) error { return c.Unlink(ctx, "{k}x").Err() }},
	{"pexpire", true, func(ctx context.Context, c redis.UniversalClient) error {
		return c.PExpire(ctx, "{k}s", time.Minute).Err()
	}},
	{"expire", false, func(ctx context.Context, c redis.UniversalClient) error {
		return c.ExpireNX(ctx, "{k}s", time.Minute).Err()
	}},
	{"incr", false, func(ctx context.Context, c redis.UniversalClient) error { return c.Incr(ctx, "{k}n").Err() }},
	{"lpush", false, func(ctx context.Context, c redis.UniversalClient) error { return c.LPush(ctx, "{k}l", 1).Err() }},
	{"getdel", false, func(ctx context.Context, c redis.UniversalClient) error { return c.GetDel(ctx, "{k}s").Err() }},
	{"hset", false, func(ctx context.Context, c redis.UniversalClient) error { return c.HSet(ctx, "{k}h", "f", "v").Err() }},
	{"zadd", false, func(ctx context.Context, c redis.UniversalClient) error {
		return c.ZAdd(ctx, "{k}z", redis.Z{Score: 1, Member: "m"}).Err()
	}},
	{"xadd", false, func(ctx context.Context, c redis.UniversalClient) error {
		return c.XAdd(ctx, &redis.XAddArgs{Stream: "{k}x", Values: []string{"a", "b"}}).Err()
	}},
	{"blpop", false, func(ctx context.Context, c redis.UniversalClient) error {
		return c.BLPop(ctx, time.Second, "{k}l").Err()
	}},
	{"publish", false, func(ctx context.Context, c redis.UniversalClient) error { return c.Publish(ctx, "{k}c", "m").Err() }},
	{"eval", false, func(ctx context.Context, c redis.UniversalClient) error {
		return c.Eval(ctx, `return redis.call('incr', KEYS[1])`, []string{"{k}n"}).Err()
	}},
	{"eval", true, func(ctx context.Context, c redis.UniversalClient) error {
		return tokenScript.Eval(ctx, c, []string{"{k}s"}, "token").Err()
	}},
}

func TestALostReplyIsAskedForAgainOnlyWhereThatIsSafe(t *testing.T) {
	topologies(t, func(t *testing.T, on topology) {
		c := open(t, on.config)
		srv := on.server("{k}")
		admin := srv.Client(t)
		for _, family := range families {
			if family.name == "publish" && (on.name == "cluster" || on.name == "sentinel") {
				continue // goes to any node; Sentinels publish too, each every two seconds
			}
			t.Run(fmt.Sprint(family.name, "_", family.safe), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				require.NoError(t, admin.FlushAll(ctx).Err())
				require.NoError(t, admin.Set(ctx, "{k}s", "v", 0).Err())
				require.NoError(t, admin.HSet(ctx, "{k}h", "f", "v").Err())
				require.NoError(t, admin.LPush(ctx, "{k}l", 1, 2, 3).Err())
				require.NoError(t, c.Ping(ctx).Err())
				require.NoError(t, c.Get(ctx, "{k}s").Err())
				require.NoError(t, admin.ConfigResetStat(ctx).Err())
				before := c.Stats()

				hit := on.network.proxy(srv.Addr()).CutAfter(func(request []byte) bool {
					return bytes.Contains(bytes.ToLower(request), []byte("\r\n"+family.name+"\r\n"))
				})
				err := family.run(ctx, c)
				select {
				case <-hit:
				case <-ctx.Done():
					t.Fatal("the proxy has cut nothing")
				}
				s := c.Stats()
				if family.safe {
					require.NoError(t, err)
					require.Equal(t, 2, calls(t, srv, family.name))
					require.Equal(t, before.Repeats+1, s.Repeats)
					require.Equal(t, before.OutcomeUnknown, s.OutcomeUnknown)
					return
				}
				require.ErrorIs(t, err, ErrOutcomeUnknown)
				require.Equal(t, 1, calls(t, srv, family.name))
				require.Equal(t, before.OutcomeUnknown+1, s.OutcomeUnknown)
				require.NoError(t, c.Ping(ctx).Err(), "the client goes on")
			})
		}
	})
}

func TestACutPipelineIsJudgedCommandByCommand(t *testing.T) {
	topologies(t, func(t *testing.T, on topology) {
		c := open(t, on.config)
		srv := on.server("{k}")
		admin := srv.Client(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, c.Set(ctx, "{k}s", "v", 0).Err())
		require.NoError(t, admin.ConfigResetStat(ctx).Err())
		hit := on.network.proxy(srv.Addr()).CutAfter(func(request []byte) bool { return bytes.Contains(request, []byte("incr")) })
		cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.Set(ctx, "{k}s", "w", 0)
			p.Incr(ctx, "{k}n")
			p.Get(ctx, "{k}s")
			return nil
		})
		<-hit
		require.ErrorIs(t, err, ErrOutcomeUnknown)
		require.NoError(t, cmds[0].Err())
		require.ErrorIs(t, cmds[1].Err(), ErrOutcomeUnknown)
		require.NoError(t, cmds[2].Err())
		require.Equal(t, "w", cmds[2].(*redis.StringCmd).Val())
		require.Equal(t, 1, calls(t, srv, "incr"))
		require.Equal(t, 2, calls(t, srv, "set"))

		t.Run("a transaction as a whole", func(t *testing.T) {
			require.NoError(t, admin.ConfigResetStat(ctx).Err())
			hit := on.network.proxy(srv.Addr()).CutAfter(func(request []byte) bool { return bytes.Contains(request, []byte("exec")) })
			_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Set(ctx, "{k}s", "x", 0); p.Incr(ctx, "{k}n"); return nil })
			<-hit
			require.ErrorIs(t, err, ErrOutcomeUnknown)
			require.Equal(t, 1, calls(t, srv, "exec"))
			require.Equal(t, 1, calls(t, srv, "set"))

			hit = on.network.proxy(srv.Addr()).CutAfter(func(request []byte) bool { return bytes.Contains(request, []byte("exec")) })
			cmds, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Set(ctx, "{k}s", "y", 0); p.Get(ctx, "{k}s"); return nil })
			<-hit
			require.NoError(t, err)
			require.Equal(t, "y", cmds[1].(*redis.StringCmd).Val())
			require.Equal(t, 3, calls(t, srv, "exec"))
		})
	})
}

func TestWhatWasNeverSentIsSentWhenTheServerIsBack(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Persist: true})
	c := open(t, Config{Role: "broker", Endpoint: parse(t, srv.URL())})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, c.Incr(ctx, "n").Err())
	srv.Kill()
	time.Sleep(50 * time.Millisecond) // the kernel tells go-redis, which looks before it sends
	done := make(chan error, 1)
	go func() { done <- c.Incr(ctx, "n").Err() }()
	time.Sleep(200 * time.Millisecond)
	require.NoError(t, srv.Restart(ctx))
	require.NoError(t, <-done)
	n, err := c.Get(ctx, "n").Int()
	require.NoError(t, err)
	require.Equal(t, 2, n)

	hasty := open(t, Config{Role: "cache", FailFast: true, Endpoint: parse(t, srv.URL())})
	require.NoError(t, hasty.Ping(ctx).Err())
	srv.Kill()
	start := time.Now()
	require.Error(t, hasty.Get(ctx, "n").Err())
	require.Less(t, time.Since(start), 20*time.Second, "it does not wait for the server")

	t.Run("but not for ever", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := c.Incr(ctx, "n").Err()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "connection refused")
		require.NotErrorIs(t, err, ErrOutcomeUnknown)
	})
	t.Run("and not at all with max_retries=-1", func(t *testing.T) {
		c := open(t, Config{Role: "broker", Endpoint: parse(t, srv.URL()+"?max_retries=-1")})
		start := time.Now()
		require.ErrorContains(t, c.Incr(t.Context(), "n").Err(), "connection refused")
		require.Less(t, time.Since(start), 30*time.Second)
		require.Zero(t, c.Stats().Repeats)
		c = open(t, Config{Role: "broker", Endpoint: parse(t, srv.URL()+"?max_retries=2")})
		require.ErrorContains(t, c.Incr(t.Context(), "n").Err(), "connection refused")
		require.EqualValues(t, 2, c.Stats().Repeats)
	})
}

func TestRefusedCommandsAreTriedAgain(t *testing.T) {
	for _, refusal := range []string{
		"LOADING Redis is loading the dataset in memory", "MASTERDOWN Link with MASTER is down", "CLUSTERDOWN The cluster is down",
		"TRYAGAIN Multiple keys request during rehashing of slot", "NOREPLICAS Not enough good replicas to write.",
		"UNBLOCKED force unblock from blocking operation", "ERR max number of clients reached",
	} {
		c, srv := inMemory(t, Config{Role: "broker"})
		require.NoError(t, c.Set(t.Context(), "n", 1, 0).Err())
		srv.SetError(refusal)
		time.AfterFunc(30*time.Millisecond, func() { srv.SetError("") })
		require.NoError(t, c.Incr(t.Context(), "n").Err(), refusal)
		n, err := srv.Get("n")
		require.NoError(t, err)
		require.Equal(t, "2", n)
	}
	c, srv := inMemory(t, Config{Role: "broker"})
	srv.SetError("OOM command not allowed when used memory > 'maxmemory'.")
	require.ErrorContains(t, c.Incr(t.Context(), "n").Err(), "OOM", "waiting does not mend it")
}

func TestAReadSeesTheWriteBeforeItThatWasRefusedAtFirst(t *testing.T) {
	c, srv := inMemory(t, Config{Role: "broker"})
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "k", "old", 0).Err())
	srv.SetError("LOADING Redis is loading the dataset in memory", "set")
	time.AfterFunc(30*time.Millisecond, func() { srv.SetError("") })
	cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Incr(ctx, "n")
		p.Set(ctx, "k", "new", 0)
		p.Get(ctx, "k")
		p.Incr(ctx, "n")
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, "new", cmds[2].(*redis.StringCmd).Val())
	require.EqualValues(t, 2, cmds[3].(*redis.IntCmd).Val())
	require.Equal(t, "2", c.Get(ctx, "n").Val(), "what was executed is not executed again")
}

func TestRepeatableCommandsByTheirArguments(t *testing.T) {
	ctx := t.Context()
	for _, c := range []struct {
		args []any
		want bool
	}{
		{[]any{"set", "k", "v"}, true},
		{[]any{"SET", "k", "v", "EX", 5, "KEEPTTL"}, true},
		{[]any{"set", "k", "v", "px", "nx"}, true}, // not valid, and no condition
		{[]any{"set", "k", "v", "ex", 5, "nx"}, false},
		{[]any{"set", "k", "v", "get"}, false},
		{[]any{"set", "k", "v", "ifeq", "x"}, false},
		{[]any{"set", "k"}, false},
		{[]any{"cluster", "slots"}, true},
		{[]any{"cluster", "FAILOVER"}, false},
		{[]any{"cluster"}, false},
		{[]any{"config", "set", "x", "y"}, false},
		{[]any{"script", "LOAD", "return 1"}, true},
		{[]any{"script", "flush"}, false},
		{[]any{"evalsha", tokenScript.Hash(), 0}, true},
		{[]any{"evalsha", "0123", 0}, false},
		{[]any{"evalsha_ro", "0123", 0}, true},
		{[]any{"xread", "block", 0, "streams", "s", "$"}, true},
		{[]any{"xreadgroup", "group", "g", "c", "streams", "s", ">"}, false},
		{[]any{"flushall"}, false},
		{[]any{"no-such-command"}, false},
	} {
		require.Equal(t, c.want, repeatable(redis.NewCmd(ctx, c.args...)), "%v", c.args)
	}
}

func TestOutcomes(t *testing.T) {
	require.Equal(t, final, outcomeOf(nil))
	require.Equal(t, final, outcomeOf(errors.New("redis: can't marshal")))
	require.Equal(t, lost, outcomeOf(&net.OpError{Op: "read", Err: errors.New("reset")}))
	require.Equal(t, notSent, outcomeOf(&unsentError{err: &net.OpError{Op: "write", Err: errors.New("reset")}}))
	require.Equal(t, final, outcomeOf(context.DeadlineExceeded))
	require.Equal(t, crowded, outcomeOf(redis.ErrPoolTimeout))
	require.Equal(t, endpoint.Standalone, parse(t, "redis://h").Topology)
}

// A WAIT counts the replicas that have what its connection has written: one that
// was answered before its write was sent again, or that is sent alone, counts
// replicas that may have nothing.
func TestAWaitIsSentAgainOnlyBehindItsWrite(t *testing.T) {
	refusal, broken := replyError("TRYAGAIN Multiple keys request during rehashing of slot"), net.Error(&net.OpError{Op: "read", Err: errors.New("reset")})
	for name, test := range map[string]struct {
		set, wait error
		again     []string
		left      error // of the WAIT
	}{
		"both lost":                      {broken, broken, []string{"set", "wait"}, broken},
		"the write refused, WAIT told":   {refusal, nil, []string{"set", "wait"}, nil},
		"the write done, WAIT lost":      {nil, broken, nil, ErrOutcomeUnknown},
		"the write done, WAIT refused":   {nil, refusal, nil, refusal},
		"the write failed for good":      {replyError("OOM full"), nil, nil, nil},
		"the write failed, WAIT is lost": {replyError("OOM full"), broken, nil, ErrOutcomeUnknown},
	} {
		for _, command := range []string{"wait", "WAITAOF"} {
			c, _ := inMemory(t, Config{Role: "broker"})
			set, wait := redis.NewCmd(t.Context(), "set", "k", 1), redis.NewCmd(t.Context(), command, 1, 1)
			set.SetErr(test.set)
			wait.SetErr(test.wait)
			todo, _, _ := pickCommands(c, []redis.Cmder{set, wait})
			var again []string
			for _, cmd := range todo {
				again = append(again, strings.Replace(cmd.Name(), "aof", "", 1))
			}
			require.Equal(t, test.again, again, name)
			if test.left == nil {
				require.NoError(t, wait.Err(), name)
			} else {
				require.ErrorIs(t, wait.Err(), test.left, name)
			}
		}
	}
}
