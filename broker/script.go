package broker

import (
	_ "embed"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

var (
	//go:embed lua/publish.lua
	publishLua string
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
	//go:embed lua/leave.lua
	leaveLua string
	//go:embed lua/lanes.lua
	lanesLua string
	//go:embed lua/orphans.lua
	orphansLua string
	//go:embed lua/count.lua
	countLua string
)

var (
	publishScript  = conn.RepeatableScript(publishLua) // a batch has a sequence number
	joinScript     = redis.NewScript(joinLua)
	fetchScript    = redis.NewScript(fetchLua)
	ackScript      = redis.NewScript(ackLua)
	moveScript     = redis.NewScript(moveLua)
	maintainScript = redis.NewScript(maintainLua)
	leaveScript    = redis.NewScript(leaveLua)
	lanesScript    = redis.NewScript(lanesLua)
	orphansScript  = redis.NewScript(orphansLua)
	countScript    = redis.NewScript(countLua)
)

// Fields of T:st. Each counts tasks since the queue was made, and is written by
// the script that moves them. Reserved: cancelled, expired, purged.
const (
	countPublished = "published" // added, duplicates not counted
	countAcked     = "acked"     // done
	countRetried   = "retried"   // failed, to be tried again
	countDead      = "dead"      // made a dead letter
	countReleased  = "released"  // given back by a worker, untried or cancelled
	countReaped    = "reaped"    // taken from a dead worker
	countDue       = "due"       // moved from the delayed ones to the ready ones
)

// keys of the scripts, in their order.

func (p *partition) publishKeys(marks []string) []string {
	keys := make([]string, 0, 8+len(marks))
	keys = append(keys, p.lanes, p.lanesSeen, p.counters, p.delayed, p.envelopes)
	keys = append(keys, p.streams[1:]...)
	return append(keys, marks...)
}

func (p *partition) consumerKeys(consumer string) []string {
	return append([]string{p.heartbeat(consumer)}, p.streams[:]...)
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

func (p *partition) countKeys() []string {
	return append(p.streams[:streams:streams], p.delayed, p.dead)
}
