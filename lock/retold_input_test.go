package lock

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

// What users and servers do that a lock cannot work with, on a real server: each
// is an error that says what is wrong, and nothing is left behind.

// nothingBut requires that soon there are no other keys than these, but for
// counters.
func nothingBut(t *testing.T, rdb *redis.Client, keys ...string) {
	t.Helper()
	slices.Sort(keys)
	var left []string
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		all, err := rdb.Keys(t.Context(), "*").Result()
		require.NoError(t, err)
		left = slices.DeleteFunc(all, func(key string) bool { return strings.HasSuffix(key, "}:f") && !slices.Contains(keys, key) })
		slices.Sort(left)
		if slices.Equal(left, keys) || len(left) == 0 && len(keys) == 0 {
			return
		}
		require.False(t, time.Now().After(end), "left: %q, want %q", left, keys)
	}
}

// ways are the calls that acquire.
var ways = map[string]func(ctx context.Context, c *Client, key string, opts ...Option) error{
	"TryAcquire": func(ctx context.Context, c *Client, key string, opts ...Option) error {
		_, err := c.TryAcquire(ctx, key, opts...)
		return err
	},
	"Acquire": func(ctx context.Context, c *Client, key string, opts ...Option) error {
		_, err := c.Acquire(ctx, key, opts...)
		return err
	},
	"Do": func(ctx context.Context, c *Client, key string, opts ...Option) error {
		return c.Do(ctx, key, func(context.Context, *Lease) error { return errors.New("called") }, opts...)
	},
}

func TestBadArgumentsLeaveNothing(t *testing.T) {
	rdb := redistest.Shared(t).Client(t)
	c := open(t, rdb, Config{})
	for way, call := range ways {
		for _, bad := range []struct {
			key  string
			ttl  time.Duration
			want string
		}{
			{"k", 0, "TTL is 0s, want at least 100ms"},
			{"k", -time.Second, "TTL is -1s, want at least 100ms"},
			{"k", MinTTL - time.Microsecond, "want at least 100ms"},
			{"", time.Minute, "the key is empty: name what is locked"},
			{strings.Repeat("k", MaxKeyBytes+1), time.Minute, "the key has 1025 bytes, want at most 1024: lock a hash of it"},
			{strings.Repeat("k", 1<<24), time.Minute, "the key has 16777216 bytes, want at most 1024: lock a hash of it"},
		} {
			err := call(t.Context(), c, bad.key, TTL(bad.ttl))
			require.ErrorContains(t, err, bad.want, way)
			require.Less(t, len(err.Error()), 300, "%s: a huge key is not repeated", way)
		}
	}
	nothingBut(t, rdb)
	for _, key := range []string{strings.Repeat("k", MaxKeyBytes), "\x00", "}", "{}"} { // are fine
		require.NoError(t, acquire(t, c, key).Release(t.Context()))
	}
	nothingBut(t, rdb)
}

func TestLeasesAreNotReentrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, testserver.New(t).Client(t), Config{})
		require.NoError(t, c.Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
			for way, call := range ways {
				require.ErrorIs(t, call(ctx, c, "k", MaxWait(time.Minute)), ErrNotAcquired, way)
			}
			return ctx.Err()
		}))
	})
}

// Somebody else's data where a lock has its own is not touched.
func TestAKeyOfAnotherTypeIsRefusedAndKept(t *testing.T) {
	rdb := redistest.Shared(t).Client(t)
	ctx := t.Context()
	c := open(t, rdb, Config{TTL: time.Hour})
	for name, key := range map[string]string{
		"lease": leaseKeyOf("lease"), "counter": leaseKeyOf("counter") + ":f", "queue": leaseKeyOf("queue") + ":q",
	} {
		require.NoError(t, rdb.HSet(ctx, key, "field", "value").Err())
		if name == "queue" { // that is looked at when somebody waits, or when the lock passes on
			l := acquire(t, c, name)
			require.ErrorContains(t, ways["Acquire"](ctx, c, name, MaxWait(20*time.Second)), "holds something else than a lock, delete it: WRONGTYPE")
			_ = l.Release(ctx)
		} else {
			for way, call := range ways {
				err := call(ctx, c, name)
				require.ErrorContains(t, err, "holds something else than a lock, delete it: WRONGTYPE", way)
				require.ErrorContains(t, err, key[:len(leaseKeyOf(name))], way)
				nothingBut(t, rdb, key) // before the next one tries
			}
		}
		require.Equal(t, map[string]string{"field": "value"}, rdb.HGetAll(ctx, key).Val())
		nothingBut(t, rdb, key)
		require.NoError(t, rdb.Del(ctx, key).Err())
		l := acquire(t, c, name)
		require.NoError(t, l.Release(ctx), "and all is well once it is gone")
	}
}

