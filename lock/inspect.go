package lock

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// Info is what is known of a lock.
type Info struct {
	Key   string
	State State

	// Of who holds it; of a revoked lock, who has revoked it.
	Holder string        // Config.Holder of the client
	Host   string        // its machine
	PID    int           // its process
	Since  time.Time     // when the lease was made, by the holder's clock; if it was handed over, by the server's
	TTL    time.Duration // until the lease ends, unless it is renewed; negative: the key does not expire

	// Token is the last fencing token: the holder's, where it is held. 0: none
	// within the last 30 days.
	Token int64

	// Waiters is how many wait in the queue. Those who poll are not counted.
	Waiters int
}

// State says what becomes of a lock.
type State string

// States of a lock.
const (
	Free    State = "free"
	Held    State = "held"
	Revoked State = "revoked" // until its TTL, after which it is free
)

// Inspect returns what is known of a lock. The error is not of the kind
// [ErrNotAcquired]: a free lock is no error.
func (c *Client) Inspect(ctx context.Context, key string) (Info, error) {
	k, err := c.admin(ctx, key)
	if err != nil {
		return Info{}, failed("inspect", key, err)
	}
	defer c.leave()
	info, err := c.store.inspect(ctx, k)
	info.Key = key
	if err != nil {
		return info, failed("inspect", key, err)
	}
	return info, nil
}

// Revoke takes the lease from the holder that has the given fencing token, as
// [Info] tells it, and reports whether that was still the holder. The holder's
// next renewal is refused, which ends its lease's context. A lock whose counter was
// deleted (Info.Token is 0) cannot be revoked: delete its key by hand. Only the end of the
// TTL frees the lock, so that there are never two holders; nobody has to wait
// for longer than the TTL that the lease was acquired with.
func (c *Client) Revoke(ctx context.Context, key string, token int64) (bool, error) {
	k, err := c.admin(ctx, key)
	if err != nil {
		return false, failed("revoke", key, err)
	}
	defer c.leave()
	if token <= 0 {
		return false, failed("revoke", key, fmt.Errorf("token is %d, want the holder's: Inspect tells it", token))
	}
	revoked, err := c.store.revoke(ctx, k, token)
	if err != nil {
		return false, failed("revoke", key, err)
	}
	if revoked {
		c.log.WarnContext(ctx, "lease revoked", "key", key, "token", token)
	}
	return revoked, nil
}

// admin checks the arguments of a call about a lock, and admits it.
func (c *Client) admin(ctx context.Context, key string) (keys, error) {
	switch {
	case !c.made():
		return keys{}, errNotMade
	case ctx == nil:
		return keys{}, errNilContext
	}
	k, err := c.cfg.keys(key)
	if err != nil {
		return k, err
	}
	return k, c.enter()
}

func (s *node) inspect(ctx context.Context, k keys) (Info, error) {
	seen, err := s.look(ctx, k)
	if err != nil {
		return Info{}, err
	}
	return seen.info(k)
}

// A sight is what a server shows of a lock.
type sight struct {
	value   string        // of the lease; "" if there is none
	left    time.Duration // of it; negative if it does not expire
	counter int64         // the last fencing token; 0 if there is none
	waiters int
}

func (s *node) look(ctx context.Context, k keys) (seen sight, err error) {
	reply, err := inspectScript.Run(ctx, s.conn, []string{k.leases[0], k.fences[0], k.queues[0]}).Slice()
	if err != nil {
		return seen, s.explain(err, k)
	}
	if len(reply) != 4 {
		return seen, fmt.Errorf("inspect.lua returned %d values, want 4", len(reply))
	}
	pttl, _ := reply[1].(int64)
	counter, _ := reply[2].(string)
	waiters, _ := reply[3].(int64)
	seen.value, _ = reply[0].(string)
	seen.left, seen.waiters = leftOf(pttl), int(waiters)
	if counter != "" {
		if seen.counter, err = strconv.ParseInt(counter, 10, 64); err != nil {
			return seen, fmt.Errorf("the counter holds %s, which is no number: delete %s", quote(counter), quote(k.fences[0]))
		}
	}
	return seen, nil
}

// token is the holder's; "" if there is none.
func (s sight) token() string { return s.value[:min(tokenLen, len(s.value))] }

func (s sight) info(k keys) (Info, error) {
	info := Info{State: Free, Waiters: s.waiters, Token: s.counter}
	if s.value == "" {
		return info, nil
	}
	info.TTL = s.left
	_, h, err := parseValue(s.value)
	switch {
	case err != nil:
		info.State = Held
		return info, fmt.Errorf("%s holds %s: %w: another program uses the key; delete it there, or give locks another Namespace", quote(k.leases[0]), quote(s.value), err)
	case h.Revoked:
		info.State = Revoked
	default:
		info.State = Held
	}
	info.Holder, info.Host, info.PID = h.Name, h.Host, h.PID
	if h.Since != 0 {
		info.Since = time.UnixMilli(h.Since)
	}
	return info, nil
}

func (s *node) revoke(ctx context.Context, k keys, token int64) (bool, error) {
	h := s.client.holder
	h.Revoked = true
	value := newToken() + h.metadata(time.Now())
	n, err := revokeScript.Run(ctx, s.conn, []string{k.leases[0], k.fences[0]}, token, value, tokenLen).Int()
	return n == 1, s.explain(err, k)
}
