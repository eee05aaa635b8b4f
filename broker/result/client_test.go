package result

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/testserver"
)

func TestAConfigOutOfRangeIsRefused(t *testing.T) {
	rdb := testserver.New(t).Client(t)
	for _, tc := range []struct {
		rdb    redis.UniversalClient
		cfg    Config
		reason string
	}{
		{nil, Config{}, "result: nil client: pass a go-redis client or one that redisha.Open made"},
		{rdb, Config{Namespace: "my app"}, `result: Config.Namespace is "my app", want no spaces, control characters or braces`},
		{rdb, Config{Namespace: "{app}"}, `result: Config.Namespace is "{app}", want no spaces, control characters or braces`},
		{rdb, Config{TTL: -1}, "result: Config.TTL is -1ns, want at least 1ms, or 0 for 24h"},
		{rdb, Config{TTL: time.Microsecond}, "result: Config.TTL is 1µs, want at least 1ms, or 0 for 24h"},
		{rdb, Config{MaxValueBytes: -1}, "result: Config.MaxValueBytes is -1, want 1 to 268435456, or 0 for 1 MiB"},
		{rdb, Config{MaxValueBytes: 1 << 29}, "result: Config.MaxValueBytes is 536870912, want 1 to 268435456, or 0 for 1 MiB"},
		{rdb, Config{CloseTimeout: -time.Second}, "result: Config.CloseTimeout is -1s, want more than 0, or 0 for 5s"},
		{rdb, Config{Compress: compress.Config{MaxSize: -1}}, "result: Config.Compress: compress: MaxSize is -1, want 1 to 2147483647 bytes, or 0 for the default of 67108864"},
	} {
		_, err := New(tc.rdb, tc.cfg)
		require.EqualError(t, err, tc.reason)
	}
}

func TestTheZeroConfigHasTheDocumentedDefaults(t *testing.T) {
	srv := testserver.New(t)
	c := newClient(t, srv.Client(t), Config{})
	_, err := c.Store(t.Context(), Record{ID: "x", State: Success, Value: make([]byte, 1<<20)})
	require.NoError(t, err)
	require.InDelta(t, 24*time.Hour, srv.TTL("redisha:result:x"), float64(time.Minute))
	_, err = c.Store(t.Context(), Record{ID: "y", State: Success, Value: make([]byte, 1<<20+1)})
	require.ErrorAs(t, err, new(*TooLargeError))
}

func TestANilContextIsAnErrorOfEveryCall(t *testing.T) {
	c := newClient(t, testserver.New(t).Client(t), Config{})
	var none context.Context
	const reason = ": nil context: pass context.Background() or the request's"
	_, err := c.Get(none, "x")
	require.EqualError(t, err, `result: get "x"`+reason)
	_, err = c.Wait(none, "x")
	require.EqualError(t, err, `result: wait "x"`+reason)
	_, err = c.Store(none, Record{ID: "x"})
	require.EqualError(t, err, `result: store "x"`+reason)
	_, err = c.StoreMany(none, []Record{{ID: "x"}})
	require.EqualError(t, err, `result: store "x"`+reason)
	require.EqualError(t, c.Forget(none, "x"), `result: forget`+reason)
	require.EqualError(t, c.Check(none), `result: check`+reason)
}

func TestEveryCallAfterCloseReturnsErrClosed(t *testing.T) {
	rdb := testserver.New(t).Client(t)
	c, err := New(rdb, Config{})
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, c.Close(), "twice is safe")
	_, err = c.Get(t.Context(), "x")
	require.ErrorIs(t, err, ErrClosed)
	_, err = c.Wait(t.Context(), "x")
	require.ErrorIs(t, err, ErrClosed)
	_, err = c.Store(t.Context(), Record{ID: "x"})
	require.ErrorIs(t, err, ErrClosed)
	_, err = c.StoreMany(t.Context(), []Record{{ID: "x"}})
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, c.Forget(t.Context(), "x"), ErrClosed)
	require.ErrorIs(t, c.Check(t.Context()), ErrClosed)
	require.NoError(t, rdb.Ping(t.Context()).Err(), "the Redis client is not ours to close")
}

