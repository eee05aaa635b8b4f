package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// deaf makes a server that knows no tracking promise it all the same: a client is
// told of nothing, and thinks that it is.
func deaf(opt *redis.Options) *redis.Options {
	dial := opt.Dialer
	opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := dial(ctx, network, addr)
		return deafConn{nc}, err
	}
	return opt
}

type deafConn struct{ net.Conn }

var trackingCommand = []byte("\r\n$6\r\nCLIENT\r\n$8\r\nTRACKING\r\n")

func (c deafConn) Write(p []byte) (int, error) {
	i := bytes.Index(p, trackingCommand)
	if i < 0 {
		return c.Conn.Write(p)
	}
	i = bytes.LastIndexByte(p[:i], '*')
	if _, err := c.Conn.Write(append(bytes.Clone(p[:i]), "*1\r\n$4\r\nPING\r\n"...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// tracked waits until the server has said, in a bubble, whether it tells of changes.
func tracked[K Key, V any](t *testing.T, v *View[K, V], key K) {
	t.Helper()
	_, _ = v.Get(t.Context(), key)
	time.Sleep(time.Second)
	s := v.c.Stats().Tracking
	require.Equal(t, 1, s.Connections+s.Refused)
}

func TestLocalCopiesAreReturnedUntilTheirMaxAge(t *testing.T) {
	for name, options := range map[string]func(*redis.Options) *redis.Options{
		"refused": func(o *redis.Options) *redis.Options { return o },
		"deaf":    deaf,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testserver.New(t)
				c := newClient(t, open(t, options(s.Options())), Config{})
				v := NewView[int, user](c, "user", ViewConfig{LocalEntries: 100, TTL: time.Hour})
				others := NewView[int, user](newClient(t, s.Client(t), Config{}), "user", ViewConfig{})
				tracked(t, v, 0)
				require.NoError(t, others.Set(t.Context(), 1, user{ID: 1}))
				_, err := others.Fetch(t.Context(), 2, func(context.Context, int) (user, error) { return user{}, ErrNotFound })
				require.ErrorIs(t, err, ErrNotFound)

				start := time.Now()
				got, err := v.Get(t.Context(), 1)
				require.NoError(t, err)
				require.Equal(t, user{ID: 1}, got)
				_, err = v.Get(t.Context(), 2)
				require.ErrorIs(t, err, ErrNotFound)
				require.NoError(t, others.Set(t.Context(), 1, user{ID: 3}))
				require.NoError(t, others.Delete(t.Context(), 2))
				for time.Since(start) < 10*time.Second { // the default of AbsentTTL
					e, err := v.Lookup(t.Context(), 1)
					require.NoError(t, err)
					require.Equal(t, user{ID: 1}, e.Value)
					require.Equal(t, FromLocal, e.Source)
					_, err = v.Get(t.Context(), 2)
					require.ErrorIs(t, err, ErrNotFound)
					time.Sleep(time.Second)
				}
				_, err = v.Get(t.Context(), 2)
				require.ErrorIs(t, err, ErrMiss)
				require.EqualValues(t, 20, c.Stats().LocalHits)
				time.Sleep(time.Until(start.Add(15 * time.Second)))
				got, err = v.Get(t.Context(), 1)
				require.NoError(t, err)
				require.Equal(t, user{ID: 3}, got)
			})
		})
	}
}

func TestOwnWritesAreSeenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		rdb := open(t, deaf(s.Options()))
		c := newClient(t, rdb, Config{})
		v := NewView[int, user](c, "user", ViewConfig{LocalEntries: 100})
		texts := NewView[string, user](c, "user", ViewConfig{LocalEntries: 100}) // the same keys
		writer := NewView[int64, user](c, "user", ViewConfig{})
		ctx := t.Context()
		tracked(t, v, 0)
		sees := func(want int64) {
			t.Helper()
			for range 2 {
				a, errA := v.Get(ctx, 1)
				b, errB := texts.Get(ctx, "1")
				if want == 0 {
					require.ErrorIs(t, errA, ErrMiss)
					require.ErrorIs(t, errB, ErrMiss)
					continue
				}
				require.Equal(t, []int64{want, want}, []int64{a.ID, b.ID})
			}
		}
		sees(0)
		require.NoError(t, writer.Set(ctx, 1, user{ID: 1}))
		sees(1)
		require.NoError(t, v.SetMany(ctx, map[int]user{1: {ID: 2}}))
		sees(2)
		_, err := texts.Replace(ctx, "1", user{ID: 3})
		require.NoError(t, err)
		sees(3)
		require.NoError(t, writer.Delete(ctx, 1))
		sees(0)
		_, err = writer.Add(ctx, 1, user{ID: 4})
		require.NoError(t, err)
		sees(4)
		require.NoError(t, writer.DeleteFor(ctx, time.Second, 1))
		sees(0)
		require.NoError(t, writer.Set(ctx, 1, user{ID: 8}))
		sees(8)
		require.NoError(t, writer.Clear(ctx))
		sees(0)
		require.Positive(t, c.Stats().LocalHits)

		// A write that failed may have happened.
		require.NoError(t, writer.Set(ctx, 1, user{ID: 5}))
		sees(5)
		require.NoError(t, rdb.Set(ctx, v.prefix+"1", encoded(t, v, user{ID: 6}), time.Hour).Err())
		sees(5)
		s.SetError("ERR full", "SET")
		require.Error(t, writer.Set(ctx, 1, user{ID: 7}))
		s.SetError("", "SET")
		sees(6)
	})
}

func encoded[K Key, V any](t *testing.T, v *View[K, V], value V) []byte {
	t.Helper()
	s, err := NewView[string, V](v.c, "elsewhere", v.cfg), error(nil)
	require.NoError(t, s.Set(t.Context(), "k", value))
	b, err := v.c.rdb.Get(t.Context(), s.prefix+"k").Bytes()
	require.NoError(t, err)
	return b
}

// Whatever is under way when: after a write of this process has returned nobody who
// comes later gets what was there before, and of others' writes, of which it is told
// nothing, nothing that is older than the max age.
func TestNoLocalCopyIsFromBeforeAnOwnWriteOrOlderThanItsMaxAge(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	seed := newSeed(t)
	for round := range rounds {
		synctest.Test(t, func(t *testing.T) {
			s := testserver.New(t)
			dice := &dice{r: rand.New(rand.NewPCG(seed, uint64(round)))}
			const keys, maxAge = 4, 300 * time.Millisecond // own writes: even keys
			db := newDatabase(keys, dice.pause)
			cfg := ViewConfig{LocalEntries: 3 + round%2*100, LocalMaxAge: maxAge}
			rdb := open(t, deaf(s.Options()))
			rdb.AddHook(hesitant{dice.pause})
			c := newClient(t, rdb, Config{})
			v := NewView[int, int64](c, "v", cfg)
			theirs := s.Client(t)
			theirs.AddHook(hesitant{dice.pause})
			other := NewView[int, int64](newClient(t, theirs, Config{}), "v", ViewConfig{})
			tracked(t, v, 99)

			var mu sync.Mutex
			var history [keys][]time.Time // when each version was written for certain
			floor := func(key int, at time.Time) (version int64) {
				mu.Lock()
				defer mu.Unlock()
				for i, written := range history[key] {
					if !written.After(at) {
						version = int64(i + 1)
					}
				}
				return version
			}
			var all sync.WaitGroup
			for key := range keys {
				all.Go(func() {
					writer := v
					if key%2 == 1 {
						writer = other
					}
					for range 20 {
						if err := db.write(t.Context(), writer, key, dice.roll(3) == 0); err != nil {
							t.Error(err)
						}
						mu.Lock()
						history[key] = append(history[key], time.Now())
						mu.Unlock()
						dice.pause()
					}
				})
			}
			for range 12 {
				all.Go(func() {
					for range 60 {
						key := dice.roll(keys)
						since := time.Now()
						if key%2 == 1 {
							since = since.Add(-maxAge)
						}
						least := floor(key, since)
						var got int64
						var err error
						if dice.roll(2) == 0 {
							got, err = v.Fetch(t.Context(), key, db.load)
						} else {
							got, err = v.Get(t.Context(), key)
						}
						switch {
						case err == nil && got < least:
							t.Errorf("round %d, key %d: got version %d, and %d was written too long ago", round, key, got, least)
						case err != nil && !errors.Is(err, ErrMiss) && !errors.Is(err, ErrNotFound):
							t.Error(err)
						}
						if dice.roll(3) == 0 {
							dice.pause()
						}
					}
				})
			}
			all.Wait()
			require.Positive(t, c.Stats().LocalHits)
		})
	}
}

