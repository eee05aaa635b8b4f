package redishatest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

func publish(ctx context.Context, clients *redisha.Clients) error {
	_, err := shout.Publish(ctx, clients.Broker, "x")
	return err
}

// depth counts the tasks that are ready.
func depth(t *testing.T, srv *redishatest.Server) int64 {
	t.Helper()
	rdb := srv.Client(t, 1)
	var n int64
	for _, key := range rdb.Keys(t.Context(), "*:s:*").Val() {
		n += rdb.XLen(t.Context(), key).Val()
	}
	return n
}

// Each fault lasts for three seconds: what a role does during it, and when its
// call returns.
func TestFaults(t *testing.T) {
	type outcome struct {
		err           string // "" for none
		tasks         int64  // published in the end
		least, latest time.Duration
	}
	for name, fault := range map[string]struct {
		begin, end func(*redishatest.Server)
		want       outcome
	}{
		"latency":  {func(s *redishatest.Server) { s.SetLatency(time.Second) }, func(s *redishatest.Server) { s.SetLatency(0) }, outcome{"", 1, time.Second, 3 * time.Second}},
		"error":    {func(s *redishatest.Server) { s.SetError("ERR no luck today", "XADD") }, func(s *redishatest.Server) { s.SetError("", "XADD") }, outcome{"no luck today", 0, 0, time.Second}},
		"cut":      {func(s *redishatest.Server) { s.CutConnections() }, func(*redishatest.Server) {}, outcome{"", 1, 0, time.Second}},
		"reply":    {func(s *redishatest.Server) { s.CutReplies(1) }, func(*redishatest.Server) {}, outcome{"", 1, 0, time.Second}},
		"hang":     {func(s *redishatest.Server) { s.Hang(true) }, func(s *redishatest.Server) { s.Hang(false) }, outcome{"", 1, 3 * time.Second, 8 * time.Second}},
		"loading":  {func(s *redishatest.Server) { s.SetLoading(3 * time.Second) }, func(*redishatest.Server) {}, outcome{"", 1, 3 * time.Second, 8 * time.Second}},
		"readonly": {func(s *redishatest.Server) { s.SetReadOnly(true) }, func(s *redishatest.Server) { s.SetReadOnly(false) }, outcome{"", 1, 3 * time.Second, 8 * time.Second}},
		"full":     {func(s *redishatest.Server) { s.SetFull(true) }, func(s *redishatest.Server) { s.SetFull(false) }, outcome{"OOM", 0, 0, time.Second}},
		"stop": {func(s *redishatest.Server) { s.Stop() }, func(s *redishatest.Server) { _ = s.Restart() },
			outcome{"", 1, 3 * time.Second, 8 * time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := redishatest.New(t)
				clients := srv.Open(t)
				require.NoError(t, publish(t.Context(), clients))
				before := depth(t, srv)
				fault.begin(srv)
				time.AfterFunc(3*time.Second, func() { fault.end(srv) })
				began := time.Now()
				err := publish(within(t, 20*time.Second), clients)
				took := time.Since(began)
				t.Log("published after", took, err)
				if fault.want.err == "" {
					require.NoError(t, err)
				} else {
					require.ErrorContains(t, err, fault.want.err)
				}
				require.GreaterOrEqual(t, took, fault.want.least)
				require.LessOrEqual(t, took, fault.want.latest)

				time.Sleep(10 * time.Second)
				require.Equal(t, fault.want.tasks, depth(t, srv)-before)
				require.NoError(t, publish(within(t, time.Second), clients))
			})
		})
	}
}

func TestACacheGoesPastASlowServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := redishatest.New(t)
		clients := srv.Open(t)
		view := cache.NewView[string, string](clients.Cache, "v", cache.ViewConfig{TTL: time.Hour})
		require.NoError(t, view.Set(t.Context(), "k", "stored"))
		srv.SetLatency(10 * time.Second)
		began := time.Now()
		got, err := view.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "loaded", nil })
		require.NoError(t, err)
		require.Equal(t, "loaded", got)
		require.Less(t, time.Since(began), 2*time.Second)
	})
}

func TestFaultsOfAServerThatListens(t *testing.T) {
	srv, err := redishatest.Start()
	require.NoError(t, err)
	defer srv.Close()
	cfg := srv.Config()
	for _, ep := range []*redisha.Endpoint{&cfg.Cache.Endpoint, &cfg.Broker.Endpoint, &cfg.Results.Endpoint, &cfg.Locks.Endpoint} {
		ep.Dialer = nil // by TCP
	}
	clients, err := redisha.Open(t.Context(), cfg)
	require.NoError(t, err)
	defer func() { require.NoError(t, clients.Close()) }()
	require.NoError(t, publish(t.Context(), clients))
	srv.SetLatency(50 * time.Millisecond)
	began := time.Now()
	require.NoError(t, publish(t.Context(), clients))
	require.GreaterOrEqual(t, time.Since(began), 50*time.Millisecond)
	srv.SetLatency(0)
	srv.CutReplies(1)
	require.NoError(t, publish(within(t, 10*time.Second), clients))
	srv.CutConnections()
	require.NoError(t, publish(within(t, 10*time.Second), clients))
	require.EqualValues(t, 4, depth(t, srv))
}
