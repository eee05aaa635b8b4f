package redistest

import (
	"context"
	"errors"
	"fmt"
)

// A migration is a slot on its way.
type migration struct{ from, to *Server }

// MigrateSlot moves a slot with its keys to another primary.
func (c *Cluster) MigrateSlot(ctx context.Context, slot int, to *Server) error {
	if err := c.BeginMigration(ctx, slot, to); err != nil {
		return err
	}
	if err := c.MigrateKeys(ctx, slot); err != nil {
		return err
	}
	return c.EndMigration(ctx, slot)
}

// BeginMigration opens a slot for its way to another primary. From then on the
// old one answers for keys that it does not have with ASK, and with TRYAGAIN for
// several keys of which it has some.
func (c *Cluster) BeginMigration(ctx context.Context, slot int, to *Server) error {
	err := c.beginMigration(ctx, slot, to)
	if err != nil {
		return fmt.Errorf("redistest: begin migration of slot %d: %w", slot, err)
	}
	return nil
}

func (c *Cluster) beginMigration(ctx context.Context, slot int, to *Server) error {
	if slot < 0 || slot >= clusterSlots {
		return fmt.Errorf("want a slot from 0 to %d", clusterSlots-1)
	}
	toIndex, err := c.index(to)
	if err != nil {
		return err
	}
	from, err := c.agreed(ctx, slot)
	if err != nil {
		return err
	}
	if from == to {
		return fmt.Errorf("%s serves it already", to.Addr())
	}
	fromIndex, err := c.index(from)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.migrations[slot] = migration{from, to}
	c.migrated = true
	c.mu.Unlock()
	if _, err := to.do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", c.ids[fromIndex]); err != nil {
		return err
	}
	_, err = from.do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", c.ids[toIndex])
	return err
}

// MigrateKeys moves keys of a slot whose migration has begun, all of them if none
// are named.
func (c *Cluster) MigrateKeys(ctx context.Context, slot int, keys ...string) error {
	err := c.migrateKeys(ctx, slot, keys)
	if err != nil {
		return fmt.Errorf("redistest: migrate keys of slot %d: %w", slot, err)
	}
	return nil
}

func (c *Cluster) migrateKeys(ctx context.Context, slot int, keys []string) error {
	m, err := c.migration(slot)
	if err != nil {
		return err
	}
	if len(keys) > 0 {
		var args []any
		for _, key := range keys {
			args = append(args, key)
		}
		return c.move(ctx, m, args)
	}
	for {
		reply, err := m.from.do(ctx, "CLUSTER", "GETKEYSINSLOT", slot, 100)
		if err != nil {
			return err
		}
		keys, _ := reply.([]any)
		if len(keys) == 0 {
			return nil
		}
		if err := c.move(ctx, m, keys); err != nil {
			return err
		}
	}
}

func (c *Cluster) move(ctx context.Context, m migration, keys []any) error {
	args := []any{"MIGRATE", "127.0.0.1", m.to.port, "", 0, askWithin.Milliseconds()}
	if password := c.cfg.Data.Password; password != "" {
		args = append(args, "AUTH", password)
	}
	_, err := m.from.do(ctx, append(append(args, "KEYS"), keys...)...)
	return err
}

// EndMigration gives a slot to its new primary, and waits until all nodes that
// answer say so. Keys that were not migrated must be gone.
func (c *Cluster) EndMigration(ctx context.Context, slot int) error {
	err := c.endMigration(ctx, slot)
	if err != nil {
		return fmt.Errorf("redistest: end migration of slot %d: %w", slot, err)
	}
	return nil
}

func (c *Cluster) endMigration(ctx context.Context, slot int) error {
	m, err := c.migration(slot)
	if err != nil {
		return err
	}
	i, err := c.index(m.to)
	if err != nil {
		return err
	}
	for _, s := range []*Server{m.to, m.from} { // in this order nobody is without an owner
		if _, err := s.do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", c.ids[i]); err != nil {
			return err
		}
	}
	c.mu.Lock()
	delete(c.migrations, slot)
	c.mu.Unlock()
	return await(ctx, func(ctx context.Context) error {
		owner, err := c.agreed(ctx, slot)
		if err == nil && owner != m.to {
			err = fmt.Errorf("%s serves it", owner.Addr())
		}
		return err
	})
}

func (c *Cluster) migration(slot int) (migration, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.migrations[slot]
	if !ok {
		return m, errors.New("no migration is under way: begin one")
	}
	return m, nil
}
