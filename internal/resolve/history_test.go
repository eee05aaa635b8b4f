package resolve

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// TestRandomHistories lets Sentinels hear of failovers late, in part, and while
// they come and go. REDISHA_TEST_SEED=n repeats one history.
func TestRandomHistories(t *testing.T) {
	if text := os.Getenv("REDISHA_TEST_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
		runHistory(t, seed)
		return
	}
	histories := 50
	if testing.Short() {
		histories = 25
	}
	if os.Getenv("REDISHA_TEST_SOAK") == "1" {
		histories = 5000
	}
	first := uint64(time.Now().UnixNano())
	for i := range uint64(histories) {
		runHistory(t, first+i)
	}
}

func runHistory(t *testing.T, seed uint64) {
	t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newHistory(t, seed)
			for range 60 {
				h.step()
			}
			h.end()
		})
	})
}

// settling is how long it takes at most to notice what all Sentinels agree on.
const settling = 1300 * time.Millisecond

type history struct {
	*scene
	r        Resolver
	rnd      *rand.Rand
	primary  []string // of each config-epoch
	knows    []int    // config-epoch that each Sentinel knows
	trouble  []string // of each Sentinel; "" for none
	since    []time.Time
	before   State
	epoch    int       // the resolver's config-epoch
	lastSeen time.Time // when it was sure to see a Sentinel that knows this epoch
}

func newHistory(t *testing.T, seed uint64) *history {
	h := &history{rnd: rand.New(rand.NewPCG(seed, 1))}
	h.scene = newScene(t, 1+h.rnd.IntN(5))
	h.primary = []string{"", h.address()}
	for i := range h.sentinels {
		h.knows, h.trouble, h.since = append(h.knows, 1), append(h.trouble, ""), append(h.since, time.Now())
		tell(h.primary[1], 1, h.sentinels[i])
	}
	if h.rnd.IntN(2) == 0 {
		h.introduce()
	}
	for range h.rnd.IntN(4) {
		h.change()
	}
	h.r = h.open()
	h.lastSeen = time.Now()
	return h
}

func (h *history) address() string { return fmt.Sprintf("10.0.0.%d:6379", 1+h.rnd.IntN(4)) }

func (h *history) step() {
	for range h.rnd.IntN(3) {
		h.change()
	}
	if h.rnd.IntN(10) == 0 {
		h.r.Refresh()
	}
	h.pass(time.Duration(h.rnd.IntN(3000)) * time.Millisecond)
	if h.rnd.IntN(3) == 0 {
		h.agree()
	}
}

// change is one event.
func (h *history) change() {
	i := h.rnd.IntN(len(h.sentinels))
	switch h.rnd.IntN(6) {
	case 0: // a failover that some hear of
		h.primary = append(h.primary, h.address())
		for j := range h.sentinels {
			if j == i || h.rnd.IntN(3) == 0 {
				h.learn(j, len(h.primary)-1)
			}
		}
	case 1: // late news
		if last := len(h.primary) - 1; h.knows[i] < last {
			h.learn(i, h.knows[i]+1+h.rnd.IntN(last-h.knows[i]))
		}
	case 2:
		h.disturb(i, []string{"stopped", "hung", "black hole"}[h.rnd.IntN(3)])
	case 3:
		h.sentinels[i].Cut()
	default:
		h.heal(i)
	}
}

func (h *history) learn(i, epoch int) {
	synctest.Wait() // a Sentinel answers the questions of one inquiry in one go
	from := h.primary[h.knows[i]]
	h.knows[i] = epoch
	tell(h.primary[epoch], uint64(epoch), h.sentinels[i])
	if h.rnd.IntN(2) == 0 {
		h.sentinels[i].Announce(group, from, h.primary[epoch])
	}
}

func (h *history) disturb(i int, trouble string) {
	h.heal(i)
	h.trouble[i] = trouble
	switch trouble {
	case "stopped":
		h.sentinels[i].Stop()
	case "hung":
		h.sentinels[i].Hang(true)
	case "black hole":
		h.net.Add(h.addrs[i], testserver.BlackHole)
		h.sentinels[i].Cut()
	}
}

func (h *history) heal(i int) {
	if h.trouble[i] != "" {
		h.since[i] = time.Now()
	}
	h.trouble[i] = ""
	h.sentinels[i].Restart()
	h.sentinels[i].Hang(false)
	h.net.Add(h.addrs[i], h.sentinels[i].Dial)
}

// pass lets time go on and looks at what must always be true, of State and Stats
// at rest: the statistics follow the state.
func (h *history) pass(d time.Duration) {
	synctest.Wait()
	h.look()
	time.Sleep(d)
	synctest.Wait()
	h.look()
}

func (h *history) look() {
	t, now := h.t, time.Now()
	state, epoch := *h.r.State(), int(h.r.Stats().ConfigEpoch)
	require.GreaterOrEqual(t, state.Epoch, h.before.Epoch)
	if state.Primary != h.before.Primary {
		require.Greater(t, state.Epoch, h.before.Epoch, "a change of primary without one of epoch")
	}
	require.Equal(t, h.primary[epoch], state.Primary, "config-epoch %d", epoch)
	if epoch < h.epoch {
		require.GreaterOrEqual(t, now.Sub(h.lastSeen), resetAfter, "config-epoch went from %d to %d", h.epoch, epoch)
	}
	if epoch != h.epoch {
		h.lastSeen = now
	}
	h.before, h.epoch = state, epoch
	for i, known := range h.knows {
		if h.trouble[i] == "" && known >= h.epoch && now.Sub(h.since[i]) > settling {
			h.lastSeen = now
		}
	}
}

// agree lets all Sentinels that can be reached know the last failover, and
// expects the resolver to follow.
func (h *history) agree() {
	var reachable int
	for i := range h.sentinels {
		if h.trouble[i] == "" {
			h.learn(i, len(h.primary)-1)
			reachable++
		}
	}
	if reachable == 0 {
		return
	}
	h.pass(settling)
	require.Equal(h.t, h.primary[len(h.primary)-1], h.r.State().Primary)
	require.Equal(h.t, len(h.primary)-1, h.epoch)
}

func (h *history) end() {
	for i := range h.sentinels {
		h.heal(i)
	}
	h.agree()
	h.pass(settling)
	require.Equal(h.t, len(h.sentinels), h.r.Stats().Reachable)
	require.NoError(h.t, h.r.Err())
}
