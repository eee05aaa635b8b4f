package broker

import (
	"context"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// Bounds of the look for slots of concurrency keys that nobody has any more. Every
// script that ends a task gives up its slot, so there are none unless entries were
// deleted by hand or by a failover.
const (
	slotsEvery = time.Minute
	slotsAge   = time.Minute // since a task of the key was started or parked
	maxSlots   = 100         // keys looked at together
	slotsPage  = 500
)

// collectSlots takes slots away from tasks that do not exist any more, of keys that
// have parked tasks; and starts those of a key of which nobody has a slot, whose end
// would start them.
//
// A task with a slot is ready or running, so its entry is in a stream. No script
// but one that notes it in T:kz gives a slot, and a release or a reaping only moves
// an entry to the end of T:s:r: so an ID that is in no stream, with that one looked
// through last, and whose key has the same score in T:kz after that, is gone.
func (m *maintenance) collectSlots(ctx context.Context) error {
	c, p := m.s.r.w.c.conn, m.s.p
	before := strconv.FormatInt(m.serverNow().Add(-slotsAge).UnixMilli(), 10)
	keys, err := c.ZRangeByScoreWithScores(ctx, p.parkedKeys, &redis.ZRangeBy{Min: "-inf", Max: before, Count: maxSlots}).Result()
	if err != nil || len(keys) == 0 {
		return err
	}
	members, missing := make([][]string, len(keys)), make(map[string]bool)
	for i, z := range keys {
		if members[i], err = c.SMembers(ctx, p.slots(z.Member.(string))).Result(); err != nil {
			return err
		}
		for _, id := range members[i] {
			missing[id] = true
		}
	}
	if err := m.cross(ctx, missing); err != nil {
		return err
	}
	for i, z := range keys {
		key := z.Member.(string)
		args := []any{key, strconv.FormatFloat(z.Score, 'f', -1, 64)}
		for _, id := range members[i] {
			if missing[id] {
				args = append(args, id)
			}
		}
		if len(args) == 2 && len(members[i]) > 0 {
			continue
		}
		gone, err := slotsScript.Run(ctx, c, p.slotKeys(key), args...).Int()
		if err != nil {
			return err
		}
		if gone >= 0 && len(members[i]) == 0 {
			m.s.r.w.log.Error("parked tasks waited for nobody and are started", "queue", p.queue, "partition", p.index, "key", key)
		}
		if gone > 0 {
			m.s.r.w.log.Error("slots of a concurrency key belonged to tasks that do not exist and are free again", "queue", p.queue, "partition", p.index, "key", key, "slots", gone)
		}
	}
	return nil
}

// cross takes out of ids those of the tasks that are in a stream.
func (m *maintenance) cross(ctx context.Context, ids map[string]bool) error {
	p := m.s.p
	for i := 1; i <= streams; i++ {
		key := p.streams[i%streams] // T:s:r is the last
		for from := "-"; len(ids) > 0; {
			entries, err := m.s.r.w.c.conn.XRangeN(ctx, key, from, "+", slotsPage).Result()
			if holdsNothing(err) {
				break
			}
			if err != nil {
				return err
			}
			for _, entry := range entries {
				raw, _ := entry.Values[field].(string)
				if e, err := decodeEnvelope([]byte(raw)); err == nil {
					delete(ids, e.id)
				}
			}
			if len(ids) == 0 || len(entries) < slotsPage {
				break
			}
			from = "(" + entries[len(entries)-1].ID
		}
	}
	return nil
}
