package endpoint

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var goodParams = []struct {
	query string // on a form that has the parameter
	want  func(e *Endpoint)
	url   string // the canonical query; "": as given
}{
	{"redis://h?db=3", func(e *Endpoint) { e.DB = 3 }, "redis://h:6379/3"},
	{"redis+socket:///r?virtual_host=3", func(e *Endpoint) { e.DB = 3 }, "unix:///r?db=3"},
	{"redis+sentinel://s?master_name=m", func(e *Endpoint) { e.MasterName = "m" }, "redis+sentinel://s:26379/m/0"},
	{"redis+sentinel://s?sentinel_username=su", func(e *Endpoint) { e.SentinelUsername = "su" }, ""},
	{"redis+sentinel://s?sentinel_password=s%20p%2B", func(e *Endpoint) { e.SentinelPassword = "s p+" }, "redis+sentinel://s:26379?sentinel_password=xxxxx"},
	{"redis+sentinel://s?fallback_primary=h", func(e *Endpoint) { e.FallbackPrimary = "h:6379" }, "redis+sentinel://s:26379?fallback_primary=h:6379"},
	{"redis+sentinel://s?fallback_primary=[::1]:1", func(e *Endpoint) { e.FallbackPrimary = "[::1]:1" }, ""},
	{"redis+sentinel://s?fallback_primary=[fe80::1%25eth0]:1", func(e *Endpoint) { e.FallbackPrimary = "[fe80::1%eth0]:1" }, ""},
	{"redis+sentinel://s?read_from=primary", func(e *Endpoint) { e.ReadFrom = ReadPrimary }, ""},
	{"redis+replica://a,b?read_from=replica_preferred", func(e *Endpoint) { e.ReadFrom = ReadReplicaPreferred }, ""},
	{"redis+cluster://a?read_from=replica", func(e *Endpoint) { e.ReadFrom = ReadReplica }, ""},
	{"redis://h?proxy=envoy", func(e *Endpoint) { e.Proxy = "envoy" }, ""},
	{"redis://h?proxy=envoy&protocol=2", func(e *Endpoint) { e.Proxy, e.Protocol = "envoy", 2 }, ""},

	{"rediss://h?tls_ca=/ca.pem", func(e *Endpoint) { e.TLS = &TLS{CA: "/ca.pem"} }, ""},
	{"rediss://h?tls_cert=/c.pem&tls_key=/k.pem", func(e *Endpoint) { e.TLS = &TLS{Cert: "/c.pem", Key: "/k.pem"} }, ""},
	{"rediss://h?tls_cert=/both.pem", func(e *Endpoint) { e.TLS = &TLS{Cert: "/both.pem", Key: "/both.pem"} }, "rediss://h:6379?tls_cert=/both.pem&tls_key=/both.pem"},
	{"rediss://h?tls_server_name=redis.example", func(e *Endpoint) { e.TLS = &TLS{ServerName: "redis.example"} }, ""},
	{"rediss://h?skip_verify=true", func(e *Endpoint) { e.TLS = &TLS{SkipVerify: true} }, ""},
	{"rediss://h?skip_verify=1", func(e *Endpoint) { e.TLS = &TLS{SkipVerify: true} }, "rediss://h:6379?skip_verify=true"},
	{"rediss://h?skip_verify=false", func(e *Endpoint) { e.TLS = on }, "rediss://h:6379"},
	{"rediss://h?skip_verify=0", func(e *Endpoint) { e.TLS = on }, "rediss://h:6379"},
	{"redis://h?ssl_cert_reqs=none", func(e *Endpoint) { e.TLS = &TLS{SkipVerify: true} }, "rediss://h:6379?skip_verify=true"},
	{"redis://h?ssl_cert_reqs=CERT_NONE", func(e *Endpoint) { e.TLS = &TLS{SkipVerify: true} }, "rediss://h:6379?skip_verify=true"},
	{"redis://h?ssl_cert_reqs=required", func(e *Endpoint) { e.TLS = on }, "rediss://h:6379"},
	{"redis://h?ssl_cert_reqs=CERT_REQUIRED", func(e *Endpoint) { e.TLS = on }, "rediss://h:6379"},
	{"redis://h?ssl_cert_reqs=optional", func(e *Endpoint) { e.TLS = on }, "rediss://h:6379"},
	{"redis://h?ssl_cert_reqs=CERT_OPTIONAL", func(e *Endpoint) { e.TLS = on }, "rediss://h:6379"},
	{"redis://h?ssl_ca_certs=/ca.pem", func(e *Endpoint) { e.TLS = &TLS{CA: "/ca.pem"} }, "rediss://h:6379?tls_ca=/ca.pem"},
	{"redis://h?ssl_certfile=/c.pem&ssl_keyfile=/k.pem", func(e *Endpoint) { e.TLS = &TLS{Cert: "/c.pem", Key: "/k.pem"} }, "rediss://h:6379?tls_cert=/c.pem&tls_key=/k.pem"},
	{"rediss://h?ssl_certfile=/c.pem&tls_key=/k.pem", func(e *Endpoint) { e.TLS = &TLS{Cert: "/c.pem", Key: "/k.pem"} }, "rediss://h:6379?tls_cert=/c.pem&tls_key=/k.pem"},
	{"rediss+sentinel://s?tls_ca=/ca.pem", func(e *Endpoint) { e.TLS, e.SentinelTLS = &TLS{CA: "/ca.pem"}, &TLS{CA: "/ca.pem"} }, ""},
	{"rediss+sentinel://s?sentinel_tls=true", func(e *Endpoint) { e.TLS, e.SentinelTLS = on, on }, "rediss+sentinel://s:26379"},
	{"rediss+sentinel://s?sentinel_tls=false", func(e *Endpoint) { e.TLS = on }, ""},
	{"redis+sentinel://s?sentinel_tls=1", func(e *Endpoint) { e.SentinelTLS = on }, "redis+sentinel://s:26379?sentinel_tls=true"},
	{"redis+sentinel://s?sentinel_tls=0", func(e *Endpoint) {}, "redis+sentinel://s:26379"},
	{"redis+sentinel://s?tls_ca=/ca.pem&sentinel_tls=true", func(e *Endpoint) { e.SentinelTLS = &TLS{CA: "/ca.pem"} }, ""},

	{"redis://h?protocol=2", func(e *Endpoint) { e.Protocol = 2 }, ""},
	{"redis://h?protocol=3", func(e *Endpoint) { e.Protocol = 3 }, ""},
	{"redis://h?client_name=app:1%2F=x", func(e *Endpoint) { e.ClientName = "app:1/=x" }, "redis://h:6379?client_name=app:1/%3Dx"},
	{"redis://h?pool_size=100", func(e *Endpoint) { e.PoolSize = 100 }, ""},
	{"redis://h?min_idle_conns=5", func(e *Endpoint) { e.MinIdleConns = 5 }, ""},
	{"redis://h?min_idle_conns=0", func(e *Endpoint) {}, "redis://h:6379"},
	{"redis://h?max_idle_conns=7", func(e *Endpoint) { e.MaxIdleConns = 7 }, ""},
	{"redis://h?pool_timeout=2", func(e *Endpoint) { e.PoolTimeout = 2 * time.Second }, "redis://h:6379?pool_timeout=2s"},
	{"redis://h?conn_max_idle_time=1m", func(e *Endpoint) { e.ConnMaxIdleTime = time.Minute }, "redis://h:6379?conn_max_idle_time=1m0s"},
	{"redis://h?conn_max_idle_time=-1", func(e *Endpoint) { e.ConnMaxIdleTime = -1 }, ""},
	{"redis://h?conn_max_lifetime=1h30m0s", func(e *Endpoint) { e.ConnMaxLifetime = 90 * time.Minute }, ""},
	{"redis://h?conn_max_lifetime=-1", func(e *Endpoint) { e.ConnMaxLifetime = -1 }, ""},
	{"redis://h?dial_timeout=300ms", func(e *Endpoint) { e.DialTimeout = 300 * time.Millisecond }, ""},
	{"redis://h?read_timeout=2147483647", func(e *Endpoint) { e.ReadTimeout = 2147483647 * time.Second }, "redis://h:6379?read_timeout=596523h14m7s"},
	{"redis://h?read_timeout=-1", func(e *Endpoint) { e.ReadTimeout = -1 }, ""},
	{"redis://h?write_timeout=1ns", func(e *Endpoint) { e.WriteTimeout = 1 }, ""},
	{"redis://h?write_timeout=-1", func(e *Endpoint) { e.WriteTimeout = -1 }, ""},
	{"redis://h?max_retries=3", func(e *Endpoint) { e.MaxRetries = 3 }, ""},
	{"redis://h?max_retries=-1", func(e *Endpoint) { e.MaxRetries = -1 }, ""},
	{"redis://h?namespace=shop:eu", func(e *Endpoint) { e.Namespace = "shop:eu" }, ""},
	{"redis://h?ttl=10m", func(e *Endpoint) { e.TTL = 10 * time.Minute }, "redis://h:6379?ttl=10m0s"},
	{"redis://h?compression=deflate&compression_min_size=512", func(e *Endpoint) { e.Compression, e.CompressionMinSize = "deflate", 512 }, ""},
	{"redis://h?compression=none", func(e *Endpoint) { e.Compression = "none" }, ""},
	{"redis://h?breaker=on", func(e *Endpoint) { e.Breaker = "on" }, ""},
	{"redis://h?breaker=off", func(e *Endpoint) { e.Breaker = "off" }, ""},
	{"redis://h?strict=true", func(e *Endpoint) { e.Strict = "true" }, ""},
	{"redis://h?strict=false", func(e *Endpoint) { e.Strict = "false" }, ""},
	{"redis://h?strict=1", func(e *Endpoint) { e.Strict = "true" }, "redis://h:6379?strict=true"},
	{"redis+cluster://h?strict=0", func(e *Endpoint) { e.Strict = "false" }, "redis+cluster://h:6379?strict=false"},
	{"redis://h?allow_failover_managed=true", func(e *Endpoint) { e.AllowFailoverManaged = "true" }, ""},
	{"redis://h?allow_failover_managed=0", func(e *Endpoint) { e.AllowFailoverManaged = "false" }, "redis://h:6379?allow_failover_managed=false"},
	{"redis://h?strict=false&allow_failover_managed=true", func(e *Endpoint) { e.Strict, e.AllowFailoverManaged = "false", "true" }, ""},
}

