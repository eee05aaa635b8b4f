package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// A client is closed while each operation is under way, values are refreshed, Deletes
// are owed, and a server tells of changes: all return in time, with what they were
// called for or ErrClosed, and nothing is left running (the bubble would not end).
func TestCloseDuringEverything(t *testing.T) {
	for name, ail := range map[string]func(s *testserver.Server){
		"a slow server":    func(s *testserver.Server) { s.SetLatency(30 * time.Millisecond) },
		"one that hangs":   func(s *testserver.Server) { s.Hang(true) },
		"one that is away": func(s *testserver.Server) { s.Stop() },
		"one that is full": func(s *testserver.Server) { s.SetError("OOM command not allowed", "set", "eval", "evalsha") },
		"a healthy one":    func(*testserver.Server) {},
		"one that comes": func(s *testserver.Server) {
			s.Hang(true)
			time.AfterFunc(300*time.Millisecond, func() { s.Hang(false) })
		},
		"one that loses it": func(s *testserver.Server) {
			s.SetLatency(30 * time.Millisecond)
			time.AfterFunc(300*time.Millisecond, s.Stop)
		},
	} {
		for _, cfg := range []ViewConfig{
			{TTL: 200 * time.Millisecond, StaleFor: time.Hour, LocalEntries: 10, LocalMaxAge: 50 * time.Millisecond},
			{TTL: 200 * time.Millisecond, StaleFor: time.Hour, Tags: true, LocalEntries: 10, SoftLoadTimeout: time.Second},
			{Plain: true},
		} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := testserver.New(t)
					rdb := newOwn(t, s)
					c, err := New(rdb, Config{CloseTimeout: 2 * time.Second})
					require.NoError(t, err)
					v := NewView[int, string](c, "v", cfg)
					require.NoError(t, v.SetMany(t.Context(), map[int]string{1: "there", 2: "there", 3: "there"}))
					ail(s)
					began := time.Now()
					returns := func(what string, err error) {
						if errors.Is(err, ErrClosed) || time.Since(began) < 500*time.Millisecond {
							return
						}
						if time.Since(began) > 3*time.Second+500*time.Millisecond {
							t.Errorf("%s returned after %s: %v", what, time.Since(began), err)
						}
					}
					load := func(ctx context.Context, key int) (string, error) {
						select {
						case <-time.After(time.Duration(key) * 100 * time.Millisecond):
							return "loaded", nil
						case <-ctx.Done():
							return "", ctx.Err()
						}
					}
					ops := map[string]func(ctx context.Context, key int) error{
						"Get":     func(ctx context.Context, key int) error { _, err := v.Get(ctx, key); return err },
						"GetMany": func(ctx context.Context, key int) error { return v.GetMany(ctx, []int{key, key + 1})[1].Err },
						"Fetch":   func(ctx context.Context, key int) error { _, err := v.Fetch(ctx, key, load); return err },
						"FetchMany": func(ctx context.Context, key int) error {
							_, err := v.FetchMany(ctx, []int{key, key + 1, key + 2}, func(ctx context.Context, missing []int) (map[int]string, error) {
								_, err := load(ctx, len(missing))
								return map[int]string{key: "loaded"}, err
							})
							return err
						},
						"Set": func(ctx context.Context, key int) error { return v.Set(ctx, key, "set") },
						"SetMany": func(ctx context.Context, key int) error {
							return v.SetMany(ctx, map[int]string{key: "set", key + 1: "set"})
						},
						"Add":       func(ctx context.Context, key int) error { _, err := v.Add(ctx, key, "added"); return err },
						"Replace":   func(ctx context.Context, key int) error { _, err := v.Replace(ctx, key, "replaced"); return err },
						"Delete":    func(ctx context.Context, key int) error { return v.Delete(ctx, key, key+1) },
						"DeleteFor": func(ctx context.Context, key int) error { return v.DeleteFor(ctx, 50*time.Millisecond, key) },
						"Expire":    func(ctx context.Context, key int) error { return v.Expire(ctx, key) },
						"Lookup":    func(ctx context.Context, key int) error { _, err := v.Lookup(ctx, key); return err },
						"Clear":     v.clearedBy,
						"Check":     func(ctx context.Context, _ int) error { return c.Check(ctx) },
					}
					if cfg.Tags {
						ops["InvalidateTags"] = func(ctx context.Context, key int) error { return v.InvalidateTags(ctx, fmt.Sprint(key)) }
					}
					var callers sync.WaitGroup
					closed := make(chan struct{})
					for what, op := range ops {
						for key := range 3 {
							callers.Go(func() {
								for {
									ctx, cancel := context.WithTimeout(t.Context(), time.Second)
									err := op(c.Scope(ctx), key)
									cancel()
									returns(what, err)
									select {
									case <-closed:
										err := op(t.Context(), key)
										if !errors.Is(err, ErrClosed) {
											t.Errorf("%s after Close: %v", what, err)
										}
										return
									case <-time.After(10 * time.Millisecond):
									}
								}
							})
						}
					}
					time.Sleep(500 * time.Millisecond)
					start := time.Now()
					err = c.Close()
					require.LessOrEqual(t, time.Since(start), 2*time.Second+time.Millisecond, "%v", err)
					if name != "one that hangs" {
						require.NoError(t, err)
					}
					close(closed)
					callers.Wait()
					require.NoError(t, rdb.Close())
					require.Empty(t, v.flights.open)
					require.Zero(t, c.Stats().FallbacksRunning)
				})
			})
		}
	}
}

func (v *View[K, V]) clearedBy(ctx context.Context, _ int) error { return v.Clear(ctx) }

// A FetchMany that is still beginning its flights when the client has been closed, and
// those that it had begun have ended, calls no loader any more.
func TestCloseWhileAFetchManyBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		c := newClient(t, rdb, Config{})
		v := NewView[string, string](c, "v", ViewConfig{})
		seats := v.seats(t.Context(), 2, func(context.Context, []string) (map[string]string, error) {
			t.Error("called after Close")
			return nil, nil
		})
		fly := func(key string, seat *seat[string, string]) *flight[string] {
			fl, _, isNew := v.flights.join(key, false)
			require.True(t, isNew)
			v.fly(t.Context(), fl, key, v.prefix+key, seat, func(s *search[string, string]) result[string] { return s.find(found{}) }, func() {})
			return fl
		}
		first := fly("a", &seats[0])
		synctest.Wait() // it waits for the second one
		require.NoError(t, c.Close())
		second := fly("b", &seats[1])
		synctest.Wait()
		for _, fl := range []*flight[string]{first, second} {
			<-fl.done
			require.ErrorIs(t, fl.res.err, ErrClosed)
		}
		require.Zero(t, c.running.n)
	})
}
