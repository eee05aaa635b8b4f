package result

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/testserver"
)

// A bubble is a server and a client in virtual time.
type bubble struct {
	*Client
	t     *testing.T
	srv   *testserver.Server
	rdb   *redis.Client
	calls counter // commands that the server got, by name

	peers       sync.Map     // connections that have subscribed
	subscribers atomic.Int64 // number of them
	subscribed  atomic.Int64 // those of them that are open
}

// inBubble runs test in virtual time.
func inBubble(t *testing.T, test func(*testing.T, *bubble)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{t: t, srv: testserver.New(t)}
		opt := b.srv.Options()
		opt.MaxRetries, opt.DialerRetries = -1, 1
		b.rdb = redis.NewClient(opt)
		defer func() { _ = b.rdb.Close() }()
		b.hook(nil)
		b.Client = newClient(t, b.rdb, Config{})
		test(t, b)
		require.NoError(t, b.Close())
		require.Zero(t, b.Stats().Waiters)
		require.Zero(t, b.Stats().Subscriptions)
	})
}

// hook lets h answer commands; all are counted.
func (b *bubble) hook(h server.Hook) {
	b.srv.SetPreHook(func(p *server.Peer, cmd string, args ...string) bool {
		b.calls.add(cmd)
		if cmd == "SUBSCRIBE" {
			if _, known := b.peers.LoadOrStore(p, true); !known {
				b.subscribers.Add(1)
				b.subscribed.Add(1)
				p.OnDisconnect(func() { b.subscribed.Add(-1) })
			}
		}
		return h != nil && h(p, cmd, args...)
	})
}

// refuse lets the server refuse a command.
func (b *bubble) refuse(command string) {
	b.hook(func(p *server.Peer, cmd string, _ ...string) bool {
		if cmd != command {
			return false
		}
		p.WriteError("NOPERM No permissions to access a channel")
		return true
	})
}

// What internal/pubsub does, in so far as waiters feel it.
const (
	linger         = 5 * time.Second
	minBackoff     = 50 * time.Millisecond
	maxBackoff     = time.Second
	refusedBackoff = 30 * time.Second
)

// A waited is what a call of Wait returned, and when.
type waited struct {
	record Record
	err    error
	at     time.Time
}

// wait calls Wait in a goroutine and returns once it waits.
func (b *bubble) wait(ctx context.Context, id string) <-chan waited {
	out := make(chan waited, 1)
	go func() {
		r, err := b.Wait(ctx, id)
		out <- waited{r, err, time.Now()}
	}()
	synctest.Wait()
	return out
}

// finish stores a final state.
func (b *bubble) finish(id string) {
	b.t.Helper()
	stored, err := b.Store(b.t.Context(), Record{ID: id, State: Success, Attempt: 1, Value: []byte(`"done"`)})
	require.NoError(b.t, err)
	require.True(b.t, stored)
}

// succeeded requires that the wait ends with the record of finish, d after start.
func (b *bubble) succeeded(out <-chan waited, start time.Time, d time.Duration) {
	b.t.Helper()
	w := <-out
	require.NoError(b.t, w.err)
	require.Equal(b.t, Success, w.record.State)
	require.Equal(b.t, `"done"`, string(w.record.Value))
	require.Equal(b.t, d, w.at.Sub(start))
}

func TestWaitReturnsAtOnceWhatIsFinal(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		b.finish("x")
		r, err := b.Wait(t.Context(), "x")
		require.NoError(t, err)
		require.Equal(t, Record{ID: "x", State: Success, Attempt: 1, Value: []byte(`"done"`)}, r)
		require.Zero(t, b.calls.of("SUBSCRIBE"), "nothing to wait for")
		require.EqualValues(t, 1, b.Stats().Waits.Count)
	})
}

