package tracking_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/tracking"
)

func TestEveryChangeIsTold(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	other := srv.Client(t)
	cn := own(t, srv.URL())
	c := open(t, cn, tracking.Config{})
	p := c.add(t, "a:")
	stands(t, p, "a:1")
	for _, test := range []struct {
		name   string
		change func(ctx context.Context) error
		told   []string
	}{
		{"another's SET", func(ctx context.Context) error { return other.Set(ctx, "a:1", 1, 0).Err() }, []string{"a:1"}},
		{"own SET", func(ctx context.Context) error { return cn.Set(ctx, "a:2", 1, 0).Err() }, []string{"a:2"}},
		{"several", func(ctx context.Context) error { return other.MSet(ctx, "a:1", 2, "b:1", 2, "a:3", 2).Err() }, []string{"a:1", "a:3"}},
		{"DEL", func(ctx context.Context) error { return other.Del(ctx, "a:1").Err() }, []string{"a:1"}},
		{"UNLINK", func(ctx context.Context) error { return other.Unlink(ctx, "a:2").Err() }, []string{"a:2"}},
		{"RENAME", func(ctx context.Context) error { return other.Rename(ctx, "a:3", "a:4").Err() }, []string{"a:3", "a:4"}},
		{"EXPIRE", func(ctx context.Context) error { return other.Expire(ctx, "a:4", time.Hour).Err() }, []string{"a:4"}},
		{"SETRANGE", func(ctx context.Context) error { return other.SetRange(ctx, "a:4", 0, "xyz").Err() }, []string{"a:4"}},
		{"a script", func(ctx context.Context) error {
			return other.Eval(ctx, "return redis.call('SET', KEYS[1], 'x')", []string{"a:5"}).Err()
		}, []string{"a:5"}},
		{"a transaction", func(ctx context.Context) error {
			_, err := other.TxPipelined(ctx, func(tx redis.Pipeliner) error {
				tx.Set(ctx, "a:6", 1, 0)
				tx.Set(ctx, "a:7", 1, 0)
				return nil
			})
			return err
		}, []string{"a:6", "a:7"}},
		{"another database", func(ctx context.Context) error { return other.Move(ctx, "a:7", 1).Err() }, []string{"a:7"}},
		{"bytes", func(ctx context.Context) error { return other.Set(ctx, "a:\r\n\x00$3", 1, 0).Err() }, []string{"a:\r\n\x00$3"}},
		{"the prefix alone", func(ctx context.Context) error { return other.Set(ctx, "a:", 1, 0).Err() }, []string{"a:"}},
		{"a long key", func(ctx context.Context) error {
			return other.Set(ctx, "a:"+strings.Repeat("x", 100_000), 1, 0).Err()
		}, []string{"a:" + strings.Repeat("x", 100_000)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.keys()
			require.NoError(t, test.change(t.Context()))
			c.tells(t, test.told...)
		})
	}
	require.Empty(t, c.causes())
	require.EqualValues(t, 1, c.Stats().Connects)
}

func TestAnExpiryIsTold(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	c := open(t, own(t, srv.URL()), tracking.Config{})
	stands(t, c.add(t, "a:"), "a:1")
	require.NoError(t, srv.Client(t).Set(t.Context(), "a:1", 1, 50*time.Millisecond).Err())
	told := 0
	eventually(t, func() bool {
		told += len(c.keys())
		return told == 2
	}, "written and expired")
}

func TestAnEvictionIsTold(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rdb := srv.Client(t)
	c := open(t, own(t, srv.URL()), tracking.Config{})
	p := c.add(t, "a:")
	require.NoError(t, rdb.Set(t.Context(), "a:1", strings.Repeat("x", 1000), 0).Err())
	stands(t, p, "a:1")
	for key, value := range map[string]string{"maxmemory-policy": "allkeys-random", "maxmemory": "1"} {
		require.NoError(t, rdb.ConfigSet(t.Context(), key, value).Err())
	}
	_ = rdb.Set(t.Context(), "b", 1, 0).Err() // makes the server evict
	c.tells(t, "a:1")
}

// Deleting all keys ends the epoch, and nothing else: what is read afterwards may
// be kept.
func TestAFlushEndsTheEpoch(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rdb := srv.Client(t)
	c := open(t, own(t, srv.URL()), tracking.Config{})
	p := c.add(t, "a:")
	for i, flush := range []func(context.Context) *redis.StatusCmd{rdb.FlushAll, rdb.FlushDB, rdb.FlushAllAsync} {
		epoch := stands(t, p, "a:1")
		require.NoError(t, rdb.Set(t.Context(), "a:1", i, 0).Err())
		c.tells(t, "a:1")
		c.keys()
		c.get(t.Context(), p, "a:1")
		_, ok := c.kept("a:1")
		require.True(t, ok, "a value that may be kept")
		require.NoError(t, flush(t.Context()).Err())
		c.ends(t, epoch)
		_, ok = c.kept("a:1")
		require.False(t, ok)
	}
	stands(t, p, "a:1")
	for _, cause := range c.causes() {
		require.ErrorIs(t, cause, tracking.ErrFlushed)
	}
	require.EqualValues(t, 1, c.Stats().Connects)
}

