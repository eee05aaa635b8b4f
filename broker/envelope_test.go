package broker

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// golden reads testdata/golden.txt: lines of a name, a colon and hex digits.
func golden(t testing.TB) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile("testdata/golden.txt")
	require.NoError(t, err)
	all := make(map[string][]byte)
	for line := range strings.Lines(string(text)) {
		name, digits, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		all[name], err = hex.DecodeString(digits)
		require.NoError(t, err, name)
	}
	return all
}

// samples are the envelopes of testdata/golden.txt.
var samples = map[string]*envelope{
	"envelope smallest": {priority: 1, attempt: 1, maxAttempts: 1, id: "a", task: "b"},
	"envelope common": {
		priority: 1, attempt: 1, maxAttempts: 25, enqueued: 1700000000123,
		id: "t39f5r31q1c0" + "123456789abcde", task: "mail.send", payload: []byte(`{"to":"ada@example.com"}`),
	},
	"envelope all fields": {
		deliveries: 4, priority: 2, attempt: 300, maxAttempts: 65535, enqueued: 1700000000123,
		id: "order:42:7", task: "pay", ttl: 60_000, timeout: 300, result: true, retention: 86_400_000,
		unique: "order:42", concurrency: 5, key: "customer:1",
		headers: []header{{"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, {"empty", ""}},
		payload: []byte{0xc1, 0x10, 0, 0, 0, 0, 0, 1, 0xc1},
	},
	"envelope result with default retention": {priority: 0, attempt: 2, maxAttempts: 3, enqueued: 1, id: "x", task: "y", result: true, payload: []byte("1")},
}

func TestGoldenEnvelopesStayReadableAndAreWrittenAlike(t *testing.T) {
	stored := golden(t)
	for name, want := range samples {
		got, err := decodeEnvelope(stored[name])
		require.NoError(t, err, name)
		if want.payload == nil {
			want.payload = []byte{}
		}
		require.Equal(t, want, got, name)
		require.Equal(t, stored[name], appendEnvelope(nil, got), name)
	}
}

func TestFieldsThatAreNotKnownAreSkippedOrLeftAlone(t *testing.T) {
	stored := golden(t)
	e, err := decodeEnvelope(stored["envelope with field 0x7f of a later version"])
	require.NoError(t, err)
	require.Equal(t, "payload", string(e.payload))

	_, err = decodeEnvelope(stored["envelope with field 0x80 of a later version"])
	require.ErrorIs(t, err, errLaterVersion)
	require.EqualError(t, err, "task of a later version: field 0x80")

	_, err = decodeEnvelope([]byte{0xc1, 0x29})
	require.EqualError(t, err, "task of a later version: version 2, want 1")
}

func TestMalformedEnvelopesAreRefusedWithTheReason(t *testing.T) {
	good := golden(t)["envelope common"]
	with := func(at int, b ...byte) []byte {
		bad := append([]byte{}, good...)
		copy(bad[at:], b)
		return bad
	}
	fields := func(b ...byte) []byte {
		e := appendEnvelope(nil, samples["envelope smallest"])
		return append(e[:len(e)-1], b...)
	}
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"empty":                {nil, "it begins with , want c1 19"},
		"another kind":         {[]byte{0xc1, 0x18}, "it begins with c1 18, want c1 19"},
		"text":                 {[]byte("hello"), "it begins with 68 65, want c1 19"},
		"short head":           {good[:13], "13 bytes, want a header of 14"},
		"priority":             {with(3, 3), "priority is 3, want 0 to 2"},
		"attempt 0":            {with(4, 0, 0), "attempt 0 of 25, want both from 1"},
		"no attempts":          {with(6, 0, 0), "attempt 1 of 0, want both from 1"},
		"year 10000":           {with(8, 0xff, 0xff), "published at"},
		"no ID":                {with(14, 0), "the ID is empty or cut off"},
		"ID cut off":           {good[:30], "the ID is empty or cut off"},
		"name cut off":         {good[:45], "the task's name is empty or cut off"},
		"no fields":            {good[:51], "no payload: was it truncated?"},
		"field cut off":        {fields(tagUnique, 5, 'a'), "field 4 is longer than the task"},
		"length cut off":       {fields(tagUnique, 0x80), "field 4 is longer than the task"},
		"fields out of order":  {fields(tagTimeout, 1, 1, tagTTL, 1, 1), "field 1 comes after field 2"},
		"field twice":          {fields(tagTTL, 1, 1, tagTTL, 1, 1), "field 1 comes after field 1"},
		"zero TTL":             {fields(tagTTL, 1, 0, 0), "field 1 is 00, want a number from 1"},
		"long TTL":             {fields(tagTTL, 2, 1, 1, 0), "field 1 is 01 01, want a number from 1"},
		"huge timeout":         {fields(tagTimeout, 9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0), "field 2 is"},
		"empty unique key":     {fields(tagUnique, 0, 0), "field 4 is empty"},
		"no concurrency limit": {fields(tagConcurrency, 2, 0, 'k', 0), "field 5 has no limit"},
		"header without name":  {fields(tagHeader, 2, 0, 'v', 0), "field 6 has no name"},
		"header name cut off":  {fields(tagHeader, 2, 9, 'v', 0), "field 6 has no name"},
	} {
		_, err := decodeEnvelope(c.b)
		require.ErrorIs(t, err, errCorrupt, name)
		require.ErrorContains(t, err, c.want, name)
	}
}

func TestAttemptAndDeliveriesChangeInPlace(t *testing.T) {
	for name, sample := range samples {
		stored := appendEnvelope(nil, sample)
		before := append([]byte{}, stored...)
		e, err := decodeEnvelope(withAttempt(stored, 777, 9))
		require.NoError(t, err, name)
		want := *sample
		want.attempt, want.deliveries = 777, 9
		if want.payload == nil {
			want.payload = []byte{}
		}
		require.Equal(t, &want, e, name)
		require.Equal(t, before, stored, "the original is not touched")
	}
	require.Equal(t, uint16(2), nextAttempt(1))
	require.Equal(t, uint16(65535), nextAttempt(65535))
}

func drawEnvelope(t *rapid.T) *envelope {
	text := func(label string, least, most int) string {
		return string(rapid.SliceOfN(rapid.Byte(), least, most).Draw(t, label))
	}
	ms := rapid.Uint64Range(0, maxMillis)
	e := &envelope{
		deliveries: rapid.Byte().Draw(t, "deliveries"), priority: rapid.Uint8Range(0, 2).Draw(t, "priority"),
		attempt: rapid.Uint16Min(1).Draw(t, "attempt"), maxAttempts: rapid.Uint16Min(1).Draw(t, "max"),
		enqueued: int64(ms.Draw(t, "enqueued")), id: text("id", 1, 255), task: text("task", 1, 255),
		ttl: ms.Draw(t, "ttl"), timeout: ms.Draw(t, "timeout"), result: rapid.Bool().Draw(t, "result"),
		unique: text("unique", 0, 200), concurrency: rapid.Uint64().Draw(t, "limit"),
		payload: rapid.SliceOf(rapid.Byte()).Draw(t, "payload"),
	}
	if e.result {
		e.retention = ms.Draw(t, "retention")
	}
	if e.concurrency > 0 {
		e.key = text("key", 0, 200)
	}
	for range rapid.IntRange(0, 4).Draw(t, "headers") {
		e.headers = append(e.headers, header{text("name", 1, 255), text("value", 0, 300)})
	}
	return e
}

func TestAnyEnvelopeIsReadAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEnvelope(t)
		stored := appendEnvelope([]byte("prefix"), e)
		require.Equal(t, "prefix", string(stored[:6]))
		back, err := decodeEnvelope(stored[6:])
		require.NoError(t, err)
		require.Equal(t, e, back)
	})
}

