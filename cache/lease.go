package cache

import (
	"context"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // to tell bytes apart, as Redis' own sha1hex does
	_ "embed"
	"encoding/hex"
	"fmt"
	"time"
)

// minLeaseSlack is how much longer than its load a lease lives at least.
const minLeaseSlack = time.Second

// leaseSlack is how much longer than its load a lease lives: the time to store
// what was loaded. FILL and RELEASE give up after it.
func (c *Client) leaseSlack() time.Duration { return max(minLeaseSlack, c.cfg.ReadTimeout) }

var (
	//go:embed header.lua
	headerLua string
	//go:embed acquire.lua
	acquireLua string
	//go:embed fill.lua
	fillLua string
	//go:embed release.lua
	releaseLua string
	//go:embed refresh.lua
	refreshLua string

	// Their token makes it harmless to send them again.
	acquireScript = newScript(acquireLua)
	fillScript    = newScript(headerLua + fillLua)
	releaseScript = newScript(headerLua + releaseLua)
	refreshScript = newScript(headerLua + refreshLua)
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

// leaseTTL is how long a load may hold its lease.
func (v *View[K, V]) leaseTTL() time.Duration { return v.cfg.LoadTimeout + v.c.leaseSlack() }

// acquire takes the load lease on key for ttl, also if the key holds the bytes
// whose SHA-1 is dead. It returns the server's time in µs, or 0 and what the key
// holds.
func (c *Client) acquire(ctx context.Context, key string, lease []byte, ttl time.Duration, dead string) (held []byte, began uint64, err error) {
	ctx, cancel := c.withReadTimeout(ctx)
	defer cancel()
	reply, err := c.run(ctx, acquireScript, key, lease, millis(ttl), dead).Result()
	if err != nil {
		return nil, 0, err
	}
	switch reply := reply.(type) {
	case int64:
		return nil, uint64(max(reply, 1)), nil
	case string:
		return []byte(reply), 0, nil
	default:
		return nil, 0, fmt.Errorf("the script that takes a load lease returned %T, want an integer or a string", reply)
	}
}

// refresh makes the caller the one who refreshes the stale value with the header h,
// for ttl, and returns the server's time in µs; 0 if another one is.
func (c *Client) refresh(ctx context.Context, key string, lease []byte, h *header, ttl time.Duration) (began uint64, err error) {
	ctx, cancel := c.withReadTimeout(ctx)
	defer cancel()
	n, err := c.run(ctx, refreshScript, key, lease, appendHeader(nil, kindValue, *h)[:refreshUntilAt], millis(ttl)).Uint64()
	if n <= 2 {
		n = 0
	}
	return n, err
}

// fill stores value for ttl, in ms, if key still holds lease, or the stale value
// that is refreshed under it.
func (c *Client) fill(ctx context.Context, key string, lease, value []byte, ttl int64) (bool, error) {
	defer c.wrote(key)
	return c.leaseStep(ctx, fillScript, key, lease, value, ttl)
}

// release gives lease back if key still holds it. A stale value that was to be
// refreshed under it stays, and nobody refreshes it during pause; if pause is
// negative, it goes.
func (c *Client) release(ctx context.Context, key string, lease []byte, pause time.Duration) (bool, error) {
	if pause < 0 {
		defer c.wrote(key)
		return c.leaseStep(ctx, releaseScript, key, lease, -1)
	}
	return c.leaseStep(ctx, releaseScript, key, lease, pause.Milliseconds())
}

// leaseStep runs a script of the lease's holder, also if ctx has ended: what is
// not given back blocks others until it expires.
func (c *Client) leaseStep(ctx context.Context, script *script, key string, args ...any) (bool, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.leaseSlack())
	defer cancel()
	n, err := c.run(ctx, script, key, args...).Int()
	return n == 1, err
}
