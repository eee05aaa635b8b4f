package broker

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/redisha/redisha/internal/redistest/both"
)

// A nightShift is a queue with publishers, a worker and somebody who inspects it, all of
// whom do something at random.
type nightShift struct {
	*Inspector
	t    *rapid.T
	s    scripts
	task *Task[int]
	held []delivered // by the worker
	ids  []string    // of all tasks that were published
}

// Whatever is done by hand, by publishers and by workers: each task that was
// published or revived has ended in one way, or is in one place; no key has more
// tasks than its limit or keeps others waiting for nothing, and a unique key is held
// while there is such a task and no longer.
func TestTasksAreConservedWhateverIsDoneByHand(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		checks, most := 0, 40
		switch {
		case os.Getenv("REDISHA_TEST_SOAK") == "1":
			most = math.MaxInt
		case strings.HasSuffix(t.Name(), "/miniredis"): // which is slow
			most = 10
		}
		rapid.Check(t, func(t *rapid.T) {
			if checks++; checks > most {
				return
			}
			ctx := context.Background()
			require.NoError(t, rdb.FlushAll(ctx).Err())
			c, err := New(rdb, Config{Logger: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			defer func() { require.NoError(t, c.Close()) }()
			i, err := NewInspector(c, nil)
			require.NoError(t, err)
			n := &nightShift{Inspector: i, t: t, s: scripts{t, rdb, newPartition("redisha", "mail", 0, 1)}, task: NewTask[int]("t", TaskConfig{Queue: "mail"})}
			n.publish(t)
			n.s.join("worker")
			t.Repeat(map[string]func(*rapid.T){
				"":        n.check,
				"publish": n.publish,
				"fetch":   n.fetch,
				"end":     n.end,
				"due":     n.due,
				"retry":   func(t *rapid.T) { n.count(n.RetryDead(ctx, "mail", n.some(t))) },
				"delete":  func(t *rapid.T) { n.count(n.DeleteDead(ctx, "mail", n.some(t))) },
				"cancel": func(t *rapid.T) {
					_, err := n.Cancel(ctx, "mail", rapid.SampledFrom(n.ids).Draw(t, "id"))
					require.NoError(t, err)
				},
				"purge": func(t *rapid.T) {
					if rapid.IntRange(0, 4).Draw(t, "dice") == 0 {
						n.count(n.Purge(ctx, "mail"))
						require.Equal(t, int64(len(n.held)), queueOf(t, n).InFlight)
					}
				},
			})
		})
	})
}

const limit = 1 // of each concurrency key

func queueOf(t require.TestingT, n *nightShift) QueueStatus {
	q, err := n.Queue(context.Background(), "mail")
	require.NoError(t, err)
	return q
}

// count requires that a change by hand did no more than refuse held keys.
func (n *nightShift) count(_ int, err error) {
	if err != nil {
		require.ErrorContains(n.t, err, "its unique key")
	}
}

func (n *nightShift) some(t *rapid.T) (f DeadFilter) {
	if rapid.Bool().Draw(t, "one") {
		f.IDs = []string{rapid.SampledFrom(n.ids).Draw(t, "id")}
	}
	return f
}

func (n *nightShift) publish(t *rapid.T) {
	var opts []PublishOption
	if rapid.IntRange(0, 3).Draw(t, "delayed") == 0 {
		opts = append(opts, After(100*time.Hour))
	}
	if rapid.Bool().Draw(t, "keyed") {
		opts = append(opts, Key(rapid.SampledFrom([]string{"k1", "k2"}).Draw(t, "key"), limit))
	}
	if rapid.Bool().Draw(t, "unique") {
		opts = append(opts, Unique("u"))
	}
	id, err := n.task.Publish(context.Background(), n.c, 1, opts...)
	if err != nil {
		require.ErrorIs(t, err, ErrDuplicate)
		return
	}
	n.ids = append(n.ids, id)
}

