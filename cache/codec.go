package cache

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

// A Codec turns the values of a view into bytes and back. It is called from
// many goroutines at once.
type Codec interface {
	// Append appends the bytes of the value that v points to to dst, and
	// returns the longer slice. It must not change the value.
	Append(dst []byte, v any) ([]byte, error)

	// Decode sets the value that v points to from data. It must neither change
	// nor keep data, which other callers may be reading. Data that no value of
	// the view stands for is an error: the entry is then a miss.
	Decode(data []byte, v any) error
}

var (
	// JSON is the codec of encoding/json, and the default.
	JSON Codec = jsonCodec{}

	// Raw stores strings and byte slices, and types made of them, unchanged.
	// Decoding copies, so that each caller owns its slice.
	Raw Codec = rawCodec{}

	// Binary is for a type V whose pointer implements
	// [encoding.BinaryUnmarshaler], and [encoding.BinaryAppender] or
	// [encoding.BinaryMarshaler].
	Binary Codec = binaryCodec{}
)

// A typeChecker is a codec that does not take every type: NewView asks it.
type typeChecker interface {
	check(t reflect.Type) error
}

type jsonCodec struct{}

func (jsonCodec) Append(dst []byte, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return dst, err
	}
	if dst == nil {
		return b, nil
	}
	return append(dst, b...), nil
}

func (jsonCodec) Decode(data []byte, v any) error { return json.Unmarshal(data, v) }

type rawCodec struct{}

func (rawCodec) Append(dst []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case *[]byte:
		return append(dst, *v...), nil
	case *string:
		return append(dst, *v...), nil
	}
	rv := reflect.ValueOf(v).Elem()
	if rv.Kind() == reflect.String {
		return append(dst, rv.String()...), nil
	}
	return append(dst, rv.Bytes()...), nil
}

func (rawCodec) Decode(data []byte, v any) error {
	switch v := v.(type) {
	case *[]byte:
		*v = bytes.Clone(data)
		return nil
	case *string:
		*v = string(data)
		return nil
	}
	rv := reflect.ValueOf(v).Elem()
	if rv.Kind() == reflect.String {
		rv.SetString(string(data))
		return nil
	}
	rv.SetBytes(bytes.Clone(data))
	return nil
}

// takingCodec is Raw for data that nobody else has: it is not copied.
type takingCodec struct{ rawCodec }

func (c takingCodec) Decode(data []byte, v any) error {
	if v, ok := v.(*[]byte); ok {
		*v = data
		return nil
	}
	return c.rawCodec.Decode(data, v)
}

// fillingCodec is Raw that decodes into the memory which is there.
type fillingCodec struct{ rawCodec }

func (c fillingCodec) Decode(data []byte, v any) error {
	if v, ok := v.(*[]byte); ok {
		*v = append((*v)[:0], data...)
		return nil
	}
	if rv := reflect.ValueOf(v).Elem(); rv.Kind() == reflect.Slice {
		rv.SetBytes(append(rv.Bytes()[:0], data...))
		return nil
	}
	return c.rawCodec.Decode(data, v)
}

func (rawCodec) check(t reflect.Type) error {
	if t.Kind() == reflect.String || t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
		return nil
	}
	return fmt.Errorf("Codec is Raw, which takes strings and byte slices, and not %s: leave it for JSON", t)
}

type binaryCodec struct{}

func (binaryCodec) Append(dst []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case encoding.BinaryAppender:
		return v.AppendBinary(dst)
	case encoding.BinaryMarshaler:
		b, err := v.MarshalBinary()
		return append(dst, b...), err
	}
	return dst, errNotBinary
}

func (binaryCodec) Decode(data []byte, v any) error {
	u, ok := v.(encoding.BinaryUnmarshaler)
	if !ok {
		return errNotBinary
	}
	return u.UnmarshalBinary(data)
}

var errNotBinary = errors.New("not a binary type")

func (binaryCodec) check(t reflect.Type) error {
	p := reflect.PointerTo(t)
	writes := p.Implements(reflect.TypeFor[encoding.BinaryAppender]()) || p.Implements(reflect.TypeFor[encoding.BinaryMarshaler]())
	if writes && p.Implements(reflect.TypeFor[encoding.BinaryUnmarshaler]()) {
		return nil
	}
	return fmt.Errorf("Codec is Binary, and %s lacks AppendBinary (or MarshalBinary) or UnmarshalBinary: add them, or leave it for JSON", p)
}
