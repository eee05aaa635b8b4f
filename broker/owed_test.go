package broker

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/testserver"
)

// An inspector that dies when the tasks are gone, and before their results are written.
func (i *inspected) purgeAndDie() {
	i.t.Helper()
	dead := result.Config{}
	// A new client looks its host up, and a bubble that did so first would own the process' resolver: so an IP.
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1, Dialer: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("on purpose")
	}})
	defer rdb.Close()
	results, err := result.New(rdb, dead)
	require.NoError(i.t, err)
	defer results.Close()
	dying, err := NewInspector(i.c, results)
	require.NoError(i.t, err)
	for tried := false; !tried || i.info() != (QueueInfo{}); tried = true {
		_, err = dying.Purge(i.t.Context(), "mail")
		require.ErrorContains(i.t, err, "results not written: who waits for them waits until a worker with results writes them")
	}
}

func TestTheResultThatADeadInspectorOwesIsWrittenByTheNext(t *testing.T) {
	for name, next := range map[string]func(i *inspected) error{
		"Purge":       func(i *inspected) error { _, err := i.Purge(i.t.Context(), "mail"); return err },
		"Cancel":      func(i *inspected) error { _, err := i.Cancel(i.t.Context(), "mail", "delayed"); return err },
		"DeleteQueue": func(i *inspected) error { return i.DeleteQueue(i.t.Context(), "mail") },
	} {
		t.Run(name, func(t *testing.T) {
			eachInspected(t, func(t *testing.T, i *inspected) {
				ctx := t.Context()
				unwanted := keyed("unwanted", "", "")
				unwanted.result = false
				for _, e := range []*envelope{keyed("delayed", "", ""), unwanted} {
					i.s.put(Delayed, e)
				}
				i.s.put(Ready, keyed("ready", "", ""))
				i.purgeAndDie()
				require.Equal(t, QueueInfo{}, i.info())
				require.ElementsMatch(t, []string{"delayed", "ready"}, i.rdb.HKeys(ctx, i.s.p.owed).Val())
				r, err := i.results.Get(ctx, "ready")
				require.NoError(t, err)
				require.Equal(t, result.Pending, r.State)

				require.NoError(t, next(i))
				for _, id := range []string{"delayed", "ready"} {
					r, err := i.results.Wait(ctx, id)
					require.NoError(t, err)
					require.EqualError(t, r.Err(), `result: task t "`+id+`": cancelled at attempt 3: purged by hand`)
				}
				require.Zero(t, i.rdb.Exists(ctx, i.s.p.owed).Val())
			})
		})
	}
}

func TestTheResultThatADeadInspectorOwesIsWrittenByMaintenance(t *testing.T) {
	inBubble(t, func(t *testing.T, s *testserver.Server, c *Client, logs *logs) {
		results := newResults(t, bubbleRedis(t, s), result.Config{})
		inspector, err := NewInspector(c, results)
		require.NoError(t, err)
		_, err = c.queue(t.Context(), "mail")
		require.NoError(t, err)
		i := &inspected{inspector, t, c.conn, c, results, scripts{t, c.conn, newPartition("redisha", "mail", 0, 1)}}
		i.s.put(Delayed, keyed("delayed", "", ""))
		i.s.put(Delayed, keyed("never", "", ""))
		i.purgeAndDie()
		require.NoError(t, c.conn.HSet(t.Context(), i.s.p.owed, "corrupt", "text").Err())
		require.NoError(t, c.conn.LPush(t.Context(), "redisha:result:never", "text").Err())
		startWorker(t, c, WorkerConfig{Results: results, Queues: []string{"mail"}}, func(w *Worker) {
			NewTask[int]("t", TaskConfig{}).Handle(w, func(context.Context, int) error { return nil })
		})
		r, err := results.Wait(t.Context(), "delayed")
		require.NoError(t, err)
		require.Equal(t, result.Cancelled, r.State)
		time.Sleep(time.Second)
		require.Zero(t, c.conn.Exists(t.Context(), i.s.p.owed).Val(), "what can never be written is not tried for ever")
		require.Equal(t, 1, logs.count("results of tasks that were removed by hand"))
	})
}

// A server of results that is away keeps what is owed.
func TestWhatIsOwedStaysWhileTheResultsAreAway(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		i.s.put(Delayed, keyed("delayed", "", ""))
		for range 2 {
			i.purgeAndDie()
			require.Equal(t, []string{"delayed"}, i.rdb.HKeys(t.Context(), i.s.p.owed).Val())
		}
	})
}

// A letter that cannot be retried is still dead, and so is its result.
func TestLettersThatStayKeepTheirResults(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		ctx := t.Context()
		i.s.put(Dead, keyed("held", "u", ""))
		i.s.put(Dead, keyed("free", "", ""))
		require.NoError(t, i.rdb.Set(ctx, i.s.p.unique("u"), "another", time.Hour).Err())
		for _, id := range []string{"held", "free"} {
			_, err := i.results.Store(ctx, result.Record{ID: id, Task: "t", State: result.Failure, Attempt: 3, Cause: result.CauseOf(errTest)})
			require.NoError(t, err)
		}
		before, err := i.results.Get(ctx, "held")
		require.NoError(t, err)
		n, err := i.RetryDead(ctx, "mail", DeadFilter{})
		require.Equal(t, 1, n)
		require.ErrorContains(t, err, "1 stayed")
		after, err := i.results.GetMany(ctx, "held", "free")
		require.NoError(t, err)
		require.Equal(t, before, after[0])
		require.Equal(t, result.Pending, after[1].State)
	})
}

// Who retries a task by hand wants it to run, whatever was wished before.
func TestARetryByHandEndsACancellation(t *testing.T) {
	eachInspected(t, func(t *testing.T, i *inspected) {
		ctx := t.Context()
		i.s.put(Dead, keyed("dead", "", ""))
		done, err := i.Cancel(ctx, "mail", "dead")
		require.NoError(t, err)
		require.False(t, done)
		n, err := i.RetryDead(ctx, "mail", DeadFilter{})
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Zero(t, i.rdb.Exists(ctx, i.s.p.revoked).Val())
		require.Equal(t, QueueInfo{Ready: 1}, i.info())
		require.False(t, strings.Contains(strings.Join(i.s.keys(), " "), ":rv"))
	})
}
