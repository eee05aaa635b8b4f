package lock

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/redisha/redisha/internal/testserver"
)

// An interceptor counts the scripts that obtain a lease, and may keep the messages
// that hand a lock over, for a test to deliver.
type interceptor struct {
	mu      sync.Mutex
	obtains int
	said    []string
}

func (i *interceptor) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.obtains
}

// message waits for that of the hand-over that was intercepted.
func (i *interceptor) message(t *testing.T) string {
	synctest.Wait()
	i.mu.Lock()
	defer i.mu.Unlock()
	require.Len(t, i.said, 1)
	return i.said[0]
}

func intercept(srv *testserver.Server, keep bool) *interceptor {
	i := &interceptor{}
	srv.SetPreHook(func(_ *server.Peer, cmd string, args ...string) bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		switch {
		case strings.HasPrefix(cmd, "EVAL") && len(args) > 6 && args[6] == strconv.Itoa(tokenLen):
			i.obtains++
		case cmd == "PUBLISH" && args[1][0] == 'y' && keep:
			i.said = append(i.said, args[1])
			args[1] = "y" // which says nothing
		}
		return false
	})
	return i
}

// A queuer waits in the queue of the lock "k", which another holds.
type queuer struct {
	client *Client
	lease  chan *Lease
	cancel context.CancelFunc
}

// queueBehind returns a caller who waits, and the lease that he waits for.
func queueBehind(t *testing.T, srv *testserver.Server, opts ...Option) (*queuer, *Lease) {
	t.Helper()
	holder, next := open(t, srv.Client(t), Config{TTL: time.Hour}), open(t, srv.Client(t), Config{TTL: time.Minute})
	first := acquire(t, holder, "k")
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	q := &queuer{client: next, lease: make(chan *Lease, 1), cancel: cancel}
	go func() {
		l, err := next.Acquire(ctx, "k", opts...)
		if err != nil {
			t.Error(err)
		}
		q.lease <- l
	}()
	time.Sleep(time.Minute) // in which the line has looked at the queue, too
	synctest.Wait()
	return q, first
}

func TestAHandOverObtainsTheLeaseWithTheMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		q, first := queueBehind(t, srv)
		asked := intercept(srv, false)
		require.NoError(t, first.Release(t.Context()))
		l := <-q.lease
		require.Zero(t, asked.count())
		require.Greater(t, l.Token(), first.Token())
		info, err := q.client.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, Held, info.State)
		require.Equal(t, l.Token(), info.Token)
		require.WithinDuration(t, time.Now(), info.Since, time.Millisecond)
		require.LessOrEqual(t, info.TTL, claimTTL)
		require.EqualValues(t, 1, q.client.Stats().HandOver.Count)
		time.Sleep(claimTTL)
		info, err = q.client.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, Held, info.State, "it was renewed in time")
		require.Greater(t, info.TTL, 50*time.Second, "for the TTL that it was asked for")
		require.NoError(t, l.Context().Err())
		require.NoError(t, l.Release(t.Context()))
		requireNoQueue(t, srv)
	})
}

func TestALeaseThatWasHandedOverEndsBeforeItsKeyUnlessItIsRenewed(t *testing.T) {
	for _, ttl := range []time.Duration{MinTTL, time.Second, claimTTL, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			srv := testserver.New(t)
			q, first := queueBehind(t, srv, TTL(ttl))
			require.NoError(t, first.Release(t.Context()))
			handed := time.Now()
			l := <-q.lease
			srv.Hang(true)
			<-l.Context().Done()
			require.ErrorIs(t, context.Cause(l.Context()), ErrLost)
			life := min(ttl, claimTTL)
			require.LessOrEqual(t, time.Since(handed), life-margin(life))
			require.GreaterOrEqual(t, time.Since(handed), life-margin(life)-(checkMost+checkJitter)/100-time.Millisecond, "the server was asked for its time a few seconds before")
			srv.Hang(false)
			_ = l.Release(t.Context())
		})
	}
}

// The older the message, the less of the lease is left; with less than half of it
// the server is asked.
func TestALateMessageMakesNoLongerLease(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 30 {
		delay := time.Duration(random.Int64N(int64(2 * claimTTL)))
		synctest.Test(t, func(t *testing.T) {
			srv := testserver.New(t)
			q, first := queueBehind(t, srv)
			kept := intercept(srv, true)
			require.NoError(t, first.Release(t.Context()))
			handed := time.Now()
			message, before := kept.message(t), kept.count()
			time.Sleep(delay)
			synctest.Wait()
			if kept.count() > before { // a look at the queue came first, and told that the lock is his
				_ = (<-q.lease).Release(t.Context())
				return
			}
			early := delay < claimTTL/2-100*time.Millisecond
			srv.Hang(early)
			q.client.line.message("", message)
			l := <-q.lease
			if early {
				<-l.Context().Done()
				require.Less(t, time.Since(handed), claimTTL)
				srv.Hang(false)
			} else if delay > claimTTL/2 {
				require.Greater(t, kept.count(), before)
			}
			_ = l.Release(t.Context())
		})
	}
}

