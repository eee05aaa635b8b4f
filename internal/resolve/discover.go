package resolve

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// discover takes in what w tells of itself and of other Sentinels.
func (s *sentinels) discover(w *watcher) {
	w.id, w.others, w.lists = cmp.Or(w.answer.id, w.id), w.answer.others, true
	s.dropTwins()
	s.forget(time.Now())
}

// admit begins to watch the Sentinels that others tell of. It waits until all
// configured ones were asked, which may be the same ones under other addresses.
func (s *sentinels) admit(ctx context.Context) {
	if slices.ContainsFunc(s.watchers, func(w *watcher) bool { return w.configured && !w.asked }) {
		return
	}
	for _, w := range slices.Clone(s.watchers) {
		if w.answer == nil {
			continue // its list may be an old one
		}
		for _, p := range w.others {
			if len(s.watchers) < maxSentinels && !slices.ContainsFunc(s.watchers, p.is) {
				s.watch(ctx, &watcher{addr: p.addr, id: p.id})
				s.pace.pressed = true
			}
		}
	}
}

// is reports whether w is the Sentinel that p tells of.
func (p peer) is(w *watcher) bool { return p.addr == w.addr || p.id != "" && p.id == w.id }

// dropTwins forgets discovered Sentinels that turn out to be watched under
// another address, a configured name for example.
func (s *sentinels) dropTwins() {
	seen := make(map[string]bool)
	s.watchers = slices.DeleteFunc(s.watchers, func(w *watcher) bool { // configured ones come first
		if w.id != "" && seen[w.id] && !w.configured {
			w.cancel()
			return true
		}
		seen[w.id] = true
		return false
	})
}

// forget drops discovered Sentinels that none of the others has listed for a
// while. Where no other one answers, nobody can list them, and they stay.
func (s *sentinels) forget(now time.Time) {
	for _, w := range s.watchers {
		listed, asked := false, false
		for _, o := range s.watchers {
			if o == w || o.answer == nil || !o.lists {
				continue
			}
			asked = true
			listed = listed || slices.ContainsFunc(o.others, func(p peer) bool { return p.is(w) })
		}
		if listed || !asked {
			w.listed = now
		}
	}
	s.watchers = slices.DeleteFunc(s.watchers, func(w *watcher) bool {
		if w.configured || now.Sub(w.listed) < forgetAfter {
			return false
		}
		w.cancel()
		return true
	})
}
