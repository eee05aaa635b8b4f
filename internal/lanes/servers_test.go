package lanes

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

type fakeQueue struct {
	quiet    chan struct{}
	rejected sync.Once
}

func (q *fakeQueue) Close() <-chan struct{} { return q.quiet }
func (q *fakeQueue) Reject()                { q.rejected.Do(func() { close(q.quiet) }) }

func TestCloseWaitsUntilTheQueuesAreQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServers(nil, func(addr string) *fakeQueue {
			require.Empty(t, addr)
			return &fakeQueue{quiet: make(chan struct{})}
		})
		q, ok := s.Of(t.Context(), "any key")
		require.True(t, ok)
		require.Equal(t, []*fakeQueue{q}, s.All())
		require.False(t, s.Closed())

		cause := errors.New("no time")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, cause)
		defer cancel()
		start := time.Now()
		require.ErrorIs(t, s.Close(ctx), cause)
		require.Equal(t, time.Second, time.Since(start))
		require.True(t, s.Closed())
		_, open := <-q.quiet
		require.False(t, open, "what waited was rejected")

		require.NoError(t, s.Close(ctx), "it is quiet, and that ctx is over means nothing")
	})
}
