package broker

import (
	_ "embed"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

var (
	//go:embed lua/keys.lua
	keysLua string
	//go:embed lua/ends.lua
	endsLua string
	//go:embed lua/lane.lua
	laneLua string
	//go:embed lua/publish.lua
	publishLua string
	//go:embed lua/plain.lua
	plainLua string
	//go:embed lua/join.lua
	joinLua string
	//go:embed lua/fetch.lua
	fetchLua string
	//go:embed lua/ack.lua
	ackLua string
	//go:embed lua/move.lua
	moveLua string
	//go:embed lua/maintain.lua
	maintainLua string
	//go:embed lua/slots.lua
	slotsLua string
	//go:embed lua/leave.lua
	leaveLua string
	//go:embed lua/lanes.lua
	lanesLua string
	//go:embed lua/orphans.lua
	orphansLua string
)

var (
	publishText, plainText = laneLua + publishLua, laneLua + plainLua

	publishScript  = conn.RepeatableScript(publishText) // a batch has a sequence number
	plainScript    = conn.RepeatableScript(plainText)
	joinScript     = redis.NewScript(joinLua)
	fetchScript    = redis.NewScript(keysLua + endsLua + fetchLua)
	ackScript      = redis.NewScript(keysLua + endsLua + ackLua)
	moveScript     = redis.NewScript(keysLua + moveLua)
	maintainScript = redis.NewScript(keysLua + maintainLua)
	slotsScript    = redis.NewScript(keysLua + slotsLua)
	leaveScript    = redis.NewScript(leaveLua)
	lanesScript    = redis.NewScript(lanesLua)
	orphansScript  = redis.NewScript(orphansLua)
)

// Fields of T:st. Each counts tasks since the queue was made, and is written by
// the script that moves them.
const (
	countPublished = "published" // added, duplicates not counted
	countAcked     = "acked"     // done
	countRetried   = "retried"   // failed, to be tried again
	countDead      = "dead"      // made a dead letter
	countCancelled = "cancelled" // revoked
	countExpired   = "expired"   // not started in time
	countReleased  = "released"  // given back by a worker, untried or cancelled
	countReaped    = "reaped"    // taken from a dead worker
	countDue       = "due"       // moved from the delayed ones to the ready ones
)

// keys of the scripts, in their order.

// publishKeys are those of tasks without conditions, and where there are some,
// those behind them.
func (p *partition) publishKeys() []string {
	return append([]string{p.lanes, p.counters, p.lanesSeen}, p.streams[1:]...)
}

func (p *partition) plainKeys(stream int) []string {
	return []string{p.lanes, p.counters, p.streams[stream]}
}

func (p *partition) conditionKeys() []string {
	return []string{p.delayed, p.envelopes, p.streams[releasedStream], p.parkedKeys}
}

func (p *partition) consumerKeys(consumer string) []string {
	return append([]string{p.heartbeat(consumer)}, p.streams[:]...)
}

func (p *partition) fetchKeys(consumer string) []string {
	return append(p.consumerKeys(consumer), p.counters, p.revoked, p.paused)
}

// endKeys are those of the unique keys and slots that tasks have.
func (p *partition) endKeys(keys []string, tasks []*verdict) []string {
	slots, revoked := false, false
	for _, v := range tasks {
		revoked = revoked || v.wasRevoked
		if v.unique != "" {
			keys = append(keys, p.unique(v.unique))
		}
		if v.key != "" {
			slots = true
			keys = append(keys, p.slots(v.key), p.parked(v.key))
		}
	}
	if slots {
		keys = append(keys, p.parkedKeys)
	}
	if revoked {
		keys = append(keys, p.revoked)
	}
	return keys
}

func (p *partition) slotKeys(key string) []string {
	return append([]string{p.parkedKeys, p.slots(key), p.parked(key)}, p.streams[1:]...)
}

func (p *partition) leaveKeys(consumer string) []string {
	return append([]string{p.heartbeat(consumer), p.maintainer}, p.streams[:]...)
}

func (p *partition) ackKeys() []string {
	return append(p.streams[:streams:streams], p.counters)
}

func (p *partition) moveKeys(consumer string) []string {
	return append(p.streams[:streams:streams], p.delayed, p.envelopes, p.dead, p.deadTasks, p.counters, p.heartbeat(consumer))
}

func (p *partition) maintainKeys() []string {
	return append([]string{p.maintainer, p.delayed, p.envelopes, p.counters}, p.streams[1:]...)
}

func (p *partition) orphansKeys(stream int) []string {
	return []string{p.streams[stream], p.streams[releasedStream], p.counters}
}
