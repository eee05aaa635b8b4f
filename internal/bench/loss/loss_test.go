package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/internal/bench/children"
	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) {
	children.Obey(order.obey)
	redistest.Main(m)
}

func TestALedgerTellsWhatIsLost(t *testing.T) {
	l := newLedger(8)
	for range 8 {
		_, ok := l.take()
		require.True(t, ok)
	}
	_, ok := l.take()
	require.False(t, ok, "there are no more")
	l.published(0, wasConfirmed) // and lost
	l.published(1, wasConfirmed)
	l.ran(1)
	l.published(2, wasConfirmed)
	l.see("some envelope" + string(argument(2)) + string(argument(7)))
	l.published(3, wasUnconfirmed)
	l.published(4, wasFailed)
	l.published(5, wasFailed)
	l.ran(5) // though its publish failed
	l.published(6, wasConfirmed)
	for range 3 {
		l.ran(6)
	}
	require.Equal(t, balance{confirmed: 4, unconfirmed: 1, failed: 2, lost: 1, ghosts: 1, duplicates: 2, visible: 2, firstLost: []int{0}}, l.balance())
	require.EqualValues(t, 4, l.done.Load())
	require.EqualValues(t, 5, l.runs.Load())
	require.Panics(t, func() { l.ran(8) })
}

func TestALedgerKnowsTheLongestTimeWithoutARun(t *testing.T) {
	l := newLedger(1)
	l.ran(0)
	time.Sleep(30 * time.Millisecond)
	l.ran(0)
	l.ran(0)
	require.GreaterOrEqual(t, l.longest.Load(), int64(30*time.Millisecond))
}

func TestArgumentsCarryTheirNumber(t *testing.T) {
	for _, n := range []int{0, 1, 1 << 20, 1<<32 - 1} {
		got, err := number(argument(n))
		require.NoError(t, err)
		require.Equal(t, n, got)
	}
	for _, arg := range [][]byte{nil, []byte("abc"), append(argument(1), 0)} {
		_, err := number(arg)
		require.Error(t, err)
	}
	newLedger(1).see(string(mark) + "ab") // cut off
}

func testLoad(t *testing.T, target int) *load {
	return &load{b: &bench{Suite: &harness.Suite{}}, ledger: newLedger(target), target: target}
}

// Wherever a task is, it is found.
func TestTheSearchFindsTasksInAllStates(t *testing.T) {
	server := redistest.Shared(t)
	rdb := server.Client(t)
	c, err := connect(server.URL(), broker.ConfirmDefault, (&bench{}).logger())
	require.NoError(t, err)
	defer func() { require.NoError(t, c.end()) }()
	l := testLoad(t, 10)
	for n := range 10 {
		l.ledger.take()
		l.ledger.published(n, wasConfirmed)
	}
	publish := func(n int, opts ...broker.PublishOption) {
		_, err := task.Publish(t.Context(), c.Client, argument(n), opts...)
		require.NoError(t, err)
	}
	publish(0)
	publish(1, broker.After(time.Hour))
	publish(2, broker.ID("given"))
	// Delivered, and not acknowledged.
	streams, err := rdb.Keys(t.Context(), "*:s:1").Result()
	require.NoError(t, err)
	require.Len(t, streams, 1)
	require.NoError(t, rdb.XGroupCreate(t.Context(), streams[0], "w", "0").Err())
	require.NoError(t, rdb.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "w", Consumer: "x", Count: 1, Streams: []string{streams[0], ">"}}).Err())
	// A dead letter.
	rejecting := broker.NewTask[[]byte]("reject", broker.TaskConfig{Queue: "other", Codec: broker.Raw})
	_, err = rejecting.Publish(t.Context(), c.Client, argument(3))
	require.NoError(t, err)
	require.NoError(t, rdb.HSet(t.Context(), "redisha:queue:{loss:9.9}:dlh", "id", "\xc1\x1a\x01\x00\x00\x00"+string(argument(4))).Err())
	require.NoError(t, rdb.RPush(t.Context(), "redisha:queue:{loss:9.9}:kq:key", string(argument(5))).Err()) // parked
	require.NoError(t, rdb.HSet(t.Context(), "redisha:queue:{loss:9.9}:st", "acked", 12).Err())

	acked, err := l.search(t.Context(), []*redistest.Server{server})
	require.NoError(t, err)
	require.EqualValues(t, 12, acked)
	result := l.ledger.balance()
	require.Equal(t, 6, result.visible)
	require.Equal(t, []int{6, 7, 8, 9}, result.firstLost)

	require.NoError(t, empty(t.Context(), []*redistest.Server{server}))
	n, err := rdb.DBSize(t.Context()).Result()
	require.NoError(t, err)
	require.Zero(t, n)
}

// The whole of it must be able to fail.
func TestATaskThatIsRemovedIsLost(t *testing.T) {
	server := redistest.Shared(t)
	rdb := server.Client(t)
	b := &bench{Suite: &harness.Suite{Quick: true}}
	const target = 300
	l, err := b.begin(t.Context(), server.URL(), broker.ConfirmDefault, target, rate, false)
	require.NoError(t, err)
	require.NoError(t, l.reach(t.Context(), target))
	l.enough.Store(true)
	l.publishing.Wait()
	streams, err := rdb.Keys(t.Context(), "*:s:1").Result()
	require.NoError(t, err)
	entries, err := rdb.XRangeN(t.Context(), streams[0], "-", "+", 3).Result()
	require.NoError(t, err)
	for _, e := range entries {
		require.NoError(t, rdb.XDel(t.Context(), streams[0], e.ID).Err())
	}
	_, err = l.stop()
	require.NoError(t, err)
	_, err = l.search(t.Context(), []*redistest.Server{server})
	require.NoError(t, err)
	require.Equal(t, 3, l.ledger.balance().lost)
}

func TestAQuickRunTellsWhatWasLost(t *testing.T) {
	redistest.Require(t)
	var stdout, stderr bytes.Buffer
	stories := false
	code := harness.Run(t.Context(), topic(&stories), []string{"-quick", "-only", "workers|replies"}, &stdout, &stderr)
	require.Zero(t, code, stderr.String())
	require.Contains(t, stdout.String(), "Targets: 10 of 10 met.")
	for _, work := range []string{workersWork, repliesWork} {
		require.Regexp(t, `\| `+work+` +\| redisha +\| confirmed, lost +\| 0 `, stdout.String())
	}
}
