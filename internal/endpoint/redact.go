package endpoint

import (
	"net/url"
	"strconv"
	"strings"
)

// maxShown is the length in bytes of a text of which Redact shows anything.
const maxShown = 4096

// Redact returns raw, which was meant as a URL, fit for an error or a log:
// passwords and whatever might be one are replaced by xxxxx. It takes any text,
// other systems' URLs included, and in doubt hides more than it must: a piece
// that does not look as it should, the value of a parameter it does not know,
// or everything.
func Redact(raw string) string {
	if len(raw) > maxShown {
		return hidden
	}
	parts := split(raw)
	for i, raw := range parts {
		if i > 0 && !strings.Contains(raw, "://") {
			return hidden // that semicolon may belong to a password
		}
		parts[i] = redactPart(raw)
	}
	return strings.Join(parts, ";")
}

func redactPart(raw string) string {
	if raw == "" {
		return ""
	}
	p, err := cut(raw)
	prefix := ""
	if isScheme(p.scheme) {
		prefix = p.scheme + "://"
	}
	if err != nil {
		return prefix + hidden
	}
	var b strings.Builder
	b.WriteString(prefix)
	if p.hasUser {
		if user, _, ok := strings.Cut(p.userinfo, ":"); ok && isPlain(user, "%") {
			b.WriteString(user + ":")
		}
		b.WriteString(hidden + "@")
	}
	b.WriteString(redactList(p.hosts, ",", func(host string) string {
		if _, err := parseAddr(host, "0"); host != "" && err != nil {
			return hidden
		}
		return host
	}))
	b.WriteString(redactList(p.path, "/", redactName))
	if p.query != "" {
		b.WriteString("?" + redactList(p.query, "&", redactParam))
	}
	if p.fragment != "" {
		b.WriteString("#" + redactName(p.fragment))
	}
	return b.String()
}

func redactList(list, separator string, redact func(string) string) string {
	pieces := strings.Split(list, separator)
	for i := range pieces {
		pieces[i] = redact(pieces[i])
	}
	return strings.Join(pieces, separator)
}

func redactName(s string) string {
	if decoded, err := url.PathUnescape(s); err != nil || !isPlain(decoded, "") {
		return hidden
	}
	return s
}

func redactParam(s string) string {
	name, value, ok := strings.Cut(s, "=")
	if !isPlain(name, "") {
		return hidden
	}
	if !ok {
		return name
	}
	p, known := paramNamed(name)
	decoded, err := url.PathUnescape(value)
	if !known || err != nil || !p.shows(decoded) {
		return name + "=" + hidden
	}
	return s
}

// shows tells whether v, which was given for p, may be shown: it is neither a
// secret nor a piece of text in which one may stand.
func (p param) shows(v string) bool {
	return !p.secret && !p.private && isPlain(v, ":/[]{} ") && !strings.Contains(v, "-----") // a key
}

// quote returns a value for an error: in quotes, or hidden where it looks like
// more than one word.
func quote(v string) string {
	if !isPlain(v, "/") {
		return hidden
	}
	return strconv.Quote(v)
}

// isPlain tells whether s is a short word of unreserved characters, + and those
// in more, so that it cannot hold "user:password@" or "password=...".
func isPlain(s, more string) bool {
	if len(s) > 128 {
		return false
	}
	for i := range len(s) {
		if !isAlphanumeric(s[i]) && strings.IndexByte("-._~+", s[i]) < 0 && strings.IndexByte(more, s[i]) < 0 {
			return false
		}
	}
	return true
}