func TestAPrefixIsAddedWithoutAGap(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rdb := srv.Client(t)
	c := open(t, own(t, srv.URL()), tracking.Config{})
	epoch := stands(t, c.add(t, "a:"), "a:1")
	for i := range 50 {
		prefix := fmt.Sprintf("b%d:", i)
		p := c.add(t, prefix)
		require.Equal(t, epoch, stands(t, p, prefix+"1"))
		require.NoError(t, rdb.MSet(t.Context(), prefix+"1", 1, "a:1", 1).Err())
		c.tells(t, prefix+"1", "a:1")
		c.keys()
	}
	require.Empty(t, c.causes())
	require.EqualValues(t, 1, c.Stats().Connects)
}

// A message is passed on in pieces, each to the function of its prefix.
func TestManyKeysAtOnce(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rdb := srv.Client(t)
	c := open(t, own(t, srv.URL()), tracking.Config{})
	const n = 20_000 // a script of more takes a busy server longer than its silence is borne
	seen := make(map[string]int)
	done := make(chan int, 1)
	p, err := c.Add("a:", func(keys []string) {
		if len(keys) > 256 {
			done <- len(keys)
			return
		}
		for _, key := range keys {
			seen[key]++
		}
		if len(seen) == n {
			done <- 0
		}
	})
	require.NoError(t, err)
	q := c.add(t, "b:")
	stands(t, p, "a:1")
	stands(t, q, "b:1")
	require.NoError(t, rdb.Eval(t.Context(), "for i = 1, "+fmt.Sprint(n)+" do redis.call('SET', 'a:' .. i, 1) redis.call('SET', 'b:1', 1) end return 1", nil).Err())
	select {
	case size := <-done:
		require.Zero(t, size)
	case <-time.After(patience):
		t.Fatal("not all keys came")
	}
	c.tells(t, "b:1")
	require.Empty(t, c.causes())
}

func TestAKilledConnectionEndsTheEpoch(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rdb := srv.Client(t)
	c := open(t, own(t, srv.URL()), tracking.Config{})
	p := c.add(t, "a:")
	for range 3 {
		epoch := stands(t, p, "a:1")
		require.NoError(t, rdb.Do(t.Context(), "client", "kill", "type", "normal", "skipme", "yes").Err())
		c.ends(t, epoch)
	}
	stands(t, p, "a:1")
	require.NoError(t, rdb.Set(t.Context(), "a:1", 1, 0).Err())
	c.tells(t, "a:1")
}

func TestARestartedServerIsTrackedAgain(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	c := open(t, own(t, srv.URL()), tracking.Config{})
	p := c.add(t, "a:")
	epoch := stands(t, p, "a:1")
	srv.Kill()
	c.ends(t, epoch)
	_, state := p.State(t.Context(), "a:1")
	require.Equal(t, tracking.Down, state)
	require.NoError(t, srv.Restart(t.Context()))
	stands(t, p, "a:1")
	require.NoError(t, srv.Client(t).Set(t.Context(), "a:1", 1, 0).Err())
	c.tells(t, "a:1")
}

// A server that is reached no more, or does not answer, is found out by silence.
func TestSilenceEndsTheEpoch(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	proxy := redistest.NewProxy(t, srv.Addr())
	c := open(t, own(t, "redis://"+proxy.Addr()), tracking.Config{})
	p := c.add(t, "a:")
	for _, fault := range []struct {
		name         string
		begin, cease func() error
	}{
		{"black hole", func() error { proxy.BlackHole(true); return nil }, func() error { proxy.BlackHole(false); return nil }},
		{"stopped", srv.Pause, srv.Continue},
	} {
		t.Run(fault.name, func(t *testing.T) {
			epoch := stands(t, p, "a:1")
			start := time.Now()
			require.NoError(t, fault.begin())
			c.ends(t, epoch)
			t.Logf("noticed after %s", time.Since(start).Round(time.Millisecond))
			_, state := p.State(t.Context(), "a:1")
			require.Equal(t, tracking.Down, state)
			require.NoError(t, fault.cease())
			stands(t, p, "a:1")
		})
	}
}

// A primary that becomes a replica says so, where nobody else does.
func TestAReplicaDoesNotStand(t *testing.T) {
	one, two := redistest.New(t, redistest.Config{}), redistest.New(t, redistest.Config{})
	c := open(t, foreign(t, redis.NewClient(one.Options())), tracking.Config{})
	p := c.add(t, "a:")
	epoch := stands(t, p, "a:1")
	rdb := one.Client(t)
	require.NoError(t, rdb.Do(t.Context(), "replicaof", "127.0.0.1", two.Port()).Err())
	eventually(t, func() bool {
		_, state := p.State(t.Context(), "a:1")
		return state == tracking.Down
	}, "a replica stands")
	require.NotEqual(t, epoch, c.Epoch())
	eventually(t, func() bool {
		err := c.Stats().LastError
		return err != nil && strings.Contains(err.Error(), `it says "slave"`)
	}, "the reason")
	require.NoError(t, rdb.Do(t.Context(), "replicaof", "no", "one").Err())
	stands(t, p, "a:1")
}

