package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

// A bucket is the definition of what a limit allows: in any time t no more than
// burst + t × rate / per.
type bucket struct {
	mu    sync.Mutex
	cfg   LimiterConfig
	level float64 // calls
	at    time.Time
	total int
}

// add adds what was allowed just now, and reports whether that was too much.
func (b *bucket) add(n int) (over bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.level = max(b.level-float64(now.Sub(b.at))/float64(b.cfg.Per)*float64(b.cfg.Rate), 0) + float64(n)
	b.at = now
	b.total += n
	return b.level > float64(b.cfg.Burst)+1e-6
}

// Invariant 13: a thousand callers in two processes, in virtual time.
func TestALimitIsNeverExceeded(t *testing.T) {
	for _, local := range []bool{false, true} {
		t.Run(fmt.Sprintf("local %t", local), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seed := newSeed(t)
				rnd := rand.New(rand.NewPCG(seed, 0))
				s, rdb := newServer(t)
				cfg := LimiterConfig{Rate: 1 + rnd.IntN(30), Per: time.Duration(3+rnd.IntN(1e5)) * time.Millisecond, Burst: 1 + rnd.IntN(30)}
				t.Logf("%+v", cfg)
				limiters := []*Limiter[string]{
					NewLimiter[string](newClient(t, rdb, Config{}), "l", cfg),
					NewLimiter[string](newClient(t, open(t, s.Options()), Config{}), "l", cfg),
				}
				if local {
					limiters = limiters[:1]
					s.SetError("LOADING Redis is loading the dataset in memory")
				}
				allowed := bucket{cfg: cfg, at: time.Now()}
				start := time.Now()
				var callers sync.WaitGroup
				for i := range 1000 {
					rnd := rand.New(rand.NewPCG(seed, uint64(i+1)))
					callers.Go(func() {
						l := limiters[i%len(limiters)]
						for range 3 {
							time.Sleep(time.Duration(rnd.Int64N(int64(cfg.Per))))
							n := 1 + rnd.IntN(min(cfg.Burst, 3))
							res, err := l.AllowN(t.Context(), "k", n)
							switch {
							case err != nil:
								t.Errorf("AllowN: %v", err)
							case res.Local != local:
								t.Errorf("decided locally: %t", res.Local)
							case res.Allowed && allowed.add(n):
								t.Errorf("%v after the start: more than the limit", time.Since(start))
							}
						}
					})
				}
				callers.Wait()
				// Nor is it kept back: who asks that often gets nearly all there is.
				there := float64(cfg.Burst) + float64(time.Since(start))/float64(cfg.Per)*float64(cfg.Rate)
				require.Greater(t, float64(allowed.total), 0.5*there)
			})
		})
	}
}

func TestALimitIsNeverExceededOnARealServer(t *testing.T) {
	s := redistest.Shared(t)
	cfg := LimiterConfig{Rate: 2000, Per: time.Second, Burst: 100}
	var limiters []*Limiter[string]
	for range 4 {
		limiters = append(limiters, NewLimiter[string](newClient(t, s.Client(t), Config{}), "l", cfg))
	}
	rdb := s.Client(t)
	began, err := rdb.Time(t.Context()).Result()
	require.NoError(t, err)
	var allowed, refused atomic.Int64
	var callers sync.WaitGroup
	end := time.Now().Add(400 * time.Millisecond)
	for i := range 1000 {
		callers.Go(func() {
			for time.Now().Before(end) {
				res, err := limiters[i%4].Allow(t.Context(), "k")
				switch {
				case err != nil || res.Local:
					t.Errorf("%+v, %v", res, err)
					return
				case res.Allowed:
					allowed.Add(1)
				default:
					refused.Add(1)
				}
			}
		})
	}
	callers.Wait()
	ended, err := rdb.Time(t.Context()).Result()
	require.NoError(t, err)
	most := 100 + ended.Sub(began).Seconds()*2000
	t.Logf("%d allowed of %.0f that may be, %d refused", allowed.Load(), most, refused.Load())
	require.LessOrEqual(t, float64(allowed.Load()), most)
	require.GreaterOrEqual(t, allowed.Load(), int64(100))
	require.Positive(t, refused.Load())
}

