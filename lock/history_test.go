package lock

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// A history is what clients saw of locks while they were disturbed. All instants
// are since its beginning. Its methods are safe for concurrent use.
type history struct {
	start time.Time

	mu          sync.Mutex
	holdings    []*holding
	losses      []dataLoss
	troubles    []trouble
	standstills []standstill
	late        []lateness
}

// A holding is one lease, as its holder saw it.
type holding struct {
	key, client, process string
	fence                int64
	ttl                  time.Duration

	called  time.Duration // just before it was asked for
	granted time.Duration // just after it was handed out
	seen    time.Duration // the last instant after which its context was looked at and found alive; before its release
	refused time.Duration // when its context was found to have ended since a renewal was refused; 0: it was not
}

// A dataLoss says that the server lost the lease on a key, or all of them, at some
// instant between two.
type dataLoss struct {
	key      string // "" for all
	from, to time.Duration
}

// A trouble says that a client, or all of them, could not rely on its renewals
// arriving and being answered at once.
type trouble struct {
	client   string // "" for all
	from, to time.Duration
}

// A standstill says that a process could not see the end of its leases: it was stopped,
// or went on a moment ago.
type standstill struct {
	process  string
	from, to time.Duration
}

// A lateness says by how much a timer of the test fired too late.
type lateness struct{ at, by time.Duration }

func newHistory() *history { return &history{start: time.Now()} }

func (h *history) now() time.Duration { return time.Since(h.start) }

func (h *history) hold(x *holding) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holdings = append(h.holdings, x)
}

// saw says that a lease was alive after at.
func (h *history) saw(x *holding, at time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	x.seen = at
}

func (h *history) lost(key string, from, to time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.losses = append(h.losses, dataLoss{key, from, to})
}

func (h *history) troubled(client string, from, to time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.troubles = append(h.troubles, trouble{client, from, to})
}

func (h *history) stopped(process string, from, to time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.standstills = append(h.standstills, standstill{process, from, to})
}

const (
	// noticeSlack is how much later than it should a machine under load may
	// notice that a lease is gone.
	noticeSlack = 2 * time.Second

	// timerSlack is by how much a lease may outlive its key although the timers
	// of the test were on time: a goroutine that is scheduled late.
	timerSlack = 10 * time.Millisecond

	// clockSlack is how far instants of two processes, or of the server, may be
	// off; tokens of a quorum are a little ahead.
	clockSlack = 20 * time.Millisecond
)

// A verdict is what check finds. Violations is empty if all is well.
type verdict struct {
	violations []string
	excused    int           // overlaps that were not longer than timers of the test were late then
	longest    time.Duration // of these
}

func (v *verdict) violated(format string, args ...any) {
	if len(v.violations) < 20 {
		v.violations = append(v.violations, fmt.Sprintf(format, args...))
	}
}

// check judges a history that has come to its end. It requires of each key that
//
//   - of two leases, the one that was asked for after the other was granted has
//     the greater token;
//   - no two are alive at a time, unless the server lost the first. What is left of
//     that where timers are late, or the process was stopped: the first is not
//     alive while its key still has a part of its first TTL;
//   - a lost one ends within a third of its TTL, or if its client was in trouble
//     meanwhile as long after that; and within its TTL in any case;
//   - no renewal is refused unless the server lost the lease.
func (h *history) check() verdict {
	h.mu.Lock()
	defer h.mu.Unlock()
	var v verdict
	byKey := map[string][]*holding{}
	for _, x := range h.holdings {
		byKey[x.key] = append(byKey[x.key], x)
	}
	for _, all := range byKey {
		h.checkTokens(&v, all)
		h.checkOverlaps(&v, all)
	}
	for _, x := range h.holdings {
		h.checkNotice(&v, x)
		h.checkRefusal(&v, x)
	}
	return v
}

func (x *holding) String() string {
	return fmt.Sprintf("%s of %s (token %d, TTL %s, called %s, granted %s, last seen %s)", x.key, x.client, x.fence, x.ttl, x.called, x.granted, x.seen)
}

