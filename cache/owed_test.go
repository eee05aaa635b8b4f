package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/testserver"
)

// When Redis is back this process never gets what it could not delete, not even in
// the moment before the Delete is repeated.
func TestAFailedDeleteIsRepeatedAndNothingOldReturnedBefore(t *testing.T) {
	for _, hold := range []time.Duration{0, time.Minute} {
		t.Run(hold.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, rdb := newServer(t)
				c := newClient(t, rdb, Config{})
				v := NewView[string, string](c, "v", ViewConfig{})
				require.NoError(t, v.SetMany(t.Context(), map[string]string{"k": "old", "other": "other"}))
				s.Stop()
				if hold == 0 {
					require.Error(t, v.Delete(t.Context(), "k"))
				} else {
					require.Error(t, v.DeleteFor(t.Context(), hold, "k"))
				}
				require.EqualValues(t, 1, c.Stats().DeletesOwed)
				time.Sleep(10 * time.Second)
				require.NoError(t, s.Restart())
				_, err := v.Get(t.Context(), "k")
				require.ErrorIs(t, err, errOwed)
				require.ErrorContains(t, err, `cache: get "v:k": a Delete of the key`)
				many := v.GetMany(t.Context(), []string{"other", "k", "other"})
				require.Equal(t, []string{"other", "", "other"}, []string{many[0].Value, many[1].Value, many[2].Value})
				require.ErrorIs(t, many[1].Err, errOwed)
				got, err := v.Fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "new", nil })
				require.NoError(t, err)
				require.Equal(t, "new", got)

				time.Sleep(maxPayPause)
				st := c.Stats()
				require.Zero(t, st.DeletesOwed)
				require.EqualValues(t, 1, st.DeletesRepeated)
				_, err = v.Get(t.Context(), "k")
				require.Equal(t, ErrMiss, err)
				if hold > 0 {
					require.Equal(t, tombstone, stored(t, rdb, v.prefix+"k", hold-10*time.Second), "for the rest of the hold")
				}
				c.owed.mu.Lock()
				require.False(t, c.owed.paying)
				c.owed.mu.Unlock()
			})
		})
	}
}

// A flight that is under way when a Delete is owed, before it takes its lease or while
// it waits for another's, does not believe Redis either.
func TestAFlightHeedsWhatIsOwedMeanwhile(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, s *testserver.Server, v *View[string, string]){
		"after its read": func(_ *testing.T, s *testserver.Server, _ *View[string, string]) { s.SetLatency(time.Second) },
		"while it waits": func(t *testing.T, _ *testserver.Server, v *View[string, string]) {
			_, began, err := v.c.acquire(t.Context(), v.prefix+"k", newLease(), time.Minute, "")
			require.NoError(t, err)
			require.Positive(t, began)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, rdb := newServer(t)
				v := NewView[string, string](newClient(t, rdb, Config{}), "v", ViewConfig{})
				old := NewView[string, string](newClient(t, s.Client(t), Config{}), "v", ViewConfig{})
				_, err := v.Get(t.Context(), "a connection")
				require.Equal(t, ErrMiss, err)
				start(t, s, v)
				call := goFetch(t.Context(), v, "k", func(context.Context, string) (string, error) { return "new", nil })
				time.Sleep(10 * time.Millisecond)
				s.SetLatency(0)
				require.NoError(t, old.Set(t.Context(), "k", "old"))
				s.SetError("ERR not now", "evalsha", "eval")
				v.c.owed.add(v.prefix+"k", 0, v.prefix, v.Clear)
				require.Equal(t, fetched[string]{"new", nil}, <-call)
				s.SetError("", "evalsha", "eval")
				time.Sleep(time.Minute)
				require.Zero(t, v.c.Stats().DeletesOwed)
			})
		})
	}
}

func TestASetSettlesWhatWasOwedBeforeItAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		s.Stop()
		require.Error(t, v.Delete(t.Context(), "a", "b", "c"))
		require.NoError(t, s.Restart())
		require.NoError(t, v.Set(t.Context(), "a", "new"))
		require.NoError(t, v.SetMany(t.Context(), map[string]string{"b": "new"}))
		require.EqualValues(t, 1, c.Stats().DeletesOwed)
		mark := c.owed.mark()
		c.owed.add(v.prefix+"c", 0, v.prefix, v.unlinkAll) // while a Set is under way
		c.owed.settle(v.prefix+"c", mark)
		require.EqualValues(t, 1, c.Stats().DeletesOwed)
		time.Sleep(maxPayPause)
		require.Zero(t, c.Stats().DeletesOwed)
		require.Equal(t, []Result[string]{{Value: "new"}, {Value: "new"}, {Err: ErrMiss}}, v.GetMany(t.Context(), []string{"a", "b", "c"}))
	})
}

