package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redisha/redisha/internal/bench/harness"
)

// A ledger knows what became of each task, in four bytes a task.
type ledger struct {
	entries []atomic.Uint32
	next    atomic.Int64
	done    atomic.Int64 // publishes that returned nil
	runs    atomic.Int64

	lastRun, longest atomic.Int64 // Unix nanoseconds; nanoseconds
}

// What an entry holds, beside the number of runs in its lower bits.
const (
	wasConfirmed = 1 << (31 - iota)
	wasUnconfirmed
	wasFailed
	isVisible
	runMask = 1<<16 - 1
)

func newLedger(capacity int) *ledger { return &ledger{entries: make([]atomic.Uint32, capacity)} }

// take returns the number of the next task; false when there are no more.
func (l *ledger) take() (n int, ok bool) {
	n = int(l.next.Add(1)) - 1
	return n, n < len(l.entries)
}

func (l *ledger) published(n int, outcome uint32) {
	l.entries[n].Or(outcome)
	if outcome == wasConfirmed {
		l.done.Add(1)
	}
}

// ran takes note of a run, and of how long there was none.
func (l *ledger) ran(n int) {
	if n < 0 || n >= len(l.entries) {
		panic(fmt.Sprintf("a task with the number %d, which nobody published", n))
	}
	l.entries[n].Add(1)
	l.runs.Add(1)
	now := time.Now().UnixNano()
	if last := l.lastRun.Swap(now); last != 0 {
		for idle := now - last; ; {
			longest := l.longest.Load()
			if idle <= longest || l.longest.CompareAndSwap(longest, idle) {
				return
			}
		}
	}
}

// A balance is what a ledger says in the end.
type balance struct {
	confirmed, unconfirmed, failed, lost, ghosts, duplicates, visible int
	firstLost                                                         []int // some of them
}

func (l *ledger) balance() (b balance) {
	for n := range min(int(l.next.Load()), len(l.entries)) {
		e := l.entries[n].Load()
		runs := int(e & runMask)
		b.duplicates += max(runs-1, 0)
		if e&isVisible != 0 {
			b.visible++
		}
		switch {
		case e&wasConfirmed != 0:
			b.confirmed++
			if runs == 0 && e&isVisible == 0 {
				if b.lost++; len(b.firstLost) < 10 {
					b.firstLost = append(b.firstLost, n)
				}
			}
		case e&wasUnconfirmed != 0:
			b.unconfirmed++
		case e&wasFailed != 0:
			b.failed++
			if runs > 0 || e&isVisible != 0 {
				b.ghosts++
			}
		}
	}
	return b
}

func (b balance) record(m *harness.B) {
	m.Record(lost, float64(b.lost))
	m.Record(confirmed, float64(b.confirmed))
	m.Record(unconfirmed, float64(b.unconfirmed))
	m.Record(failed, float64(b.failed))
	m.Record(ghosts, float64(b.ghosts))
	m.Record(duplicates, float64(b.duplicates))
	m.Record(left, float64(b.visible))
}

// Arguments are marked, so that they are found in whatever holds them.
var mark = []byte("\xf1loss\xf7")

func argument(n int) []byte {
	return binary.BigEndian.AppendUint32(append([]byte(nil), mark...), uint32(n))
}

// number returns that of an argument.
func number(arg []byte) (int, error) {
	if len(arg) != len(mark)+4 || !bytes.HasPrefix(arg, mark) {
		return 0, fmt.Errorf("the argument is % x, which nobody published", arg)
	}
	return int(binary.BigEndian.Uint32(arg[len(mark):])), nil
}

// see takes note of all arguments that a stored value holds.
func (l *ledger) see(value string) {
	for rest := []byte(value); ; {
		at := bytes.Index(rest, mark)
		if at < 0 || len(rest) < at+len(mark)+4 {
			return
		}
		rest = rest[at+len(mark):]
		if n := int(binary.BigEndian.Uint32(rest)); n < len(l.entries) {
			l.entries[n].Or(isVisible)
		}
	}
}
