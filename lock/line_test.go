package lock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

const (
	leaseK = "redisha:lock:{k}"
	queueK = "redisha:lock:{k}:q"
)

// A served is who got the lock, when.
type served struct {
	mu    sync.Mutex
	order []int
	at    []time.Duration
	start time.Time
}

// queueUp starts callers who wait for the lock one after the other, and hold it
// for the given time.
func (s *served) queueUp(t *testing.T, wg *sync.WaitGroup, hold time.Duration, clients ...*Client) {
	for i, c := range clients {
		wg.Go(func() {
			l, err := c.Acquire(t.Context(), "k")
			if err != nil {
				t.Error(err)
				return
			}
			s.mu.Lock()
			s.order, s.at = append(s.order, i), append(s.at, time.Since(s.start))
			s.mu.Unlock()
			time.Sleep(hold)
			if err := l.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
	}
}

// inLine returns how many callers wait for a lock, and how many of these stand in
// the queue.
func inLine(c *Client, key string) (waiters, placed int) {
	k, _ := c.cfg.keys(key)
	c.line.mu.Lock()
	defer c.line.mu.Unlock()
	if p := c.line.places[k.queues[0]]; p != nil {
		for _, w := range p.waiters {
			waiters++
			if w.placed {
				placed++
			}
		}
	}
	return waiters, placed
}

func requireNoQueue(t *testing.T, srv *testserver.Server) {
	t.Helper()
	require.Empty(t, leaseKeys(srv))
}

func TestTheLockIsHandedOverInTheOrderOfTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		clients := make([]*Client, 6)
		for i := range clients {
			clients[i] = open(t, srv.Client(t), Config{})
		}
		clients = append(clients, clients[0], clients[0], clients[3]) // several waiters in one process
		holder := open(t, srv.Client(t), Config{})
		first := acquire(t, holder, "k")
		s := &served{start: time.Now()}
		var wg sync.WaitGroup
		s.queueUp(t, &wg, time.Second, clients...)
		time.Sleep(10*time.Second - time.Since(s.start))
		info, err := holder.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, len(clients), info.Waiters)
		require.NoError(t, first.Release(t.Context()))
		_, err = holder.TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrNotAcquired, "nobody barges in")
		wg.Wait()
		for i, at := range s.at {
			require.Equal(t, i, s.order[i])
			require.Equal(t, time.Duration(10+i)*time.Second, at, "without a pause, in virtual time")
		}
		requireNoQueue(t, srv)
		require.EqualValues(t, 1, clients[1].Stats().HandOver.Count)
	})
}

func TestAWaiterWhoseProcessIsGoneIsSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		holder, gone, next := open(t, srv.Client(t), Config{}), srv.Client(t), open(t, srv.Client(t), Config{})
		dying := open(t, gone, Config{})
		first := acquire(t, holder, "k")
		go func() { _, _ = dying.Acquire(t.Context(), "k") }()
		time.Sleep(time.Second)
		s := &served{start: time.Now()}
		var wg sync.WaitGroup
		s.queueUp(t, &wg, 0, next)
		require.Equal(t, 2, len(srvList(srv, queueK)))
		require.NoError(t, gone.Close()) // its connections are gone, as those of a killed process
		time.Sleep(10 * time.Millisecond)
		s.start = time.Now()
		require.NoError(t, first.Release(t.Context()))
		wg.Wait()
		require.Less(t, s.at[0], 5*time.Millisecond)
		_ = dying.Close()
		time.Sleep(2 * time.Second)
	})
}

func srvList(srv *testserver.Server, key string) []string {
	list, _ := srv.List(key)
	return list
}

// A process that is stopped takes what is set aside for it and does nothing.
func TestAWaiterWhoseProcessIsStoppedCostsTheClaimAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb := srv.Client(t)
		holder, next, third := open(t, srv.Client(t), Config{TTL: time.Minute}), open(t, srv.Client(t), Config{}), open(t, srv.Client(t), Config{})
		first := acquire(t, holder, "k")
		stopped := rdb.Subscribe(t.Context(), "redisha:lock:p:"+processOf("pstopped"))
		defer stopped.Close()
		_, err := stopped.Receive(t.Context())
		require.NoError(t, err)
		require.NoError(t, rdb.RPush(t.Context(), queueK, entryOf(tokenOf(1), "pstopped")).Err())
		s := &served{start: time.Now()}
		var wg sync.WaitGroup
		s.queueUp(t, &wg, time.Second, next, third)
		s.start = time.Now()
		require.NoError(t, first.Release(t.Context()))
		wg.Wait()
		require.GreaterOrEqual(t, s.at[0], claimTTL)
		require.LessOrEqual(t, s.at[0], claimTTL+50*time.Millisecond)
		require.Equal(t, []int{0, 1}, s.order)
		require.Equal(t, s.at[0]+time.Second, s.at[1])
	})
}

