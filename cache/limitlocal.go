package cache

import (
	"hash/maphash"
	"sync"
)

// localLimits are the limits that a process keeps while Redis does not: what limit.lua
// does, by the process' own clock.
//
// They are bounded in number, and none is dropped while it counts: that would let
// through whoever asks for enough keys. Keys for which there is no place share one with
// others, which lets through less.
type localLimits struct {
	seed maphash.Seed

	mu    sync.Mutex
	full  map[uint64]int64 // when the whole burst is there again, µs, by the hash of a key
	sweep int64            // when to look again for limits that are over, µs
}

const (
	maxLocalLimits = 10_000
	sharedLimits   = 1024   // besides
	sweepPause     = 10_000 // µs; a sweep takes about 0.1 ms
)

func newLocalLimits() *localLimits {
	return &localLimits{seed: maphash.MakeSeed(), full: make(map[uint64]int64)}
}

// take is limit.lua at the instant now.
func (l *localLimits) take(key string, now, cost, burst int64) (allowed bool, ahead int64) {
	h := maphash.String(l.seed, key)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.full[h]; !ok && len(l.full) >= maxLocalLimits && !l.swept(now) {
		h %= sharedLimits
	}
	ahead = min(max(l.full[h]-now, 0), burst)
	if ahead+cost > burst {
		return false, ahead
	}
	if cost > 0 {
		ahead += cost
		l.full[h] = now + ahead
	}
	return true, ahead
}

// swept drops the limits that are over, unless it has just done so, and reports whether
// there is a place now.
func (l *localLimits) swept(now int64) bool {
	if now < l.sweep {
		return false
	}
	for h, full := range l.full {
		if full <= now {
			delete(l.full, h)
		}
	}
	l.sweep = now + sweepPause
	return len(l.full) < maxLocalLimits
}

func (l *localLimits) forget(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.full, maphash.String(l.seed, key))
}
