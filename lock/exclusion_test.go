package lock

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

// A tenure is one lease in a history: it was certainly held from begin to end.
type tenure struct {
	token      int64
	begin, end time.Time
}

// requireExclusive checks a history of one key by token and by time: tokens
// grow from tenure to tenure, and no two tenures overlap.
func requireExclusive(t require.TestingT, history []tenure) {
	slices.SortFunc(history, func(a, b tenure) int { return cmp.Compare(a.token, b.token) })
	for i := 1; i < len(history); i++ {
		require.NotEqual(t, history[i-1].token, history[i].token)
		require.False(t, history[i].begin.Before(history[i-1].end), "tenure %d began %s before the one with the smaller token had ended",
			i, history[i-1].end.Sub(history[i].begin))
	}
}

func TestNoTwoHoldAtOnce(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		const clients, workers, rounds = 4, 4, 15
		keys := []string{"a", "b"}
		var mu sync.Mutex
		history := map[string][]tenure{}
		errs := make(chan error, clients*workers)
		var wg sync.WaitGroup
		for range clients {
			c := open(t, rdb, Config{TTL: 10 * time.Second, CloseTimeout: 10 * time.Second})
			for range workers {
				wg.Go(func() {
					for range rounds {
						key := keys[rand.N(len(keys))]
						held, err := hold(t.Context(), c, key)
						if err != nil && !errors.Is(err, ErrNotAcquired) && !errors.Is(err, context.DeadlineExceeded) {
							errs <- err
							return
						}
						if held.token != 0 {
							mu.Lock()
							history[key] = append(history[key], held)
							mu.Unlock()
						}
					}
				})
			}
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			require.NoError(t, err)
		}
		n := 0
		for _, key := range keys {
			requireExclusive(t, history[key])
			n += len(history[key])
		}
		require.Greater(t, n, clients*workers*rounds/4, "enough of the attempts must have succeeded")
	})
}

// hold acquires in one of the ways there are, holds for a moment, and says when.
func hold(ctx context.Context, c *Client, key string) (held tenure, err error) {
	work := func(ctx context.Context, l *Lease) error {
		held = tenure{token: l.Token(), begin: time.Now()}
		time.Sleep(rand.N(2 * time.Millisecond))
		held.end = time.Now()
		return ctx.Err()
	}
	switch rand.N(4) {
	case 0:
		l, err := c.TryAcquire(ctx, key)
		if err != nil {
			return held, err
		}
		return held, errors.Join(work(l.Context(), l), l.Release(ctx))
	case 1:
		return held, c.Do(ctx, key, work, MaxWait(time.Minute))
	case 2: // cancelled somewhere on the way
		ctx, cancel := context.WithTimeout(ctx, rand.N(5*time.Millisecond))
		defer cancel()
		l, err := c.Acquire(ctx, key)
		if err != nil {
			return held, err
		}
		_ = work(l.Context(), l)
		return held, l.Release(ctx)
	default:
		l, err := c.Acquire(ctx, key)
		if err != nil {
			return held, err
		}
		return held, errors.Join(work(l.Context(), l), l.Release(ctx))
	}
}

