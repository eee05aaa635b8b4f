package breaker_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/redistest"
)

// quick opens and probes fast enough for tests on real sockets.
var quick = breaker.Config{OpenFor: 20 * time.Millisecond}

func TestRealServerComesBackAfterAKill(t *testing.T) {
	srv := redistest.New(t, redistest.Config{Password: "secret"})
	h := newHook(t, quick)
	rdb := realClient(t, srv.Options(), h)
	require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())

	srv.Kill()
	err := until(t, rdb, func(err error) bool { return errors.Is(err, breaker.ErrOpen) })
	require.NotContains(t, err.Error(), "secret")
	require.NoError(t, srv.Restart(t.Context()))
	_ = until(t, rdb, func(err error) bool { return errors.Is(err, redis.Nil) })
	require.Equal(t, breaker.StateClosed, h.State())
}

func TestRealServerThatIsStoppedAndGoesOn(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	h := newHook(t, quick)
	opt := srv.Options()
	opt.ReadTimeout = 20 * time.Millisecond
	rdb := realClient(t, opt, h)
	_ = until(t, rdb, func(err error) bool { return errors.Is(err, redis.Nil) })

	require.NoError(t, srv.Pause()) // the kernel accepts dials, and nobody answers
	_ = until(t, rdb, func(err error) bool { return errors.Is(err, breaker.ErrOpen) })
	require.NoError(t, srv.Continue())
	_ = until(t, rdb, func(err error) bool { return errors.Is(err, redis.Nil) })
	require.Equal(t, breaker.StateClosed, h.State())
}

func TestRealServerThatIsFullStillServesReads(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	h := newHook(t, breaker.Config{OpenFor: time.Hour})
	rdb := realClient(t, srv.Options(), h)
	require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
	require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory", "1").Err())
	for h.WriteState() == breaker.StateClosed {
		require.True(t, redis.IsOOMError(rdb.Set(t.Context(), "k", "w", 0).Err()))
	}
	require.ErrorIs(t, rdb.Set(t.Context(), "k", "w", 0).Err(), breaker.ErrOpen)
	require.Equal(t, "v", rdb.Get(t.Context(), "k").Val())
	require.EqualValues(t, 1, rdb.Del(t.Context(), "k").Val())
}

func TestListenerThatNeverAnswers(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts for it
	require.NoError(t, err)
	defer silent.Close()
	h := newHook(t, breaker.Config{OpenFor: time.Hour})
	rdb := realClient(t, &redis.Options{Addr: silent.Addr().String(), ReadTimeout: 10 * time.Millisecond, MaxRetries: -1}, h)
	err = until(t, rdb, func(err error) bool { return errors.Is(err, breaker.ErrOpen) })
	require.ErrorContains(t, err, "i/o timeout")
	require.Zero(t, h.Counts().DialFailures)
}

func TestPortThatRefuses(t *testing.T) {
	h := newHook(t, breaker.Config{OpenFor: time.Hour})
	rdb := realClient(t, &redis.Options{Addr: "127.0.0.1:1", // which the system gives to nobody
		DialerRetryTimeout: time.Millisecond, MaxRetries: -1}, h)
	require.ErrorContains(t, rdb.Get(t.Context(), "k").Err(), "connection refused")
	require.ErrorIs(t, rdb.Get(t.Context(), "k").Err(), breaker.ErrOpen) // one command dials five times
}

func TestOnClusterADeadNodeOpensItsOwnBreaker(t *testing.T) {
	dead, alive := miniredis.RunT(t), miniredis.RunT(t)
	deadAddr := dead.Addr() // it has none once it is closed
	var mu sync.Mutex
	hooks := map[string]*breaker.Hook{}
	rdb := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: []string{dead.Addr(), alive.Addr()},
		ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
			return []redis.ClusterSlot{
				{Start: 0, End: 8191, Nodes: []redis.ClusterNode{{Addr: dead.Addr()}}},
				{Start: 8192, End: 16383, Nodes: []redis.ClusterNode{{Addr: alive.Addr()}}},
			}, nil
		},
		DialerRetries: 1, MaxRedirects: -1,
	})
	defer rdb.Close()
	rdb.OnNewNode(func(node *redis.Client) { // also for the seeds, which may be nodes under another name
		mu.Lock()
		defer mu.Unlock()
		h := hooks[node.NodeAddress()]
		if h == nil {
			var err error
			if h, err = breaker.New("broker", node.NodeAddress(), breaker.Config{OpenFor: time.Hour, DialFailures: 2}); err != nil {
				t.Error(err)
				return
			}
			hooks[node.NodeAddress()] = h
		}
		node.AddHook(h)
	})
	// CLUSTER KEYSLOT: bar 5061, foo 12182.
	require.NoError(t, rdb.Set(t.Context(), "bar", 1, 0).Err())
	require.NoError(t, rdb.Set(t.Context(), "foo", 1, 0).Err())

	dead.Close()
	err := until(t, rdb, func(err error) bool { return errors.Is(err, breaker.ErrOpen) }, "bar")
	var open *breaker.OpenError
	require.ErrorAs(t, err, &open)
	require.Equal(t, deadAddr, open.Node)
	require.Equal(t, "1", rdb.Get(t.Context(), "foo").Val())

	rejected := hooks[deadAddr].Counts().Rejected
	var bar, foo *redis.StringCmd
	_, err = rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		bar, foo = p.Get(t.Context(), "bar"), p.Get(t.Context(), "foo")
		return nil
	})
	require.ErrorIs(t, err, breaker.ErrOpen)
	require.ErrorIs(t, bar.Err(), breaker.ErrOpen)
	require.Equal(t, "1", foo.Val())
	require.Equal(t, rejected+1, hooks[deadAddr].Counts().Rejected) // go-redis does not repeat it
	require.Equal(t, breaker.StateClosed, hooks[alive.Addr()].State())
}

func realClient(t *testing.T, opt *redis.Options, h *breaker.Hook) *redis.Client {
	opt.PipelinePoolSize = -1
	opt.DisableIdentity = true
	opt.PoolSize = 64
	return client(t, opt, h)
}

// until sends GETs until one has an error that is wanted, which it returns.
func until(t *testing.T, rdb redis.Cmdable, wanted func(error) bool, key ...string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		err := rdb.Get(ctx, append(key, "none")[0]).Err()
		if wanted(err) {
			return err
		}
		require.NoError(t, ctx.Err(), "last: %v", err)
		var open *breaker.OpenError
		if errors.As(err, &open) {
			select {
			case <-time.After(time.Until(open.RetryAt)):
			case <-ctx.Done():
			}
		}
	}
}
