package cache

import (
	"hash/maphash"
	"sync/atomic"
	"time"
)

// recent remembers which keys this process wrote within the last second: they
// are read from the primary, since a replica may not have what was written, or
// still have what was deleted. A key that shares its place with another one is
// read from the primary once too often, which does no harm.
type recent struct {
	seed maphash.Seed
	at   [1024]atomic.Int64 // Unix ns of the last write
	all  atomic.Int64       // the same of all keys, of which some were deleted
}

// recentFor is how long a replica is given to catch up.
const recentFor = time.Second

func newRecent() *recent { return &recent{seed: maphash.MakeSeed()} }

func (r *recent) place(key string) *atomic.Int64 {
	return &r.at[maphash.String(r.seed, key)%uint64(len(r.at))]
}

func (r *recent) note(key string) { r.place(key).Store(time.Now().UnixNano()) }

func (r *recent) has(key string) bool {
	return time.Now().UnixNano()-max(r.place(key).Load(), r.all.Load()) < int64(recentFor)
}

// wrote notes that this process changes key. It is called before the command is
// sent and after its reply: the second lasts from the reply on.
func (c *Client) wrote(key string) {
	if c.recent != nil {
		c.recent.note(key)
	}
}

// wroteAll is wrote for whoever changes keys that nobody names.
func (c *Client) wroteAll() {
	if c.recent != nil {
		c.recent.all.Store(time.Now().UnixNano())
	}
}
