package endpoint

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// A draft is an Endpoint in the making, or about to be written.
type draft struct {
	Endpoint
	scheme      scheme
	tls         TLS               // what is said of TLS, wherever it is on
	sentinelTLS *bool             // nil: as the scheme says
	given       map[string]string // meaning of a parameter → what gave it
	problems    []error
}

func newDraft(e Endpoint) *draft {
	d := &draft{Endpoint: e, scheme: schemeOf(e)}
	if e.TLS != nil {
		d.tls = *e.TLS
	} else if e.SentinelTLS != nil {
		d.tls = *e.SentinelTLS
	}
	return d
}

func (d *draft) problem(format string, args ...any) {
	d.problems = append(d.problems, fmt.Errorf(format, args...))
}

// claim notes that source gives what meaning stands for. It reports a second
// one and returns false.
func (d *draft) claim(meaning, source string) bool {
	other, taken := d.given[meaning]
	switch {
	case !taken && d.given == nil:
		d.given = map[string]string{meaning: source}
	case !taken:
		d.given[meaning] = source
	case other == source:
		d.problem("%s is given twice: keep one", source)
	default:
		d.problem("%s and %s both give the %s: keep one", other, source, meaning)
	}
	return !taken
}

func (d *draft) readUserinfo(p part) {
	if p.userinfo == "" || p.userinfo == ":" {
		return
	}
	user, password, ok := strings.Cut(p.userinfo, ":")
	decodedUser, userErr := url.PathUnescape(user)
	decodedPassword, passwordErr := url.PathUnescape(password)
	switch {
	case !ok:
		d.problem("what stands before the @ has no colon: write :password@ for a password alone, or user:password@")
	case userErr != nil || passwordErr != nil:
		d.problem("the user or the password has a %% that begins no percent-encoding: write %% as %%25")
	case password == "":
		d.problem("the user has an empty password: write user:password@, or leave out both")
	case d.Topology != Standalone && strings.Contains(p.userinfo, "@"):
		d.problem("more than one @: write the credentials once, before the first host, and @ in a password as %%40")
	default:
		d.Username, d.Password = decodedUser, decodedPassword
	}
}

func (d *draft) readSocket(p part) {
	path, err := url.PathUnescape(p.path)
	switch {
	case p.hosts != "":
		d.problem("a host in front of the socket's path: write three slashes, %s:///path", d.scheme.name)
	case strings.Trim(p.path, "/") == "":
		d.problem("no socket: write %s:///path/of/the/socket", d.scheme.name)
	case err != nil:
		d.problem("the path has a %% that begins no percent-encoding: write %% as %%25")
	case strings.ContainsRune(path, 0):
		d.problem("the path holds a zero byte (%%00): write the path of the socket")
	default:
		d.Addrs = []string{path}
	}
	if p.fragment != "" {
		d.problem("a fragment (#): write # in a path as %%23")
	}
}

func (d *draft) readHosts(parts []part) {
	for _, p := range parts {
		list := strings.TrimRight(p.hosts, ",")
		if list == "" && d.Topology != Standalone {
			d.problem("no host: write %s://host1:%s,host2:%s", d.scheme.name, d.scheme.port(), d.scheme.port())
			continue
		}
		for host := range strings.SplitSeq(list, ",") {
			d.readHost(host)
		}
	}
	switch {
	case d.Topology == Standalone && len(d.Addrs) > 1:
		d.problem("%s:// takes one host: for several use redis+replica:// (a fixed primary, then its replicas), redis+sentinel:// (Sentinels) or redis+cluster:// (nodes of a Cluster)", d.scheme.name)
	case d.Topology == Replicated && len(d.Addrs) == 1:
		d.problem("no replica: write %s://primary:6379,replica:6379, or for a single server redis://", d.scheme.name)
	}
}

func (d *draft) readHost(host string) {
	if d.Topology != Standalone && (host == "" || host[0] == ':') {
		d.problem("a host in the list is empty: write host:port between the commas")
		return
	}
	addr, err := parseAddr(host, d.scheme.port())
	if err != nil {
		d.problem("%w", err)
		return
	}
	if slices.ContainsFunc(d.Addrs, func(a string) bool { return strings.EqualFold(a, addr) }) {
		d.problem("the host %s is given twice: keep one", addr)
	}
	d.Addrs = append(d.Addrs, addr)
}

