package cache

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/stats"
	"github.com/redisha/redisha/internal/tracking"
)

// A watch is how the L1s of a keyspace are told of changes.
type watch struct {
	tracker *tracking.Tracker
	prefix  *tracking.Prefix
}

// watched returns how a keyspace is told of changes, which begins with the first
// call. It is nil once the client is closed.
func (c *Client) watched(s *keyspace) *watch {
	if w := s.watch.Load(); w != nil {
		return w
	}
	c.spacesMu.Lock()
	defer c.spacesMu.Unlock()
	if w := s.watch.Load(); w != nil {
		return w
	}
	w, err := c.watch(s)
	if err != nil {
		c.warn(c.ctx, &c.warnedLocal, "values are not kept locally", s.prefix, err)
		return nil
	}
	s.watch.Store(w)
	return w
}

func (c *Client) watch(s *keyspace) (w *watch, err error) {
	p, err := c.track(s.prefix, func(keys []string) {
		for _, key := range keys {
			s.evict(key[len(s.prefix):])
		}
	})
	return &watch{c.tracker.Load(), p}, err
}

// track lets invalidate be told of changes of keys with a prefix. spacesMu is held.
func (c *Client) track(prefix string, invalidate func(keys []string)) (*tracking.Prefix, error) {
	if c.running.closed() {
		return nil, ErrClosed
	}
	t := c.tracker.Load()
	if t == nil {
		var err error
		if t, err = tracking.Open(c.rdb, tracking.Config{Gap: c.flushed, Refused: c.untold}); err != nil {
			return nil, err
		}
		c.tracker.Store(t)
	}
	return t.Add(prefix, invalidate)
}

// watchedGenerations returns how the L1s of views with tags are told of the ends of
// generations, which begins with the first call. It is nil once the client is closed.
func (c *Client) watchedGenerations() *tracking.Prefix {
	if p := c.generations.Load(); p != nil {
		return p
	}
	c.spacesMu.Lock()
	defer c.spacesMu.Unlock()
	if p := c.generations.Load(); p != nil {
		return p
	}
	prefix := c.root + generationMark
	p, err := c.track(prefix, func(keys []string) {
		for _, key := range keys {
			c.ended(key[len(prefix):])
		}
	})
	if err != nil {
		c.warn(c.ctx, &c.warnedLocal, "values with tags are not kept locally", prefix, err)
		return nil
	}
	c.generations.Store(p)
	return p
}

// ended is told that the generation of a view, or of one of its tags, has changed:
// generation is the end of its key.
func (c *Client) ended(generation string) {
	name, hex, isTag := strings.Cut(generation, ":")
	c.spacesMu.Lock()
	s := c.spaces[c.root+name+":"]
	c.spacesMu.Unlock()
	if s == nil {
		return
	}
	if hash, err := strconv.ParseUint(hex, 16, 64); isTag && err == nil {
		s.each(func(l localTier) { l.tagEnds(hash) })
		return
	}
	s.each(localTier.clear)
}

// untold is told that a server does not tell of changes.
func (c *Client) untold(err error) {
	c.log.Warn("the server does not tell of changes: local copies are bounded by their age alone (ViewConfig.LocalMaxAge)", "err", err)
}

// unwatch ends what watched has begun.
func (c *Client) unwatch() error {
	c.spacesMu.Lock() // nothing begins from now on: the client is closed
	t := c.tracker.Load()
	c.spacesMu.Unlock() // for which news may wait
	if t == nil {
		return nil
	}
	if err := t.Close(); err != nil {
		return fmt.Errorf("cache: close: %w", err)
	}
	return nil
}

// LocalFlushes is how often a client has given up all its local copies, by cause.
type LocalFlushes struct {
	Flushed    uint64 // all keys of a server were deleted
	Failover   uint64 // another primary, or slots of a Cluster that have moved
	Connection uint64 // a connection by which a server tells of changes was lost, or is new where values were kept without
}

// TrackingStats is how servers tell a client of changes (CLIENT TRACKING).
type TrackingStats struct {
	Connections int    // servers that tell now
	Refused     int    // servers that do not let themselves be tracked: local copies are bounded by their age alone
	Keys        uint64 // keys of which they have told
}

func (c *Client) trackingStats() TrackingStats {
	t := c.tracker.Load()
	if t == nil {
		return TrackingStats{}
	}
	s := t.Stats()
	return TrackingStats{Connections: s.Connections, Refused: s.Refused, Keys: s.Keys}
}

type flushCounters struct{ flushed, failover, connection stats.Counter }

// flushed is told that changes may have been missed.
func (c *Client) flushed(cause error) {
	n := &c.stats.localFlushes
	switch {
	case errors.Is(cause, tracking.ErrFlushed):
		n.flushed.Inc()
	case errors.Is(cause, tracking.ErrMoved):
		n.failover.Inc()
	default:
		n.connection.Inc()
	}
}

// clock is a monotonic time in nanoseconds.
func (c *Client) clock() int64 { return int64(time.Since(c.began)) }

// localAllowed says why a view cannot have an L1.
func (c *Client) localAllowed() error {
	if c.reads != c.primary {
		return errors.New("LocalEntries is set, and the client reads from replicas (read_from), which are not known to have what the primary tells of: leave one of them out")
	}
	if _, isCluster := c.rdb.Unwrap().(*redis.ClusterClient); isCluster && !c.rdb.Own() {
		return errors.New("LocalEntries is set, and the client of the Cluster is not one that redisha made, so that it does not tell which node has answered: let redisha.Open make it, or leave LocalEntries out")
	}
	return nil
}