// A Delete that fails once more while it is being repeated is repeated again.
func TestARepeatedDeleteSettlesNoLaterOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		c.owed.add(v.prefix+"k", 0, v.prefix, v.unlinkAll)
		rdb.AddHook(slowReply{deleteScript})
		time.Sleep(maxPayPause)
		c.owed.add(v.prefix+"k", 0, v.prefix, v.unlinkAll)
		time.Sleep(time.Second)
		require.EqualValues(t, 1, c.Stats().DeletesRepeated)
		require.EqualValues(t, 1, c.Stats().DeletesOwed)
		time.Sleep(3 * time.Second)
		require.EqualValues(t, 2, c.Stats().DeletesRepeated)
		require.Zero(t, c.Stats().DeletesOwed)
	})
}

func TestAViewWithTooManyFailedDeletesIsCleared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		var book logBook
		c := newClient(t, rdb, Config{Logger: book.logger()})
		v := NewView[int, string](c, "v", ViewConfig{Plain: true})
		w := NewView[int, string](c, "w", ViewConfig{})
		require.NoError(t, v.SetMany(t.Context(), map[int]string{0: "old", maxOwed: "old", maxOwed + 1: "never deleted"}))
		require.NoError(t, w.Set(t.Context(), 0, "another view"))
		var keys []int
		for key := range maxOwed + 1 {
			keys = append(keys, key)
		}
		s.Stop()
		require.ErrorContains(t, v.Delete(t.Context(), keys...), "10001 of 10001 keys")
		require.EqualValues(t, maxOwed+1, c.Stats().DeletesOwed, "a view is one of them")
		require.Contains(t, book.String(), "key=redisha:cache:v:*")
		require.NoError(t, s.Restart())
		for _, key := range []int{0, maxOwed, maxOwed + 1} {
			_, err := v.Get(t.Context(), key)
			require.Error(t, err)
			require.NotErrorIs(t, err, ErrMiss)
			got, err := v.Fetch(t.Context(), key, func(context.Context, int) (string, error) { return "new", nil })
			require.NoError(t, err)
			require.Equal(t, "new", got)
		}
		got, err := w.Get(t.Context(), 0)
		require.NoError(t, err)
		require.Equal(t, "another view", got)
		time.Sleep(5 * time.Second)
		require.Zero(t, c.Stats().DeletesOwed)
		require.Equal(t, []string{"redisha:cache:w:0"}, rdb.Keys(t.Context(), "*").Val())
	})
}

// What fails while the view is being cleared has the whole of it cleared again.
func TestAViewThatIsBeingClearedIsClearedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		s.SetError("ERR keys are not deleted", "eval", "evalsha")
		c := newClient(t, rdb, Config{})
		var cleared atomic.Int64
		clear := func(context.Context) error {
			n := cleared.Add(1)
			time.Sleep(time.Second)
			if n == 1 {
				return errors.New("not yet")
			}
			return nil
		}
		for i := range maxOwed {
			c.owed.put(fmt.Sprint(i), ending{})
		}
		c.owed.add("k", 0, "v:", clear)
		time.Sleep(2 * time.Second) // the second time
		c.owed.add("l", 0, "v:", clear)
		require.ErrorIs(t, c.owed.check("v:", "m"), errViewOwed)
		time.Sleep(5 * time.Second)
		require.EqualValues(t, 3, cleared.Load())
		require.NoError(t, c.owed.check("v:", "m"))
		require.ErrorIs(t, c.owed.check("v:", "0"), errOwed)
	})
}

func TestCloseEndsTheRepeating(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rdb := newServer(t)
		var book logBook
		c := newClient(t, rdb, Config{Logger: book.logger()})
		v := NewView[string, string](c, "v", ViewConfig{})
		s.Stop()
		require.Error(t, v.Delete(t.Context(), "k"))
		require.NoError(t, c.Close())
		require.Contains(t, book.String(), `msg="closed with deletes that have failed: old values stay until they expire" keys=1`)
		require.ErrorIs(t, v.Delete(t.Context(), "k"), ErrClosed)
	})
}

// failover returns a client of the first of two servers, which knows nothing of the
// second, to which lose changes.
func failover(t *testing.T) (cn *conn.Client, servers [2]*testserver.Server, lose func()) {
	net := testserver.NewNet()
	servers = [2]*testserver.Server{testserver.New(t), testserver.New(t)}
	addrs := []string{"10.0.0.1:6379", "10.0.0.2:6379"}
	for i, s := range servers {
		net.Add(addrs[i], s.Dial)
	}
	sentinel := testserver.NewSentinel(t, net, "10.1.0.1:26379")
	sentinel.Monitor(testserver.Monitored{Name: "main", Primary: addrs[0], Epoch: 1})
	ep, err := endpoint.Parse("redis+sentinel://10.1.0.1:26379/main?pool_size=1024")
	require.NoError(t, err)
	cn, err = conn.New(conn.Config{Role: "cache", Endpoint: ep, FailFast: true, Dialer: net.Dial, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cn.Close()) })
	return cn, servers, func() { sentinel.Switch("main", addrs[1], 2) }
}

