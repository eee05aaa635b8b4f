package pubsub_test

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/stretchr/testify/require"
)

// Whatever happens to a Cluster: a message that is published while its channel
// is live, and only on the node that it is published in, by sound connections, is
// delivered once and in order. Once all is quiet the channels that are wanted are live,
// each on its own node and nowhere else.
func TestHistoriesOfAClustersFaults(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("PUBSUB_SEED"), 10, 64); err == nil {
		seed = s
	}
	histories := uint64(8)
	if os.Getenv("REDISHA_TEST_SOAK") == "1" {
		histories = 500
	}
	for i := range histories {
		seed := seed + i
		inCluster(t, func(t *testing.T, c *cluster) {
			defer func() {
				if t.Failed() {
					t.Logf("PUBSUB_SEED=%d, %+v, live %v, lost %v", seed, c.Stats(), c.liveChannels(), c.lostChannels())
				}
			}()
			h := &clusterHistory{cluster: c, r: rand.New(rand.NewPCG(seed, 0)), wanted: make(map[string]bool), due: make(map[string][]string)}
			for range 300 {
				h.step()
			}
			h.quiet()
		})
	}
}

// A clusterHistory drives a cluster at random and knows what must come of it.
type clusterHistory struct {
	*cluster
	r      *rand.Rand
	wanted map[string]bool
	due    map[string][]string // messages that must have been delivered, by channel
	n      int
}

func (h *clusterHistory) channel() string { return tagged(12)[h.r.IntN(12)] }

func (h *clusterHistory) step() {
	node := h.nodes[h.r.IntN(4)]
	switch h.r.IntN(24) {
	case 0, 1, 2:
		channel := h.channel()
		h.wanted[channel] = true
		h.Add(channel)
	case 3, 4:
		channel := h.channel()
		delete(h.wanted, channel)
		h.remove(channel)
	case 5: // at once: nothing is settled in between
		channel := h.channel()
		h.wanted[channel] = true
		synctest.Wait()
		for range 1 + h.r.IntN(2) {
			h.Remove(channel)
			h.forget(channel)
			h.Add(channel)
		}
		synctest.Wait()
	case 6, 7, 8, 9, 10, 11, 12:
		h.send()
	case 13, 14, 15:
		h.migrate(node.index, slotOf(h.channel()))
	case 16:
		h.isolate(node.index)
	case 17:
		h.join()
	case 18:
		h.takeOver(node.index, h.r.IntN(4))
	case 19:
		node.srv.Stop()
		synctest.Wait()
	case 20:
		if h.r.IntN(2) == 0 {
			node.hang()
		}
	case 21:
		node.heal()
		require.NoError(h.t, node.srv.Restart())
	case 22:
		h.trouble(node.index)
	case 23:
		time.Sleep([]time.Duration{time.Millisecond, 60 * time.Millisecond, time.Second, 10 * time.Second}[h.r.IntN(4)])
	}
}

// trouble lets a node answer some commands as a node in trouble, or as usual.
func (h *clusterHistory) trouble(node int) {
	channel, reply := h.channel(), []string{
		"", "", "", "NOPERM No permissions to access a channel", "CLUSTERDOWN The cluster is down",
		"MOVED 1 10.0.0.3:6379", "LOADING Redis is loading the dataset in memory", "silence",
	}[h.r.IntN(8)]
	all, cmd := h.r.IntN(3) == 0, []string{"SSUBSCRIBE", "SUNSUBSCRIBE", "CLUSTER", "PING"}[h.r.IntN(4)]
	if cmd == "SUNSUBSCRIBE" {
		reply = "silence" // a refusal leaves the subscription as it is
	}
	h.answers(node, func(p *server.Peer, c string, args ...string) bool {
		if reply == "" || c != cmd || !all && !slices.Contains(args, channel) {
			return false
		}
		if reply != "silence" {
			p.WriteError(reply)
		}
		return true
	})
}

// remove removes a channel, which is not live for the holder from then on.
func (h *clusterHistory) remove(channel string) {
	h.Remove(channel)
	synctest.Wait()
	h.forget(channel)
}

// send publishes a message, and checks what has been delivered.
func (h *clusterHistory) send() {
	synctest.Wait()
	channel := h.channel()
	h.n++
	payload := strconv.Itoa(h.n)
	live := slices.Contains(h.liveChannels(), channel)
	sound := true
	for i, n := range h.nodes { // else it may be live on another one
		sound = sound && !n.anyDead() && (i == h.owner(channel) || !slices.Contains(h.on(i), channel))
	}
	receivers := h.publish(channel, payload)
	came := h.wanted[channel] && slices.Contains(h.messages(channel), payload)
	if live && sound && receivers > 0 || came {
		h.due[channel] = append(h.due[channel], payload)
	}
	require.True(h.t, !live || h.wanted[channel], "%s is not wanted", channel)
	h.check()
}

// check requires that what was due came, in order and once.
func (h *clusterHistory) check() {
	for channel, due := range h.due {
		require.Equal(h.t, due, h.messages(channel), "of %s", channel)
	}
	h.read(func() {
		for channel := range h.got {
			require.Contains(h.t, h.due, channel, "nothing was due")
		}
	})
}

// quiet ends all faults and requires that everything is as it should be.
func (h *clusterHistory) quiet() {
	for _, n := range h.nodes {
		n.heal()
		h.answers(n.index, nil)
		require.NoError(h.t, n.srv.Restart())
	}
	h.join()
	time.Sleep(2 * time.Minute)
	synctest.Wait()
	var wanted []string
	for channel := range h.wanted {
		wanted = append(wanted, channel)
	}
	slices.Sort(wanted)
	require.ElementsMatch(h.t, wanted, h.liveChannels())
	connections := 0
	for i := range h.nodes {
		require.Equal(h.t, h.cluster.of(i, wanted), h.on(i), "node %d", i)
		connections += min(len(h.on(i)), 1)
	}
	stats := h.Stats()
	require.Equal(h.t, len(wanted), stats.Channels)
	require.Equal(h.t, len(wanted), stats.Live)
	require.Zero(h.t, stats.Refused)
	require.Equal(h.t, connections, stats.Connections)
	for _, channel := range wanted {
		h.n++
		require.Equal(h.t, 1, h.publish(channel, strconv.Itoa(h.n)))
		h.due[channel] = append(h.due[channel], strconv.Itoa(h.n))
	}
	h.check()
}
