package cache

import (
	"context"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // to tell bytes apart, as Redis' own sha1hex does
	_ "embed"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

// minLeaseSlack is how much longer than its load a lease lives at least.
const minLeaseSlack = time.Second

// leaseSlack is how much longer than its load a lease lives: the time to store
// what was loaded. FILL and RELEASE give up after it.
func (c *Client) leaseSlack() time.Duration { return max(minLeaseSlack, c.cfg.ReadTimeout) }

var (
	//go:embed acquire.lua
	acquireLua string
	//go:embed fill.lua
	fillLua string
	//go:embed release.lua
	releaseLua string

	// Their token makes it harmless to send them again.
	acquireScript = conn.RepeatableScript(acquireLua)
	fillScript    = conn.RepeatableScript(fillLua)
	releaseScript = conn.RepeatableScript(releaseLua)
)

// newLease returns the bytes of a lease with a new token.
func newLease() []byte {
	e := entry{kind: kindLease}
	_, _ = rand.Read(e.lease[:]) // never fails
	return appendEntry(nil, e)
}

// shaOf is what acquire calls the dead bytes b.
func shaOf(b []byte) string {
	sum := sha1.Sum(b) //nolint:gosec // see above
	return hex.EncodeToString(sum[:])
}

// acquire takes the load lease on key for ttl, also if the key holds the bytes
// whose SHA-1 is dead. If it could not, held is what the key holds.
func (c *Client) acquire(ctx context.Context, key string, lease []byte, ttl time.Duration, dead string) (held []byte, ok bool, err error) {
	ctx, cancel := c.withReadTimeout(ctx)
	defer cancel()
	reply, err := acquireScript.Run(ctx, c.rdb, []string{key}, lease, millis(ttl), dead).Result()
	if err != nil {
		return nil, false, err
	}
	switch reply := reply.(type) {
	case int64:
		return nil, true, nil
	case string:
		return []byte(reply), false, nil
	default:
		return nil, false, fmt.Errorf("the script that takes a load lease returned %T, want an integer or a string", reply)
	}
}

// fill stores value for ttl if key still holds lease.
func (c *Client) fill(ctx context.Context, key string, lease, value []byte, ttl int64) (bool, error) {
	defer c.wrote(key)
	return c.leaseStep(ctx, fillScript, key, lease, value, ttl)
}

// release gives lease back if key still holds it.
func (c *Client) release(ctx context.Context, key string, lease []byte) (bool, error) {
	return c.leaseStep(ctx, releaseScript, key, lease)
}

// leaseStep runs a script of the lease's holder, also if ctx has ended: what is
// not given back blocks others until it expires.
func (c *Client) leaseStep(ctx context.Context, script *redis.Script, key string, args ...any) (bool, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.leaseSlack())
	defer cancel()
	n, err := script.Run(ctx, c.rdb, []string{key}, args...).Int()
	return n == 1, err
}