func (n *nightShift) fetch(t *rapid.T) {
	reply := n.s.turn("worker", rapid.IntRange(1, 3).Draw(t, "n"))
	require.Equal(t, "", reply[0])
	n.held = append(n.held, n.s.fetched(reply)...)
}

// end lets the worker end something that it has, in any way.
func (n *nightShift) end(t *rapid.T) {
	if len(n.held) == 0 {
		return
	}
	k := rapid.IntRange(0, len(n.held)-1).Draw(t, "which")
	d := n.held[k]
	n.held = append(n.held[:k:k], n.held[k+1:]...)
	e, err := decodeEnvelope(d.raw)
	require.NoError(t, err)
	how := rapid.SampledFrom([]string{"x acked", "z retried", "r released", "d dead", "x expired"}).Draw(t, "how")
	if d.revoked {
		how = "x cancelled"
	}
	to, counter, _ := strings.Cut(how, " ")
	value, delay := d.raw, 100_000_000
	if to == "d" {
		delay = 0
		value = appendDeadLetter(nil, Exhausted, "", d.raw)
	}
	keys := append(n.s.p.moveKeys("worker"), n.s.p.parkedKeys)
	reply := n.s.run(moveScript, keys, "worker", "0", d.stream+1, d.id, to, counter, e.id, delay, value, e.unique, e.key)
	require.Equal(t, []any{int64(1)}, reply)
}

// due makes all delayed tasks due, and moves them.
func (n *nightShift) due(t *rapid.T) {
	ctx := context.Background()
	for _, id := range n.s.rdb.ZRange(ctx, n.s.p.delayed, 0, -1).Val() {
		require.NoError(t, n.s.rdb.ZAdd(ctx, n.s.p.delayed, redis.Z{Score: 1, Member: id}).Err())
	}
	require.NoError(t, n.s.rdb.Del(ctx, n.s.p.maintainer).Err())
	require.Equal(t, "", n.s.maintain("worker", 500)[4])
}

func (n *nightShift) check(t *rapid.T) {
	ctx := context.Background()
	q := queueOf(t, n)
	require.Equal(t, int64(len(n.held)), q.InFlight)
	entered := q.Counts[countPublished] + q.Counts[countRevived]
	left := q.Counts[countAcked] + q.Counts[countDead] + q.Counts[countCancelled] + q.Counts[countExpired] + q.Counts[countPurged]
	require.Equal(t, entered, left+q.Ready+q.InFlight+q.Delayed+q.Parked, "%+v", q)
	require.Equal(t, q.Counts[countDead], q.Dead+q.Counts[countRevived]+q.Counts[countDeleted])

	slots, parked, unique := map[string][]string{}, map[string]int{}, map[string]string{}
	for _, state := range []TaskState{Ready, InFlight, Delayed, Parked} {
		for task, err := range n.Tasks(ctx, "mail", state) {
			require.NoError(t, err)
			switch {
			case task.Key != "" && state == Parked:
				parked[task.Key]++
			case task.Key != "" && state != Delayed:
				slots[task.Key] = append(slots[task.Key], task.ID)
			}
			if task.Unique != "" {
				require.Empty(t, unique[task.Unique], "two tasks of one unique key")
				unique[task.Unique] = task.ID
			}
		}
	}
	for _, key := range []string{"k1", "k2"} {
		require.ElementsMatch(t, slots[key], n.s.rdb.SMembers(ctx, n.s.p.slots(key)).Val(), key)
		require.LessOrEqual(t, len(slots[key]), limit, key)
		require.Equal(t, int64(parked[key]), n.s.rdb.LLen(ctx, n.s.p.parked(key)).Val(), key)
		if parked[key] > 0 {
			require.Len(t, slots[key], limit, "%s waits for nothing", key)
		}
	}
	for _, key := range []string{"u"} {
		holder, err := n.s.rdb.Get(ctx, n.s.p.unique(key)).Result()
		if err != nil {
			holder = ""
		}
		require.Equal(t, unique[key], holder, fmt.Sprint(key, " ", err))
	}
}
