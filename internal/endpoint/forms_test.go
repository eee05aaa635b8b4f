package endpoint

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// on is the smallest TLS, which verifies.
var on = &TLS{}

func one(addr string, db int) Endpoint {
	return Endpoint{Topology: Standalone, Network: "tcp", Addrs: []string{addr}, DB: db}
}

func socket(path string, db int) Endpoint {
	return Endpoint{Topology: Standalone, Network: "unix", Addrs: []string{path}, DB: db}
}

func many(t Topology, addrs ...string) Endpoint {
	return Endpoint{Topology: t, Network: "tcp", Addrs: addrs}
}

// with returns e changed.
func with(e Endpoint, change func(e *Endpoint)) Endpoint {
	change(&e)
	return e
}

func as(e Endpoint, user, password string) Endpoint {
	e.Username, e.Password = user, password
	return e
}

func secure(e Endpoint) Endpoint {
	e.TLS = on
	if e.Topology == Sentinel {
		e.SentinelTLS = on
	}
	return e
}

func named(e Endpoint, master string, db int) Endpoint {
	e.MasterName, e.DB = master, db
	return e
}

var goodForms = []struct {
	name string
	raw  string
	want Endpoint
	url  string // what String gives
}{
	// one server
	{"host and port", "redis://h:7000", one("h:7000", 0), "redis://h:7000"},
	{"default port", "redis://h", one("h:6379", 0), "redis://h:6379"},
	{"database", "redis://h:7000/3", one("h:7000", 3), "redis://h:7000/3"},
	{"database above 15", "redis://h/99", one("h:6379", 99), "redis://h:6379/99"},
	{"trailing slash", "redis://h:6379/", one("h:6379", 0), "redis://h:6379"},
	{"trailing slash behind the database", "redis://h/2/", one("h:6379", 2), "redis://h:6379/2"},
	{"extra slash, as Celery allows", "redis://h//2", one("h:6379", 2), "redis://h:6379/2"},
	{"database as a parameter, as go-redis has it", "redis://h?db=4", one("h:6379", 4), "redis://h:6379/4"},
	{"nothing but the scheme", "redis://", one("localhost:6379", 0), "redis://localhost:6379"},
	{"no host", "redis:///1", one("localhost:6379", 1), "redis://localhost:6379/1"},
	{"port alone", "redis://:7001", one("localhost:7001", 0), "redis://localhost:7001"},
	{"password without a host", "redis://:pw@/1", as(one("localhost:6379", 1), "", "pw"), "redis://:xxxxx@localhost:6379/1"},
	{"trailing comma", "redis://h:1,", one("h:1", 0), "redis://h:1"},
	{"trailing semicolon", "redis://h:1;", one("h:1", 0), "redis://h:1"},
	{"trailing question mark", "redis://h:1/0?", one("h:1", 0), "redis://h:1"},
	{"trailing ampersand", "redis://h:1?db=1&", one("h:1", 1), "redis://h:1/1"},
	{"trailing hash", "redis://h:1#", one("h:1", 0), "redis://h:1"},
	{"space around, as at the end of a file", " redis://h:1\n", one("h:1", 0), "redis://h:1"},
	{"upper-case scheme", "REDIS://h:1", one("h:1", 0), "redis://h:1"},
	{"valkey", "valkey://h/1", one("h:6379", 1), "redis://h:6379/1"},
	{"names of container networks", "redis://my_redis-0.svc.", one("my_redis-0.svc.:6379", 0), "redis://my_redis-0.svc.:6379"},
	{"IPv4", "redis://10.0.0.1", one("10.0.0.1:6379", 0), "redis://10.0.0.1:6379"},
	{"IPv6", "redis://[::1]:7000/1", one("[::1]:7000", 1), "redis://[::1]:7000/1"},
	{"IPv6, default port, in short", "redis://[0:0::1]", one("[::1]:6379", 0), "redis://[::1]:6379"},
	{"IPv6 zone", "redis://[fe80::1%25eth0]", one("[fe80::1%eth0]:6379", 0), "redis://[fe80::1%25eth0]:6379"},

	// bare
	{"bare host", "h", one("h:6379", 0), "redis://h:6379"},
	{"bare host and port", "h:7000", one("h:7000", 0), "redis://h:7000"},
	{"bare host, port, database", "h:7000/2", one("h:7000", 2), "redis://h:7000/2"},
	{"bare host and database", "h/2", one("h:6379", 2), "redis://h:6379/2"},
	{"bare IPv6", "[::1]:7000/2", one("[::1]:7000", 2), "redis://[::1]:7000/2"},
	{"bare port", ":7000", one("localhost:7000", 0), "redis://localhost:7000"},
	{"bare host that is also the name of a scheme", "redis", one("redis:6379", 0), "redis://redis:6379"},
	{"bare host with a parameter", "h:1/2?pool_size=3", with(one("h:1", 2), func(e *Endpoint) { e.PoolSize = 3 }), "redis://h:1/2?pool_size=3"},

	// credentials
	{"user and password", "redis://u:pw@h", as(one("h:6379", 0), "u", "pw"), "redis://u:xxxxx@h:6379"},
	{"password", "redis://:pw@h/1", as(one("h:6379", 1), "", "pw"), "redis://:xxxxx@h:6379/1"},
	{"percent-encoded", "redis://u%3A:p%40s%2Fs%25%20+@h", as(one("h:6379", 0), "u:", "p@s/s% +"), "redis://u%3A:xxxxx@h:6379"},
	{"bytes that are no UTF-8", "redis://:%ff%00@h", as(one("h:6379", 0), "", "\xff\x00"), "redis://:xxxxx@h:6379"},
	{"colons, commas and @ in the password", "redis://u:a:b,c@d@h", as(one("h:6379", 0), "u", "a:b,c@d"), "redis://u:xxxxx@h:6379"},
	{"a scheme in the password", "redis://u:a%3A%2F%2Fb@h", as(one("h:6379", 0), "u", "a://b"), "redis://u:xxxxx@h:6379"},
	{"empty credentials", "redis://:@h", one("h:6379", 0), "redis://h:6379"},
	{"empty credentials without a colon", "redis://@h", one("h:6379", 0), "redis://h:6379"},

	// TLS
	{"rediss", "rediss://h:6380/1", secure(one("h:6380", 1)), "rediss://h:6380/1"},
	{"valkeys", "valkeys://h", secure(one("h:6379", 0)), "rediss://h:6379"},
	{"Celery's verified TLS", "rediss://h/1?ssl_cert_reqs=required&ssl_ca_certs=%2Fca.pem",
		with(one("h:6379", 1), func(e *Endpoint) { e.TLS = &TLS{CA: "/ca.pem"} }), "rediss://h:6379/1?tls_ca=/ca.pem"},
	{"Celery's parameters switch TLS on", "redis://h/1?ssl_cert_reqs=none",
		with(one("h:6379", 1), func(e *Endpoint) { e.TLS = &TLS{SkipVerify: true} }), "rediss://h:6379/1?skip_verify=true"},

	// unix sockets
	{"unix", "unix:///var/run/redis.sock", socket("/var/run/redis.sock", 0), "unix:///var/run/redis.sock"},
	{"unix, database", "unix:///r.sock?db=1", socket("/r.sock", 1), "unix:///r.sock?db=1"},
	{"unix, credentials", "unix://u:pw@/r.sock", as(socket("/r.sock", 0), "u", "pw"), "unix://u:xxxxx@/r.sock"},
	{"unix, percent-encoded", "unix:///a%20b%3F%40,c.sock", socket("/a b?@,c.sock", 0), "unix:///a%20b%3F%40%2Cc.sock"},
	{"Celery's socket", "redis+socket:///tmp/r.sock?virtual_host=2", socket("/tmp/r.sock", 2), "unix:///tmp/r.sock?db=2"},
	{"Celery's socket with go-redis' parameter", "redis+socket:///r.sock?db=2", socket("/r.sock", 2), "unix:///r.sock?db=2"},

	// replicated
	{"primary and replicas", "redis+replica://p,r1:1,r2:2/3",
		with(many(Replicated, "p:6379", "r1:1", "r2:2"), func(e *Endpoint) { e.DB = 3 }), "redis+replica://p:6379,r1:1,r2:2/3"},
	{"primary and replicas by TLS", "rediss+replica://u:pw@p,r", as(secure(many(Replicated, "p:6379", "r:6379")), "u", "pw"), "rediss+replica://u:xxxxx@p:6379,r:6379"},
	{"IPv6 in a list", "redis+replica://[::1]:1,[::2],h", many(Replicated, "[::1]:1", "[::2]:6379", "h:6379"), "redis+replica://[::1]:1,[::2]:6379,h:6379"},

	// Sentinel
	{"Sentinels", "redis+sentinel://u:pw@s1:26379,s2,s3:5/mymaster/2",
		as(named(many(Sentinel, "s1:26379", "s2:26379", "s3:5"), "mymaster", 2), "u", "pw"), "redis+sentinel://u:xxxxx@s1:26379,s2:26379,s3:5/mymaster/2"},
	{"Sentinels, no database, trailing separators", "redis+sentinel://s1,s2,/mymaster/",
		named(many(Sentinel, "s1:26379", "s2:26379"), "mymaster", 0), "redis+sentinel://s1:26379,s2:26379/mymaster/0"},
	{"Sentinels by TLS", "rediss+sentinel://s1/mymaster", secure(named(many(Sentinel, "s1:26379"), "mymaster", 0)), "rediss+sentinel://s1:26379/mymaster/0"},
	{"scheme sentinel with a list", "sentinel://s1,s2/mymaster", named(many(Sentinel, "s1:26379", "s2:26379"), "mymaster", 0), "redis+sentinel://s1:26379,s2:26379/mymaster/0"},
	{"redis-sentinel with a path", "redis-sentinel://s1/mymaster/1", named(many(Sentinel, "s1:26379"), "mymaster", 1), "redis+sentinel://s1:26379/mymaster/1"},
	{"lettuce", "redis-sentinel://s1,s2:1/3#mymaster", named(many(Sentinel, "s1:26379", "s2:1"), "mymaster", 3), "redis+sentinel://s1:26379,s2:1/mymaster/3"},
	{"lettuce without a database", "redis-sentinel://s1#mymaster", named(many(Sentinel, "s1:26379"), "mymaster", 0), "redis+sentinel://s1:26379/mymaster/0"},
	{"lettuce by TLS", "rediss-sentinel://s1/0#mymaster", secure(named(many(Sentinel, "s1:26379"), "mymaster", 0)), "rediss+sentinel://s1:26379/mymaster/0"},
	{"lettuce with a parameter", "redis-sentinel://s1/1?pool_size=2#mymaster",
		with(named(many(Sentinel, "s1:26379"), "mymaster", 1), func(e *Endpoint) { e.PoolSize = 2 }), "redis+sentinel://s1:26379/mymaster/1?pool_size=2"},
	{"master name as a parameter", "sentinel://s1/2?master_name=mymaster", named(many(Sentinel, "s1:26379"), "mymaster", 2), "redis+sentinel://s1:26379/mymaster/2"},
	{"master name that is a number", "redis+sentinel://s1/7/0", named(many(Sentinel, "s1:26379"), "7", 0), "redis+sentinel://s1:26379/7/0"},
	{"master name percent-encoded", "redis+sentinel://s1/my%2Fmaster%23", named(many(Sentinel, "s1:26379"), "my/master#", 0), "redis+sentinel://s1:26379/my%2Fmaster%23/0"},
	{"a number alone is the database", "redis+sentinel://s1/4", named(many(Sentinel, "s1:26379"), "", 4), "redis+sentinel://s1:26379/4"},
	{"no master name yet", "redis+sentinel://s1", many(Sentinel, "s1:26379"), "redis+sentinel://s1:26379"},

	// Celery's Sentinels
	{"Celery", "sentinel://:pass@s1:26379/2;sentinel://s2:1;sentinel://s3",
		as(named(many(Sentinel, "s1:26379", "s2:1", "s3:26379"), "", 2), "", "pass"), "redis+sentinel://:xxxxx@s1:26379,s2:1,s3:26379/2"},
	{"Celery, trailing semicolon and space", "sentinel://s1; sentinel://s2 ; ", many(Sentinel, "s1:26379", "s2:26379"), "redis+sentinel://s1:26379,s2:26379"},
	{"Celery, later parts that repeat the first", "sentinel://u:p@s1/1;sentinel://u:p@s2/1/;sentinel://s3/",
		as(named(many(Sentinel, "s1:26379", "s2:26379", "s3:26379"), "", 1), "u", "p"), "redis+sentinel://u:xxxxx@s1:26379,s2:26379,s3:26379/1"},
	{"Celery, a parameter in each part", "sentinel://s1?master_name=m&pool_size=2;sentinel://s2?master_name=m;sentinel://s3?read_timeout=1",
		with(named(many(Sentinel, "s1:26379", "s2:26379", "s3:26379"), "m", 0), func(e *Endpoint) { e.PoolSize, e.ReadTimeout = 2, 1e9 }),
		"redis+sentinel://s1:26379,s2:26379,s3:26379/m/0?pool_size=2&read_timeout=1s"},
	{"Celery by TLS", "sentinel://s1/0?ssl_cert_reqs=required;sentinel://s2/0", secure(many(Sentinel, "s1:26379", "s2:26379")), "rediss+sentinel://s1:26379,s2:26379"},

	// Cluster
	{"Cluster", "redis+cluster://h1:7000,h2,h3", many(Cluster, "h1:7000", "h2:6379", "h3:6379"), "redis+cluster://h1:7000,h2:6379,h3:6379"},
	{"Cluster, one node, database 0", "redis+cluster://h1/0", many(Cluster, "h1:6379"), "redis+cluster://h1:6379"},
	{"Cluster by TLS", "rediss+cluster://:pw@h1", as(secure(many(Cluster, "h1:6379")), "", "pw"), "rediss+cluster://:xxxxx@h1:6379"},
	{"redis-cluster", "redis-cluster://h1,h2", many(Cluster, "h1:6379", "h2:6379"), "redis+cluster://h1:6379,h2:6379"},
	{"rediss-cluster", "rediss-cluster://h1", secure(many(Cluster, "h1:6379")), "rediss+cluster://h1:6379"},
	{"cluster", "cluster://h1?db=0", many(Cluster, "h1:6379"), "redis+cluster://h1:6379"},
}