// A value that another program has put where a lock has its own: it may never end,
// so that who finds it says so, and it is nobody's but that program's to delete.
func TestAValueOfAnotherProgramIsAHolderThatStays(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{})
		lease := leaseKeyOf("k")
		for value, says := range map[string]string{
			"locked":                      `"` + lease + `" holds "locked": a value of 6 bytes is no lease: want 23 at least`,
			strings.Repeat("x", 1000):     `"` + lease + `" holds "` + strings.Repeat("x", 64) + `"… (1000 bytes): a lease of version 'x', want '1'`,
			"1" + strings.Repeat("!", 40): "no token at the beginning",
			newToken() + "[]":             "holder: ",
		} {
			require.NoError(t, rdb.Set(ctx, lease, value, 0).Err())
			_, err := c.TryAcquire(ctx, "k")
			require.ErrorIs(t, err, ErrNotAcquired)
			info, err := c.Inspect(ctx, "k")
			require.ErrorContains(t, err, `lock: inspect "k": `)
			require.ErrorContains(t, err, says)
			require.Negative(t, info.TTL, "it does not expire")
			revoked, err := c.Revoke(ctx, "k", 1)
			require.NoError(t, err)
			require.False(t, revoked)
			require.Equal(t, value, rdb.Get(ctx, lease).Val())
			require.Equal(t, time.Duration(-1), rdb.PTTL(ctx, lease).Val())
		}

		require.NoError(t, rdb.Del(ctx, lease).Err())
		require.NoError(t, acquire(t, c, "k").Release(ctx), "and all is well once it is gone")
	})
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		require.NoError(t, rdb.Set(t.Context(), leaseKeyOf("k"), "locked", 0).Err())
		c := open(t, rdb, Config{})
		for way, call := range ways {
			err := call(t.Context(), c, "k", MaxWait(time.Minute))
			require.ErrorIs(t, err, ErrNotAcquired, way)
			require.ErrorContains(t, err, "its key does not expire, as if another program had set it: see Inspect", way)
		}
		require.Equal(t, "locked", rdb.Get(t.Context(), leaseKeyOf("k")).Val())
		time.Sleep(2 * time.Second) // their places in the queue are given up in the background
		require.Equal(t, []string{leaseKeyOf("k")}, srv.Keys())

		waited := make(chan error, 1)
		go func() { waited <- c.Do(t.Context(), "k", func(context.Context, *Lease) error { return nil }) }()
		time.Sleep(time.Minute)
		require.NoError(t, rdb.Del(t.Context(), leaseKeyOf("k")).Err())
		require.NoError(t, <-waited, "who waits looks from time to time")
	})
}

func TestWhoLooksAtAKeyOfAnotherTypeIsToldWhatToDo(t *testing.T) {
	rdb := redistest.Shared(t).Client(t)
	ctx := t.Context()
	c := open(t, rdb, Config{})
	for _, key := range []string{leaseKeyOf("k"), leaseKeyOf("k") + ":f", leaseKeyOf("k") + ":q"} {
		require.NoError(t, rdb.HSet(ctx, key, "field", "value").Err())
		_, err := c.Inspect(ctx, "k")
		require.ErrorContains(t, err, `lock: inspect "k": "redisha:lock:{k}", "redisha:lock:{k}:f" or "redisha:lock:{k}:q" holds something else than a lock, delete it: WRONGTYPE`)
		if revoked, err := c.Revoke(ctx, "k", 1); key == leaseKeyOf("k") {
			require.ErrorContains(t, err, "holds something else than a lock, delete it: WRONGTYPE")
		} else {
			require.NoError(t, err, "there is nobody to revoke it from")
			require.False(t, revoked)
		}
		nothingBut(t, rdb, key)
		require.NoError(t, rdb.Del(ctx, key).Err())
	}
	require.NoError(t, rdb.Set(ctx, leaseKeyOf("k")+":f", "many", 0).Err())
	_, err := c.Inspect(ctx, "k")
	require.EqualError(t, err, `lock: inspect "k": the counter holds "many", which is no number: delete "redisha:lock:{k}:f"`)
}

