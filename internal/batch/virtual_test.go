package batch

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

func TestARequestTravelsWithItsCallersContextWhileALaneIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rec := foreign(t, testserver.New(t))
		ctx := context.WithValue(t.Context(), ctxKey{}, "mine")
		require.NoError(t, b.Do(ctx, "k", words("set", "k", "v"))[0].Err())
		cmds := b.DoBypass(ctx, "k", words("get", "k"), words("get", "none"), words("lpush", "k", "x"))
		require.Len(t, cmds, 3)
		require.Equal(t, "v", cmds[0].Val())
		require.Equal(t, redis.Nil, cmds[1].Err())
		require.ErrorContains(t, cmds[2].Err(), "WRONGTYPE")
		sent := rec.Shipments()
		require.Len(t, sent, 2)
		for _, s := range sent {
			require.Equal(t, "mine", s.Ctx.Value(ctxKey{}))
		}
	})
}

func TestWaitingRequestsShareAPipelineAndStayTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rec := foreign(t, testserver.New(t))
		free := occupy(single(b))
		var callers sync.WaitGroup
		for i := range 10 {
			callers.Go(func() {
				key := fmt.Sprint("k", i)
				cmds := b.Do(t.Context(), key, words("set", key, i), words("get", key), words("get", "none"), words("lpush", key, "x"))
				require.Len(t, cmds, 4)
				require.Equal(t, "OK", cmds[0].Val())
				require.Equal(t, fmt.Sprint(i), cmds[1].Val())
				require.Equal(t, redis.Nil, cmds[2].Err())
				require.ErrorContains(t, cmds[3].Err(), "WRONGTYPE")
			})
		}
		synctest.Wait()
		require.Empty(t, rec.Shipments())
		free()
		callers.Wait()
		sent := rec.Shipments()
		require.Len(t, sent, 1)
		require.Len(t, sent[0].Commands, 40)
		for i := 0; i < 40; i += 4 {
			key := sent[0].Commands[i][1]
			require.Equal(t, []any{"set", "get", "get", "lpush"}, []any{sent[0].Commands[i][0], sent[0].Commands[i+1][0], sent[0].Commands[i+2][0], sent[0].Commands[i+3][0]})
			require.Equal(t, []any{key, "none", key}, []any{sent[0].Commands[i+1][1], sent[0].Commands[i+2][1], sent[0].Commands[i+3][1]})
		}
	})
}

func TestWhoWaitsAloneSendsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rec := foreign(t, testserver.New(t))
		free := occupy(single(b))
		var caller sync.WaitGroup
		caller.Go(func() {
			ctx := context.WithValue(t.Context(), ctxKey{}, "mine")
			require.NoError(t, b.Do(ctx, "k", words("set", "k", "v"))[0].Err())
		})
		synctest.Wait()
		free()
		caller.Wait()
		require.Equal(t, "mine", rec.Shipments()[0].Ctx.Value(ctxKey{}))
	})
}

func TestBypassingRequestsHavePipelinesOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rec := foreign(t, testserver.New(t))
		free := occupy(single(b))
		var callers sync.WaitGroup
		for i := range 6 {
			callers.Go(func() {
				send := b.Do
				if i%2 == 1 {
					send = b.DoBypass
				}
				require.NoError(t, send(t.Context(), "k", words("set", fmt.Sprint("k", i), i%2))[0].Err())
			})
		}
		synctest.Wait()
		free()
		callers.Wait()
		sent := rec.Shipments()
		require.Len(t, sent, 2)
		for _, s := range sent {
			require.Len(t, s.Commands, 3)
			for _, cmd := range s.Commands {
				require.Equal(t, s.Commands[0][2], cmd[2])
			}
		}
	})
}

func TestBypassingRequestsPassAnOpenBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		cn := own(t, conn.Config{Dialer: srv.Dial, Breaker: breaker.Config{OpenFor: time.Hour}}, "redis://127.0.0.1:6379?pool_size=1024")
		b := batcher(t, cn)
		srv.Stop()
		for cn.Stats().Breaker.State != "open" {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			b.Do(ctx, "k", words("get", "k"))
			cancel()
		}
		require.NoError(t, srv.Restart())
		free := occupy(single(b))
		var callers sync.WaitGroup
		for range 3 {
			callers.Go(func() { require.NoError(t, b.DoBypass(t.Context(), "k", words("set", "k", "v"))[0].Err()) })
			callers.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				require.ErrorIs(t, b.Do(ctx, "k", words("set", "k", "v"))[0].Err(), context.DeadlineExceeded)
			})
		}
		synctest.Wait()
		free()
		callers.Wait()
		require.NoError(t, b.DoBypass(t.Context(), "k", words("get", "k"))[0].Err())
		time.Sleep(2 * time.Second) // after failed dials, go-redis looks once a second whether it is closed
	})
}

