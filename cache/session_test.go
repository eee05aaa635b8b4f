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

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
)

// scs wants these, of https://github.com/alexedwards/scs/blob/master/store.go.
var (
	_ interface {
		Delete(token string) (err error)
		Find(token string) (b []byte, found bool, err error)
		Commit(token string, b []byte, expiry time.Time) (err error)
		All() (map[string][]byte, error)
	} = (*SessionStore)(nil)
	_ interface {
		DeleteCtx(ctx context.Context, token string) (err error)
		FindCtx(ctx context.Context, token string) (b []byte, found bool, err error)
		CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) (err error)
		AllCtx(ctx context.Context) (map[string][]byte, error)
	} = (*SessionStore)(nil)
)

// What the scripts say, whatever the key holds.
func TestTheScriptsOfSessions(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		ctx, key := t.Context(), "redisha:session:web:token"
		commit := func(data string, ttl time.Duration) (n int) {
			n, err := c.run(ctx, commitScript, key, data, ttl.Milliseconds()).Int()
			require.NoError(t, err)
			return n
		}
		left := func() time.Duration { return rdb.PTTL(ctx, key).Val() }
		near := func(want time.Duration) { require.InDelta(t, want, left(), float64(time.Minute)) }
		require.Equal(t, 1, commit("a", 10*time.Hour))
		near(10 * time.Hour)
		require.Equal(t, 3, commit("a", 10*time.Hour))
		require.Equal(t, 3, commit("a", 13*time.Hour))
		near(10 * time.Hour)
		require.Equal(t, 2, commit("a", 14*time.Hour))
		near(14 * time.Hour)
		require.Equal(t, 2, commit("a", 13*time.Hour))
		near(13 * time.Hour)
		require.Equal(t, 1, commit("b", 14*time.Hour))
		near(14 * time.Hour)
		require.Equal(t, "b", rdb.Get(ctx, key).Val())
		require.NoError(t, rdb.Persist(ctx, key).Err())
		require.Equal(t, 2, commit("b", time.Hour), "a TTL that is missing is no long one")
		near(time.Hour)

		destroy := func(least time.Duration) time.Duration {
			ms, err := c.run(ctx, destroyScript, key, least.Milliseconds()).Int64()
			require.NoError(t, err)
			require.Equal(t, tombstone, rdb.Get(ctx, key).Val())
			return time.Duration(ms) * time.Millisecond
		}
		for _, least := range []time.Duration{2 * time.Hour, 2 * time.Hour, time.Hour, 3 * time.Hour} {
			require.InDelta(t, max(least, 2*time.Hour), destroy(least), float64(time.Minute))
			near(max(least, 2*time.Hour))
		}
		require.Equal(t, 0, commit("c", 10*time.Hour))
		require.Equal(t, 0, commit(tombstone, 10*time.Hour))
		near(3 * time.Hour)
		for _, write := range []func() error{
			func() error { return rdb.Del(ctx, key).Err() },
			func() error { return rdb.Set(ctx, key, "x", 0).Err() },
			func() error { return rdb.LPush(ctx, key, "x").Err() },
		} {
			require.NoError(t, rdb.Del(ctx, key).Err())
			require.NoError(t, write())
			require.Equal(t, time.Hour, destroy(time.Hour))
			near(time.Hour)
		}
	})
}

// A session game is one of random steps, of which the model knows what they bring.
func TestASessionIsWhatTheModelSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seed := newSeed(t)
		rnd := rand.New(rand.NewPCG(seed, 0))
		s, rdb := newServer(t)
		stores := []*SessionStore{
			NewSessionStore(newClient(t, rdb, Config{}), "web"),
			NewSessionStore(newClient(t, open(t, s.Options()), Config{}), "web"),
		}
		time.Sleep(500 * time.Millisecond) // never at the instant of an end
		const never = time.Duration(-1)
		began := time.Now()
		for game := range 40 {
			token := fmt.Sprint("token ", game)
			data, ends, buried := "", never, never
			for range 40 {
				store, now := stores[rnd.IntN(2)], time.Since(began)
				switch rnd.IntN(8) {
				case 0, 1:
					got, found, err := store.Find(token)
					require.NoError(t, err)
					require.Equal(t, ends > now, found)
					if found {
						require.Equal(t, data, string(got))
					}
				case 2, 3, 4:
					next, ttl := fmt.Sprint("data ", rnd.IntN(2)), time.Duration(1+rnd.IntN(4000))*time.Second
					err := store.Commit(token, []byte(next), time.Now().Add(ttl))
					switch left := ends - now; {
					case buried > now:
						require.ErrorIs(t, err, ErrSessionDestroyed)
						continue
					case left > 0 && next == data && left <= ttl && 4*left >= 3*ttl:
					default:
						data, ends = next, now+ttl
					}
					require.NoError(t, err)
				case 5:
					if rnd.IntN(4) > 0 {
						continue
					}
					require.NoError(t, store.Delete(token))
					buried, ends = max(buried, ends, now+time.Hour), never
				default:
					time.Sleep(time.Duration(rnd.IntN(1200)) * time.Second)
				}
			}
		}
	})
}

