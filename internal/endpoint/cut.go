package endpoint

import (
	"errors"
	"strings"
)

// A part is one URL cut at its separators; nothing is decoded yet.
type part struct {
	scheme   string // in lower case; "" if bare
	hasUser  bool   // an @ ended the userinfo
	userinfo string
	hosts    string
	path     string // with its slash
	query    string
	fragment string
}

// The problems of cut quote nothing: where the separators are unclear, so is
// which piece is the password.
var (
	errSpace  = errors.New("it holds a space or a control character: remove it, or percent-encode it (a space is %20)")
	errScheme = errors.New("what stands before :// is no scheme: begin with redis:// or one of its kind, without quotes around the URL")
	errAt     = errors.New("an @ stands behind the host part: in a password write / as %2F, ? as %3F and # as %23, and anywhere else @ as %40")
)

// cut cuts raw into its parts. The userinfo ends at the last @, so that nothing
// in front of an @ is taken for anything but credentials.
func cut(raw string) (part, error) {
	var p part
	rest := raw
	if before, after, ok := strings.Cut(raw, "://"); ok {
		p.scheme, rest = strings.ToLower(before), after
		if !isScheme(p.scheme) {
			return p, errScheme
		}
	}
	if strings.ContainsFunc(rest, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return p, errSpace
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		p.hasUser, p.userinfo, rest = true, rest[:at], rest[at+1:]
		if strings.ContainsAny(p.userinfo, "/?#") {
			return p, errAt
		}
	}
	rest, p.fragment, _ = strings.Cut(rest, "#")
	rest, p.query, _ = strings.Cut(rest, "?")
	p.hosts = rest
	if slash := strings.IndexByte(rest, '/'); slash >= 0 {
		p.hosts, p.path = rest[:slash], rest[slash:]
	}
	return p, nil
}

// split cuts raw at each semicolon and drops empty parts at the end.
func split(raw string) []string {
	parts := strings.Split(strings.TrimRight(strings.TrimSpace(raw), "; "), ";")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}

// segments returns what stands between the slashes of path, without the empty
// ones.
func segments(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}
