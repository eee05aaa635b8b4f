package broker

import (
	"context"
	"sync"
	"time"
)

// A floor is where the executors of a run work. It hands them the tasks, and
// gives sources the slots for which they may fetch: one for each executor that
// could start a task.
//
// Slots are shared among the queues that have tasks waiting: one that holds its
// part or more gets none while another one wants some, so that a queue of long
// tasks does not hold up the others. Among the partitions of a queue, whoever has
// waited longest takes what is free.
type floor struct {
	mu      sync.Mutex
	work    sync.Cond // executors wait for tasks; L is mu
	ready   []*task   // from first on
	first   int
	idle    int  // executors that wait
	waking  bool // one of them was told of tasks, and has not looked yet
	slots   int  // in all
	free    int
	turn    uint64 // grows with each grant
	closed  bool
	queues  []*share
	sources []*source
}

// A share is what a queue has of the slots. Guarded by floor.mu.
type share struct {
	limit int // slots at most
	held  int
}

// A stand is a source's place on the floor. All but wake is guarded by floor.mu.
type stand struct {
	share   *share
	waits   bool          // in reserve
	backlog bool          // its last read got all that it asked for: there is more
	served  uint64        // the turn of its last grant
	lent    int           // slots for which it reads; 0 also when the answer takes too long
	overdue *time.Timer   // of that
	wake    chan struct{} // a token when a grant may be possible
}

func newFloor(slots int) *floor {
	f := &floor{slots: slots, free: slots}
	f.work.L = &f.mu
	return f
}

// join adds a queue with its sources.
func (f *floor) join(limit int, sources []*source) {
	sh := &share{limit: limit}
	f.queues = append(f.queues, sh)
	for _, s := range sources {
		s.stand = stand{share: sh, wake: make(chan struct{}, 1)}
		f.sources = append(f.sources, s)
	}
}

// take waits for the next task. It returns nil when there will be none.
func (f *floor) take() *task {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.first == len(f.ready) {
		if f.closed {
			return nil
		}
		f.idle++
		f.work.Wait()
		f.idle--
		f.waking = false
	}
	return f.pop()
}

// call wakes an executor, unless one is on its way, which will wake the next one: so
// tasks that take no time need few of them. f.mu is held.
func (f *floor) call() {
	if f.idle > 0 && !f.waking {
		f.waking = true
		f.work.Signal()
	}
}

// pop takes the next task off, of which there is one.
func (f *floor) pop() *task {
	t := f.ready[f.first]
	f.ready[f.first] = nil
	if f.first++; f.first == len(f.ready) {
		f.ready, f.first = f.ready[:0], 0
		f.offer()
	} else {
		f.call()
	}
	return t
}

// next gives back the slot of a task that has ended, and takes the next one if
// there is one.
func (f *floor) next(s *source) *task {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free++
	s.stand.share.held--
	if f.first < len(f.ready) {
		return f.pop()
	}
	f.offer()
	return nil
}

// put hands tasks to the executors. There is a slot reserved for each.
func (f *floor) put(tasks []*task) {
	if len(tasks) == 0 {
		return
	}
	f.mu.Lock()
	f.ready = append(f.ready, tasks...)
	f.call()
	f.mu.Unlock()
}

// close lets the executors end when they have run what is ready.
func (f *floor) close() {
	f.mu.Lock()
	f.closed = true
	f.work.Broadcast()
	f.mu.Unlock()
}

// reserve takes slots for s: at least one, at most so many. It returns 0 when stop
// ends, or expired.
func (f *floor) reserve(s *source, most int, stop context.Context, expired <-chan time.Time) int {
	for stop.Err() == nil {
		f.mu.Lock()
		n := min(f.grant(s), most)
		if n > 0 {
			f.turn++
			f.free -= n
			s.stand.share.held += n
			s.stand.served = f.turn
			f.offer()
			f.mu.Unlock()
			return n
		}
		s.stand.waits = true
		f.mu.Unlock()
		select {
		case <-s.stand.wake:
		case <-stop.Done():
		case <-expired:
			f.leave(s)
			return 0
		}
		f.leave(s)
	}
	return 0
}

func (f *floor) leave(s *source) {
	f.mu.Lock()
	s.stand.waits = false
	f.mu.Unlock()
}

// unreserve gives slots back for which s has found no tasks. more says that there
// may be further tasks.
func (f *floor) unreserve(s *source, n int, more bool) {
	f.mu.Lock()
	f.free += n
	s.stand.share.held -= n
	s.stand.backlog = more
	f.offer()
	f.mu.Unlock()
}

// lentFor is how long slots wait for the answer to a read. A server that hangs shall
// hold up its own partitions only: then others have the slots.
const lentFor = 200 * time.Millisecond

// lend notes that s reads for slots that it has reserved.
func (f *floor) lend(s *source, n int) {
	f.mu.Lock()
	s.stand.lent = n
	f.mu.Unlock()
	if s.stand.overdue == nil {
		s.stand.overdue = time.AfterFunc(lentFor, func() { f.takeBack(s) })
	} else {
		s.stand.overdue.Reset(lentFor)
	}
}

// repay ends that. It reports whether the slots are still reserved.
func (f *floor) repay(s *source) bool {
	s.stand.overdue.Stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	n := s.stand.lent
	s.stand.lent = 0
	return n > 0
}

func (f *floor) takeBack(s *source) {
	f.mu.Lock()
	n := s.stand.lent
	s.stand.lent = 0
	f.mu.Unlock()
	if n > 0 {
		f.unreserve(s, n, false)
	}
}

// offer wakes the source that may take what is free. f.mu is held.
func (f *floor) offer() {
	if f.free == 0 {
		return
	}
	var next *source
	for _, s := range f.sources {
		if s.stand.waits && (next == nil || s.stand.served < next.stand.served) && f.grant(s) > 0 {
			next = s
		}
	}
	if next != nil {
		notify(next.stand.wake)
	}
}

// grant is how many slots s may take now. While tasks are ready, which executors
// are about to take, it is none before half of all are free: sources fetch more at
// a time then. f.mu is held.
func (f *floor) grant(s *source) int {
	if f.first < len(f.ready) && 2*f.free < f.slots {
		return 0 // soon there are more
	}
	own := s.stand.share
	n := min(f.free, own.limit-own.held)
	if n <= 0 || len(f.queues) == 1 {
		return n
	}
	contenders := 1
	for _, sh := range f.queues {
		if sh != own && f.wants(sh) {
			contenders++
		}
	}
	if contenders == 1 {
		return n
	}
	part := (f.slots + contenders - 1) / contenders
	if own.held < part {
		return min(n, part-own.held)
	}
	// Beyond its part only what no other one could take.
	for _, sh := range f.queues {
		if sh != own && sh.held < part && f.wants(sh) {
			return 0
		}
	}
	return 1
}

// wants reports whether a queue could use a slot. f.mu is held.
func (f *floor) wants(sh *share) bool {
	if sh.held >= sh.limit {
		return false
	}
	for _, s := range f.sources {
		if s.stand.share == sh && (s.stand.waits || s.stand.backlog) {
			return true
		}
	}
	return false
}

// notify leaves a token in c, which has room for one.
func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