func (h *history) checkTokens(v *verdict, all []*holding) {
	called := slices.SortedFunc(slices.Values(all), func(a, b *holding) int { return cmp.Compare(a.called, b.called) })
	granted := slices.SortedFunc(slices.Values(all), func(a, b *holding) int { return cmp.Compare(a.granted, b.granted) })
	var greatest *holding // of those that were granted before
	for _, x := range called {
		for len(granted) > 0 && granted[0].granted <= x.called {
			if greatest == nil || granted[0].fence > greatest.fence {
				greatest = granted[0]
			}
			granted = granted[1:]
		}
		if greatest != nil && greatest.fence >= x.fence {
			v.violated("the token did not grow: %s came after %s", x, greatest)
		}
	}
}

func (h *history) checkOverlaps(v *verdict, all []*holding) {
	slices.SortFunc(all, func(a, b *holding) int { return cmp.Compare(a.fence, b.fence) })
	last := make([]time.Duration, len(all)) // until when any of these and those before was alive
	for i, x := range all {
		last[i] = x.seen
		if i == 0 {
			continue
		}
		last[i] = max(last[i], last[i-1])
		if all[i-1].fence == x.fence {
			v.violated("two have one token: %s and %s", all[i-1], x)
		}
		for j := i - 1; j >= 0 && last[j] > x.granted; j-- {
			if h.seenFrom(all[j], x) <= x.granted || h.lostBetween(x.key, all[j].called, x.granted) {
				continue
			}
			over, late := all[j].seen-x.granted, h.latest(all[j].seen)
			fresh := x.granted < h.expiry(all[j])
			if !fresh { // timers, or a standstill, may explain it
				over = h.alive(all[j]) - x.granted
			}
			if over <= 0 {
				continue
			}
			if fresh || over > timerSlack+4*late {
				v.violated("two at a time, for %s: %s while %s (timers were late by %s)", over, all[j], x, late)
				continue
			}
			v.excused++
			v.longest = max(v.longest, over)
		}
	}
}

// seenFrom returns until when the holding was seen alive, by the clock of another
// holding's process at the most.
func (h *history) seenFrom(x, other *holding) time.Duration {
	if x.process == other.process {
		return x.seen
	}
	return x.seen - clockSlack
}

// expiry returns the first instant at which the key may have ended, unless the
// server lost it. The token, which is the server's time, tells when it was set.
func (h *history) expiry(x *holding) time.Duration {
	set := time.UnixMicro(x.fence).Sub(h.start.Round(0)) - clockSlack
	if set < x.called || set > x.granted {
		set = x.called
	}
	return set + x.ttl
}

// alive returns until when the holding certainly was one, as far as its process
// could know: what it saw while it was stopped, or had hardly gone on, is no
// evidence.
func (h *history) alive(x *holding) time.Duration {
	at := x.seen
	for cut := true; cut; {
		cut = false
		for _, s := range h.standstills {
			if s.process == x.process && s.from < at && at <= s.to {
				at, cut = s.from, true
			}
		}
	}
	return at
}

func (h *history) lostBetween(key string, from, to time.Duration) bool {
	return slices.ContainsFunc(h.losses, func(l dataLoss) bool {
		return (l.key == "" || l.key == key) && l.from <= to && l.to >= from
	})
}

// latest returns by how much timers were late at about this time.
func (h *history) latest(at time.Duration) (most time.Duration) {
	for _, l := range h.late {
		if (l.at - at).Abs() <= time.Second+l.by {
			most = max(most, l.by)
		}
	}
	return most
}

func (h *history) checkNotice(v *verdict, x *holding) {
	alive := h.alive(x)
	for _, l := range h.losses {
		if l.key != "" && l.key != x.key || l.from < x.granted || alive <= l.to {
			continue // it is another's, or it may have been before the grant
		}
		by := l.to + x.ttl/3
		for more := true; more; {
			more = false
			for _, t := range h.troubles {
				if (t.client == "" || t.client == x.client) && t.from <= by && t.to+x.ttl/3 > by {
					by, more = t.to+x.ttl/3, true
				}
			}
		}
		by = min(by, l.to+x.ttl) + noticeSlack
		if alive > by && alive > by+4*h.latest(x.seen) {
			v.violated("a loss was noticed too late: %s was lost between %s and %s and should have ended by %s", x, l.from, l.to, by)
		}
	}
}