func TestAWaiterIsWokenWhenTheFinalStateIsStored(t *testing.T) {
	for _, state := range []State{Success, Failure, Cancelled, Expired, Dead} {
		t.Run(state.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bubble) {
				out := b.wait(t.Context(), "x")
				require.EqualValues(t, 1, b.Stats().Waiters)
				require.EqualValues(t, 1, b.Stats().Subscriptions)
				time.Sleep(1234 * time.Millisecond)
				stored := time.Now()
				_, err := b.Store(t.Context(), Record{ID: "x", State: state})
				require.NoError(t, err)
				w := <-out
				require.NoError(t, w.err)
				require.Equal(t, Record{ID: "x", State: state}, w.record)
				require.Equal(t, stored, w.at, "no time passes: it was woken, it did not poll")
				require.Zero(t, b.Stats().Healed)
			})
		})
	}
}

func TestStatesOnTheWayDoNotMakeAWaiterRead(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		out := b.wait(t.Context(), "x")
		reads := b.calls.of("GET")
		for attempt := range 100 {
			_, err := b.Store(t.Context(), Record{ID: "x", State: Progress, Attempt: attempt})
			require.NoError(t, err)
		}
		synctest.Wait()
		require.Equal(t, reads, b.calls.of("GET"))
		_, err := b.Store(t.Context(), Record{ID: "x", State: Failure, Attempt: 100})
		require.NoError(t, err)
		require.Equal(t, Failure, (<-out).record.State)
		// A message that store.lua does not send makes it read.
		out = b.wait(t.Context(), "y")
		reads = b.calls.of("GET")
		require.NoError(t, b.rdb.Publish(t.Context(), key+"y", "").Err())
		synctest.Wait()
		require.Equal(t, reads+1, b.calls.of("GET"))
		b.finish("y")
		<-out
	})
}

func TestALostWakeUpIsHealedByTheNextRead(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		start := time.Now()
		out := b.wait(t.Context(), "x") // reads now, and every five seconds
		b.refuse("PUBLISH")
		time.Sleep(12 * time.Second)
		b.finish("x")
		b.succeeded(out, start, 15*time.Second)
		require.EqualValues(t, 1, b.Stats().Healed)
		require.EqualValues(t, 1, b.Stats().Unannounced)
	})
}

// What is stored between the first read and the subscription sends its message
// to nobody: the confirmation must make the waiter read again.
func TestAResultStoredJustBeforeTheSubscriptionIsFound(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		start := time.Now()
		b.hook(func(_ *server.Peer, cmd string, _ ...string) bool {
			if cmd == "SUBSCRIBE" {
				b.hook(nil)
				b.finish("x")
			}
			return false
		})
		r, err := b.Wait(t.Context(), "x")
		require.NoError(t, err)
		require.Equal(t, Success, r.State)
		require.Zero(t, time.Since(start))
	})
}

// The same for one who joins a subscription that is already there.
func TestAResultStoredJustBeforeJoiningASubscriptionIsFound(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		start := time.Now()
		first := b.wait(t.Context(), "x")
		b.hook(func(p *server.Peer, cmd string, args ...string) bool {
			if cmd == "GET" { // the second waiter's first one
				b.refuse("PUBLISH") // the message goes by
				b.finish("x")
				p.WriteNull()
				return true
			}
			return false
		})
		r, err := b.Wait(t.Context(), "x")
		require.NoError(t, err)
		require.Equal(t, Success, r.State)
		require.Zero(t, time.Since(start))
		b.succeeded(first, start, rereadInterval)
	})
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		_, err := b.Store(t.Context(), Record{ID: "x", State: Started, Attempt: 2})
		require.NoError(t, err)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		r, err := b.Wait(ctx, "x")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualError(t, err, `result: wait "x": context deadline exceeded; the task is started`)
		require.Equal(t, Record{ID: "x", State: Started, Attempt: 2}, r, "the last one that was read")
		require.Equal(t, 7*time.Second, time.Since(start))

		why := errors.New("the user went away")
		cctx, ccancel := context.WithCancelCause(t.Context())
		out := b.wait(cctx, "y")
		ccancel(why)
		w := <-out
		require.ErrorIs(t, w.err, why)
		require.EqualError(t, w.err, `result: wait "y": the user went away; the task is pending`)
		require.Zero(t, b.Stats().Waits.Count, "only waits that saw their end count")
	})
}