func TestIDsThatCannotBeKeysAreRefused(t *testing.T) {
	c := newClient(t, testserver.New(t).Client(t), Config{})
	for id, reason := range map[string]string{
		"":                       `the ID is empty, want 1 to 255 bytes`,
		strings.Repeat("x", 256): `the ID has 256 bytes, want 1 to 255`,
		"a\nb":                   `the ID has '\n' at byte 1, want no control characters and no braces`,
		"\x7f":                   `the ID has '\x7f' at byte 0, want no control characters and no braces`,
		"{g:1}:total":            `the ID has '{' at byte 0, want no control characters and no braces`,
		"x}":                     `the ID has '}' at byte 1, want no control characters and no braces`,
	} {
		require.EqualError(t, ValidateID(id), reason)
		_, err := c.Get(t.Context(), id)
		require.EqualError(t, err, fmt.Sprintf("result: get %q: %s", id, reason))
		_, err = c.Wait(t.Context(), id)
		require.EqualError(t, err, fmt.Sprintf("result: wait %q: %s", id, reason))
		require.EqualError(t, c.Forget(t.Context(), "fine", id), fmt.Sprintf("result: forget %q: %s", id, reason))
	}
	for _, id := range []string{"x", "group:17", "a b", "Größe/7", "\xff", strings.Repeat("x", 255)} {
		require.NoError(t, ValidateID(id))
	}
}

func TestCheckSaysWhatIsWrong(t *testing.T) {
	srv := testserver.New(t)
	c := newClient(t, srv.Client(t), Config{})
	require.NoError(t, c.Check(t.Context()))
	srv.RequireAuth("secret")
	err := c.Check(t.Context())
	require.ErrorContains(t, err, "result: check: ")
	require.ErrorContains(t, err, "authentication failed: check user and password")
}

func TestStatsHoldTheConnectionsToo(t *testing.T) {
	c := newClient(t, testserver.New(t).Client(t), Config{})
	_, err := c.Get(t.Context(), "x")
	require.NoError(t, err)
	require.Equal(t, 1, c.Stats().Conn.Pool.Total)
}

func TestWhatIsWrongWithWakeUpsIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	inBubble(t, func(t *testing.T, b *bubble) {
		c := newClient(t, b.rdb, Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		b.refuse("PUBLISH")
		for _, id := range []string{"a", "b"} {
			_, err := c.Store(t.Context(), Record{ID: id, State: Success})
			require.NoError(t, err)
		}
		b.refuse("SUBSCRIBE")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, err := c.Wait(ctx, "c")
		require.Error(t, err)
		b.hook(nil)
		ctx, cancel = context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, err = c.Wait(ctx, "c")
		require.Error(t, err)
		require.NoError(t, c.Close())
	})
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	require.Len(t, lines, 2)
	require.Contains(t, lines[0], `level=WARN msg="result wake-ups are refused, waiters find results up to 5s later: does the ACL allow the user PUBLISH (on Cluster SPUBLISH) and the channels?"`)
	require.Contains(t, lines[1], `level=WARN msg="result wake-ups are refused, waiters read from time to time: does the ACL allow the user SUBSCRIBE (on Cluster SSUBSCRIBE) and the channels?"`)
	require.Contains(t, lines[1], `NOPERM`)
}

func TestTypedValuesGoThroughTheCodec(t *testing.T) {
	type receipt struct{ Number int }
	c := newClient(t, testserver.New(t).Client(t), Config{})
	value, err := c.Encode(receipt{7})
	require.NoError(t, err)
	_, err = c.Store(t.Context(), Record{ID: "x", State: Success, Value: value})
	require.NoError(t, err)
	r, err := c.Wait(t.Context(), "x")
	require.NoError(t, err)
	var got receipt
	require.NoError(t, c.Decode(r, &got))
	require.Equal(t, receipt{7}, got)

	require.EqualError(t, c.Decode(r, new(int)), `result: decode "x" into *int: json: cannot unmarshal object into Go value of type int`)
	require.EqualError(t, c.Decode(Record{ID: "x", State: Success}, &got), `result: decode "x": the task returned no value`)
	require.EqualError(t, c.Decode(Record{ID: "x", State: Retry}, &got), `result: decode "x": the task is retry, want success: wait for it first`)
	_, err = c.Encode(make(chan int))
	require.EqualError(t, err, "result: encode chan int: json: unsupported type: chan int")
}

