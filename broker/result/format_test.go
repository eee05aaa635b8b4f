package result

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/redisha/redisha/compress"
)

func newCodec(tb testing.TB) *compress.Codec {
	tb.Helper()
	codec, err := compress.New(compress.Config{})
	require.NoError(tb, err)
	return codec
}

var enqueued, started, finished = instant(1767225600000), instant(1767225601500), instant(1767225602750)

// golden holds what the files in testdata were written from. A file is never
// changed: what an earlier version stored must be read for as long as it lives.
var golden = map[string]Record{
	"pending":  {State: Pending, Task: "mail.send", Enqueued: enqueued},
	"started":  {State: Started, Task: "mail.send", Attempt: 1, Enqueued: enqueued, Started: started},
	"progress": {State: Progress, Task: "mail.send", Attempt: 1, Enqueued: enqueued, Started: started, Progress: []byte(`{"done":3,"of":10}`)},
	"retry": {
		State: Retry, Task: "mail.send", Attempt: 2, Enqueued: enqueued, Started: started,
		Cause: &Cause{Type: "*net.OpError", Message: "dial tcp 10.0.0.1:25: connection refused", Chain: []string{
			"*os.SyscallError: connect: connection refused", "syscall.Errno: connection refused",
		}},
	},
	"success":       {State: Success, Task: "mail.send", Attempt: 3, Enqueued: enqueued, Started: started, Finished: finished, Value: []byte(`{"receipt":"r-42"}`)},
	"success-empty": {State: Success, Attempt: 1, Finished: finished, Value: []byte{}, Progress: []byte{}},
	"success-mark":  {State: Success, Attempt: 1, Finished: finished, Value: []byte{0xC1, 0x10, 0, 1, 2}},
	"success-deflated": {
		State: Success, Attempt: 1, Finished: finished, Value: []byte(strings.Repeat("all work and no play ", 100)),
	},
	"failure":   {State: Failure, Task: "mail.send", Attempt: 25, Finished: finished, Cause: &Cause{Type: "*errors.errorString", Message: "no such user"}},
	"cancelled": {State: Cancelled, Task: "mail.send", Enqueued: enqueued, Finished: finished},
	"expired":   {State: Expired, Task: "mail.send", Enqueued: enqueued, Finished: finished},
	"dead":      {State: Dead, Task: "mail.send", Attempt: 1, Fence: 1<<53 + 1, Finished: finished, Cause: &Cause{}},
	"limits":    {State: Success, Task: strings.Repeat("t", 255), Attempt: 1<<31 - 1, Fence: 1<<64 - 1, Enqueued: instant(1), Started: instant(maxMillis)},
}

func TestGoldenRecordsAreReadAndWrittenByteForByte(t *testing.T) {
	codec := newCodec(t)
	files, err := filepath.Glob("testdata/record-*.bin")
	require.NoError(t, err)
	require.Len(t, files, len(golden))
	for name, want := range golden {
		t.Run(name, func(t *testing.T) {
			stored, err := os.ReadFile(filepath.Join("testdata", "record-"+name+".bin"))
			require.NoError(t, err)
			got, err := decodeRecord(stored, codec)
			require.NoError(t, err)
			require.Equal(t, want, got)
			if name != "success-deflated" { // another version of deflate may pack it otherwise
				require.Equal(t, stored, appendRecord(nil, want, codec))
			}
		})
	}
}

