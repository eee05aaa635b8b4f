package cache

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

type (
	text   string
	octets []byte
)

// A point has a binary form of two bytes.
type point struct{ x, y byte }

func (p point) AppendBinary(b []byte) ([]byte, error) { return append(b, p.x, p.y), nil }

func (p *point) UnmarshalBinary(data []byte) error {
	if len(data) != 2 {
		return errors.New("a point has two bytes")
	}
	p.x, p.y = data[0], data[1]
	return nil
}

func roundTrip[V any](t require.TestingT, codec Codec, v V) (data []byte, got V) {
	data, err := codec.Append([]byte("before"), &v)
	require.NoError(t, err)
	require.Equal(t, "before", string(data[:6]))
	alone, err := codec.Append(nil, &v)
	require.NoError(t, err)
	require.Equal(t, string(data[6:]), string(alone))
	require.NoError(t, codec.Decode(data[6:], &got))
	return data[6:], got
}

func TestCodecsGiveBackWhatTheyTook(t *testing.T) {
	data, u := roundTrip(t, JSON, user{ID: 1, Name: "Zoë"})
	require.Equal(t, user{ID: 1, Name: "Zoë"}, u)
	require.Equal(t, `{"ID":1,"Name":"Zoë"}`, string(data))

	data, p := roundTrip(t, Binary, point{1, 2})
	require.Equal(t, point{1, 2}, p)
	require.Equal(t, []byte{1, 2}, data)

	_, now := roundTrip(t, Binary, time.Unix(1_700_000_000, 5).UTC()) // MarshalBinary
	require.Equal(t, time.Unix(1_700_000_000, 5).UTC(), now)

	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOf(rapid.Byte()).Draw(t, "raw")
		data, got := roundTrip(t, Raw, raw)
		require.Equal(t, string(raw), string(data))
		require.Equal(t, string(raw), string(got))
		_, s := roundTrip(t, Raw, string(raw))
		require.Equal(t, string(raw), s)
		_, named := roundTrip(t, Raw, text(raw))
		require.Equal(t, text(raw), named)
		_, slice := roundTrip(t, Raw, octets(raw))
		require.Equal(t, string(raw), string(slice))
	})
}

func TestRawDecodesIntoMemoryOfItsOwn(t *testing.T) {
	data := []byte("data")
	var raw []byte
	var named octets
	require.NoError(t, Raw.Decode(data, &raw))
	require.NoError(t, Raw.Decode(data, &named))
	raw[0], named[0] = 'X', 'Y'
	require.Equal(t, "data", string(data))
}

func TestCodecsRefuseWhatTheyCannotTake(t *testing.T) {
	_, err := JSON.Append(nil, new(chan int))
	require.Error(t, err)
	var syntax *json.SyntaxError
	require.ErrorAs(t, JSON.Decode([]byte("{"), new(user)), &syntax)
	require.ErrorContains(t, Binary.Decode([]byte{1}, new(point)), "two bytes")
	_, err = Binary.Append(nil, new(user))
	require.ErrorIs(t, err, errNotBinary)
	require.ErrorIs(t, Binary.Decode(nil, new(user)), errNotBinary)
}

func TestAViewOfATypeThatItsCodecCannotTakeSaysSo(t *testing.T) {
	_, rdb := newServer(t)
	c := newClient(t, rdb, Config{})
	_, err := NewView[int, user](c, "user", ViewConfig{Codec: Raw}).Get(t.Context(), 1)
	require.EqualError(t, err, `cache: view "user": Codec is Raw, which takes strings and byte slices, and not cache.user: leave it for JSON`)
	_, err = NewView[int, user](c, "user", ViewConfig{Codec: Binary}).Get(t.Context(), 1)
	require.EqualError(t, err, `cache: view "user": Codec is Binary, and *cache.user lacks AppendBinary (or MarshalBinary) or UnmarshalBinary: add them, or leave it for JSON`)
	_, err = NewView[int, point](c, "point", ViewConfig{Codec: Binary}).Get(t.Context(), 1)
	require.ErrorIs(t, err, ErrMiss)
}
