package batch

import (
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

func TestEachRequestGetsItsOwnReplies(t *testing.T) {
	cn := ownClient(t, redistest.Shared(t).Addr())
	b := New(cn)
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			for n := range 200 {
				key := "k" + strconv.Itoa(i%8)
				v := fmt.Sprint(i, n)
				cmds := b.Do(t.Context(), key, []any{"set", key, v}, []any{"get", key}, []any{"get", "none"}, []any{"lpush", key, "x"})
				require.NoError(t, cmds[0].Err())
				require.Equal(t, v, cmds[1].Val())
				require.EqualError(t, cmds[2].Err(), "redis: nil")
				require.ErrorContains(t, cmds[3].Err(), "WRONGTYPE")
			}
		})
	}
	all.Wait()
	require.NoError(t, b.Close(t.Context()))
}
