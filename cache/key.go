package cache

import (
	"reflect"
	"strconv"
)

// A Key names a value within a view. A string may hold any bytes and may be
// empty; an integer stands as its decimal digits.
type Key interface {
	~string |
		~int | ~int8 | ~int16 | ~int32 | ~int64 |
		~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64
}

// joinKey returns prefix and key, in one allocation for the predeclared types.
func joinKey[K Key](prefix string, key K) string {
	switch k := any(key).(type) {
	case string:
		return prefix + k
	case int:
		return joinInt(prefix, int64(k))
	case int64:
		return joinInt(prefix, k)
	case int32:
		return joinInt(prefix, int64(k))
	case uint64:
		return joinUint(prefix, k)
	case uint32:
		return joinUint(prefix, uint64(k))
	}
	switch v := reflect.ValueOf(key); {
	case v.CanInt():
		return joinInt(prefix, v.Int())
	case v.CanUint():
		return joinUint(prefix, v.Uint())
	default:
		return prefix + v.String()
	}
}

func joinInt(prefix string, n int64) string {
	var digits [20]byte
	return prefix + string(strconv.AppendInt(digits[:0], n, 10))
}

func joinUint(prefix string, n uint64) string {
	var digits [20]byte
	return prefix + string(strconv.AppendUint(digits[:0], n, 10))
}

// parseKey is the key that joinKey has put behind a prefix. It reports false for
// what no key of the type is written as.
func parseKey[K Key](text string) (key K, ok bool) {
	switch k := any(&key).(type) {
	case *string:
		*k = text
		return key, true
	case *int64:
		n, err := strconv.ParseInt(text, 10, 64)
		*k = n
		return key, err == nil
	}
	switch v := reflect.ValueOf(&key).Elem(); {
	case v.CanInt():
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		v.SetInt(n)
		return key, err == nil
	case v.CanUint():
		n, err := strconv.ParseUint(text, 10, v.Type().Bits())
		v.SetUint(n)
		return key, err == nil
	default:
		v.SetString(text)
		return key, true
	}
}
