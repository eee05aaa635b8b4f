package cache

import (
	"bytes"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func fill16(b byte) (t token) {
	for i := range t {
		t[i] = b + byte(i)
	}
	return t
}

var fullHeader = header{
	softExpiry: 1_700_000_000_123, refreshUntil: 1_700_000_000_456, refreshToken: fill16(0xA0),
	loadTime: 1234, generation: 1_700_000_000_000_001, stored: 1_700_000_000_789,
	tags: []tag{{hash: 0x0102030405060708, generation: 0x1112131415161718}, {hash: 1<<64 - 1, generation: 1}},
}

// deflatedFrame is of the JSON string that repeats "redisha " 64 times. Python's
// zlib made it.
const deflatedFrame = "\xc1\x10\x01\x00\x00\x00\x02\x02\x53\x2a\x4a\x4d\xc9\x2c\xce\x48\x54\x18\xa5\x47\x26\xad\x04\x00"

// goldenEntries are the entries whose bytes testdata/golden.txt holds.
var goldenEntries = []struct {
	name  string
	entry entry
}{
	{"value, empty header and body", entry{kind: kindValue, body: []byte{}}},
	{"value", entry{kind: kindValue, header: header{loadTime: 7, stored: 1_700_000_000_789}, body: []byte(`{"ID":42,"Name":"Zoë"}`)}},
	{"value, all fields and two tags", entry{kind: kindValue, header: fullHeader, body: []byte("body")}},
	{"value of a plain view, expired", entry{kind: kindValue, header: header{flags: flagPlain, softExpiry: 1}, body: []byte("plain")}},
	{"value, body a stored frame", entry{kind: kindValue, body: []byte("\xc1\x10\x00\x00\x00\x00\x00\x01\xc1")}},
	{"value, body a deflated frame", entry{kind: kindValue, body: []byte(deflatedFrame)}},
	{"absence, empty header", entry{kind: kindAbsence}},
	{"absence, all fields and two tags", entry{kind: kindAbsence, header: fullHeader}},
	{"load lease", entry{kind: kindLease, lease: fill16(0)}},
	{"tombstone", entry{kind: kindTombstone}},
	{"error marker", entry{kind: kindError, body: []byte("connection refused")}},
	{"error marker without text", entry{kind: kindError, body: []byte{}}},
}

// readGolden returns the records of testdata/golden.txt by name.
func readGolden(t testing.TB) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile("testdata/golden.txt")
	require.NoError(t, err)
	golden := make(map[string][]byte)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, digits, ok := strings.Cut(strings.TrimSpace(line), ": ")
		require.True(t, ok, line)
		golden[name], err = hex.DecodeString(digits)
		require.NoError(t, err, name)
	}
	return golden
}

func TestGoldenEntriesDecodeAndEncodeToTheSameBytes(t *testing.T) {
	golden := readGolden(t)
	require.Len(t, golden, len(goldenEntries))
	for _, g := range goldenEntries {
		t.Run(g.name, func(t *testing.T) {
			got, err := parseEntry(golden[g.name])
			require.NoError(t, err)
			require.Equal(t, g.entry, got)
			require.Equal(t, golden[g.name], appendEntry(nil, got))
		})
	}
}

// Scripts patch the header in place, and other versions read it: the offsets
// of the table in entry.go are written out here once more.
func TestHeaderHasFixedOffsets(t *testing.T) {
	b := appendHeader(nil, kindValue, fullHeader)
	require.Len(t, b, 56+2*16)
	require.Equal(t, []byte{0xC1, 0x11, 0, 2}, b[:4])
	require.Equal(t, "0000018bcfe5687b", hex.EncodeToString(b[4:12]))
	require.Equal(t, "0000018bcfe569c8", hex.EncodeToString(b[12:20]))
	require.Equal(t, fullHeader.refreshToken[:], b[20:36])
	require.Equal(t, []byte{0, 0, 4, 0xD2}, b[36:40])
	require.Equal(t, "00060a24181e4001", hex.EncodeToString(b[40:48]))
	require.Equal(t, "0000018bcfe56b15", hex.EncodeToString(b[48:56]))
	require.Equal(t, "01020304050607081112131415161718", hex.EncodeToString(b[56:72]))
	require.Equal(t, "ffffffffffffffff0000000000000001", hex.EncodeToString(b[72:]))
}

