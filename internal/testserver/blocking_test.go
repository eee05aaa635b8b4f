package testserver_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// waits are commands that wait for somebody else.
var waits = map[string][]any{
	"BLPOP":      {"BLPOP", "l", 0},
	"BRPOPLPUSH": {"BRPOPLPUSH", "l", "l2", 0},
	"BZPOPMIN":   {"BZPOPMIN", "z", 0},
	"XREAD":      {"XREAD", "BLOCK", 0, "STREAMS", "s", "$"},
	"XREADGROUP": {"XREADGROUP", "GROUP", "g", "c", "BLOCK", 0, "STREAMS", "s", ">"},
	"WAIT":       {"WAIT", 1, 0},
}

// blocked starts a command on a connection of its own and waits until it
// blocks. It returns the connection's ID and where the outcome will be.
func blocked(t *testing.T, rdb *redis.Client, ctx context.Context, args []any) (id int64, outcome <-chan error) {
	require.NoError(t, rdb.Do(t.Context(), "XGROUP", "CREATE", "s", "g", "$", "MKSTREAM").Err())
	conn := rdb.Conn()
	id, err := conn.ClientID(t.Context()).Result()
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		defer func() { _ = conn.Close() }()
		done <- conn.Do(ctx, args...).Err()
	}()
	synctest.Wait()
	require.Empty(t, done, "it does not block")
	return id, done
}

// patient returns a client whose reads have no other end than their context.
func patient(t *testing.T, s *testserver.Server) *redis.Client {
	opts := s.Options()
	opts.ReadTimeout = -1
	opts.MaxRetries = -1
	rdb := redis.NewClient(opts)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func TestClientUnblockEndsABlockedCommand(t *testing.T) {
	for name, args := range waits {
		for reason, check := range map[string]func(error){
			"TIMEOUT": func(err error) {
				if name == "WAIT" {
					require.NoError(t, err) // the count so far
				} else {
					require.ErrorIs(t, err, redis.Nil)
				}
			},
			"ERROR": func(err error) {
				require.EqualError(t, err, "UNBLOCKED client unblocked via CLIENT UNBLOCK")
			},
		} {
			t.Run(name+" "+reason, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					rdb := patient(t, testserver.New(t))
					id, done := blocked(t, rdb, t.Context(), args)
					require.EqualValues(t, 1, rdb.Do(t.Context(), "CLIENT", "UNBLOCK", id, reason).Val())
					check(<-done)
					require.EqualValues(t, 0, rdb.Do(t.Context(), "CLIENT", "UNBLOCK", id, reason).Val())
				})
			})
		}
	}
}

func TestBlockedCommandEndsWithItsConnection(t *testing.T) {
	for name, args := range waits {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testserver.New(t)
				rdb := patient(t, s)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, done := blocked(t, rdb, ctx, args)
				require.ErrorContains(t, <-done, "timeout") // go-redis then closes the connection
				time.Sleep(time.Second)
				require.Zero(t, s.CurrentConnectionCount())

				// Nobody is left to take what comes now.
				require.NoError(t, rdb.RPush(t.Context(), "l", "x").Err())
				require.EqualValues(t, 1, rdb.LLen(t.Context(), "l").Val())
			})
		})
	}
}

// A hook may hold a command so long that its client is gone when it begins.
func TestCommandOfALostConnectionDoesNotBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		held := make(chan struct{})
		s.SetPreHook(func(_ *server.Peer, cmd string, _ ...string) bool {
			if cmd == "BLPOP" {
				<-held // a server that hangs
			}
			return false
		})
		conn, err := s.Dial(t.Context(), "tcp", s.Addr())
		require.NoError(t, err)
		_, err = conn.Write([]byte("*3\r\n$5\r\nBLPOP\r\n$1\r\nl\r\n$1\r\n0\r\n"))
		require.NoError(t, err)
		synctest.Wait()
		require.NoError(t, conn.Close())
		time.Sleep(1000 * time.Hour) // and nobody is busy meanwhile
		require.Equal(t, 1, s.CurrentConnectionCount())
		close(held)
		synctest.Wait()
		require.Zero(t, s.CurrentConnectionCount())
	})
}

func TestBlockedReadGetsWhatComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := patient(t, testserver.New(t))
		_, done := blocked(t, rdb, t.Context(), waits["XREADGROUP"])
		require.NoError(t, rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: "s", Values: []string{"a", "b"}}).Err())
		require.NoError(t, <-done)
		require.EqualValues(t, 1, rdb.XPending(t.Context(), "s", "g").Val().Count)
	})
}

func TestBlockedReadEndsAtItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := patient(t, testserver.New(t))
		start := time.Now()
		require.ErrorIs(t, rdb.BLPop(t.Context(), 10*time.Second, "l").Err(), redis.Nil)
		require.Equal(t, 10*time.Second, time.Since(start))
	})
}

func TestBlockingIsRefusedInAScript(t *testing.T) {
	rdb := testserver.New(t).Client(t)
	for call, want := range map[string]string{
		"'BLPOP', 'l', 0":                        "ERR This Redis command is not allowed from script",
		"'WAIT', 1, 0":                           "ERR This Redis command is not allowed from script",
		"'CLIENT', 'ID'":                         "ERR This Redis command is not allowed from script",
		"'CLIENT', 'GETNAME'":                    "ERR This Redis command is not allowed from script",
		"'HELLO', 3":                             "ERR This Redis command is not allowed from script",
		"'XREAD', 'BLOCK', 0, 'STREAMS', 's', 0": "ERR XREAD command is not allowed with BLOCK option from scripts",
	} {
		err := rdb.Eval(t.Context(), "return redis.call("+call+")", nil).Err()
		require.ErrorContains(t, err, want)
		require.True(t, strings.HasPrefix(err.Error(), "ERR "), err)
	}
}

func TestWaitCountsReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		rdb := patient(t, s)
		start := time.Now()
		require.EqualValues(t, 0, rdb.Wait(t.Context(), 0, 0).Val())
		require.Zero(t, time.Since(start))
		require.EqualValues(t, 0, rdb.Wait(t.Context(), 1, 500*time.Millisecond).Val())
		require.Equal(t, 500*time.Millisecond, time.Since(start))

		s.SetReplicas(2)
		start = time.Now()
		require.EqualValues(t, 2, rdb.Wait(t.Context(), 1, time.Second).Val())
		require.Zero(t, time.Since(start))
		require.EqualValues(t, 2, rdb.Wait(t.Context(), 3, time.Second).Val())
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestWaitEndsWhenAReplicaComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		rdb := patient(t, s)
		start := time.Now()
		time.AfterFunc(time.Minute, func() { s.SetReplicas(1) })
		require.EqualValues(t, 1, rdb.Wait(t.Context(), 1, 0).Val())
		require.Equal(t, time.Minute, time.Since(start))
	})
}

// Scripts run under miniredis' lock and reach what this package locks: an order
// that two of them take differently would end here.
func TestManyClientsDoNotLockEachOtherOut(t *testing.T) {
	s := testserver.New(t)
	addr, err := s.Listen()
	require.NoError(t, err)
	rdb := redis.NewClient(&redis.Options{Addr: addr, PoolSize: 64})
	defer func() { _ = rdb.Close() }()
	require.NoError(t, rdb.XGroupCreateMkStream(t.Context(), "s", "g", "0").Err())
	ops := []func(context.Context) error{
		func(ctx context.Context) error {
			return rdb.Eval(ctx, `redis.call("XADD", "s", "*", "a", "b")
				redis.call("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">")
				return redis.call("XAUTOCLAIM", "s", "g", "d", 0, "0", "COUNT", 1)`, nil).Err()
		},
		func(ctx context.Context) error { return rdb.XInfoConsumers(ctx, "s", "g").Err() },
		func(ctx context.Context) error {
			err := rdb.Do(ctx, "BLPOP", "l", 0.005).Err() // BLPop takes whole seconds
			if errors.Is(err, redis.Nil) {
				return nil
			}
			return err
		},
		func(ctx context.Context) error { return rdb.Do(ctx, "CLIENT", "UNBLOCK", 3).Err() },
		func(ctx context.Context) error { return rdb.Wait(ctx, 1, time.Millisecond).Err() },
		func(context.Context) error { s.SetReplicas(0); s.SetTime(time.Time{}); return nil },
		func(ctx context.Context) error { return rdb.Do(ctx, "ROLE").Err() },
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var running sync.WaitGroup
	errs := make(chan error, len(ops))
	for _, op := range ops {
		running.Go(func() {
			var err error
			for range 100 {
				err = errors.Join(err, op(ctx))
			}
			errs <- err
		})
	}
	running.Wait()
	for range ops {
		require.NoError(t, <-errs)
	}
}
