package result

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/redisha/redisha/internal/redistest/both"
)

// TestStoreFollowsItsModel draws sequences of calls on one ID and compares each
// verdict, and what is stored then, with what the documentation says.
func TestStoreFollowsItsModel(t *testing.T) {
	var run atomic.Int64
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newClient(t, rdb, Config{})
		rapid.Check(t, func(t *rapid.T) {
			id := fmt.Sprint("model-", run.Add(1))
			var there *Record
			verdict := func(r Record) bool {
				switch {
				case there == nil:
					return true
				case there.State.Final():
					return same(*there, r)
				case r.Fence != there.Fence:
					return r.Fence > there.Fence
				}
				return r.Attempt >= there.Attempt
			}
			t.Repeat(map[string]func(*rapid.T){
				"": func(t *rapid.T) {
					got, err := c.Get(t.Context(), id)
					require.NoError(t, err)
					if there == nil {
						require.Equal(t, Record{ID: id}, got)
						return
					}
					require.Equal(t, *there, got)
				},
				"store": func(t *rapid.T) {
					r := smallRecord(t, id)
					want := verdict(r)
					stored, err := c.Store(t.Context(), r)
					require.NoError(t, err)
					require.Equal(t, want, stored, "%+v over %+v", r, there)
					if want {
						there = &r
					}
				},
				"store many": func(t *rapid.T) {
					batch := make([]Record, rapid.IntRange(1, 5).Draw(t, "n"))
					for i := range batch {
						batch[i] = smallRecord(t, id)
					}
					verdicts, err := c.StoreMany(t.Context(), batch)
					require.NoError(t, err)
					for i, r := range batch {
						want := verdict(r)
						require.Equal(t, Verdict{Stored: want}, verdicts[i])
						if want {
							there = &r
						}
					}
				},
				"again": func(t *rapid.T) {
					if there == nil {
						t.Skip("nothing to repeat")
					}
					stored, err := c.Store(t.Context(), *there)
					require.NoError(t, err)
					require.True(t, stored, "what is there was stored")
				},
				"forget": func(t *rapid.T) {
					if rapid.IntRange(0, 9).Draw(t, "dice") > 0 {
						t.Skip("rarely")
					}
					require.NoError(t, c.Forget(t.Context(), id))
					there = nil
				},
			})
		})
	})
}

func smallRecord(t *rapid.T, id string) Record {
	return Record{
		ID: id,
		// Mostly not final, or the rest of a sequence would be refusals.
		State:   rapid.SampledFrom([]State{Pending, Started, Started, Progress, Progress, Retry, Retry, Success, Failure}).Draw(t, "state"),
		Fence:   uint64(rapid.SampledFrom([]int{0, 0, 0, 1, 256}).Draw(t, "fence")),
		Attempt: rapid.SampledFrom([]int{1, 1, 2, 3, 256, 257}).Draw(t, "attempt"),
		Value:   []byte(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "value")),
	}
}

func same(a, b Record) bool {
	return a.State == b.State && a.Fence == b.Fence && a.Attempt == b.Attempt && string(a.Value) == string(b.Value)
}