func FuzzDecodeEnvelope(f *testing.F) {
	for _, b := range golden(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEnvelope(b)
		if err != nil {
			if e != nil {
				require.LessOrEqual(t, len(e.id), 255)
			}
			require.True(t, strings.HasPrefix(err.Error(), "corrupt task: ") || strings.HasPrefix(err.Error(), "task of a later version: "), err.Error())
			return
		}
		again, err := decodeEnvelope(appendEnvelope(nil, e))
		require.NoError(t, err)
		require.Equal(t, e, again)
	})
}

func FuzzDecodeDeadLetter(f *testing.F) {
	for _, b := range golden(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		reason, message, envelope, err := decodeDeadLetter(b)
		if err != nil {
			require.ErrorIs(t, err, errCorrupt)
			return
		}
		if len(message) <= maxErrorBytes {
			require.Equal(t, b, appendDeadLetter(nil, reason, message, envelope))
		}
	})
}

func TestGoldenDeadLettersStayReadableAndAreWrittenAlike(t *testing.T) {
	stored := golden(t)
	for name, want := range map[string]struct {
		reason   Reason
		message  string
		envelope []byte
	}{
		"dead letter exhausted":   {Exhausted, "connection refused", stored["envelope common"]},
		"dead letter undecodable": {Undecodable, "", []byte("what is this?")},
	} {
		reason, message, envelope, err := decodeDeadLetter(stored[name])
		require.NoError(t, err, name)
		require.Equal(t, want.reason, reason, name)
		require.Equal(t, want.message, message, name)
		require.Equal(t, want.envelope, envelope, name)
		require.Equal(t, stored[name], appendDeadLetter(nil, reason, message, envelope), name)
	}
}