func (h *history) checkRefusal(v *verdict, x *holding) {
	if x.refused == 0 || h.lostBetween(x.key, x.called, x.refused) {
		return
	}
	late := h.latest(x.seen) >= x.ttl/100 || slices.ContainsFunc(h.standstills, func(s standstill) bool {
		return s.process == x.process && s.from <= x.refused && s.to >= x.granted
	})
	if late && x.refused >= h.expiry(x) {
		return // its key may have ended before it could see that
	}
	v.violated("a renewal was refused while the server kept its data: %s", x)
}

// A resource takes writes with fencing tokens.
type resource struct {
	mu       sync.Mutex
	greatest map[string]int64
	accepted map[string][]int64
	refused  int
}

func newResource() *resource {
	return &resource{greatest: map[string]int64{}, accepted: map[string][]int64{}}
}

func (r *resource) write(key string, fence int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if fence < r.greatest[key] {
		r.refused++
		return
	}
	r.greatest[key] = fence
	if all := r.accepted[key]; len(all) == 0 || all[len(all)-1] != fence {
		r.accepted[key] = append(all, fence)
	}
}

// check requires that no holder wrote after one with a greater token, and none
// who has no lease.
func (r *resource) check(t require.TestingT, h *history) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	granted := map[string]map[int64]bool{}
	for _, x := range h.holdings {
		if granted[x.key] == nil {
			granted[x.key] = map[int64]bool{}
		}
		granted[x.key][x.fence] = true
	}
	for key, fences := range r.accepted {
		require.True(t, slices.IsSorted(fences), "%s took a write after one with a greater token", key)
		for _, fence := range fences {
			require.True(t, granted[key][fence], "%s took a write with token %d, which nobody was granted", key, fence)
		}
	}
}

// made returns a holding of a made-up history: instants in milliseconds.
func made(client string, fence int64, called, granted, seen int) *holding {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	return &holding{
		key: "k", client: client, process: client, fence: fence, ttl: 3 * time.Second,
		called: ms(called), granted: ms(granted), seen: ms(seen),
	}
}

func madeOf(holdings ...*holding) *history { return &history{holdings: holdings} }

