package broker

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/redisha/redisha/internal/redistest/both"
)

// A model is what a partition must hold: where each task is, by its ID.
type model struct {
	s         scripts
	at        map[string]place
	published int
	acked     int
	seq       map[string]int // of lanes
	last      map[string][]any
	consumers map[string]bool // alive
	next      int
}

type place struct {
	state    string // ready, held, delayed, dead
	consumer string
	entry    entry
}

func (m *model) ids(match func(place) bool) (ids []string) {
	for i := range m.next { // in an order that can be repeated
		id := fmt.Sprint("id", i)
		if p, ok := m.at[id]; ok && match(p) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (m *model) check(t *rapid.T) {
	count := map[string]int64{}
	for _, p := range m.at {
		count[p.state]++
	}
	require.Equal(t, []any{count["ready"], count["held"], count["delayed"], count["dead"]}, m.s.counts())
	require.Equal(t, m.published, int(toUint(m.s.counter(countPublished))))
	require.Equal(t, m.acked, int(toUint(m.s.counter(countAcked))))
	require.Equal(t, m.published, m.acked+len(m.at), "published = acked + ready + in flight + delayed + dead")
}

// Scripts called in any order, repeated and out of date, lose and double nothing.
func TestScriptsConserveTasks(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		slow, checks := strings.HasSuffix(t.Name(), "/miniredis"), 0
		rapid.Check(t, func(t *rapid.T) {
			if checks++; slow && checks > 15 {
				return // a real server does 100 in a second
			}
			require.NoError(t, rdb.FlushAll(context.Background()).Err())
			m := &model{
				s: scripts{t, rdb, newPartition("redisha", "mail", 0, 1)}, at: map[string]place{},
				seq: map[string]int{}, last: map[string][]any{}, consumers: map[string]bool{},
			}
			t.Repeat(map[string]func(*rapid.T){
				"":         m.check,
				"publish":  m.publish,
				"plain":    m.publishPlain,
				"resend":   m.resend,
				"again":    m.publishAgain,
				"join":     func(t *rapid.T) { c := m.consumer(t); m.s.join(c); m.consumers[c] = true },
				"fetch":    m.fetch,
				"ack":      m.ack,
				"move":     m.move,
				"crash":    m.crash,
				"reap":     m.reap,
				"due":      m.due,
				"leave":    m.leave,
				"maintain": func(t *rapid.T) { m.s.maintain("other", 1) },
			})
		})
	})
}

func (m *model) consumer(t *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "consumer")
}

// publishPlain publishes by plain.lua. That is sent again by publish.lua.
func (m *model) publishPlain(t *rapid.T) {
	lane := rapid.SampledFrom([]string{"lane1", "lane2"}).Draw(t, "lane")
	priority := rapid.IntRange(0, 2).Draw(t, "priority")
	var args []any
	var envelopes [][]byte
	for range rapid.IntRange(1, 4).Draw(t, "tasks") {
		id := fmt.Sprint("id", m.next)
		m.next++
		args = append(args, fmt.Sprint(priority), m.s.envelope(id))
		envelopes = append(envelopes, m.s.envelope(id))
		m.at[id] = place{state: "ready"}
		m.published++
	}
	m.seq[lane]++
	m.last[lane] = args
	m.s.publishPlain(lane, m.seq[lane], priority, envelopes...)
}

func (m *model) publish(t *rapid.T) {
	lane := rapid.SampledFrom([]string{"lane1", "lane2"}).Draw(t, "lane")
	var args []any
	for range rapid.IntRange(1, 4).Draw(t, "tasks") {
		id := fmt.Sprint("id", m.next)
		m.next++
		state := "ready"
		if rapid.Bool().Draw(t, "delayed") {
			args = append(args, "x", "1", id, "+100000000", 0, m.s.envelope(id))
			state = "delayed"
		} else {
			args = append(args, rapid.SampledFrom([]string{"0", "1", "2"}).Draw(t, "priority"), m.s.envelope(id))
		}
		m.at[id] = place{state: state}
		m.published++
	}
	m.seq[lane]++
	m.last[lane] = args
	m.s.publish(lane, m.seq[lane], nil, args...)
}

// resend is a batch whose answer was lost, or one that arrives late.
func (m *model) resend(t *rapid.T) {
	lane := rapid.SampledFrom([]string{"lane1", "lane2"}).Draw(t, "lane")
	if m.seq[lane] == 0 {
		return
	}
	seq := rapid.IntRange(1, m.seq[lane]).Draw(t, "seq")
	require.Equal(t, fmt.Sprint(m.seq[lane]), m.s.publish(lane, seq, nil, m.last[lane]...).([]any)[0])
}

