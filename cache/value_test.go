package cache

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
)

func TestGoldenValuesAreWrittenAndReadByAView(t *testing.T) {
	golden := readGolden(t)
	c := newClient(t, redis.NewClient(&redis.Options{Addr: "127.0.0.1:0"}), Config{})
	t.Cleanup(func() { _ = c.rdb.UniversalClient.Close() })
	users := NewView[int, user](c, "user", ViewConfig{})
	want := user{ID: 42, Name: "Zoë"}
	_, stored, err := users.encode(&want, header{loadTime: 7, stored: 1_700_000_000_789})
	require.NoError(t, err)
	require.Equal(t, golden["value"], stored)
	var got user
	require.Equal(t, hit, users.decode(t.Context(), "redisha:cache:user:42", golden["value"], &got, users.cfg.Codec, nil).state)
	require.Equal(t, want, got)

	texts := NewView[int, string](c, "text", ViewConfig{})
	var s string
	require.Equal(t, hit, texts.decode(t.Context(), "redisha:cache:text:1", golden["value, body a deflated frame"], &s, texts.cfg.Codec, nil).state)
	require.Equal(t, strings.Repeat("redisha ", 64), s)

	plain := NewView[int, user](c, "user", ViewConfig{Plain: true})
	_, stored, err = plain.encode(&want, header{loadTime: 7, stored: 1_700_000_000_789})
	require.NoError(t, err)
	require.Equal(t, golden["value"][headerSize:], stored)
}

// unusable is what may stand in a key that no view can read as a user. Of all
// but a lease and a tombstone, a Fetch makes a value again.
func unusable(now time.Time) map[string]entry {
	body := []byte(`{"ID":1}`)
	return map[string]entry{
		"another generation":  {kind: kindValue, header: header{generation: 1}, body: body},
		"tags":                {kind: kindValue, header: header{tags: []tag{{1, 2}}}, body: body},
		"a long past absence": {kind: kindAbsence, header: header{softExpiry: uint64(now.Add(-time.Second).UnixMilli())}},
		"old absence":         {kind: kindAbsence, header: header{generation: 1}},
		"another type":        {kind: kindValue, body: []byte(`{"ID":"text"}`)},
		"half a value":        {kind: kindValue, body: []byte(`{"ID":1,"Name":"half`)},
		"a broken frame":      {kind: kindValue, body: []byte("\xc1\x10\x01\x00\x00\x00\x00\x09\xff\xff")},
		"a bomb":              {kind: kindValue, body: []byte("\xc1\x10\x01\x00\xff\xff\xff\xff\x00")},
		"too long":            {kind: kindValue, body: []byte(`{"Name":"` + strings.Repeat("x", 1000) + `"}`)},
		"another kind":        {kind: 0x1f},
		"another version":     {kind: 0x21},
	}
}

func TestWhatAViewCannotUseIsAMissAndIsReplaced(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		const key = "redisha:cache:user:1"
		for _, plain := range []bool{false, true} {
			stored := map[string][]byte{
				"text":         []byte("{not json"),
				"one byte":     {mark},
				"half a value": []byte("\xc1\x11\x00"),
			}
			if plain {
				stored["a value with header"] = appendEntry(nil, entry{kind: kindValue, body: []byte(`{"ID":1}`)})
			} else {
				stored["nothing"] = []byte{}
				stored["a plain value"] = []byte(`{"ID":1}`)
				stored["a frame"] = []byte("\xc1\x10\x00\x00\x00\x00\x00\x08" + `{"ID":1}`)
			}
			for name, e := range unusable(time.Now()) {
				stored[name] = appendEntry(nil, e)
			}
			for name, b := range stored {
				c := newClient(t, rdb, Config{})
				users := NewView[int, user](c, "user", ViewConfig{Plain: plain, MaxValueBytes: 500})
				require.NoError(t, rdb.Set(t.Context(), key, b, time.Minute).Err())
				_, err := users.Get(t.Context(), 1)
				require.Equal(t, ErrMiss, err, name)
				got, err := users.Fetch(t.Context(), 1, func(context.Context, int) (user, error) { return user{ID: 2}, nil })
				require.NoError(t, err, name)
				require.Equal(t, user{ID: 2}, got, name)
				got, err = users.Get(t.Context(), 1)
				require.NoError(t, err, "%s: the load has replaced it", name)
				require.Equal(t, user{ID: 2}, got, name)

				s := c.Stats()
				outlived := !plain && (name == "another generation" || name == "tags") || name == "a long past absence" || name == "old absence"
				require.Equal(t, outlived, s.DecodeErrors == 0, "%s: %d", name, s.DecodeErrors)
				require.EqualValues(t, 1, s.Loads, name)
				require.EqualValues(t, 2, s.Misses, name)
			}
		}
	})
}

func TestWhatIsNoValueIsAMissForGet(t *testing.T) {
	_, rdb := newServer(t)
	v := NewView[int, user](newClient(t, rdb, Config{}), "user", ViewConfig{})
	for _, e := range []entry{
		{kind: kindLease, lease: fill16(1)},
		{kind: kindTombstone},
		{kind: kindError, body: []byte("database is down")},
	} {
		require.NoError(t, rdb.Set(t.Context(), "redisha:cache:user:1", appendEntry(nil, e), time.Minute).Err())
		_, err := v.Get(t.Context(), 1)
		require.Equal(t, ErrMiss, err)
	}
}