// What the message says cannot be told from here: the server is asked.
func TestWhoCannotTellHowLongALeaseLivesAsksTheServer(t *testing.T) {
	for name, disturb := range map[string]func(t *testing.T, srv *testserver.Server, c *Client){
		"no reading of its clock": func(_ *testing.T, _ *testserver.Server, c *Client) { c.line.places[queueK].clock = reading{} },
		"its clock was set forward": func(_ *testing.T, srv *testserver.Server, _ *Client) {
			srv.SetTime(time.Now().Add(30 * time.Second))
		},
		"its clock was set back": func(_ *testing.T, srv *testserver.Server, _ *Client) {
			srv.SetTime(time.Now().Add(-30 * time.Second))
		},
		"the machine was suspended": func(_ *testing.T, _ *testserver.Server, c *Client) {
			start := c.clock.start
			c.clock.wall = func(t time.Time) time.Time {
				if t.Equal(start) {
					return t.Round(0)
				}
				return t.Round(0).Add(time.Minute)
			}
		},
		"another server":            func(_ *testing.T, _ *testserver.Server, c *Client) { c.line.places[queueK].clock.epoch = 7 },
		"the endpoint is not clear": func(_ *testing.T, _ *testserver.Server, c *Client) { watchOf(c).clear.Store(false) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := testserver.New(t)
				q, first := queueBehind(t, srv)
				kept := intercept(srv, true)
				q.client.line.mu.Lock()
				if name != "the machine was suspended" {
					disturb(t, srv, q.client)
				}
				q.client.line.mu.Unlock()
				require.NoError(t, first.Release(t.Context()))
				message, before := kept.message(t), kept.count()
				if name == "the machine was suspended" {
					disturb(t, srv, q.client)
				}
				q.client.line.message("", message)
				l := <-q.lease
				require.Greater(t, kept.count(), before)
				require.NoError(t, l.Release(t.Context()))
			})
		})
	}
}

// A message may come after the lease was obtained otherwise, and its waiter has
// gone: it gives up what nobody has, not what is held.
func TestALateMessageTakesTheLeaseFromNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		q, first := queueBehind(t, srv)
		kept := intercept(srv, true)
		require.NoError(t, first.Release(t.Context()))
		message := kept.message(t)
		q.client.line.rouse()
		l := <-q.lease
		q.client.line.message("", message)
		time.Sleep(2 * time.Second)
		require.True(t, srv.Exists(leaseK))
		require.NoError(t, l.Context().Err())
		require.NoError(t, l.Release(t.Context()))
		q.client.line.message("", message)
		time.Sleep(2 * time.Second)
		requireNoQueue(t, srv)
	})
}

// A reading never says that an instant was later than it was, whatever the speed
// of the server's clock within 1 %.
func TestAReadingTurnsTheServersTimeIntoAnInstantThatIsNotLater(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Now()
		speed := rapid.Float64Range(0.99, 1.01).Draw(t, "speed")
		ahead := rapid.Int64Range(-1e15, 1e15).Draw(t, "ahead, µs")
		server := func(at time.Duration) int64 {
			return 1795159093017078 + ahead + int64(float64(at.Microseconds())*speed)
		}
		read := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "read"))
		on := time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "on the way"))
		r := reading{sent: start.Add(read), server: server(read + on)}
		at := time.Duration(rapid.Int64Range(0, int64(2*time.Hour)).Draw(t, "at"))
		got := r.when(server(at)).Sub(start)
		require.LessOrEqual(t, got, at+2*time.Microsecond)
		require.GreaterOrEqual(t, got, at-on-(at-read-on).Abs()/40-time.Millisecond)
	})
}

// While the lease is being released, too.
func TestALateMessageMakesNoReleaseALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		q, first := queueBehind(t, srv)
		kept := intercept(srv, true)
		require.NoError(t, first.Release(t.Context()))
		message := kept.message(t)
		q.client.line.rouse()
		l := <-q.lease
		srv.SetPreHook(func(_ *server.Peer, cmd string, args ...string) bool {
			if cmd == "EVALSHA" && len(args) == 6 && strings.HasPrefix(args[5], l.token) {
				time.Sleep(5 * time.Millisecond)
			}
			return false
		})
		done := make(chan error, 1)
		go func() { done <- l.Release(t.Context()) }()
		time.Sleep(time.Millisecond)
		q.client.line.message("", message)
		require.NoError(t, <-done)
		time.Sleep(time.Second)
		q.client.line.mu.Lock()
		defer q.client.line.mu.Unlock()
		require.Empty(t, q.client.line.held)
	})
}

// What a lease's clocks may differ by goes by how long it lives, not by its TTL.
func TestASuspendedMachineLosesALeaseThatWasHandedOver(t *testing.T) {
	for _, ttl := range []time.Duration{30 * time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			srv := testserver.New(t)
			q, first := queueBehind(t, srv, TTL(ttl))
			require.NoError(t, first.Release(t.Context()))
			l := <-q.lease
			start := q.client.clock.start
			q.client.clock.wall = func(at time.Time) time.Time {
				if at.Equal(start) {
					return at.Round(0)
				}
				return at.Round(0).Add(margin(ttl) - 10*time.Millisecond)
			}
			l.checkClock()
			require.ErrorIs(t, context.Cause(l.Context()), ErrLost)
			_ = l.Release(t.Context())
		})
	}
}
