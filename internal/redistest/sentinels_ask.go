package redistest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Primary returns the node which the Sentinels say is the primary: the word of
// the highest config-epoch counts. It returns nil if no Sentinel answers within
// a second.
func (f *Sentinels) Primary() *Server {
	var best *opinion
	for _, o := range f.opinions(context.Background()) {
		if o.err == nil && (best == nil || o.epoch > best.epoch) {
			best = &o
		}
	}
	if best == nil {
		return nil
	}
	return f.front.nodeAt(best.primary)
}

// Replicas returns the nodes that are not Primary, dead ones too.
func (f *Sentinels) Replicas() []*Server {
	primary := f.Primary()
	return slices.DeleteFunc(slices.Clone(f.Nodes), func(s *Server) bool { return s == primary })
}

// Failover has a Sentinel make a replica the primary (SENTINEL FAILOVER), and
// waits as AwaitPrimary does. It asks again while the Sentinels are not ready
// for it. The old primary says master for some twenty seconds more; Settled waits
// for its end.
func (f *Sentinels) Failover(ctx context.Context) (*Server, error) {
	old := f.Primary()
	if old == nil {
		return nil, errors.New("redistest: failover: no Sentinel answers")
	}
	err := await(ctx, func(ctx context.Context) error {
		err := errors.New("no Sentinel answers")
		for _, s := range f.Sentinels {
			_, err = s.do(ctx, "SENTINEL", "FAILOVER", f.cfg.MasterName)
			if err == nil || strings.Contains(err.Error(), "INPROG") || strings.Contains(err.Error(), "NOGOODSLAVE") {
				return err
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("redistest: failover: %w", err)
	}
	return f.AwaitPrimary(ctx, old.Addr())
}

// AwaitPrimary waits until all Sentinels that answer name the same primary, not
// the one at the address notAddr, and this says master. Without a deadline of ctx it
// waits for a minute.
func (f *Sentinels) AwaitPrimary(ctx context.Context, notAddr string) (primary *Server, err error) {
	not := f.front.nodeAt(notAddr)
	err = await(ctx, func(ctx context.Context) error {
		primary = nil
		for _, o := range f.opinions(ctx) {
			if o.err != nil {
				continue
			}
			node := f.front.nodeAt(o.primary)
			switch {
			case node == nil || node == not:
				return fmt.Errorf("the Sentinel %s says the primary is %s", o.sentinel.Addr(), o.primary)
			case primary != nil && node != primary:
				return fmt.Errorf("the Sentinels disagree: %s and %s", primary.Addr(), o.primary)
			}
			primary = node
		}
		if primary == nil {
			return errors.New("no Sentinel answers")
		}
		info, err := primary.info(ctx, "replication")
		if err == nil && infoField(info, "role") != "master" {
			err = fmt.Errorf("%s does not say that it is the primary", primary.Addr())
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("redistest: await primary: %w", err)
	}
	return primary, nil
}

// Settled waits until nothing is under way: all processes run, the Sentinels agree
// on the primary, see each other and all replicas, none takes anything for down
// or is in TILT mode, and all replicas have their link to the primary up. Without
// a deadline of ctx it waits for a minute. A test calls it before a fault. After a
// failover it takes some twenty seconds.
func (f *Sentinels) Settled(ctx context.Context) error {
	if err := f.settled(ctx); err != nil {
		return fmt.Errorf("redistest: Sentinels have not settled: %w", err)
	}
	return nil
}

func (f *Sentinels) settled(ctx context.Context) error { return await(ctx, f.unsettled) }

// reset empties the data nodes if nothing happened to the fixture that lasts: a
// new one is ready sooner than an old one recovers.
func (f *Sentinels) reset(ctx context.Context) error {
	if err := undisturbed(f.servers()); err != nil {
		return err
	}
	if f.Primary() != f.Nodes[0] {
		return errors.New("another node is the primary")
	}
	if err := emptyAll(ctx, f.Nodes[:1]); err != nil {
		return err
	}
	return f.settled(ctx)
}

// unsettled says what Settled still waits for.
func (f *Sentinels) unsettled(ctx context.Context) error {
	opinions := f.opinions(ctx)
	first := f.front.nodeAt(opinions[0].primary)
	for _, o := range opinions {
		if err := cmp.Or(o.err, o.problem); err != nil {
			return err
		}
		if node := f.front.nodeAt(o.primary); node == nil || node != first {
			return fmt.Errorf("the Sentinels disagree: %s and %s", opinions[0].primary, o.primary)
		}
	}
	return f.replicating(ctx, first)
}

// replicating says what is wrong with the data nodes if primary is to be the one.
func (f *Sentinels) replicating(ctx context.Context, primary *Server) error {
	return forEach(f.Nodes, func(_ int, s *Server) error {
		if s == primary {
			return s.replication(ctx, len(f.Nodes)-1, 0)
		}
		return s.replication(ctx, -1, f.front.port(primary))
	})
}

// An opinion is what a Sentinel says.
type opinion struct {
	sentinel *Server
	err      error // no answer
	primary  string
	epoch    int64
	problem  error // why it is not settled
}

// opinions asks all Sentinels at the same time.
func (f *Sentinels) opinions(ctx context.Context) []opinion {
	opinions := make([]opinion, len(f.Sentinels))
	var asking sync.WaitGroup
	for i, s := range f.Sentinels {
		asking.Go(func() { opinions[i] = f.opinion(ctx, s) })
	}
	asking.Wait()
	return opinions
}

func (f *Sentinels) opinion(ctx context.Context, s *Server) opinion {
	o := opinion{sentinel: s}
	var info *redis.Cmd
	var addr, master, replicas, sentinels *redis.Cmd
	o.err = s.with(ctx, func(ctx context.Context, rdb *redis.Client) error {
		_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			info = p.Do(ctx, "INFO", "sentinel")
			addr = p.Do(ctx, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", f.cfg.MasterName)
			master = p.Do(ctx, "SENTINEL", "MASTER", f.cfg.MasterName)
			replicas = p.Do(ctx, "SENTINEL", "REPLICAS", f.cfg.MasterName)
			sentinels = p.Do(ctx, "SENTINEL", "SENTINELS", f.cfg.MasterName)
			return nil
		})
		return err
	})
	if o.err != nil {
		return o
	}
	if parts, err := addr.StringSlice(); err == nil && len(parts) == 2 {
		o.primary = net.JoinHostPort(parts[0], parts[1]) // not that of MASTER, which is the old one during a failover
	}
	m := flat(master.Val())
	o.epoch, _ = strconv.ParseInt(m["config-epoch"], 10, 64)
	problem := func(format string, args ...any) {
		if o.problem == nil {
			o.problem = fmt.Errorf("Sentinel "+s.Addr()+": "+format, args...)
		}
	}
	if text, _ := info.Val().(string); infoField(text, "sentinel_tilt") != "0" {
		problem("TILT mode")
	}
	if m["flags"] != "master" {
		problem("the primary's flags are %q", m["flags"])
	}
	up := 0
	for _, r := range maps(replicas.Val()) {
		if r["flags"] == "slave" && r["master-link-status"] == "ok" {
			up++
		}
	}
	if up != len(f.Nodes)-1 {
		problem("%d replicas are up: want %d", up, len(f.Nodes)-1)
	}
	seen := 0
	for _, other := range maps(sentinels.Val()) {
		if other["flags"] == "sentinel" {
			seen++
		}
	}
	if seen != len(f.Sentinels)-1 {
		problem("it sees %d other Sentinels: want %d", seen, len(f.Sentinels)-1)
	}
	return o
}

// maps reads a reply of replies of names and values.
func maps(reply any) []map[string]string {
	values, _ := reply.([]any)
	list := make([]map[string]string, len(values))
	for i, v := range values {
		list[i] = flat(v)
	}
	return list
}
