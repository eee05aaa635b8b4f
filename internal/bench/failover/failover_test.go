package main

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

var start = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func at(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }

func TestRecoveredIsTheFirstCommandThatTheNewPrimaryHas(t *testing.T) {
	calls := []call{
		{ended: at(90)}, // the old primary, replicated
		{ended: at(110), err: errors.New("refused")}, // there, since it was executed all the same
		{ended: at(120)}, // acknowledged by the old primary, lost
		{ended: at(130)},
		{ended: at(140)},
	}
	d := deposit{0: 1, 1: 1, 3: 1, 4: 1}
	got, ok := recovered(calls, d, at(100))
	require.True(t, ok)
	require.Equal(t, at(130), got)

	_, ok = recovered(calls[:3], d, at(100))
	require.False(t, ok)
}

func TestTallyCountsErrorsDuplicatesAndLosses(t *testing.T) {
	unknown := errors.New("unknown")
	is := func(err error) bool { return errors.Is(err, unknown) }
	calls := []call{{}, {}, {err: unknown}, {err: unknown}, {err: errors.New("dial tcp 127.0.0.1:6379: refused")}, {}}
	var sum tally
	sum.add(calls, deposit{0: 1, 1: 3, 2: 1, 5: 0}, is)
	sum.add([]call{{err: unknown}}, deposit{0: 2}, is)
	require.Equal(t, tally{
		calls: 7, errors: 4, unknown: 3, worstUnknown: 2, duplicates: 3, lost: 1,
		kinds: map[string]int{"unknown": 3, "dial tcp …: refused": 1},
	}, sum)

	sum = tally{}
	sum.add(calls[:2], nil, is)
	require.Zero(t, sum.lost, "nobody has looked")
}

// A store is an asker that holds what was written.
type store struct {
	lists map[string][]string
	keys  map[string]string
}

func (s store) LRange(ctx context.Context, key string, _, _ int64) *redis.StringSliceCmd {
	cmd := redis.NewStringSliceCmd(ctx)
	cmd.SetVal(s.lists[key])
	return cmd
}

func (s store) MGet(ctx context.Context, keys ...string) *redis.SliceCmd {
	values := make([]any, len(keys))
	for i, key := range keys {
		if v, ok := s.keys[key]; ok {
			values[i] = v
		}
	}
	cmd := redis.NewSliceCmd(ctx)
	cmd.SetVal(values)
	return cmd
}

func TestDepositedReadsWhatWritersLeave(t *testing.T) {
	s := store{lists: map[string][]string{"list:p": {"0", "1", "1"}}, keys: map[string]string{}}
	d, err := (&writer{name: "p", push: true}).deposited(t.Context(), s)
	require.NoError(t, err)
	require.Equal(t, deposit{0: 1, 1: 2}, d)

	w := &writer{name: "s", calls: make([]call, 2500)}
	for _, n := range []int{0, 999, 1000, 2499} {
		s.keys[w.key(n)] = strconv.Itoa(n)
	}
	d, err = w.deposited(t.Context(), s)
	require.NoError(t, err)
	require.Equal(t, deposit{0: 1, 999: 1, 1000: 1, 2499: 1}, d)

	s.lists["list:p"] = []string{"x"}
	_, err = (&writer{name: "p", push: true}).deposited(t.Context(), s)
	require.ErrorContains(t, err, `list:p holds "x"`)
}

func TestWritersKeepWhatBecameOfEachCall(t *testing.T) {
	failed := errors.New("failed")
	c := client{
		set:  func(context.Context, string, string) error { return nil },
		push: func(context.Context, string, string) error { return failed },
	}
	writers, stop := startWriters(t.Context(), c)
	time.Sleep(20 * time.Millisecond)
	stop()
	for _, w := range writers {
		require.NotEmpty(t, w.calls)
		require.Equal(t, w.push, w.succeeded.Load() == 0)
		for _, call := range w.calls {
			require.Equal(t, w.push, call.err != nil)
			require.False(t, call.ended.Before(call.began))
		}
	}
}

func TestEarsTellSourcesApart(t *testing.T) {
	var e ears
	e.hear("1")
	before := time.Now()
	e.hear("2")
	_, ok := e.first("1", before)
	require.False(t, ok)
	_, ok = e.first("2", before)
	require.True(t, ok)
}

func TestP99IsOfTheCommandsBegunInATime(t *testing.T) {
	w := &writer{}
	for i := range 100 {
		w.calls = append(w.calls, call{began: at(i), ended: at(2*i + 1)}) // i+1 ms
	}
	require.Equal(t, 100*time.Millisecond, p99([]*writer{w}, at(0), at(100)))
	require.Equal(t, 50*time.Millisecond, p99([]*writer{w}, at(0), at(50)))
	require.Zero(t, p99([]*writer{w}, at(200), at(300)))
}

func TestObserverKeepsAnnouncementsInOrder(t *testing.T) {
	o := observe(nil)
	defer o.close()
	_, ok := o.first("+switch-master")
	require.False(t, ok)
	go func() {
		o.take(announcement{at: at(1), channel: "+sdown"})
		o.take(announcement{at: at(2), channel: "+switch-master", payload: "a"})
		o.take(announcement{at: at(3), channel: "+switch-master", payload: "b"})
	}()
	a, err := o.await(t.Context(), "+switch-master")
	require.NoError(t, err)
	require.Equal(t, "a", a.payload)
	o.forget()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = o.await(ctx, "+never")
	require.ErrorContains(t, err, "no Sentinel announced +never")
}

func TestUnknownOutcomesAreRedishasAlone(t *testing.T) {
	for _, open := range []opener{openGoRedis, openGoRedisPool(100)} {
		c, err := open([]string{"127.0.0.1:1"}, "mymaster")
		require.NoError(t, err)
		require.False(t, c.unknown(conn.ErrOutcomeUnknown))
		require.NoError(t, c.close())
	}
	c, err := openRedisha([]string{"127.0.0.1:1"}, "mymaster")
	require.NoError(t, err)
	defer func() { require.NoError(t, c.close()) }()
	require.True(t, c.unknown(conn.ErrOutcomeUnknown))
}
