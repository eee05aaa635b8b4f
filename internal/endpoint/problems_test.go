package endpoint

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseSaysWhatIsWrongWithAForm(t *testing.T) {
	for _, c := range []struct {
		name string
		raw  string
		says string // the whole error behind "endpoint: ", or its beginning if it ends with ...
	}{
		{"empty", "", `"": it is empty: write redis://host:6379/0 or one of its kind`},
		{"blank", " \n", `"": it is empty...`},
		{"unknown scheme", "redsi://h", `"redsi://h": the scheme "redsi" is unknown: use one of redis, rediss, valkey, valkeys, unix, redis+socket, redis+replica, rediss+replica, redis+sentinel, rediss+sentinel, redis-sentinel, rediss-sentinel, sentinel, redis+cluster, rediss+cluster, redis-cluster, rediss-cluster, cluster`},
		{"another system's scheme", "amqp://guest:pw@h//", `"amqp://guest:xxxxx@h//": amqp names another system: use one of the schemes redis, rediss,...`},
		{"another system's word", "memory", `"memory": memory names another system: use one of the schemes redis, rediss, valkey, valkeys, unix, redis+socket, redis+replica, rediss+replica, redis+sentinel, rediss+sentinel, redis-sentinel, rediss-sentinel, sentinel, redis+cluster, rediss+cluster, redis-cluster, rediss-cluster, cluster (for a host of that name redis://memory)`},
		{"colon forgotten", "rediss//h/0", `"rediss//h/0": it has no :// behind rediss: write rediss://host`},
		{"slash forgotten", "Redis+Sentinel:/h:1/m", `"xxxxx/xxxxx/m": it has no :// behind redis+sentinel: write redis+sentinel://host`},
		{"colon forgotten, with a password", "redis//u:secret@h", `"xxxxx": it has no :// behind redis: write redis://host`},
		{"quotes around", `"redis://h"`, `"xxxxx": what stands before :// is no scheme: begin with redis:// or one of its kind, without quotes around the URL`},
		{"space inside", "redis://h /0", `"redis://xxxxx": it holds a space or a control character: remove it, or percent-encode it (a space is %20)`},
		{"slash in the password", "redis://:pa/ss@h", `"redis://xxxxx": an @ stands behind the host part: in a password write / as %2F, ? as %3F and # as %23, and anywhere else @ as %40`},
		{"question mark in the password", "redis://:pa?ss@h", `"redis://xxxxx": an @ stands behind the host part...`},
		{"hash in the password", "redis://:pa#ss@h", `"redis://xxxxx": an @ stands behind the host part...`},
		{"@ in a parameter", "redis://h?client_name=a@b", `"redis://xxxxx": an @ stands behind the host part...`},
		{"percent sign in the password", "redis://:100%@h", `"redis://:xxxxx@h": the user or the password has a % that begins no percent-encoding: write % as %25`},
		{"percent sign in the user", "redis://a%zz:pw@h", `"redis://a%zz:xxxxx@h": the user or the password has a %...`},
		{"user alone", "redis://secret@h", `"redis://xxxxx@h": what stands before the @ has no colon: write :password@ for a password alone, or user:password@`},
		{"user with an empty password", "redis://u:@h", `"redis://u:xxxxx@h": the user has an empty password: write user:password@, or leave out both`},
		{"bare with credentials", "u:pw@h", `"u:xxxxx@h": credentials without a scheme: write redis://user:password@host:6379/0`},
		{"bare path", "/tmp/r.sock", `"/tmp/r.sock": a path alone: write unix:///path/of/the/socket, or host:6379/0`},

		{"port is a word", "redis://h:abc", `"redis://xxxxx": the port of host "h" is no number from 1 to 65535: write host:port (and credentials as user:password@host)`},
		{"port is missing", "redis://h:/0", `"redis://xxxxx/0": the port of host "h" is no number...`},
		{"port 0", "redis://h:0", `"redis://xxxxx": the port of host "h" is no number...`},
		{"port above 65535", "redis://[::1]:65536", `"redis://xxxxx": the port of host [::1] is no number...`},
		{"host forgotten", "redis://user:hunter2", `"redis://xxxxx": the port of host "user" is no number...`},
		{"host with a wrong character", "redis://h_1$", `"redis://xxxxx": the host xxxxx is no name: it takes letters, digits, dots, - and _`},
		{"host that is not ASCII", "redis://é", `"redis://xxxxx": the host xxxxx is no name...`},
		{"IPv6 without brackets", "redis://::1", `"redis://xxxxx": a host with several colons: write an IPv6 address in brackets, as in [::1]:6379, and credentials as user:password@host`},
		{"IPv6 without the closing bracket", "redis://[::1", `"redis://xxxxx": what stands in brackets is no IPv6 address: write [::1]:6379, or [fe80::1%25eth0]:6379 with a zone`},
		{"IPv4 in brackets", "redis://[10.0.0.1]", `"redis://xxxxx": what stands in brackets is no IPv6 address...`},
		{"IPv6 zone not encoded", "redis://[fe80::1%eth0]", `"redis://xxxxx": what stands in brackets is no IPv6 address...`},
		{"IPv6 zone with a wrong character", "redis://[fe80::1%25a%2Cb]", `"redis://xxxxx": what stands in brackets is no IPv6 address...`},
		{"word behind IPv6", "redis://[::1]x", `"redis://xxxxx": behind the bracket of an IPv6 address stands no port: write [::1]:6379`},

		{"database is a word", "redis://h/abc", `"redis://h/abc": the path is "abc": it takes /<database number from 0>`},
		{"database is negative", "redis://h/-1", `"redis://h/-1": the path is "-1": it takes /<database number from 0>`},
		{"database is too large", "redis://h/2147483648", `"redis://h/2147483648": the path is "2147483648": it takes...`},
		{"path of two", "redis://h/1/2", `"redis://h/1/2": the path has too many parts: it takes /<database number from 0>`},
		{"database twice", "redis://h/1?db=1", `"redis://h/1?db=1": the path and db both give the db: keep one`},
		{"fragment", "redis://h/1#x", `"redis://h/1#x": a fragment (#): only redis-sentinel:// takes one, as the master name; write # in a password as %23`},

		{"two hosts in redis", "redis://a,b,c", `"redis://a,b,c": redis:// takes one host: for several use redis+replica:// (a fixed primary, then its replicas), redis+sentinel:// (Sentinels) or redis+cluster:// (nodes of a Cluster)`},
		{"two bare hosts", "a:1,b:2", `"a:1,b:2": redis:// takes one host: for several use redis+replica://...`},
		{"two URLs", "redis://a;redis://b", `"redis://a;redis://b": several endpoints separated by semicolons: only REDISHA_LOCKS_URL takes them, as a quorum; the hosts of one endpoint are separated by commas (redis+sentinel://, redis+replica://, redis+cluster://), and a ; in a password is %3B`},
		{"semicolon in the password", "redis://:p;w@h", `"xxxxx": a part between semicolons has no scheme: write a scheme (sentinel://, for locks redis://) in front of every part, and a ; in a password as %3B`},

		{"socket without a path", "unix://", `"unix://": no socket: write unix:///path/of/the/socket`},
		{"socket with a host", "unix://tmp/r.sock", `"unix://tmp/r.sock": a host in front of the socket's path: write three slashes, unix:///path`},
		{"socket badly encoded", "unix:///a%", `"unix:///xxxxx": the path has a % that begins no percent-encoding: write % as %25`},
		{"socket with a zero byte", "unix:///a%00", `"unix:///xxxxx": the path holds a zero byte (%00): write the path of the socket`},
		{"socket with a fragment", "unix:///a#b", `"unix:///a#b": a fragment (#): write # in a path as %23`},

		{"no replica", "redis+replica://a", `"redis+replica://a": no replica: write redis+replica://primary:6379,replica:6379, or for a single server redis://`},
		{"no host in a list", "redis+replica:///0", `"redis+replica:///0": no host: write redis+replica://host1:6379,host2:6379`},
		{"empty host in a list", "redis+cluster://a,,b", `"redis+cluster://a,,b": a host in the list is empty: write host:port between the commas`},
		{"port alone in a list", "redis+cluster://a,:7001", `"redis+cluster://a,:7001": a host in the list is empty...`},
		{"host twice", "redis+cluster://a,b,A:6379", `"redis+cluster://a,b,A:6379": the host A:6379 is given twice: keep one`},
		{"credentials at each host", "redis+cluster://u:p@a,u:p@b", `"redis+cluster://u:xxxxx@b": more than one @: write the credentials once, before the first host, and @ in a password as %40`},
		{"database on Cluster", "redis+cluster://a/16", `"redis+cluster://a/16": the database is 16: a Cluster has database 0 alone; leave it out, and keep applications apart by namespace`},
		{"database on Cluster as a parameter", "redis+cluster://a?db=1", `"redis+cluster://a?db=1": the database is 1: a Cluster has...`},

		{"no Sentinel", "redis+sentinel:///m", `"redis+sentinel:///m": no host: write redis+sentinel://host1:26379,host2:26379`},
		{"database of a Sentinel URL is a word", "redis+sentinel://s/m/x", `"redis+sentinel://s/m/x": the path is "x": it takes /<master name>/<database number from 0>`},
		{"database of a Sentinel URL is negative", "redis+sentinel://s/-1", `"redis+sentinel://s/-1": the path is "-1": it takes /<master name>/<database number from 0>`},
		{"path of three", "redis+sentinel://s/m/1/2", `"redis+sentinel://s/m/1/2": the path has too many parts: it takes /<master name>/<database number from 0>`},
		{"master name in path and parameter", "redis+sentinel://s/m?master_name=m", `"redis+sentinel://s/m?master_name=m": the path and master_name both give the master_name: keep one`},
		{"master name in path and fragment", "redis+sentinel://s/m#m", `"redis+sentinel://s/m#m": the fragment and the path both give the master_name: keep one`},
		{"master name badly encoded", "redis+sentinel://s/m%", `"redis+sentinel://s/xxxxx": the path is no master name: it takes the primary's name in the Sentinels' configuration, without spaces and with % as %25`},
		{"master name with a space", "redis-sentinel://s/0#a%20b", `"redis-sentinel://s/0#xxxxx": the fragment is no master name...`},

		{"Celery, a part without scheme", "sentinel://a;b:1", `"xxxxx": a part between semicolons has no scheme: write a scheme (sentinel://, for locks redis://) in front of every part, and a ; in a password as %3B`},
		{"Celery, an empty part", "sentinel://a;;sentinel://b", `"xxxxx": a part between semicolons is empty: remove one semicolon`},
		{"Celery, a leading semicolon", ";sentinel://a", `";sentinel://a": a part between semicolons is empty: remove one semicolon`},
		{"Celery, mixed schemes", "sentinel://a;redis://b", `"sentinel://a;redis://b": parts of different schemes: write sentinel:// in front of every part`},
		{"Celery, other credentials later", "sentinel://a;sentinel://:pw@b", `"sentinel://a;sentinel://:xxxxx@b": a later part has other credentials than the first, whose count: remove them (those of the Sentinels are sentinel_username and sentinel_password)`},
		{"Celery, other database later", "sentinel://a/1;sentinel://b/2", `"sentinel://a/1;sentinel://b/2": a later part has another path than the first, whose counts: remove it`},
		{"Celery, fragment later", "sentinel://a;sentinel://b#m", `"sentinel://a;sentinel://b#m": a later part has another path than the first...`},
		{"Celery, no host in a part", "sentinel://a;sentinel://", `"sentinel://a;sentinel://": no host: write sentinel://host1:26379,host2:26379`},
		{"Celery, contradicting parameters", "sentinel://a?pool_size=1;sentinel://b?pool_size=2", `"sentinel://a?pool_size=1;sentinel://b?pool_size=2": pool_size is given twice: keep one`},
		{"Celery, the same Sentinel twice", "sentinel://a;sentinel://a", `"sentinel://a;sentinel://a": the host a:26379 is given twice: keep one`},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := Parse(c.raw)
			require.Error(t, err)
			require.Zero(t, e)
			if beginning, ok := strings.CutSuffix(c.says, "..."); ok {
				require.True(t, strings.HasPrefix(err.Error(), "endpoint: "+beginning), err.Error())
			} else {
				require.EqualError(t, err, "endpoint: "+c.says)
			}
		})
	}
}

