package result

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

func TestForgettingAndStoringSaysThatThePasswordIsWrong(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Password: "right"})
	opt := srv.Options()
	opt.Password = "wrong"
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	c, err := New(rdb, Config{})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	require.ErrorContains(t, c.Forget(t.Context(), "x"), "WRONGPASS")
	_, err = c.StoreMany(t.Context(), []Record{{ID: "x", State: Success, Attempt: 1}})
	require.ErrorContains(t, err, "WRONGPASS")
}

type nilError struct{ text string }

func (e *nilError) Error() string { return e.text }
func (e *nilError) Unwrap() error { return e }

// The classic mistake: a nil pointer returned as an error.
func TestTheCauseOfANilPointerIsDescribed(t *testing.T) {
	var none *nilError
	cause := CauseOf(none)
	require.Equal(t, "*result.nilError", cause.Type)
	require.NotEmpty(t, cause.Message)
}

// A call that ends while it waits for a server says why there is none.
func TestTheEndOfAWaitForRedisNamesItsCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		ep, err := endpoint.Parse("redis://127.0.0.1:6379?pool_size=1024")
		require.NoError(t, err)
		rdb, err := conn.New(conn.Config{Role: "results", Endpoint: ep, Dialer: srv.Dial, Logger: quiet})
		require.NoError(t, err)
		t.Cleanup(func() { _ = rdb.Close() })
		c := newClient(t, rdb, Config{})
		srv.Stop()
		for name, call := range map[string]func(ctx context.Context) error{
			"get":    func(ctx context.Context) error { _, err := c.Get(ctx, "x"); return err },
			"wait":   func(ctx context.Context) error { _, err := c.Wait(ctx, "x"); return err },
			"forget": func(ctx context.Context) error { return c.Forget(ctx, "x") },
			"store":  func(ctx context.Context) error { _, err := c.Store(ctx, Record{ID: "x", State: Success}); return err },
			"store ": func(ctx context.Context) error {
				_, err := c.StoreMany(ctx, []Record{{ID: "x", State: Success}})
				return err
			},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			err := call(ctx)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded, name)
			require.ErrorContains(t, err, "connection refused", name)
			require.ErrorContains(t, err, "result: "+strings.TrimSpace(name)+` "x": `)
			require.Equal(t, 1, strings.Count(err.Error(), "context deadline exceeded"), err.Error())
		}
	})
}