func TestTheLastWaiterOfAnIDUnsubscribes(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		ctx, cancel := context.WithCancel(t.Context())
		one, two := b.wait(ctx, "x"), b.wait(t.Context(), "x")
		other := b.wait(t.Context(), "y")
		require.Equal(t, 2, b.calls.of("SUBSCRIBE"), "one for each ID")
		require.EqualValues(t, 2, b.Stats().Subscriptions)
		cancel()
		require.ErrorIs(t, (<-one).err, context.Canceled)
		synctest.Wait()
		require.Zero(t, b.calls.of("UNSUBSCRIBE"), "another one waits")
		start := time.Now()
		b.finish("x")
		b.succeeded(two, start, 0)
		synctest.Wait()
		require.Equal(t, 1, b.calls.of("UNSUBSCRIBE"))
		require.EqualValues(t, 1, b.Stats().Subscriptions)
		require.Equal(t, 1, b.srv.PubSubNumSub(key + "y")[key+"y"])
		require.Zero(t, b.srv.PubSubNumSub(key + "x")[key+"x"])

		again := b.wait(t.Context(), "z")
		b.finish("z")
		b.finish("y")
		<-again
		<-other
	})
}

func TestTheConnectionEndsWhenNobodyHasWaitedForAWhile(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		for i := range 3 { // one after the other, one connection
			id := fmt.Sprint("x", i)
			out := b.wait(t.Context(), id)
			require.Equal(t, i+1, b.calls.of("SUBSCRIBE"))
			b.finish(id)
			<-out
			time.Sleep(linger - time.Second)
		}
		require.EqualValues(t, 1, b.subscribers.Load())
		require.EqualValues(t, 1, b.subscribed.Load())
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Zero(t, b.subscribed.Load())
		require.Zero(t, b.Stats().Gaps, "that is no gap")

		start := time.Now()
		out := b.wait(t.Context(), "again")
		b.finish("again")
		b.succeeded(out, start, 0)
	})
}

func TestWaitersAreWokenByAConnectionThatComesBack(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		var outs []<-chan waited
		for i := range 10 {
			outs = append(outs, b.wait(t.Context(), fmt.Sprint("x", i)))
		}
		time.Sleep(time.Second)
		b.srv.Stop()
		synctest.Wait()
		require.Zero(t, b.Stats().Subscriptions)
		require.EqualValues(t, 1, b.Stats().Gaps)
		stored := appendRecord(nil, Record{State: Success, Value: []byte(`"done"`)}, newCodec(t))
		for i := range 10 { // what another client stored, and the message went by
			require.NoError(t, b.srv.Set(key+fmt.Sprint("x", i), string(stored)))
		}
		require.NoError(t, b.srv.Restart())
		start := time.Now()
		for _, out := range outs {
			w := <-out
			require.NoError(t, w.err)
			// One pause of the subscription, and one of a waiter who came upon
			// a stale connection in the pool.
			require.LessOrEqual(t, w.at.Sub(start), 2*minBackoff+minPoll, "long before the next read")
		}
	})
}

func TestAWaitOutlivesAnOutage(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		b.srv.Stop()
		early := b.wait(t.Context(), "x") // there has been no connection yet
		time.Sleep(time.Hour)
		require.Less(t, b.calls.of("GET"), 10)
		require.NoError(t, b.srv.Restart())
		start := time.Now()
		time.Sleep(maxBackoff + maxPoll)
		require.EqualValues(t, 1, b.Stats().Subscriptions)
		b.finish("x")
		b.succeeded(early, start, maxBackoff+maxPoll)
	})
}

func TestAWaitThatEndsInAnOutageReturnsWhatItHasRead(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		want := Record{ID: "x", State: Progress, Attempt: 2, Progress: []byte("half")}
		_, err := b.Store(t.Context(), want)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out := b.wait(ctx, "x")
		b.srv.Stop()
		w := <-out
		require.ErrorIs(t, w.err, context.DeadlineExceeded)
		require.ErrorContains(t, w.err, `result: wait "x": context deadline exceeded; the last read failed: `)
		require.ErrorContains(t, w.err, "connection refused")
		require.Equal(t, want, w.record)
	})
}