func TestParseReadsEachParameter(t *testing.T) {
	for _, c := range goodParams {
		t.Run(c.query, func(t *testing.T) {
			base, query, _ := strings.Cut(c.query, "?")
			want, err := Parse(base)
			require.NoError(t, err)
			want.TLS, want.SentinelTLS = nil, nil // they are the case's to say
			c.want(&want)

			e, err := Parse(c.query)
			require.NoError(t, err)
			require.Equal(t, want, e)
			if c.url == "" {
				_, shown, _ := strings.Cut(e.String(), "?")
				require.Equal(t, query, shown)
			} else {
				require.Equal(t, c.url, e.String())
			}

			again, err := Parse(e.format(itself))
			require.NoError(t, err)
			require.Equal(t, e, again)
		})
	}
}

func TestEachParameterIsCoveredByACase(t *testing.T) {
	good, bad := make(map[string]bool), make(map[string]bool)
	for _, c := range goodParams {
		_, query, _ := strings.Cut(c.query, "?")
		for text := range strings.SplitSeq(query, "&") {
			name, _, _ := strings.Cut(text, "=")
			good[name] = true
		}
	}
	for _, c := range badParams {
		bad[c.name] = true
	}
	for _, p := range params {
		require.True(t, good[p.name], "no good value of %s", p.name)
		if p.name != "sentinel_username" && p.name != "sentinel_password" { // they take any text
			require.True(t, bad[p.name], "no bad value of %s", p.name)
		}
	}
}

