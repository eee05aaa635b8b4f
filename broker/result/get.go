package result

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

// Get returns the record of a task. Where there is none, its State is [Pending]
// and the error is nil: a task that is unknown, has not started, or whose record
// has expired or was forgotten cannot be told apart.
//
// The error is [ErrCorrupt] for a record that cannot be read.
func (c *Client) Get(ctx context.Context, id string) (Record, error) {
	if err := c.begin(ctx, id); err != nil {
		return Record{ID: id}, fmt.Errorf("result: get %q: %w", id, err)
	}
	r, err := c.read(ctx, id)
	if err != nil {
		return r, fmt.Errorf("result: get %q: %w", id, err)
	}
	return r, nil
}

func (c *Client) read(ctx context.Context, id string) (Record, error) {
	b, err := c.conn.Get(ctx, c.key(id)).Bytes()
	if errors.Is(err, redis.Nil) {
		return Record{ID: id, State: Pending}, nil
	}
	if err != nil {
		return Record{ID: id}, hint(ctx, err)
	}
	r, err := decodeRecord(b, c.compress)
	if err != nil {
		return Record{ID: id}, err
	}
	r.ID = id
	return r, nil
}

// Forget deletes records. Who waits for one goes on waiting, and a task that
// still runs stores its next state as if there had been none.
func (c *Client) Forget(ctx context.Context, ids ...string) error {
	if err := c.usable(ctx); err != nil {
		return fmt.Errorf("result: forget: %w", err)
	}
	for _, id := range ids {
		if err := ValidateID(id); err != nil {
			return fmt.Errorf("result: forget %q: %w", id, err)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	pipe := c.conn.Pipeline()
	for _, id := range ids {
		pipe.Unlink(ctx, c.key(id))
	}
	for i, cmd := range conn.Exec(ctx, pipe) {
		if err := cmd.Err(); err != nil {
			return fmt.Errorf("result: forget %q: %w", ids[i], hint(ctx, err))
		}
	}
	return nil
}