func TestMalformedDeadLettersAreRefused(t *testing.T) {
	for want, b := range map[string][]byte{
		"it begins with , want c1 1a":            nil,
		"it begins with c1 19, want c1 1a":       {0xc1, 0x19, 1, 0, 0, 0},
		"flags are 0x01, want 0":                 {0xc1, 0x1a, 1, 1, 0, 0},
		"the error has 2 bytes, 1 are there":     {0xc1, 0x1a, 1, 0, 0, 2, 'x'},
		"it begins with c1 1a, want c1 1a: does": {0xc1, 0x1a, 1, 0, 0},
	} {
		_, _, _, err := decodeDeadLetter(b)
		require.ErrorIs(t, err, errCorrupt)
		require.ErrorContains(t, err, want)
	}
}

func TestLongErrorsOfDeadLettersAreCutBetweenRunes(t *testing.T) {
	_, message, envelope, err := decodeDeadLetter(appendDeadLetter(nil, Rejected, strings.Repeat("ä", 5000), []byte("e")))
	require.NoError(t, err)
	require.LessOrEqual(t, len(message), maxErrorBytes)
	require.Greater(t, len(message), maxErrorBytes-8)
	require.Equal(t, strings.Repeat("ä", (len(message)-3)/2)+"…", message)
	require.Equal(t, "e", string(envelope))
}

func TestReasonsHaveNames(t *testing.T) {
	require.Equal(t, "rejected exhausted poison undecodable",
		strings.Join([]string{Rejected.String(), Exhausted.String(), Poison.String(), Undecodable.String()}, " "))
	require.Equal(t, "reason(0)", Reason(0).String())
	require.Equal(t, "reason(99)", Reason(99).String())
}

func BenchmarkAppendEnvelope(b *testing.B) {
	e := *samples["envelope common"]
	e.payload = make([]byte, 100)
	buf := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		buf = appendEnvelope(buf[:0], &e)
	}
}

func BenchmarkDecodeEnvelope(b *testing.B) {
	e := *samples["envelope common"]
	e.payload = make([]byte, 100)
	stored := appendEnvelope(nil, &e)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeEnvelope(stored); err != nil {
			b.Fatal(err)
		}
	}
}
