package result

import (
	"context"
	"errors"
)

// Wait returns the record of a task once its state is final.
func (c *Client) Wait(ctx context.Context, id string) (Record, error) {
	return Record{}, errors.New("result: wait: not there yet")
}
