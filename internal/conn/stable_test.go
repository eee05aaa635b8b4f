package conn

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// A service is an address that always leads to the primary: something behind it
// sees to that, which the client knows nothing of.
type service struct {
	t        *testing.T
	proxy    *redistest.Proxy
	old, new *redistest.Server
}

func newService(t *testing.T) *service {
	t.Helper()
	s := &service{t: t, old: redistest.New(t, redistest.Config{})}
	s.new = redistest.NewReplica(t, s.old, redistest.Config{})
	s.proxy = redistest.NewProxy(t, s.old.Addr())
	return s
}

// promote makes the replica a primary, in which the service does not follow yet.
func (s *service) promote() {
	s.t.Helper()
	require.NoError(s.t, s.new.Client(s.t).ReplicaOf(s.t.Context(), "no", "one").Err())
}

// demote makes the old primary a replica of the new one.
func (s *service) demote() {
	s.t.Helper()
	host, port, err := net.SplitHostPort(s.new.Addr())
	require.NoError(s.t, err)
	require.NoError(s.t, s.old.Client(s.t).ReplicaOf(s.t.Context(), host, port).Err())
}

// moves are the ways in which an address comes to lead to another server.
var moves = []struct {
	name string
	cuts bool // connections, so that replies may be lost
	run  func(*service)
}{
	{"the address moves and connections are cut", true, func(s *service) {
		s.promote()
		s.proxy.SetTarget(s.new.Addr())
		s.demote()
		s.proxy.Cut()
	}},
	{"the address moves and connections stay at what is a replica now", false, func(s *service) {
		s.promote()
		s.proxy.SetTarget(s.new.Addr())
		s.demote()
	}},
	{"the address moves some time after the primary has become a replica", false, func(s *service) {
		s.promote()
		s.demote()
		time.Sleep(500 * time.Millisecond)
		s.proxy.SetTarget(s.new.Addr())
	}},
	{"connections are cut, and the address refuses until it moves", true, func(s *service) {
		s.proxy.Refuse(true)
		s.proxy.Cut()
		s.promote()
		time.Sleep(300 * time.Millisecond)
		s.proxy.SetTarget(s.new.Addr())
		s.proxy.Refuse(false)
	}},
}

func TestAnAddressThatMovesToTheNewPrimaryIsFollowedWithoutErrors(t *testing.T) {
	for _, move := range moves {
		t.Run(move.name, func(t *testing.T) {
			s := newService(t)
			c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis://"+s.proxy.Addr())})
			l := startLoad(t, c, func(w int) string { return "k" + string(rune('a'+w)) })
			l.goesOn(t, 100)
			move.run(s)
			l.goesOn(t, 100)
			l.check(t)
			if !move.cuts {
				require.Zero(t, l.unknown.Load(), "a server that refuses has not executed")
			}
			n, err := s.new.Client(t).LLen(t.Context(), "ka:l").Result()
			require.NoError(t, err)
			require.Positive(t, n, "the new primary has them")
			t.Logf("%d repeats, %d unknown", c.Stats().Repeats, l.unknown.Load())
		})
	}
}

func TestAClientThatDoesNotWaitIsBackSoonAfterAnAddressHasMoved(t *testing.T) {
	for _, move := range moves {
		t.Run(move.name, func(t *testing.T) {
			s := newService(t)
			c := open(t, Config{Role: "cache", FailFast: true, Endpoint: parse(t, "redis://"+s.proxy.Addr())})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var last atomic.Pointer[time.Time] // when it last failed
			var sets atomic.Int64              // that succeeded
			go func() {
				for ctx.Err() == nil {
					if err := c.Set(ctx, "k", "v", 0).Err(); err == nil {
						sets.Add(1)
					} else if ctx.Err() == nil {
						now := time.Now()
						last.Store(&now)
					}
					time.Sleep(time.Millisecond)
				}
			}()
			require.Eventually(t, func() bool { return sets.Load() > 20 }, 20*time.Second, time.Millisecond)
			move.run(s)
			moved, before := time.Now(), sets.Load()
			require.Eventually(t, func() bool { // no failure for a second
				failed := last.Load()
				return sets.Load() > before+20 && time.Since(moved) > time.Second && (failed == nil || time.Since(*failed) > time.Second)
			}, 20*time.Second, 10*time.Millisecond, "an idle connection is kept for a minute")
			if failed := last.Load(); failed != nil {
				t.Logf("back after %s, breaker %+v", max(failed.Sub(moved), 0), c.Stats().Breaker)
			}
			require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		})
	}
}

func TestCommandsToAnAddressThatSwallowsThemEndWithTheirContexts(t *testing.T) {
	s := newService(t)
	c := open(t, Config{Role: "broker", Endpoint: parse(t, "redis://"+s.proxy.Addr()+"?read_timeout=200ms&dial_timeout=200ms")})
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	s.proxy.BlackHole(true)
	within := func(call func(ctx context.Context) error) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		err := call(ctx)
		require.GreaterOrEqual(t, time.Since(start), 100*time.Millisecond, "%v", err)
		require.Less(t, time.Since(start), 20*time.Second, "%v", err)
		require.Error(t, err)
		return err
	}
	push := within(func(ctx context.Context) error { return c.RPush(ctx, "l", "once").Err() })
	require.ErrorIs(t, push, ErrOutcomeUnknown)
	read := within(func(ctx context.Context) error { return c.Get(ctx, "k").Err() })
	require.NotErrorIs(t, read, ErrOutcomeUnknown)
	within(func(ctx context.Context) error {
		_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.Get(ctx, "k"); return nil })
		return err
	})
	within(func(ctx context.Context) error { return c.Check(ctx) })
	patient := make(chan error, 1)
	go func() { patient <- c.Set(t.Context(), "k", "w", 0).Err() }()
	time.Sleep(500 * time.Millisecond)
	s.proxy.BlackHole(false)
	require.NoError(t, <-patient, "who has the time is served once it answers again")
	list, err := c.LRange(t.Context(), "l", 0, -1).Result()
	require.NoError(t, err)
	require.LessOrEqual(t, len(list), 1, "never twice")
}
