package broker

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
)

// A reply of fetch.lua is bounded by bytes, not only by tasks.
func TestFetchScriptReadsFewLargeTasksAtATime(t *testing.T) {
	eachScripts(t, func(t *testing.T, s scripts) {
		s.join("c")
		sized := func(id string, size int) []byte {
			return appendEnvelope(nil, &envelope{priority: 1, attempt: 1, maxAttempts: 3, id: id, task: "t", payload: make([]byte, size)})
		}
		seq, want := 0, []string(nil)
		add := func(priority string, n, size int) {
			t.Helper()
			for range n {
				seq++
				id := fmt.Sprint(seq)
				want = append(want, id)
				s.publish("lane", seq, nil, priority, sized(id, size))
			}
		}
		fetch := func(n, step int) (ids []string) {
			t.Helper()
			reply := s.run(fetchScript, s.p.fetchKeys("c"), "c", n, step, 0, 0, 0, 0).([]any)
			require.Equal(t, "", reply[0])
			for _, d := range s.fetched(reply) {
				e, err := decodeEnvelope(d.raw)
				require.NoError(t, err)
				ids = append(ids, e.id)
			}
			require.Equal(t, want[:len(ids)], ids, "in their order, none left out")
			want = want[len(ids):]
			return ids
		}
		add("0", 40, 10)
		require.Len(t, fetch(39, fetchStep), 39, "small ones as many as are wanted")
		add("1", 30, 600<<10)
		require.Len(t, fetch(256, 1), 5, "one small one, and large ones until there are 2 MiB")
		require.Len(t, fetch(256, 1), 4)
		require.Len(t, fetch(3, 1), 3)
		require.Len(t, fetch(256, fetchStep), fetchStep, "unexpectedly large: those of one step")
		add("2", 2, 10)
		require.Len(t, fetch(256, fetchStep), 5, "the next stream follows")
		require.Empty(t, want)
		add("1", 60, 100<<10)
		require.Len(t, fetch(256, fetchStep), 2*fetchStep)
		require.Len(t, fetch(256, fetchStep), 28)
	})
}

// Many tasks of a mebibyte go through a worker in parts, and all slots are used.
func TestLargeTasksAreFetchedInParts(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		const n = 40
		largest := &largestReply{}
		rdb.AddHook(largest)
		c, _ := newTestClient(t, rdb, Config{})
		task := NewTask[[]byte]("large", TaskConfig{Codec: Raw})
		random := seeded(t)
		args := make([][]byte, n)
		for i := range args {
			args[i] = make([]byte, 256<<10)
			for j := range args[i] {
				args[i][j] = byte(random.Uint32())
			}
			args[i][0] = byte(i)
		}
		_, err := task.PublishMany(t.Context(), c, args)
		require.NoError(t, err)
		got, release := make(chan int, 2*n), make(chan struct{})
		stop := startWorker(t, c, WorkerConfig{Concurrency: n}, func(w *Worker) {
			task.Handle(w, func(ctx context.Context, b []byte) error {
				if !bytes.Equal(b, args[b[0]]) {
					return Reject(errTest)
				}
				got <- int(b[0])
				<-release
				return nil
			})
		})
		seen := map[int]bool{}
		for range n {
			seen[receive(t, got)] = true
		}
		require.Len(t, seen, n, "all of them run at once")
		close(release)
		awaitQueue(t, c, "default", QueueInfo{})
		require.NoError(t, stop())
		awaitCount(t, uint64(n), func() uint64 { return c.Stats().Succeeded })
		require.LessOrEqual(t, largest.bytes.Load(), int64((fetchStep+1)*(256<<10)), "of the first one")
		require.Greater(t, largest.bytes.Load(), int64(4*(256<<10)))
	})
}

// A largestReply keeps how long the longest answer of fetch.lua is.
type largestReply struct{ bytes atomic.Int64 }

func (*largestReply) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*largestReply) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (l *largestReply) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if c, ok := cmd.(*redis.Cmd); ok {
			if reply, _ := c.Val().([]any); len(reply) == fetchValues {
				bytes := 0
				found, _ := parseFetched(reply[2+streams])
				for _, d := range found {
					bytes += len(d.raw)
				}
				l.bytes.Store(max(l.bytes.Load(), int64(bytes)))
			}
		}
		return err
	}
}

// The maintenance holds few large tasks of a dead worker at a time.
func TestLargeTasksOfADeadWorkerAreMovedInParts(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		c, _ := newTestClient(t, rdb, Config{})
		_, err := c.queue(t.Context(), "default")
		require.NoError(t, err)
		const n, size = 20, 200 << 10
		s := scripts{t, rdb, newPartition("redisha", "default", 0, 1)}
		for k := range n {
			large := keyed(fmt.Sprint(k), "", "")
			large.deliveries, large.payload = 0, make([]byte, size)
			s.put(Ready, large)
		}
		s.join("dead")
		entries, _ := s.fetch("dead", n)
		for len(entries) < n {
			more, _ := s.fetch("dead", n)
			entries = append(entries, more...)
		}
		require.NoError(t, rdb.Del(t.Context(), s.p.heartbeat("dead")).Err())
		loads := &loadsInARow{}
		rdb.AddHook(loads)
		m, _ := newMaintenance(t, c)
		require.NoError(t, m.reap(t.Context()))
		require.LessOrEqual(t, loads.most, 2, "512 KiB, of what is read and what is written")
		require.Equal(t, "20", s.counter(countReaped))
		require.Equal(t, QueueInfo{Ready: n}, queueInfo(t, c, "default"))
	})
}

// loadsInARow counts how many tasks are read before some are moved.
type loadsInARow struct{ n, most int }

func (*loadsInARow) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*loadsInARow) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (l *loadsInARow) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		switch cmd.Name() {
		case "xrange":
			l.n++
			l.most = max(l.most, l.n)
		case "evalsha", "eval":
			l.n = 0
		}
		return next(ctx, cmd)
	}
}

// What a proxy or a hook may make of an answer is an error, behind the tasks before it.
func TestFetchedTasksAreReadWithCare(t *testing.T) {
	a := delivered{entry{1, "1-0"}, []byte("a"), false}
	b := delivered{entry{2, "2-0"}, []byte("b"), true}
	for _, c := range []struct {
		reply any
		found []delivered
		err   bool
	}{
		{[]any{}, []delivered{}, false},
		{[]any{int64(1)}, []delivered{}, false},
		{[]any{int64(1), "1-0", "a", int64(2), "2-0x", "b"}, []delivered{a, b}, false},
		{nil, nil, true},
		{"1-0", nil, true},
		{[]any{"1-0", "a"}, []delivered{}, true},
		{[]any{int64(-1), "1-0", "a"}, []delivered{}, true},
		{[]any{int64(streams), "1-0", "a"}, []delivered{}, true},
		{[]any{int64(1), "1-0"}, []delivered{}, true},
		{[]any{int64(1), "1-0", "a", "2-0"}, []delivered{a}, true},
		{[]any{int64(1), "1-0", "a", "2-0", nil}, []delivered{a}, true},
		{[]any{int64(1), "1-0", "a", nil, "b"}, []delivered{a}, true},
		{[]any{int64(1), "1-0", int64(2)}, []delivered{}, true},
	} {
		found, err := parseFetched(c.reply)
		require.Equal(t, c.found, found, "%v", c.reply)
		require.Equal(t, c.err, err != nil, "%v: %v", c.reply, err)
	}
}
