package testserver_test

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// once returns a client that never sends a command twice.
func once(t *testing.T, s *testserver.Server) *redis.Client {
	t.Helper()
	opt := s.Options()
	opt.MaxRetries, opt.PipelinePoolSize = -1, -1
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func TestNamedCommandsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		rdb := once(t, s)
		s.SetError("ERR no luck", "get", "Incr")
		require.EqualError(t, rdb.Get(t.Context(), "k").Err(), "ERR no luck")
		require.NoError(t, rdb.Set(t.Context(), "k", 1, 0).Err())
		require.ErrorContains(t, rdb.Eval(t.Context(), "return redis.call('INCR', 'k')", nil).Err(), "ERR no luck")
		s.SetError("", "GET")
		require.Equal(t, "1", rdb.Get(t.Context(), "k").Val())
		require.EqualError(t, rdb.Incr(t.Context(), "k").Err(), "ERR no luck")
		s.SetError("ERR none", "PING")
		s.SetError("ERR nothing at all")
		require.EqualError(t, rdb.Get(t.Context(), "k").Err(), "ERR nothing at all")
		s.SetError("")
		require.NoError(t, rdb.Ping(t.Context()).Err())
		require.NoError(t, rdb.Incr(t.Context(), "k").Err())
	})
}

func TestAnErrorSpoilsTheTransaction(t *testing.T) {
	for name, fault := range map[string]func(*testserver.Server){
		"error": func(s *testserver.Server) { s.SetError("OOM not now", "INCR") },
		"full":  func(s *testserver.Server) { s.SetFull(true) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testserver.New(t)
				rdb := once(t, s)
				require.NoError(t, rdb.Set(t.Context(), "a", 1, 0).Err())
				fault(s)
				_, err := rdb.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
					p.Del(t.Context(), "a")
					p.Incr(t.Context(), "b")
					return nil
				})
				require.ErrorContains(t, err, "EXECABORT")
				require.Equal(t, "1", rdb.Get(t.Context(), "a").Val())
			})
		})
	}
}

func TestATransactionMeetsWhatBeganMeanwhile(t *testing.T) {
	const oom = "OOM command not allowed when used memory > 'maxmemory'."
	const readonly = "READONLY You can't write against a read only replica."
	for name, c := range map[string]struct {
		begin func(*testserver.Server)
		want  string
	}{
		"full":     {func(s *testserver.Server) { s.SetFull(true) }, "EXECABORT Transaction discarded because of: " + oom},
		"readonly": {func(s *testserver.Server) { s.SetReadOnly(true) }, "EXECABORT Transaction discarded because of: " + readonly},
		"error":    {func(s *testserver.Server) { s.SetError("ERR no luck", "EXEC") }, "ERR no luck"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testserver.New(t)
				conn := once(t, s).Conn()
				defer func() { _ = conn.Close() }()
				do := func(args ...any) *redis.Cmd { return conn.Do(t.Context(), args...) }
				require.NoError(t, do("MULTI").Err())
				require.Equal(t, "QUEUED", do("INCR", "k").Val())
				c.begin(s)
				require.EqualError(t, do("EXEC").Err(), c.want)
				require.ErrorIs(t, do("GET", "k").Err(), redis.Nil) // nor is it in a transaction still
				s.SetError("")
				require.NoError(t, do("MULTI").Err())
				require.NoError(t, do("DISCARD").Err())
				require.NoError(t, do("MULTI").Err())
				require.NoError(t, do("GET", "k").Err())
				require.NoError(t, do("EXEC").Err()) // it only reads
			})
		})
	}
}

func TestALoadingServerAnswersOnlyWhatNeedsNoData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		s.SetLoading(time.Minute)
		rdb := once(t, s) // connects by HELLO
		const loading = "LOADING Redis is loading the dataset in memory"
		require.EqualError(t, rdb.Ping(t.Context()).Err(), loading)
		require.EqualError(t, rdb.Get(t.Context(), "k").Err(), loading)
		require.NoError(t, rdb.Do(t.Context(), "ROLE").Err())
		_, err := rdb.TxPipelined(t.Context(), func(p redis.Pipeliner) error { return p.Incr(t.Context(), "k").Err() })
		require.ErrorContains(t, err, "EXECABORT")
		time.Sleep(time.Minute)
		require.NoError(t, rdb.Ping(t.Context()).Err())
		s.SetLoading(time.Minute)
		s.SetLoading(0)
		require.NoError(t, rdb.Incr(t.Context(), "k").Err())
	})
}

func TestAFullServerReadsAndDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		rdb := once(t, s)
		require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
		s.SetFull(true)
		require.Equal(t, "v", rdb.Get(t.Context(), "k").Val())
		require.NoError(t, rdb.Expire(t.Context(), "k", time.Hour).Err())
		require.EqualError(t, rdb.Append(t.Context(), "k", "w").Err(), "OOM command not allowed when used memory > 'maxmemory'.")
		const store, both = "return redis.call('SET', 'k', 'w')", "redis.call('DEL', 'x') return redis.call('SET', 'k', 'w')"
		require.ErrorContains(t, rdb.Eval(t.Context(), store, nil).Err(), "OOM")
		require.NoError(t, rdb.Eval(t.Context(), both, nil).Err()) // it has written before
		require.ErrorContains(t, rdb.Eval(t.Context(), store, nil).Err(), "OOM")
		require.NoError(t, rdb.Del(t.Context(), "k").Err())
		s.SetFull(false)
		require.NoError(t, rdb.Eval(t.Context(), store, nil).Err())
	})
}

func TestAReadOnlyServerIsAReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		rdb := once(t, s)
		s.SetReadOnly(true)
		for _, args := range [][]any{{"SET", "k", "v"}, {"DEL", "k"}, {"XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"}} {
			require.EqualError(t, rdb.Do(t.Context(), args...).Err(), "READONLY You can't write against a read only replica.")
		}
		require.ErrorIs(t, rdb.Get(t.Context(), "k").Err(), redis.Nil)
		role, err := rdb.Do(t.Context(), "ROLE").Slice()
		require.NoError(t, err)
		require.Equal(t, "slave", role[0])
		hello, err := rdb.Do(t.Context(), "HELLO").Result()
		require.NoError(t, err)
		require.Equal(t, "replica", hello.(map[any]any)["role"])
		require.Contains(t, rdb.Info(t.Context(), "replication").Val(), "role:slave\r\nmaster_host:127.0.0.1\r\n")
		require.ErrorContains(t, rdb.Wait(t.Context(), 1, time.Second).Err(), "replica instances")
		s.SetReadOnly(false)
		require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
	})
}

func TestRepliesComeLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		rdb := once(t, s)
		require.NoError(t, rdb.Ping(t.Context()).Err())
		s.SetLatency(time.Second)
		began := time.Now()
		cmds, err := rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			for range 100 {
				p.Incr(t.Context(), "k")
			}
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, time.Second, time.Since(began), "all at the same time")
		require.EqualValues(t, 100, cmds[99].(*redis.IntCmd).Val(), "in order")

		conn, err := s.Dial(t.Context(), "tcp", s.Addr())
		require.NoError(t, err)
		_, err = conn.Write([]byte("*2\r\n$4\r\nECHO\r\n$1\r\n2\r\n"))
		require.NoError(t, err)
		time.Sleep(time.Second / 2)
		s.SetLatency(0) // what comes now does not overtake
		_, err = conn.Write([]byte("*2\r\n$4\r\nECHO\r\n$1\r\n3\r\n"))
		require.NoError(t, err)
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		all, _ := io.ReadAll(conn)
		require.Equal(t, "$1\r\n2\r\n$1\r\n3\r\n", string(all))
		require.NoError(t, conn.Close())

		s.SetLatency(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.Error(t, rdb.Ping(ctx).Err()) // what is late is lost with its connection
	})
}

func TestAHungServerExecutesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		rdb := once(t, s)
		require.NoError(t, rdb.Ping(t.Context()).Err())
		s.Hang(true)
		s.Hang(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.Error(t, rdb.Incr(ctx, "k").Err())
		require.False(t, s.Exists("k"))
		s.Hang(false)
		s.Hang(false)
		synctest.Wait()
		require.Equal(t, "1", rdb.Get(t.Context(), "k").Val(), "also what nobody waits for")

		s.Hang(true)
		failed := make(chan error)
		go func() { failed <- rdb.Incr(t.Context(), "k").Err() }()
		synctest.Wait()
		s.Stop() // killed
		require.Error(t, <-failed)
		require.NoError(t, s.Restart())
		require.Equal(t, "1", rdb.Get(t.Context(), "k").Val())
		s.Hang(true)
		go func() { failed <- rdb.Incr(t.Context(), "k").Err() }()
		synctest.Wait()
		s.Close()
		require.Error(t, <-failed)
	})
}

func TestCutRepliesAreOfWhatWasExecuted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		rdb := once(t, s)
		s.CutReplies(2) // not those of the handshake
		require.ErrorIs(t, rdb.Incr(t.Context(), "k").Err(), io.EOF)
		require.NoError(t, rdb.Ping(t.Context()).Err())
		require.ErrorIs(t, rdb.Incr(t.Context(), "k").Err(), io.EOF)
		require.EqualValues(t, 3, rdb.Incr(t.Context(), "k").Val())

		s.CutReplies(1, "incr")
		cmds, err := rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			p.Get(t.Context(), "k")
			p.Incr(t.Context(), "k")
			p.Incr(t.Context(), "k")
			return nil
		})
		require.Error(t, err)
		require.Equal(t, "3", cmds[0].(*redis.StringCmd).Val())
		require.Equal(t, "4", rdb.Get(t.Context(), "k").Val(), "nothing after it")

		s.CutReplies(1)
		_, err = rdb.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
			p.Incr(t.Context(), "k")
			p.Incr(t.Context(), "k")
			return nil
		})
		require.Error(t, err)
		require.Equal(t, "6", rdb.Get(t.Context(), "k").Val(), "all of the transaction")

		s.CutReplies(1)
		s.CutReplies(0)
		require.NoError(t, rdb.Incr(t.Context(), "k").Err())
	})
}

func TestCutConnectionsAreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		rdb := once(t, s)
		failed := make(chan error)
		go func() { failed <- rdb.BLPop(t.Context(), 0, "l").Err() }()
		synctest.Wait()
		s.CutConnections()
		require.Error(t, <-failed)
		require.NoError(t, rdb.RPush(t.Context(), "l", "x").Err())
		time.Sleep(time.Second)
		require.EqualValues(t, 1, rdb.LLen(t.Context(), "l").Val())
	})
}
