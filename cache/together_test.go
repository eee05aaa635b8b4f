package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/testserver"
)

// Reads that find all lanes taken travel in one batch.

// A gate is a hook that holds each GET back until it is opened.
type gate chan struct{}

func (g gate) DialHook(next redis.DialHook) redis.DialHook { return next }

func (g gate) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "get" {
			<-g
		}
		return next(ctx, cmd)
	}
}

func (g gate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// newOwn returns a client as redisha makes them. It works in a bubble.
func newOwn(t testing.TB, s *testserver.Server) *conn.Client {
	ep, err := endpoint.Parse("redis://127.0.0.1:6379?pool_size=1024")
	require.NoError(t, err)
	cn, err := conn.New(conn.Config{
		Role: "cache", Endpoint: ep, FailFast: true,
		Dialer: s.Dial,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cn.Close()) })
	return cn
}

// together runs reads while both lanes to the server are taken by others.
func together(v *View[string, []byte], rdb redis.UniversalClient, reads ...func()) {
	synctest.Wait() // what flew before has given its lane back
	held := make(gate)
	rdb.AddHook(held)
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() { _, _ = v.Get(context.Background(), fmt.Sprint("lane ", i)) })
	}
	synctest.Wait()
	for _, read := range reads {
		wg.Go(read)
		synctest.Wait()
	}
	close(held)
	wg.Wait()
}

// What a caller gets is its own, whoever else has read the same, and whatever is
// read into the same memory later.
func TestWhatIsReadTogetherIsEachCallersOwn(t *testing.T) {
	for _, own := range []bool{true, false} {
		for _, minCompress := range []int{-1, 1} {
			t.Run(fmt.Sprintf("own client %t, compressed from %d", own, minCompress), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s, foreign := newServer(t)
					rdb := redis.UniversalClient(foreign)
					if own {
						rdb = newOwn(t, s)
					}
					c := newClient(t, rdb, Config{MinCompressBytes: minCompress})
					v := NewView[string, []byte](c, "v", ViewConfig{Codec: Raw, Plain: true})
					const callers, keys, rounds = 30, 10, 3
					for key := range keys {
						require.NoError(t, v.Set(t.Context(), fmt.Sprint(key), []byte(strings.Repeat(fmt.Sprint(key), 100))))
					}
					kept := make([][]byte, rounds*callers)
					polled := make([][]byte, rounds)
					for round := range rounds {
						var reads []func()
						for i := range callers {
							reads = append(reads, func() {
								got, err := v.Get(t.Context(), fmt.Sprint(i%keys))
								if err != nil || string(got) != strings.Repeat(fmt.Sprint(i%keys), 100) {
									t.Errorf("caller %d: %q, %v", i, got, err)
									return
								}
								for at := range got {
									got[at] = byte(i)
								}
								kept[round*callers+i] = got
							})
						}
						reads = append(reads, func() {
							polled[round], _ = c.poll(t.Context(), v.prefix+"polled")
						})
						require.NoError(t, rdb.Set(t.Context(), v.prefix+"polled", fmt.Sprint("in round ", round), time.Hour).Err())
						together(v, rdb, reads...)
					}
					for i, got := range kept {
						require.Equal(t, bytes.Repeat([]byte{byte(i % callers)}, 100), got)
					}
					for i, got := range polled {
						require.Equal(t, fmt.Sprint("in round ", i), string(got), "a flight keeps it")
					}
					st := c.Stats()
					require.EqualValues(t, rounds, st.Batches)
					require.EqualValues(t, rounds*(keys+1), st.BatchKeys, "equal keys are read once")
					require.EqualValues(t, rounds*callers, st.Hits)
				})
			})
		}
	}
}

// Those who wait for a server that hangs leave in time, each by its own context.
func TestWhoWaitsForItsTurnWaitsNoLongerThanAReadTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, blackHole(t), Config{ReadTimeout: 250 * time.Millisecond})
		v := NewView[string, string](c, "v", ViewConfig{})
		why := errors.New("gone")
		hurried, cancel := context.WithCancelCause(t.Context())
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				_, err := v.Get(t.Context(), fmt.Sprint(i))
				if err == nil || !strings.Contains(err.Error(), "no answer within 250ms (Config.ReadTimeout)") {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		wg.Go(func() {
			_, err := v.Get(hurried, "hurried")
			if !errors.Is(err, why) || time.Since(start) != time.Millisecond {
				t.Error(err, time.Since(start))
			}
		})
		time.Sleep(time.Millisecond)
		cancel(why)
		wg.Wait()
		require.LessOrEqual(t, time.Since(start), 250*time.Millisecond*9/8)
		require.EqualValues(t, 20, c.Stats().Errors, "who leaves is no error")
	})
}

func TestCloseWaitsForReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		held := make(gate)
		rdb.AddHook(held)
		c, err := New(rdb, Config{ReadTimeout: time.Minute, CloseTimeout: time.Second})
		require.NoError(t, err)
		v := NewView[string, string](c, "v", ViewConfig{})
		results := make(chan error, 20)
		for i := range cap(results) {
			go func() {
				_, err := v.Get(t.Context(), fmt.Sprint(i))
				results <- err
			}()
		}
		synctest.Wait()
		closed := make(chan error, 1)
		go func() { closed <- c.Close() }()
		synctest.Wait()
		require.Empty(t, closed)
		close(held)
		require.NoError(t, <-closed)
		for range cap(results) {
			require.Equal(t, ErrMiss, <-results)
		}
		require.NoError(t, c.Close())
	})
}

func TestCloseDoesNotWaitForReadsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		held := make(gate)
		rdb.AddHook(held)
		c, err := New(rdb, Config{ReadTimeout: time.Minute, CloseTimeout: time.Second})
		require.NoError(t, err)
		v := NewView[string, string](c, "v", ViewConfig{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = v.Get(t.Context(), "k")
		}()
		synctest.Wait()
		start := time.Now()
		require.ErrorContains(t, c.Close(), "cache: close: after 1s (Config.CloseTimeout): reads still under way")
		require.Equal(t, time.Second, time.Since(start))
		_, err = v.Get(t.Context(), "k")
		require.ErrorIs(t, err, ErrClosed)
		close(held)
		<-done
	})
}
