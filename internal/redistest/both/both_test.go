package both_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// What testserver adds to miniredis answers as every Redis from 7.0 does. (Waiting
// commands in a script, which 7.0 refuses as testserver does, 8.0 lets through
// without waiting.)
func TestBothAnswerAlike(t *testing.T) {
	for _, test := range []struct {
		args []any
		want string
	}{
		{[]any{"ROLE"}, "[master 0 []]"},
		{[]any{"ROLE", "x"}, "ERR wrong number of arguments for 'role' command"},
		{[]any{"WAIT", 0, 0}, "0"},
		{[]any{"WAIT", 1, 10}, "0"},
		{[]any{"WAIT", 1}, "ERR wrong number of arguments for 'wait' command"},
		{[]any{"WAIT", "x", 10}, "ERR value is not an integer or out of range"},
		{[]any{"WAIT", 1, -1}, "ERR timeout is negative"},
		{[]any{"CLIENT", "UNBLOCK", 1 << 40}, "0"},
		{[]any{"CLIENT", "UNBLOCK", "x"}, "ERR value is not an integer or out of range"},
		{[]any{"CLIENT", "UNBLOCK", 1, "x"}, "ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR"},
		{[]any{"CLIENT", "UNBLOCK"}, "ERR wrong number of arguments for 'client|unblock' command"},
		{[]any{"COMMAND", "INFO", "nosuch"}, "[<nil>]"},
		{[]any{"INFO", "nosuch"}, ""},
		{[]any{"BLPOP", "list", 0.01}, "redis: nil"},
		{[]any{"BLMOVE", "list", "list2", "LEFT", "LEFT", 0.01}, "redis: nil"},
		{[]any{"XREAD", "BLOCK", 10, "STREAMS", "stream", "$"}, "redis: nil"},
		{[]any{"EVAL", "return redis.call('LPUSH', 'string', 'a')", 0}, "WRONGTYPE Operation against a key holding the wrong kind of value script: SHA, on @user_script:1."},
		{[]any{"EVAL", "return redis.pcall('LPUSH', 'string', 'a')", 0}, "WRONGTYPE Operation against a key holding the wrong kind of value"},
		{[]any{"EVAL", "return redis.error_reply('OOM full')", 0}, "OOM full"},
		{[]any{"EVAL", "error('boom')", 0}, "ERR user_script:1: boom script: SHA, on @user_script:1."},
		{[]any{"EVAL", "return redis.call('NOSUCH')", 0}, "ERR Unknown Redis command called from script script: SHA, on @user_script:1."},
		{[]any{"EVAL", "return redis.call('CLIENT', 'ID')", 0}, "ERR This Redis command is not allowed from script script: SHA, on @user_script:1."},
		{[]any{"EVAL", "return redis.call('ROLE')", 0}, "ERR This Redis command is not allowed from script script: SHA, on @user_script:1."},
		{[]any{"EVAL", "return redis.call('HELLO')", 0}, "ERR This Redis command is not allowed from script script: SHA, on @user_script:1."},
		{[]any{"EVALSHA", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", 0}, "NOSCRIPT No matching script. Please use EVAL."},
		{[]any{"EVAL", "return redis.call('PUBLISH', 'channel', 'm')", 0}, "0"},
		{[]any{"EVAL", "return cjson.encode({a = 1})", 0}, `{"a":1}`},
		{[]any{"EVAL", "return redis.call('INFO', 'nosuch')", 0}, ""},
	} {
		t.Run(strings.Trim(fmt.Sprint(test.args), "[]"), func(t *testing.T) {
			both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
				require.NoError(t, rdb.Set(t.Context(), "string", "v", 0).Err())
				got, err := rdb.Do(t.Context(), test.args...).Result()
				if err != nil {
					require.Equal(t, test.want, scriptSHA(err.Error()))
				} else {
					require.Equal(t, test.want, fmt.Sprint(got))
				}
			})
		})
	}
}

// scriptSHA replaces the SHA in a script's error.
func scriptSHA(message string) string {
	before, after, ok := strings.Cut(message, " script: ")
	if sha, place, found := strings.Cut(after, ","); ok && found && len(sha) == 40 {
		return before + " script: SHA," + place
	}
	return message
}

func TestEachStartsEmpty(t *testing.T) {
	for range 2 {
		both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
			require.Zero(t, rdb.DBSize(t.Context()).Val())
			require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
		})
	}
}

func TestIdleConsumersOnBoth(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		require.NoError(t, rdb.XGroupCreateMkStream(t.Context(), "s", "g", "0").Err())
		require.NoError(t, rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: "s", Values: []string{"a", "b"}}).Err())
		require.NoError(t, rdb.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{"s", ">"}}).Err())
		require.Eventually(t, func() bool {
			c := rdb.XInfoConsumers(t.Context(), "s", "g").Val()
			return len(c) == 1 && c[0].Name == "c" && c[0].Pending == 1 && c[0].Idle >= 20*time.Millisecond
		}, 20*time.Second, 5*time.Millisecond)
	})
}

func TestUnblockOnBoth(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		conn := rdb.(*redis.Client).Conn()
		id := conn.ClientID(t.Context()).Val()
		done := make(chan error, 1)
		go func() {
			defer func() { _ = conn.Close() }()
			done <- conn.BLPop(t.Context(), 0, "l").Err()
		}()
		require.Eventually(t, func() bool { return rdb.Do(t.Context(), "CLIENT", "UNBLOCK", id).Val() == int64(1) },
			20*time.Second, 5*time.Millisecond)
		require.ErrorIs(t, <-done, redis.Nil)
	})
}