func TestACallerWhoLeavesWhileItWaitsHasSentNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rec := foreign(t, testserver.New(t))
		free := occupy(single(b))
		var callers sync.WaitGroup
		ctx, cancel := context.WithCancelCause(t.Context())
		for i := range 3 {
			callers.Go(func() {
				if i > 0 {
					require.NoError(t, b.Do(t.Context(), "k", words("set", "k", i))[0].Err())
					return
				}
				start := time.Now()
				cmds := b.Do(ctx, "k", words("set", "gone", 1), words("get", "gone"))
				require.Len(t, cmds, 2)
				for _, cmd := range cmds {
					require.ErrorIs(t, cmd.Err(), ErrNotSent)
					require.ErrorIs(t, cmd.Err(), errLeft)
					require.NotErrorIs(t, cmd.Err(), conn.ErrOutcomeUnknown)
				}
				require.Equal(t, time.Millisecond, time.Since(start))
			})
		}
		synctest.Wait()
		time.Sleep(time.Millisecond)
		cancel(errLeft)
		synctest.Wait()
		free()
		callers.Wait()
		for _, s := range rec.Shipments() {
			for _, cmd := range s.Commands {
				require.Equal(t, "k", cmd[1])
			}
		}
	})
}

func TestACallerWhoLeavesAsItsTurnComesGivesItOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rec := foreign(t, testserver.New(t))
		sent := 0
		for range 300 {
			free := occupy(single(b))
			ctx, cancel := context.WithCancel(t.Context())
			var caller sync.WaitGroup
			caller.Go(func() {
				if err := b.Do(ctx, "k", words("set", "k", "v"))[0].Err(); errors.Is(err, ErrNotSent) {
					return
				}
				sent++
			})
			synctest.Wait()
			free()
			cancel()
			caller.Wait()
			synctest.Wait()
			require.Zero(t, underway(b))
		}
		require.Len(t, rec.Shipments(), sent)
	})
}

var errLeft = errors.New("left")

func TestACallerWhoLeavesAPipelineDisturbsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		b := open(t, srv)
		require.NoError(t, b.Do(t.Context(), "k", words("set", "k", "v"))[0].Err())
		dials := b.cn.Stats().Dials
		free := occupy(single(b))
		srv.Hang(true)
		var callers sync.WaitGroup
		ctx, cancel := context.WithCancelCause(t.Context())
		for i := range 3 {
			callers.Go(func() {
				start := time.Now()
				if i > 0 {
					require.Equal(t, "v", b.Do(t.Context(), "k", words("get", "k"))[0].Val())
					require.Equal(t, 2*time.Second, time.Since(start))
					return
				}
				err := b.Do(ctx, "k", words("incr", "n"))[0].Err()
				require.ErrorIs(t, err, conn.ErrOutcomeUnknown)
				require.ErrorIs(t, err, errLeft)
				require.NotErrorIs(t, err, ErrNotSent)
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
		synctest.Wait()
		n, err := srv.Get("n")
		require.NoError(t, err)
		require.Equal(t, "1", n)
		require.Equal(t, dials, b.cn.Stats().Dials)
	})
}

func TestAPipelineEndsWhenAllItsCallersHaveLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		b := open(t, srv)
		free := occupy(single(b))
		srv.SetLoading(time.Hour) // which conn repeats
		var callers sync.WaitGroup
		for i := range 3 {
			callers.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i+1)*time.Second)
				defer cancel()
				start := time.Now()
				err := b.Do(ctx, "k", words("get", "k"))[0].Err()
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.Equal(t, time.Duration(i+1)*time.Second, time.Since(start))
			})
		}
		synctest.Wait()
		free()
		callers.Wait()
		require.NoError(t, b.Close(t.Context()))
		synctest.Wait()
		require.Equal(t, 0, underway(b))
	})
}

func underway(b *Batcher) int {
	single(b).mu.Lock()
	defer single(b).mu.Unlock()
	n := single(b).lanes.UnderWay()
	return n[0] + n[1] + n[2]
}

func TestAPipelineLastsAsLongAsOneCallerWaits(t *testing.T) {
	for _, endless := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			srv := testserver.New(t)
			b := open(t, srv)
			free := occupy(single(b))
			srv.SetLoading(20 * time.Second)
			var callers sync.WaitGroup
			for i := range 3 {
				callers.Go(func() {
					ctx := t.Context()
					if i < 2 || !endless {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, time.Duration(1+i*29/2)*time.Second) // 1 s, 15 s, 30 s
						defer cancel()
					}
					err := b.Do(ctx, "k", words("set", "k", "v"))[0].Err()
					if i < 2 {
						require.ErrorIs(t, err, context.DeadlineExceeded)
					} else {
						require.NoError(t, err)
					}
				})
			}
			synctest.Wait()
			free()
			callers.Wait()
		})
	}
}

