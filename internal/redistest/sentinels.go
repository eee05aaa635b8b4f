package redistest

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A SentinelsConfig says how Sentinels and what they watch are set up. The zero
// SentinelsConfig is three plain Sentinels, a primary and two replicas.
type SentinelsConfig struct {
	// MasterName is the name by which the Sentinels know the primary. Defaults
	// to "mymaster".
	MasterName string

	// Sentinels is their number; the quorum is the majority. Defaults to 3.
	Sentinels int

	// Replicas is the number of replicas. Defaults to 2; negative means none.
	Replicas int

	// DownAfter is the silence after which a node counts as down. Defaults to 1s.
	DownAfter time.Duration

	// FailoverTimeout is the Sentinels' failover-timeout: after a failover that
	// failed the next begins two of these later. Defaults to 2s.
	FailoverTimeout time.Duration

	// Data sets up primary and replicas, which all have the same certificates'
	// CA. Its Password is that of replication and of the Sentinels as well.
	Data Config

	// Sentinel sets up the Sentinels: they have a Password and a CA of their
	// own. Where only one of Data and Sentinel has TLS, the addresses that the
	// Sentinels tell of each other lead to second ports, where they speak what
	// Data says: that is how Sentinels are.
	Sentinel Config

	// Hostnames makes the Sentinels announce localhost instead of 127.0.0.1.
	Hostnames bool

	// Proxied puts a Proxy in front of each data node, and all speak of the nodes
	// by their proxies' addresses: clients, Sentinels and replicas go through them.
	// A black hole then cuts a node off from everybody who does not know the
	// address of the Server.
	Proxied bool
}

func (c SentinelsConfig) withDefaults() SentinelsConfig {
	c.MasterName = cmp.Or(c.MasterName, "mymaster")
	c.Sentinels = cmp.Or(c.Sentinels, 3)
	c.Replicas = max(0, cmp.Or(c.Replicas, 2))
	c.DownAfter = cmp.Or(c.DownAfter, time.Second)
	c.FailoverTimeout = cmp.Or(c.FailoverTimeout, 2*time.Second)
	return c
}

func (c SentinelsConfig) validate() error {
	switch {
	case c.Sentinels < 1:
		return fmt.Errorf("%d Sentinels: want 1 or more", c.Sentinels)
	case strings.ContainsAny(c.MasterName, " \t\r\n"):
		return fmt.Errorf("MasterName is %q: want a name without spaces", c.MasterName)
	case c.DownAfter < time.Millisecond || c.FailoverTimeout < time.Millisecond:
		return fmt.Errorf("DownAfter is %s and FailoverTimeout %s: want 1ms or more", c.DownAfter, c.FailoverTimeout)
	}
	return nil
}

// Sentinels watch a primary and its replicas. Each is a [Server], to be killed
// and paused as such. The methods are safe for concurrent use.
type Sentinels struct {
	// Nodes are the data nodes. The first was the primary at the start.
	Nodes []*Server

	// Sentinels are the Sentinels.
	Sentinels []*Server

	cfg     SentinelsConfig
	front   front
	ca      string // file with the CAs of both
	release func() error
}

// StartSentinels starts Sentinels, a primary and its replicas, and waits until
// they are settled. Stop ends them.
//
// Two such fixtures or Clusters run at a time on a machine, over all processes:
// StartSentinels waits for its turn until ctx is done, and fails at once if this
// process has one in use already.
func StartSentinels(ctx context.Context, cfg SentinelsConfig) (*Sentinels, error) {
	return startFixture(ctx, newSentinels(cfg))
}

// NewSentinels is StartSentinels for one test, which is skipped as by New. A
// test that has a fixture cannot have another: it fails.
func NewSentinels(tb testing.TB, cfg SentinelsConfig) *Sentinels {
	tb.Helper()
	return newFixture(tb, newSentinels(cfg))
}

func newSentinels(cfg SentinelsConfig) func() (*Sentinels, error) {
	cfg = cfg.withDefaults()
	return func() (*Sentinels, error) { return &Sentinels{cfg: cfg}, cfg.validate() }
}

