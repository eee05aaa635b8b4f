package redistest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// A clusterView is what one node says of the Cluster.
type clusterView struct {
	server *Server
	err    error  // no answer
	state  string // cluster_state
	nodes  []clusterNode
	own    int // place in nodes of the one that says so
}

// A clusterNode is a line of CLUSTER NODES.
type clusterNode struct {
	id, addr  string
	flags     []string
	primary   string // ID of a replica's primary, else ""
	epoch     int64
	linked    bool
	slots     []slotRange
	migrating bool // a slot migrates; told of the node itself alone
}

type slotRange struct{ first, last int }

// views asks all nodes at the same time.
func (c *Cluster) views(ctx context.Context) []*clusterView {
	views := make([]*clusterView, len(c.Nodes))
	var asking sync.WaitGroup
	for i, s := range c.Nodes {
		asking.Go(func() { views[i] = c.view(ctx, s) })
	}
	asking.Wait()
	return views
}

func (c *Cluster) view(ctx context.Context, s *Server) *clusterView {
	v := &clusterView{server: s}
	var info, nodes *redis.Cmd
	v.err = s.with(ctx, func(ctx context.Context, rdb *redis.Client) error {
		_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			info, nodes = p.Do(ctx, "CLUSTER", "INFO"), p.Do(ctx, "CLUSTER", "NODES")
			return nil
		})
		return err
	})
	if v.err != nil {
		return v
	}
	infoText, _ := info.Val().(string)
	v.state = infoField(infoText, "cluster_state")
	nodesText, _ := nodes.Val().(string)
	v.nodes, v.own = parseClusterNodes(nodesText)
	if v.own < 0 {
		v.err = fmt.Errorf("%s: no line of its own in the reply to CLUSTER NODES: %q", s.Addr(), nodesText)
	}
	return v
}

// parseClusterNodes reads the reply to CLUSTER NODES. Own is -1 if the node's own
// line is missing.
func parseClusterNodes(text string) (nodes []clusterNode, own int) {
	own = -1
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 8 {
			continue
		}
		n := clusterNode{id: fields[0], flags: strings.Split(fields[2], ","), linked: fields[7] == "connected"}
		n.addr, _, _ = strings.Cut(fields[1], "@")
		if fields[3] != "-" {
			n.primary = fields[3]
		}
		n.epoch, _ = strconv.ParseInt(fields[6], 10, 64)
		for _, field := range fields[8:] {
			if strings.HasPrefix(field, "[") {
				n.migrating = true
				continue
			}
			first, last, ok := strings.Cut(field, "-")
			if !ok {
				last = first
			}
			var r slotRange
			r.first, _ = strconv.Atoi(first)
			r.last, _ = strconv.Atoi(last)
			n.slots = append(n.slots, r)
		}
		if slices.Contains(n.flags, "myself") {
			own = len(nodes)
		}
		nodes = append(nodes, n)
	}
	return nodes, own
}

func (n *clusterNode) serves(slot int) bool {
	return slices.ContainsFunc(n.slots, func(r slotRange) bool { return r.first <= slot && slot <= r.last })
}

// self is the node's own line.
func (v *clusterView) self() *clusterNode { return &v.nodes[v.own] }

// problem says why the view is not that of a settled Cluster with so many nodes.
func (v *clusterView) problem(nodes int) error {
	if v.state != "ok" || len(v.nodes) != nodes {
		return fmt.Errorf("%s says cluster_state:%s with %d nodes: want ok with %d", v.server.Addr(), v.state, len(v.nodes), nodes)
	}
	covered := 0
	for _, n := range v.nodes {
		for _, flag := range n.flags {
			if flag != "myself" && flag != "master" && flag != "slave" {
				return fmt.Errorf("%s says %s is %s", v.server.Addr(), n.addr, flag)
			}
		}
		for _, r := range n.slots {
			covered += r.last - r.first + 1
		}
		switch {
		case !n.linked:
			return fmt.Errorf("%s has no link to %s", v.server.Addr(), n.addr)
		case n.migrating:
			return errors.New(v.server.Addr() + " has a slot that migrates")
		}
	}
	if covered != clusterSlots {
		return fmt.Errorf("%s says %d slots are served: want %d", v.server.Addr(), covered, clusterSlots)
	}
	return nil
}

// layout tells who serves what, in the same words for all views that agree.
func (v *clusterView) layout() string {
	var lines []string
	for _, n := range v.nodes {
		lines = append(lines, fmt.Sprintf("%s of %q: %v", n.addr, n.primary, n.slots))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// ownerOf returns the view of the node that itself claims the slot, by the
// highest config-epoch, or nil.
func ownerOf(views []*clusterView, slot int) (owner *clusterView) {
	for _, v := range views {
		if v.err == nil && v.self().serves(slot) && (owner == nil || v.self().epoch > owner.self().epoch) {
			owner = v
		}
	}
	return owner
}