func TestHeaderIsWhereTheScriptLooks(t *testing.T) {
	b := appendRecord([]byte("before"), Record{State: Dead, Fence: 0x0102030405060708, Attempt: 0x090a0b0c}, newCodec(t))[6:]
	require.Equal(t, []byte{0xC1, 0x18, 20, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, b[:16])
	require.Len(t, b, 41)
}

func TestTimesThatTheFormatCannotHoldAreLeftOut(t *testing.T) {
	b := appendRecord(nil, Record{Enqueued: time.UnixMilli(-1), Started: time.UnixMilli(maxMillis + 1)}, newCodec(t))
	got, err := decodeRecord(b, newCodec(t))
	require.NoError(t, err)
	require.Equal(t, Record{}, got)
}

func TestUnknownFieldsAndCodecsOfLaterVersionsAreSkipped(t *testing.T) {
	b := appendRecord(nil, golden["success"], newCodec(t))
	b[40] = 7
	b = appendField(b, 200, "new in a later version")
	got, err := decodeRecord(b, newCodec(t))
	require.NoError(t, err)
	require.Equal(t, golden["success"], got)

	b[offState] = 31
	got, err = decodeRecord(b, newCodec(t))
	require.NoError(t, err)
	require.True(t, got.State.Final(), "a final state of a later version is final here, too")
	require.Equal(t, "state(31)", got.State.String())
}

func TestDamagedRecordsAreCorrupt(t *testing.T) {
	whole := func() []byte { return appendRecord(nil, Record{State: Success}, newCodec(t)) }
	changed := func(at int, to ...byte) []byte { b := whole(); copy(b[at:], to); return b }
	for _, tc := range []struct {
		name   string
		stored []byte
		reason string
	}{
		{"nothing", nil, "it begins with , want c1 18: does something else write this key?"},
		{"text", []byte("hello"), "it begins with 68 65, want c1 18: does something else write this key?"},
		{"a frame of compress", []byte{0xC1, 0x10, 0, 0}, "it begins with c1 10, want c1 18: does something else write this key?"},
		{"a later version", changed(1, 0x28), "its version is 2, want 1: was it written by a later version of this library?"},
		{"half a header", whole()[:40], "40 bytes, want a header of 41: was it truncated?"},
		{"flags", changed(offFlags, 0x80), "flags are 0x80, want 0: was it written by a later version of this library?"},
		{"a time beyond all years", changed(offStarted, 0x80), "the time at byte 24 is 9223372036854775808 ms, want at most 253402300799999"},
		{"a field without length", append(whole(), tagTask), "field 1 is longer than the record: was it truncated?"},
		{"half a field", append(whole(), tagTask, 2, 'x'), "field 1 is longer than the record: was it truncated?"},
		{"an endless length", append(whole(), append([]byte{tagTask}, bytes.Repeat([]byte{0xff}, 11)...)...), "field 1 is longer than the record: was it truncated?"},
		{"a long length", append(whole(), tagTask, 0x81, 0x00, 'x'), "field 1 has a length of 2 bytes, want as few as possible"},
		{"fields in disorder", append(whole(), tagType, 0, tagTask, 0), "field 1 comes after field 4"},
		{"a field twice", append(whole(), tagTask, 0, tagTask, 0), "field 1 comes after field 1"},
		{"a message without type", append(whole(), tagMessage, 0), "field 5 without field 4"},
		{"a broken frame", append(whole(), tagValue, 2, 0xC1, 0x10), "field 2: compress: corrupt frame: 2 bytes, want a header of 8: was it truncated?"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := decodeRecord(tc.stored, newCodec(t))
			require.ErrorIs(t, err, ErrCorrupt)
			require.EqualError(t, err, "corrupt record: "+tc.reason)
		})
	}
}

// records draws records as Store passes them on.
func records() *rapid.Generator[Record] {
	text := rapid.StringN(0, 300, 300)
	value := rapid.OneOf(rapid.Just([]byte(nil)), rapid.SliceOfN(rapid.Byte(), 0, 600), rapid.Map(rapid.IntRange(1, 5000), func(n int) []byte {
		return bytes.Repeat([]byte{'x'}, n)
	}))
	at := rapid.OneOf(rapid.Just(time.Time{}), rapid.Map(rapid.Int64Range(1, maxMillis), instant))
	return rapid.Custom(func(t *rapid.T) Record {
		r := Record{
			State:    rapid.SampledFrom(allStates[:]).Draw(t, "state"),
			Task:     text.Draw(t, "task"),
			Attempt:  int(rapid.Uint32Range(0, 1<<31-1).Draw(t, "attempt")),
			Fence:    rapid.Uint64().Draw(t, "fence"),
			Enqueued: at.Draw(t, "enqueued"), Started: at.Draw(t, "started"), Finished: at.Draw(t, "finished"),
			Value: value.Draw(t, "value"), Progress: value.Draw(t, "progress"),
		}
		if rapid.Bool().Draw(t, "failed") {
			r.Cause = &Cause{Type: text.Draw(t, "type"), Message: text.Draw(t, "message")}
			for range rapid.IntRange(0, 3).Draw(t, "chain") {
				r.Cause.Chain = append(r.Cause.Chain, text.Draw(t, "link"))
			}
		}
		return r
	})
}

func TestRecordsComeBackAsTheyWere(t *testing.T) {
	codec := newCodec(t)
	rapid.Check(t, func(t *rapid.T) {
		want := records().Draw(t, "record")
		got, err := decodeRecord(appendRecord(nil, want, codec), codec)
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
}

func TestATruncatedRecordIsNeverTakenForAnother(t *testing.T) {
	codec := newCodec(t)
	whole := appendRecord(nil, golden["retry"], codec)
	for n := range whole {
		got, err := decodeRecord(whole[:n], codec)
		if err == nil { // cut between two fields
			require.NotEqual(t, golden["retry"], got)
			require.Equal(t, whole[:n:n], appendRecord(nil, got, codec)[:n])
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	codec := newCodec(f)
	for _, r := range golden {
		f.Add(appendRecord(nil, r, codec))
	}
	f.Add([]byte("plain text"))
	f.Add(binary.BigEndian.AppendUint64([]byte{0xC1, 0x18, 16, 0}, 1))
	f.Fuzz(func(t *testing.T, stored []byte) {
		r, err := decodeRecord(stored, codec)
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		again, err := decodeRecord(appendRecord(nil, r, codec), codec)
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}

func BenchmarkRecord(b *testing.B) {
	codec := newCodec(b)
	r := golden["success"]
	stored := appendRecord(nil, r, codec)
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			appendRecord(nil, r, codec)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decodeRecord(stored, codec); err != nil {
				b.Fatal(err)
			}
		}
	})
}
