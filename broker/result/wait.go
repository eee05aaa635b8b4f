package result

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// rereadInterval bounds how long a lost wake-up goes unnoticed.
	rereadInterval = 5 * time.Second

	// A waiter without a subscription polls, ever more rarely.
	minPoll = 50 * time.Millisecond
	maxPoll = 2 * time.Second
)

// Wait returns the record of a task once its state is final, be it [Success] or
// not: see [Record.Err] and [Client.Decode]. It returns at once if it is already.
//
// It is woken by a message when the state is stored, and reads again every five
// seconds in case that was lost. Where the server refuses SUBSCRIBE it polls, at
// intervals that grow to two seconds. It rides through outages: an error of the
// connection, a server that is loading, a failover end the wait only when ctx
// is done. An ID that nobody ever stores is waited for until then, too.
//
// When ctx is done, the error wraps context.Cause(ctx), and the record is the
// last one that was read. After Close the error is [ErrClosed].
func (c *Client) Wait(ctx context.Context, id string) (Record, error) {
	r := Record{ID: id}
	records, err := c.wait(ctx, []string{id}, 1)
	if len(records) > 0 {
		r = records[0]
	}
	if err != nil {
		return r, fmt.Errorf("result: wait %q: %w", id, err)
	}
	return r, nil
}

// WaitAny is [Client.Wait] for the first of several tasks to come to a final
// state: it returns that record. Of several that are final already it is the
// first in the order of ids. With an error the record is empty.
func (c *Client) WaitAny(ctx context.Context, ids ...string) (Record, error) {
	records, err := c.wait(ctx, ids, 1)
	if err != nil {
		return Record{}, fmt.Errorf("result: wait for any of %d: %w", len(ids), err)
	}
	for _, r := range records {
		if r.State.Final() {
			return r, nil
		}
	}
	return Record{}, fmt.Errorf("result: wait for any of %d: %w", len(ids), errNoIDs)
}

// WaitAll is [Client.Wait] for several tasks: it returns their records, in the
// order of ids, once all are final. It does not end early because a task has
// failed. With an error the records are those that were read last.
func (c *Client) WaitAll(ctx context.Context, ids ...string) ([]Record, error) {
	records, err := c.wait(ctx, ids, len(ids))
	if err != nil {
		return records, fmt.Errorf("result: wait for %d: %w", len(ids), err)
	}
	return records, nil
}

var errNoIDs = errors.New("no IDs: pass those that Publish returned")

// wait returns the records of ids once so many of them are final.
func (c *Client) wait(ctx context.Context, ids []string, enough int) ([]Record, error) {
	if len(ids) == 0 {
		return nil, errNoIDs
	}
	for _, id := range ids {
		if err := c.begin(ctx, id); err != nil {
			return nil, naming(len(ids), id, err)
		}
	}
	start := time.Now()
	c.counts.waiters.Add(1)
	defer c.counts.waiters.Add(-1)
	w := &waiting{c: c, open: make(map[string]string, len(ids)), last: make(map[string]Record, len(ids)), left: enough}
	for _, id := range ids {
		if _, twice := w.last[id]; twice && enough > 1 {
			w.left--
		}
		w.open[c.key(id)] = id
		w.last[id] = Record{ID: id}
	}
	err := w.await(ctx, ids)
	if err == nil {
		c.counts.waits.Observe(time.Since(start))
	}
	records := make([]Record, len(ids))
	for i, id := range ids {
		records[i] = w.last[id]
	}
	return records, err
}

// naming adds the ID to an error where a call was about several.
func naming(n int, id string, err error) error {
	if n == 1 {
		return err
	}
	return fmt.Errorf("%q: %w", id, err)
}

// A waiting is one call of Wait, WaitAny or WaitAll.
type waiting struct {
	c    *Client
	open map[string]string // what is not final yet: channel → ID
	last map[string]Record // what was read last, by ID
	left int               // so many are to become final
	err  error             // of the last read that failed and may not the next time
}

// await reads, and reads again what it is told of, until enough is final.
func (w *waiting) await(ctx context.Context, ids []string) error {
	c := w.c
	if done, err := w.read(ctx, ids, nil); done {
		return err
	}
	channels := make([]string, 0, len(w.open))
	for channel := range w.open {
		channels = append(channels, channel)
	}
	sub := c.hub.join(channels)
	defer c.hub.leave(sub, channels...)
	timer := time.NewTimer(minPoll)
	defer timer.Stop()
	for poll := minPoll; ; {
		everything := false
		select {
		case <-sub.wake:
		case <-timer.C:
			everything = true
		case <-c.done:
			return ErrClosed
		case <-ctx.Done():
			return w.ended(ctx)
		}
		told := c.hub.take(sub)
		var again []string
		for channel, id := range w.open {
			if _, is := told[channel]; is || everything {
				again = append(again, id)
			}
		}
		everything = len(again) == len(w.open)
		if done, err := w.read(ctx, again, told); done {
			return err
		}
		for _, id := range again {
			if channel := c.key(id); w.open[channel] == "" {
				c.hub.leave(sub, channel)
			}
		}
		switch {
		case !everything: // the others still have their time
		case w.err == nil && c.hub.live(sub):
			poll = minPoll
			timer.Reset(rereadInterval)
		default:
			timer.Reset(poll)
			poll = min(2*poll, maxPoll)
		}
	}
}

// read reads what ids have come to, and reports whether the wait is over. A final
// state that nobody told of was found by luck.
func (w *waiting) read(ctx context.Context, ids []string, told map[string]struct{}) (done bool, err error) {
	records, errs := w.c.readMany(ctx, ids)
	w.err = nil
	for i, id := range ids {
		if err := errs[i]; err != nil {
			switch w.err = err; {
			case ctx.Err() != nil:
				return true, w.ended(ctx)
			case !w.c.passing(err):
				return true, naming(len(w.last), id, err)
			}
			continue
		}
		channel := w.c.key(id)
		if w.last[id] = records[i]; !records[i].State.Final() || w.open[channel] == "" {
			continue
		}
		delete(w.open, channel)
		w.left--
		if _, is := told[channel]; !is && told != nil {
			w.c.counts.healed.Inc()
		}
	}
	return w.left <= 0, nil
}

// ended is the error of a wait whose ctx is done.
func (w *waiting) ended(ctx context.Context) error {
	cause := context.Cause(ctx)
	switch {
	case w.err == nil, w.err == cause: //nolint:errorlint // with nothing around it
		if len(w.last) > 1 {
			return fmt.Errorf("%w; %d of the tasks have not ended", cause, len(w.open))
		}
		for _, r := range w.last {
			return fmt.Errorf("%w; the task is %s", cause, r.State)
		}
	case errors.Is(w.err, cause):
		return w.err // it says what the read was waiting for
	}
	return fmt.Errorf("%w; the last read failed: %v", cause, w.err) //nolint:errorlint // one cause
}

// passing reports whether err may be gone at a later read: the server cannot be
// reached or cannot serve now. What it says about the key, the user or the
// command will not change by waiting.
func (c *Client) passing(err error) bool {
	if c.conn.Err() != nil || errors.Is(err, ErrClosed) || errors.Is(err, ErrCorrupt) {
		return false
	}
	var reply redis.Error
	if !errors.As(err, &reply) {
		return true
	}
	_, moved := redis.IsMovedError(err)
	_, ask := redis.IsAskError(err)
	return moved || ask || redis.IsLoadingError(err) || redis.IsMasterDownError(err) || redis.IsClusterDownError(err) ||
		redis.IsTryAgainError(err) || redis.IsMaxClientsError(err) || redis.HasErrorPrefix(err, "BUSY")
}
