package redisha

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/lock"
)

// A Role is a use of Redis. A further named cache is a role, too: see [NamedCache].
type Role string

// The four roles.
const (
	Cache   Role = "cache"
	Broker  Role = "broker"
	Results Role = "results"
	Locks   Role = "locks"
)

// NamedCache is the role of a further cache, which [FromEnv] reads from
// REDISHA_CACHE_<NAME>_URL, or else CACHE_<NAME>. Names consist of small
// letters, digits and underscores; "url" and "sentinel" are taken.
func NamedCache(name string) Role { return cachePrefix + Role(name) }

const cachePrefix = Cache + "."

// cacheName returns the name of a named cache.
func (r Role) cacheName() (string, bool) {
	return strings.CutPrefix(string(r), string(cachePrefix))
}

// isCache reports whether the role is the cache or a named one, which does without
// Redis rather than wait for it.
func (r Role) isCache() bool {
	_, named := r.cacheName()
	return named || r == Cache
}

func (r Role) validate() error {
	switch r {
	case Cache, Broker, Results, Locks:
		return nil
	}
	name, ok := r.cacheName()
	if !ok {
		return fmt.Errorf("unknown role %q: want redisha.Cache, Broker, Results, Locks or NamedCache(name)", string(r))
	}
	return validateName(name)
}

func validateName(name string) error {
	bad := name == "" || name == "url" || name == "sentinel" || strings.HasPrefix(name, "_") || strings.HasSuffix(name, "_")
	for _, c := range name {
		bad = bad || c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9')
	}
	if bad {
		return fmt.Errorf("name of a cache is %q, want small letters, digits and inner underscores, and neither \"url\" nor \"sentinel\"", name)
	}
	return nil
}

// A source is a variable from which a role's URL may come.
type source struct {
	variable string
	owner    Role // whose Sentinel variables go with it
	fallback bool // another system's variable: a foreign scheme there is no mistake
}

// sources lists where the role's URL comes from; the first that is set wins.
func (r Role) sources() []source {
	with := func(own string, others ...string) []source {
		list := []source{{variable: own, owner: r}}
		for _, other := range others {
			list = append(list, source{variable: other, owner: r, fallback: true})
		}
		return list
	}
	switch r {
	case Cache:
		return with("REDISHA_CACHE_URL", "CACHE_DEFAULT", "REDIS_URL")
	case Broker:
		return with("REDISHA_BROKER_URL", "CELERY_BROKER_URL", "REDIS_URL")
	case Results:
		return with("REDISHA_RESULTS_URL", "CELERY_RESULT_BACKEND", "REDIS_URL")
	case Locks:
		return append(with("REDISHA_LOCKS_URL", "CELERY_ONCE_REDIS_URL"), Broker.sources()...)
	}
	name, _ := r.cacheName()
	name = strings.ToUpper(name)
	return with("REDISHA_CACHE_"+name+"_URL", "CACHE_"+name)
}

// variable is the one that a user of the role should set.
func (r Role) variable() string { return r.sources()[0].variable }

// sentinelPrefixes are the beginnings of the role's Sentinel variables: redisha's
// own, and Open Forms'.
// https://open-forms.readthedocs.io/en/stable/installation/redis.html
func (r Role) sentinelPrefixes() []string {
	own := strings.TrimSuffix(r.variable(), "_URL") + "_SENTINEL_"
	if r == Results {
		return []string{own, "REDIS_RESULT_BACKEND_SENTINEL_"}
	}
	return []string{own, "REDIS_" + strings.TrimPrefix(own, "REDISHA_")}
}

// refuses says why the role does not take these endpoints, whatever is there.
func (r Role) refuses(eps []endpoint.Endpoint) error {
	switch {
	case r == Locks && eps[0].Topology == endpoint.Sentinel:
		return lock.ErrSentinelEndpoint
	case r == Locks:
		return refusesLocks(eps)
	case r == Broker && eps[0].Proxy != "":
		return fmt.Errorf("a broker cannot work through a proxy (proxy=%s), which refuses blocking reads: set REDISHA_BROKER_URL to Redis itself", eps[0].Proxy)
	}
	return nil
}

func refusesLocks(eps []endpoint.Endpoint) error {
	var problems []error
	if len(eps) > 1 {
		problems = append(problems, refusesQuorum(eps))
	}
	if ttl := shared(eps).TTL; ttl != 0 && ttl < lock.MinTTL {
		problems = append(problems, fmt.Errorf("ttl=%s: leases of locks have at least %s", ttl, lock.MinTTL))
	}
	return errors.Join(problems...)
}

// onlyPrimary refuses read_from for a role that must read what was written, or
// drops it where the URL serves other roles as well.
func (r Role) onlyPrimary(ep *endpoint.Endpoint, shared bool) error {
	switch {
	case r.isCache() || ep.ReadFrom == "" || ep.ReadFrom == endpoint.ReadPrimary:
	case shared:
		ep.ReadFrom = ""
	default:
		return fmt.Errorf("read_from=%s: %s reads from the primary alone, since a replica may not have yet what was written: leave it out", ep.ReadFrom, r)
	}
	return nil
}

// errNotSet is why a role stays closed that nothing configures.
func (r Role) errNotSet() error {
	return fmt.Errorf("%w: %s: set %s", ErrNotConfigured, r, r.variable())
}

// errNotNamed is why a role stays closed that the program did not ask for.
func (r Role) errNotNamed() error {
	return fmt.Errorf("%w: %s: the program did not name it: add it to the roles given to redisha.FromEnv, and set %s", ErrNotConfigured, r, r.variable())
}

// errForeign is why a role stays closed whose variable serves another system.
func (r Role) errForeign(variable, scheme string) error {
	return fmt.Errorf("%w: %s: %s holds a URL of another system (%s): set %s", ErrNotConfigured, r, variable, scheme, r.variable())
}

var (
	// ErrNotConfigured is returned by every call on a role that has no
	// endpoint. The error that wraps it says which variable to set.
	ErrNotConfigured = conn.ErrNotConfigured

	// ErrClosed is returned by every call after Close. It is redis.ErrClosed.
	ErrClosed = conn.ErrClosed

	// ErrOutcomeUnknown is in the error of a call whose command was sent and got
	// no reply, and that must not be sent twice: it may have been executed.
	ErrOutcomeUnknown = conn.ErrOutcomeUnknown

	errNilContext = errors.New("nil context: pass context.Background() or the program's")
)

// parse resolves a URL for a role. Locks alone may have several, a quorum, in a
// URL of their own: elsewhere such a list means something else.
func (r Role) parse(raw string, own bool) ([]endpoint.Endpoint, error) {
	if r == Locks && own {
		return endpoint.ParseQuorum(raw)
	}
	ep, err := endpoint.Parse(raw)
	return []endpoint.Endpoint{ep}, err
}

// field is the part of Config that configures the role.
func (r Role) field() string {
	switch r {
	case Cache:
		return "Config.Cache"
	case Broker:
		return "Config.Broker"
	case Results:
		return "Config.Results"
	case Locks:
		return "Config.Locks"
	}
	name, _ := r.cacheName()
	return fmt.Sprintf("Config.Caches[%q]", name)
}
