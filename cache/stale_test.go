package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

// hesitant pauses before and after each command, so that all steps of all
// clients interleave.
type hesitant struct{ pause func() }

func (h hesitant) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h hesitant) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if isHandshake(cmd) {
			return next(ctx, cmd)
		}
		h.pause()
		err := next(ctx, cmd)
		h.pause()
		return err
	}
}

func (h hesitant) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A database is a source whose rows are versions. A version that three divides is
// an absence.
type database struct {
	rows    []atomic.Int64 // the newest version of each key
	written []atomic.Int64 // the newest whose Delete or Set has returned
	pause   func()
	fails   func() bool // a load; nil: none does
	loads   atomic.Int64
	gets    atomic.Int64
	fetches atomic.Int64
}

func newDatabase(keys int, pause func()) *database {
	return &database{rows: make([]atomic.Int64, keys), written: make([]atomic.Int64, keys), pause: pause}
}

func (db *database) load(_ context.Context, key int) (int64, error) {
	db.loads.Add(1)
	db.pause()
	version := db.rows[key].Load()
	db.pause()
	switch {
	case db.fails != nil && db.fails():
		return 0, errInjected
	case version%3 == 0:
		return 0, ErrNotFound
	}
	return version, nil
}

// fetchMany fetches key among others.
func (db *database) fetchMany(ctx context.Context, v *View[int, int64], key int) (int64, error) {
	values, err := v.FetchMany(ctx, []int{(key + 1) % len(db.rows), key}, func(_ context.Context, keys []int) (map[int]int64, error) {
		db.loads.Add(1)
		db.pause()
		loaded := make(map[int]int64)
		for _, key := range keys {
			if version := db.rows[key].Load(); version%3 != 0 {
				loaded[key] = version
			}
		}
		db.pause()
		return loaded, nil
	})
	if failed := (*KeysError[int])(nil); errors.As(err, &failed) {
		if err := failed.Errs[key]; err != nil {
			return 0, err
		}
	}
	value, ok := values[key]
	if !ok {
		return 0, ErrNotFound
	}
	return value, nil
}

// write makes a new version, and deletes the old one from the cache or sets the
// new one there. A key has one writer.
func (db *database) write(ctx context.Context, v *View[int, int64], key int, set bool) error {
	version := db.rows[key].Add(1)
	db.pause()
	var err error
	if set && version%3 != 0 {
		err = v.Set(ctx, key, version)
	} else {
		err = v.Delete(ctx, key)
	}
	if err == nil {
		db.written[key].Store(version)
	}
	return err
}

// read fetches or gets a key, and returns an error if what it got is from before
// a write that had returned when it began.
func (db *database) read(ctx context.Context, v *View[int, int64], key int, fetch bool) error {
	floor := db.written[key].Load()
	var got int64
	var err error
	switch {
	case fetch && db.fetches.Add(1)%3 == 0:
		got, err = db.fetchMany(ctx, v, key)
	case fetch:
		got, err = v.Fetch(ctx, key, db.load)
	case db.gets.Add(1)%2 == 0:
		got, err = v.Get(ctx, key)
	default:
		res := v.GetMany(ctx, []int{(key + 1) % len(db.rows), key})[1]
		got, err = res.Value, res.Err
	}
	switch {
	case errors.Is(err, ErrMiss):
		return nil
	case errors.Is(err, ErrNotFound):
		for version := floor; version <= db.rows[key].Load(); version++ {
			if version%3 == 0 {
				return nil
			}
		}
		return fmt.Errorf("key %d: absent, which it has not been since version %d was written", key, floor)
	case err != nil:
		return err
	case got < floor:
		return fmt.Errorf("key %d: got version %d after version %d was written", key, got, floor)
	}
	return nil
}