// A failover to a primary that had not got the last deletes brings nothing back.
func TestDeletesThatAFailoverLostAreRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cn, servers, lose := failover(t)
		c := newClient(t, cn, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		for _, s := range servers { // what the second one has is all old
			for _, key := range []string{"long ago", "deleted", "held", "there"} {
				require.NoError(t, s.Set("redisha:cache:v:"+key, string(append(appendHeader(nil, kindValue, header{}), `"old"`...))))
			}
		}
		require.NoError(t, v.Delete(t.Context(), "long ago"))
		time.Sleep(recentDeletesFor + time.Second)
		require.NoError(t, v.Delete(t.Context(), "deleted"))
		require.NoError(t, v.DeleteFor(t.Context(), time.Minute, "held"))
		time.Sleep(5 * time.Second)
		require.Zero(t, c.Stats().DeletesOwed)

		servers[1].SetError("ERR not now", "eval", "evalsha")
		lose()
		time.Sleep(time.Second)
		require.EqualValues(t, 1, cn.Epoch())
		require.EqualValues(t, 2, c.Stats().DeletesOwed)
		for i, res := range v.GetMany(t.Context(), []string{"deleted", "held", "there", "long ago"}) {
			if i < 2 {
				require.ErrorIs(t, res.Err, errOwed)
			} else {
				require.Equal(t, Result[string]{Value: "old"}, res)
			}
		}
		servers[1].SetError("", "eval", "evalsha")
		time.Sleep(maxPayPause)
		require.Zero(t, c.Stats().DeletesOwed)
		results := v.GetMany(t.Context(), []string{"deleted", "held", "there"})
		require.Equal(t, []Result[string]{{Err: ErrMiss}, {Err: ErrMiss}, {Value: "old"}}, results)
		require.Equal(t, tombstone, stored(t, cn, v.prefix+"held", 55*time.Second))

		// One whose reply comes from the old primary after the new one was there.
		c.owed.ended(cn.Epoch()-1, ending{}, v.prefix+"there")
		time.Sleep(maxPayPause)
		_, err := v.Get(t.Context(), "there")
		require.Equal(t, ErrMiss, err)
	})
}

// The same for what ends many values at once: of tags and views exactly those that
// were ended.
func TestInvalidationsThatAFailoverLostAreRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cn, servers, lose := failover(t)
		c := newClient(t, cn, Config{})
		views := map[string]*View[string, string]{
			"tag":     NewView[string, string](c, "tag", tagged),
			"cleared": NewView[string, string](c, "cleared", tagged),
			"scanned": NewView[string, string](c, "scanned", ViewConfig{}),
			"plain":   NewView[string, string](c, "plain", ViewConfig{Plain: true}),
			"other":   NewView[string, string](c, "other", tagged),
			"before":  NewView[string, string](c, "before", tagged),
		}
		for _, s := range servers { // what the second one has is all old
			old := newClient(t, s.Client(t), Config{})
			for name, v := range views {
				v := NewView[string, string](old, name, v.cfg)
				var opts []SetOption
				if v.cfg.Tags {
					opts = append(opts, Tags("ended", "and another"))
				}
				require.NoError(t, v.Set(t.Context(), "k", "old", opts...))
				if v.cfg.Tags {
					opts = []SetOption{Tags("lasting")}
				}
				require.NoError(t, v.Set(t.Context(), "l", "old", opts...))
			}
		}
		require.NoError(t, views["before"].Clear(t.Context()))
		time.Sleep(recentDeletesFor + time.Second)
		require.NoError(t, views["tag"].InvalidateTags(t.Context(), "ended", "of nothing"))
		for _, name := range []string{"cleared", "scanned", "plain"} {
			require.NoError(t, views[name].Clear(t.Context()))
		}
		for name, v := range views {
			_, err := v.Get(t.Context(), "k")
			require.Equal(t, name == "other", err == nil, name)
		}
		require.Zero(t, c.Stats().DeletesOwed)

		servers[1].SetError("ERR not now", "eval", "evalsha", "scan")
		lose()
		time.Sleep(time.Second)
		require.EqualValues(t, 1, cn.Epoch())
		require.EqualValues(t, 5, c.Stats().DeletesOwed, "two tags, a generation, two views")
		for name, want := range map[string]error{"tag": errTagsOwed, "cleared": errTagsOwed, "scanned": errViewOwed, "plain": errViewOwed} {
			v := views[name]
			for _, key := range []string{"k", "l"} {
				_, err := v.Get(t.Context(), key)
				require.ErrorIs(t, err, want, name)
				require.ErrorIs(t, v.GetMany(t.Context(), []string{key, "any"})[0].Err, want, name)
				got, err := v.Fetch(t.Context(), key, func(context.Context, string) (string, error) { return "new", nil })
				require.NoError(t, err)
				require.Equal(t, "new", got)
			}
		}
		for _, name := range []string{"other", "before"} { // which was cleared too long ago
			got, err := views[name].Get(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, "old", got)
		}
		servers[1].SetError("", "eval", "evalsha", "scan")
		time.Sleep(maxPayPause)
		require.Zero(t, c.Stats().DeletesOwed)
		require.Empty(t, c.owed.raises)
		for name, v := range views {
			stands := name == "other" || name == "before"
			_, err := v.Get(t.Context(), "k")
			require.Equal(t, stands, err == nil, "%s: %v", name, err)
			_, err = v.Get(t.Context(), "l")
			require.Equal(t, stands || name == "tag", err == nil, "%s: %v", name, err)
		}
	})
}

