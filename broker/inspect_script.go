package broker

import (
	_ "embed"

	"github.com/redis/go-redis/v9"
)

// The scripts by which queues are looked into and changed by hand.
var (
	//go:embed lua/count.lua
	countLua string
	//go:embed lua/revive.lua
	reviveLua string
	//go:embed lua/drop.lua
	dropLua string
	//go:embed lua/remove.lua
	removeLua string
	//go:embed lua/delete.lua
	deleteLua string

	countScript  = redis.NewScript(countLua)
	reviveScript = redis.NewScript(keysLua + reviveLua)
	dropScript   = redis.NewScript(dropLua)
	removeScript = redis.NewScript(keysLua + endsLua + removeLua)
	deleteScript = redis.NewScript(deleteLua)
)

// maxInspect is how many tasks are looked at, or changed, by one call.
const maxInspect = 100

// Fields of T:st that are written by hand.
const (
	countPurged  = "purged"  // taken out by Purge
	countRevived = "revived" // dead letters made ready again
	countDeleted = "deleted" // dead letters deleted
)

func (p *partition) countKeys() []string {
	return append(p.streams[:streams:streams], p.delayed, p.dead, p.parkedKeys, p.paused)
}

func (p *partition) reviveKeys(more []string) []string {
	keys := append([]string{p.dead, p.deadTasks, p.counters}, p.streams[1:]...)
	return append(append(keys, p.parkedKeys, p.revoked), more...)
}

func (p *partition) dropKeys() []string { return []string{p.dead, p.deadTasks, p.counters} }

func (p *partition) removeKeys(more []string) []string {
	keys := append(p.streams[:streams:streams], p.delayed, p.envelopes, p.parkedKeys, p.counters, p.owed)
	return append(keys, more...)
}

func (p *partition) deleteKeys() []string {
	return append(p.streams[:streams:streams], p.delayed, p.envelopes, p.dead, p.deadTasks, p.parkedKeys,
		p.lanes, p.lanesSeen, p.counters, p.revoked, p.paused, p.maintainer, p.owed)
}

// keysOf are the keys by which a task is unique or limited.
func (p *partition) keysOf(unique, key string) (keys []string) {
	if unique != "" {
		keys = append(keys, p.unique(unique))
	}
	if key != "" {
		keys = append(keys, p.slots(key), p.parked(key))
	}
	return keys
}
