package tracking

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// lookEvery is how often the topology of a Cluster is asked for. A node that is
	// cut off from the others answers, and does not know what it has lost.
	lookEvery = 2 * time.Second

	// settling is how many times after a change of the topology the primaries are
	// asked for: the next node that is asked may not have heard of it.
	settling = 3
)

// follow keeps a connection to each primary of a Cluster.
func (t *Tracker) follow() {
	var v view
	for fails := 0; ; {
		wait := lookEvery
		switch err := t.compare(&v); {
		case errors.Is(err, redis.ErrClosed):
			t.each((*node).retire)
			t.gap(err)
			return
		case err != nil && t.ctx.Err() == nil:
			t.failed(err)
			fails++
			wait = backoff(fails)
		default:
			fails = 0
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-t.look:
		case <-t.ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// lookNow makes follow look at the topology.
func (t *Tracker) lookNow() {
	select {
	case t.look <- struct{}{}:
	default:
	}
}

// A view is what follow knows of the topology.
type view struct {
	owners string // of all slots
	due    int    // how many times the primaries are still to be asked for
}

// compare asks for the topology, ends the epoch if slots have moved, and begins
// and ends connections. A slot whose keys are moved one by one needs no end of the
// epoch, since each is deleted where it was; one that moves as a whole does.
func (t *Tracker) compare(v *view) error {
	if err := t.cn.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.ctx, lookEvery)
	defer cancel()
	slots, err := t.cn.ClusterSlots(ctx).Result()
	if err != nil {
		return fmt.Errorf("ask for the topology: %w", err)
	}
	owners := ownersOf(slots)
	moved := v.owners != "" && owners != v.owners
	if owners != v.owners {
		v.owners, v.due = owners, settling
	}
	gone := false
	if v.due > 0 {
		gone, err = t.reach(ctx)
		if err == nil {
			v.due--
		}
	}
	if moved || gone {
		t.gap(errSlots)
	}
	return err
}

// ownersOf says which primary has which slots, so that it can be compared.
func ownersOf(slots []redis.ClusterSlot) string {
	ranges := make([]string, 0, len(slots))
	for _, r := range slots {
		if len(r.Nodes) > 0 {
			ranges = append(ranges, fmt.Sprintf("%05d-%05d %s", r.Start, r.End, r.Nodes[0].Addr))
		}
	}
	slices.Sort(ranges)
	return strings.Join(ranges, "\n")
}

// reach begins connections to primaries that are new, and ends those to nodes that
// are none any more. It reports whether there were such.
func (t *Tracker) reach(ctx context.Context) (gone bool, err error) {
	var mu sync.Mutex
	primaries := make(map[string]*redis.Options)
	err = t.cn.EachPrimary(ctx, func(_ context.Context, client redis.UniversalClient) error {
		opt, err := optionsOf(client)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		primaries[opt.Addr] = opt
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("ask for the primaries: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(primaries) == 0 {
		return false, nil
	}
	nodes := maps.Clone(*t.nodes.Load())
	if nodes == nil {
		nodes = make(map[string]*node)
	}
	for addr, opt := range primaries {
		if nodes[addr] == nil {
			n := newNode(t, opt)
			nodes[addr] = n
			t.tasks.Go(n.run)
		}
	}
	for addr, n := range nodes {
		if primaries[addr] == nil {
			n.retire()
			delete(nodes, addr)
			gone = true
		}
	}
	t.nodes.Store(&nodes)
	return gone, nil
}
