package pubsub_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
)

// slotCount is the number of slots of a Cluster.
const slotCount = 16384

// slotOf returns the slot of a channel, which must have a hash tag.
// https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tag
func slotOf(channel string) int {
	_, tag, _ := strings.Cut(channel, "{")
	tag, _, _ = strings.Cut(tag, "}")
	crc := uint16(0) // XMODEM
	for _, b := range []byte(tag) {
		crc ^= uint16(b) << 8
		for range 8 {
			carry := crc&0x8000 != 0
			if crc <<= 1; carry {
				crc ^= 0x1021
			}
		}
	}
	return int(crc) % slotCount
}

// slots says which node has each slot; -1: none.
type slots [slotCount]int16

// A cluster is one of in-memory servers that know CLUSTER SLOTS and sharded
// channels, in virtual time, and the holder of Channels on it.
type cluster struct {
	*holder
	t     *testing.T
	cn    *conn.Client
	nodes []*node

	mu    sync.Mutex
	slots slots // as it is
}

// A node is one of a cluster. All are primaries that may have no slots.
type node struct {
	*network
	of    *cluster
	index int
	addr  string

	// Guarded by mu of the cluster.
	apart bool  // sees the cluster as it was
	view  slots // when apart
	subs  map[*server.Peer]map[string]bool
	count map[string]int // commands that came
	hook  func(p *server.Peer, cmd string, args ...string) bool
}

// ways are those in which a program may have made its client.
var ways = map[string]func(t *testing.T, dial func(context.Context, string, string) (net.Conn, error)) *conn.Client{
	"as redisha makes it": func(t *testing.T, dial func(context.Context, string, string) (net.Conn, error)) *conn.Client {
		ep, err := endpoint.Parse("redis+cluster://10.0.0.0:6379,10.0.0.1:6379,10.0.0.2:6379")
		require.NoError(t, err)
		cn, err := conn.New(conn.Config{Role: "locks", Endpoint: ep, Dialer: dial, Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		t.Cleanup(func() { _ = cn.Close() })
		return cn
	},
	"by the program": func(t *testing.T, dial func(context.Context, string, string) (net.Conn, error)) *conn.Client {
		rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"10.0.0.0:6379", "10.0.0.1:6379", "10.0.0.2:6379"}, Dialer: dial})
		t.Cleanup(func() { _ = rdb.Close() })
		cn, err := conn.Of(rdb)
		require.NoError(t, err)
		return cn
	},
}

// inCluster runs test in virtual time, with a client of each way, on a cluster
// of four nodes, of which the last has no slots.
func inCluster(t *testing.T, test func(*testing.T, *cluster)) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, way)
				test(t, c)
				require.NoError(t, c.Close())
				require.Zero(t, c.Stats().Live)
				require.Zero(t, c.Stats().Connections)
				for _, n := range c.nodes {
					n.heal() // who closes the client waits for what it has asked
				}
				require.NoError(t, c.cn.Close())
			})
		})
	}
}

func newCluster(t *testing.T, way func(*testing.T, func(context.Context, string, string) (net.Conn, error)) *conn.Client) *cluster {
	c := &cluster{t: t}
	t.Cleanup(func() { time.Sleep(time.Second) }) // go-redis pauses after it has asked for the topology
	for i := range 4 {
		n := &node{network: newNetwork(t), of: c, index: i, addr: fmt.Sprintf("10.0.0.%d:6379", i), subs: make(map[*server.Peer]map[string]bool), count: make(map[string]int)}
		n.srv.SetPreHook(n.answer)
		c.nodes = append(c.nodes, n)
	}
	for slot := range c.slots {
		c.slots[slot] = int16(slot * 3 / slotCount)
	}
	c.cn = way(t, func(ctx context.Context, network, addr string) (net.Conn, error) {
		for _, n := range c.nodes {
			if n.addr == addr {
				return n.dial(ctx, network, addr)
			}
		}
		return nil, fmt.Errorf("no node is at %s", addr)
	})
	c.holder = hold(t, c.cn)
	return c
}

// seen returns the slots as the node sees them. The caller holds mu.
func (n *node) seen() *slots {
	if n.apart {
		return &n.view
	}
	return &n.of.slots
}

// answer answers the commands that miniredis lacks.
func (n *node) answer(p *server.Peer, cmd string, args ...string) bool {
	n.of.mu.Lock()
	defer n.of.mu.Unlock()
	n.count[cmd]++
	if n.hook != nil && n.hook(p, cmd, args...) {
		return true
	}
	switch {
	case cmd == "CLUSTER" && len(args) > 0 && strings.EqualFold(args[0], "slots"):
		n.tellSlots(p)
	case cmd == "SSUBSCRIBE" || cmd == "SUNSUBSCRIBE":
		for _, channel := range args[1:] {
			if slotOf(channel) != slotOf(args[0]) {
				p.WriteError("CROSSSLOT Keys in request don't hash to the same slot")
				return true
			}
		}
		switch owner := n.seen()[slotOf(args[0])]; {
		case owner < 0:
			p.WriteError("CLUSTERDOWN Hash slot not served")
			return true
		case int(owner) != n.index:
			p.WriteError(fmt.Sprintf("MOVED %d %s", slotOf(args[0]), n.of.nodes[owner].addr))
			return true
		}
		for _, channel := range args {
			n.subscribe(p, cmd == "SSUBSCRIBE", channel)
		}
	default:
		return false
	}
	return true
}

