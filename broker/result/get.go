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
	return c.record(ctx, id, c.conn.Get(ctx, c.key(id)))
}

// record is what a GET has found.
func (c *Client) record(ctx context.Context, id string, cmd *redis.StringCmd) (Record, error) {
	b, err := cmd.Bytes()
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

// maxRead is how many records one round trip reads.
const maxRead = 500

// GetMany is [Client.Get] for several tasks, in one round trip for each 500, and
// returns a record for each, in the order of ids. The error joins what was wrong
// with single ones; the state of their records is [Pending].
func (c *Client) GetMany(ctx context.Context, ids ...string) ([]Record, error) {
	for _, id := range ids {
		if err := c.begin(ctx, id); err != nil {
			return nil, fmt.Errorf("result: get %q: %w", id, err)
		}
	}
	records, errs := c.readMany(ctx, ids)
	for i, err := range errs {
		if err != nil {
			errs[i] = fmt.Errorf("result: get %q: %w", ids[i], err)
		}
	}
	return records, errors.Join(errs...)
}

// readMany reads the records of ids, each with an error of its own.
func (c *Client) readMany(ctx context.Context, ids []string) ([]Record, []error) {
	records, errs := make([]Record, len(ids)), make([]error, len(ids))
	if len(ids) == 1 {
		records[0], errs[0] = c.read(ctx, ids[0])
		return records, errs
	}
	for from := 0; from < len(ids); from += maxRead {
		batch := ids[from:min(from+maxRead, len(ids))]
		pipe := c.conn.Pipeline()
		cmds := make([]*redis.StringCmd, len(batch))
		for i, id := range batch {
			cmds[i] = pipe.Get(ctx, c.key(id))
		}
		conn.Exec(ctx, pipe)
		for i, cmd := range cmds {
			records[from+i], errs[from+i] = c.record(ctx, batch[i], cmd)
		}
	}
	return records, errs
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
