package cache

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
)

func TestReadsOfAboutTheSameTimeShareATimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &budget{limit: 80 * time.Millisecond}
		type key struct{}
		caller := context.WithValue(t.Context(), key{}, "value")
		var wg sync.WaitGroup
		for range 10 { // one of them makes the slot
			wg.Go(func() { b.context(caller, time.Now()) })
		}
		wg.Wait()
		first := b.context(caller, time.Now())
		time.Sleep(10 * time.Millisecond)
		second := b.context(caller, time.Now())
		time.Sleep(time.Millisecond)
		third := b.context(caller, time.Now())
		require.Equal(t, first.Done(), second.Done())
		require.NotEqual(t, first.Done(), third.Done())
		require.Equal(t, "value", first.Value(key{}))

		for ctx, left := range map[context.Context]time.Duration{first: 69 * time.Millisecond, second: 79 * time.Millisecond, third: 80 * time.Millisecond} {
			deadline, ok := ctx.Deadline()
			require.True(t, ok)
			require.Equal(t, left, time.Until(deadline))
			require.NoError(t, ctx.Err())
		}
		hurried, cancel := context.WithTimeout(caller, time.Millisecond)
		defer cancel()
		deadline, _ := b.context(hurried, time.Now()).Deadline()
		require.Equal(t, time.Millisecond, time.Until(deadline), "the caller's deadline comes first")

		derived, cancelDerived := context.WithTimeout(second, time.Minute)
		defer cancelDerived()
		start := time.Now()
		<-derived.Done()
		require.Equal(t, 79*time.Millisecond, time.Since(start), "at the latest an eighth late: what waits for it ends too")
		require.ErrorIs(t, second.Err(), context.DeadlineExceeded)
		require.ErrorIs(t, context.Cause(derived), context.DeadlineExceeded)
		require.NoError(t, third.Err())
		b.stop()
	})
}

func TestABudgetWithoutReadsHasNothingToStop(t *testing.T) {
	require.NotPanics(t, new(budget).stop)
}

// All works alike on a client that redisha made. What it reads is not copied.
func TestAViewOnAClientOfOurOwn(t *testing.T) {
	_, rdb := newServer(t)
	opt := rdb.Options()
	ep, err := endpoint.Parse("redis://" + opt.Addr)
	require.NoError(t, err)
	own, err := conn.New(conn.Config{Role: "cache", Endpoint: ep, Dialer: opt.Dialer})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, own.Close()) })
	c := newClient(t, own, Config{})
	require.NoError(t, c.Check(t.Context()))
	raw := NewView[string, []byte](c, "raw", ViewConfig{Codec: Raw})
	texts := NewView[string, string](c, "text", ViewConfig{Codec: Raw})
	users := NewView[string, user](c, "user", ViewConfig{})
	for _, value := range []string{"", "short", string(kilobyte), string(kilobyte[:100]) + string(kilobyte)} {
		require.NoError(t, raw.Set(t.Context(), "k", []byte(value)))
		for range 2 {
			got, err := raw.Get(t.Context(), "k")
			require.NoError(t, err)
			require.NotNil(t, got)
			require.Equal(t, value, string(got))
			require.Equal(t, len(got), cap(got))
			for i := range got {
				got[i] = 'X' // it is the caller's
			}
		}
		require.NoError(t, texts.Set(t.Context(), "k", value))
		text, err := texts.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, value, text)
	}
	got, err := users.Fetch(t.Context(), "k", func(context.Context, string) (user, error) { return user{ID: 1}, nil })
	require.NoError(t, err)
	require.Equal(t, user{ID: 1}, got)
	require.NoError(t, users.Delete(t.Context(), "k", "l"))
	s := c.Stats()
	require.Equal(t, "cache", s.Conn.Role)
	require.EqualValues(t, 1, s.Conn.Commands.Latency[4].Count, "keys are deleted in one pipeline")
}
