package endpoint

import (
	"slices"
	"strings"
)

const (
	tcp  = "tcp"
	unix = "unix"
)

// A scheme is what stands before :// and what it decides.
type scheme struct {
	name     string
	topology Topology
	network  string
	tls      bool
}

// schemes lists the schemes; the first of its kind is the one that String
// writes.
var schemes = []scheme{
	{"redis", Standalone, tcp, false},
	{"rediss", Standalone, tcp, true},
	{"valkey", Standalone, tcp, false},
	{"valkeys", Standalone, tcp, true},
	{"unix", Standalone, unix, false},
	{"redis+socket", Standalone, unix, false},
	{"redis+replica", Replicated, tcp, false},
	{"rediss+replica", Replicated, tcp, true},
	{"redis+sentinel", Sentinel, tcp, false},
	{"rediss+sentinel", Sentinel, tcp, true},
	{"redis-sentinel", Sentinel, tcp, false},
	{"rediss-sentinel", Sentinel, tcp, true},
	{"sentinel", Sentinel, tcp, false},
	{"redis+cluster", Cluster, tcp, false},
	{"rediss+cluster", Cluster, tcp, true},
	{"redis-cluster", Cluster, tcp, false},
	{"rediss-cluster", Cluster, tcp, true},
	{"cluster", Cluster, tcp, false},
}

func schemeNamed(name string) (scheme, bool) {
	i := slices.IndexFunc(schemes, func(s scheme) bool { return s.name == name })
	if i < 0 {
		return scheme{}, false
	}
	return schemes[i], true
}

// mistypedScheme returns the scheme behind whose name a colon or a slash lacks:
// redis//host, redis:/host. (redis:6379/0 and redis/0 are a host of that name.)
func mistypedScheme(raw string) (scheme, bool) {
	raw = strings.ToLower(strings.TrimSpace(raw))
	for _, s := range schemes {
		rest, ok := strings.CutPrefix(raw, s.name)
		if ok && (strings.HasPrefix(rest, "//") || strings.HasPrefix(rest, ":/") && !strings.HasPrefix(rest, "://")) {
			return s, true
		}
	}
	return scheme{}, false
}

func schemeNames() string {
	names := make([]string, len(schemes))
	for i, s := range schemes {
		names[i] = s.name
	}
	return strings.Join(names, ", ")
}

// schemeOf returns the scheme that writes e.
func schemeOf(e Endpoint) scheme {
	for _, s := range schemes {
		if s.topology == e.Topology && s.network == e.Network && s.tls == (e.TLS != nil) {
			return s
		}
	}
	return scheme{}
}

// port is the default port of the addresses in a URL.
func (s scheme) port() string {
	if s.topology == Sentinel {
		return "26379"
	}
	return "6379"
}

// encrypted is the scheme that turns TLS on for the same form.
func (s scheme) encrypted() string {
	for _, t := range schemes {
		if t.topology == s.topology && t.network == s.network && t.tls {
			return t.name
		}
	}
	return ""
}

// isScheme tells whether s, in lower case, has the shape of a scheme (RFC 3986,
// section 3.1).
func isScheme(s string) bool {
	return s != "" && s[0] >= 'a' && s[0] <= 'z' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789+.-") == ""
}

// foreign holds the schemes by which Celery, kombu and Django name brokers,
// result backends and caches other than Redis.
var foreign = set("amqp amqps pyamqp librabbitmq rpc kafka confluentkafka sqs slmq pyro qpid zookeeper consul etcd " +
	"azureservicebus azurestoragequeues azureblockblob gcpubsub gs s3 dynamodb mongodb couchdb couchbase cassandra " +
	"cosmosdbsql arangodb elasticsearch riak sqla sqlalchemy db database filesystem file memory disabled cache " +
	"memcache memcached pymemcache pylibmc djangopylibmc locmem locmemcache dummy dummycache dbcache filecache " +
	"uwsgicache elasticache sqlite postgres postgresql mysql")

// foreignWord holds those that stand alone. Words that are likely names of a
// Redis host, such as cache and db, are not among them.
var foreignWord = set("rpc amqp memory file filesystem database disabled django-db django-cache locmem dummy")

func set(words string) map[string]bool {
	m := make(map[string]bool)
	for _, w := range strings.Fields(words) {
		m[w] = true
	}
	return m
}

// ForeignScheme tells whether raw names another system than Redis, as variables
// shared with Celery or Django may (amqp://, rpc://, db+postgresql://,
// locmem://, django-db), and returns its scheme, in lower case and without
// secrets. It knows the names that Celery, kombu and Django use; any other is
// not foreign but wrong, and [Parse] says so.
func ForeignScheme(raw string) (scheme string, ok bool) {
	raw, _, _ = strings.Cut(strings.TrimSpace(raw), ";")
	name, _, isURL := strings.Cut(raw, "://")
	name = strings.ToLower(name)
	if !isURL {
		if foreignWord[name] {
			return name, true
		}
		return "", false
	}
	family, _, _ := strings.Cut(name, "+")
	if isScheme(name) && foreign[family] {
		return name, true
	}
	return "", false
}