// Contenders whose network is cut and healed at random, whose answers get lost,
// who forget to release, and whose counter is deleted: at no time are there two
// live leases, and the tokens grow. Time is virtual.
func TestNoTwoHoldAtOnceOverBrokenNetworks(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		inBubble(t, func(t *testing.T) {
			srv, err := testserver.Start()
			require.NoError(rt, err)
			defer srv.Close()
			var clients []*Client
			var networks []*network
			for range 3 {
				n := &network{dial: srv.Dial, replies: -1}
				opt := srv.Options()
				opt.Dialer, opt.MaxRetries, opt.DialerRetries = n.Dial, -1, 1
				opt.ReadTimeout = 500 * time.Millisecond
				rdb := redis.NewClient(opt)
				defer rdb.Close()
				c, err := New(rdb, Config{TTL: 3 * time.Second, CloseTimeout: -1, Logger: (&logBook{}).logger()})
				require.NoError(rt, err)
				defer c.Close()
				clients, networks = append(clients, c), append(networks, n)
			}
			var leases []*Lease
			var last int64
			which := rapid.IntRange(0, len(clients)-1)
			rt.Repeat(map[string]func(*rapid.T){
				"acquire": func(rt *rapid.T) {
					if l, err := clients[which.Draw(rt, "client")].TryAcquire(t.Context(), "k"); err == nil {
						require.Greater(rt, l.Token(), last)
						last = l.Token()
						leases = append(leases, l)
					}
				},
				"release": func(rt *rapid.T) {
					if len(leases) > 0 {
						_ = leases[rapid.IntRange(0, len(leases)-1).Draw(rt, "lease")].Release(t.Context())
					}
				},
				"sleep": func(rt *rapid.T) {
					time.Sleep(time.Duration(rapid.IntRange(1, 4000).Draw(rt, "ms")) * time.Millisecond)
				},
				"lose answers": func(rt *rapid.T) { networks[which.Draw(rt, "client")].cutAfter(rapid.IntRange(0, 3).Draw(rt, "after")) },
				"go silent":    func(rt *rapid.T) { networks[which.Draw(rt, "client")].silence(true) },
				"heal":         func(rt *rapid.T) { n := networks[which.Draw(rt, "client")]; n.silence(false); n.cutAfter(-1) },
				"delete the counter": func(rt *rapid.T) {
					time.Sleep(time.Millisecond) // each lease took a microsecond of a clock that stands still
					srv.Del("redisha:lock:{k}:f")
				},
				"": func(rt *rapid.T) {
					synctest.Wait()
					live := 0
					for _, l := range leases {
						if l.Context().Err() == nil {
							live++
						}
					}
					require.LessOrEqual(rt, live, 1)
				},
			})
			for i := range clients { // so that nothing of go-redis' own is left to wait for
				networks[i].silence(false)
				networks[i].cutAfter(-1)
			}
			time.Sleep(10 * time.Second)
			for _, l := range leases {
				_ = l.Release(t.Context())
			}
			time.Sleep(10 * time.Second)
			require.Empty(rt, leaseKeys(srv), "whatever happened")
		})
	})
}

// inBubble is synctest.Test for a property: what panics in the bubble, such as
// rapid's way to fail, does so outside.
func inBubble(t *testing.T, f func(t *testing.T)) {
	var panicked any
	synctest.Test(t, func(t *testing.T) {
		defer func() { panicked = recover() }()
		f(t)
	})
	if panicked != nil {
		panic(panicked)
	}
}

func TestTokensGrowThroughReleaseExpiryAndLossOfTheCounter(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{})
		counter := func(value any) error { return rdb.Set(ctx, "redisha:lock:{k}:f", value, 0).Err() }
		var last int64
		for _, between := range []struct {
			name string
			do   func(l *Lease) error
		}{
			{"release", func(l *Lease) error { return l.Release(ctx) }},
			{"expiry", func(*Lease) error { return rdb.Del(ctx, "redisha:lock:{k}").Err() }},
			{"deleted counter", func(l *Lease) error { return errors.Join(l.Release(ctx), rdb.Del(ctx, "redisha:lock:{k}:f").Err()) }},
			{"flush", func(*Lease) error { return rdb.FlushAll(ctx).Err() }},
			{"tampered counter", func(l *Lease) error { return errors.Join(l.Release(ctx), counter("x")) }},
			{"clock set back", func(l *Lease) error { return errors.Join(l.Release(ctx), counter(l.Token()+3_600_000_000)) }},
		} {
			for range 20 {
				l := acquire(t, c, "k")
				require.Greater(t, l.Token(), last, between.name)
				last = l.Token()
				require.NoError(t, between.do(l), between.name)
			}
		}
	})
}

func TestTokensOfOneMicrosecondDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, testserver.New(t).Client(t), Config{})
		start, last := time.Now(), int64(0)
		for range 3 {
			l := acquire(t, c, "k")
			require.Greater(t, l.Token(), last)
			last = l.Token()
			require.NoError(t, l.Release(t.Context()))
		}
		require.Equal(t, start, time.Now())
	})
}
