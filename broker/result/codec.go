package result

import (
	"encoding/json"
	"fmt"
	"sync"
)

// A Codec turns typed values into bytes and back. It must be safe for
// concurrent use.
type Codec interface {
	// Append appends the encoded v to dst and returns the longer slice.
	Append(dst []byte, v any) ([]byte, error)

	// Decode decodes data into v, a pointer. It must not keep data.
	Decode(data []byte, v any) error
}

var (
	// JSON is encoding/json.
	JSON Codec = jsonCodec{}

	// Raw passes []byte and string unchanged, and refuses every other type.
	Raw Codec = rawCodec{}
)

type jsonCodec struct{}

// A jsonEncoder encodes into dst, without the copy that json.Marshal makes.
type jsonEncoder struct {
	*json.Encoder
	dst []byte
}

var jsonEncoders = sync.Pool{New: func() any {
	e := new(jsonEncoder)
	e.Encoder = json.NewEncoder(e)
	return e
}}

func (e *jsonEncoder) Write(p []byte) (int, error) {
	e.dst = append(e.dst, p...)
	return len(p), nil
}

func (jsonCodec) Append(dst []byte, v any) ([]byte, error) {
	e := jsonEncoders.Get().(*jsonEncoder)
	e.dst = dst
	err := e.Encode(v)
	b := e.dst
	e.dst = nil
	jsonEncoders.Put(e)
	if err != nil {
		return dst, err
	}
	return b[:len(b)-1], nil // without the newline
}

func (jsonCodec) Decode(data []byte, v any) error { return json.Unmarshal(data, v) }

type rawCodec struct{}

func (rawCodec) Append(dst []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case []byte:
		return append(dst, v...), nil
	case string:
		return append(dst, v...), nil
	}
	return dst, fmt.Errorf("raw codec: %T, want []byte or string", v)
}

func (rawCodec) Decode(data []byte, v any) error {
	switch v := v.(type) {
	case *[]byte:
		*v = append([]byte{}, data...)
	case *string:
		*v = string(data)
	default:
		return fmt.Errorf("raw codec: %T, want *[]byte or *string", v)
	}
	return nil
}

// Encode encodes v with Config.Codec, for Record.Value or Record.Progress. The
// error is a [*TooLargeError] for more than Config.MaxValueBytes.
func (c *Client) Encode(v any) ([]byte, error) {
	b, err := c.cfg.Codec.Append([]byte{}, v)
	switch {
	case err != nil:
		return nil, fmt.Errorf("result: encode %T: %w", v, err)
	case len(b) > c.cfg.MaxValueBytes:
		c.counts.tooLarge.Inc()
		return nil, &TooLargeError{Field: "Value", Size: len(b), Limit: c.cfg.MaxValueBytes}
	}
	return b, nil
}

// Decode decodes the value of a record into v, a pointer, with Config.Codec. It
// fails with the record's [*TaskError] if the task did not succeed, and if it
// has not ended, returned nothing, or returned something of another type.
func (c *Client) Decode(r Record, v any) error {
	switch err := r.Err(); {
	case err != nil:
		return err
	case r.State != Success:
		return fmt.Errorf("result: decode %q: the task is %s, want success: wait for it first", r.ID, r.State)
	case r.Value == nil:
		return fmt.Errorf("result: decode %q: the task returned no value", r.ID)
	}
	if err := c.cfg.Codec.Decode(r.Value, v); err != nil {
		return fmt.Errorf("result: decode %q into %T: %w", r.ID, v, err)
	}
	return nil
}
