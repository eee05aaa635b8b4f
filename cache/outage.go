package cache

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/redisha/redisha/internal/endpoint"
)

// An outage keeps, for a short time, what the views of one name have loaded while
// Redis could not be read, so that the source does not get a load for each read. What
// is kept was loaded after every Delete and Set of the process, and is dropped as soon
// as Redis answers again.
type outage struct {
	used  *atomic.Int64 // bytes of all views of the client
	byKey bool          // an answer of Redis says nothing about other keys
	n     atomic.Int64  // kept values and loads; 0 spares the reads the lock

	mu    sync.Mutex
	kept  map[string]keptValue
	loads map[string]*keptLoad // that run: of a key, one for each view
}

type keptValue struct {
	body  []byte // the codec's bytes; nil: an absence
	until time.Time
}

// A keptLoad is a load whose value is going to be kept.
type keptLoad struct {
	spoiled bool // the key has been written since, or Redis has answered
	other   *keptLoad
}

const (
	keepFor      = 2 * time.Second
	maxKeptBytes = 32 << 20
	keptOverhead = 128 // bytes of a value beside its own and its key's
)

func newOutage(c *Client) *outage {
	return &outage{
		used: &c.keptBytes, byKey: c.rdb.Topology() == endpoint.Cluster,
		kept: make(map[string]keptValue), loads: make(map[string]*keptLoad),
	}
}

// begin says that a load of key begins, which end ends.
func (o *outage) begin(key string) *keptLoad {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := &keptLoad{other: o.loads[key]}
	o.loads[key] = l
	o.n.Add(1)
	return l
}

// end keeps body for ttl, unless it is outdated or there is no room. ttl 0:
// there is nothing to keep.
func (o *outage) end(key string, l *keptLoad, body []byte, ttl time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.remove(key, l)
	o.n.Add(-1)
	if l.spoiled || ttl <= 0 {
		return
	}
	o.drop(key)
	size := sizeKept(key, body)
	if o.used.Load()+size > maxKeptBytes {
		o.sweep()
	}
	if o.used.Add(size) > maxKeptBytes {
		o.used.Add(-size)
		return
	}
	o.kept[key] = keptValue{body, time.Now().Add(ttl)}
	o.n.Add(1)
}

func (o *outage) remove(key string, l *keptLoad) {
	first := o.loads[key]
	if first != l {
		for first.other != l {
			first = first.other
		}
		first.other = l.other
		return
	}
	if o.loads[key] = l.other; l.other == nil {
		delete(o.loads, key)
	}
}

func sizeKept(key string, body []byte) int64 { return int64(len(key) + len(body) + keptOverhead) }

// recall returns what is kept of key: bytes that must not be changed, or nil for
// an absence.
func (o *outage) recall(key string) (body []byte, ok bool) {
	if o.n.Load() == 0 {
		return nil, false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	v, ok := o.kept[key]
	if ok && !time.Now().Before(v.until) {
		o.drop(key)
		return nil, false
	}
	return v.body, ok
}

// forget is called when the process has written or deleted key, or may have.
func (o *outage) forget(key string) {
	if o.n.Load() == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.spoil(key)
}

// answered is called when Redis has answered a read of key.
func (o *outage) answered(key string) {
	if o.n.Load() == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.byKey {
		o.spoil(key)
		return
	}
	o.spoilAll()
}

// clear is forget for all keys.
func (o *outage) clear() {
	if o.n.Load() == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.spoilAll()
}

func (o *outage) spoilAll() {
	for key := range o.kept {
		o.drop(key)
	}
	for _, l := range o.loads {
		l.spoil()
	}
}

func (o *outage) spoil(key string) {
	o.drop(key)
	o.loads[key].spoil()
}

func (l *keptLoad) spoil() {
	for ; l != nil; l = l.other {
		l.spoiled = true
	}
}

func (o *outage) drop(key string) {
	if v, ok := o.kept[key]; ok {
		delete(o.kept, key)
		o.used.Add(-sizeKept(key, v.body))
		o.n.Add(-1)
	}
}

// sweep drops what has expired.
func (o *outage) sweep() {
	now := time.Now()
	for key, v := range o.kept {
		if !now.Before(v.until) {
			o.drop(key)
		}
	}
}