// A command that is sent again holds up neither others of its pipeline nor those
// that come after them.
func TestWhatIsSentAgainHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		b := open(t, srv)
		require.NoError(t, b.Do(t.Context(), "k", words("set", "k", "v"))[0].Err())
		srv.SetError("TRYAGAIN Multiple keys request during rehashing of slot", "HSET")
		free := occupy(single(b))
		var callers, refused sync.WaitGroup
		for i := range 10 {
			if i == 5 {
				refused.Go(func() {
					cmds := b.Do(t.Context(), "h", words("hset", "h", "f", 1), words("hget", "h", "f"))
					require.NoError(t, cmds[0].Err())
					require.Equal(t, "1", cmds[1].Val(), "the read was repeated behind the write")
				})
			}
			callers.Go(func() {
				start := time.Now()
				cmds := b.Do(t.Context(), "k", words("get", "k"), words("get", "none"))
				require.Equal(t, "v", cmds[0].Val())
				require.Equal(t, redis.Nil, cmds[1].Err())
				require.Zero(t, time.Since(start))
			})
		}
		synctest.Wait()
		free()
		callers.Wait()
		for range 20 { // all lanes have such a pipeline or request
			refused.Go(func() { require.NoError(t, b.Do(t.Context(), "h", words("hset", "h", "f", 1))[0].Err()) })
		}
		synctest.Wait()
		start := time.Now()
		require.Equal(t, "v", b.Do(t.Context(), "k", words("get", "k"))[0].Val())
		require.LessOrEqual(t, time.Since(start), 2*lanes.OverdueAfter)
		srv.SetError("", "HSET")
		refused.Wait()
	})
}

func TestAPipelineHasBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rec := foreign(t, testserver.New(t))
		free := occupy(single(b))
		var callers sync.WaitGroup
		value := strings.Repeat("x", 100<<10)
		for i := range 6 {
			callers.Go(func() { require.NoError(t, b.Do(t.Context(), "k", words("set", fmt.Sprint(i), value))[0].Err()) })
		}
		many := make([][]any, 200)
		for i := range many {
			many[i] = words("set", fmt.Sprint(i), i)
		}
		for range 6 {
			callers.Go(func() { require.Len(t, b.Do(t.Context(), "k", many...), 200) })
		}
		synctest.Wait()
		start := time.Now()
		require.NoError(t, b.Do(t.Context(), "k", words("set", "k", strings.Repeat("x", maxBytes+1)))[0].Err())
		require.Len(t, b.Do(t.Context(), "k", append(many, append(many, many...)...)...), 600)
		require.Zero(t, time.Since(start), "what is above the bounds does not wait")
		require.Len(t, rec.Shipments(), 2)
		free()
		callers.Wait()
		sent := rec.Shipments()[2:]
		require.GreaterOrEqual(t, len(sent), 3)
		for _, s := range sent {
			bytes, _ := size(s.Commands)
			require.LessOrEqual(t, bytes, maxBytes)
			require.LessOrEqual(t, len(s.Commands), maxCommands)
		}
	})
}

type unwritable struct{}

func (unwritable) MarshalBinary() ([]byte, error) { return nil, errors.New("no bytes today") }

func TestAWordThatFailsSpoilsNoPipeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := foreign(t, testserver.New(t))
		free := occupy(single(b))
		var callers sync.WaitGroup
		for _, word := range []any{"v", unwritable{}, struct{}{}, "v"} {
			callers.Go(func() {
				err := b.Do(t.Context(), "k", words("set", "k", word))[0].Err()
				if word == "v" {
					require.NoError(t, err)
				} else {
					require.Error(t, err)
				}
			})
		}
		synctest.Wait()
		free()
		callers.Wait()
	})
}

func TestWhatCannotBeSentSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rec := foreign(t, testserver.New(t))
		require.Empty(t, b.Do(t.Context(), "k"))
		var none context.Context
		require.ErrorContains(t, b.Do(none, "k", words("ping"))[0].Err(), "nil context")
		require.ErrorContains(t, b.DoBypass(none, "k", words("ping"))[0].Err(), "nil context")
		require.ErrorContains(t, b.Do(t.Context(), "k", words("ping"), nil)[0].Err(), "command 2 of 2 has no words")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errLeft)
		err := b.Do(ctx, "k", words("ping"))[0].Err()
		require.ErrorIs(t, err, ErrNotSent)
		require.ErrorIs(t, err, errLeft)
		require.Empty(t, rec.Shipments())
	})
}

func TestCloseWaitsForWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := foreign(t, testserver.New(t))
		free := occupy(single(b))
		var callers sync.WaitGroup
		for range 5 {
			callers.Go(func() { require.NoError(t, b.Do(t.Context(), "k", words("set", "k", "v"))[0].Err()) })
		}
		synctest.Wait()
		callers.Go(func() { require.NoError(t, b.Close(t.Context())) })
		synctest.Wait()
		for _, err := range []error{ErrNotSent, conn.ErrClosed} {
			require.ErrorIs(t, b.Do(t.Context(), "k", words("get", "k"))[0].Err(), err)
		}
		free()
		callers.Wait()
		require.NoError(t, b.Close(t.Context()))
	})
}

func TestCloseRefusesWhatWaitsWhenItsTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		b := open(t, srv)
		var callers sync.WaitGroup
		call := func(kinds ...error) {
			callers.Go(func() {
				err := b.Do(t.Context(), "k", words("incr", "k"))[0].Err()
				for _, kind := range kinds {
					require.ErrorIs(t, err, kind)
				}
			})
		}
		free := occupy(single(b))
		srv.SetLoading(time.Hour)
		call(context.Canceled, conn.ErrClosed)
		call(context.Canceled, conn.ErrClosed)
		synctest.Wait()
		free() // these two travel together
		synctest.Wait()
		free = occupy(single(b))
		call(ErrNotSent, conn.ErrClosed)
		call(ErrNotSent, conn.ErrClosed)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		require.ErrorIs(t, b.Close(ctx), context.DeadlineExceeded)
		callers.Wait()
		free()
		require.NoError(t, b.Close(t.Context()))
	})
}

func TestCloseWithoutAnythingUnderWayNeedsNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := foreign(t, testserver.New(t))
		require.NoError(t, b.Do(t.Context(), "k", words("set", "k", "v"))[0].Err())
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 100 {
			require.NoError(t, b.Close(ctx))
		}
	})
}

func TestAPanicInAHookFailsItsPipelineAndNoOther(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("boom") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, rec := open(t, testserver.New(t)), &redistest.Recorder{}
				b.cn.AddHook(rec)
				rec.Before = func(_ context.Context, cmds []redis.Cmder) {
					if len(cmds) == 3 {
						end()
					}
				}
				for range 5 { // more than there are lanes
					free := occupy(single(b))
					var callers sync.WaitGroup
					for range 3 {
						callers.Go(func() {
							require.ErrorIs(t, b.Do(t.Context(), "k", words("incr", "k"))[0].Err(), conn.ErrOutcomeUnknown)
						})
					}
					synctest.Wait()
					free()
					callers.Wait()
					synctest.Wait()
				}
				require.Zero(t, underway(b))
				require.NoError(t, b.Do(t.Context(), "k", words("set", "k", "v"))[0].Err())

				rec.Before = func(context.Context, []redis.Cmder) { end() }
				var caller sync.WaitGroup
				caller.Go(func() {
					defer func() { _ = recover() }()
					b.Do(t.Context(), "k", words("get", "k"))
					t.Error("a request of its own does not hide what its caller did")
				})
				caller.Wait()
				require.Zero(t, underway(b))
			})
		})
	}
}

// Else it would seem to have been refused, though it was sent once more.
func TestAPanicInARepetitionLeavesTheOutcomeUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		b, rec := open(t, srv), &redistest.Recorder{}
		b.cn.AddHook(rec)
		free := occupy(single(b))
		srv.SetError("TRYAGAIN Multiple keys request during rehashing of slot", "SET")
		rec.Before = func(context.Context, []redis.Cmder) {
			if len(rec.Shipments()) == 2 {
				panic("boom")
			}
		}
		var callers sync.WaitGroup
		for range 3 {
			callers.Go(func() {
				cmds := b.Do(t.Context(), "k", words("set", "k", "v"), words("get", "none"))
				require.ErrorIs(t, cmds[0].Err(), conn.ErrOutcomeUnknown)
			})
		}
		synctest.Wait()
		free()
		callers.Wait()
	})
}

func TestLanesFollowTheRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		b := open(t, srv)
		count := func() int {
			for range 50 {
				require.NoError(t, b.Do(t.Context(), "k", words("set", "k", "v"))[0].Err())
			}
			return single(b).lanes.Count()
		}
		require.Equal(t, lanes.Min, count())
		srv.SetLatency(300 * time.Microsecond)
		require.InDelta(t, 6, count(), 1)
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
		b, _ := foreign(t, srv)
		srv.SetLatency(20 * time.Millisecond)
		for range 50 {
			b.Do(t.Context(), "k", words("set", "k", "v"))
		}
		require.Equal(t, maxLanes, single(b).lanes.Count())
		srv.SetLatency(0)
		srv.SetError("OOM command not allowed when used memory > 'maxmemory'")
		require.Error(t, b.Do(t.Context(), "k", words("set", "k", "v"))[0].Err())
		require.Equal(t, maxLanes, single(b).lanes.Count())
	})
}
