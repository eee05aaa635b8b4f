package pubsub_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/pubsub"
)

// Whatever happens: a message that is published while its channel is live and
// the connection sound is delivered once and in order, and once all is quiet the
// live channels are those that are wanted.
func TestHistoriesOfFaults(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("PUBSUB_SEED"), 10, 64); err == nil {
		seed = s
	}
	for i := range uint64(60) {
		seed := seed + i
		t.Run("", func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				defer func() {
					if t.Failed() {
						t.Logf("PUBSUB_SEED=%d, %+v, running %t, %d open, history: %v", seed, w.Stats(), pubsub.Running(w.Subscription), w.open(), w.history())
					}
				}()
				h := &history{world: w, t: t, r: rand.New(rand.NewPCG(seed, 0)), wanted: make(map[string]bool), due: make(map[string][]string)}
				for range 400 {
					h.step()
				}
				h.quiet()
			})
		})
	}
}

// A history drives a world at random and knows what must come of it.
type history struct {
	*world
	t      *testing.T
	r      *rand.Rand
	wanted map[string]bool
	due    map[string][]string // messages that must have been delivered, by channel
	n      int
}

func (h *history) channel() string { return fmt.Sprint("c", h.r.IntN(8)) }

func (h *history) step() {
	switch h.r.IntN(20) {
	case 0, 1, 2:
		channel := h.channel()
		h.wanted[channel] = true
		h.Add(channel)
	case 3, 4:
		channel := h.channel()
		delete(h.wanted, channel)
		h.remove(channel)
	case 5: // at once: nothing is settled in between
		for range 5 {
			channel := h.channel()
			if h.r.IntN(2) == 0 {
				h.wanted[channel] = true
				h.Add(channel)
			} else {
				delete(h.wanted, channel)
				h.remove(channel)
			}
		}
	case 6, 7, 8, 9, 10, 11:
		h.send()
	case 12:
		h.Renew()
		synctest.Wait() // until then it is open which connection is sound
	case 13:
		h.srv.Stop()
		synctest.Wait()
	case 14:
		require.NoError(h.t, h.srv.Restart())
	case 15:
		if h.r.IntN(3) == 0 {
			h.hang()
		}
	case 16:
		h.heal()
	case 17: // a fault of the server's: it does not answer, or it refuses
		silent, refused := h.r.IntN(2) == 0, h.channel()
		h.answer(func(p *server.Peer, cmd string, args ...string) bool {
			if cmd != "SUBSCRIBE" || !slices.Contains(args, refused) {
				return false
			}
			if !silent {
				p.WriteError("NOPERM No permissions to access a channel")
			}
			return true
		})
	case 18:
		h.answer(nil)
	case 19:
		time.Sleep([]time.Duration{time.Millisecond, 60 * time.Millisecond, time.Second, 10 * time.Second}[h.r.IntN(4)])
	}
}

// send publishes a message, and checks what has been delivered.
func (h *history) send() {
	synctest.Wait()
	channel := h.channel()
	h.n++
	payload := strconv.Itoa(h.n)
	live := h.isLive(channel)
	dead := h.anyDead()
	h.publish(channel, payload)
	// Other messages may come: a connection that hangs may be one given up and
	// not yet closed, and a channel removed and added again may be subscribed
	// all the while.
	came := h.wanted[channel] && slices.Contains(h.messages(channel), payload)
	if live && !dead || came {
		h.due[channel] = append(h.due[channel], payload)
	}
	require.True(h.t, !live || h.wanted[channel], "%s is not wanted", channel)
	h.check()
}

func (h *history) isLive(channel string) (live bool) {
	h.read(func() { live = h.live[channel] })
	return live
}

// check requires that what was due came, in order and once.
func (h *history) check() {
	for channel, due := range h.due {
		require.Equal(h.t, due, h.messages(channel), "of %s", channel)
	}
	h.owner.mu.Lock()
	defer h.owner.mu.Unlock()
	for channel := range h.got {
		require.Contains(h.t, h.due, channel, "nothing was due")
	}
}

// quiet ends all faults and requires that everything is as it should be.
func (h *history) quiet() {
	h.heal()
	h.answer(nil)
	require.NoError(h.t, h.srv.Restart())
	time.Sleep(40 * time.Second)
	synctest.Wait()
	var wanted []string
	for channel := range h.wanted {
		wanted = append(wanted, channel)
	}
	require.ElementsMatch(h.t, wanted, h.liveChannels())
	require.ElementsMatch(h.t, wanted, h.srv.PubSubChannels("*"))
	stats := h.Stats()
	require.Equal(h.t, len(wanted), stats.Channels)
	require.Equal(h.t, len(wanted), stats.Live)
	require.Zero(h.t, stats.Refused)
	require.Equal(h.t, min(len(wanted), 1), h.open())
	require.EqualValues(h.t, h.gapCount(), stats.Gaps)
	for channel := range h.wanted {
		h.n++
		h.publish(channel, strconv.Itoa(h.n))
		h.due[channel] = append(h.due[channel], strconv.Itoa(h.n))
	}
	h.check()
}
