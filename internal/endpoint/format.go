package endpoint

import (
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
)

// hidden stands where a secret was.
const hidden = "xxxxx"

// String returns the URL of e in one canonical form, with xxxxx for secrets.
// [Parse] of it gives e, but for the secrets. That of the zero Endpoint is
// empty.
func (e Endpoint) String() string { return e.format(func(string) string { return hidden }) }

// Format writes [Endpoint.String] whatever the verb is, quoted for %q.
func (e Endpoint) Format(s fmt.State, verb rune) {
	text := e.String()
	if verb == 'q' {
		text = strconv.Quote(text)
	}
	_, _ = io.WriteString(s, text)
}

// LogValue returns [Endpoint.String] for log/slog.
func (e Endpoint) LogValue() slog.Value { return slog.StringValue(e.String()) }

// MarshalText returns [Endpoint.String] for encoding/json and its like.
func (e Endpoint) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// format writes the URL of e; show turns a secret into what is written for it.
func (e Endpoint) format(show func(secret string) string) string {
	if e.Topology == "" {
		return ""
	}
	d := newDraft(e)
	var b strings.Builder
	b.WriteString(d.scheme.name + "://")
	if e.Username != "" || e.Password != "" {
		b.WriteString(escape(e.Username, "") + ":")
		if e.Password != "" {
			b.WriteString(escape(show(e.Password), ""))
		}
		b.WriteString("@")
	}
	if e.Network == unix {
		b.WriteString(escape(strings.Join(e.Addrs, ""), "/"))
	} else {
		b.WriteString(strings.ReplaceAll(strings.Join(e.Addrs, ","), "%", "%25")) // an IPv6 zone
		b.WriteString(d.path())
	}
	separator := "?"
	for _, p := range params {
		if p.get == nil || !p.appliesTo(d.scheme) {
			continue
		}
		v := p.get(d)
		if v == "" {
			continue
		}
		if p.secret {
			v = show(v)
		}
		b.WriteString(separator + p.name + "=" + escape(v, "/:[]"))
		separator = "&"
	}
	return b.String()
}

// path writes master name and database.
func (d *draft) path() string {
	switch {
	case d.Topology == Sentinel && d.MasterName != "": // with the database, since a number alone is one
		return "/" + escape(d.MasterName, "") + "/" + strconv.Itoa(d.DB)
	case d.DB != 0:
		return "/" + strconv.Itoa(d.DB)
	}
	return ""
}

// escape percent-encodes s but for unreserved characters (RFC 3986, section
// 2.3) and those in keep.
func escape(s, keep string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if isAlphanumeric(c) || strings.IndexByte("-._~", c) >= 0 || strings.IndexByte(keep, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func isAlphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