func TestASoftExpiryThatIsAheadDoesNotHideAValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		v := NewView[int, user](newClient(t, rdb, Config{}), "user", ViewConfig{})
		e := entry{kind: kindValue, header: header{softExpiry: uint64(time.Now().Add(time.Minute).UnixMilli()), refreshUntil: 1, refreshToken: fill16(9)}, body: []byte(`{"ID":1}`)}
		require.NoError(t, rdb.Set(t.Context(), "redisha:cache:user:1", appendEntry(nil, e), time.Hour).Err())
		time.Sleep(time.Minute - time.Millisecond)
		got, err := v.Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, user{ID: 1}, got)
		time.Sleep(time.Millisecond)
		_, err = v.Get(t.Context(), 1)
		require.Equal(t, ErrMiss, err)
		require.Equal(t, []Result[user]{{Err: ErrMiss}}, v.GetMany(t.Context(), []int{1}))
	})
}

func TestAnErrorMarkerIsTheErrorOfAFetch(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		v := NewView[int, user](newClient(t, rdb, Config{}), "user", ViewConfig{})
		marker := appendEntry(nil, entry{kind: kindError, body: []byte("database is down")})
		require.NoError(t, rdb.Set(t.Context(), "redisha:cache:user:1", marker, time.Minute).Err())
		_, err := v.Fetch(t.Context(), 1, noLoad[int, user](t))
		require.EqualError(t, err, `cache: fetch "user:1": the load has just failed: database is down`)
		require.ErrorIs(t, err, ErrLoadFailed)
	})
}

func TestADecodedValueNeverHasRestsOfABrokenOne(t *testing.T) {
	c := newClient(t, redis.NewClient(&redis.Options{Addr: "127.0.0.1:0"}), Config{})
	t.Cleanup(func() { _ = c.rdb.UniversalClient.Close() })
	v := NewView[int, user](c, "user", ViewConfig{Plain: true})
	var u user
	f := v.decode(t.Context(), "redisha:cache:user:1", []byte(`{"Name":"half","ID":"no"}`), &u, v.cfg.Codec, nil)
	require.Equal(t, dead, f.state)
	require.Zero(t, u)
}

func TestUnusableValuesAreLoggedOnceInAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := newServer(t)
		var book logBook
		v := NewView[int, user](newClient(t, rdb, Config{Logger: book.logger()}), "user", ViewConfig{})
		require.NoError(t, rdb.Set(t.Context(), "redisha:cache:user:1", "secret text", time.Minute).Err())
		for range 100 {
			_, err := v.Get(t.Context(), 1)
			require.Equal(t, ErrMiss, err)
		}
		require.Equal(t, 1, strings.Count(book.String(), "cached value does not decode"))
		require.Contains(t, book.String(), "key=redisha:cache:user:1")
		require.NotContains(t, book.String(), "secret", "a value is never logged")
		time.Sleep(10 * time.Second)
		_, err := v.Get(t.Context(), 1)
		require.Equal(t, ErrMiss, err)
		require.Equal(t, 2, strings.Count(book.String(), "cached value does not decode"))
	})
}

// FuzzDecode reads any bytes as a value: they are a hit only if they are, byte
// for byte, what the view could have read before.
func FuzzDecode(f *testing.F) {
	for _, stored := range readGolden(f) {
		f.Add(stored)
	}
	f.Add([]byte(`{"ID":1}`))
	f.Add([]byte("\xc1\x10\x00\x00\x00\x00\x00\x01\xc1"))
	f.Add([]byte(deflatedFrame))
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:0"})
	f.Cleanup(func() { _ = rdb.Close() })
	c := newClient(f, rdb, Config{})
	const limit = 1 << 12
	views := []*View[int, []byte]{
		NewView[int, []byte](c, "header", ViewConfig{Codec: Raw, MaxValueBytes: limit}),
		NewView[int, []byte](c, "plain", ViewConfig{Codec: Raw, MaxValueBytes: limit, Plain: true}),
	}
	users := NewView[int, user](c, "user", ViewConfig{Plain: true})
	f.Fuzz(func(t *testing.T, stored []byte) {
		before := bytes.Clone(stored)
		for _, v := range views {
			var value []byte
			found := v.decode(t.Context(), v.prefix, stored, &value, v.cfg.Codec, nil)
			require.Equal(t, before, stored)
			switch found.state {
			case stale:
				require.LessOrEqual(t, len(value), limit)
			case hit:
				require.LessOrEqual(t, len(value), limit)
				_, again, err := v.encode(&value, header{})
				require.NoError(t, err)
				var second []byte
				require.Equal(t, hit, v.decode(t.Context(), v.prefix, again, &second, v.cfg.Codec, nil).state)
				require.Equal(t, string(value), string(second))
			case dead:
				require.Equal(t, shaOf(stored), found.sha)
				require.Zero(t, value)
			default:
				require.Zero(t, value)
				require.EqualValues(t, mark, stored[0])
			}
		}
		var u user
		if users.decode(t.Context(), users.prefix, stored, &u, users.cfg.Codec, nil).state > stale {
			require.Zero(t, u)
		}
	})
}