// After a Delete or a Set has returned, nobody who comes later gets what was
// loaded before it. Four clients, all steps of which take random times; one of
// them also has commands that fail, before or after they have run.
func TestNothingFromBeforeADeleteIsReturned(t *testing.T) {
	rounds := 16
	if testing.Short() {
		rounds = 4
	}
	seed := newSeed(t)
	for round := range rounds {
		synctest.Test(t, func(t *testing.T) {
			s := testserver.New(t)
			dice := &dice{r: rand.New(rand.NewPCG(seed, uint64(round)))}
			const clients, writes = 4, 15
			readers, reads := 6, 20
			if round%2 == 1 {
				readers, reads = 32, 8 // more than there are lanes: reads share those of others
			}
			db := newDatabase(clients-1, dice.pause)
			cfg := ViewConfig{}
			if round%4 > 1 { // values grow stale all the time, and loads fail
				cfg = ViewConfig{TTL: 50 * time.Millisecond, StaleFor: 10 * time.Second, SoftLoadTimeout: time.Duration(dice.roll(2)) * 20 * time.Millisecond, ErrorTTL: 5 * time.Millisecond}
				db.fails = func() bool { return dice.roll(10) == 0 }
			}
			var wg sync.WaitGroup
			var shared func() uint64
			for n := range clients {
				rdb := s.Client(t)
				rdb.AddHook(hesitant{dice.pause})
				if n == clients-1 {
					rdb.AddHook(failing{dice, dice.roll(2) == 0})
				}
				c := newClient(t, rdb, Config{})
				v := NewView[int, int64](c, "v", cfg)
				shared = func() uint64 { return c.primary.Stats().Shared }
				for range readers {
					wg.Go(func() {
						for range reads {
							kept := c.Stats().OutageHits
							err := db.read(t.Context(), v, dice.roll(len(db.rows)), dice.roll(4) > 0)
							if n == clients-1 && c.Stats().OutageHits > kept {
								continue // it may be two seconds old, where reads fail
							}
							if err != nil && !errors.Is(err, errInjected) && !errors.Is(err, ErrLoadFailed) {
								t.Errorf("round %d: %v", round, err)
							}
							if dice.roll(3) == 0 {
								dice.pause()
							}
						}
					})
				}
				if n == clients-1 {
					wg.Go(func() {
						for range writes { // whoever makes values stale brings none back
							if err := v.Expire(t.Context(), dice.roll(len(db.rows))); err != nil && !errors.Is(err, errInjected) {
								t.Errorf("round %d: %v", round, err)
							}
							dice.pause()
						}
					})
					continue
				}
				wg.Go(func() {
					for range writes {
						if err := db.write(t.Context(), v, n, dice.roll(3) == 0); err != nil {
							t.Errorf("round %d: %v", round, err)
						}
						dice.pause()
					}
				})
			}
			wg.Wait()
			require.Positive(t, db.loads.Load())
			require.Less(t, db.loads.Load(), int64(clients*readers*reads), "something was cached")
			if readers > 16 {
				require.Positive(t, shared(), "the last client's reads travelled together")
			}
		})
	}
}

// dice is a random source that goroutines share.
type dice struct {
	mu sync.Mutex
	r  *rand.Rand
}

func (d *dice) roll(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.r.IntN(n)
}

// pause sleeps for up to 10 ms, sometimes much longer.
func (d *dice) pause() {
	pause := time.Duration(d.roll(int(10 * time.Millisecond)))
	if d.roll(20) == 0 {
		pause *= 20
	}
	time.Sleep(pause)
}

var errInjected = errors.New("injected")

// failing lets an eighth of the commands fail before they have run, and another
// one after.
type failing struct {
	*dice
	scriptsOnly bool
}

func (f failing) DialHook(next redis.DialHook) redis.DialHook { return next }

func (f failing) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if isHandshake(cmd) || f.scriptsOnly && cmd.Name() != "evalsha" {
			return next(ctx, cmd)
		}
		n := f.roll(8)
		if n > 0 {
			if err := next(ctx, cmd); n > 1 {
				return err
			}
		}
		cmd.SetErr(errInjected)
		return errInjected
	}
}

func (f failing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// The same in real time against a real server.
func TestAHostileWriterCausesNoStaleRead(t *testing.T) {
	s := redistest.Shared(t)
	pause := func() { time.Sleep(rand.N(500 * time.Microsecond)) }
	const clients, readers = 4, 8
	db := newDatabase(clients, pause)
	stop := time.Now().Add(time.Second)
	var wg sync.WaitGroup
	var reads atomic.Int64
	for n := range clients {
		v := NewView[int, int64](newClient(t, open(t, s.Options()), Config{}), "v", ViewConfig{})
		for range readers {
			wg.Go(func() {
				for time.Now().Before(stop) {
					if err := db.read(t.Context(), v, rand.IntN(clients), true); err != nil {
						t.Error(err)
						return
					}
					reads.Add(1)
				}
			})
		}
		wg.Go(func() {
			for time.Now().Before(stop) {
				if err := db.write(t.Context(), v, n, rand.IntN(3) == 0); err != nil {
					t.Error(err)
					return
				}
				pause()
			}
		})
	}
	wg.Wait()
	t.Logf("%d reads, %d loads", reads.Load(), db.loads.Load())
	require.Positive(t, reads.Load())
}

// slowReply holds the replies of one script back for a second.
type slowReply struct{ script *script }

func (h slowReply) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h slowReply) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() == "evalsha" && cmd.Args()[1] == h.script.Hash() {
			time.Sleep(time.Second)
		}
		return err
	}
}

