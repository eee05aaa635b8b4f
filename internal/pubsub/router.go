package pubsub

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// checkEvery is how often all channels are compared with the topology: a node
	// that is cut off from its Cluster answers and does not know that it has lost
	// its slots.
	checkEvery = 2 * time.Second

	// reloadTimeout bounds a question for the topology, which go-redis asks one
	// node after the other, in another order each time.
	reloadTimeout = 2 * time.Second
)

var errElsewhere = errors.New("another node of the Cluster serves the channel now")

// A router brings each channel to the shard of its node. It runs while there are
// channels.
type router struct {
	c    *Channels
	wake chan struct{} // holds one

	// Guarded by mu of c.
	running   bool
	homeless  map[string]struct{} // channels without a shard
	check     time.Time           // when all are looked at
	all       bool                // they are looked at now
	stale     bool                // the topology has to be asked for
	reloading bool                // it is being asked for
	reloads   int                 // how often it was, since all were well
	reloadAt  time.Time           // not before
	fruitless int                 // attempts in a row to place channels without a topology
	pause     time.Time           // until when there is no other attempt
}

func newRouter(c *Channels) *router {
	return &router{c: c, wake: make(chan struct{}, 1), homeless: make(map[string]struct{})}
}

// start makes the router look at the channels that are homeless. The caller
// holds mu.
func (r *router) start() {
	if !r.running && len(r.c.places) > 0 {
		r.running = true
		r.check = time.Now().Add(checkEvery)
		r.c.tasks.Go(r.run)
	}
	r.signal()
}

func (r *router) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// lookNow makes the router compare all channels with the topology.
func (r *router) lookNow() {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.all = true
	r.signal()
}

// trouble is told that a node has gone. The caller holds mu.
func (r *router) trouble() {
	r.check = time.Now()
	r.signal()
}

// bounced is told that a channel is not served where it was placed: the topology
// is out of date. The caller holds mu.
func (r *router) bounced(channel string, p *place) {
	p.shard.sub.Remove(channel)
	if p.live {
		r.c.past.Moves++
	}
	*p = place{bounced: true, lost: true}
	r.homeless[channel] = struct{}{}
	r.stale = true
	r.signal()
}

// run places channels until there are none.
func (r *router) run() {
	timer := time.NewTimer(1)
	defer timer.Stop()
	for {
		channels, next, ok := r.tend(time.Now())
		switch {
		case !ok:
			return
		case len(channels) > 0:
			if !r.place(channels) {
				return
			}
			continue
		}
		timer.Reset(max(time.Until(next), 1))
		select {
		case <-timer.C:
		case <-r.wake:
		case <-r.c.ctx.Done():
		}
	}
}

// tend does what is due, and returns the channels that have to be placed now,
// or when to look again. It is not ok if there are no channels any more.
func (r *router) tend(now time.Time) (channels []string, next time.Time, ok bool) {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.places) == 0 {
		r.running = false
		clear(r.homeless)
		return nil, next, false
	}
	if !now.Before(r.check) {
		r.examine(now)
	}
	next = r.check
	switch {
	case !r.stale || r.reloading:
	case now.Before(r.reloadAt):
		next = earlier(next, r.reloadAt)
	default:
		r.reload()
	}
	if now.Before(r.pause) {
		return nil, earlier(next, r.pause), true
	}
	for channel := range r.homeless {
		switch p := c.places[channel]; {
		case p == nil || p.shard != nil:
			delete(r.homeless, channel)
		case p.bounced && (r.stale || r.reloading): // it would bounce again
		default:
			channels = append(channels, channel)
		}
	}
	if r.all {
		r.all = false
		for channel, p := range c.places {
			if p.shard != nil {
				channels = append(channels, channel)
			}
		}
	}
	return channels, next, true
}

// examine decides when to compare all channels with the topology: from time to
// time, or once it has been asked for anew, if some are not subscribed to. It
// forgets nodes that are not used any more. The caller holds mu.
func (r *router) examine(now time.Time) {
	well := true
	used := make(map[*shard]bool)
	for _, p := range r.c.places {
		used[p.shard] = true
		if !p.live && !p.refused {
			well = false
		}
	}
	if well {
		r.all, r.reloads = true, 0
	} else {
		r.stale = true
	}
	r.check = now.Add(checkEvery)
	for node, s := range r.c.shards {
		if !used[s] && !s.sub.active() {
			r.c.past.add(s.sub.Stats())
			delete(r.c.shards, node)
		}
	}
}

// reload has the topology asked for. go-redis' ReloadState would do so up to
// 200 ms later; for what goes to each primary it is asked for at once. The
// caller holds mu.
func (r *router) reload() {
	r.stale, r.reloading = false, true
	c := r.c
	c.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(c.ctx, reloadTimeout)
		defer cancel()
		_ = c.cn.EachPrimary(ctx, func(context.Context, redis.UniversalClient) error { return nil })
		c.mu.Lock()
		defer c.mu.Unlock()
		r.reloads++
		r.reloadAt = time.Now().Add(backoff(max(1, r.reloads-2)))
		r.check = earlier(r.check, r.reloadAt)
		r.reloading, r.all = false, true
		r.signal()
	})
}

// place brings channels to the nodes that have them by the topology. It reports
// whether there is more to come: not if the client is closed.
func (r *router) place(channels []string) bool {
	ctx, cancel := context.WithTimeout(r.c.ctx, 2*r.c.cfg.Ping)
	defer cancel()
	nodes := make([]redis.UniversalClient, len(channels))
	for i, channel := range channels {
		var err error
		if nodes[i], err = r.c.cn.Node(ctx, channel); err != nil { // there is no topology yet
			return r.unplaced(channels, err)
		}
	}
	c := r.c
	c.telling.Lock()
	defer c.telling.Unlock()
	c.mu.Lock()
	r.fruitless = 0
	var moved []string
	for i, channel := range channels {
		p := c.places[channel]
		if p == nil {
			continue
		}
		delete(r.homeless, channel)
		s := c.shardOf(nodes[i])
		if p.shard == s {
			continue
		}
		if p.shard != nil {
			p.shard.sub.Remove(channel)
		}
		if p.live {
			p.lost = true
			moved = append(moved, channel)
		}
		p.shard, p.live, p.refused, p.bounced = s, false, false, false
		s.sub.Add(channel)
	}
	c.past.Moves += uint64(len(moved))
	c.mu.Unlock()
	if len(moved) > 0 {
		c.cfg.Lost(moved, errElsewhere)
	}
	return true
}

// unplaced notes that no node is known for channels.
func (r *router) unplaced(channels []string, err error) bool {
	c := r.c
	c.telling.Lock()
	defer c.telling.Unlock()
	closed := errors.Is(err, redis.ErrClosed)
	c.mu.Lock()
	r.fruitless++
	r.pause = time.Now().Add(backoff(r.fruitless))
	if closed {
		r.running = false
	}
	var lost []string
	for _, channel := range channels {
		if p := c.places[channel]; p != nil && (!p.lost || closed) {
			p.lost = true
			lost = append(lost, channel)
		}
	}
	c.mu.Unlock()
	if len(lost) > 0 {
		c.cfg.Lost(lost, err)
	}
	return !closed
}