func TestAWaitOutlivesAServerThatIsLoading(t *testing.T) {
	for _, refusal := range []string{
		"LOADING Redis is loading the dataset in memory", "MASTERDOWN Link with MASTER is down", "CLUSTERDOWN The cluster is down",
		"MOVED 1 10.0.0.2:6379", "ASK 1 10.0.0.2:6379", "TRYAGAIN Multiple keys request during rehashing of slot", "BUSY Redis is busy running a script", "ERR max number of clients reached",
	} {
		t.Run(refusal[:8], func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bubble) {
				b.srv.SetError(refusal)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				_, err := b.Wait(ctx, "x")
				cancel()
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorContains(t, err, refusal[:8], "it says what went wrong meanwhile")

				out := b.wait(t.Context(), "x")
				time.Sleep(10 * time.Second)
				b.srv.SetError("")
				b.finish("x")
				start := time.Now()
				w := <-out
				require.NoError(t, w.err)
				require.LessOrEqual(t, w.at.Sub(start), maxPoll)
			})
		})
	}
}

func TestWithoutSubscriptionsAWaiterPollsEverMoreRarely(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		b.refuse("SUBSCRIBE")
		quick := b.wait(t.Context(), "quick")
		time.Sleep(100 * time.Millisecond)
		start := time.Now()
		b.finish("quick")
		w := <-quick
		require.NoError(t, w.err)
		require.LessOrEqual(t, w.at.Sub(start), 200*time.Millisecond)

		slow := b.wait(t.Context(), "slow")
		time.Sleep(time.Hour)
		reads, subscribes := b.calls.of("GET"), b.calls.of("SUBSCRIBE")
		require.Less(t, reads, 3600/2+50)
		require.Less(t, subscribes, 3600/20+50)
		require.Greater(t, subscribes, 3600/30-1, "it may be allowed one day")
		require.EqualValues(t, 1, b.Stats().Gaps)
		start = time.Now()
		b.finish("slow")
		w = <-slow
		require.NoError(t, w.err)
		require.LessOrEqual(t, w.at.Sub(start), maxPoll)
		require.EqualValues(t, 2, b.Stats().Healed)

		b.hook(nil)
		allowed := b.wait(t.Context(), "allowed")
		time.Sleep(refusedBackoff)
		require.EqualValues(t, 1, b.Stats().Subscriptions)
		start = time.Now()
		b.finish("allowed")
		b.succeeded(allowed, start, 0)
	})
}

// Some proxies hang up on SUBSCRIBE.
func TestAConnectionThatIsCutOnSubscribeIsNotDialledWithoutPause(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		b.hook(func(p *server.Peer, cmd string, _ ...string) bool {
			if cmd == "SUBSCRIBE" {
				p.Close()
				return true
			}
			return false
		})
		out := b.wait(t.Context(), "x")
		time.Sleep(time.Minute)
		require.Less(t, b.calls.of("SUBSCRIBE"), 2*60*2)
		start := time.Now()
		b.finish("x")
		w := <-out
		require.NoError(t, w.err)
		require.LessOrEqual(t, w.at.Sub(start), maxPoll)
	})
}

// go-redis connects anew when it cannot write SUBSCRIBE, and then subscribes the
// earlier channels alone.
func TestASubscriptionThatCouldNotBeWrittenIsRepeated(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		opt := b.srv.Options()
		opt.MaxRetries = -1
		var broken atomic.Int64
		opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := b.srv.Dial(ctx, network, addr)
			return &brokenConn{Conn: nc, text: []byte("subscribe\r\n$16\r\n" + key + "y"), broken: &broken}, err
		}
		rdb := redis.NewClient(opt)
		defer func() { _ = rdb.Close() }()
		c := newClient(t, rdb, Config{})
		for _, id := range []string{"x", "y"} {
			go func() { _, _ = c.Wait(t.Context(), id) }()
			synctest.Wait()
		}
		require.EqualValues(t, 1, broken.Load())
		time.Sleep(maxBackoff)
		require.EqualValues(t, 2, c.Stats().Subscriptions)
		require.NoError(t, c.Close())
	})
}

// A brokenConn fails, once, to write text.
type brokenConn struct {
	net.Conn
	text   []byte
	broken *atomic.Int64
}