// subscribe subscribes, or unsubscribes, p and tells it. The caller holds mu of
// the cluster.
func (n *node) subscribe(p *server.Peer, on bool, channel string) {
	if n.subs[p] == nil {
		n.subs[p] = make(map[string]bool)
		p.OnDisconnect(func() {
			n.of.mu.Lock()
			defer n.of.mu.Unlock()
			delete(n.subs, p)
		})
	}
	kind := "ssubscribe"
	if on {
		n.subs[p][channel] = true
	} else {
		kind = "sunsubscribe"
		delete(n.subs[p], channel)
	}
	count := len(n.subs[p])
	p.Block(func(w *server.Writer) {
		w.WritePushLen(3)
		w.WriteBulk(kind)
		w.WriteBulk(channel)
		w.WriteInt(count)
		w.Flush()
	})
}

// tellSlots answers CLUSTER SLOTS. The caller holds mu of the cluster.
func (n *node) tellSlots(p *server.Peer) {
	seen := n.seen()
	var starts []int
	for slot, owner := range seen {
		if owner >= 0 && (slot == 0 || seen[slot-1] != owner) {
			starts = append(starts, slot)
		}
	}
	p.WriteLen(len(starts))
	for _, start := range starts {
		end := start
		for end+1 < slotCount && seen[end+1] == seen[start] {
			end++
		}
		host, _, _ := strings.Cut(n.of.nodes[seen[start]].addr, ":")
		p.WriteLen(3)
		p.WriteInt(start)
		p.WriteInt(end)
		p.WriteLen(3)
		p.WriteBulk(host)
		p.WriteInt(6379)
		p.WriteBulk(fmt.Sprint("id", seen[start]))
	}
}

// migrate gives slots to another node. Nodes that see it tell their subscribers.
func (c *cluster) migrate(to int, moved ...int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, slot := range moved {
		c.slots[slot] = int16(to)
	}
	c.unsubscribe()
}

// takeOver gives all slots of a node to another, which the former does not see.
func (c *cluster) takeOver(from, to int) {
	c.isolate(from)
	c.mu.Lock()
	defer c.mu.Unlock()
	for slot, owner := range c.slots {
		if int(owner) == from {
			c.slots[slot] = int16(to)
		}
	}
}

// isolate lets nodes see the cluster as it is now until join.
func (c *cluster) isolate(nodes ...int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range nodes {
		if n := c.nodes[i]; !n.apart {
			n.apart, n.view = true, c.slots
		}
	}
}

// join lets all nodes see the cluster as it is.
func (c *cluster) join() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		n.apart = false
	}
	c.unsubscribe()
}

// unsubscribe tells subscribers of channels that a node does not serve. The
// caller holds mu.
func (c *cluster) unsubscribe() {
	for _, n := range c.nodes {
		for p, channels := range n.subs {
			for channel := range channels {
				if int(n.seen()[slotOf(channel)]) != n.index {
					n.subscribe(p, false, channel)
				}
			}
		}
	}
}

// sent publishes in the node that has the channel, and returns to how many
// subscribers.
func (c *cluster) sent(channel, payload string) (receivers int) {
	if owner := c.owner(channel); owner >= 0 {
		return c.sentBy(owner, channel, payload)
	}
	return 0
}

// sentBy publishes in a node.
func (c *cluster) sentBy(node int, channel, payload string) (receivers int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, channels := range c.nodes[node].subs {
		if !channels[channel] {
			continue
		}
		receivers++
		p.Block(func(w *server.Writer) {
			w.WritePushLen(3)
			w.WriteBulk("smessage")
			w.WriteBulk(channel)
			w.WriteBulk(payload)
			w.Flush()
		})
	}
	return receivers
}

// owner returns the node that has the channel; -1: none.
func (c *cluster) owner(channel string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int(c.slots[slotOf(channel)])
}

// publish is sent, and waits until what comes of it is done.
func (c *cluster) publish(channel, payload string) (receivers int) {
	receivers = c.sent(channel, payload)
	synctest.Wait()
	return receivers
}

// says lets a node send raw bytes to its subscribers.
func (c *cluster) says(node int, raw string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.nodes[node].subs {
		p.Block(func(w *server.Writer) { w.WriteRaw(raw); w.Flush() })
	}
}

// add adds channels and waits for what comes of it at once.
func (c *cluster) add(channels ...string) {
	c.Add(channels...)
	synctest.Wait()
}

// on returns which of the channels are subscribed to on a node.
func (c *cluster) on(node int) (channels []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, subs := range c.nodes[node].subs {
		for channel := range subs {
			channels = append(channels, channel)
		}
	}
	slices.Sort(channels)
	return channels
}

// of returns those of the channels whose slots a node has.
func (c *cluster) of(node int, channels []string) (own []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, channel := range channels {
		if int(c.slots[slotOf(channel)]) == node {
			own = append(own, channel)
		}
	}
	slices.Sort(own)
	return own
}

// counted returns how often a command came to a node, or with -1 to all.
func (c *cluster) counted(node int, cmd string) (sum int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, n := range c.nodes {
		if node < 0 || node == i {
			sum += n.count[cmd]
		}
	}
	return sum
}

// answers lets h see the commands to a node first.
func (c *cluster) answers(node int, h func(p *server.Peer, cmd string, args ...string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[node].hook = h
}

// delivered requires that messages come of all channels, once.
func (c *cluster) delivered(channels ...string) {
	c.t.Helper()
	for _, channel := range channels {
		payload := fmt.Sprint(channel, time.Now().UnixNano())
		require.Equal(c.t, 1, c.publish(channel, payload), channel)
		got := c.messages(channel)
		require.NotEmpty(c.t, got, channel)
		require.Equal(c.t, payload, got[len(got)-1])
	}
}