func TestALocalCopyIsNotKeptBeyondItsTTLOrSoftExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		c := newClient(t, open(t, deaf(s.Options())), Config{})
		short := NewView[int, int](c, "short", ViewConfig{LocalEntries: 9, TTL: 2 * time.Second})
		stales := NewView[int, int](c, "stale", ViewConfig{LocalEntries: 9, TTL: 5 * time.Second, StaleFor: time.Hour, LocalMaxAge: time.Minute})
		tracked(t, short, 0)
		tracked(t, stales, 0)
		for _, v := range []*View[int, int]{short, stales} {
			require.NoError(t, v.Set(t.Context(), 1, 1))
			_, err := v.Get(t.Context(), 1)
			require.NoError(t, err)
			e, err := v.Lookup(t.Context(), 1)
			require.NoError(t, err)
			require.Equal(t, FromLocal, e.Source)
			time.Sleep(v.cfg.TTL)
			_, err = v.Get(t.Context(), 1)
			require.ErrorIs(t, err, ErrMiss)
		}
		// Nor is what is stale.
		for range 2 {
			e, err := stales.Lookup(t.Context(), 1)
			require.NoError(t, err)
			require.True(t, e.Stale)
			require.Equal(t, FromRedis, e.Source)
		}
	})
}

func TestLocalCopiesAreBoundedInNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		c := newClient(t, open(t, s.Options()), Config{})
		v := NewView[int, int](c, "v", ViewConfig{LocalEntries: 10})
		tracked(t, v, 0)
		for i := range 1000 {
			require.NoError(t, v.Set(t.Context(), i, i))
			_, err := v.Get(t.Context(), i)
			require.NoError(t, err)
		}
		require.LessOrEqual(t, v.local.now.Load().values.EstimatedSize(), 12)
	})
}

func TestAnL1ThatCannotBeIsRefused(t *testing.T) {
	s, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	for want, cfg := range map[string]ViewConfig{
		"LocalEntries is -1, want at least 1":   {LocalEntries: -1},
		"LocalMaxAge is -1ns, want more than 0": {LocalEntries: 1, LocalMaxAge: -1},
	} {
		_, err := NewView[int, int](c, "v", cfg).Get(t.Context(), 1)
		require.ErrorContains(t, err, want)
	}
	foreign := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}})
	t.Cleanup(func() { _ = foreign.Close() })
	_, err := NewView[int, int](newClient(t, foreign, Config{}), "v", ViewConfig{LocalEntries: 1}).Get(t.Context(), 1)
	require.ErrorContains(t, err, "let redisha.Open make it")
	_ = s
}

// That the server does not tell is said once, however many views there are.
func TestThatAServerDoesNotTellIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var book logBook
		s := testserver.New(t)
		c := newClient(t, open(t, s.Options()), Config{Logger: book.logger()})
		for i := range 3 {
			v := NewView[int, int](c, fmt.Sprint("v", i), ViewConfig{LocalEntries: 9})
			_, _ = v.Get(t.Context(), 1)
			time.Sleep(time.Minute)
		}
		require.Equal(t, 1, bytes.Count([]byte(book.String()), []byte("bounded by their age alone")))
	})
}

// A client that is closed keeps nothing, and connects no more.
func TestAClosedClientIsNotTracked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		c := newClient(t, open(t, s.Options()), Config{})
		v := NewView[int, int](c, "v", ViewConfig{LocalEntries: 9})
		require.NoError(t, c.Close())
		_, err := v.Get(t.Context(), 1)
		require.ErrorIs(t, err, ErrClosed)
		require.Nil(t, c.watched(v.space))
		require.Nil(t, c.tracker.Load())
	})
}

func BenchmarkLocalHit(b *testing.B) {
	s := testserver.New(b)
	c := newClient(b, s.Client(b), Config{})
	v := NewView[string, user](c, "user", ViewConfig{LocalEntries: 1000, LocalMaxAge: time.Hour})
	ctx := b.Context()
	require.NoError(b, v.Set(ctx, "a", user{ID: 1}))
	for c.Stats().LocalHits == 0 {
		_, err := v.Get(ctx, "a")
		require.NoError(b, err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if got, err := v.Get(ctx, "a"); err != nil || got.ID != 1 {
			b.Fatal(err)
		}
	}
}
