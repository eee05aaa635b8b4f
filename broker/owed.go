package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redisha/redisha/broker/result"
)

// Tasks that are taken out by hand leave their partition first and have their result
// written then: before that it would lie about a task that a worker takes in the same
// moment. Until it is written it is owed: T:owed holds a note of it, so that
// maintenance writes it should the inspector die in between.
//
// A note is stored as a dead letter is, without a reason: why the task ended, and
// its envelope without the payload.

// noteOf is the note of a task; empty if nobody can wait for a result.
func noteOf(t *TaskInfo, why string) string {
	e, _ := decodeEnvelope(t.at.raw)
	if !t.at.result || e == nil || result.ValidateID(t.ID) != nil {
		return ""
	}
	return string(appendDeadLetter(nil, 0, why, t.at.raw[:len(t.at.raw)-len(e.payload)]))
}

// owedRecord is the result of which a note speaks.
func owedRecord(note string) (result.Record, error) {
	_, why, raw, err := decodeDeadLetter([]byte(note))
	if err != nil {
		return result.Record{}, err
	}
	e, err := decodeEnvelope(raw)
	if err != nil {
		return result.Record{}, err
	}
	return result.Record{ID: e.id, Task: e.task, State: result.Cancelled, Attempt: int(e.attempt),
		Enqueued: time.UnixMilli(e.enqueued), Finished: time.Now(), TTL: retention(e), Cause: &result.Cause{Type: "cancelled", Message: why}}, nil
}

// pay writes results that are owed, by ID. It returns how many are still owed, and
// why the first is. A result that can never be written is not owed any longer, but
// told all the same.
func (c *Client) pay(ctx context.Context, p *partition, results *result.Client, notes map[string]string) (left int, first error) {
	var records []result.Record
	var done []string
	fail := func(err error) {
		if left++; first == nil {
			first = err
		}
	}
	for id, note := range notes {
		r, err := owedRecord(note)
		if err != nil {
			fail(fmt.Errorf("task %q: %w", id, err))
			done = append(done, id)
			continue
		}
		records = append(records, r)
	}
	verdicts, _ := results.StoreMany(ctx, records) // each has its error
	for k, v := range verdicts {
		if v.Err != nil {
			fail(v.Err)
		}
		if v.Err == nil || hopeless(v.Err) {
			done = append(done, records[k].ID)
		}
	}
	if len(done) > 0 {
		if err := c.conn.HDel(ctx, p.owed, done...).Err(); err != nil {
			return left, errors.Join(first, err) // they are written again, which changes nothing
		}
	}
	return left, first
}

// payAll writes what is owed in a partition, about a page of it at a time.
func (c *Client) payAll(ctx context.Context, p *partition, results *result.Client) (left int, first error) {
	for cursor := uint64(0); ; {
		page, next, err := c.conn.HScan(ctx, p.owed, cursor, "", maxInspect).Result()
		if holdsNothing(err) {
			return left, first
		}
		if err != nil {
			return left, err
		}
		notes := make(map[string]string)
		for k := 0; k+1 < len(page); k += 2 {
			notes[page[k]] = page[k+1]
		}
		if len(notes) > 0 {
			n, err := c.pay(ctx, p, results, notes)
			if left += n; first == nil {
				first = err
			}
		}
		if cursor = next; cursor == 0 || ctx.Err() != nil {
			return left, first
		}
	}
}
