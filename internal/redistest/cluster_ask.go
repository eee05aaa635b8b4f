package redistest

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"strconv"
	"time"
)

// PrimaryOf returns the primary that serves a key: of the nodes that answer, the
// one that claims its slot by the highest config-epoch.
func (c *Cluster) PrimaryOf(ctx context.Context, key string) (*Server, error) {
	slot, err := c.Slot(ctx, key)
	if err != nil {
		return nil, err
	}
	owner := ownerOf(c.views(ctx), slot)
	if owner == nil {
		return nil, fmt.Errorf("redistest: no node that answers serves slot %d of %q", slot, key)
	}
	return owner.server, nil
}

// ReplicasOf returns the replicas of the primary that serves a key, of the nodes
// that answer.
func (c *Cluster) ReplicasOf(ctx context.Context, key string) ([]*Server, error) {
	slot, err := c.Slot(ctx, key)
	if err != nil {
		return nil, err
	}
	views := c.views(ctx)
	owner := ownerOf(views, slot)
	if owner == nil {
		return nil, fmt.Errorf("redistest: no node that answers serves slot %d of %q", slot, key)
	}
	var replicas []*Server
	for _, v := range views {
		if v.err == nil && v.self().primary == owner.self().id {
			replicas = append(replicas, v.server)
		}
	}
	return replicas, nil
}

// AwaitPrimary waits until all nodes that answer agree on the primary of a key
// and it is not the one at the address notAddr. Without a deadline of ctx it waits for a
// minute.
func (c *Cluster) AwaitPrimary(ctx context.Context, key, notAddr string) (primary *Server, err error) {
	err = await(ctx, func(ctx context.Context) error {
		slot, err := c.Slot(ctx, key)
		if err != nil {
			return err
		}
		primary, err = c.agreed(ctx, slot)
		if err == nil && primary == c.front.nodeAt(notAddr) {
			err = fmt.Errorf("the primary of %q is %s still", key, notAddr)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("redistest: await primary: %w", err)
	}
	return primary, nil
}

// agreed returns the primary of a slot if all nodes that answer agree.
func (c *Cluster) agreed(ctx context.Context, slot int) (*Server, error) {
	views := c.views(ctx)
	owner := ownerOf(views, slot)
	if owner == nil {
		return nil, fmt.Errorf("no node that answers serves slot %d", slot)
	}
	for _, v := range views {
		if v.err != nil {
			continue
		}
		for _, n := range v.nodes {
			if n.serves(slot) && n.id != owner.self().id {
				return nil, fmt.Errorf("%s says slot %d is served by %s, which is %s's", v.server.Addr(), slot, n.addr, owner.server.Addr())
			}
		}
		if v.state != "ok" {
			return nil, fmt.Errorf("%s says cluster_state:%s", v.server.Addr(), v.state)
		}
	}
	return owner.server, nil
}

// Failover makes a replica the primary (CLUSTER FAILOVER), and waits until all
// nodes that answer say so.
func (c *Cluster) Failover(ctx context.Context, replica *Server) error {
	err := await(ctx, func(ctx context.Context) error {
		v := c.view(ctx, replica)
		if v.err != nil || v.self().primary == "" {
			return v.err // a primary now
		}
		if _, err := replica.do(ctx, "CLUSTER", "FAILOVER"); err != nil {
			return err
		}
		// It takes a round or two; a failed one is begun anew.
		wait, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return await(wait, func(ctx context.Context) error {
			v := c.view(ctx, replica)
			if v.err == nil && v.self().primary != "" {
				return fmt.Errorf("%s is a replica still", replica.Addr())
			}
			return v.err
		})
	})
	if err == nil {
		err = await(ctx, func(ctx context.Context) error {
			v := c.view(ctx, replica)
			if v.err != nil || len(v.self().slots) == 0 {
				return cmp.Or(v.err, fmt.Errorf("%s serves no slots", replica.Addr()))
			}
			primary, err := c.agreed(ctx, v.self().slots[0].first)
			if err == nil && primary != replica {
				err = fmt.Errorf("%s serves its slots", primary.Addr())
			}
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("redistest: cluster failover: %w", err)
	}
	return nil
}

// Settled waits until nothing is under way: all nodes run and say that the
// Cluster is well, they see each other, agree on who serves what, no slot
// migrates, and all replicas have their link up. Without a deadline of ctx it
// waits for a minute. A test calls it before a fault.
func (c *Cluster) Settled(ctx context.Context) error {
	if err := c.settled(ctx); err != nil {
		return fmt.Errorf("redistest: the Cluster has not settled: %w", err)
	}
	return nil
}

func (c *Cluster) settled(ctx context.Context) error { return await(ctx, c.unsettled) }

// unsettled says what Settled still waits for.
func (c *Cluster) unsettled(ctx context.Context) error {
	views := c.views(ctx)
	for _, v := range views {
		if err := cmp.Or(v.err, v.problem(len(c.Nodes))); err != nil {
			return err
		}
		if mine, first := v.layout(), views[0].layout(); mine != first {
			return fmt.Errorf("%s and %s disagree:\n%s\n%s", v.server.Addr(), views[0].server.Addr(), mine, first)
		}
	}
	return forEach(c.Nodes, func(i int, s *Server) error {
		self := views[i].self()
		if self.primary == "" {
			replicas := 0
			for _, n := range views[i].nodes {
				if n.primary == self.id {
					replicas++
				}
			}
			return s.replication(ctx, replicas, 0)
		}
		for _, n := range views[i].nodes {
			if n.id == self.primary {
				_, port, _ := net.SplitHostPort(n.addr)
				number, _ := strconv.Atoi(port)
				return s.replication(ctx, -1, number)
			}
		}
		return fmt.Errorf("%s does not know its primary", s.Addr())
	})
}