func TestTheRawCodecPassesBytesAndStrings(t *testing.T) {
	c := newClient(t, testserver.New(t).Client(t), Config{Codec: Raw})
	for _, v := range []any{[]byte("\xC1\x00"), "\xC1\x00"} {
		b, err := c.Encode(v)
		require.NoError(t, err)
		require.Equal(t, []byte("\xC1\x00"), b)
	}
	empty, err := c.Encode("")
	require.NoError(t, err)
	require.NotNil(t, empty, "an empty value is a value")
	r := Record{State: Success, Value: []byte("hello")}
	var b []byte
	var s string
	require.NoError(t, c.Decode(r, &b))
	require.NoError(t, c.Decode(r, &s))
	r.Value[0] = 'j'
	require.Equal(t, "hello", string(b), "a copy")
	require.Equal(t, "hello", s)
	_, err = c.Encode(7)
	require.EqualError(t, err, "result: encode int: raw codec: int, want []byte or string")
	require.EqualError(t, c.Decode(r, new(int)), `result: decode "" into *int: raw codec: *int, want *[]byte or *string`)
}

func TestAFailureIsATaskError(t *testing.T) {
	c := newClient(t, testserver.New(t).Client(t), Config{})
	cause := &Cause{Type: "*fs.PathError", Message: "open /x: file does not exist", Chain: []string{"syscall.Errno: no such file"}}
	for _, tc := range []struct {
		record  Record
		message string
	}{
		{Record{ID: "x", Task: "mail.send", State: Failure, Attempt: 3, Cause: cause}, `result: task mail.send "x": failure at attempt 3: open /x: file does not exist`},
		{Record{ID: "x", State: Dead, Cause: &Cause{}}, `result: task "x": dead`},
		{Record{ID: "x", Task: "mail.send", State: Cancelled}, `result: task mail.send "x": cancelled`},
		{Record{ID: "x", State: Expired}, `result: task "x": expired`},
	} {
		err := c.Decode(tc.record, new(string))
		require.EqualError(t, err, tc.message)
		require.Equal(t, err, tc.record.Err())
		var failed *TaskError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, tc.record.State, failed.State)
		require.Equal(t, tc.record.Attempt, failed.Attempt)
		if tc.record.Cause != nil {
			require.Equal(t, *tc.record.Cause, failed.Cause)
		}
	}
	for _, s := range []State{Pending, Started, Progress, Retry, Success} {
		require.NoError(t, Record{State: s, Cause: cause}.Err())
	}
}

func TestCauseOfListsWhatAnErrorWraps(t *testing.T) {
	require.Nil(t, CauseOf(nil))
	inner := &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrNotExist}
	err := fmt.Errorf("send: %w", errors.Join(errors.New("first"), inner))
	require.Equal(t, &Cause{
		Type:    "*fmt.wrapError",
		Message: "send: first\nopen /x: file does not exist",
		Chain: []string{
			"*errors.joinError: first\nopen /x: file does not exist",
			"*errors.errorString: first",
			"*fs.PathError: open /x: file does not exist",
			"*errors.errorString: file does not exist",
		},
	}, CauseOf(err))

	var deep error = errors.New("bottom")
	for range 100 {
		deep = fmt.Errorf("w%w", deep)
	}
	require.Len(t, CauseOf(deep).Chain, maxChain)
	require.Equal(t, &Cause{Type: "result.empty", Message: ""}, CauseOf(empty{}), "one that wraps nothing")
	require.Len(t, CauseOf(endless{}).Chain, maxChain)
}

type endless struct{}

func (endless) Error() string   { return "again" }
func (e endless) Unwrap() error { return e }

type empty struct{}

func (empty) Error() string { return "" }
func (empty) Unwrap() error { return nil }

func TestClipCutsBetweenRunes(t *testing.T) {
	for _, tc := range []struct{ in, out string }{
		{"1234567890", "1234567890"},
		{"12345678901", "1234567…"},
		{"123456é8901", "123456…"},
		{strings.Repeat("\x80", 11), "\x80\x80\x80…"}, // no UTF-8 at all
	} {
		require.Equal(t, tc.out, clip(tc.in, 10))
	}
}
