// Package lanes bounds how many shared requests are under way to one server, by its
// round trip.
//
// With too few, callers wait while the network does; with too many, each carries
// little. What is under way for too long counts no more: one that is repeated, or
// whose connection is dead, must not hold up all others.
package lanes

import "time"

// Min is the lowest number of lanes.
const Min = 2

// target is the time in which one of the lanes should become free, which gives
// their number.
const target = 50 * time.Microsecond

// OverdueAfter is about how long what is under way counts for its lane.
const OverdueAfter = 50 * time.Millisecond

// Lanes are those to one server. Their owner's lock guards them.
type Lanes struct {
	max, count int
	rtt        time.Duration // to the server, as measured; 0 before

	// Flights, by when they began: since the last tick, between the last two, before
	// those. The last ones are overdue and count no more.
	young, old, overdue int
	ticks               uint64

	tick    func()
	ticker  *time.Timer
	ticking bool
	quiet   chan struct{} // made by Close
}

// New returns the lanes to a server to which nothing is under way. Of them there are
// from [Min] to limit. After [Lanes.Watch], tick is called, once, by a goroutine of
// its own and without any lock.
func New(limit int, tick func()) Lanes { return Lanes{max: limit, count: Min, tick: tick} }

// A Ticket is the right to a lane. The zero Ticket is none.
type Ticket struct {
	Admitted bool
	Start    time.Time

	only  bool // nothing else was under way
	aside bool
	ticks uint64
}

// Count is how many lanes there are.
func (l *Lanes) Count() int { return l.count }

// Free reports whether a lane is free.
func (l *Lanes) Free() bool { return l.young+l.old < l.count }

// Idle reports whether all lanes are.
func (l *Lanes) Idle() bool { return l.young+l.old == 0 }

// UnderWay is how much is: what is young, what is older, and what is overdue.
func (l *Lanes) UnderWay() [3]int { return [3]int{l.young, l.old, l.overdue} }

// Empty reports whether nothing is under way, on a lane or not.
func (l *Lanes) Empty() bool { return l.UnderWay() == [3]int{} }

// Board takes a lane, free or not.
func (l *Lanes) Board(now time.Time) Ticket {
	l.young++
	return Ticket{Admitted: true, Start: now, only: l.UnderWay() == [3]int{1}, ticks: l.ticks}
}

// Aside is for what takes no lane.
func (l *Lanes) Aside() Ticket {
	l.overdue++
	return Ticket{Admitted: true, aside: true, ticks: l.ticks - 2}
}

// Leave gives the lane back.
func (l *Lanes) Leave(t Ticket) {
	switch l.ticks - t.ticks {
	case 0:
		l.young--
	case 1:
		l.old--
	default:
		l.overdue--
	}
}

// Took is told how long a request took that travelled alone. The round trip is never
// more than that, and tends to what those take that find nothing else under way. What
// travelled [Lanes.Aside] may have been of any size, and tells nothing.
func (l *Lanes) Took(t Ticket, took time.Duration) {
	switch {
	case t.aside:
	case l.rtt == 0 || took < l.rtt:
		l.measured(took)
	case t.only:
		l.measured(l.rtt + (took-l.rtt)/8)
	}
}

// AtMost is told how long something took that may have had to wait for others.
func (l *Lanes) AtMost(took time.Duration) {
	if took < l.rtt {
		l.measured(took)
	}
}

func (l *Lanes) measured(rtt time.Duration) {
	l.rtt = rtt
	l.count = min(max(int(rtt/target), Min), l.max)
}

// Watch calls tick in a while, if that is not to come already. It is for when
// somebody waits for a lane.
func (l *Lanes) Watch() {
	if l.ticking {
		return
	}
	l.ticking = true
	if l.ticker == nil {
		l.ticker = time.AfterFunc(OverdueAfter, l.tick)
	} else {
		l.ticker.Reset(OverdueAfter)
	}
}

// Age is for tick: what is under way becomes older, and what is overdue makes room.
func (l *Lanes) Age() {
	l.overdue, l.old, l.young = l.overdue+l.old, l.young, 0
	l.ticks++
	l.ticking = false
}

// Close says that nobody new will wait. The channel is closed by the next
// [Lanes.Settle] at which nothing is under way.
func (l *Lanes) Close() (quiet <-chan struct{}) {
	if l.quiet == nil {
		l.quiet = make(chan struct{})
	}
	return l.quiet
}

// Closed reports whether Close was called.
func (l *Lanes) Closed() bool { return l.quiet != nil }

// Settle is for when nobody waits. It ends the timer of lanes that are closed and empty.
func (l *Lanes) Settle() {
	if l.quiet == nil || !l.Empty() {
		return
	}
	select {
	case <-l.quiet:
	default:
		close(l.quiet)
		if l.ticker != nil {
			l.ticker.Stop()
		}
	}
}
