package redistest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// clusterSlots is the number of slots of a Cluster.
const clusterSlots = 16384

// A ClusterConfig says how a Cluster is set up. The zero ClusterConfig is three
// plain primaries with a replica each.
type ClusterConfig struct {
	// Primaries is their number. Defaults to 3.
	Primaries int

	// Replicas is the number of replicas of each primary. Defaults to 1;
	// negative means none.
	Replicas int

	// NodeTimeout is the silence after which a node counts as down. Defaults
	// to 1.5s.
	NodeTimeout time.Duration

	// Data sets up all nodes, which have the same certificates' CA. With TLS,
	// they speak it among themselves as well.
	Data Config

	// Proxied puts a Proxy in front of each node, and all speak of the nodes by
	// their proxies' addresses: clients and replicas go through them, the
	// Cluster's bus does not.
	Proxied bool
}

func (c ClusterConfig) withDefaults() ClusterConfig {
	c.Primaries = cmp.Or(c.Primaries, 3)
	c.Replicas = max(0, cmp.Or(c.Replicas, 1))
	c.NodeTimeout = cmp.Or(c.NodeTimeout, 1500*time.Millisecond)
	return c
}

func (c ClusterConfig) validate() error {
	switch {
	case c.Primaries < 1 || c.Primaries > clusterSlots:
		return fmt.Errorf("%d primaries: want 1 to %d", c.Primaries, clusterSlots)
	case c.NodeTimeout < time.Millisecond:
		return fmt.Errorf("NodeTimeout is %s: want 1ms or more", c.NodeTimeout)
	}
	return nil
}

// A Cluster is a Redis Cluster of processes. Each is a [Server], to be killed and
// paused as such. The methods are safe for concurrent use.
type Cluster struct {
	// Nodes are the nodes. At the start the primaries came first, then their
	// replicas in the order of the primaries.
	Nodes []*Server

	cfg     ClusterConfig
	front   front
	ids     []string // of Nodes
	release func() error

	mu         sync.Mutex
	migrations map[int]migration // under way, by slot
	migrated   bool              // one began, so that the slots are not what they were
}

// StartCluster starts a Cluster and waits until it is settled, which takes 2 s
// at least: a primary that starts does not serve before. Stop ends it. It waits
// for its turn as [StartSentinels] does.
func StartCluster(ctx context.Context, cfg ClusterConfig) (*Cluster, error) {
	return startFixture(ctx, newCluster(cfg))
}

// NewCluster is StartCluster for one test, which is skipped as by New. A test
// that has a fixture cannot have another: it fails.
func NewCluster(tb testing.TB, cfg ClusterConfig) *Cluster {
	tb.Helper()
	return newFixture(tb, newCluster(cfg))
}

func newCluster(cfg ClusterConfig) func() (*Cluster, error) {
	cfg = cfg.withDefaults()
	return func() (*Cluster, error) {
		return &Cluster{cfg: cfg, migrations: make(map[int]migration)}, cfg.validate()
	}
}

