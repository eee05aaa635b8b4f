package lock

import (
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files anew")

var goldenLeases = map[string]struct {
	token  string
	holder holder
}{
	"lease":   {"1cnVuIGFsbCB0aGUgd2F5IQ", holder{Name: "billing", Host: "web-1", PID: 4711, Since: 1795159093017}},
	"escapes": {"1__________________-_8w", holder{Name: `a "b" <c>` + "\n", Host: "ß", PID: 1, Since: 0}},
}

// What is stored is final: a holder of the next version must understand a lease
// of this one.
func TestStoredLeasesAreThoseOfTheGoldenFiles(t *testing.T) {
	for name, want := range goldenLeases {
		path := "testdata/" + name + ".golden"
		value := want.token + want.holder.metadata(time.UnixMilli(want.holder.Since))
		if *update {
			require.NoError(t, os.WriteFile(path, []byte(value), 0o644))
		}
		stored, err := os.ReadFile(path)
		require.NoError(t, err)
		token, h, err := parseValue(string(stored))
		require.NoError(t, err, name)
		require.Equal(t, want.token, token)
		require.Equal(t, want.holder, h)
		require.Equal(t, string(stored), value, name)
	}
}

func TestAHolderMayGetMoreFields(t *testing.T) {
	_, h, err := parseValue("1cnVuIGFsbCB0aGUgd2F5IQ" + `{"holder":"a","host":"b","pid":1,"since":2,"zone":"c"}`)
	require.NoError(t, err)
	require.Equal(t, holder{Name: "a", Host: "b", PID: 1, Since: 2}, h)
}

func TestTokensAreOfOneLengthAndNeverTheSame(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		token := newToken()
		require.Len(t, token, tokenLen)
		require.False(t, seen[token])
		seen[token] = true
		parsed, _, err := parseValue(token + "{}")
		require.NoError(t, err)
		require.Equal(t, token, parsed)
	}
}

func TestWhatIsNoLeaseIsNotTakenForOne(t *testing.T) {
	for value, want := range map[string]string{
		"":                               "a value of 0 bytes is no lease: want 23 at least",
		"locked":                         "a value of 6 bytes is no lease: want 23 at least",
		"2cnVuIGFsbCB0aGUgd2F5IQ":        `a lease of version '2', want '1'`,
		"1cnVuIGFsbCB0aGUgd2F5IQ":        "holder: unexpected end of JSON input",
		"1cnVuIGFsbCB0aGUgd2F5I*":        "no token at the beginning",
		"1cnVuIGFsbCB0aGUgd2F5IR":        "no token at the beginning", // bits beyond the 16 bytes
		"1cnVuIGFsbCB0aGUgd2F5IQ{":       "holder: unexpected end of JSON input",
		"1cnVuIGFsbCB0aGUgd2F5IQ[1,2,3]": "holder: json: cannot unmarshal array into Go value of type lock.holder",
	} {
		_, _, err := parseValue(value)
		require.EqualError(t, err, want)
	}
}

func FuzzParseValue(f *testing.F) {
	for _, lease := range goldenLeases {
		f.Add(lease.token + lease.holder.metadata(time.UnixMilli(lease.holder.Since)))
		f.Add(lease.token)
	}
	f.Add(strings.Repeat("1", 22))
	f.Fuzz(func(t *testing.T, value string) {
		token, h, err := parseValue(value)
		if err != nil {
			return
		}
		require.True(t, strings.HasPrefix(value, token))
		require.Len(t, token, tokenLen)
		token2, h2, err := parseValue(token + h.metadata(time.UnixMilli(h.Since)))
		require.NoError(t, err)
		require.Equal(t, token, token2)
		require.Equal(t, h, h2)
	})
}

func TestALabelMakesTheSameMetadata(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := holder{Name: rapid.String().Draw(t, "name"), Host: rapid.String().Draw(t, "host"), PID: rapid.Int().Draw(t, "pid")}
		now := time.UnixMilli(rapid.Int64Range(-1<<53, 1<<53).Draw(t, "now"))
		require.Equal(t, h.metadata(now), h.label().at(now.UnixMilli()))
	})
}