func drawEntry(t *rapid.T) entry {
	e := entry{kind: rapid.SampledFrom([]byte{kindValue, kindAbsence, kindLease, kindTombstone, kindError}).Draw(t, "kind")}
	drawToken := rapid.Custom(func(t *rapid.T) token {
		return token(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "bytes"))
	})
	switch e.kind {
	case kindValue, kindAbsence:
		e.header = header{
			softExpiry: rapid.Uint64().Draw(t, "soft"), refreshUntil: rapid.Uint64().Draw(t, "until"),
			refreshToken: drawToken.Draw(t, "refresh"), loadTime: rapid.Uint32().Draw(t, "load"),
			generation: rapid.Uint64().Draw(t, "generation"), stored: rapid.Uint64().Draw(t, "stored"),
		}
		for range rapid.IntRange(0, 255).Draw(t, "tags") {
			e.header.tags = append(e.header.tags, tag{rapid.Uint64().Draw(t, "hash"), rapid.Uint64().Draw(t, "of")})
		}
		if e.kind == kindValue {
			e.body = rapid.SliceOf(rapid.Byte()).Draw(t, "body")
		}
	case kindLease:
		e.lease = drawToken.Draw(t, "lease")
	case kindError:
		e.body = rapid.SliceOfN(rapid.Byte(), 0, maxErrorText).Draw(t, "text")
	}
	return e
}

func TestAnyEntrySurvivesTheFormat(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEntry(t)
		b := appendEntry([]byte("before"), e)
		require.Equal(t, "before", string(b[:6]))
		got, err := parseEntry(b[6:])
		require.NoError(t, err)
		require.Equal(t, e, got)
	})
}

// A value's body and an error marker's text have no length of their own: what
// else is cut off or has something behind it is refused.
func TestEveryTruncationOfAnEntryIsRefused(t *testing.T) {
	for _, g := range goldenEntries {
		b := appendEntry(nil, g.entry)
		fixed := len(b) - len(g.entry.body)
		for n := range fixed {
			_, err := parseEntry(b[:n])
			require.Error(t, err, "%s cut to %d bytes", g.name, n)
		}
		if g.entry.body == nil {
			_, err := parseEntry(append(b, 0))
			require.ErrorIs(t, err, errTrailing, g.name)
		}
	}
}

func TestWhatNoVersionWroteIsRefused(t *testing.T) {
	value := appendEntry(nil, entry{kind: kindValue, body: []byte("x")})
	flagged := bytes.Clone(value)
	flagged[2] = 2
	tagged := bytes.Clone(value)
	tagged[3] = 1
	for _, test := range []struct {
		name, want string
		stored     []byte
	}{
		{"no bytes", "no header", nil},
		{"plain text", "no header", []byte("text")},
		{"a frame", "no header", []byte("\xc1\x10\x00\x00\x00\x00\x00\x01\xc1")},
		{"a kind of this version that does not exist", "c1 16, which this version does not know", []byte("\xc1\x16")},
		{"another version", "c1 21, which this version does not know", append([]byte("\xc1\x21"), value[2:]...)},
		{"an unknown flag", "flags are 0x02", flagged},
		{"a tag that is not there", "cut off", tagged},
		{"a long error text", "has 257 bytes, want at most 256", append([]byte("\xc1\x15"), make([]byte, 257)...)},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseEntry(test.stored)
			require.ErrorContains(t, err, test.want)
		})
	}
}

func TestErrorTextIsCutBetweenTwoCharacters(t *testing.T) {
	long := strings.Repeat("a", maxErrorText-1) + "ü and more"
	e, err := parseEntry(appendEntry(nil, entry{kind: kindError, body: []byte(long)}))
	require.NoError(t, err)
	require.Equal(t, strings.Repeat("a", maxErrorText-1), string(e.body))
	garbage := bytes.Repeat([]byte{0x80}, maxErrorText+1)
	require.Empty(t, cutText(garbage), "no character begins there")
}

func FuzzParseEntry(f *testing.F) {
	for _, stored := range readGolden(f) {
		f.Add(stored)
	}
	f.Add([]byte("plain"))
	f.Fuzz(func(t *testing.T, stored []byte) {
		before := bytes.Clone(stored)
		e, err := parseEntry(stored)
		require.Equal(t, before, stored)
		if err != nil {
			require.Equal(t, entry{}, e)
			return
		}
		require.Equal(t, before, appendEntry(nil, e))
	})
}