func (c *Cluster) start(ctx context.Context) (err error) {
	p := plan{cfg: c.cfg.Data}
	if p.ca, err = newAuthority("redistest CA"); err != nil {
		return err
	}
	if c.Nodes, err = prepareAll(p, c.cfg.Primaries*(1+c.cfg.Replicas)); err != nil {
		return err
	}
	if c.front, err = newFront(c.Nodes, c.cfg.Proxied); err != nil {
		return err
	}
	for range c.Nodes {
		c.ids = append(c.ids, randomID())
	}
	announce := "cluster-announce-port"
	if c.cfg.Data.TLS != nil {
		announce = "cluster-announce-tls-port"
	}
	lines := append(replicationLines(c.cfg.Data),
		"cluster-enabled yes",
		"cluster-config-file nodes.conf",
		fmt.Sprintf("cluster-node-timeout %d", c.cfg.NodeTimeout.Milliseconds()),
		"cluster-replica-validity-factor 0",
		"cluster-allow-replica-migration no",
	)
	if c.cfg.Data.TLS != nil {
		lines = append(lines, "tls-cluster yes")
	}
	for i, s := range c.Nodes {
		if err := os.WriteFile(filepath.Join(s.dir.path, "nodes.conf"), []byte(c.nodesConf(i)), 0o600); err != nil {
			return err
		}
	}
	if err := launchAll(ctx, c.Nodes, func(i int) []string {
		s := c.Nodes[i]
		return slices.Concat(lines, []string{
			"cluster-announce-ip 127.0.0.1",
			fmt.Sprintf("%s %d", announce, c.front.port(s)),
			fmt.Sprintf("cluster-announce-bus-port %d", s.port+busOffset),
		})
	}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	return c.settled(ctx)
}

// nodesConf is what node i would write if the Cluster had been made by commands:
// with it, the nodes know each other from the start.
func (c *Cluster) nodesConf(i int) string {
	var b strings.Builder
	n := c.cfg.Primaries
	for j, s := range c.Nodes {
		primary := j
		if j >= n {
			primary = (j - n) / c.cfg.Replicas
		}
		flags := "master"
		of := "-"
		if primary != j {
			flags, of = "slave", c.ids[primary]
		}
		if i == j {
			flags = "myself," + flags
		}
		shard := ""
		if v, err := programVersion(); err == nil && !olderThan(v, "7.2") {
			shard = ",,shard-id=" + c.ids[primary] // without it 8.0.2 aborts at a SPUBLISH
		}
		fmt.Fprintf(&b, "%s 127.0.0.1:%d@%d%s %s %s 0 0 %d connected", c.ids[j], c.front.port(s), s.port+busOffset, shard, flags, of, primary+1)
		if primary == j {
			fmt.Fprintf(&b, " %d-%d", j*clusterSlots/n, (j+1)*clusterSlots/n-1)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "vars currentEpoch %d lastVoteEpoch 0\n", n)
	return b.String()
}

// busOffset is added to a node's port for the port of its bus.
const busOffset = 10000

// Addrs returns the nodes' addresses, those of the proxies where there are some.
func (c *Cluster) Addrs() []string {
	list := addrs(c.Nodes)
	for i, s := range c.Nodes {
		if p := c.Proxy(s); p != nil {
			list[i] = p.Addr()
		}
	}
	return list
}

// Proxy returns the proxy in front of a node, or nil without Proxied.
func (c *Cluster) Proxy(node *Server) *Proxy { return c.front.proxies[node] }

// URL returns redis+cluster:// or rediss+cluster:// with the default user's
// password. For TLS it does not name the CA.
func (c *Cluster) URL() string {
	u := url.URL{Scheme: "redis+cluster", Host: strings.Join(c.Addrs(), ",")}
	if c.cfg.Data.TLS != nil {
		u.Scheme = "rediss+cluster"
	}
	if c.cfg.Data.Password != "" {
		u.User = url.UserPassword("", c.cfg.Data.Password)
	}
	return u.String()
}

// Options returns options for a client that is the default user. The caller owns
// the result.
func (c *Cluster) Options() *redis.ClusterOptions {
	o := c.Nodes[0].Options()
	return &redis.ClusterOptions{Addrs: c.Addrs(), Password: o.Password, TLSConfig: o.TLSConfig, ContextTimeoutEnabled: true}
}

// Client returns a client of the Cluster, with Options, which is closed when the
// test ends.
func (c *Cluster) Client(tb testing.TB) *redis.ClusterClient {
	tb.Helper()
	rdb := redis.NewClusterClient(c.Options())
	tb.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// Slot returns the slot of a key.
func (c *Cluster) Slot(ctx context.Context, key string) (int, error) {
	var err error
	for _, s := range c.Nodes {
		var reply any
		if reply, err = s.do(ctx, "CLUSTER", "KEYSLOT", key); err == nil {
			slot, _ := reply.(int64)
			return int(slot), nil
		}
	}
	return 0, fmt.Errorf("redistest: slot: no node answers: %w", err)
}

// reset empties the nodes if nothing happened to the Cluster that lasts.
func (c *Cluster) reset(ctx context.Context) error {
	c.mu.Lock()
	migrated := c.migrated
	c.mu.Unlock()
	if migrated {
		return errors.New("slots were migrated")
	}
	if err := undisturbed(c.Nodes); err != nil {
		return err
	}
	if err := emptyAll(ctx, c.Nodes[:c.cfg.Primaries]); err != nil {
		return err // such as READONLY after a failover
	}
	return c.settled(ctx)
}

func (c *Cluster) servers() []*Server { return c.Nodes }

func (c *Cluster) setRelease(release func() error) { c.release = release }

// Stop ends all processes for good, and lets the next fixture begin. It may be
// called twice.
func (c *Cluster) Stop() error { return stopFixture(c.Nodes, c.front, c.release) }

// index returns the place of a node in Nodes.
func (c *Cluster) index(s *Server) (int, error) {
	i := slices.Index(c.Nodes, s)
	if i < 0 {
		return 0, errors.New("the server is none of the Cluster's Nodes")
	}
	return i, nil
}
