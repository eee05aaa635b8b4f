package broker

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

// go-redis sends a script again when its reply is lost; then only the last error
// is seen, here that of a server which restarts.
func TestAClientThatSendsAgainLeavesTheOutcomeOpen(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, reply := range []string{"LOADING Redis is loading the dataset in memory", "NOPERM no permission"} {
			opt := *rdb.(*redis.Client).Options()
			var harm atomic.Int64
			dial := opt.Dialer
			opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				nc, err := dial(ctx, network, addr)
				return &restarting{Conn: nc, harm: &harm, reply: reply}, err
			}
			opt.MaxRetries = 3
			opt.PushNotificationProcessor = nil
			client := redis.NewClient(&opt)
			c, _ := newTestClient(t, client, Config{})
			t.Cleanup(func() { _ = client.Close() })
			task := NewTask[int]("again", TaskConfig{})
			publish(t, task, c, 0)
			ready := queueInfo(t, c, "default").Ready
			harm.Store(loseReply)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := task.Publish(ctx, c, 1)
			harm.Store(0)
			require.ErrorIs(t, err, ErrUnconfirmed, reply)
			require.Equal(t, ready+1, queueInfo(t, c, "default").Ready, "it is there")
		}
	})
}

const (
	loseReply = 1 + iota
	answerItself
)

// A restarting connection loses the reply of one script, and then answers scripts
// with an error.
type restarting struct {
	net.Conn
	harm   *atomic.Int64
	reply  string
	script bool
}

func (c *restarting) Write(p []byte) (int, error) {
	c.script = strings.Contains(strings.ToLower(string(p)), "\r\neval")
	return c.Conn.Write(p)
}

func (c *restarting) Read(p []byte) (int, error) {
	k, err := c.Conn.Read(p)
	if err != nil || !c.script {
		return k, err
	}
	switch c.harm.Load() {
	case loseReply:
		c.harm.Store(answerItself)
		_ = c.Close()
		return 0, net.ErrClosed
	case answerItself:
		return copy(p, "-"+c.reply+"\r\n"), nil
	}
	return k, nil
}

func TestMissingPermissionsAreToldAndStopNothingElse(t *testing.T) {
	server := redistest.New(t, redistest.Config{})
	admin := server.Client(t)
	for _, command := range []string{"xinfo", "xpending"} {
		require.NoError(t, admin.FlushAll(t.Context()).Err())
		require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "worker", "reset", "on", ">secret", "~*", "&*", "+@all", "-"+command).Err())
		opt := server.Options()
		opt.Username, opt.Password, opt.MaxRetries = "worker", "secret", -1
		rdb := redis.NewClient(opt)
		t.Cleanup(func() { _ = rdb.Close() })
		c, logs := newTestClient(t, rdb, Config{})
		task := NewTask[int]("t", TaskConfig{})
		publish(t, task, c, 1)
		p := newPartition("redisha", "default", 0, 1)
		require.NoError(t, admin.XGroupCreate(t.Context(), p.streams[2], group, "0").Err())
		require.NoError(t, admin.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: group, Consumer: "dead:1", Streams: []string{p.streams[2], ">"}}).Err())
		ran := make(chan int, 9)
		began := time.Now()
		stop := startWorker(t, c, WorkerConfig{Lease: 3 * time.Second}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, i int) error { ran <- i; return nil })
		})
		require.Eventually(t, func() bool { return logs.count("maintenance failed") > 0 && logs.count("NOPERM") > 0 }, 30*time.Second, 5*time.Millisecond, command)
		if command == "xpending" {
			require.Eventually(t, func() bool { return logs.count("cannot look for lost deliveries") > 0 }, 30*time.Second, 5*time.Millisecond)
		}
		publish(t, task, c, 2)
		require.Equal(t, 2, receive(t, ran))
		require.LessOrEqual(t, logs.count("maintenance failed"), 3+2*int(time.Since(began)/(10*time.Second)), "not at every turn")
		require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "worker", "+@all").Err())
		require.Equal(t, 1, receive(t, ran), "reaped as soon as it is permitted")
		require.NoError(t, stop())
	}
}

func TestAcknowledgedEntriesAreForgottenAlsoWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testserver.New(t)
		c, _ := newTestClient(t, bubbleRedis(t, s), Config{})
		w, err := NewWorker(c, WorkerConfig{})
		require.NoError(t, err)
		src := newSource(&run{w: w, base: t.Context()}, newPartition("redisha", "default", 0, 1))
		l := &lease{consumer: "me", fence: time.NewTimer(time.Hour)}
		l.ctx, l.cancel = context.WithCancelCause(t.Context())
		src.lease = l
		e := entry{1, "1-1"}
		for i := range 5 {
			d := delivered{entry: e, raw: []byte{byte(i)}}
			require.Equal(t, unseen, src.standing(d))
			src.end([]*verdict{{task: src.taskOf(l, d)}}, true)
			require.Equal(t, ended, src.standing(d))
			time.Sleep(remembered * 9 / 10)
			src.renew(&lease{}) // of another lease: nothing
			src.end([]*verdict{{task: &task{entry: entry{2, "x"}}}}, false)
			require.True(t, src.wasAcked(e), i)
		}
		require.NoError(t, c.conn.Set(t.Context(), src.p.heartbeat("me"), 1, 0).Err())
		time.Sleep(2 * remembered)
		src.renew(l)
		require.False(t, src.wasAcked(e))
		require.Empty(t, len(src.acked.list)+len(src.older.list))
	})
}