// Microseconds are rounded so that the rate is never above the one that was asked for,
// and below it by a hundredth at most.
func TestARateIsRoundedDown(t *testing.T) {
	seed := newSeed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 1000 {
		cfg := LimiterConfig{Rate: 1 + rnd.IntN(10_000), Per: time.Duration(1+rnd.Int64N(1e5))*time.Second + time.Duration(rnd.Int64N(1e9))}
		interval, _, err := cfg.plan()
		if err != nil {
			require.ErrorContains(t, err, "Burst is ")
			continue
		}
		took := time.Duration(interval*int64(cfg.Rate)) * time.Microsecond
		require.GreaterOrEqual(t, took, cfg.Per, "%+v", cfg)
		require.LessOrEqual(t, took, cfg.Per+cfg.Per/100+time.Duration(cfg.Rate), "%+v", cfg)
	}
}

// What a result says is so, to the microsecond.
func TestAResultSaysWhatComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seed := newSeed(t)
		rnd := rand.New(rand.NewPCG(seed, 0))
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		for range 10 {
			cfg := LimiterConfig{Rate: 1 + rnd.IntN(100), Per: time.Duration(1+rnd.IntN(1e5)) * time.Millisecond, Burst: 1 + rnd.IntN(20)}
			if cfg.Per/time.Duration(cfg.Rate) < minInterval {
				continue
			}
			l := NewLimiter[uint32](c, "l", cfg)
			key := rnd.Uint32()
			ask := func(n int) LimitResult {
				res, err := l.AllowN(t.Context(), key, n)
				require.NoError(t, err)
				return res
			}
			for range 20 {
				n := 1 + rnd.IntN(cfg.Burst)
				before, err := l.Peek(t.Context(), key)
				require.NoError(t, err)
				res := ask(n)
				require.Equal(t, n <= before.Remaining, res.Allowed)
				if res.Allowed {
					require.Equal(t, before.Remaining-n, res.Remaining)
					require.Zero(t, res.RetryAfter)
					continue
				}
				require.Equal(t, before.Remaining, res.Remaining)
				require.Equal(t, before.ResetAfter, res.ResetAfter)
				time.Sleep(res.RetryAfter - time.Microsecond)
				require.False(t, ask(n).Allowed)
				time.Sleep(time.Microsecond)
				require.True(t, ask(n).Allowed)
			}
			res, err := l.Peek(t.Context(), key)
			require.NoError(t, err)
			require.Positive(t, res.ResetAfter)
			require.LessOrEqual(t, rdb.PTTL(t.Context(), joinKey(l.prefix, key)).Val(), res.ResetAfter+time.Millisecond)
			time.Sleep(res.ResetAfter)
			after, err := l.Peek(t.Context(), key)
			require.NoError(t, err)
			require.Equal(t, LimitResult{Allowed: true, Remaining: cfg.Burst}, after)
			time.Sleep(time.Millisecond)
			require.Zero(t, rdb.Exists(t.Context(), joinKey(l.prefix, key)).Val(), "it is there no longer than it says something")
		}
	})
}

// Whatever the key holds, and each thing that the script says.
func TestALimitsScript(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		l := NewLimiter[string](c, "l", LimiterConfig{Rate: 3, Per: time.Hour})
		ctx, key := t.Context(), "redisha:limit:l:k"
		run := func(cost, burst int64) []int64 {
			reply, err := c.run(ctx, limitScript, key, cost, burst).Int64Slice()
			require.NoError(t, err)
			return reply
		}
		hour := time.Hour.Microseconds()
		require.Equal(t, []int64{1, 0}, run(0, 3*hour))
		require.Zero(t, rdb.Exists(ctx, key).Val(), "a look leaves nothing")
		require.Equal(t, []int64{1, hour}, run(hour, 3*hour))
		reply := run(2*hour, 3*hour)
		require.EqualValues(t, 1, reply[0])
		require.InDelta(t, 3*hour, reply[1], 60e6)
		require.InDelta(t, 3*time.Hour, rdb.PTTL(ctx, key).Val(), float64(time.Minute))
		held := rdb.Get(ctx, key).Val()
		require.Regexp(t, `^\d{16}$`, held)
		reply = run(hour, 3*hour)
		require.EqualValues(t, 0, reply[0])
		require.InDelta(t, 3*hour, reply[1], 60e6)
		require.Equal(t, held, rdb.Get(ctx, key).Val(), "a refusal changes nothing")
		require.Equal(t, []int64{0, hour}, run(1, hour), "what a greater limit has left")

		for _, foreign := range []string{"", "x", "-1", "12.5", "nan", "-nan", "9999999999999999"} {
			require.NoError(t, rdb.Set(ctx, key, foreign, 0).Err())
			if foreign == "9999999999999999" {
				require.Equal(t, []int64{1, 20_000}, run(0, 20_000), "a clock that was set back")
				require.InDelta(t, 20*time.Millisecond, rdb.PTTL(ctx, key).Val(), float64(20*time.Millisecond), "it locks nobody out for longer")
				require.Eventually(t, func() bool { return run(1, 20_000)[0] == 1 }, time.Minute, time.Millisecond)
				require.NoError(t, rdb.Set(ctx, key, foreign, 0).Err())
				require.Equal(t, []int64{0, hour}, run(1, hour), foreign)
				require.InDelta(t, time.Hour, rdb.PTTL(ctx, key).Val(), float64(time.Minute))
				continue
			}
			require.Equal(t, []int64{1, hour}, run(hour, hour), foreign)
			require.Positive(t, rdb.PTTL(ctx, key).Val())
		}

		require.NoError(t, l.Reset(ctx, "k"))
		for left := range 3 {
			res, err := l.Allow(ctx, "k")
			require.NoError(t, err)
			require.True(t, res.Allowed)
			require.Equal(t, 2-left, res.Remaining)
			require.False(t, res.Local)
		}
		res, err := l.Allow(ctx, "k")
		require.NoError(t, err)
		require.False(t, res.Allowed)
		require.InDelta(t, 20*time.Minute, res.RetryAfter, float64(time.Minute))
		require.InDelta(t, time.Hour, res.ResetAfter, float64(time.Minute))
		other, err := l.Allow(ctx, "other")
		require.NoError(t, err)
		require.True(t, other.Allowed)
		require.NoError(t, l.Reset(ctx, "k"))
		res, err = l.Peek(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, LimitResult{Allowed: true, Remaining: 3}, res)
		st := c.Stats()
		require.EqualValues(t, []uint64{4, 1, 0}, []uint64{st.LimitsAllowed, st.LimitsRefused, st.LimitsLocal})

		// Redis does not decide about what is no string.
		require.NoError(t, rdb.LPush(ctx, key, "x").Err())
		res, err = l.Allow(ctx, "k")
		require.NoError(t, err)
		require.True(t, res.Local)
		require.EqualValues(t, 1, c.Stats().Errors)
	})
}

