package endpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// A password that nothing else resembles, with separators, as itself and as it
// stands in a URL.
var (
	password = "Zq7/Kx:9@Wv%2"
	encoded  = escape(password, "")
)

// hasSecret tells whether text shows the password in one form or the other.
func hasSecret(text string) bool {
	text = strings.ToUpper(text)
	return strings.Contains(text, strings.ToUpper(password)) || strings.Contains(text, strings.ToUpper(encoded))
}

// printed returns e printed in every way.
func printed(t require.TestingT, e Endpoint) map[string]string {
	ways := map[string]string{"String": e.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T"} {
		ways[verb] = fmt.Sprintf(verb, e)
		ways[verb+" of the pointer"] = fmt.Sprintf(verb, &e)
		ways[verb+" in a struct"] = fmt.Sprintf(verb, struct{ Endpoint Endpoint }{e})
		ways[verb+" embedded"] = fmt.Sprintf(verb, struct{ Endpoint }{e})
		ways[verb+" in a slice"] = fmt.Sprintf(verb, []Endpoint{e})
	}
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"slog text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"slog JSON": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var b bytes.Buffer
		slog.New(handler(&b)).Info("open", "endpoint", e, "pointer", &e, "struct", struct{ Endpoint Endpoint }{e}, "list", []Endpoint{e})
		ways[name] = b.String()
	}
	text, err := json.Marshal(map[string]any{"endpoint": e, "pointer": &e, "struct": struct{ E Endpoint }{e}})
	require.NoError(t, err)
	ways["JSON"] = string(text)
	return ways
}

func TestNoWayOfPrintingShowsAPassword(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := endpoints().Draw(t, "endpoint")
		e.Password = password
		if e.Topology == Sentinel {
			e.SentinelPassword = password
		}
		require.True(t, hasSecret(e.format(itself)))
		for way, text := range printed(t, e) {
			require.False(t, hasSecret(text), "%s: %s", way, text)
		}
		if e.Topology == Sentinel {
			e.MasterName = ""
			require.False(t, hasSecret(e.Validate().Error()))
		}
	})
}

func TestPrintingShowsTheURL(t *testing.T) {
	e := as(one("h:1", 2), "u", password)
	url := "redis://u:xxxxx@h:1/2"
	require.Equal(t, url, fmt.Sprintf("%v", e))
	require.Equal(t, url, fmt.Sprintf("%#v", e))
	require.Equal(t, `"`+url+`"`, fmt.Sprintf("%q", e))
	require.Equal(t, `{Endpoint:`+url+`}`, fmt.Sprintf("%+v", struct{ Endpoint Endpoint }{e}))
	ways := printed(t, e)
	for _, way := range []string{"slog text", "slog JSON", "JSON"} {
		require.Contains(t, ways[way], url)
	}
}

func TestRedactHidesThePasswordsOfEveryURL(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := endpoints().Draw(t, "endpoint")
		e.Password = password
		if e.Topology == Sentinel {
			e.SentinelPassword = password
		}
		url := e.format(itself)
		require.False(t, hasSecret(Redact(url)), Redact(url))

		_, err := Parse(url + "&pool_size=x&nope=" + encoded) // with no ? in front, it is the path that is wrong
		require.Error(t, err)
		require.False(t, hasSecret(err.Error()), err.Error())
	})
}

// seeds are URLs good and bad.
func seeds() []string {
	var all []string
	for _, c := range goodForms {
		all = append(all, c.raw)
	}
	for _, c := range goodParams {
		all = append(all, c.query)
	}
	for _, c := range badParams {
		all = append(all, c.form+"?"+c.name+"="+c.value)
	}
	return append(all, "amqp://u:p@h", "redis://a,b", "redis://u:p@h@i", "sentinel://a;b", ";", "//", "@", "[", "redis://[", "?", "#", "%", "redis://%00:%ff@h")
}

func FuzzParse(f *testing.F) {
	for _, raw := range seeds() {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		e, err := Parse(raw)
		if err != nil {
			require.ErrorAs(t, err, new(*Error))
			require.Zero(t, e)
			require.NotContains(t, err.Error(), "%!")
			return
		}
		again, err := Parse(e.format(itself))
		require.NoError(t, err)
		require.Equal(t, e, again)
		require.Equal(t, e.String(), again.String())

		if hasSecret(raw) {
			return
		}
		if e.Password != "" {
			e.Password = password
		}
		if e.SentinelPassword != "" {
			e.SentinelPassword = password
		}
		for way, text := range printed(t, e) {
			require.False(t, hasSecret(text), "%s: %s", way, text)
		}
	})
}

func FuzzParseQuorum(f *testing.F) {
	for _, raw := range seeds() {
		f.Add(raw)
		f.Add(raw + ";redis://b")
	}
	f.Fuzz(func(t *testing.T, raw string) {
		endpoints, err := ParseQuorum(raw)
		if err != nil {
			require.ErrorAs(t, err, new(*Error))
			require.Nil(t, endpoints)
			return
		}
		require.NotEmpty(t, endpoints)
		texts := make([]string, len(endpoints))
		for i, e := range endpoints {
			texts[i] = e.format(itself)
		}
		again, err := ParseQuorum(strings.Join(texts, ";"))
		require.NoError(t, err)
		require.Equal(t, endpoints, again)
	})
}

// FuzzSecret puts a password where passwords stand, into text of any kind, and
// looks for it in all that may be printed.
func FuzzSecret(f *testing.F) {
	for _, raw := range seeds() {
		f.Add(raw, "h")
		f.Add("redis://u", raw)
		before, after, _ := strings.Cut(raw, "://")
		f.Add(before+"://u", after)
		before, after, _ = strings.Cut(raw, "?")
		f.Add(before+"?sentinel_", "&"+after)
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		if hasSecret(before + after) {
			return
		}
		for _, secret := range []string{encoded, "Zq7Kx9Wv"} {
			shows := func(text string) bool { return strings.Contains(text, secret) || hasSecret(text) }
			userinfo := before + ":" + secret + "@" + after
			parameter := before + "password=" + secret + after
			for _, raw := range []string{userinfo, parameter} {
				require.False(t, shows(Redact(raw)), "%q: %s", raw, Redact(raw))
				scheme, _ := ForeignScheme(raw)
				require.False(t, shows(scheme), "%q: %s", raw, scheme)
				if _, err := Parse(raw); err != nil {
					require.False(t, shows(err.Error()), "%q: %s", raw, err)
				}
				if _, err := ParseQuorum(raw); err != nil {
					require.False(t, shows(err.Error()), "%q: %s", raw, err)
				}
			}
			if e, err := Parse(userinfo); err == nil {
				require.False(t, shows(e.String()), "%q: %s", userinfo, e)
			}
		}
	})
}
