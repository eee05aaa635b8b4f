package cache

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// A Hash keeps several values under one key, each with a TTL of its own, and reads them
// together: the devices of a user, the members of a room. In all else it is like a [Map];
// a Set or Delete whose reply was lost may be made again.
// It needs Redis 7.4 or Valkey 9.0; see [VersionError]. It is safe for concurrent use.
//
// It is a Redis hash, <namespace>:hash:<name>:<key>, and gone with its last field. All of
// its fields are on one node of a Cluster.
type Hash[K Key, V any] struct{ values[V] }

// NewHash returns the hashes of c with that name, which is a part of the keys: letters,
// digits, "_" and "-". Hashes of one name share their fields, and should be defined
// alike. A wrong definition is an error of each use.
func NewHash[K Key, V any](c *Client, name string, cfg MapConfig) *Hash[K, V] {
	return &Hash[K, V]{newValues[V](c, "hash", name, cfg)}
}

// A VersionError says that the server is too old for what was asked of it. errors.Is
// finds [errors.ErrUnsupported] in it.
type VersionError struct {
	Feature string // what is missing
	Needs   string // which servers have it
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("the server does not know %s: use %s or later", e.Feature, e.Needs)
}

func (e *VersionError) Unwrap() error { return errors.ErrUnsupported }

var (
	//go:embed hashset.lua
	hashSetLua    string
	hashSetScript = newScript(hashSetLua)
)

// Set stores value in a field of key, in place of whatever is there, for MapConfig.TTL
// unless [TTL] says otherwise. Other fields stay as they are. A field has 1 to 8192 bytes.
func (h *Hash[K, V]) Set(ctx context.Context, key K, field string, value V, opts ...SetOption) error {
	redisKey, err := h.at(ctx, "set", key, field)
	if err != nil {
		return err
	}
	stored, ms, err := h.encode(&value, opts)
	if err != nil {
		return h.failed("set", err)
	}
	if ms == 0 {
		ms = h.ttl
	}
	if !h.c.lacksHSetEx.Load() {
		// https://redis.io/docs/latest/commands/hsetex/
		err := h.c.rdb.Do(ctx, "hsetex", redisKey, "px", ms, "fields", 1, field, stored).Err()
		if err == nil {
			return nil
		}
		if !isUnknownCommand(err) {
			return h.undone(ctx, "set", err)
		}
		h.c.lacksHSetEx.Store(true)
	}
	switch n, err := h.c.run(ctx, hashSetScript, redisKey, field, stored, ms).Int(); {
	case err != nil:
		return h.undone(ctx, "set", err)
	case n == 0:
		return h.undone(ctx, "set", &VersionError{"TTLs of the fields of a hash (HPEXPIRE)", "Redis 7.4 or Valkey 9.0"})
	}
	return nil
}

func isUnknownCommand(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && strings.HasPrefix(strings.ToLower(reply.Error()), "err unknown command")
}

// Get returns the value of a field of key, or [ErrMiss].
func (h *Hash[K, V]) Get(ctx context.Context, key K, field string) (V, error) {
	var value V
	redisKey, err := h.at(ctx, "get", key, field)
	if err != nil {
		return value, err
	}
	held, err := h.c.rdb.HGet(ctx, redisKey, field).Bytes()
	switch {
	case errors.Is(err, redis.Nil):
		return value, ErrMiss
	case err != nil:
		return value, h.undone(ctx, "get", err)
	case !h.decode(held, &value):
		return value, ErrMiss
	}
	return value, nil
}

// All returns the values of all fields of key, in a map that is not nil.
func (h *Hash[K, V]) All(ctx context.Context, key K) (map[string]V, error) {
	redisKey, err := h.at(ctx, "all", key)
	if err != nil {
		return nil, err
	}
	held, err := h.c.rdb.HGetAll(ctx, redisKey).Result()
	if err != nil {
		return nil, h.undone(ctx, "all", err)
	}
	all := make(map[string]V, len(held))
	for field, stored := range held {
		var value V
		if h.decode([]byte(stored), &value) {
			all[field] = value
		}
	}
	return all, nil
}

// Delete removes fields of key, those that are there.
func (h *Hash[K, V]) Delete(ctx context.Context, key K, fields ...string) error {
	redisKey, err := h.at(ctx, "delete", key, fields...)
	if err != nil || len(fields) == 0 {
		return err
	}
	if err := h.c.rdb.HDel(ctx, redisKey, fields...).Err(); err != nil {
		return h.undone(ctx, "delete", err)
	}
	return nil
}

// at returns where key is, unless it or a field is not what it may be.
func (h *Hash[K, V]) at(ctx context.Context, op string, key K, fields ...string) (string, error) {
	redisKey := joinKey(h.prefix, key)
	if err := h.keyed(ctx, op, redisKey); err != nil {
		return "", err
	}
	for _, field := range fields {
		if n := len(field); n < 1 || n > maxKeyBytes {
			return "", h.failed(op, fmt.Errorf("the field has %d bytes, want 1 to %d", n, maxKeyBytes))
		}
	}
	return redisKey, nil
}
