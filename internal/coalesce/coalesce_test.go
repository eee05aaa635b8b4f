package coalesce

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/lanes"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

type ctxKey struct{}

// holds requires that key holds want; "" is nothing.
func holds(t *testing.T, r *Reader, key, want string) {
	t.Helper()
	v, err := r.Get(t.Context(), key)
	require.NoError(t, err)
	require.Equal(t, want, string(v.Bytes()))
	require.Equal(t, want == "", v.Bytes() == nil)
	v.Release()
}

// underway is what is under way, by age. It is steady once all goroutines wait.
func underway(r *Reader) [3]int {
	q := single(r)
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lanes.UnderWay()
}

func TestAReadTravelsWithItsCallersContextWhileALaneIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r, rec := foreign(t, srv, Config{})
		require.NoError(t, srv.Set("k", "v"))
		require.NoError(t, srv.Set("empty", ""))
		_, err := srv.Push("list", "x")
		require.NoError(t, err)
		ctx := context.WithValue(t.Context(), ctxKey{}, "mine")
		v, err := r.Get(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "v", string(v.Bytes()))
		require.False(t, v.Shared())
		v.Release()
		require.Nil(t, v.Bytes())
		v, err = r.Get(ctx, "empty")
		require.NoError(t, err)
		require.NotNil(t, v.Bytes())
		for _, key := range []string{"none", "list"} {
			v, err = r.Get(ctx, key)
			require.NoError(t, err)
			require.Nil(t, v.Bytes())
		}
		sent := rec.Shipments()
		require.Len(t, sent, 4)
		for _, s := range sent {
			require.Equal(t, "mine", s.Ctx.Value(ctxKey{}))
			require.Equal(t, "get", s.Commands[0][0])
		}
	})
}

func TestWaitingReadsShareOneMGetAndEqualKeysAreReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r, rec := foreign(t, srv, Config{})
		free := occupy(single(r))
		want := map[string]string{"none": "", "list": ""}
		_, err := srv.Push("list", "x")
		require.NoError(t, err)
		for i := range 10 {
			key := fmt.Sprint("k", i)
			want[key] = strings.Repeat(key, i*100+1)
			require.NoError(t, srv.Set(key, want[key]))
		}
		var callers sync.WaitGroup
		for key, value := range want {
			for range 3 {
				callers.Go(func() { holds(t, r, key, value) })
			}
		}
		callers.Go(func() {
			for i, res := range r.GetMany(t.Context(), []string{"k3", "none", "k3", "k5"}) {
				require.NoError(t, res.Err)
				require.Equal(t, []string{want["k3"], "", want["k3"], want["k5"]}[i], string(res.Bytes()))
				res.Release()
			}
		})
		synctest.Wait()
		require.Empty(t, rec.Shipments())
		free()
		callers.Wait()
		sent := rec.Shipments()
		require.Len(t, sent, 1)
		require.Len(t, sent[0].Commands, 1)
		require.Equal(t, "mget", sent[0].Commands[0][0])
		require.Len(t, sent[0].Commands[0], 1+len(want))
		require.Equal(t, Stats{Batches: 1, Keys: 12, Shared: 28}, r.Stats())
	})
}

func TestWhoWaitsAloneReadsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, rec := foreign(t, testserver.New(t), Config{})
		free := occupy(single(r))
		var caller sync.WaitGroup
		caller.Go(func() {
			v, err := r.Get(context.WithValue(t.Context(), ctxKey{}, "mine"), "none")
			require.NoError(t, err)
			require.Nil(t, v.Bytes())
		})
		synctest.Wait()
		free()
		caller.Wait()
		require.Len(t, rec.Shipments(), 1)
		require.Equal(t, "mine", rec.Shipments()[0].Ctx.Value(ctxKey{}))
		require.Equal(t, Stats{Alone: 1}, r.Stats())
	})
}

