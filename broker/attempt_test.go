package broker

import (
	"context"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// newTestAttempt returns the context of a handler, and its lease.
func newTestAttempt(parent context.Context, timeout time.Duration) (*attempt, *lease) {
	l := &lease{}
	l.ctx, l.cancel = context.WithCancelCause(parent)
	a := &attempt{lease: l, r: &run{}, place: -1}
	if timeout > 0 {
		a.deadline = time.Now().Add(timeout)
	}
	return a, l
}

type parentKey struct{}

func TestAHandlersContextIsLikeOneOfPackageContext(t *testing.T) {
	ends := map[string]struct {
		end        func(a *attempt, l *lease)
		err, cause error
	}{
		"deadline":  {func(*attempt, *lease) { time.Sleep(time.Second) }, context.DeadlineExceeded, context.DeadlineExceeded},
		"lease":     {func(_ *attempt, l *lease) { l.cancel(ErrLeaseLost) }, context.Canceled, ErrLeaseLost},
		"cancelled": {func(a *attempt, _ *lease) { a.end(context.Canceled, ErrCancelled) }, context.Canceled, ErrCancelled},
		"over":      {func(a *attempt, _ *lease) { a.over() }, context.Canceled, context.Canceled},
	}
	for name, test := range ends {
		for _, watched := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				a, l := newTestAttempt(context.WithValue(t.Context(), parentKey{}, "value"), time.Second)
				defer l.cancel(nil)
				require.Equal(t, "value", a.Value(parentKey{}))
				require.Same(t, &a.delivery, FromContext(a))
				deadline, ok := a.Deadline()
				require.Equal(t, []any{true, time.Second}, []any{ok, time.Until(deadline)})
				require.NoError(t, a.Err())
				require.NoError(t, context.Cause(a))
				var child context.Context
				called := make(chan struct{})
				var cancel context.CancelFunc
				if watched {
					child, cancel = context.WithCancel(a)
					context.AfterFunc(a, func() { close(called) })
					never := context.AfterFunc(a, func() { t.Error("it was stopped") })
					require.True(t, never())
					require.False(t, never())
				}
				test.end(a, l)
				synctest.Wait()
				if !watched {
					child, cancel = context.WithCancel(a)
					context.AfterFunc(a, func() { close(called) })
				}
				defer cancel()
				<-a.Done()
				<-child.Done()
				<-called
				for _, ctx := range []context.Context{a, child} {
					require.Equal(t, test.err, ctx.Err(), name)
					require.Equal(t, test.cause, context.Cause(ctx), name)
					require.Equal(t, "value", ctx.Value(parentKey{}))
				}
				a.over() // nothing more
				require.Equal(t, test.err, a.Err())
				synctest.Wait()
				require.Empty(t, l.watched)
				require.Empty(t, a.r.deadlines.heap)
			})
		}
	}
}

func TestErrTellsTheEndWithoutDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, l := newTestAttempt(t.Context(), time.Second)
		time.Sleep(time.Second - 1)
		require.NoError(t, a.Err())
		time.Sleep(time.Nanosecond)
		require.Equal(t, context.DeadlineExceeded, a.Err())
		l.cancel(ErrLeaseLost)
		require.Equal(t, context.DeadlineExceeded, a.Err(), "it stays")
		require.Equal(t, context.DeadlineExceeded, context.Cause(a))

		b, l := newTestAttempt(t.Context(), 0)
		_, ok := b.Deadline()
		require.False(t, ok)
		l.cancel(ErrLeaseLost)
		require.Equal(t, ErrLeaseLost, context.Cause(b))
		require.Equal(t, context.Canceled, b.Err())
	})
}

// Deadlines end exactly on time, in whatever order they are added and removed.
func TestDeadlinesEndOnTime(t *testing.T) {
	random := seeded(t)
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			r, start := &run{}, time.Now()
			l := &lease{}
			l.ctx, l.cancel = context.WithCancelCause(context.Background())
			type one struct {
				a       *attempt
				end, at time.Duration
			}
			var all []*one
			for range 1 + random.IntN(20) {
				o := &one{end: time.Duration(1+random.IntN(50)) * time.Millisecond}
				o.a = &attempt{lease: l, r: r, place: -1, deadline: start.Add(o.end)}
				context.AfterFunc(o.a, func() { o.at = time.Since(start) })
				all = append(all, o)
			}
			for _, o := range all {
				if random.IntN(2) == 0 {
					o.a.over()
					o.end = 0
				}
			}
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			for _, o := range all {
				require.Equal(t, o.end, o.at)
			}
			require.Empty(t, r.deadlines.heap)
			require.Zero(t, r.deadlines.at)
			l.cancel(nil)
		}
	})
}

// seeded returns a source of randomness whose seed is in the test's log.
func seeded(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