func TestTheRecentDeletesAreBounded(t *testing.T) {
	r := recentDeletes{most: 3}
	now := time.Now()
	for i := range 7 {
		r.add(fmt.Sprint(i), ending{}, now.Add(time.Duration(i)))
	}
	got := make(map[string]bool)
	r.since(now.Add(5), func(key string, _ ending) { got[key] = true })
	require.Equal(t, map[string]bool{"5": true, "6": true}, got)
	require.Len(t, r.ring, 3)
}

// One client's commands fail at random, before or after they have run. It writes,
// and gets nothing from before its own writes, whether its Delete succeeded or
// not; in the end nobody does.
func TestAfterFailedDeletesNothingStaysStale(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for round := range 6 {
		synctest.Test(t, func(t *testing.T) {
			s := testserver.New(t)
			dice := &dice{r: rand.New(rand.NewPCG(seed, uint64(round)))}
			rdb := s.Client(t)
			rdb.AddHook(hesitant{dice.pause})
			ailing := &ailing{failing: failing{dice, false}, blind: round%2 == 1}
			rdb.AddHook(ailing)
			own := NewView[int, int64](newClient(t, rdb, Config{}), "v", ViewConfig{})
			other := NewView[int, int64](newClient(t, s.Client(t), Config{}), "v", ViewConfig{})
			db := newDatabase(3, dice.pause)
			var wg, writers sync.WaitGroup
			for key := range db.rows {
				writers.Go(func() {
					for range 15 {
						version := db.rows[key].Add(1)
						dice.pause()
						_ = own.Delete(t.Context(), key)
						db.written[key].Store(version)
						dice.pause()
					}
				})
			}
			for range 6 {
				wg.Go(func() {
					for range 30 {
						if err := db.read(t.Context(), own, dice.roll(len(db.rows)), dice.roll(4) > 0); err != nil && !errors.Is(err, errInjected) && !errors.Is(err, errOwed) {
							t.Errorf("round %d: %v", round, err)
						}
						_, _ = other.Fetch(t.Context(), dice.roll(len(db.rows)), db.load) // it may get what is old, and stores nothing old
					}
				})
			}
			writers.Wait()
			wg.Wait()
			ailing.well.Store(true)
			time.Sleep(2 * time.Minute) // leases are over too
			require.Zero(t, own.c.Stats().DeletesOwed)
			require.Positive(t, own.c.Stats().DeletesRepeated)
			if ailing.blind {
				require.Positive(t, own.c.Stats().OutageHits)
			}
			for _, v := range []*View[int, int64]{own, other} {
				for key := range db.rows {
					require.NoError(t, db.read(t.Context(), v, key, true))
				}
			}
		})
	}
}

// A view is not read before the last of its generations has been raised again.
func TestAViewWaitsForAllOfItsGenerations(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	v, other := NewView[string, string](c, "v", tagged), NewView[string, string](c, "other", tagged)
	o := c.owed
	change := func(f func()) {
		o.mu.Lock()
		defer o.mu.Unlock()
		f()
	}
	change(func() {
		o.put(v.generationKey, ending{view: v.end})
		o.put(v.tagKey(1), ending{view: v.end})
		o.put(v.tagKey(1), ending{view: v.end}) // once more
	})
	require.ErrorIs(t, o.check(v.prefix, "k"), errTagsOwed)
	require.NoError(t, o.check(other.prefix, "k"))
	change(func() { o.paid(v.tagKey(1)) })
	require.ErrorIs(t, o.check(v.prefix, "k"), errTagsOwed)
	change(func() { o.paid(v.generationKey) })
	require.NoError(t, o.check(v.prefix, "k"))
	require.Empty(t, o.raises)
	require.Zero(t, o.n.Load())
}