// publishAgain publishes a given ID twice.
func (m *model) publishAgain(t *rapid.T) {
	id := fmt.Sprint("id", m.next)
	m.next++
	m.at[id] = place{state: "ready"}
	m.published++
	for i, want := range []string{"", "1"} {
		lane := fmt.Sprint("single", m.next, i)
		reply := m.s.publish(lane, 1, []string{m.s.p.idMark(id)}, "x", "1", id, "", 100000, m.s.envelope(id)).([]any)
		require.Equal(t, want, reply[1])
	}
}

func (m *model) fetch(t *rapid.T) {
	c := m.consumer(t)
	n := rapid.IntRange(1, 5).Draw(t, "n")
	if !m.consumers[c] {
		require.Equal(t, "gone", m.s.turn(c, n)[0])
		return
	}
	entries, ids := m.s.fetch(c, n)
	for i, id := range ids {
		require.Equal(t, "ready", m.at[id].state, id)
		m.at[id] = place{"held", c, entries[i]}
	}
	if len(ids) < n {
		require.Empty(t, m.ids(func(p place) bool { return p.state == "ready" }), "it left something")
	}
}

// ack acknowledges some of what any consumer holds, and what was acknowledged before.
func (m *model) ack(t *rapid.T) {
	held := m.ids(func(p place) bool { return p.state == "held" })
	if len(held) == 0 {
		return
	}
	id := rapid.SampledFrom(held).Draw(t, "id")
	e := m.at[id].entry
	counts := []any{0, 0, 0, 0}
	counts[e.stream] = 1
	for range rapid.IntRange(1, 2).Draw(t, "times") {
		m.s.run(ackScript, m.s.p.ackKeys(), append(counts, e.id)...)
	}
	delete(m.at, id)
	m.acked++
}

func (m *model) moveArgs(id, to string) []any {
	e := m.at[id].entry
	return []any{e.stream + 1, e.id, to, countReleased, id, 100_000_000, m.s.envelope(id)}
}

func (m *model) moved(id, to string) {
	m.at[id] = place{state: map[string]string{"z": "delayed", "d": "dead", "r": "ready"}[to]}
}

func (m *model) move(t *rapid.T) {
	held := m.ids(func(p place) bool { return p.state == "held" })
	if len(held) == 0 {
		return
	}
	id := rapid.SampledFrom(held).Draw(t, "id")
	to := rapid.SampledFrom([]string{"z", "d", "r"}).Draw(t, "to")
	by := m.consumer(t) // a zombie, mostly
	args := m.moveArgs(id, to)
	want := int64(0)
	if by == m.at[id].consumer {
		want = 1
		m.moved(id, to)
	}
	require.Equal(t, []any{want}, m.s.move(by, "0", args...))
	require.Equal(t, []any{int64(0)}, m.s.move(by, "0", args...), "once more")
}

func (m *model) crash(t *rapid.T) {
	c := m.consumer(t)
	require.NoError(t, m.s.rdb.Del(context.Background(), m.s.p.heartbeat(c)).Err())
	m.consumers[c] = false
}

func (m *model) reap(t *rapid.T) {
	c := m.consumer(t)
	for _, id := range m.ids(func(p place) bool { return p.state == "held" && p.consumer == c }) {
		to := rapid.SampledFrom([]string{"r", "d"}).Draw(t, "to")
		want := int64(1)
		args := m.moveArgs(id, to)
		if m.consumers[c] {
			want = 0
		} else {
			m.moved(id, to)
		}
		require.Equal(t, []any{want}, m.s.move(c, "1", args...))
	}
}

// due makes one delayed task due and moves it.
func (m *model) due(t *rapid.T) {
	delayed := m.ids(func(p place) bool { return p.state == "delayed" })
	if len(delayed) == 0 {
		return
	}
	id := rapid.SampledFrom(delayed).Draw(t, "id")
	require.NoError(t, m.s.rdb.ZAdd(context.Background(), m.s.p.delayed, redis.Z{Score: 1, Member: id}).Err())
	require.NoError(t, m.s.rdb.Del(context.Background(), m.s.p.maintainer).Err())
	require.Equal(t, int64(1), m.s.maintain("me", 500)[2])
	m.at[id] = place{state: "ready"}
}

func (m *model) leave(t *rapid.T) {
	c := m.consumer(t)
	m.s.run(leaveScript, m.s.p.leaveKeys(c), c, "", 0)
	m.consumers[c] = false
}