// slow pauses around each command and each pipeline.
type slow struct{ hesitant }

func (h slow) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if isHandshake(cmds[0]) {
			return next(ctx, cmds)
		}
		h.pause()
		err := next(ctx, cmds)
		h.pause()
		return err
	}
}

// signOuts plays many sessions, each of which several callers of all stores use at the
// same time until it is destroyed, and after that.
func signOuts(t *testing.T, seed uint64, stores []*SessionStore, sessions int, life, pause time.Duration) {
	var finds, refused, commits atomic.Int64
	var playing sync.WaitGroup
	for session := range sessions {
		token := fmt.Sprintf("%d/%d", seed, session)
		var destroyed atomic.Bool
		for caller := range 6 {
			rnd := rand.New(rand.NewPCG(seed, uint64(session*10+caller)))
			playing.Go(func() {
				store := stores[rnd.IntN(len(stores))]
				for step := range 8 {
					time.Sleep(time.Duration(rnd.Int64N(int64(pause))))
					over := destroyed.Load()
					switch {
					case caller == 0 && step == 4:
						if err := store.Delete(token); err != nil {
							t.Errorf("delete: %v", err)
							return
						}
						destroyed.Store(true)
					case rnd.IntN(2) == 0:
						data, found, err := store.Find(token)
						switch {
						case err != nil:
							t.Errorf("find: %v", err)
						case over && found:
							t.Errorf("the session %s is there after its end", token)
						case found && !strings.HasPrefix(string(data), token):
							t.Errorf("the session %s has %q", token, data)
						}
						if found {
							finds.Add(1)
						}
					default:
						err := store.Commit(token, []byte(fmt.Sprint(token, rnd.IntN(2))), time.Now().Add(time.Duration(1+rnd.Int64N(int64(life)))))
						switch {
						case errors.Is(err, ErrSessionDestroyed):
							refused.Add(1)
						case err != nil:
							t.Errorf("commit: %v", err)
						case over:
							t.Errorf("the session %s is stored after its end", token)
						default:
							commits.Add(1)
						}
					}
				}
			})
		}
	}
	playing.Wait()
	t.Logf("%d sessions, %d commits, %d found, %d commits refused", sessions, commits.Load(), finds.Load(), refused.Load())
	require.Positive(t, commits.Load())
	require.Positive(t, finds.Load())
	require.Positive(t, refused.Load())
}

// Invariant 13. Lives are short, and requests long.
func TestNoSessionComesBackAfterItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seed := newSeed(t)
		s, _ := newServer(t)
		var stores []*SessionStore
		for range 4 {
			rdb := open(t, s.Options())
			rdb.AddHook(slow{hesitant{func() { time.Sleep(rand.N(time.Minute)) }}})
			stores = append(stores, NewSessionStore(newClient(t, rdb, Config{ReadTimeout: -1}), "web"))
		}
		signOuts(t, seed, stores, 60, 40*time.Minute, 5*time.Minute)
	})
}

func TestNoSessionComesBackOnARealServer(t *testing.T) {
	s := redistest.Shared(t)
	var stores []*SessionStore
	for range 4 {
		stores = append(stores, NewSessionStore(newClient(t, s.Client(t), Config{}), "web"))
	}
	signOuts(t, newSeed(t), stores, 100, time.Minute, 20*time.Millisecond)
}

func TestSessionsHoldAnyData(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{Namespace: "ns", Name: "web"})
		s := NewSessionStore(c, "s")
		all, err := s.All()
		require.NoError(t, err)
		require.Equal(t, map[string][]byte{}, all)
		want := make(map[string][]byte)
		for i, data := range []string{"", "x", tombstone, "\xc1", "\xc1\x10", "\xc1\x11value", strings.Repeat("compressible ", 100)} {
			token := fmt.Sprint("token*[", i)
			require.NoError(t, s.Commit(token, []byte(data), time.Now().Add(time.Hour)))
			got, found, err := s.Find(token)
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, data, string(got))
			want[token] = []byte(data)
			require.EqualValues(t, 1, rdb.Exists(t.Context(), "ns:session.web:s:"+token).Val())
		}
		require.Less(t, rdb.StrLen(t.Context(), "ns:session.web:s:token*[6").Val(), int64(200))
		require.NoError(t, NewSessionStore(c, "s2").Commit("other", nil, time.Now().Add(time.Hour)))
		all, err = s.All()
		require.NoError(t, err)
		require.Equal(t, want, all)

		require.NoError(t, s.Delete("token*[1"))
		require.NoError(t, s.Delete("never there"))
		delete(want, "token*[1")
		for token, foreign := range map[string]string{"cut": "\xc1\x10\x01", "later": "\xc1\x2f", "lease": string(newLease())} {
			require.NoError(t, rdb.Set(t.Context(), s.prefix+token, foreign, time.Hour).Err())
			_, found, err := s.Find(token)
			require.NoError(t, err)
			require.False(t, found)
		}
		require.NoError(t, rdb.LPush(t.Context(), s.prefix+"list", "x").Err())
		_, found, err := s.Find("list")
		require.NoError(t, err)
		require.False(t, found)
		require.Error(t, s.Commit("list", nil, time.Now().Add(time.Hour)))
		all, err = s.AllCtx(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, all)
		st := c.Stats()
		require.EqualValues(t, []uint64{8, 0, 2, 0}, []uint64{st.SessionCommits, st.SessionCommitsRefused, st.SessionDestroys, st.SessionDestroysUnconfirmed})
		require.Positive(t, st.DecodeErrors)

		// What has expired is over at once.
		require.NoError(t, s.Commit("past", []byte("x"), time.Now().Add(-time.Hour)))
		require.Eventually(t, func() bool { _, found, err := s.Find("past"); return err == nil && !found }, time.Minute, time.Millisecond)
	})
}