// A throttle does not open when its server is gone, and says that it is on its own.
func TestALimitOutlivesRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		var book logBook
		c := newClient(t, rdb, Config{Logger: book.logger(), ReadTimeout: time.Second})
		l := NewLimiter[string](c, "login", LimiterConfig{Rate: 3, Per: time.Minute})
		for range 3 {
			res, err := l.Allow(t.Context(), "ada")
			require.NoError(t, err)
			require.True(t, res.Allowed && !res.Local)
		}
		s.Stop()
		allowed := 0
		for range 20 {
			res, err := l.Allow(t.Context(), "ada")
			require.NoError(t, err)
			require.True(t, res.Local)
			if res.Allowed {
				allowed++
			} else {
				require.InDelta(t, 20*time.Second, res.RetryAfter, float64(10*time.Second))
			}
		}
		require.Equal(t, 3, allowed)
		require.EqualValues(t, 20, c.Stats().LimitsLocal)
		require.EqualValues(t, 17, c.Stats().LimitsRefused)
		require.EqualValues(t, 20, c.Stats().Errors)
		require.Contains(t, book.String(), "a limit is kept by this process alone")
		require.NotContains(t, book.String(), "ada")
		res, err := l.Peek(t.Context(), "grace")
		require.NoError(t, err)
		require.Equal(t, LimitResult{Allowed: true, Remaining: 3, Local: true}, res)
		require.Error(t, l.Reset(t.Context(), "ada"))
		res, err = l.Allow(t.Context(), "ada")
		require.NoError(t, err)
		require.True(t, res.Allowed, "the part of a reset that can be done is")

		// A caller that has left is not answered.
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errInjected)
		res, err = l.Allow(ctx, "grace")
		require.ErrorIs(t, err, errInjected)
		require.False(t, res.Allowed)

		require.NoError(t, s.Restart())
		require.NoError(t, l.Reset(t.Context(), "ada"))
		res, err = l.Allow(t.Context(), "ada")
		require.NoError(t, err)
		require.Equal(t, 2, res.Remaining)
		require.False(t, res.Local)
	})
}

func TestLocalLimitsAreBoundedAndDoNotOpen(t *testing.T) {
	l := newLocalLimits()
	const hour = int64(3600e6)
	refused := 0
	for i := range 3 * maxLocalLimits {
		ok, _ := l.take(fmt.Sprint("key ", i), int64(i), hour, hour)
		if i < maxLocalLimits {
			require.True(t, ok)
		} else if !ok {
			refused++
		}
	}
	require.Len(t, l.full, maxLocalLimits+sharedLimits)
	require.Equal(t, 2*maxLocalLimits-sharedLimits, refused)
	ok, ahead := l.take("key 7", 30_000, hour, hour)
	require.False(t, ok, "whoever asks for many keys gets no more of his own")
	require.Equal(t, hour+7-30_000, ahead)

	// What is over makes room.
	for i := range 100 {
		ok, _ = l.take(fmt.Sprint("later ", i), 3*hour, hour, hour)
		require.True(t, ok)
	}
	require.Len(t, l.full, 100)
}

