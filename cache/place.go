package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// maxKeyBytes bounds the keys of maps, hashes, limits and sessions, which often come
// from outside.
const maxKeyBytes = 8 << 10

// A place is where a Map, a Hash, a Limiter or the sessions keep what they have:
// <namespace>:<kind>[.<cache>]:<name>:<key>, apart from the keys of views. What is there
// cannot be loaded again, so it is read from the primary, for the whole of its TTL.
type place struct {
	c      *Client
	err    error  // what is wrong with the definition
	label  string // what errors call it; they name no key, which may be a secret
	prefix string // of all keys
}

func newPlace(c *Client, kind, name string, problems ...error) place {
	p := place{c: c, label: fmt.Sprintf("%s %q", kind, name)}
	if c == nil {
		problems = append(problems, errors.New("nil Client: pass what New returned"))
	} else {
		p.prefix = c.cfg.rootOf(kind) + name + ":"
	}
	if !namePattern.MatchString(name) {
		problems = append(problems, fmt.Errorf("the name is %q, want letters, digits, _ and - only", name))
	}
	if err := errors.Join(problems...); err != nil {
		p.err = fmt.Errorf("cache: %s: %w", p.label, err)
	}
	return p
}

// ready says why a call cannot even begin.
func (p *place) ready(ctx context.Context, op string) error {
	switch {
	case ctx == nil:
		return nilContext(op)
	case p.err != nil:
		return p.err
	case p.c == nil:
		return fmt.Errorf("cache: %s: what is used was not made: NewMap, NewHash, NewLimiter or NewSessionStore makes it", op)
	}
	return p.c.ready(ctx, op)
}

// keyed is ready for a call with a key, given by what it is in Redis.
func (p *place) keyed(ctx context.Context, op, redisKey string) error {
	if err := p.ready(ctx, op); err != nil {
		return err
	}
	if n := len(redisKey) - len(p.prefix); n < 1 || n > maxKeyBytes {
		return p.failed(op, fmt.Errorf("the key has %d bytes, want 1 to %d", n, maxKeyBytes))
	}
	return nil
}

func (p *place) failed(op string, err error) error {
	return fmt.Errorf("cache: %s: %s: %w", p.label, op, err)
}

// undone is the error of a command that Redis did not carry out, and counts it.
func (p *place) undone(ctx context.Context, op string, err error) error {
	p.c.countError(ctx)
	return p.failed(op, whoseEnd(ctx, err))
}

// read returns what the primary has under a key; nil: nothing, or no string.
func (p *place) read(ctx context.Context, op, redisKey string) ([]byte, error) {
	start := time.Now()
	held, err := p.c.poll(ctx, redisKey)
	if err != nil {
		return nil, p.failed(op, p.c.unread(ctx, err, time.Since(start)))
	}
	return held, nil
}

// scan goes through the keys, without their prefix, and what they hold, node after
// node of a Cluster, until yield returns false. A key may come twice, and one that
// is made or moves meanwhile may be missed.
// https://redis.io/docs/latest/commands/scan/#scan-guarantees
func (p *place) scan(ctx context.Context, yield func(key string, held []byte) bool) error {
	var mu sync.Mutex
	var nodes []redis.UniversalClient
	err := p.c.rdb.EachPrimary(ctx, func(_ context.Context, node redis.UniversalClient) error {
		mu.Lock()
		defer mu.Unlock()
		nodes = append(nodes, node)
		return nil
	})
	if err != nil {
		return err
	}
	for _, node := range nodes {
		for cursor := uint64(0); ; {
			keys, next, err := node.Scan(ctx, cursor, p.prefix+"*", scanPage).Result()
			if err != nil {
				return err
			}
			if goOn, err := p.page(ctx, keys, yield); err != nil || !goOn {
				return err
			}
			if cursor = next; cursor == 0 {
				break
			}
		}
	}
	return nil
}

const scanPage = 256 // keys

// page reads the keys of a page, all of them before yield, which may take its time.
func (p *place) page(ctx context.Context, keys []string, yield func(key string, held []byte) bool) (goOn bool, err error) {
	if len(keys) == 0 {
		return true, nil
	}
	reads := p.c.primary.GetMany(ctx, keys)
	held := make([][]byte, len(keys))
	for i := range reads {
		held[i] = own(&reads[i].Value)
		if reads[i].Err != nil && err == nil {
			err = reads[i].Err
		}
	}
	if err != nil {
		return false, err
	}
	for i, key := range keys {
		if held[i] != nil && !yield(key[len(p.prefix):], held[i]) {
			return false, nil
		}
	}
	return true, nil
}