// readPath reads [/db], and of a Sentinel URL [/<master name>][/db] or
// [/db][#<master name>]; a number alone is the database.
func (d *draft) readPath(p part) {
	names := segments(p.path)
	if d.Topology == Sentinel {
		if p.fragment != "" {
			d.readMasterName(p.fragment, "the fragment")
		}
		if len(names) > 1 || len(names) == 1 && strings.Trim(names[0], "+-0123456789") != "" {
			d.readMasterName(names[0], "the path")
			names = names[1:]
		}
	} else if p.fragment != "" {
		d.problem("a fragment (#): only redis-sentinel:// takes one, as the master name; write # in a password as %%23")
	}
	switch {
	case len(names) > 1:
		d.problem("the path has too many parts: it takes %s", d.pathTakes())
	case len(names) == 1 && !whole(names[0], 0, &d.DB):
		d.problem("the path is %s: it takes %s", quote(names[0]), d.pathTakes())
	case len(names) == 1:
		d.claim("db", "the path")
	}
}

func (d *draft) pathTakes() string {
	if d.Topology == Sentinel {
		return "/<master name>/<database number from 0>"
	}
	return "/<database number from 0>"
}

func (d *draft) readMasterName(s, source string) {
	d.claim("master_name", source)
	name, err := url.PathUnescape(s)
	if err != nil || !isName(name) {
		d.problem("%s is no master name: it takes the primary's name in the Sentinels' configuration, without spaces and with %% as %%25", source)
		return
	}
	d.MasterName = name
}

// readLaterParts sees to it that the parts behind the first one say nothing
// that would be ignored: Celery takes all but the hosts from the first.
func (d *draft) readLaterParts(parts []part) {
	for _, p := range parts[1:] {
		if p.userinfo != "" && p.userinfo != parts[0].userinfo {
			d.problem("a later part has other credentials than the first, whose count: remove them (those of the Sentinels are sentinel_username and sentinel_password)")
		}
		if len(segments(p.path)) > 0 && !slices.Equal(segments(p.path), segments(parts[0].path)) || p.fragment != "" && p.fragment != parts[0].fragment {
			d.problem("a later part has another path than the first, whose counts: remove it")
		}
	}
}

// readParams reads the parameters of all parts. The same one in two parts is
// one, since whoever writes several parts may repeat them.
func (d *draft) readParams(parts []part) {
	seen := make(map[string]bool)
	for _, p := range parts {
		var here []string
		for text := range strings.SplitSeq(p.query, "&") {
			if text == "" || seen[text] {
				continue
			}
			here = append(here, text)
			d.readParam(text)
		}
		for _, text := range here {
			seen[text] = true
		}
	}
}

func (d *draft) readParam(text string) {
	name, raw, _ := strings.Cut(text, "=")
	p, ok := paramNamed(name)
	if !ok {
		d.problem("the parameter %s is unknown: %s", quote(name), d.knownParams(name))
		return
	}
	if !p.appliesTo(d.scheme) {
		d.problem("%s does not apply to %s://: it is for %s", name, d.scheme.name, p.only.text)
		return
	}
	if !d.claim(p.meaning(), name) {
		return
	}
	v, err := url.PathUnescape(raw)
	switch {
	case strings.Contains(raw, "+"):
		d.problem("%s has a +, which may be a plus or a space: write %%2B or %%20", name)
	case err != nil:
		d.problem("%s has a %% that begins no percent-encoding: write %% as %%25", name)
	case v == "":
		d.problem("%s is empty: it takes %s", name, p.takes)
	case !p.set(d, v):
		shown := hidden
		if p.shows(v) {
			shown = strconv.Quote(v)
		}
		d.problem("%s is %s: it takes %s", name, shown, p.takes)
	}
}

func (d *draft) knownParams(name string) string {
	switch strings.ToLower(name) {
	case "user", "username", "password", "pass", "auth":
		return "credentials stand before the host, user:password@host"
	}
	var names []string
	for _, p := range params {
		if p.appliesTo(d.scheme) {
			names = append(names, p.name)
		}
	}
	return "use " + strings.Join(names, ", ")
}