func TestParseRefusesParametersThatDoNotFit(t *testing.T) {
	for _, c := range []struct{ raw, says string }{
		{"redis://h?socket_timeout=5", `the parameter "socket_timeout" is unknown: use db, proxy, tls_ca,`},
		{"redis://h?socket_timeout=5", `"redis://h?socket_timeout=xxxxx"`},
		{"redis://h?password=pw", `the parameter "password" is unknown: credentials stand before the host, user:password@host`},
		{"redis://h?Pool_Size=1", `the parameter "Pool_Size" is unknown: use`},
		{"redis://h?pool_size=1&pool_size=1", `pool_size is given twice: keep one`},
		{"redis://h?pool_size=1&pool_size=2", `pool_size is given twice: keep one`},
		{"redis://h?client_name=a+b", `client_name has a +, which may be a plus or a space: write %2B or %20`},
		{"redis://h?client_name=a%b", `client_name has a % that begins no percent-encoding: write % as %25`},
		{"redis+sentinel://s/m?sentinel_password=a+b", `sentinel_password has a +, which may be a plus or a space: write %2B or %20`},

		{"redis://h?read_from=replica", `read_from does not apply to redis://: it is for endpoints with replicas (redis+replica://, redis+sentinel://, redis+cluster://)`},
		{"redis://h?read_from=primary", `read_from does not apply to redis://`},
		{"redis+cluster://h?master_name=m", `master_name does not apply to redis+cluster://: it is for Sentinel URLs (redis+sentinel://)`},
		{"redis://h?sentinel_username=u", `sentinel_username does not apply to redis://`},
		{"redis+replica://a,b?sentinel_password=pw", `sentinel_password does not apply to redis+replica://`},
		{"redis://h?sentinel_tls=true", `sentinel_tls does not apply to redis://`},
		{"redis+cluster://h?fallback_primary=h", `fallback_primary does not apply to redis+cluster://`},
		{"redis+sentinel://s/m?proxy=envoy", `proxy does not apply to redis+sentinel://: it is for a single address (redis://, rediss://)`},
		{"redis+cluster://h?proxy=envoy", `proxy does not apply to redis+cluster://`},
		{"redis+replica://a,b?proxy=envoy", `proxy does not apply to redis+replica://`},
		{"redis://h?virtual_host=4", `virtual_host does not apply to redis://: it is for redis+socket:// (elsewhere the database is the path, or db)`},
		{"unix:///r?virtual_host=4", `virtual_host does not apply to unix://`},
		{"redis+socket:///r?virtual_host=4&db=4", `virtual_host and db both give the db: keep one`},
		{"unix:///r?tls_ca=/ca.pem", `tls_ca does not apply to unix://: it is for TCP: a unix socket has no TLS`},
		{"unix:///r?ssl_cert_reqs=none", `ssl_cert_reqs does not apply to unix://`},

		{"redis://h?tls_ca=/ca.pem&skip_verify=true", `tls_ca, skip_verify given, but redis:// is plain: write rediss://`},
		{"redis+sentinel://s/m?tls_server_name=h", `tls_server_name given, but redis+sentinel:// is plain: write rediss+sentinel://`},
		{"redis+cluster://h?skip_verify=false", `skip_verify given, but redis+cluster:// is plain: write rediss+cluster://`},
		{"redis+replica://a,b?tls_cert=/c.pem", `tls_cert given, but redis+replica:// is plain: write rediss+replica://`},
		{"rediss://h?tls_ca=/a&ssl_ca_certs=/a", `tls_ca and ssl_ca_certs both give the tls_ca: keep one`},
		{"rediss://h?ssl_certfile=/a&tls_cert=/a", `ssl_certfile and tls_cert both give the tls_cert: keep one`},
		{"rediss://h?tls_key=/a&ssl_keyfile=/a", `tls_key and ssl_keyfile both give the tls_key: keep one`},
		{"rediss://h?skip_verify=true&ssl_cert_reqs=none", `skip_verify and ssl_cert_reqs both give the skip_verify: keep one`},
		{"rediss://h?tls_key=/k.pem", `tls_key without a certificate: add tls_cert or ssl_certfile`},
		{"rediss://h?ssl_keyfile=/k.pem", `ssl_keyfile without a certificate: add tls_cert or ssl_certfile`},

		{"redis://h/1?proxy=envoy", `the database is 1 with proxy=envoy: Envoy has database 0 alone; leave it out`},
		{"redis://h?proxy=envoy&protocol=3", `protocol is 3 with proxy=envoy: Envoy speaks 2; leave it out`},
		{"redis://h?proxy=envoy&client_name=a", `client_name with proxy=envoy: Envoy refuses CLIENT SETNAME; leave it out`},
		{"redis://h?pool_size=5&min_idle_conns=6", `min_idle_conns is 6: it takes at most pool_size, which is 5`},
		{"redis://h?max_idle_conns=5&min_idle_conns=6", `min_idle_conns is 6: it takes at most max_idle_conns, which is 5`},
		{"redis://h?compression=none&compression_min_size=10", `compression_min_size is 10 with compression=none: remove one`},
	} {
		t.Run(c.raw, func(t *testing.T) {
			_, err := Parse(c.raw)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestUnknownParameterErrorListsThoseThatApply(t *testing.T) {
	_, err := Parse("redis+sentinel://s/m?nope=1")
	require.ErrorContains(t, err, "master_name, sentinel_username")
	require.NotContains(t, err.Error(), "proxy")
	_, err = Parse("unix:///r?nope=1")
	require.ErrorContains(t, err, "proxy")
	require.NotContains(t, err.Error(), "tls_ca")
	require.NotContains(t, err.Error(), "master_name")
}

func TestErrorHasAllProblems(t *testing.T) {
	_, err := Parse("redis://u:@h:x/abc?pool_size=0&nope=1")
	var all *Error
	require.ErrorAs(t, err, &all)
	require.Equal(t, "redis://u:xxxxx@xxxxx/abc?pool_size=0&nope=xxxxx", all.URL)
	require.Len(t, all.Problems, 5)
	require.Equal(t, all.Problems, all.Unwrap())
	for i, says := range []string{"empty password", "port of host", `path is "abc"`, `pool_size is "0"`, `"nope" is unknown`} {
		require.ErrorContains(t, all.Problems[i], says)
		require.ErrorContains(t, err, says)
	}
	require.NotContains(t, err.Error(), "\n")
}

func TestParseQuorumSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ name, raw, says string }{
		{"empty", "", `"": it is empty`},
		{"a part without scheme", "redis://a;b", `"xxxxx": part 2 of 2: it has no scheme: write redis:// in front of every part, and a ; in a password as %3B`},
		{"a semicolon in a password", "redis://:p;w@h", `"xxxxx": part 1 of 2: the port of host`},
		{"an empty part", "redis://a;;redis://b", `part 2 of 3: it has no scheme`},
		{"the same address twice", "redis://a;redis://b;redis://A:6379/1", `part 3 of 3: it has the same address as part 1: a quorum is made of independent servers`},
		{"a Cluster", "redis://a;redis+cluster://b", `part 2 of 2: it is a cluster endpoint: a quorum is made of independent single servers (redis://, rediss://, unix://)`},
		{"Sentinels", "redis://a;sentinel://b/m", `part 2 of 2: it is a sentinel endpoint`},
		{"Sentinels first", "sentinel://b/m;redis://a", `parts of different schemes`},
		{"parts with several problems", "redis://a?x=1&pool_size=0;redis://h:x", `"redis://a?x=xxxxx&pool_size=0;redis://xxxxx": part 1 of 2: the parameter "x" is unknown`},
		{"parts with several problems", "redis://a?x=1&pool_size=0;redis://h:x", `; part 1 of 2: pool_size is "0"`},
		{"parts with several problems", "redis://a?x=1&pool_size=0;redis://h:x", `; part 2 of 2: the port of host "h"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			endpoints, err := ParseQuorum(c.raw)
			require.ErrorContains(t, err, c.says)
			require.Nil(t, endpoints)
			require.True(t, errors.As(err, new(*Error)))
		})
	}
}

func TestValidate(t *testing.T) {
	sentinel := named(many(Sentinel, "s:26379"), "m", 0)
	for _, c := range []struct {
		name string
		e    Endpoint
		says string // "": valid
	}{
		{"standalone", one("h:6379", 1), ""},
		{"Cluster", many(Cluster, "h:6379"), ""},
		{"Sentinel with a master name", sentinel, ""},
		{"Sentinel with credentials", with(sentinel, func(e *Endpoint) { e.SentinelUsername, e.SentinelPassword = "su", "spw" }), ""},
		{"Sentinel with a password", with(sentinel, func(e *Endpoint) { e.SentinelPassword = "spw" }), ""},
		{"no master name", as(named(sentinel, "", 2), "", "pw"),
			`endpoint: "redis+sentinel://:xxxxx@s:26379/2": no master name: write redis+sentinel://s1:26379,s2:26379/<master name>/2 or redis-sentinel://s1:26379,s2:26379/2#<master name>, add master_name=<master name>, or set REDISHA_<ROLE>_SENTINEL_MASTER (a number alone in the path is the database)`},
		{"master name with a space", named(sentinel, "my master", 0),
			`endpoint: "redis+sentinel://s:26379/my%20master/0": the master name holds a space or a control character: use the name in the Sentinels' configuration (sentinel monitor <master name> ...)`},
		{"Sentinel user without a password", with(sentinel, func(e *Endpoint) { e.SentinelUsername = "su" }),
			`endpoint: "redis+sentinel://s:26379/m/0?sentinel_username=su": sentinel_username without a password: add sentinel_password or set REDISHA_<ROLE>_SENTINEL_PASSWORD`},
		{"Sentinel settings without Sentinels", with(named(one("h:6379", 0), "m", 0), func(e *Endpoint) { e.SentinelUsername, e.SentinelPassword = "su", "spw" }),
			`endpoint: "redis://h:6379": a master name, a Sentinel user, a Sentinel password given to an endpoint without Sentinels: use a redis+sentinel:// URL, or unset REDISHA_<ROLE>_SENTINEL_MASTER, _USERNAME and _PASSWORD`},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.e.Validate()
			if c.says == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, c.says)
			}
		})
	}
}

