package lock

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestReleasesOfOneMomentShareTheirBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		var b bounder
		ended, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
		cancel()
		var last context.Context
		for range 20 {
			ctx := b.bound(ended)
			require.NoError(t, ctx.Err(), "it does not heed the end of its parent")
			require.Equal(t, "value", ctx.Value(key{}))
			deadline, ok := ctx.Deadline()
			require.True(t, ok)
			require.LessOrEqual(t, time.Until(deadline), releaseTimeout)
			require.Greater(t, time.Until(deadline), releaseTimeout-boundShare)
			last = ctx
			time.Sleep(70 * time.Millisecond)
		}
		child, stop := context.WithCancel(last)
		defer stop()
		time.Sleep(releaseTimeout)
		require.ErrorIs(t, last.Err(), context.DeadlineExceeded)
		require.ErrorIs(t, child.Err(), context.DeadlineExceeded)
	})
}
