package main

import (
	"bytes"
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/bench/children"
	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) {
	children.Obey(order.obey)
	redistest.Main(m)
}

func TestMessagesHaveTheirSize(t *testing.T) {
	for _, size := range sizes {
		for _, n := range []int{0, 1, waitingCount} {
			b, err := json.Marshal(newMessage(n, size))
			require.NoError(t, err)
			require.Len(t, b, size)
		}
		require.NotEqual(t, newMessage(1, size), newMessage(1, size), "they cannot be compressed to nothing")
	}
}

// benchOn is a bench on a server of its own.
func benchOn(t *testing.T, server *redistest.Server) *bench {
	return &bench{Suite: &harness.Suite{Quick: true}, server: server, monitor: server.Client(t)}
}

// Every contender must do the same work.
func TestEverySideDoesWhatIsPublished(t *testing.T) {
	server := redistest.Shared(t)
	b := benchOn(t, server)
	for _, s := range append(sides, fairAsynq) {
		t.Run(s.name, func(t *testing.T) {
			found, err := sideNamed(s.name)
			require.NoError(t, err)
			require.Equal(t, s.name, found.name)
			o := settings{Addrs: []string{server.Addr()}, Queue: "q", Producers: 3, Concurrency: 3}
			p, err := b.fresh(t.Context(), s, o)
			require.NoError(t, err)
			defer func() { require.NoError(t, p.close()) }()
			want := []message{newMessage(1, 100), newMessage(2, 1024), newMessage(3, 100)}
			require.NoError(t, p.publish(t.Context(), want[0]))
			require.NoError(t, p.after(t.Context(), want[1], time.Millisecond))
			if p.many != nil {
				require.NoError(t, p.many(t.Context(), want[2:]))
			} else {
				require.NoError(t, p.publish(t.Context(), want[2]))
			}
			got := make(chan message, 10)
			stop, err := s.start(o, func(m message) { got <- m })
			require.NoError(t, err)
			var all []message
			for range 1 + len(want) {
				select {
				case m := <-got:
					if m.N > firstN { // but that of fresh
						all = append(all, m)
					}
				case <-time.After(30 * time.Second): // asynq looks for what is due each 5 s
					require.Fail(t, "not handled", "%v", all)
				}
			}
			require.NoError(t, stop())
			require.Empty(t, got, "none is handled twice")
			require.ElementsMatch(t, want, all)
			done, err := doneOn(t.Context(), b.monitor)
			require.NoError(t, err)
			require.EqualValues(t, 1+len(want), done)
		})
	}
	_, err := sideNamed("nobody")
	require.ErrorContains(t, err, `"nobody"`)
}

func TestAFilledQueueIsLoadedAgain(t *testing.T) {
	server := redistest.New(t, redistest.Config{Lines: []string{"enable-debug-command local", "enable-protected-configs local"}})
	b := benchOn(t, server)
	const count = 100
	for _, s := range sides {
		o := settings{Addrs: []string{server.Addr()}, Queue: "q", Concurrency: 10}
		load, err := b.filled(t.Context(), s, o, count, sizes[0])
		require.NoError(t, err)
		for range 2 {
			require.NoError(t, load(t.Context()))
			handled := make(map[int]int)
			var mu sync.Mutex
			all := make(chan struct{})
			stop, err := s.start(o, func(m message) {
				mu.Lock()
				defer mu.Unlock()
				if handled[m.N]++; len(handled) == count {
					close(all)
				}
			})
			require.NoError(t, err)
			select {
			case <-all:
			case <-time.After(30 * time.Second):
				require.Fail(t, "not all handled")
			}
			require.NoError(t, stop())
			for n, times := range handled {
				require.Equal(t, 1, times, n)
			}
		}
	}
}

func TestTasksOfAKilledWorkerRunAgainAfterItsLease(t *testing.T) {
	server := redistest.Shared(t)
	x := &mortality{b: benchOn(t, server), side: ours, backlog: 300, trials: 1, queue: "killed",
		settings: settings{Addrs: []string{server.Addr()}, Concurrency: heldTasks, Lease: shortLease}}
	require.NoError(t, x.begin(t.Context()))
	r := <-x.results
	require.NoError(t, x.end())
	require.NoError(t, r.err)
	require.Greater(t, r.after, shortLease/2, "its last heartbeat was at most a fifth of its lease ago: else nothing died")
}

func TestAnOrderForNobodyIsRefused(t *testing.T) {
	require.ErrorContains(t, order{Side: "nobody"}.obey(nil), "no contender is called")
}

func TestSharesAreComparedWithTheirMean(t *testing.T) {
	require.InDelta(t, 0, offMean([]float64{5, 5, 5}), 1e-9)
	require.InDelta(t, 200, offMean([]float64{9, 0, 0}), 1e-9)
	require.InDelta(t, 20, offMean([]float64{8, 10, 12}), 1e-9)
}

func TestQuantileIsOfSortedValues(t *testing.T) {
	values := make([]time.Duration, 100)
	for i := range values {
		values[i] = time.Duration(i + 1)
	}
	require.EqualValues(t, 51, quantile(values, 0.5))
	require.EqualValues(t, 100, quantile(values, 0.99))
	require.EqualValues(t, 100, quantile(values, 1))
	require.Zero(t, quantile(nil, 0.5))
}

func TestFillStopsAtAnError(t *testing.T) {
	failed := context.DeadlineExceeded
	p := &producer{publish: func(_ context.Context, m message) error {
		if m.N == firstN+7 {
			return failed
		}
		return nil
	}}
	require.ErrorIs(t, fill(t.Context(), p, 1000, 100), failed)
}

func TestAQuickRunComparesBothSides(t *testing.T) {
	redistest.Require(t)
	var stdout, stderr bytes.Buffer
	code := harness.Run(t.Context(), topic, []string{"-quick", "-only", "^(publish 100 B, 64|memory|replication)"}, &stdout, &stderr)
	require.Zero(t, code, stderr.String())
	for _, row := range []string{
		`publish 100 B, 64 producers +\| %s +\| ops/s +\| [\d,.]+/s `,
		`memory of a waiting task, 100 B +\| %s +\| B/waiting task +\| \d+ B `,
		`replication of a task, published and done, 100 B +\| %s +\| replication B/task +\| [\d,]+ B `,
	} {
		for _, s := range sides {
			require.Regexp(t, `\| `+string(bytes.ReplaceAll([]byte(row), []byte("%s"), []byte(s.name))), stdout.String())
		}
	}
	require.NotContains(t, stdout.String(), "| drain")
}