func TestForeignScheme(t *testing.T) {
	for raw, want := range map[string]string{
		"amqp://guest:guest@h:5672//":       "amqp",
		"amqps://h":                         "amqps",
		"AMQP://h":                          "amqp",
		" pyamqp://h\n":                     "pyamqp",
		"amqp://a;amqp://b":                 "amqp",
		"rpc://":                            "rpc",
		"rpc":                               "rpc",
		"db+postgresql://u:pw@h/celery":     "db+postgresql",
		"sqla+sqlite:///celery.sqlite":      "sqla+sqlite",
		"cache+memcached://h:11211/":        "cache+memcached",
		"mongodb+srv://u:pw@h":              "mongodb+srv",
		"sqs://key:secret@":                 "sqs",
		"locmem://":                         "locmem",
		"filesystem://":                     "filesystem",
		"file:///var/celery":                "file",
		"memory://":                         "memory",
		"memory":                            "memory",
		"file":                              "file",
		"disabled":                          "disabled",
		"django-db":                         "django-db",
		"django-cache":                      "django-cache",
		"elasticsearch+https://u:pw@h/i/t":  "elasticsearch+https",
		"redis://h":                         "",
		"redis+sentinel://h":                "",
		"redis":                             "",
		"cache":                             "", // likely a host
		"db:6379":                           "",
		"memory:6379":                       "",
		"":                                  "",
		"http://h":                          "", // wrong, not foreign
		"db+post gres://pw@h":               "",
		"amqp:pw@h":                         "",
		"u:pw@amqp://h":                     "",
		"django.core.cache.backends.locmem": "",
	} {
		t.Run(raw, func(t *testing.T) {
			got, ok := ForeignScheme(raw)
			require.Equal(t, want, got)
			require.Equal(t, want != "", ok)
		})
	}
}
