package broker

import (
	"slices"
	"sync"
	"time"
)

// An inbox is where the verdicts of a source wait to be stored. Those that only
// end a task travel with the next fetch; all others, and these too if no fetch
// comes within settleDelay, are settled on their own.
type inbox struct {
	due chan struct{} // a token when settle shall take what is there

	mu      sync.Mutex
	acks    []*verdict
	others  []*verdict
	refused []*verdict // acks that travelled with a fetch that failed
	timer   *time.Timer
	armed   bool
	closed  bool
}

func newInbox() inbox { return inbox{due: make(chan struct{}, 1)} }

// put adds a verdict.
func (b *inbox) put(v *verdict) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(v)
}

// putIfRoom adds a verdict unless many wait.
func (b *inbox) putIfRoom(v *verdict) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.others) >= maxNotes {
		return false
	}
	b.add(v)
	return true
}

func (b *inbox) add(v *verdict) {
	if v.kind == ackVerdict && v.record == nil {
		b.acks = append(b.acks, v)
	} else {
		b.others = append(b.others, v)
	}
	switch {
	case len(b.acks)+len(b.others) == maxSettle:
		notify(b.due)
	case b.armed:
	case b.timer == nil:
		b.armed, b.timer = true, time.AfterFunc(settleDelay, func() { notify(b.due) })
	default:
		b.armed = true
		b.timer.Reset(settleDelay)
	}
}

// takeAcks takes what may travel with a fetch.
func (b *inbox) takeAcks() []*verdict {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.acks = slices.DeleteFunc(b.acks, func(v *verdict) bool {
		doubted := v.doubted.Load()
		if doubted {
			b.others = append(b.others, v) // settled soon: the timer runs
		}
		return doubted
	})
	n := min(len(b.acks), maxSettle)
	acks := b.acks[:n:n]
	if b.acks = b.acks[n:]; len(b.acks) == 0 {
		b.acks = nil
	}
	return acks
}

// refuse gives back what could not be stored.
func (b *inbox) refuse(acks []*verdict) {
	if len(acks) == 0 {
		return
	}
	b.mu.Lock()
	b.refused = append(b.refused, acks...)
	b.mu.Unlock()
	notify(b.due)
}

// take takes all there is. After closed no more will come.
func (b *inbox) take() (batch, refused []*verdict, closed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if batch = b.acks; len(b.others) > 0 {
		batch = append(batch, b.others...)
	}
	refused = b.refused
	b.acks, b.others, b.refused, b.armed = nil, nil, nil, false
	return batch, refused, b.closed
}

// close says that no more verdicts will come.
func (b *inbox) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	notify(b.due)
}

func (b *inbox) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer != nil {
		b.timer.Stop()
	}
}
