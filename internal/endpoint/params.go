package endpoint

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A param is one query parameter.
type param struct {
	name    string
	means   string                        // parameters of the same meaning exclude each other; the name if empty
	takes   string                        // completes "pool_size takes ..."
	only    *forms                        // the URLs that have it; nil: all
	secret  bool                          // never shown
	private bool                          // not shown unless it was understood
	set     func(d *draft, v string) bool // false: v is not what it takes
	get     func(d *draft) string         // "": not set; nil: String writes it in another way
}

func (p param) meaning() string { return cmp.Or(p.means, p.name) }

func (p param) appliesTo(s scheme) bool { return p.only == nil || p.only.include(s) }

// forms are the URLs to which a parameter applies.
type forms struct {
	include func(scheme) bool
	text    string // completes "it is for ..."
}

var (
	sentinels = &forms{func(s scheme) bool { return s.topology == Sentinel }, "Sentinel URLs (redis+sentinel://)"}
	several   = &forms{func(s scheme) bool { return s.topology != Standalone }, "endpoints with replicas (redis+replica://, redis+sentinel://, redis+cluster://)"}
	single    = &forms{func(s scheme) bool { return s.topology == Standalone }, "a single address (redis://, rediss://)"}
	sockets   = &forms{func(s scheme) bool { return s.name == "redis+socket" }, "redis+socket:// (elsewhere the database is the path, or db)"}
	network   = &forms{func(s scheme) bool { return s.network == tcp }, "TCP: a unix socket has no TLS"}
)

