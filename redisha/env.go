package redisha

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/redisha/redisha/internal/endpoint"
)

// FromEnv returns the configuration that the environment describes. Variables
// that are empty count as unset; each may be replaced by one with the suffix
// _FILE that names a file which holds the value; a URL in a file has its scheme
// or at least its port, so that a password there is not taken for a host.
//
//	role     variable             else, in this order
//	cache    REDISHA_CACHE_URL    CACHE_DEFAULT, REDIS_URL
//	broker   REDISHA_BROKER_URL   CELERY_BROKER_URL, REDIS_URL
//	results  REDISHA_RESULTS_URL  CELERY_RESULT_BACKEND, REDIS_URL
//	locks    REDISHA_LOCKS_URL    CELERY_ONCE_REDIS_URL, then the broker's
//
// What a file says of users and passwords is read again at each new connection:
// let the server take the new password beside the old one, replace the file, and
// take the old password away; nothing has to be restarted. A file that cannot be
// read, or that is half-written, changes nothing. Everything else in it counts at
// the start alone.
//
// A named cache comes from REDISHA_CACHE_<NAME>_URL, else CACHE_<NAME>. Where a
// URL leads to Sentinels, REDISHA_<ROLE>_SENTINEL_MASTER, _USERNAME and
// _PASSWORD (or REDIS_<ROLE>_SENTINEL_…, REDIS_RESULT_BACKEND_SENTINEL_…) give
// what it does not say.
//
// A program that names the roles it needs gets these alone, and an error if one
// of them cannot be resolved. Without names, all that can be resolved are
// configured, with every named cache that has a REDISHA_CACHE_<NAME>_URL and
// with CACHE_AXES and CACHE_PORTALOCKER; the others stay closed, and their calls
// return [ErrNotConfigured] with what to do. A closed role is no error where
// nothing is set, where another system's variable holds that system's URL
// (amqp://, rpc://, …), and for locks that would inherit Sentinels.
//
// All problems come back in one error, a line each.
func FromEnv(need ...Role) (Config, error) {
	if len(need) == 0 {
		named, err := namedCaches(os.Environ())
		return fromEnv(os.LookupEnv, append([]Role{Cache, Broker, Results, Locks}, named...), true, err)
	}
	return fromEnv(os.LookupEnv, need, false, nil)
}

// FromLookup is [FromEnv] with variables that lookup finds, such as a map's in a
// test. Without names it does not discover named caches: name those.
func FromLookup(lookup func(variable string) (value string, ok bool), need ...Role) (Config, error) {
	if lookup == nil {
		return Config{}, errors.New("redisha: FromLookup: nil function: pass os.LookupEnv or one of your own")
	}
	if len(need) == 0 {
		return fromEnv(lookup, []Role{Cache, Broker, Results, Locks}, true, nil)
	}
	return fromEnv(lookup, need, false, nil)
}

// namedCaches finds the named caches of an environment.
func namedCaches(environ []string) ([]Role, error) {
	names := map[string]bool{}
	var problems []error
	for _, assignment := range environ {
		variable, value, _ := strings.Cut(assignment, "=")
		variable = strings.TrimSuffix(variable, fileSuffix)
		if value == "" {
			continue
		}
		name, own := strings.CutPrefix(variable, "REDISHA_CACHE_")
		if own {
			name, own = strings.CutSuffix(name, "_URL")
		}
		switch {
		case variable == "CACHE_AXES" || variable == "CACHE_PORTALOCKER":
			names[strings.ToLower(strings.TrimPrefix(variable, "CACHE_"))] = true
		case !own:
		case name != strings.ToUpper(name) || validateName(strings.ToLower(name)) != nil:
			problems = append(problems, fmt.Errorf("%s: the cache's name in it is %q, want capital letters, digits and inner underscores, and neither URL nor SENTINEL", variable, name))
		default:
			names[strings.ToLower(name)] = true
		}
	}
	var roles []Role
	for _, name := range slices.Sorted(maps.Keys(names)) {
		roles = append(roles, NamedCache(name))
	}
	return roles, errors.Join(problems...)
}