// A destruction that fails is an error, and carried out later; this process finds the
// session no more.
func TestAFailedEndOfASessionIsMadeUpFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{ReadTimeout: time.Second})
		here, there := NewSessionStore(c, "web"), NewSessionStore(newClient(t, open(t, s.Options()), Config{}), "web")
		expiry := time.Now().Add(3 * time.Hour)
		require.NoError(t, here.Commit("token", []byte("data"), expiry))
		s.SetError("OOM command not allowed when used memory > 'maxmemory'.", "EVALSHA", "EVAL")
		err := here.Delete("token")
		require.ErrorContains(t, err, `cache: session "web": delete: OOM`)
		require.NotContains(t, err.Error(), "token")
		_, found, err := here.Find("token")
		require.NoError(t, err)
		require.False(t, found)
		require.ErrorIs(t, here.Commit("token", []byte("data"), expiry), ErrSessionDestroyed)
		all, err := here.All()
		require.NoError(t, err)
		require.Empty(t, all)
		_, found, err = there.Find("token")
		require.NoError(t, err)
		require.True(t, found, "others do not know")
		require.EqualValues(t, 1, c.Stats().DeletesOwed)

		s.SetError("")
		time.Sleep(10 * time.Second)
		require.Zero(t, c.Stats().DeletesOwed)
		_, found, err = there.Find("token")
		require.NoError(t, err)
		require.False(t, found)
		require.ErrorIs(t, there.Commit("token", []byte("data"), expiry), ErrSessionDestroyed)

		s.Stop()
		_, _, err = here.Find("token")
		require.ErrorContains(t, err, `cache: session "web": find: `)
		require.Error(t, here.Commit("token", nil, expiry))
		_, err = here.All()
		require.Error(t, err)
	})
}

func TestAFullServerDestroysSessionsAllTheSame(t *testing.T) {
	srv := redistest.New(t, redistest.Config{})
	rdb := srv.Client(t)
	s := NewSessionStore(newClient(t, rdb, Config{}), "web")
	require.NoError(t, s.Commit("token", []byte("data"), time.Now().Add(time.Minute)))
	require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory", "1").Err())
	require.NoError(t, s.Delete("token"))
	require.NoError(t, s.Delete("another"))
	for _, token := range []string{"token", "another"} {
		require.Equal(t, tombstone, stored(t, rdb, s.prefix+token, minTombstone))
	}
}

func TestASessionStoreRefusesWhatMakesNoSense(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	s := NewSessionStore(c, "web")
	huge, expiry := strings.Repeat("k", 8193), time.Now().Add(time.Hour)
	for _, token := range []string{"", huge} { // of a cookie
		_, found, err := s.Find(token)
		require.NoError(t, err)
		require.False(t, found)
		require.NoError(t, s.Delete(token))
		require.EqualError(t, s.Commit(token, nil, expiry), fmt.Sprintf(`cache: session "web": commit: the key has %d bytes, want 1 to 8192`, len(token)))
	}
	require.EqualError(t, s.Commit("t", make([]byte, 1<<20+1), expiry), `cache: session "web": commit: the session has 1048577 bytes, want at most 1048576`)
	require.ErrorContains(t, s.Commit("t", nil, time.Now().Add(101*365*24*time.Hour)), "want at most 876000h0m0s")
	require.Zero(t, rdb.DBSize(t.Context()).Val())
	uses := func(s *SessionStore, ctx context.Context) []error {
		_, _, find := s.FindCtx(ctx, "t")
		_, all := s.AllCtx(ctx)
		return []error{find, all, s.CommitCtx(ctx, "t", nil, expiry), s.DeleteCtx(ctx, "t")}
	}
	for _, err := range uses(s, nil) {
		require.ErrorContains(t, err, "nil context: pass context.Background() or the request's")
	}
	for _, err := range uses(NewSessionStore(c, "we b"), t.Context()) {
		require.EqualError(t, err, `cache: session "we b": the name is "we b", want letters, digits, _ and - only`)
	}
	for _, err := range uses(NewSessionStore(nil, "web"), t.Context()) {
		require.EqualError(t, err, `cache: session "web": nil Client: pass what New returned`)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errInjected)
	for _, err := range uses(s, ctx) {
		require.ErrorIs(t, err, errInjected)
	}
	require.NoError(t, c.Close())
	for _, err := range uses(s, t.Context()) {
		require.ErrorIs(t, err, ErrClosed)
	}
}