func TestALimiterRefusesWhatMakesNoSense(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	for _, test := range []struct {
		name string
		cfg  LimiterConfig
		want string
	}{
		{"l", LimiterConfig{}, `Rate is 0, want at least 1`},
		{"l", LimiterConfig{Rate: -1, Per: -time.Second, Burst: -2}, "Rate is -1, want at least 1\nPer is -1s, want more than 0, or 0 for 1s\nBurst is -2, want at least 1, or 0 for Rate"},
		{"l", LimiterConfig{Rate: 10_001}, `Rate is 10001 in 1s, want at most one in 100µs`},
		{"l", LimiterConfig{Rate: 1 << 62}, `Rate is 4611686018427387904 in 1s, want at most one in 100µs`},
		{"l", LimiterConfig{Rate: 1, Per: time.Hour, Burst: 8761}, `Burst is 8761 at 1 in 1h0m0s, want at most what 8760h0m0s give`},
		{"l", LimiterConfig{Rate: 1, Per: 1 << 62}, `Burst is 1 at 1 in 1281023h53m38.427387904s, want at most what 8760h0m0s give`},
		{"l:l", LimiterConfig{Rate: 1}, `the name is "l:l", want letters, digits, _ and - only`},
	} {
		l := NewLimiter[string](c, test.name, test.cfg)
		want := fmt.Sprintf("cache: limit %q: %s", test.name, test.want)
		_, err := l.Allow(t.Context(), "k")
		require.EqualError(t, err, want)
		_, err = l.AllowN(t.Context(), "k", 0)
		require.EqualError(t, err, want)
		_, err = l.Peek(t.Context(), "k")
		require.EqualError(t, err, want)
		require.EqualError(t, l.Reset(t.Context(), "k"), want)
	}
	for _, fine := range []LimiterConfig{{Rate: 10_000}, {Rate: 1, Per: time.Hour, Burst: 8760}, {Rate: 3, Per: time.Second}, {Rate: 1, Per: 100 * time.Microsecond}} {
		_, err := NewLimiter[string](c, "l", fine).Allow(t.Context(), "k")
		require.NoError(t, err)
	}
	l := NewLimiter[string](c, "l", LimiterConfig{Rate: 3})
	for _, n := range []int{0, -1, 4} {
		_, err := l.AllowN(t.Context(), "k", n)
		require.EqualError(t, err, fmt.Sprintf(`cache: limit "l": allow: n is %d, want 1 to 3 (LimiterConfig.Burst)`, n))
	}
	_, err := l.Allow(t.Context(), "")
	require.EqualError(t, err, `cache: limit "l": allow: the key has 0 bytes, want 1 to 8192`)
	_, err = l.Allow(t.Context(), strings.Repeat("k", 8193))
	require.EqualError(t, err, `cache: limit "l": allow: the key has 8193 bytes, want 1 to 8192`)
	_, err = l.Allow(t.Context(), strings.Repeat("k", 8192))
	require.NoError(t, err)
	var none context.Context
	_, err = l.Allow(none, "k")
	require.EqualError(t, err, "cache: allow: nil context: pass context.Background() or the request's")
	_, err = NewLimiter[int](nil, "l", LimiterConfig{Rate: 1}).Allow(t.Context(), 1)
	require.EqualError(t, err, `cache: limit "l": nil Client: pass what New returned`)

	unset := conn.Closed("cache", errors.New("no endpoint"))
	t.Cleanup(func() { require.NoError(t, unset.Close()) })
	res, err := NewLimiter[int](newClient(t, unset, Config{}), "l", LimiterConfig{Rate: 1}).Allow(t.Context(), 1)
	require.Error(t, err)
	require.False(t, res.Allowed)
	require.NoError(t, c.scripts.Close(t.Context())) // as when it is closed in the middle of a call
	res, err = l.Allow(t.Context(), "k")
	require.ErrorIs(t, err, ErrClosed)
	require.Zero(t, res)
	require.NoError(t, c.Close())
	res, err = l.Allow(t.Context(), "k")
	require.ErrorIs(t, err, ErrClosed)
	require.Zero(t, res)
	require.ErrorIs(t, l.Reset(t.Context(), "k"), ErrClosed)
}