// A lease whose key was replaced ends, and what has replaced it stays.
func TestALeaseIsLostToAKeyOfAnotherType(t *testing.T) {
	rdb := redistest.Shared(t).Client(t)
	ctx := t.Context()
	c := open(t, rdb, Config{TTL: 500 * time.Millisecond})
	l := acquire(t, c, "k")
	require.NoError(t, rdb.Del(ctx, leaseKeyOf("k")).Err())
	require.NoError(t, rdb.HSet(ctx, leaseKeyOf("k"), "field", "value").Err())
	within(t, l.Context(), time.Minute, ErrLost)
	require.ErrorIs(t, l.Release(ctx), ErrLost)
	nothingBut(t, rdb, leaseKeyOf("k"))
	require.Equal(t, "value", rdb.HGet(ctx, leaseKeyOf("k"), "field").Val())
}

func TestAUserWithoutScriptsOrWritesIsToldWhatToAllow(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Users: []string{
		"scriptless on >secret ~* &* +@all -@scripting",
		"reader on >secret ~* &* +@read +@connection +@pubsub +eval +evalsha +role +info",
		"readonly on >secret %R~* &* +@all",
		"elsewhere on >secret ~other:* &* +@all",
	}})
	admin := srv.Client(t)
	for _, user := range []string{"scriptless", "reader", "readonly", "elsewhere"} {
		t.Run(user, func(t *testing.T) {
			opt := srv.Options()
			opt.Username, opt.Password = user, "secret"
			rdb := redis.NewClient(opt)
			defer rdb.Close()
			c := open(t, rdb, Config{TTL: time.Minute, Logger: slog.New(slog.DiscardHandler)})
			for way, call := range ways {
				err := call(t.Context(), c, "k")
				require.ErrorContains(t, err, "the user needs the commands EVAL EVALSHA ", way)
				require.ErrorContains(t, err, " on the keys redisha:lock:*", way)
				require.NotErrorIs(t, err, ErrNotAcquired, way)
				require.NotContains(t, err.Error(), "secret")
			}
			require.Zero(t, total(c).Waiting)
			nothingBut(t, admin)
			require.Empty(t, admin.Keys(t.Context(), "*").Val(), "nor counters")
		})
	}
}

// A server that is full gives no leases; who has one keeps it, and can give it back.
func TestAFullServerRefusesLeasesAndKeepsThoseItGave(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Lines: []string{"maxmemory-policy noeviction"}})
	rdb := srv.Client(t)
	ctx := t.Context()
	c := open(t, rdb, Config{TTL: 6 * time.Second})
	held := acquire(t, c, "held")
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "1").Err())
	for way, call := range ways {
		for _, key := range []string{"free", "held"} {
			err := call(ctx, c, key, MaxWait(10*time.Second))
			require.Error(t, err, way)
			if !errors.Is(err, ErrNotAcquired) || key == "free" {
				require.ErrorContains(t, err, "OOM", way)
			}
		}
	}
	renewed := c.Stats().Renewed
	require.Eventually(t, func() bool { return c.Stats().Renewed > renewed || held.Context().Err() != nil }, time.Minute, time.Millisecond)
	require.NoError(t, held.Context().Err())
	require.NoError(t, held.Release(ctx))
	nothingBut(t, rdb)

	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "0").Err())
	require.NoError(t, acquire(t, c, "free").Release(ctx))
}