func (f *Sentinels) start(ctx context.Context) (err error) {
	data := plan{cfg: f.cfg.Data}
	sentinel := plan{cfg: f.cfg.Sentinel, sentinel: true, bothProtocols: (f.cfg.Data.TLS != nil) != (f.cfg.Sentinel.TLS != nil)}
	if data.ca, err = newAuthority("redistest CA of the data nodes"); err != nil {
		return err
	}
	if sentinel.ca, err = newAuthority("redistest CA of the Sentinels"); err != nil {
		return err
	}
	sentinel.peers = data.ca
	if f.Nodes, err = prepareAll(data, 1+f.cfg.Replicas); err != nil {
		return err
	}
	if f.Sentinels, err = prepareAll(sentinel, f.cfg.Sentinels); err != nil {
		return err
	}
	if f.front, err = newFront(f.Nodes, f.cfg.Proxied); err != nil {
		return err
	}
	f.ca = filepath.Join(f.Sentinels[0].dir.path, "all-ca.pem")
	if err := os.WriteFile(f.ca, append(data.ca.certPEM(), sentinel.ca.certPEM()...), 0o600); err != nil {
		return err
	}

	// First the primary, then its replicas, then the Sentinels: who finds nobody
	// tries again a second later only.
	primary, replicas := f.Nodes[0], f.Nodes[1:]
	lines := func(s *Server) []string {
		return append(replicationLines(f.cfg.Data), "replica-announce-ip "+f.host(), fmt.Sprintf("replica-announce-port %d", f.front.port(s)))
	}
	if err := launchAll(ctx, f.Nodes[:1], func(int) []string { return lines(primary) }); err != nil {
		return err
	}
	of := fmt.Sprintf("replicaof %s %d", f.host(), f.front.port(primary))
	if err := launchAll(ctx, replicas, func(i int) []string { return append(lines(replicas[i]), of) }); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	if err := await(ctx, func(ctx context.Context) error { return f.replicating(ctx, primary) }); err != nil {
		return err
	}
	if err := launchAll(ctx, f.Sentinels, f.sentinelLines()); err != nil {
		return err
	}
	return f.settled(ctx)
}

// sentinelLines tell each Sentinel what it would find out within some seconds.
func (f *Sentinels) sentinelLines() func(i int) []string {
	name, primary := f.cfg.MasterName, f.Nodes[0]
	ids := make([]string, len(f.Sentinels))
	for i := range ids {
		ids[i] = randomID()
	}
	return func(i int) []string {
		var lines []string
		line := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
		line("sentinel myid %s", ids[i])
		if f.cfg.Hostnames {
			line("sentinel resolve-hostnames yes")
			line("sentinel announce-hostnames yes")
		}
		if f.cfg.Sentinel.Password != "" {
			line("sentinel sentinel-pass %q", f.cfg.Sentinel.Password)
		}
		if f.cfg.Data.TLS != nil {
			line("tls-replication yes")
		}
		line("sentinel monitor %s %s %d %d", name, f.host(), f.front.port(primary), f.cfg.Sentinels/2+1)
		line("sentinel down-after-milliseconds %s %d", name, f.cfg.DownAfter.Milliseconds())
		line("sentinel failover-timeout %s %d", name, f.cfg.FailoverTimeout.Milliseconds())
		line("sentinel parallel-syncs %s %d", name, max(1, f.cfg.Replicas))
		if f.cfg.Data.Password != "" {
			line("sentinel auth-pass %s %q", name, f.cfg.Data.Password)
		}
		for _, replica := range f.Nodes[1:] {
			line("sentinel known-replica %s %s %d", name, f.host(), f.front.port(replica))
		}
		for j, other := range f.Sentinels {
			if j != i {
				line("sentinel known-sentinel %s 127.0.0.1 %d %s", name, other.portFor(f.cfg.Data.TLS != nil), ids[j])
			}
		}
		return lines
	}
}

// host is how the Sentinels name the machine of the data nodes.
func (f *Sentinels) host() string {
	if f.cfg.Hostnames {
		return "localhost"
	}
	return "127.0.0.1"
}

// MasterName is the name by which the Sentinels know the primary.
func (f *Sentinels) MasterName() string { return f.cfg.MasterName }

// Addrs returns the Sentinels' addresses.
func (f *Sentinels) Addrs() []string { return addrs(f.Sentinels) }

// URL returns redis+sentinel:// or rediss+sentinel:// with the passwords of the
// default users and database 0. For TLS it names no CA: CAFile does.
func (f *Sentinels) URL() string {
	u := url.URL{Scheme: "redis+sentinel", Host: strings.Join(f.Addrs(), ","), Path: "/" + f.cfg.MasterName + "/0"}
	query := url.Values{}
	if f.cfg.Data.TLS != nil {
		u.Scheme = "rediss+sentinel"
	}
	if data, sentinel := f.cfg.Data.TLS != nil, f.cfg.Sentinel.TLS != nil; data != sentinel {
		query.Set("sentinel_tls", strconv.FormatBool(sentinel))
	}
	if f.cfg.Data.Password != "" {
		u.User = url.UserPassword("", f.cfg.Data.Password)
	}
	if f.cfg.Sentinel.Password != "" {
		query.Set("sentinel_password", f.cfg.Sentinel.Password)
	}
	u.RawQuery = query.Encode()
	return u.String()
}

// CAFile returns a PEM file with the CAs of data nodes and Sentinels. Those of
// one kind alone are in its Certs.
func (f *Sentinels) CAFile() string { return f.ca }

// Proxy returns the proxy in front of a data node, or nil without Proxied.
func (f *Sentinels) Proxy(node *Server) *Proxy { return f.front.proxies[node] }

func (f *Sentinels) servers() []*Server { return slices.Concat(f.Nodes, f.Sentinels) }

func (f *Sentinels) setRelease(release func() error) { f.release = release }

// Stop ends all processes for good, and lets the next fixture begin. It may be
// called twice.
func (f *Sentinels) Stop() error { return stopFixture(f.servers(), f.front, f.release) }