func TestTheCheckerOfHistoriesFindsWhatIsWrong(t *testing.T) {
	const s = time.Second
	old := madeOf(made("a", 1_000_000, 0, 1500, 4200), made("b", 5_000_000, 5, 4100, 4101)) // waited until 1 s for a lease until 4 s
	old.start = time.UnixMicro(0)
	old.stopped("a", s, 5*s)
	fresh := madeOf(made("a", 1_000_000, 0, 1500, 3950), made("b", 5_000_000, 5, 3900, 3901))
	fresh.start = time.UnixMicro(0)
	fresh.stopped("a", s, 5*s)
	with := func(h *history, change func(*history)) *history { change(h); return h }
	elsewhere := func(x *holding) *holding { x.key = "other"; return x }
	refused := func(x *holding, at time.Duration) *holding { x.refused = at; return x }
	for name, test := range map[string]struct {
		h    *history
		want string // "" if nothing is wrong
	}{
		"one after the other":     {madeOf(made("a", 1, 0, 1, 10), made("b", 2, 5, 11, 20)), ""},
		"recorded in disorder":    {madeOf(made("b", 2, 5, 11, 20), made("a", 1, 0, 1, 10)), ""},
		"two keys at a time":      {madeOf(made("a", 1, 0, 1, 1000), elsewhere(made("b", 2, 5, 11, 1000))), ""},
		"two at a time":           {madeOf(made("a", 1, 0, 1, 100), made("b", 2, 5, 11, 20)), "two at a time, for 89ms"},
		"two, and one in between": {madeOf(made("a", 1, 0, 1, 100), made("b", 2, 5, 11, 12), made("c", 3, 5, 30, 31)), "two at a time, for 70ms"},
		"tokens in another order": {madeOf(made("a", 2, 0, 1, 10), made("b", 1, 0, 30, 90)), "two at a time"},
		"a token that goes back":  {madeOf(made("a", 2, 0, 1, 2), made("b", 1, 5, 6, 7)), "the token did not grow"},
		"a token that stands":     {madeOf(made("a", 2, 0, 1, 2), made("b", 2, 0, 6, 7)), "two have one token"},
		"a token that stands, asked for later": {
			madeOf(made("a", 2, 0, 1, 2), made("b", 2, 5, 6, 7)), "the token did not grow",
		},
		"a lost lease": {with(madeOf(made("a", 1, 0, 1, 900), made("b", 2, 5, 100, 900)), func(h *history) { h.lost("k", s/20, s/10) }), ""},
		"a lost lease whose successor has a smaller token": {
			with(madeOf(made("a", 2, 0, 1, 900), made("b", 1, 50, 100, 900)), func(h *history) { h.lost("", s/20, s/10) }), "the token did not grow",
		},
		"a lease of another key was lost": {with(madeOf(made("a", 1, 0, 1, 900), made("b", 2, 5, 100, 900)), func(h *history) { h.lost("other", s/20, s/10) }), "two at a time"},
		"a loss after both":               {with(madeOf(made("a", 1, 0, 1, 900), made("b", 2, 5, 100, 900)), func(h *history) { h.lost("", s/5, s) }), "two at a time"},
		"a loss before both":              {with(madeOf(made("a", 1, 50, 51, 900), made("b", 2, 55, 100, 900)), func(h *history) { h.lost("", s/100, s/50) }), "two at a time"},
		"a loss that is noticed in time":  {with(madeOf(made("a", 1, 0, 1, 3100)), func(h *history) { h.lost("", s/10, s/5) }), ""},
		"a loss that is noticed late":     {with(madeOf(made("a", 1, 0, 1, 3300)), func(h *history) { h.lost("", s/10, s/5) }), "a loss was noticed too late"},
		"a loss that is noticed after trouble": {with(madeOf(made("a", 1, 0, 1, 4900)), func(h *history) {
			h.lost("", s/10, s/5)
			h.troubled("a", s/2, 2*s)
		}), ""},
		"a loss that is noticed after another's trouble": {with(madeOf(made("a", 1, 0, 1, 4900)), func(h *history) {
			h.lost("", s/10, s/5)
			h.troubled("b", s/2, 2*s)
		}), "a loss was noticed too late"},
		"a loss that is noticed after the TTL": {with(madeOf(made("a", 1, 0, 1, 5300)), func(h *history) {
			h.lost("", s/10, s/5)
			h.troubled("", s/2, 20*s)
		}), "a loss was noticed too late"},
		"a process that was stopped":        {with(madeOf(made("a", 1, 0, 1, 5000), made("b", 2, 5, 4000, 4001)), func(h *history) { h.stopped("a", s/2, 6*s) }), ""},
		"a process that was stopped twice":  {with(madeOf(made("a", 1, 0, 1, 5000), made("b", 2, 5, 4000, 4001)), func(h *history) { h.stopped("a", 4*s, 6*s); h.stopped("a", s, 4*s+1) }), ""},
		"another process that was stopped":  {with(madeOf(made("a", 1, 0, 1, 5000), made("b", 2, 5, 4000, 4001)), func(h *history) { h.stopped("b", s/2, 6*s) }), "two at a time"},
		"alive long after it was stopped":   {with(madeOf(made("a", 1, 0, 1, 5000), made("b", 2, 5, 4000, 4001)), func(h *history) { h.stopped("a", s/2, 4*s) }), "two at a time"},
		"alive before it was stopped":       {with(madeOf(made("a", 1, 0, 1, 5000), made("b", 2, 5, 4000, 4001)), func(h *history) { h.stopped("a", 9*s/2, 6*s) }), "two at a time"},
		"timers were late":                  {with(madeOf(made("a", 1, 0, 1, 4050), made("b", 2, 5, 4001, 4009)), func(h *history) { h.late = append(h.late, lateness{4 * s, s / 100}) }), ""},
		"timers were late, but not so much": {with(madeOf(made("a", 1, 0, 1, 4060), made("b", 2, 5, 4001, 4009)), func(h *history) { h.late = append(h.late, lateness{4 * s, s / 100}) }), "two at a time"},
		"timers were late, but the key was there": {
			with(madeOf(made("a", 1, 0, 1, 60), made("b", 2, 5, 11, 20)), func(h *history) { h.late = append(h.late, lateness{s / 20, s}) }), "two at a time",
		},
		"a process was stopped, but the key was there": {
			with(madeOf(made("a", 1, 0, 1, 900), made("b", 2, 5, 500, 501)), func(h *history) { h.stopped("a", s/10, s) }), "two at a time",
		},
		"stopped until the key may have ended, by the time in the token": {old, ""},
		"stopped while the key was there, by the time in the token":      {fresh, "two at a time"},
		"timers were late at another time":                               {with(madeOf(made("a", 1, 0, 1, 4050), made("b", 2, 5, 4001, 4009)), func(h *history) { h.late = append(h.late, lateness{2 * s, s / 100}) }), "two at a time"},
		"a refusal":                                                      {madeOf(refused(made("a", 1, 0, 1, 4900), 5*s)), "a renewal was refused"},
		"a refusal after a loss":                                         {with(madeOf(refused(made("a", 1, 0, 1, 900), s)), func(h *history) { h.lost("k", s/10, s/5) }), ""},
		"a refusal after a stop":                                         {with(madeOf(refused(made("a", 1, 0, 1, 4900), 5*s)), func(h *history) { h.stopped("a", s/10, s/5) }), ""},
		"a refusal after a stop, within the first TTL": {
			with(madeOf(refused(made("a", 1, 0, 1, 900), s)), func(h *history) { h.stopped("a", s/10, s/5) }), "a renewal was refused",
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := test.h.check()
			if test.want == "" {
				require.Empty(t, v.violations)
				return
			}
			require.Contains(t, strings.Join(v.violations, "\n"), test.want)
		})
	}
}