func TestMemoryIsUsedAgainOnlyAfterItIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r, _ := foreign(t, srv, Config{})
		for i := range 4 {
			require.NoError(t, srv.Set(fmt.Sprint("k", i), strings.Repeat(fmt.Sprint(i), 1000)))
		}
		batch := func(release bool) (held []Value) {
			free := occupy(single(r))
			values := make([]Value, 4)
			var callers sync.WaitGroup
			for i := range values {
				callers.Go(func() {
					var err error
					values[i], err = r.Get(t.Context(), fmt.Sprint("k", i))
					require.NoError(t, err)
				})
			}
			synctest.Wait()
			free()
			callers.Wait()
			synctest.Wait() // the lane is free
			for i := range values {
				require.Equal(t, strings.Repeat(fmt.Sprint(i), 1000), string(values[i].Bytes()))
				require.True(t, values[i].Shared())
				if release {
					values[i].Release()
					values[i].Release() // which is nothing
				}
			}
			return values
		}
		held := batch(false)
		for i := range 3 {
			held[i].Release()
		}
		for range 20 {
			batch(true)
			require.Equal(t, strings.Repeat("3", 1000), string(held[3].Bytes()))
		}
		bytes := held[3].Bytes()
		held[3].Release()
		require.Equal(t, strings.Repeat("\xDB", 1000), string(bytes), "the tests would see memory that is used too long")
	})
}

var errLeft = errors.New("left")

func TestACallerWhoLeavesWhileItWaitsReturnsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r, rec := foreign(t, srv, Config{})
		require.NoError(t, srv.Set("k", "v"))
		free := occupy(single(r))
		var callers sync.WaitGroup
		ctx, cancel := context.WithCancelCause(t.Context())
		leave := func(read func() error) {
			start := time.Now()
			require.ErrorIs(t, read(), errLeft)
			require.Equal(t, time.Millisecond, time.Since(start))
		}
		callers.Go(func() {
			leave(func() error { _, err := r.Get(ctx, "k"); return err })
		})
		callers.Go(func() {
			leave(func() error {
				results := r.GetMany(ctx, []string{"k", "none"})
				require.Equal(t, results[0].Err, results[1].Err)
				return results[0].Err
			})
		})
		for range 2 {
			callers.Go(func() { holds(t, r, "k", "v") })
		}
		synctest.Wait()
		time.Sleep(time.Millisecond)
		cancel(errLeft)
		synctest.Wait()
		free()
		callers.Wait()
		require.Len(t, rec.Shipments(), 1)
	})
}

func TestABatchThatAllHaveLeftIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, rec := foreign(t, testserver.New(t), Config{})
		free := occupy(single(r))
		var callers sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 2 * maxKeys {
			callers.Go(func() {
				_, err := r.Get(ctx, fmt.Sprint(i))
				require.ErrorIs(t, err, context.Canceled)
			})
		}
		synctest.Wait()
		cancel()
		callers.Wait()
		free()
		synctest.Wait()
		require.Empty(t, rec.Shipments())
		require.Zero(t, underway(r))
		holds(t, r, "none", "")
	})
}

func TestACallerWhoLeavesAsItsTurnComesGivesItOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, rec := foreign(t, testserver.New(t), Config{})
		sent := 0
		for i := range 300 {
			free := occupy(single(r))
			ctx, cancel := context.WithCancel(t.Context())
			var caller sync.WaitGroup
			caller.Go(func() {
				if _, err := r.Get(ctx, "k"); err == nil {
					sent++
				}
			})
			synctest.Wait()
			if i%2 == 0 {
				free()
				cancel()
			} else {
				cancel()
				free()
			}
			caller.Wait()
			synctest.Wait()
			require.Zero(t, underway(r))
		}
		// A read may have been sent and have failed, since its context ended then.
		require.GreaterOrEqual(t, len(rec.Shipments()), sent)
	})
}

func TestACallerWhoLeavesABatchDisturbsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r := open(t, srv, Config{})
		require.NoError(t, srv.Set("k", "v"))
		holds(t, r, "k", "v")
		dials := r.cn.Stats().Dials
		free := occupy(single(r))
		srv.Hang(true)
		var callers sync.WaitGroup
		ctx, cancel := context.WithCancelCause(t.Context())
		for i := range 3 {
			callers.Go(func() {
				start := time.Now()
				if i > 0 {
					holds(t, r, "k", "v")
					require.Equal(t, 2*time.Second, time.Since(start))
					return
				}
				_, err := r.Get(ctx, "other")
				require.ErrorIs(t, err, errLeft)
				require.Equal(t, time.Second, time.Since(start))
			})
		}
		synctest.Wait()
		free()
		time.Sleep(time.Second)
		cancel(errLeft)
		time.Sleep(time.Second)
		srv.Hang(false)
		callers.Wait()
		require.Equal(t, dials, r.cn.Stats().Dials)
	})
}

// patient returns a Reader over a client that repeats for as long as a context
// lasts.
func patient(t *testing.T, srv *testserver.Server, cfg Config) *Reader {
	return reader(t, own(t, conn.Config{Dialer: srv.Dial, Breaker: off}, "redis://127.0.0.1:6379?pool_size=1024"), cfg)
}