// params lists the parameters in the order in which String writes them.
var params = []param{
	{
		name: "db", takes: "a database number from 0",
		set: func(d *draft, v string) bool { return whole(v, 0, &d.DB) },
		get: func(d *draft) string {
			if d.Network != unix || d.DB == 0 {
				return "" // String writes it in the path
			}
			return strconv.Itoa(d.DB)
		},
	},
	{
		name: "virtual_host", means: "db", takes: "a database number from 0", only: sockets,
		set: func(d *draft, v string) bool { return whole(v, 0, &d.DB) },
	},
	{
		name: "master_name", takes: "the primary's name in the Sentinels' configuration, without spaces", only: sentinels,
		set: func(d *draft, v string) bool { d.MasterName = v; return isName(v) },
	},
	text("sentinel_username", "the ACL user at the Sentinels", sentinels, func(d *draft) *string { return &d.SentinelUsername }),
	secret(text("sentinel_password", "the password at the Sentinels", sentinels, func(d *draft) *string { return &d.SentinelPassword })),
	{
		name: "fallback_primary", takes: "host:port (port 6379 by default, IPv6 in brackets)", only: sentinels,
		set: func(d *draft, v string) bool {
			addr, err := parseAddr(strings.ReplaceAll(v, "%", "%25"), "6379") // v is decoded
			d.FallbackPrimary = addr
			return err == nil && v[0] != ':'
		},
		get: func(d *draft) string { return d.FallbackPrimary },
	},
	choice("read_from", several, func(d *draft) *ReadFrom { return &d.ReadFrom }, ReadPrimary, ReadReplicaPreferred, ReadReplica),
	{
		name: "proxy", takes: "envoy (twemproxy is not supported: it closes the connection on HELLO)", only: single,
		set: func(d *draft, v string) bool { d.Proxy = v; return v == "envoy" },
		get: func(d *draft) string { return d.Proxy },
	},

	file("tls_ca", "", func(d *draft) *string { return &d.tls.CA }),
	file("tls_cert", "", func(d *draft) *string { return &d.tls.Cert }),
	private(file("tls_key", "", func(d *draft) *string { return &d.tls.Key })),
	{
		name: "tls_server_name", takes: "a host name", only: network,
		set: func(d *draft, v string) bool { d.tls.ServerName = v; return isHost(v) },
		get: func(d *draft) string { return d.tls.ServerName },
	},
	{
		name: "skip_verify", takes: trueOrFalse, only: network,
		set: func(d *draft, v string) bool { return boolean(v, &d.tls.SkipVerify) },
		get: func(d *draft) string {
			if !d.tls.SkipVerify {
				return ""
			}
			return "true"
		},
	},
	{
		name: "ssl_cert_reqs", means: "skip_verify", takes: "required, optional (the same to a client), none, CERT_REQUIRED, CERT_OPTIONAL or CERT_NONE", only: network,
		set: func(d *draft, v string) bool {
			d.tls.SkipVerify = v == "none" || v == "CERT_NONE"
			return slices.Contains([]string{"required", "optional", "none", "CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE"}, v)
		},
	},
	alias(file("ssl_ca_certs", "tls_ca", func(d *draft) *string { return &d.tls.CA })),
	alias(file("ssl_certfile", "tls_cert", func(d *draft) *string { return &d.tls.Cert })),
	alias(private(file("ssl_keyfile", "tls_key", func(d *draft) *string { return &d.tls.Key }))),
	{
		name: "sentinel_tls", takes: trueOrFalse, only: sentinels,
		set: func(d *draft, v string) bool { d.sentinelTLS = new(bool); return boolean(v, d.sentinelTLS) },
		get: func(d *draft) string {
			if (d.SentinelTLS != nil) == (d.TLS != nil) {
				return "" // the Sentinels follow the scheme
			}
			return strconv.FormatBool(d.SentinelTLS != nil)
		},
	},

	choice("protocol", nil, func(d *draft) *respVersion { return (*respVersion)(&d.Protocol) }, 2, 3),
	{
		name: "client_name", takes: "printable ASCII without spaces (CLIENT SETNAME)",
		set: func(d *draft, v string) bool { d.ClientName = v; return isName(v) && isASCII(v) },
		get: func(d *draft) string { return d.ClientName },
	},
	number("pool_size", 1, false, func(d *draft) *int { return &d.PoolSize }),
	number("min_idle_conns", 0, false, func(d *draft) *int { return &d.MinIdleConns }),
	number("max_idle_conns", 1, false, func(d *draft) *int { return &d.MaxIdleConns }),
	duration("pool_timeout", false, func(d *draft) *time.Duration { return &d.PoolTimeout }),
	duration("conn_max_idle_time", true, func(d *draft) *time.Duration { return &d.ConnMaxIdleTime }),
	duration("conn_max_lifetime", true, func(d *draft) *time.Duration { return &d.ConnMaxLifetime }),
	duration("dial_timeout", false, func(d *draft) *time.Duration { return &d.DialTimeout }),
	duration("read_timeout", true, func(d *draft) *time.Duration { return &d.ReadTimeout }),
	duration("write_timeout", true, func(d *draft) *time.Duration { return &d.WriteTimeout }),
	number("max_retries", 1, true, func(d *draft) *int { return &d.MaxRetries }),

	{
		name: "namespace", takes: "a prefix for keys without spaces and braces (braces would put all keys into one slot of a Cluster)",
		set: func(d *draft, v string) bool { d.Namespace = v; return isName(v) && !strings.ContainsAny(v, "{}") },
		get: func(d *draft) string { return d.Namespace },
	},
	duration("ttl", false, func(d *draft) *time.Duration { return &d.TTL }),
	choice("compression", nil, func(d *draft) *string { return &d.Compression }, "deflate", "none"),
	number("compression_min_size", 1, false, func(d *draft) *int { return &d.CompressionMinSize }),
	choice("breaker", nil, func(d *draft) *string { return &d.Breaker }, "on", "off"),
	trueFalse("strict", func(d *draft) *string { return &d.Strict }),
	trueFalse("allow_failover_managed", func(d *draft) *string { return &d.AllowFailoverManaged }),
}

func paramNamed(name string) (param, bool) {
	i := slices.IndexFunc(params, func(p param) bool { return p.name == name })
	if i < 0 {
		return param{}, false
	}
	return params[i], true
}

const (
	trueOrFalse = "true, false, 1 or 0"
	leaveOut    = "; leave it out for the default"
)

