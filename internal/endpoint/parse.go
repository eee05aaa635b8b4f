package endpoint

import (
	"errors"
	"fmt"
	"strings"
)

// Parse reads the URL of one endpoint, in any of the forms of the package
// comment. Space around it is dropped.
//
// The name of the primary may be missing in a Sentinel URL, as it is in
// Celery's: it may come from the environment. Call [Endpoint.Validate] once it
// had the chance to.
//
// The error is an [*Error] with all that is wrong, and without secrets.
func Parse(raw string) (Endpoint, error) {
	e, problems := parse(raw)
	if len(problems) > 0 {
		return Endpoint{}, newError(Redact(raw), problems)
	}
	return e, nil
}

// ParseQuorum reads what may stand in REDISHA_LOCKS_URL: one endpoint of any
// form, or several single servers, each with its scheme, separated by
// semicolons: redis://a;redis://b;redis://c. They must differ in address.
//
// The error is as that of [Parse].
func ParseQuorum(raw string) ([]Endpoint, error) {
	parts := split(raw)
	first, _, _ := strings.Cut(parts[0], "://")
	if s, _ := schemeNamed(strings.ToLower(first)); len(parts) == 1 || s.topology == Sentinel {
		e, err := Parse(raw)
		if err != nil {
			return nil, err
		}
		return []Endpoint{e}, nil
	}
	var endpoints []Endpoint
	var problems []error
	seen := make(map[string]int)
	for i, raw := range parts {
		problem := func(format string, args ...any) {
			problems = append(problems, fmt.Errorf("part %d of %d: "+format, append([]any{i + 1, len(parts)}, args...)...))
		}
		if !strings.Contains(raw, "://") {
			problem("it has no scheme: write redis:// in front of every part, and a ; in a password as %%3B")
			continue
		}
		e, wrong := parse(raw)
		for _, err := range wrong {
			problem("%w", err)
		}
		if len(wrong) > 0 {
			continue
		}
		if e.Topology != Standalone {
			problem("it is a %s endpoint: a quorum is made of independent single servers (redis://, rediss://, unix://)", e.Topology)
			continue
		}
		addr := strings.ToLower(e.Addrs[0])
		if other := seen[addr]; other > 0 {
			problem("it has the same address as part %d: a quorum is made of independent servers", other)
			continue
		}
		seen[addr] = i + 1
		endpoints = append(endpoints, e)
	}
	if len(problems) > 0 {
		return nil, newError(Redact(raw), problems)
	}
	return endpoints, nil
}

func parse(raw string) (Endpoint, []error) {
	if strings.TrimSpace(raw) == "" {
		return Endpoint{}, []error{errors.New("it is empty: write redis://host:6379/0 or one of its kind")}
	}
	if name, ok := ForeignScheme(raw); ok {
		hint := ""
		if !strings.Contains(raw, "://") {
			hint = fmt.Sprintf(" (for a host of that name redis://%s)", name)
		}
		return Endpoint{}, []error{fmt.Errorf("%s names another system: use one of the schemes %s%s", name, schemeNames(), hint)}
	}
	if s, ok := mistypedScheme(raw); ok {
		return Endpoint{}, []error{fmt.Errorf("it has no :// behind %s: write %s://host", s.name, s.name)}
	}
	parts, s, err := cutAll(raw)
	if err != nil {
		return Endpoint{}, []error{err}
	}
	first := parts[0]
	d := &draft{scheme: s}
	d.Topology, d.Network = s.topology, s.network
	d.readUserinfo(first)
	if s.network == unix {
		d.readSocket(first)
	} else {
		d.readHosts(parts)
		d.readPath(first)
	}
	d.readLaterParts(parts)
	d.readParams(parts)
	d.check()
	return d.Endpoint, d.problems
}

// cutAll cuts raw into parts that have one scheme.
func cutAll(raw string) ([]part, scheme, error) {
	texts := split(raw)
	parts := make([]part, len(texts))
	for i, text := range texts {
		switch {
		case text == "":
			return nil, scheme{}, errors.New("a part between semicolons is empty: remove one semicolon")
		case len(texts) > 1 && !strings.Contains(text, "://"):
			return nil, scheme{}, errors.New("a part between semicolons has no scheme: write a scheme (sentinel://, for locks redis://) in front of every part, and a ; in a password as %3B")
		}
		p, err := cut(text)
		if err != nil {
			return nil, scheme{}, err
		}
		parts[i] = p
	}
	first := parts[0]
	if first.scheme == "" {
		switch {
		case first.hasUser:
			return nil, scheme{}, errors.New("credentials without a scheme: write redis://user:password@host:6379/0")
		case first.hosts == "" && first.path != "":
			return nil, scheme{}, errors.New("a path alone: write unix:///path/of/the/socket, or host:6379/0")
		}
		first.scheme = "redis"
	}
	s, ok := schemeNamed(first.scheme)
	if !ok {
		return nil, scheme{}, fmt.Errorf("the scheme %s is unknown: use one of %s", quote(first.scheme), schemeNames())
	}
	for _, p := range parts[1:] {
		switch {
		case s.topology != Sentinel:
			return nil, scheme{}, errors.New("several endpoints separated by semicolons: only REDISHA_LOCKS_URL takes them, as a quorum; the hosts of one endpoint are separated by commas (redis+sentinel://, redis+replica://, redis+cluster://), and a ; in a password is %3B")
		case p.scheme != s.name:
			return nil, scheme{}, fmt.Errorf("parts of different schemes: write %s:// in front of every part", s.name)
		}
	}
	return parts, s, nil
}