const fileSuffix = "_FILE"

// fromEnv resolves the roles. Where they are optional, one that nothing
// configures stays closed. problem is one that was found before.
func fromEnv(lookup func(string) (string, bool), roles []Role, optional bool, problem error) (Config, error) {
	cfg := Config{closed: map[Role]error{}}
	if !optional {
		for _, r := range []Role{Cache, Broker, Results, Locks} {
			cfg.closed[r] = r.errNotNamed()
		}
	}
	var problems lines
	if problem != nil {
		problems.add(problem)
	}
	for _, r := range roles {
		if err := r.validate(); err != nil {
			problems.add(err)
			continue
		}
		ep, reason, err := newResolver(lookup).resolve(r)
		switch {
		case err != nil:
			problems.add(err)
		case reason != nil && optional:
			cfg.closed[r] = reason
		case reason != nil:
			problems.add(reason)
		default:
			delete(cfg.closed, r)
			cfg.set(r, ep)
		}
	}
	if err := problems.err(); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

// lines collects problems, each once: several roles may share a variable.
type lines struct {
	seen map[string]bool
	errs []error
}

func (l *lines) add(err error) {
	if errs := lineByLine(err); len(errs) > 1 {
		for _, err := range errs {
			l.add(err)
		}
		return
	}
	if !l.seen[err.Error()] {
		if l.seen == nil {
			l.seen = map[string]bool{}
		}
		l.seen[err.Error()] = true
		l.errs = append(l.errs, fmt.Errorf("redisha: %w", err))
	}
}

// lineByLine splits what errors.Join has joined. An error that wraps several
// others in a text of its own stays whole.
func lineByLine(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || err.Error() != errors.Join(joined.Unwrap()...).Error() {
		return []error{err}
	}
	return joined.Unwrap()
}

func (l *lines) err() error { return errors.Join(l.errs...) }

// A resolver finds the endpoint of one role.
type resolver struct {
	lookup func(string) (string, bool)
	seen   map[string]string // what lookup said
	files  int               // values that came from files
}

func newResolver(lookup func(string) (string, bool)) *resolver {
	v := &resolver{seen: map[string]string{}}
	v.lookup = func(variable string) (string, bool) {
		value, ok := lookup(variable)
		if !ok {
			value = ""
		}
		if ok {
			v.seen[variable] = value
		}
		return value, ok
	}
	return v
}

// resolve returns the endpoint of r, or the reason why it has none, or the
// problems of what is set.
func (v *resolver) resolve(r Role) (ep Endpoint, reason, err error) {
	for _, src := range r.sources() {
		value, variable, err := v.url(src.variable)
		switch {
		case err != nil:
			return Endpoint{}, nil, err
		case value == "":
			continue
		}
		if scheme, ok := endpoint.ForeignScheme(value); ok && src.fallback {
			return Endpoint{}, r.errForeign(variable, scheme), nil
		}
		parsed, err := v.endpoints(r, src, value, variable)
		if err != nil {
			return Endpoint{}, nil, inVariable(variable, value, err)
		}
		if err := r.refuses(parsed); err != nil {
			if src.fallback || src.owner != r {
				return Endpoint{}, fmt.Errorf("%w: %s: %s=%s: %w", ErrNotConfigured, r, variable, endpoint.Redact(value), err), nil
			}
			return Endpoint{}, nil, inVariable(variable, value, err)
		}
		found := origin{variable: variable, url: URL(value), endpoints: parsed, shared: src.fallback || src.owner != r}
		if v.files > 0 {
			found.reread = v.reread(r, src)
		}
		return Endpoint{URL: found.url, from: func() origin { return found }}, nil, nil
	}
	return Endpoint{}, r.errNotSet(), nil
}

// endpoints parses the URL that a variable held, and completes it.
func (v *resolver) endpoints(r Role, src source, value, variable string) ([]endpoint.Endpoint, error) {
	parsed, err := r.parse(value, src.variable == r.variable())
	if err != nil {
		return nil, err
	}
	return v.complete(parsed, src, variable)
}

// url is value for a variable that holds a URL. A file must hold one that shows
// itself to be one: any other text may be a password, which would be looked up as
// a host, and shown.
func (v *resolver) url(variable string) (value, from string, err error) {
	value, from, err = v.value(variable)
	if err != nil || from == variable || hasAddress(value) {
		return value, from, err
	}
	if _, ok := endpoint.ForeignScheme(value); ok {
		return value, from, nil
	}
	path, _ := v.lookup(from)
	return "", "", fmt.Errorf("%s is %s, which holds neither a URL nor host:port (not shown, since it may be a password): write redis://user:password@host:6379/0 into that file", from, shownPath(path))
}

// hasAddress reports whether value has a scheme, or a port behind its first host.
func hasAddress(value string) bool {
	if strings.Contains(value, "://") {
		return true
	}
	if end := strings.IndexAny(value, ",;/?#"); end >= 0 {
		value = value[:end]
	}
	colon := strings.LastIndexByte(value, ':')
	_, err := strconv.ParseUint(value[colon+1:], 10, 16)
	return colon > 0 && err == nil
}

// value returns what a variable holds, or the file that its _FILE twin names,
// and which of the two it was.
func (v *resolver) value(variable string) (value, from string, err error) {
	value, _ = v.lookup(variable)
	path, _ := v.lookup(variable + fileSuffix)
	switch {
	case path == "":
		return strings.TrimSpace(value), variable, nil
	case value != "":
		return "", "", fmt.Errorf("%s and %s%s are both set: leave one out", variable, variable, fileSuffix)
	}
	variable += fileSuffix
	content, err := os.ReadFile(path)
	if err != nil {
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return "", "", fmt.Errorf("%s is %s, which cannot be read: %w: name a file that holds the value", variable, shownPath(path), err)
	}
	if value = strings.TrimSpace(string(content)); value == "" {
		return "", "", fmt.Errorf("%s is %s, which is empty: write the value into that file", variable, shownPath(path))
	}
	v.files++
	return value, variable, nil
}

// shownPath quotes a path, unless it may be the value itself, put in the wrong
// variable: a URL or a password.
func shownPath(path string) string {
	if !filepath.IsAbs(path) || strings.ContainsAny(path, "@:?") {
		return "no absolute path (not shown, since it may be the value itself)"
	}
	return strconv.Quote(path)
}

// complete adds to endpoints behind Sentinels what their URL leaves to other
// variables.
func (v *resolver) complete(eps []endpoint.Endpoint, src source, variable string) ([]endpoint.Endpoint, error) {
	ep := &eps[0]
	if ep.Topology != endpoint.Sentinel {
		return eps, ep.Validate()
	}
	var problems []error
	prefixes := src.owner.sentinelPrefixes()
	for _, setting := range []struct {
		suffix string
		field  *string
	}{
		{"MASTER", &ep.MasterName},
		{"USERNAME", &ep.SentinelUsername},
		{"PASSWORD", &ep.SentinelPassword},
	} {
		from := variable
		for _, prefix := range prefixes {
			value, name, err := v.value(prefix + setting.suffix)
			switch {
			case err != nil:
				problems = append(problems, err)
			case value == "":
			case *setting.field != "" && *setting.field != value:
				problems = append(problems, fmt.Errorf("%s and %s give the Sentinels' %s differently: leave one of them out",
					from, name, map[string]string{"MASTER": "master name", "USERNAME": "user", "PASSWORD": "password"}[setting.suffix]))
			default:
				*setting.field, from = value, name
			}
		}
	}
	if ep.MasterName == "" && len(problems) == 0 {
		return eps, fmt.Errorf("no master name: set %sMASTER, or write redis+sentinel://s1:26379,s2:26379/<master name>", prefixes[0])
	}
	return eps, errors.Join(append(problems, ep.Validate())...)
}

// inVariable says in which variable the problems are, and what it held.
func inVariable(variable, value string, err error) error {
	var several *endpoint.Error
	if errors.As(err, &several) {
		err = errors.Join(several.Problems...)
	}
	return eachLine(variable+"="+endpoint.Redact(value)+": ", err)
}