// What is remembered must not make an acknowledgement dearer.
func TestManyAcknowledgementsAreRemembered(t *testing.T) {
	start, n, burst := time.Now(), 60_000, 100
	synctest.Test(t, func(*testing.T) {
		src := newSource(nil, newPartition("redisha", "default", 0, 1))
		for i := range 2 * n {
			if i%burst == 0 {
				time.Sleep(remembered / time.Duration(n/burst))
			}
			src.end([]*verdict{{task: &task{entry: entry{1, strconv.Itoa(i) + "-0"}}}}, true)
		}
	})
	require.Less(t, time.Since(start), 4*time.Second, "it takes many times as long when each one moves all others")
}

// A failover to a server whose clock is behind may give the entry ID of a task that
// it lost, and that still runs, to another one. The end of the first is not the
// second's.
func TestATaskUnderTheEntryIDOfALostOneIsItsOwn(t *testing.T) {
	each(t, func(t *testing.T, c *Client, _ *logs) {
		results := newResults(t, c.conn.Unwrap(), result.Config{})
		task := NewTask[string]("a", TaskConfig{Backoff: atOnce, Retention: time.Hour})
		began, first, second := make(chan string, 9), make(chan struct{}), make(chan struct{})
		startWorker(t, c, WorkerConfig{Results: results}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, name string) error {
				began <- name
				switch {
				case name == "lost":
					<-first
				case FromContext(ctx).Attempt == 1:
					<-second
					return errTest
				}
				return nil
			})
		})
		lost := publish(t, task, c, "lost")
		require.Equal(t, "lost", receive(t, began))
		key := newPartition("redisha", "default", 0, 1).streams[2]
		entries, err := c.conn.XRange(t.Context(), key, "-", "+").Result()
		require.NoError(t, err)
		require.Len(t, entries, 1)
		e := appendEnvelope(nil, &envelope{priority: 1, attempt: 1, maxAttempts: 3, enqueued: 1, id: "other", task: "a", payload: c.compress.AppendEncode(nil, []byte(`"other"`))})
		require.NoError(t, c.conn.Del(t.Context(), key).Err())
		require.NoError(t, c.conn.XAdd(t.Context(), &redis.XAddArgs{Stream: key, ID: entries[0].ID, Values: []any{field, e}}).Err())
		require.Equal(t, "other", receive(t, began))
		close(first)
		r, err := results.Wait(t.Context(), lost)
		require.NoError(t, err)
		require.Equal(t, result.Success, r.State, "it was done all the same")
		awaitCount(t, 1, func() uint64 { return c.Stats().Lost })
		close(second)
		require.Equal(t, "other", receive(t, began), "its second attempt")
		awaitQueue(t, c, "default", QueueInfo{})
		require.Empty(t, began)
	})
}

// The same where the other task is another worker's: while it runs, a retry must find
// it, and if that worker dies, it must be there.
func TestADoubtedEndIsNotThatOfAnotherWorkersTask(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		c, _ := newTestClient(t, s.rdb, Config{})
		w, err := NewWorker(c, WorkerConfig{})
		require.NoError(t, err)
		src := newSource(&run{w: w, base: t.Context()}, s.p)
		l := &lease{consumer: "me"}
		fetch := func(consumer string, ids ...string) []delivered {
			s.join(consumer)
			for i, id := range ids {
				s.publish("lane:"+id, i+1, nil, "1", s.envelope(id))
			}
			return s.fetched(s.turn(consumer, 9))
		}
		done := func(d delivered) *verdict {
			v := &verdict{task: src.taskOf(l, d), kind: ackVerdict}
			e, err := decodeEnvelope(d.raw)
			require.NoError(t, err)
			v.of(e)
			return v
		}
		pending := func() (owners []string) {
			list, err := s.rdb.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: s.p.streams[2], Group: group, Start: "-", End: "+", Count: 9}).Result()
			require.NoError(t, err)
			for _, p := range list {
				owners = append(owners, p.Consumer)
			}
			return owners
		}
		mine, theirs := fetch("me", "a", "b"), fetch("other", "c")
		require.Equal(t, []string{"me", "me", "other"}, pending())

		require.Equal(t, unseen, src.standing(mine[1]))
		early, still := done(mine[0]), done(mine[1])
		lost := done(delivered{entry: theirs[0].entry, raw: s.envelope("lost")})
		src.inbox.put(early)
		src.inbox.put(lost)
		src.suspect()
		src.inbox.put(still)
		require.Empty(t, src.inbox.takeAcks(), "they do not travel with a fetch")
		<-src.inbox.due
		batch, refused, _ := src.inbox.take()
		require.ElementsMatch(t, []*verdict{early, lost, still}, batch)
		require.Empty(t, refused)
		require.Empty(t, src.store(batch))
		require.Equal(t, []string{"other"}, pending())
		require.Equal(t, int64(1), s.rdb.XLen(t.Context(), s.p.streams[2]).Val())
		require.Equal(t, "2", s.counter(countAcked))
		require.Equal(t, uint64(2), c.Stats().Succeeded)
		require.Equal(t, uint64(1), c.Stats().Lost)
		require.Equal(t, ended, src.standing(mine[0]))

		// Whether an acknowledgement without an answer has arrived is not known: no loss.
		again := done(mine[0])
		again.mayBeDone = true
		again.doubted.Store(true)
		require.Empty(t, src.store([]*verdict{again}))
		require.Equal(t, uint64(3), c.Stats().Succeeded)
		require.Equal(t, uint64(1), c.Stats().Lost)

		// What is read now is not in doubt.
		next := done(fetch("me", "d")[0])
		src.inbox.put(next)
		require.Equal(t, []*verdict{next}, src.inbox.takeAcks())
	})
}