func TestABatchEndsWhenAllItsReadersHaveLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r := patient(t, srv, Config{})
		free := occupy(single(r))
		srv.SetLoading(time.Hour) // which conn repeats
		var callers sync.WaitGroup
		for i := range 3 {
			callers.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Duration(i+1)*time.Second, cancel)
				start := time.Now()
				_, err := r.Get(ctx, fmt.Sprint(i))
				require.ErrorIs(t, err, context.Canceled)
				require.Equal(t, time.Duration(i+1)*time.Second, time.Since(start))
			})
		}
		synctest.Wait()
		free()
		callers.Wait()
		synctest.Wait()
		require.Zero(t, underway(r))
	})
}

func TestTheTimeoutBoundsWaitingAndReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 800 * time.Millisecond
		srv := testserver.New(t)
		r := patient(t, srv, Config{Timeout: limit})
		holds(t, r, "none", "")
		srv.Hang(true)
		read := func(least time.Duration, get func() error) {
			start := time.Now()
			err := get()
			require.Error(t, err)
			require.GreaterOrEqual(t, time.Since(start), least)
			require.LessOrEqual(t, time.Since(start), limit+limit/8)
		}
		one := func() error { _, err := r.Get(t.Context(), "k"); return err }
		read(limit, one) // alone
		free := occupy(single(r))
		var callers sync.WaitGroup
		for range 5 {
			callers.Go(func() { read(limit, one) })
			callers.Go(func() {
				read(limit, func() error { return r.GetMany(t.Context(), []string{"a", "b", "c"})[2].Err })
			})
		}
		callers.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), limit/2) // whichever ends first
			defer cancel()
			start := time.Now()
			_, err := r.Get(ctx, "k")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, limit/2, time.Since(start))
		})
		synctest.Wait()
		free()
		callers.Wait()
		synctest.Wait()
		require.Zero(t, underway(r), "nobody waits for a reply that nobody wants")
		srv.Hang(false)
		time.Sleep(time.Minute)
		holds(t, r, "none", "")
	})
}

// Also where the client does not heed contexts.
func TestTheTimeoutEndsAWaitForABatchThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 800 * time.Millisecond
		r, rec := foreign(t, testserver.New(t), Config{Timeout: limit})
		hang := make(chan struct{})
		rec.Before = func(context.Context, []redis.Cmder) { <-hang }
		free := occupy(single(r))
		var callers sync.WaitGroup
		for i := range 5 {
			callers.Go(func() {
				start := time.Now()
				_, err := r.Get(t.Context(), fmt.Sprint(i))
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.GreaterOrEqual(t, time.Since(start), limit)
				require.LessOrEqual(t, time.Since(start), limit+limit/8)
			})
		}
		synctest.Wait()
		free()
		callers.Wait()
		close(hang)
	})
}

// The server's error is no value, though a raw reply is none to go-redis.
func TestAnErrorOfAllReachesAllAndTheClientsHooks(t *testing.T) {
	for _, text := range []string{"LOADING Redis is loading the dataset in memory", "ERR no luck today", "BUSY a script runs", "NOAUTH Authentication required."} {
		t.Run(text, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := testserver.New(t)
				r := open(t, srv, Config{})
				srv.SetError(text, "MGET")
				failed := r.cn.Stats().Commands.Failed()
				free := occupy(single(r))
				var callers sync.WaitGroup
				for i := range 4 {
					callers.Go(func() {
						v, err := r.Get(t.Context(), fmt.Sprint(i))
						require.ErrorContains(t, err, text)
						var reply redis.Error
						require.ErrorAs(t, err, &reply)
						require.Nil(t, v.Bytes())
					})
				}
				synctest.Wait()
				free()
				callers.Wait()
				require.Equal(t, failed+1, r.cn.Stats().Commands.Failed())
			})
		})
	}
}

func TestTheBreakerSeesBatchesAndRefusesThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		cn := own(t, conn.Config{Dialer: srv.Dial, FailFast: true, Breaker: breaker.Config{OpenFor: time.Hour}}, "redis://127.0.0.1:6379?pool_size=1024")
		r := reader(t, cn, Config{})
		batch := func(right func(err error)) {
			free := occupy(single(r))
			var callers sync.WaitGroup
			for i := range 3 {
				callers.Go(func() {
					_, err := r.Get(t.Context(), fmt.Sprint(i))
					right(err)
				})
			}
			synctest.Wait()
			free()
			callers.Wait()
			synctest.Wait() // the lane is free
		}
		srv.SetError("LOADING Redis is loading the dataset in memory", "MGET")
		for range 100 {
			batch(func(err error) { require.Error(t, err) })
		}
		require.Equal(t, "open", cn.Stats().Breaker.State)
		batch(func(err error) { require.ErrorIs(t, err, breaker.ErrOpen) })
	})
}

func TestABatchWhoseReplyIsCutIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r := open(t, srv, Config{})
		for i := range 5 {
			require.NoError(t, srv.Set(fmt.Sprint("k", i), fmt.Sprint(i)))
		}
		srv.CutReplies(1, "MGET")
		free := occupy(single(r))
		var callers sync.WaitGroup
		for i := range 5 {
			callers.Go(func() { holds(t, r, fmt.Sprint("k", i), fmt.Sprint(i)) })
		}
		synctest.Wait()
		free()
		callers.Wait()
		require.Equal(t, uint64(1), r.cn.Stats().Repeats)
	})
}

func TestWhereMGetIsRefusedEachKeyIsAskedForByItself(t *testing.T) {
	for _, text := range []string{
		"NOPERM this user has no permissions to run the 'mget' command", "CROSSSLOT Keys in request don't hash to the same slot",
		"ERR unknown command 'MGET'", "MOVED 1234 10.0.0.1:6379",
	} {
		t.Run(text, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := testserver.New(t)
				r, rec := foreign(t, srv, Config{})
				srv.SetError(text, "MGET")
				batch := func() {
					free := occupy(single(r))
					var callers sync.WaitGroup
					for i := range 5 {
						key := fmt.Sprint("k", i)
						require.NoError(t, srv.Set(key, key))
						callers.Go(func() { holds(t, r, key, key) })
					}
					synctest.Wait()
					free()
					callers.Wait()
					synctest.Wait() // the lane is free
				}
				batch()
				require.Len(t, rec.Shipments(), 2)
				batch()
				require.Len(t, rec.Shipments(), 3, "MGET is not tried each time")
				require.Len(t, rec.Shipments()[2].Commands, 5)
				srv.SetError("", "MGET")
				time.Sleep(refusedFor)
				batch()
				require.Equal(t, "mget", rec.Shipments()[3].Commands[0][0], "but again after a while")
			})
		})
	}
}

func TestLargeValuesAreReadAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r, rec := foreign(t, srv, Config{})
		values := map[string]string{"small": "x", "large": strings.Repeat("L", largeBytes+1), "huge": strings.Repeat("H", maxReply+1), "huge2": strings.Repeat("G", maxReply+1)}
		for key, value := range values {
			require.NoError(t, srv.Set(key, value))
		}
		read := func(shipments int) {
			before := len(rec.Shipments())
			free := occupy(single(r))
			var callers sync.WaitGroup
			for key, value := range values {
				callers.Go(func() { holds(t, r, key, value) })
			}
			callers.Go(func() {
				for i, res := range r.GetMany(t.Context(), []string{"small", "huge", "large"}) {
					require.NoError(t, res.Err)
					require.Equal(t, values[[]string{"small", "huge", "large"}[i]], string(res.Bytes()))
					res.Release()
				}
			})
			synctest.Wait()
			free()
			callers.Wait()
			synctest.Wait() // the lane is free
			require.Len(t, rec.Shipments(), before+shipments)
		}
		read(1 + 2 + 1) // an MGET, those that it did not keep, and those for GetMany
		read(1 + 3 + 1) // an MGET of what is not known to be large
		require.Equal(t, int32(3), r.sizes.known.Load())
		for _, key := range []string{"large", "huge", "huge2"} {
			require.NoError(t, srv.Set(key, key))
			holds(t, r, key, key)
		}
		require.Zero(t, r.sizes.known.Load(), "they are large no more")
	})
}

// A lane that is granted to one who waits for something else as well would be idle
// meanwhile.
func TestWhoWaitsForSeveralKeysIsGrantedNoLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r, rec := foreign(t, srv, Config{})
		require.NoError(t, srv.Set("small", "x"))
		require.NoError(t, srv.Set("large", strings.Repeat("L", largeBytes+1)))
		v, err := r.Get(t.Context(), "large")
		require.NoError(t, err)
		v.Release()
		free := occupy(single(r))
		var caller sync.WaitGroup
		caller.Go(func() {
			results := r.GetMany(t.Context(), []string{"small", "large"})
			require.NoError(t, results[0].Err)
			require.Equal(t, "x", string(results[0].Bytes()))
			require.Len(t, results[1].Bytes(), largeBytes+1)
			results[0].Release()
			results[1].Release()
		})
		synctest.Wait()
		require.Len(t, rec.Shipments(), 2, "the large one is read already")
		free()
		caller.Wait()
		synctest.Wait()
		require.Zero(t, underway(r))
		require.Equal(t, uint64(1), r.Stats().Batches)
	})
}

func TestABatchHasBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r, rec := foreign(t, srv, Config{})
		keys := make([]string, 300)
		for i := range keys {
			keys[i] = fmt.Sprint("k", i)
			require.NoError(t, srv.Set(keys[i], strings.Repeat("x", 40<<10)))
		}
		read := func(keys []string, most int) {
			before := len(rec.Shipments())
			for _, res := range r.GetMany(t.Context(), keys) {
				require.NoError(t, res.Err)
				require.Len(t, res.Bytes(), 40<<10)
				res.Release()
			}
			for _, s := range rec.Shipments()[before:] {
				if s.Commands[0][0] == "mget" {
					require.LessOrEqual(t, len(s.Commands[0])-1, most)
				}
			}
		}
		read(keys, maxKeys)
		read(keys, maxBytes/(40<<10))
	})
}

func TestCloseWaitsForWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r, _ := foreign(t, srv, Config{Timeout: time.Second})
		require.NoError(t, srv.Set("k", "v"))
		free := occupy(single(r))
		var callers sync.WaitGroup
		for range 5 {
			callers.Go(func() { holds(t, r, "k", "v") })
		}
		synctest.Wait()
		callers.Go(func() { require.NoError(t, r.Close(t.Context())) })
		synctest.Wait()
		_, err := r.Get(t.Context(), "k")
		require.ErrorIs(t, err, conn.ErrClosed)
		for _, res := range r.GetMany(t.Context(), []string{"k", "l"}) {
			require.ErrorIs(t, res.Err, conn.ErrClosed)
		}
		free()
		callers.Wait()
		require.NoError(t, r.Close(t.Context()))
	})
}

func TestCloseRefusesWhatWaitsWhenItsTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r := patient(t, srv, Config{})
		var callers sync.WaitGroup
		call := func(kind error) {
			callers.Go(func() {
				_, err := r.Get(t.Context(), "k")
				require.ErrorIs(t, err, kind)
				for _, res := range r.GetMany(t.Context(), []string{"k", "l"}) {
					require.ErrorIs(t, res.Err, conn.ErrClosed)
				}
			})
		}
		free := occupy(single(r))
		srv.SetLoading(time.Hour)
		call(context.Canceled)
		call(context.Canceled)
		synctest.Wait()
		free() // these two travel together
		synctest.Wait()
		free = occupy(single(r))
		call(conn.ErrClosed)
		call(conn.ErrClosed)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		require.ErrorIs(t, r.Close(ctx), context.DeadlineExceeded)
		callers.Wait()
		free()
		require.NoError(t, r.Close(t.Context()))
	})
}

func TestCloseWithoutAnythingUnderWayNeedsNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := foreign(t, testserver.New(t), Config{})
		holds(t, r, "none", "")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 100 {
			require.NoError(t, r.Close(ctx))
		}
	})
}

func TestWhatCannotBeReadSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, rec := foreign(t, testserver.New(t), Config{})
		require.Empty(t, r.GetMany(t.Context(), nil))
		var none context.Context
		_, err := r.Get(none, "k")
		require.ErrorContains(t, err, "nil context")
		require.ErrorContains(t, r.GetMany(none, []string{"k"})[0].Err, "nil context")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errLeft)
		_, err = r.Get(ctx, "k")
		require.ErrorIs(t, err, errLeft)
		require.Empty(t, rec.Shipments())
	})
}

func TestAPanicInAHookFailsItsBatchAndNoOther(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("boom") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, rec := open(t, testserver.New(t), Config{}), &redistest.Recorder{}
				r.cn.AddHook(rec)
				rec.Before = func(_ context.Context, cmds []redis.Cmder) {
					if cmds[0].Name() == "mget" {
						end()
					}
				}
				for range 5 { // more than there are lanes
					free := occupy(single(r))
					var callers sync.WaitGroup
					for i := range 3 {
						callers.Go(func() {
							_, err := r.Get(t.Context(), fmt.Sprint(i))
							require.Error(t, err)
						})
					}
					synctest.Wait()
					free()
					callers.Wait()
					synctest.Wait()
				}
				require.Zero(t, underway(r))
				holds(t, r, "none", "")

				rec.Before = func(context.Context, []redis.Cmder) { end() }
				var caller sync.WaitGroup
				caller.Go(func() {
					defer func() { _ = recover() }()
					_, _ = r.Get(t.Context(), "k")
					t.Error("a read of its own does not hide what its caller did")
				})
				caller.Wait()
				require.Zero(t, underway(r))
			})
		})
	}
}

