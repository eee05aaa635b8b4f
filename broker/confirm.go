package broker

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// A Confirm says what a publish waits for. A positive one is a number of
// replicas, as ConfirmReplicas returns it.
//
// Redis replicates asynchronously (https://redis.io/docs/latest/commands/wait/),
// so that this is not consensus: with fewer confirmations than there are
// replicas, a failover may promote one that has not confirmed. With as many, or
// with one replica, a task whose publish returned nil survives the loss of the
// primary.
type Confirm int

// The levels besides a number of replicas.
const (
	// ConfirmDefault is one replica where the endpoint has any, else the primary.
	// It is decided when the client publishes first; it rises when a replica
	// appears, and never falls by itself.
	ConfirmDefault Confirm = 0

	// ConfirmPrimary: the primary has the task in memory.
	ConfirmPrimary Confirm = -1

	// ConfirmFsync: the primary has the task on its disk. It needs Redis 7.2 and
	// appendonly. It does not wait for replicas: a failover may lose what this
	// level has confirmed, a restart does not.
	ConfirmFsync Confirm = -2

	// ConfirmNone: nothing. Publish returns as soon as the task waits in this
	// process for its journey; what becomes of it is counted and logged alone, and
	// a process that ends without Close takes it along.
	ConfirmNone Confirm = -3
)

// maxConfirm bounds a number of replicas.
const maxConfirm = 100

// ConfirmReplicas waits until so many replicas have the task, 1 to 100.
func ConfirmReplicas(n int) Confirm {
	if n < 1 {
		n = maxConfirm + 1 // which is refused
	}
	return Confirm(n)
}

func (c Confirm) String() string {
	switch c {
	case ConfirmDefault:
		return "default"
	case ConfirmPrimary:
		return "primary"
	case ConfirmFsync:
		return "fsync"
	case ConfirmNone:
		return "none"
	}
	return fmt.Sprintf("replicas(%d)", int(c))
}

func (c Confirm) validate(name string) error {
	if c < ConfirmNone || c > maxConfirm {
		return fmt.Errorf("%s is %d, want ConfirmReplicas(1 to %d), ConfirmPrimary, ConfirmFsync, ConfirmNone, or 0 for the default", name, int(c), maxConfirm)
	}
	return nil
}

// waits reports whether a publish goes on behind the script's reply.
func (c Confirm) waits() bool { return c > 0 || c == ConfirmFsync }

// A wait for replicas or the disk takes at most waitSlice, and is repeated: the
// connection is not to look like that of a server which hangs, and its
// ReadTimeout must not end it.
const waitSlice = 250 * time.Millisecond

// wait returns the command that asks for the confirmation of what its connection
// has written.
func (c Confirm) wait(ctx context.Context, atMost time.Duration) redis.Cmder {
	ms := max(atMost.Milliseconds(), 1) // 0 would mean for ever
	if c == ConfirmFsync {
		return redis.NewCmd(ctx, "waitaof", 1, 0, ms)
	}
	return redis.NewCmd(ctx, "wait", int(c), ms)
}

// confirmed reads the answer.
func (c Confirm) confirmed(cmd redis.Cmder) (bool, error) {
	reply, err := cmd.(*redis.Cmd).Result()
	if err != nil {
		return false, err
	}
	if c == ConfirmFsync {
		if both, ok := reply.([]any); ok && len(both) == 2 && toUint(both[0]) >= 1 {
			return true, nil
		}
		return false, fmt.Errorf("not on the primary's disk")
	}
	if n := toUint(reply); n < uint64(c) {
		return false, fmt.Errorf("%d of %d replicas have it", n, int(c))
	}
	return true, nil
}

// lookAgain is how long it is believed that there are no replicas.
const lookAgain = 10 * time.Second

// A defaultConfirm is what ConfirmDefault means for a client.
type defaultConfirm struct {
	level atomic.Int64 // 0 until it is decided
	asked atomic.Int64 // Unix nanoseconds
}

// knownConfirm returns what a publish waits for, unless that has to be asked.
func (c *Client) knownConfirm(want Confirm, now time.Time) (Confirm, bool) {
	if want != ConfirmDefault {
		return want, true
	}
	level := Confirm(c.defaults.level.Load())
	return level, level > 0 || level != 0 && now.UnixNano()-c.defaults.asked.Load() < int64(lookAgain)
}

// confirm returns what a publish waits for.
func (c *Client) confirm(ctx context.Context, want Confirm) (Confirm, error) {
	level, ok := c.knownConfirm(want, time.Now())
	if ok {
		return level, nil
	}
	asked, now := c.defaults.asked.Load(), time.Now().UnixNano()
	if level != 0 && (now-asked < int64(lookAgain) || !c.defaults.asked.CompareAndSwap(asked, now)) {
		return level, nil
	}
	found, err := c.replicated(ctx)
	switch {
	case found:
		c.defaults.level.Store(1)
		if level != 0 {
			c.log.Info("there are replicas now: publishes wait for one", "level", Confirm(1).String())
		}
		return 1, nil
	case level != 0:
		return level, nil // an error too: it was so before
	case err != nil:
		return 0, err
	}
	c.defaults.asked.Store(now)
	c.defaults.level.CompareAndSwap(0, int64(ConfirmPrimary))
	return Confirm(c.defaults.level.Load()), nil
}

// replicated asks whether there are replicas: by ROLE, which tells of those that
// are connected, and by what is known of the endpoint, which tells of the others.
func (c *Client) replicated(ctx context.Context) (bool, error) {
	var found atomic.Bool
	err := c.conn.EachPrimary(ctx, func(ctx context.Context, node redis.UniversalClient) error {
		role, err := node.Do(ctx, "role").Slice()
		if err != nil {
			if isReply(err) && !passes(err) {
				if strings.HasPrefix(err.Error(), "ERR unknown command") { // of a test's server
					return nil
				}
				c.log.Warn("ROLE is refused, so that it is not known whether there are replicas: set Config.Confirm", "err", err)
				return nil
			}
			return err
		}
		if len(role) == 3 {
			if replicas, ok := role[2].([]any); ok && len(replicas) > 0 {
				found.Store(true)
			}
		}
		return nil
	})
	if c.conn.Replicas() > 0 {
		found.Store(true)
	}
	return found.Load(), err
}