// Histories of a lock that works pass, and the same ones with one thing that is
// wrong do not.
func TestTheCheckerOfHistoriesTellsGoodFromBad(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ms := func(name string, most int) int { return rapid.IntRange(1, most).Draw(rt, name) }
		h := &history{}
		at, fence := 0, int64(0)
		for range rapid.IntRange(2, 30).Draw(rt, "leases") {
			fence += int64(ms("step", 1000))
			granted := at + ms("gap", 50)
			seen := granted + ms("held", 100) + 2*int(timerSlack/time.Millisecond)
			h.hold(made(string(rune('a'+ms("client", 8))), fence, max(0, granted-ms("wait", 300)), granted, seen))
			at = seen
		}
		require.Empty(rt, h.check().violations)

		i := rapid.IntRange(0, len(h.holdings)-2).Draw(rt, "which")
		a, b := h.holdings[i], h.holdings[i+1]
		switch rapid.SampledFrom([]string{"outlives", "swapped", "same"}).Draw(rt, "what is wrong") {
		case "outlives":
			a.seen = b.granted + clockSlack + time.Millisecond
		case "swapped":
			a.fence, b.fence = b.fence, a.fence
		case "same":
			a.fence = b.fence
		}
		h.holdings = rapid.Permutation(h.holdings).Draw(rt, "order")
		require.NotEmpty(rt, h.check().violations)
	})
}

func TestTheCheckerOfAResourceFindsWhatIsWrong(t *testing.T) {
	h := madeOf(made("a", 1, 0, 1, 10), made("b", 2, 5, 11, 20))
	r := newResource()
	r.write("k", 1)
	r.write("k", 2)
	r.write("k", 1) // refused
	r.write("k", 2)
	r.check(t, h)
	require.Equal(t, 1, r.refused)

	fails := func(change func(r *resource)) {
		t.Helper()
		r := newResource()
		r.write("k", 1)
		change(r)
		var failed failure
		func() {
			defer func() { _ = recover() }()
			r.check(&failed, h)
		}()
		require.True(t, bool(failed))
	}
	fails(func(r *resource) { r.accepted["k"] = []int64{1, 2, 1} })
	fails(func(r *resource) { r.write("k", 3) })
	fails(func(r *resource) { r.write("other", 1) })
}

// A failure is a test that is expected to fail.
type failure bool

func (f *failure) Errorf(string, ...any) { *f = true }
func (f *failure) FailNow()              { *f = true; panic("failed") }

// seedOf returns what random choices begin with. REDISHA_TEST_SEED=n repeats those
// of one run; what comes of them depends on the scheduler, too.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("REDISHA_TEST_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("REDISHA_TEST_SEED=%d", seed)
	return seed
}

func between(random *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(random.Int64N(int64(most-least)+1))
}

func sleepIn(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