func TestReadsThatHangDoNotHoldUpOthersForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r, rec := foreign(t, srv, Config{})
		require.NoError(t, srv.Set("k", "v"))
		hang := make(chan struct{})
		rec.Before = func(_ context.Context, cmds []redis.Cmder) {
			if strings.HasPrefix(cmds[0].Args()[1].(string), "hang") {
				<-hang
			}
		}
		var stuck sync.WaitGroup
		for i := range lanes.Min {
			stuck.Go(func() { holds(t, r, fmt.Sprint("hang", i), "") })
		}
		synctest.Wait()
		var callers sync.WaitGroup
		for range 5 {
			callers.Go(func() {
				start := time.Now()
				holds(t, r, "k", "v")
				require.LessOrEqual(t, time.Since(start), 2*lanes.OverdueAfter)
			})
		}
		callers.Wait()
		close(hang)
		stuck.Wait()
		synctest.Wait()
		require.Zero(t, underway(r))
	})
}

func TestLanesFollowTheRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r := open(t, srv, Config{})
		count := func() int {
			for range 50 {
				holds(t, r, "none", "")
			}
			return single(r).lanes.Count()
		}
		require.Equal(t, lanes.Min, count())
		srv.SetLatency(400 * time.Microsecond)
		require.InDelta(t, 8, count(), 1)
		srv.SetLatency(20 * time.Millisecond)
		require.Equal(t, maxLanes, count())
		srv.SetLatency(0)
		require.Equal(t, lanes.Min, count())
	})
}

// What conn says at once, as it does while the breaker is open, is no round trip.
func TestFailuresAreNoRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		r, _ := foreign(t, srv, Config{})
		srv.SetLatency(20 * time.Millisecond)
		holds(t, r, "none", "")
		require.Equal(t, maxLanes, single(r).lanes.Count())
		srv.SetLatency(0)
		srv.SetError("ERR no luck today")
		_, err := r.Get(t.Context(), "k")
		require.Error(t, err)
		for _, res := range r.GetMany(t.Context(), []string{"k", "l"}) {
			require.Error(t, res.Err)
		}
		synctest.Wait()
		require.Equal(t, maxLanes, single(r).lanes.Count())
	})
}

// A Cluster client that redisha did not make would send others' commands twice.
func TestReadsOfAForeignClusterClientTravelAlone(t *testing.T) {
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}, MaxRedirects: -1, PoolSize: 100})
	defer rdb.Close()
	rec := &redistest.Recorder{}
	rdb.AddHook(rec)
	cn, err := conn.Of(rdb)
	require.NoError(t, err)
	r := reader(t, cn, Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var callers sync.WaitGroup
	for range 20 {
		callers.Go(func() {
			_, err := r.Get(ctx, "k")
			require.Error(t, err)
		})
	}
	callers.Wait()
	require.Len(t, rec.Shipments(), 20)
	for _, res := range r.GetMany(ctx, []string{"k", "l", "m"}) {
		require.Error(t, res.Err)
	}
	require.Len(t, rec.Shipments(), 21)
}

// Of several reads one may take all the time: the others have their answers all the
// same.
func TestAnAnswerThatIsThereIsTakenWhenTheTimeIsOver(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	over := &slot{done: make(chan struct{})}
	r := &Reader{}
	for range 100 { // select takes any of its cases
		b := r.newBatch(over)
		b.departed, b.readers = true, 1
		b.reply.answers = append(b.reply.answers, answer{state: present, value: []byte("x")})
		b.holders.Store(2)
		require.True(t, b.end.come(answered))
		over.expire()
		over = &slot{done: make(chan struct{})}
		s := seat{queue: newQueue(r, ""), batch: b}
		granted, err := s.wait(ctx)
		require.NoError(t, err)
		require.False(t, granted.Admitted)
		v, again, err := s.take()
		require.NoError(t, err)
		require.False(t, again)
		require.Equal(t, "x", string(v.Bytes()))
	}
}