func TestParseReadsEachForm(t *testing.T) {
	for _, c := range goodForms {
		t.Run(c.name, func(t *testing.T) {
			e, err := Parse(c.raw)
			require.NoError(t, err)
			require.Equal(t, c.want, e)
			require.Equal(t, c.url, e.String())

			again, err := Parse(e.format(itself))
			require.NoError(t, err)
			require.Equal(t, e, again)
		})
	}
}

// itself shows secrets.
func itself(secret string) string { return secret }

func TestEachSchemeIsCoveredByAForm(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range goodForms {
		p, err := cut(split(c.raw)[0])
		require.NoError(t, err)
		seen[p.scheme] = true
	}
	for _, s := range schemes {
		require.True(t, seen[s.name], s.name)
	}
}

func TestZeroEndpointHasNoURL(t *testing.T) {
	require.Empty(t, Endpoint{}.String())
	require.ErrorContains(t, func() error { _, err := Parse(Endpoint{}.String()); return err }(), "it is empty")
}

func TestParseQuorum(t *testing.T) {
	for _, c := range []struct {
		name string
		raw  string
		want []Endpoint
	}{
		{"three servers", "redis://a;redis://:pw@b:1/2; rediss://c;", []Endpoint{one("a:6379", 0), as(one("b:1", 2), "", "pw"), secure(one("c:6379", 0))}},
		{"one server", "redis://a/1", []Endpoint{one("a:6379", 1)}},
		{"one bare server", "a:1", []Endpoint{one("a:1", 0)}},
		{"sockets", "unix:///a;unix:///b", []Endpoint{socket("/a", 0), socket("/b", 0)}},
		{"Celery's Sentinels are one endpoint", "sentinel://a;sentinel://b", []Endpoint{many(Sentinel, "a:26379", "b:26379")}},
		{"one Cluster", "redis+cluster://a,b", []Endpoint{many(Cluster, "a:6379", "b:6379")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			endpoints, err := ParseQuorum(c.raw)
			require.NoError(t, err)
			require.Equal(t, c.want, endpoints)
		})
	}
}
