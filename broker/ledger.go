package broker

import (
	"bytes"
	"hash/maphash"
	"strconv"
	"strings"
	"sync"
	"time"
)

// An entry is where a task is: the number of its stream, and its ID there.
type entry struct {
	stream int
	id     string
}

// A ledger is what a source knows of the entries that it has fetched: which are in
// work, and which it acknowledged lately. An acknowledgement that a failover lost
// makes a task pending again, not undone. Of both it knows the envelope, since
// after a failover another task may come under the same entry ID.
type ledger struct {
	seed maphash.Seed

	mu     sync.Mutex
	known  map[entry]*task
	newest [streams]position // the greatest entry fetched: what comes behind it is new
	acked  memory
	older  memory    // what was acked goes from acked to older to oblivion
	turnAt time.Time // when acked becomes older
}

// remembered is how long acked entries are remembered, at least; at most twice that.
const remembered = 10 * time.Second

// A standing is what a source knows of an entry.
type standing uint8

const (
	unseen standing = iota // it must be run
	held                   // it is run or its verdict is under way
	ended                  // it was acknowledged lately
)

func newLedger() ledger {
	return ledger{seed: maphash.MakeSeed(), known: make(map[entry]*task)}
}

// add notes that a task is in work.
func (l *ledger) add(t *task) {
	l.mu.Lock()
	l.known[t.entry] = t
	l.mu.Unlock()
}

// end forgets tasks whose verdicts are stored.
func (l *ledger) end(tasks []*verdict, acked bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(now)
	for _, v := range tasks {
		delete(l.known, v.entry)
		if p, ok := positionOf(v.entry); ok && acked {
			l.acked.list = append(l.acked.list, memento{p, maphash.Bytes(l.seed, v.raw)})
		}
	}
}

// forget drops what was acked long enough ago. l.mu is held.
func (l *ledger) forget(now time.Time) {
	switch late := now.Sub(l.turnAt); {
	case late < 0:
		return
	case late < remembered:
		l.older = l.acked
	default:
		l.older = memory{}
	}
	l.acked, l.turnAt = memory{}, now.Add(remembered)
}

// standing tells what is known of an entry that was read.
func (l *ledger) standing(d delivered) standing {
	p, ok := positionOf(d.entry)
	l.mu.Lock()
	defer l.mu.Unlock()
	if ok && l.newest[d.stream].before(p) {
		l.newest[d.stream] = p
		return unseen
	}
	if t := l.known[d.entry]; t != nil {
		if bytes.Equal(t.raw, d.raw) {
			return held
		}
		t.void.Store(true)
	}
	if sum, ok := l.remembers(p); ok && sum == maphash.Bytes(l.seed, d.raw) {
		return ended
	}
	return unseen
}

func (l *ledger) holds(e entry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known[e] != nil
}

func (l *ledger) wasAcked(e entry) bool {
	p, _ := positionOf(e)
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.remembers(p)
	return ok
}

// remembers returns the sum of an entry that was acked lately. l.mu is held.
func (l *ledger) remembers(p position) (sum uint64, ok bool) {
	if sum, ok = l.acked.find(p); !ok {
		sum, ok = l.older.find(p)
	}
	return sum, ok
}

// inWork calls fn for the tasks in work.
func (l *ledger) inWork(fn func(*task)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.known {
		fn(t)
	}
}

// A memory is a list of what was acknowledged. Adding to it is cheap, as each task
// is added; it is looked through only after trouble, and only then indexed.
type memory struct {
	list    []memento
	index   map[position]uint64
	indexed int
}

type memento struct {
	position
	sum uint64
}

func (m *memory) find(p position) (sum uint64, ok bool) {
	if m.index == nil {
		m.index = make(map[position]uint64, len(m.list))
	}
	for _, one := range m.list[m.indexed:] {
		m.index[one.position] = one.sum
	}
	m.indexed = len(m.list)
	sum, ok = m.index[p]
	return sum, ok
}

// A position is an entry in numbers.
type position struct {
	stream  int
	ms, seq uint64
}

func positionOf(e entry) (p position, ok bool) {
	ms, seq, _ := strings.Cut(e.id, "-")
	p.stream = e.stream
	var err1, err2 error
	p.ms, err1 = strconv.ParseUint(ms, 10, 64)
	p.seq, err2 = strconv.ParseUint(seq, 10, 64)
	return p, err1 == nil && err2 == nil
}

func (p position) before(q position) bool { return p.ms < q.ms || p.ms == q.ms && p.seq < q.seq }
