package result

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

//go:embed store.lua
var storeLua string

var storeScript = redis.NewScript(storeLua)

// Returns of store.lua.
const (
	storeRefused     = 0
	storeUnannounced = 2
)

// A Verdict says what became of one record of [Client.StoreMany].
type Verdict struct {
	// Stored is false if another record stays: a final one, or one with a
	// greater fence or attempt.
	Stored bool

	// Err is why the record was not stored, or may not have been.
	Err error
}

// Store stores a record and wakes who waits for it. It reports false if what is
// there stays: a final record, or one with a greater fence or attempt. Storing
// the same final record again reports true and changes nothing.
//
// The error is a [*TooLargeError] if a value exceeds Config.MaxValueBytes. After
// another one the record may have been stored or not; storing it again is safe.
func (c *Client) Store(ctx context.Context, r Record) (stored bool, err error) {
	args, err := c.storeArgs(ctx, r)
	if err != nil {
		return false, fmt.Errorf("result: store %q: %w", r.ID, err)
	}
	v := c.verdict(ctx, r, storeScript.Run(ctx, c.conn, []string{c.key(r.ID)}, args...))
	return v.Stored, v.Err
}

// StoreMany is Store for several records in one round trip, in their order. It
// returns a verdict for each. The error is the first one among them.
func (c *Client) StoreMany(ctx context.Context, records []Record) ([]Verdict, error) {
	verdicts := make([]Verdict, len(records))
	cmds := make([]*redis.Cmd, len(records)) // nil for what is not sent
	args := make([][]any, len(records))
	for i, r := range records {
		var err error
		if args[i], err = c.storeArgs(ctx, r); err != nil {
			verdicts[i].Err = fmt.Errorf("result: store %q: %w", r.ID, err)
		}
	}
	send := func(script func(ctx context.Context, s redis.Scripter, keys []string, args ...any) *redis.Cmd, wanted func(i int) bool) {
		pipe := c.conn.Pipeline()
		for i, r := range records {
			if verdicts[i].Err == nil && wanted(i) {
				cmds[i] = script(ctx, pipe, []string{c.key(r.ID)}, args[i]...)
			}
		}
		if pipe.Len() > 0 {
			conn.Exec(ctx, pipe)
		}
	}
	send(storeScript.EvalSha, func(int) bool { return true })
	send(storeScript.Eval, func(i int) bool { return redis.HasErrorPrefix(cmds[i].Err(), "NOSCRIPT") })
	var first error
	for i, r := range records {
		if cmds[i] != nil {
			verdicts[i] = c.verdict(ctx, r, cmds[i])
		}
		if first == nil {
			first = verdicts[i].Err
		}
	}
	return verdicts, first
}

// storeArgs checks r and returns the arguments of store.lua.
func (c *Client) storeArgs(ctx context.Context, r Record) ([]any, error) {
	if err := c.begin(ctx, r.ID); err != nil {
		return nil, err
	}
	if r.TTL == 0 {
		r.TTL = c.cfg.TTL
	}
	switch {
	case !r.State.known():
		return nil, fmt.Errorf("Record.State is %d, want one of this package's", r.State)
	case len(r.Task) > 255:
		return nil, fmt.Errorf("Record.Task has %d bytes, want at most 255", len(r.Task))
	case r.Attempt < 0 || int64(r.Attempt) > math.MaxUint32:
		return nil, fmt.Errorf("Record.Attempt is %d, want 0 to %d", r.Attempt, uint32(math.MaxUint32))
	case r.TTL < time.Millisecond:
		return nil, fmt.Errorf("Record.TTL is %s, want at least 1ms, or 0 for Config.TTL", r.TTL)
	case len(r.Value) > c.cfg.MaxValueBytes:
		c.counts.tooLarge.Inc()
		return nil, &TooLargeError{Field: "Value", Size: len(r.Value), Limit: c.cfg.MaxValueBytes}
	case len(r.Progress) > c.cfg.MaxValueBytes:
		c.counts.tooLarge.Inc()
		return nil, &TooLargeError{Field: "Progress", Size: len(r.Progress), Limit: c.cfg.MaxValueBytes}
	}
	r.Cause = r.Cause.clipped()
	return []any{appendRecord(nil, r, c.compress), r.TTL.Milliseconds(), c.publish}, nil
}

// verdict reads and counts what store.lua returned for r.
func (c *Client) verdict(ctx context.Context, r Record, cmd *redis.Cmd) Verdict {
	n, err := cmd.Int()
	switch {
	case err != nil:
		return Verdict{Err: fmt.Errorf("result: store %q: %w", r.ID, hint(ctx, err))}
	case n == storeRefused:
		c.counts.refused.Inc()
		return Verdict{}
	case n == storeUnannounced:
		c.counts.unannounced.Inc()
		c.hub.warnUnannounced()
	}
	c.counts.stored(r.State)
	return Verdict{Stored: true}
}

// hint adds to an error of Redis what is known of its cause.
func hint(ctx context.Context, err error) error {
	switch ended := conn.Ended(ctx); {
	case ended != nil && errors.Is(err, ended):
		return err // it says what the call was waiting for
	case ended != nil:
		return ended // it surfaces as an i/o timeout
	case redis.HasErrorPrefix(err, "WRONGTYPE"):
		return fmt.Errorf("%w: does something else write this key?", err)
	}
	return err
}