func TestTLSOfSentinelsAndNodesIsNotShared(t *testing.T) {
	e, err := Parse("rediss+sentinel://s/m?tls_ca=/ca.pem")
	require.NoError(t, err)
	e.SentinelTLS.CA = "/other.pem"
	require.Equal(t, "/ca.pem", e.TLS.CA)
}

var badParams = []struct {
	name  string
	form  string
	value string
	says  string
}{
	{"db", "redis://h", "abc", `db is "abc": it takes a database number from 0`},
	{"db", "redis://h", "-1", `db is "-1": it takes a database number from 0`},
	{"virtual_host", "redis+socket:///r", "x", `virtual_host is "x": it takes a database number from 0`},
	{"master_name", "redis+sentinel://s", "a%20b", `master_name is "a b": it takes the primary's name in the Sentinels' configuration, without spaces`},
	{"fallback_primary", "redis+sentinel://s", "h:99999", `fallback_primary is "h:99999": it takes host:port (port 6379 by default, IPv6 in brackets)`},
	{"fallback_primary", "redis+sentinel://s", ":6379", `fallback_primary is ":6379": it takes host:port`},
	{"read_from", "redis+cluster://h", "slave", `read_from is "slave": it takes primary, replica_preferred or replica`},
	{"proxy", "redis://h", "twemproxy", `proxy is "twemproxy": it takes envoy (twemproxy is not supported: it closes the connection on HELLO)`},
	{"tls_ca", "rediss://h", "-----BEGIN%20CERTIFICATE", `tls_ca is xxxxx: it takes the path of a PEM file`},
	{"tls_cert", "rediss://h", "-----BEGIN%20PRIVATE%20KEY-----MIIE", `tls_cert is xxxxx: it takes the path of a PEM file`},
	{"tls_cert", "rediss://h", "a%0Ab", `tls_cert is xxxxx: it takes the path of a PEM file`},
	{"tls_key", "rediss://h", "-----BEGIN", `tls_key is xxxxx: it takes the path of a PEM file`},
	{"ssl_ca_certs", "rediss://h", "a%0Ab", `ssl_ca_certs is xxxxx: it takes the path of a PEM file`},
	{"ssl_certfile", "rediss://h", "a%0Ab", `ssl_certfile is xxxxx: it takes the path of a PEM file`},
	{"ssl_keyfile", "rediss://h", "-----BEGIN", `ssl_keyfile is xxxxx: it takes the path of a PEM file`},
	{"ssl_cert_reqs", "rediss://h", "maybe", `ssl_cert_reqs is "maybe": it takes required, optional (the same to a client), none, CERT_REQUIRED`},
	{"tls_server_name", "rediss://h", "a/b", `tls_server_name is "a/b": it takes a host name`},
	{"skip_verify", "rediss://h", "yes", `skip_verify is "yes": it takes true, false, 1 or 0`},
	{"sentinel_tls", "redis+sentinel://s", "on", `sentinel_tls is "on": it takes true, false, 1 or 0`},
	{"protocol", "redis://h", "4", `protocol is "4": it takes 2 or 3`},
	{"client_name", "redis://h", "my%20app", `client_name is "my app": it takes printable ASCII without spaces (CLIENT SETNAME)`},
	{"client_name", "redis://h", "a%20b%3Dpw", `client_name is xxxxx: it takes printable ASCII`}, // as in password=pw
	{"namespace", "redis://h", "a%20u:pw%40h", `namespace is xxxxx: it takes a prefix`},
	{"namespace", "redis://h", "a%20password,hunter2", `namespace is xxxxx: it takes a prefix`},
	{"client_name", "redis://h", "%C3%A9", `client_name is xxxxx: it takes printable ASCII`},
	{"pool_size", "redis://h", "abc", `pool_size is "abc": it takes a whole number from 1 to 2147483647; leave it out for the default`},
	{"pool_size", "redis://h", "0", `pool_size is "0": it takes a whole number from 1`},
	{"pool_size", "redis://h", "2147483648", `pool_size is "2147483648": it takes`},
	{"pool_size", "redis://h", "99999999999999999999", `pool_size is "99999999999999999999": it takes`},
	{"min_idle_conns", "redis://h", "-1", `min_idle_conns is "-1": it takes a whole number from 0`},
	{"max_idle_conns", "redis://h", "0", `max_idle_conns is "0": it takes a whole number from 1`},
	{"pool_timeout", "redis://h", "-1", `pool_timeout is "-1": it takes a duration above 0, such as 500ms or 1m30s, or whole seconds; leave it out for the default`},
	{"conn_max_idle_time", "redis://h", "0", `conn_max_idle_time is "0": it takes a duration above 0, such as 500ms or 1m30s, or whole seconds, or -1 for none; leave it out`},
	{"conn_max_lifetime", "redis://h", "-5s", `conn_max_lifetime is "-5s": it takes a duration above 0`},
	{"dial_timeout", "redis://h", "0", `dial_timeout is "0": it takes a duration above 0`},
	{"dial_timeout", "redis://h", "-1", `dial_timeout is "-1": it takes a duration above 0`},
	{"read_timeout", "redis://h", "3x", `read_timeout is "3x": it takes a duration above 0`},
	{"write_timeout", "redis://h", "1.5", `write_timeout is "1.5": it takes a duration above 0`},
	{"write_timeout", "redis://h", "0.1ns", `write_timeout is "0.1ns": it takes a duration above 0`},
	{"max_retries", "redis://h", "0", `max_retries is "0": it takes a whole number from 1 to 2147483647, or -1 for none; leave it out for the default`},
	{"namespace", "redis://h", "a{b}", `namespace is "a{b}": it takes a prefix for keys without spaces and braces`},
	{"strict", "redis://h", "yes", `strict is "yes": it takes true, false, 1 or 0`},
	{"allow_failover_managed", "redis://h", "True", `allow_failover_managed is "True": it takes true, false, 1 or 0`},
	{"ttl", "redis://h", "-1", `ttl is "-1": it takes a duration above 0`},
	{"compression", "redis://h", "gzip", `compression is "gzip": it takes deflate or none`},
	{"compression_min_size", "redis://h", "0", `compression_min_size is "0": it takes a whole number from 1`},
	{"breaker", "redis://h", "true", `breaker is "true": it takes on or off`},
}

func TestParseNamesTheParameterAndWhatItTakes(t *testing.T) {
	for _, c := range badParams {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			_, err := Parse(c.form + "?" + c.name + "=" + c.value)
			require.ErrorContains(t, err, c.says)
		})
	}
	for _, p := range params {
		form := "rediss://h"
		switch p.only {
		case sentinels, several:
			form = "redis+sentinel://s"
		case sockets:
			form = "redis+socket:///r"
		}
		for _, empty := range []string{p.name, p.name + "="} {
			t.Run(empty+" is empty", func(t *testing.T) {
				_, err := Parse(form + "?" + empty)
				require.ErrorContains(t, err, p.name+" is empty: it takes "+p.takes)
			})
		}
	}
}