// respVersion reads protocol as one of two words.
type respVersion int

func text(name, takes string, only *forms, field func(*draft) *string) param {
	return param{
		name: name, takes: takes, only: only,
		set: func(d *draft, v string) bool { *field(d) = v; return true },
		get: func(d *draft) string { return *field(d) },
	}
}

// file is a parameter that holds a path, and not the file's content, as which a
// key would be a secret.
func file(name, means string, field func(*draft) *string) param {
	p := text(name, "the path of a PEM file", network, field)
	p.means = means
	p.set = func(d *draft, v string) bool {
		*field(d) = v
		return !strings.Contains(v, "-----BEGIN") && !strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f })
	}
	return p
}

func secret(p param) param  { p.secret = true; return p }
func private(p param) param { p.private = true; return p }

// alias makes p another name, which String does not write.
func alias(p param) param { p.get = nil; return p }

func choice[T string | ReadFrom | respVersion](name string, only *forms, field func(*draft) *T, values ...T) param {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = fmt.Sprint(v)
	}
	last := len(words) - 1
	return param{
		name: name, takes: strings.Join(words[:last], ", ") + " or " + words[last], only: only,
		set: func(d *draft, v string) bool {
			i := slices.Index(words, v)
			if i >= 0 {
				*field(d) = values[i]
			}
			return i >= 0
		},
		get: func(d *draft) string {
			if i := slices.Index(values, *field(d)); i >= 0 {
				return words[i]
			}
			return ""
		},
	}
}

// trueFalse is a boolean that may be left to the program.
func trueFalse(name string, field func(*draft) *string) param {
	return param{
		name: name, takes: trueOrFalse,
		set: func(d *draft, v string) bool {
			var on bool
			ok := boolean(v, &on)
			*field(d) = strconv.FormatBool(on)
			return ok
		},
		get: func(d *draft) string { return *field(d) },
	}
}

func number(name string, least int, canBeOff bool, field func(*draft) *int) param {
	takes := fmt.Sprintf("a whole number from %d to %d", least, math.MaxInt32)
	if canBeOff {
		takes += ", or -1 for none"
	}
	return param{
		name: name, takes: takes + leaveOut,
		set: func(d *draft, v string) bool {
			if canBeOff && v == "-1" {
				*field(d) = -1
				return true
			}
			return whole(v, least, field(d))
		},
		get: func(d *draft) string {
			if *field(d) == 0 {
				return ""
			}
			return strconv.Itoa(*field(d))
		},
	}
}

func duration(name string, canBeOff bool, field func(*draft) *time.Duration) param {
	takes := "a duration above 0, such as 500ms or 1m30s, or whole seconds"
	if canBeOff {
		takes += ", or -1 for none"
	}
	return param{
		name: name, takes: takes + leaveOut,
		set: func(d *draft, v string) bool {
			var seconds int
			switch {
			case canBeOff && v == "-1":
				*field(d) = -1
				return true
			case whole(v, 1, &seconds):
				*field(d) = time.Duration(seconds) * time.Second
				return true
			}
			parsed, err := time.ParseDuration(v)
			*field(d) = max(parsed, 0)
			return err == nil && parsed > 0
		},
		get: func(d *draft) string {
			switch *field(d) {
			case 0:
				return ""
			case -1:
				return "-1"
			}
			return field(d).String()
		},
	}
}

// whole reads a whole number of digits alone into n, from least to the largest
// int32.
func whole(v string, least int, n *int) bool {
	if v == "" || strings.Trim(v, "0123456789") != "" {
		return false
	}
	parsed, err := strconv.Atoi(v)
	if err != nil || parsed < least || parsed > math.MaxInt32 {
		return false
	}
	*n = parsed
	return true
}

func boolean(v string, b *bool) bool {
	*b = v == "true" || v == "1"
	return *b || v == "false" || v == "0"
}

// isName tells whether s can be a name: no spaces, no control characters.
func isName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f })
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7f })
}