func TestAWaiterIsServedSoonAfterTheHolderHasDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{})
		for _, ttl := range []time.Duration{200 * time.Millisecond, 5 * time.Second, time.Minute} {
			require.NoError(t, srv.Set(leaseK, newToken()))
			srv.SetTTL(leaseK, ttl)
			s := &served{start: time.Now()}
			var wg sync.WaitGroup
			s.queueUp(t, &wg, 0, c)
			wg.Wait()
			require.GreaterOrEqual(t, s.at[0], ttl)
			require.LessOrEqual(t, s.at[0], ttl+50*time.Millisecond)
		}
	})
}

// The queue is lost while people wait: they are put back when somebody looks.
func TestALostQueueIsMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		holder := open(t, srv.Client(t), Config{TTL: time.Hour})
		first := acquire(t, holder, "k")
		var clients []*Client
		for range 3 {
			c := open(t, srv.Client(t), Config{})
			clients = append(clients, c, c)
		}
		s := &served{start: time.Now()}
		var wg sync.WaitGroup
		s.queueUp(t, &wg, 0, clients...)
		require.Len(t, srvList(srv, queueK), len(clients))
		srv.Del(queueK)
		time.Sleep(checkMost + time.Second)
		require.Len(t, srvList(srv, queueK), len(clients), "all of them, also those behind the first of a process")
		srv.Del(queueK)
		s.start = time.Now()
		require.NoError(t, first.Release(t.Context()))
		wg.Wait()
		require.LessOrEqual(t, slices.Max(s.at), checkMost+time.Second)
		requireNoQueue(t, srv)
	})
}

func TestWaitersSurviveLostConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		holder := open(t, ownClient(t, srv), Config{TTL: time.Hour})
		var clients []*Client
		for range 3 {
			c := open(t, ownClient(t, srv), Config{})
			clients = append(clients, c, c)
		}
		for range 3 {
			first := acquire(t, holder, "k")
			s := &served{start: time.Now()}
			var wg sync.WaitGroup
			s.queueUp(t, &wg, 0, clients...)
			srv.CutConnections()
			time.Sleep(2 * time.Second)
			s.start = time.Now()
			require.NoError(t, first.Release(t.Context()))
			wg.Wait()
			require.Less(t, slices.Max(s.at), 50*time.Millisecond, "they are subscribed and queued again")
			requireNoQueue(t, srv)
		}
	})
}

// Messages may be lost without anybody noticing. Then the claim runs out, and
// whoever looks first hands the lock over.
func TestALostMessageCostsTheClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{})
		first := acquire(t, c, "k", TTL(time.Hour))
		s := &served{start: time.Now()}
		var wg sync.WaitGroup
		s.queueUp(t, &wg, 0, c)
		srv.SetPreHook(func(_ *server.Peer, cmd string, args ...string) bool {
			if cmd == "PUBLISH" {
				args[1] = "y" // which says nothing
			}
			return false
		})
		s.start = time.Now()
		require.NoError(t, first.Release(t.Context()))
		time.Sleep(time.Millisecond)
		srv.SetPreHook(nil)
		wg.Wait()
		require.LessOrEqual(t, s.at[0], claimTTL+checkMost+time.Second)
		requireNoQueue(t, srv)
	})
}

// Where it was lost with the connection, the waiter finds that the lock is his.
func TestAMessageThatIsLostWithItsConnectionCostsARoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		holder := open(t, ownClient(t, srv), Config{TTL: time.Hour})
		c := open(t, ownClient(t, srv), Config{})
		first := acquire(t, holder, "k")
		s := &served{start: time.Now()}
		var wg sync.WaitGroup
		s.queueUp(t, &wg, 0, c, c, c)
		srv.SetPreHook(func(_ *server.Peer, cmd string, args ...string) bool {
			if cmd == "PUBLISH" {
				args[1] = "y" // which says nothing
			}
			return false
		})
		s.start = time.Now()
		require.NoError(t, first.Release(t.Context()))
		synctest.Wait()
		srv.SetPreHook(nil)
		srv.CutConnections()
		wg.Wait()
		require.Less(t, slices.Max(s.at), 50*time.Millisecond)
		require.Equal(t, []int{0, 1, 2}, s.order)
		requireNoQueue(t, srv)
	})
}

func TestThousandsWaitOnOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 3000
		if testing.Short() {
			n = 500
		}
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{TTL: time.Hour})
		first := acquire(t, c, "k")
		s := &served{start: time.Now()}
		var wg sync.WaitGroup
		s.queueUp(t, &wg, 0, c)
		connections, goroutines := srv.CurrentConnectionCount(), runtime.NumGoroutine()
		for i := range n {
			wg.Go(func() {
				l, err := c.Acquire(t.Context(), "k")
				if err != nil {
					t.Error(err)
					return
				}
				s.mu.Lock()
				s.order = append(s.order, i)
				s.mu.Unlock()
				_ = l.Release(t.Context())
			})
			if i%50 == 0 {
				time.Sleep(time.Millisecond) // so that no more connections are needed at once
			}
		}
		time.Sleep(checkMost)
		require.Len(t, srvList(srv, queueK), n+1)
		require.LessOrEqual(t, runtime.NumGoroutine()-goroutines, n+300, "a waiter has none but the caller's")
		require.LessOrEqual(t, srv.CurrentConnectionCount()-connections, 100)
		require.NoError(t, first.Release(t.Context()))
		wg.Wait()
		require.Len(t, s.order, n+1)
		require.Less(t, time.Since(s.start), 20*time.Second, "each was handed over")
		requireNoQueue(t, srv)
	})
}

// Whoever leaves at whichever moment leaves nothing behind, and takes nothing
// with him that was meant for others.
func TestCancelledWaitersLeaveNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 15 {
		synctest.Test(t, func(t *testing.T) {
			srv := testserver.New(t)
			srv.SetLatency(time.Duration(random.IntN(3)) * time.Millisecond)
			var clients []*Client
			for range 3 {
				clients = append(clients, open(t, ownClient(t, srv), Config{CloseTimeout: time.Minute}))
			}
			first := acquire(t, clients[0], "k")
			var wg sync.WaitGroup
			got := 0
			for range 30 {
				c := clients[random.IntN(len(clients))]
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Duration(random.Int64N(int64(40*time.Millisecond))), cancel)
				begin := time.Duration(random.Int64N(int64(20 * time.Millisecond)))
				wg.Go(func() {
					defer cancel()
					time.Sleep(begin)
					l, err := c.Acquire(ctx, "k")
					if err != nil {
						if !errors.Is(err, context.Canceled) {
							t.Error(err)
						}
						return
					}
					got++
					if err := l.Release(ctx); err != nil {
						t.Error(err)
					}
				})
			}
			time.Sleep(time.Duration(random.Int64N(int64(30 * time.Millisecond))))
			require.NoError(t, first.Release(t.Context()))
			wg.Wait()
			start := time.Now()
			last, err := clients[1].Acquire(t.Context(), "k")
			require.NoError(t, err)
			require.Less(t, time.Since(start), claimTTL/2, "nobody's claim had to run out")
			require.NoError(t, last.Release(t.Context()))
			time.Sleep(2 * time.Second)
			requireNoQueue(t, srv)
		})
	}
}

// An entry that arrives late, for one who has left or even has the lock, is taken
// out again.
func TestAnEntryThatArrivesLateIsTakenOut(t *testing.T) {
	for _, got := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			srv := testserver.New(t)
			c := open(t, srv.Client(t), Config{CloseTimeout: time.Minute})
			first := acquire(t, c, "k")
			done := make(chan error, 1)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				l, err := c.Acquire(ctx, "k")
				if err == nil {
					time.Sleep(time.Second)
					err = l.Release(t.Context())
				}
				done <- err
			}()
			time.Sleep(time.Second)
			c.line.mu.Lock()
			w := c.line.places[queueK].waiters[0]
			o := &look{place: w.place, gen: w.place.channel.gen, fresh: true, waiters: []*waiter{w}, entries: []any{w.entry}, cmd: redis.NewCmdResult([]any{int64(1), int64(-2), int64(0), int64(1)}, nil)}
			c.line.mu.Unlock()
			if got {
				require.NoError(t, first.Release(t.Context()))
			} else {
				cancel()
			}
			time.Sleep(100 * time.Millisecond)
			_, err := srv.Push(queueK, w.entry) // now it has arrived
			require.NoError(t, err)
			c.line.mu.Lock()
			c.line.note(o, reading{}, time.Now())
			c.line.mu.Unlock()
			time.Sleep(100 * time.Millisecond)
			require.Empty(t, srvList(srv, queueK))
			if got {
				require.True(t, srv.Exists(leaseK), "the lease stays")
				require.NoError(t, <-done)
			} else {
				require.ErrorIs(t, <-done, context.Canceled)
				require.NoError(t, first.Release(t.Context()))
			}
			requireNoQueue(t, srv)
		})
	}
}

func TestASilentLineIsLeftAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{})
		first := acquire(t, c, "k")
		s := &served{start: time.Now()}
		var wg sync.WaitGroup
		s.queueUp(t, &wg, 0, c)
		require.Len(t, srv.PubSubChannels("*"), 1)
		require.NoError(t, first.Release(t.Context()))
		wg.Wait()
		time.Sleep(lineLinger - time.Second)
		require.Len(t, srv.PubSubChannels("*"), 1, "the next one may come soon")
		time.Sleep(10 * time.Second)
		require.Empty(t, srv.PubSubChannels("*"))
		require.Empty(t, c.line.channels)
	})
}

// Where the ACL forbids messages, waiters poll, and nobody is forgotten.
func TestWithoutMessagesWaitersPoll(t *testing.T) {
	for name, rules := range map[string][]any{
		"no channels":  {"resetchannels"},
		"no publish":   {"-publish"},
		"no subscribe": {"-subscribe"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := redistest.Shared(t)
			admin := srv.Client(t)
			ctx := t.Context()
			user := "mute"
			require.NoError(t, admin.Do(ctx, append([]any{"ACL", "SETUSER", user, "reset", "on", ">x", "~*", "&*", "+@all"}, rules...)...).Err())
			t.Cleanup(func() { admin.Do(context.Background(), "ACL", "DELUSER", user) })
			opt := *admin.Options()
			opt.Username, opt.Password = user, "x"
			book := &logBook{}
			var clients []*Client
			for range 3 {
				rdb := redis.NewClient(&opt)
				t.Cleanup(func() { _ = rdb.Close() })
				clients = append(clients, open(t, rdb, Config{Logger: book.logger(), CloseTimeout: 5 * time.Second}))
			}
			first := acquire(t, clients[0], "k")
			var wg sync.WaitGroup
			var got sync.Map
			for i := range 9 {
				wg.Go(func() {
					if err := clients[i%3].Do(ctx, "k", func(context.Context, *Lease) error { return nil }, MaxWait(time.Minute)); err != nil {
						t.Error(err)
					}
					got.Store(i, true)
				})
			}
			require.Eventually(t, func() bool {
				n := 0
				for _, c := range clients {
					waiters, _ := inLine(c, "k")
					n += waiters
				}
				return n == 9
			}, time.Minute, time.Millisecond, "all have failed and poll")
			require.NoError(t, first.Release(ctx))
			wg.Wait()
			require.Contains(t, book.String(), "poll")
			require.Eventually(t, func() bool { return admin.Exists(ctx, leaseK, queueK).Val() == 0 }, 10*time.Second, 10*time.Millisecond, "nothing is left")
		})
	}
}

func TestWaitersOnClusterAreServedInOrder(t *testing.T) {
	rdb := clusterOfOne(t)
	ctx := t.Context()
	var clients []*Client
	for range 3 {
		clients = append(clients, open(t, rdb, Config{TTL: time.Minute}))
	}
	for _, key := range []string{"k", "order{42}x", "}{"} {
		first := acquire(t, clients[0], key)
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				if err := clients[i%3].Do(ctx, key, func(context.Context, *Lease) error {
					mu.Lock()
					defer mu.Unlock()
					order = append(order, i)
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
			require.Eventually(t, func() bool {
				info, err := clients[0].Inspect(ctx, key)
				return err == nil && info.Waiters == i+1
			}, 20*time.Second, time.Millisecond)
		}
		require.NoError(t, first.Release(ctx))
		wg.Wait()
		require.Equal(t, []int{0, 1, 2, 3, 4, 5}, order, key)
	}
	require.EqualValues(t, 6, clients[0].Stats().HandOver.Count)
	require.Equal(t, fmt.Sprint([]string{}), fmt.Sprint(rdb.Keys(ctx, "*:q").Val()))
}

func TestAQueueOfAnotherTypeIsToldToWhoWaits(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := open(t, rdb, Config{})
		first := acquire(t, c, "k")
		require.NoError(t, rdb.HSet(t.Context(), queueK, "f", "v").Err())
		for range 2 { // the first wait finds no subscription yet
			_, err := c.Acquire(t.Context(), "k", MaxWait(time.Minute))
			require.ErrorContains(t, err, "WRONGTYPE")
			require.NotErrorIs(t, err, ErrNotAcquired)
		}
		require.NoError(t, first.Release(t.Context()))
	})
}
