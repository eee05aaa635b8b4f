package compress

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A golden is a record of testdata/golden.txt, whose head explains the fields.
type golden struct {
	name, err     string
	ours          bool
	plain, stored []byte
}

func readGolden(t testing.TB) []golden {
	t.Helper()
	text, err := os.ReadFile("testdata/golden.txt")
	require.NoError(t, err)
	var all []golden
	for record := range strings.SplitSeq(string(text), "\n\n") {
		var g golden
		for line := range strings.Lines(record) {
			field, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			value = strings.TrimSpace(value)
			switch {
			case strings.HasPrefix(field, "#"):
			case field == "name":
				g.name = value
			case field == "writer":
				g.ours = value == "this package"
			case field == "error":
				g.err = value
			case field == "plain":
				g.plain, err = hex.DecodeString(value)
				require.NoError(t, err, g.name)
			case field == "stored":
				g.stored, err = hex.DecodeString(value)
				require.NoError(t, err, g.name)
			default:
				require.Fail(t, "unknown field", line)
			}
		}
		if g.name != "" {
			all = append(all, g)
		}
	}
	return all
}

func TestGoldenBytesDecodeForEver(t *testing.T) {
	all := readGolden(t)
	require.Greater(t, len(all), 30)
	c := newCodec(t, Config{})
	for _, g := range all {
		t.Run(g.name, func(t *testing.T) {
			dst := []byte("dst")
			plain, err := c.Decode(g.stored)
			appended, appendErr := c.AppendDecode(dst, g.stored)
			switch g.err {
			case "":
				require.NoError(t, err)
				require.NoError(t, appendErr)
				require.Equal(t, string(g.plain), string(plain))
				require.Equal(t, "dst"+string(g.plain), string(appended))
				return
			case "corrupt":
				require.ErrorIs(t, err, ErrCorrupt)
				require.NotErrorIs(t, err, ErrTooLarge)
			case "too large":
				require.ErrorIs(t, err, ErrTooLarge)
				require.NotErrorIs(t, err, ErrCorrupt)
			default:
				require.Fail(t, "unknown error", g.err)
			}
			require.EqualError(t, appendErr, err.Error())
			require.Nil(t, plain)
			require.Equal(t, dst, appended)
		})
	}
}

func TestEncodingGivesTheGoldenBytesAgain(t *testing.T) {
	c := newCodec(t, Config{})
	for _, g := range readGolden(t) {
		if !g.ours {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			got := c.AppendEncode(nil, g.plain)
			if !strings.HasPrefix(g.name, "deflate") {
				require.Equal(t, g.stored, got)
				return
			}
			require.Equal(t, g.stored[:headerSize], got[:headerSize])
			require.Equal(t, g.plain, stdInflate(t, got[headerSize:]))
			require.InDelta(t, len(g.stored), len(got), float64(len(g.stored))/20)
		})
	}
}
