package cache

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"time"
)

// MapConfig configures a [Map] or a [Hash]. The zero MapConfig is ready to use.
type MapConfig struct {
	// TTL is how long a value lives, to the millisecond. Defaults to Config.TTL; 1ms to
	// 100 years.
	TTL time.Duration

	// Codec turns values into bytes and back. Defaults to [JSON].
	Codec Codec

	// MaxValueBytes is the greatest length of a value, as the codec makes it. A longer
	// one is not stored. Defaults to 1 MiB; at most 512 MiB.
	MaxValueBytes int
}

// values are what a Map and a Hash keep.
type values[V any] struct {
	place
	codec    Codec
	ttl      int64 // ms
	maxBytes int
}

func newValues[V any](c *Client, kind, name string, cfg MapConfig) values[V] {
	var role Config
	if c != nil {
		role = c.cfg
	}
	if cfg.Codec == nil {
		cfg.Codec = JSON
	}
	cfg.TTL = cmp.Or(cfg.TTL, role.TTL, defaultTTL)
	cfg.MaxValueBytes = cmp.Or(cfg.MaxValueBytes, defaultMaxValue)
	var errs []error
	if err := validTTL(cfg.TTL); err != nil {
		errs = append(errs, fmt.Errorf("%w, or 0 for the cache's", err))
	}
	if cfg.MaxValueBytes < 1 || cfg.MaxValueBytes > maxMaxValue {
		errs = append(errs, fmt.Errorf("MaxValueBytes is %d, want 1 to %d, or 0 for %d", cfg.MaxValueBytes, maxMaxValue, defaultMaxValue))
	}
	if codec, ok := cfg.Codec.(typeChecker); ok {
		errs = append(errs, codec.check(reflect.TypeFor[V]()))
	}
	return values[V]{newPlace(c, kind, name, errs...), cfg.Codec, millis(cfg.TTL), cfg.MaxValueBytes}
}

func validTTL(ttl time.Duration) error {
	if ttl < time.Millisecond || ttl > maxTTL {
		return fmt.Errorf("TTL is %s, want 1ms to %s", ttl, maxTTL)
	}
	return nil
}

// encode returns what is stored of a value, and the TTL that the options give, in ms; 0:
// none.
func (s *values[V]) encode(value *V, opts []SetOption) (stored []byte, ttl int64, err error) {
	for _, opt := range opts {
		if opt.hasTTL {
			if err := validTTL(opt.ttl); err != nil {
				return nil, 0, err
			}
			ttl = millis(opt.ttl)
		}
		if len(opt.tags) > 0 {
			return nil, 0, errors.New("tags are given, which views have")
		}
	}
	if stored, err = s.codec.Append([]byte{}, value); err != nil {
		return nil, 0, fmt.Errorf("encode: %w", err)
	}
	if len(stored) > s.maxBytes {
		s.c.stats.tooLarge.Inc()
		return nil, 0, fmt.Errorf("the value has %d bytes, want at most %d: raise MapConfig.MaxValueBytes or store less", len(stored), s.maxBytes)
	}
	return stored, ttl, nil
}

// decode sets a zero value from what is stored, and reports whether it could.
func (s *values[V]) decode(stored []byte, value *V) bool {
	if err := s.codec.Decode(stored, value); err != nil {
		var zero V
		*value = zero // half of something may be in it
		s.c.stats.decodeErrors.Inc()
		return false
	}
	return true
}