func (c *brokenConn) Write(p []byte) (int, error) {
	if bytes.Contains(p, c.text) && c.broken.CompareAndSwap(0, 1) {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

func TestWhoJoinsDuringAnOutageDoesNotDialForTheSubscription(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		opt := b.srv.Options()
		opt.MaxRetries, opt.DialerRetries = -1, 1
		var dials atomic.Int64
		opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return b.srv.Dial(ctx, network, addr)
		}
		rdb := redis.NewClient(opt)
		defer func() { _ = rdb.Close() }()
		c := newClient(t, rdb, Config{})
		b.srv.Stop()
		for i := range 100 {
			go func() { _, _ = c.Wait(t.Context(), fmt.Sprint(i)) }()
			synctest.Wait()
		}
		require.Less(t, dials.Load(), int64(110), "a read of each, and few for the subscription")
		require.NoError(t, c.Close())
	})
}

func TestThePauseAfterARefusalEndsWithTheLastWaiter(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		b.refuse("SUBSCRIBE")
		ctx, cancel := context.WithCancel(t.Context())
		out := b.wait(ctx, "x")
		time.Sleep(time.Hour)
		cancel()
		<-out
		tries := b.calls.of("SUBSCRIBE")
		time.Sleep(time.Hour)
		require.Equal(t, tries, b.calls.of("SUBSCRIBE"))
	})
}

func TestCloseEndsEveryWait(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		one, two := b.wait(t.Context(), "x"), b.wait(t.Context(), "y")
		require.NoError(t, b.Close())
		for _, out := range []<-chan waited{one, two} {
			w := <-out
			require.ErrorIs(t, w.err, ErrClosed)
		}
		synctest.Wait()
		require.Zero(t, b.subscribed.Load())
		require.NoError(t, b.rdb.Ping(t.Context()).Err(), "the Redis client is the caller's")
	})
}

// On the wall clock: go-redis dials under a mutex, which stops a bubble's clock.
func TestCloseDoesNotWaitForAServerThatNeverAnswers(t *testing.T) {
	srv := testserver.New(t)
	opt := srv.Options()
	hang, hung := make(chan struct{}), make(chan struct{})
	var dials atomic.Int64
	opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dials.Add(1) == 2 { // the subscription's
			close(hung)
			<-hang
		}
		return srv.Dial(ctx, network, addr)
	}
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	c, err := New(rdb, Config{Logger: quiet, CloseTimeout: 20 * time.Millisecond})
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := c.Wait(context.Background(), "x")
		ended <- err
	}()
	<-hung
	err = c.Close()
	require.EqualError(t, err, "result: close: the subscription has not ended within CloseTimeout (20ms)")
	require.Equal(t, err, c.Close())
	require.ErrorIs(t, <-ended, ErrClosed)
	close(hang)
}

func TestClosingTheRedisClientEndsEveryWait(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		out := b.wait(t.Context(), "x")
		start := time.Now()
		require.NoError(t, b.rdb.Close())
		w := <-out
		require.ErrorIs(t, w.err, ErrClosed)
		require.LessOrEqual(t, w.at.Sub(start), maxBackoff)
	})
}

func TestARoleThatIsNotConfiguredIsNotWaitedFor(t *testing.T) {
	reason := fmt.Errorf("results: %w: set REDISHA_RESULTS_URL", conn.ErrNotConfigured)
	rdb := conn.Closed("results", reason)
	t.Cleanup(func() { _ = rdb.Close() })
	c := newClient(t, rdb, Config{})
	_, err := c.Wait(t.Context(), "x")
	require.ErrorIs(t, err, conn.ErrNotConfigured)
	require.EqualError(t, err, `result: wait "x": results: role not configured: set REDISHA_RESULTS_URL`)
}

func TestWaitersDoNotDisturbEachOther(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		const n = 200
		var outs [n]<-chan waited
		for i := range n {
			outs[i] = b.wait(t.Context(), fmt.Sprint(i/2)) // two for each ID
		}
		time.Sleep(time.Second)
		start := time.Now()
		for i := range n / 2 {
			time.Sleep(time.Millisecond)
			b.finish(fmt.Sprint(i))
		}
		for i, out := range outs {
			b.succeeded(out, start, time.Duration(i/2+1)*time.Millisecond)
		}
	})
}