func (h slowReply) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// The moments at which a Delete by another process does the most harm: just
// after a step has been taken, whose reply is on its way.
func TestWhoComesAfterADeleteDoesNotGetWhatAFlightHadBefore(t *testing.T) {
	for _, test := range []struct {
		name string
		slow *script
		held string // what another process had stored when the first caller came
		want int64  // what the first caller gets
	}{
		{"the value was stored, and who stored it does not know yet", fillScript, "", 1},
		{"the value was there, and who asked for a lease does not know yet", acquireScript, "100", 100},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, rdb := newServer(t)
				here := NewView[string, int64](newClient(t, rdb, Config{}), "v", ViewConfig{Plain: true})
				there := NewView[string, int64](newClient(t, s.Client(t), Config{}), "v", ViewConfig{Plain: true})
				require.NoError(t, acquireScript.Load(t.Context(), rdb).Err())
				require.NoError(t, fillScript.Load(t.Context(), rdb).Err())
				var loads atomic.Int64
				load := func(context.Context, string) (int64, error) { return loads.Add(1), nil }
				if test.held != "" { // after the first caller's read
					rdb.AddHook(setAfterGet{s, test.held})
				}
				rdb.AddHook(slowReply{test.slow})

				first := goFetch(t.Context(), here, "k", load)
				synctest.Wait()
				before := loads.Load()
				require.NoError(t, there.Delete(t.Context(), "k"))
				second, err := here.Fetch(t.Context(), "k", load)
				require.NoError(t, err)
				require.Equal(t, before+1, second, "loaded after the Delete")
				require.Equal(t, fetched[int64]{test.want, nil}, <-first, "it came before the Delete")
			})
		})
	}
}

// setAfterGet lets a value appear right after the first GET.
type setAfterGet struct {
	server *testserver.Server
	value  string
}

func (h setAfterGet) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h setAfterGet) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	var once sync.Once
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() == "get" {
			once.Do(func() { _ = h.server.Set("redisha:cache:v:k", h.value) })
		}
		return err
	}
}

func (h setAfterGet) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func TestALoadThatADeleteOrSetOvertookIsNotStored(t *testing.T) {
	for name, write := range map[string]func(context.Context, *View[string, int64]) error{
		"Delete": func(ctx context.Context, v *View[string, int64]) error { return v.Delete(ctx, "k") },
		"Set":    func(ctx context.Context, v *View[string, int64]) error { return v.Set(ctx, "k", 50) },
	} {
		for _, elsewhere := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", elsewhere ", elsewhere), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s, rdb := newServer(t)
					c := newClient(t, rdb, Config{})
					here := NewView[string, int64](c, "v", ViewConfig{})
					writer := here
					if elsewhere {
						writer = NewView[string, int64](newClient(t, s.Client(t), Config{}), "v", ViewConfig{})
					}
					src := newSource(int64(1))
					first := goFetch(t.Context(), here, "k", src.load)
					<-src.began
					require.NoError(t, write(t.Context(), writer))
					later := goFetch(t.Context(), here, "k", func(context.Context, string) (int64, error) { return 2, nil })
					want := fetched[int64]{2, nil}
					if name == "Set" {
						want.value = 50
					}
					if !elsewhere {
						require.Equal(t, want, <-later, "own writes are known: the old load is not waited for")
					}
					synctest.Wait()
					close(src.release)
					require.Equal(t, fetched[int64]{1, nil}, <-first)
					if elsewhere {
						require.Equal(t, want, <-later)
					}
					got, err := here.Get(t.Context(), "k")
					require.NoError(t, err)
					require.Equal(t, want.value, got)
					require.EqualValues(t, 1, c.Stats().FillsRefused)
				})
			})
		}
	}
}

// ailing is failing until it is well; if it is blind, most reads fail.
type ailing struct {
	failing
	blind bool
	well  atomic.Bool
}

func (f *ailing) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	ill := f.failing.ProcessHook(next)
	return func(ctx context.Context, cmd redis.Cmder) error {
		if f.well.Load() {
			return next(ctx, cmd)
		}
		if f.blind && cmd.Name() == "get" && f.roll(20) > 0 {
			cmd.SetErr(errInjected)
			return errInjected
		}
		return ill(ctx, cmd)
	}
}