// The connection is made as those of the client are.
func TestTLSAndLogin(t *testing.T) {
	srv := redistest.New(t, redistest.Config{
		Password: "secret", TLS: &redistest.TLS{}, Users: []string{"alice on >wonder ~a:* &* +@all"},
	})
	for name, opt := range map[string]func() *redis.Options{
		"password": srv.Options,
		"RESP2":    func() *redis.Options { o := srv.Options(); o.Protocol = 2; return o },
		"user": func() *redis.Options {
			o := srv.Options()
			o.CredentialsProviderContext = func(context.Context) (string, string, error) { return "alice", "wonder", nil }
			return o
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, foreign(t, redis.NewClient(opt())), tracking.Config{})
			p := c.add(t, "a:")
			stands(t, p, "a:1")
			require.NoError(t, srv.Client(t).Set(t.Context(), "a:1", 1, 0).Err())
			c.tells(t, "a:1")
		})
	}
	t.Run("for a while", func(t *testing.T) { // reads of TLS time out and go on
		c := open(t, foreign(t, redis.NewClient(srv.Options())), tracking.Config{Ping: 100 * time.Millisecond})
		p := c.add(t, "a:")
		stands(t, p, "a:1")
		time.Sleep(500 * time.Millisecond)
		stands(t, p, "a:1")
		require.NoError(t, srv.Client(t).Set(t.Context(), "a:1", 1, 0).Err())
		c.tells(t, "a:1")
		for _, cause := range c.causes() { // of a slow machine
			require.ErrorContains(t, cause, "no answer to")
		}
	})
	t.Run("as redisha makes it", func(t *testing.T) {
		c := open(t, own(t, srv.URL()+"?tls_ca="+srv.Certs().CAFile), tracking.Config{})
		stands(t, c.add(t, "a:"), "a:1")
		list, err := srv.Client(t).ClientList(t.Context()).Result()
		require.NoError(t, err)
		require.Contains(t, list, "name=redisha:cache:app")
	})
	t.Run("wrong password", func(t *testing.T) {
		o := srv.Options()
		o.Password = "s3cr3t"
		c := open(t, foreign(t, redis.NewClient(o)), tracking.Config{})
		c.add(t, "a:")
		eventually(t, func() bool { return c.Stats().LastError != nil }, "an error")
		require.ErrorContains(t, c.Stats().LastError, "WRONGPASS")
		require.NotContains(t, c.Stats().LastError.Error(), "s3cr3t")
		require.Empty(t, c.refused())
	})
}

func TestAClosedClientEndsTheEpoch(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	cn := own(t, srv.URL())
	c := open(t, cn, tracking.Config{})
	p := c.add(t, "a:")
	epoch := stands(t, p, "a:1")
	require.NoError(t, cn.Close())
	c.ends(t, epoch)
	eventually(t, func() bool {
		causes := c.causes()
		return len(causes) > 0 && causes[len(causes)-1] == redis.ErrClosed //nolint:errorlint // as it is documented
	}, "the cause")
	_, state := p.State(t.Context(), "a:1")
	require.Equal(t, tracking.Down, state)
}

func TestNothingStandsAfterClose(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	c := open(t, own(t, srv.URL()), tracking.Config{})
	p := c.add(t, "a:")
	epoch := stands(t, p, "a:1")
	require.NoError(t, c.Close())
	_, state := p.State(t.Context(), "a:1")
	require.Equal(t, tracking.Down, state)
	require.NotEqual(t, epoch, c.Epoch())
	require.Empty(t, c.causes())
	_, err := c.Add("b:", c.invalidate)
	require.ErrorIs(t, err, redis.ErrClosed)
}

// What a user must be allowed: to read, and CLIENT TRACKING.
func TestAUserOfFewRightsIsTold(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Users: []string{"bob on >builder ~a:* -@all +@read +client|tracking"}})
	o := srv.Options()
	o.Username, o.Password = "bob", "builder"
	c := open(t, foreign(t, redis.NewClient(o)), tracking.Config{})
	stands(t, c.add(t, "a:"), "a:1")
	require.NoError(t, srv.Client(t).Set(t.Context(), "a:1", 1, 0).Err())
	c.tells(t, "a:1")
}

// Where the ACL forbids tracking, it is said once; when it is allowed after all,
// what was cached without has to go.
func TestAnACLRefuses(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Users: []string{"alice on >wonder ~* &* +@all -client|tracking"}})
	o := srv.Options()
	o.Username, o.Password = "alice", "wonder"
	c := open(t, foreign(t, redis.NewClient(o)), tracking.Config{})
	p := c.add(t, "a:")
	eventually(t, func() bool { return len(c.refused()) == 1 }, "a refusal")
	require.ErrorContains(t, c.refused()[0], "NOPERM")
	_, state := p.State(t.Context(), "a:1")
	require.Equal(t, tracking.Refused, state)
	require.Equal(t, 1, c.Stats().Refused)
}
