// Package stats holds the counters, gauges and histograms in which the roles
// count. They cost an atomic operation or two, allocate nothing, need no
// registry, and their zero values are ready to use. Package metrics renders
// their snapshots when it is scraped.
//
// All types are safe for concurrent use and must not be copied after first use.
package stats

import "sync/atomic"

// A Counter counts events. It only grows.
type Counter struct{ n atomic.Uint64 }

// Inc adds one.
func (c *Counter) Inc() { c.n.Add(1) }

// Add adds n events.
func (c *Counter) Add(n uint64) { c.n.Add(n) }

// Load returns the events so far.
func (c *Counter) Load() uint64 { return c.n.Load() }

// A Gauge is a level that rises and falls.
type Gauge struct{ n atomic.Int64 }

// Add moves the level by delta, which may be negative, and returns the new one.
func (g *Gauge) Add(delta int64) int64 { return g.n.Add(delta) }

// Set sets the level.
func (g *Gauge) Set(n int64) { g.n.Store(n) }

// Load returns the level.
func (g *Gauge) Load() int64 { return g.n.Load() }
